"""The output layer's product where runs of positions have rows of their own: one product for each run, no more.

The logits of a run are h (W + delta_r)^T. As h W^T + h delta_r^T they would cost the vocabulary's product twice, both
ways, and two more tensors of the size of the logits. The sum of the weights costs little where a run has more than a
few positions, and the gradients of W and of delta_r are one product.

Positions whose runs do not lie together are brought together piece by piece, a piece of logits small enough for the
processor's cache: all logits in the order of the runs and once more in their own would be twice the memory, and, with
narrow models, most of what the product costs.

Shapes: M positions, n of one run, R tables, V vocabulary, D model width.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sprachbund.modeling.products import gradient_of, product_dtype, uncompiled

_PIECE = 256  # positions at a time on a CPU: of 64 to 8192 the fastest where it was measured, with a vocabulary of 2048


class _Settings(NamedTuple):
    """The runs, as places in the order, the table of each (None: the shared rows alone), and the type of products."""

    places: list[slice]
    tables: list[int | None]
    dtype: torch.dtype


@uncompiled
def keyed_linear(
    rows_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    delta_RVD: Tensor,
    counts: Sequence[int],
    tables: Sequence[int | None],
    order_M: Tensor | None = None,
) -> Tensor:
    """Return the logits of positions, (M, V): run i is the next `counts[i]` rows and has table `tables[i]`.

    With `order_M`, a permutation, the runs follow each other in it: row `order_M[0]` is the first of run 0. Logits are
    in the order of the rows, whatever that of the runs. Without a table a run is multiplied with the shared weight
    alone. A table of zeros changes no bit of a run's result. There is no second derivative. Raises ValueError where the
    runs do not have all rows.
    """
    if sum(counts) != len(rows_MD):
        raise ValueError(f"the runs have {sum(counts)} rows, and there are {len(rows_MD)}")
    places = [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True) if count]
    kept = [table for table, count in zip(tables, counts, strict=True) if count]
    settings = _Settings(places, kept, product_dtype(rows_MD, weight_VD))
    return _KeyedLinear.apply(settings, order_M, rows_MD, weight_VD, bias_V, delta_RVD)  # type: ignore[no-any-return, no-untyped-call]


def _weight_of(weight_VD: Tensor, delta_RVD: Tensor, table: int | None, dtype: torch.dtype) -> Tensor:
    return (weight_VD if table is None else weight_VD + delta_RVD[table]).to(dtype)


def _pieces(place: slice, order_M: Tensor | None) -> Iterator[slice | Tensor]:
    """Return where the rows of a run are: together as one piece, or the numbers of some after the other."""
    if order_M is None:
        yield place
    else:
        own = order_M[place]
        yield from torch.split(own, _PIECE if own.device.type == "cpu" else len(own))


def _read(rows_MD: Tensor, piece: slice | Tensor) -> Tensor:
    return rows_MD[piece] if isinstance(piece, slice) else rows_MD.index_select(0, piece)


def _product(left: Tensor, right: Tensor, bias: Tensor | None, out: Tensor, piece: slice | Tensor) -> None:
    """Write left @ right, and a bias, to the rows of `out` that are of a piece."""
    own = out[piece] if isinstance(piece, slice) else out.new_empty(len(piece), out.shape[1])
    if bias is None:
        torch.mm(left, right, out=own)
    else:
        torch.addmm(bias, left, right, out=own)
    if not isinstance(piece, slice):
        out.index_copy_(0, piece, own)


class _KeyedLinear(torch.autograd.Function):
    """The products of `keyed_linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: _Settings,
        order_M: Tensor | None,
        rows_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        delta_RVD: Tensor,
    ) -> Tensor:
        places, tables, dtype = settings
        ctx.settings, ctx.rows_dtype = settings, rows_MD.dtype
        rows_MD = rows_MD.to(dtype)
        ctx.save_for_backward(order_M, rows_MD, weight_VD, delta_RVD)
        bias_V = None if bias_V is None else bias_V.to(dtype)
        logits_MV = rows_MD.new_empty(len(rows_MD), len(weight_VD))
        for place, table in zip(places, tables, strict=True):
            own_DV = _weight_of(weight_VD, delta_RVD, table, dtype).T
            for piece in _pieces(place, order_M):
                _product(_read(rows_MD, piece), own_DV, bias_V, logits_MV, piece)
        return logits_MV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MV: Tensor) -> tuple[Tensor | None, ...]:
        order_M, rows_MD, weight_VD, delta_RVD = ctx.saved_tensors
        places, tables, dtype = ctx.settings
        _, _, needs_rows, needs_weight, needs_bias, needs_delta = ctx.needs_input_grad
        grad_MV = grad_MV.to(dtype)
        grad_rows_MD = torch.empty_like(rows_MD) if needs_rows else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        used = {table for table in tables if table is not None}
        grad_delta_RVD = gradient_of(delta_RVD, used) if needs_delta else None
        written: set[int] = set()
        for place, table in zip(places, tables, strict=True):
            wants_delta = grad_delta_RVD is not None and table is not None
            own_VD = _weight_of(weight_VD, delta_RVD, table, dtype) if grad_rows_MD is not None else None
            for piece in _pieces(place, order_M):
                grad_nV = _read(grad_MV, piece)
                if grad_rows_MD is not None and own_VD is not None:
                    _product(grad_nV, own_VD, None, grad_rows_MD, piece)
                if grad_weight_VD is None and not wants_delta:
                    continue
                grad_VD = grad_nV.T @ _read(rows_MD, piece)
                if grad_weight_VD is not None:
                    grad_weight_VD += grad_VD
                if grad_delta_RVD is not None and table is not None:
                    if table in written:
                        grad_delta_RVD[table] += grad_VD
                    else:
                        grad_delta_RVD[table] = grad_VD
                    written.add(table)
        grad_bias_V = grad_MV.sum(0) if needs_bias else None
        given = None if grad_rows_MD is None else grad_rows_MD.to(ctx.rows_dtype)
        return None, None, given, grad_weight_VD, grad_bias_V, grad_delta_RVD
