"""The output layer's product where runs of positions have rows of their own: one product for each run, no more.

The logits of a run are h (W + delta_r)^T. As h W^T + h delta_r^T they would cost the vocabulary's product twice, both
ways, and two more tensors of the size of the logits. The sum of the weights costs little where a run has more than a
few positions, and the gradients of W and of delta_r are one product.

Shapes: M positions, n of one run, R tables, V vocabulary, D model width.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sprachbund.modeling.products import gradient_of, product_dtype, uncompiled


class _Settings(NamedTuple):
    """The runs, as places among the rows, the table of each (None: the shared rows alone), and the type of products."""

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
) -> Tensor:
    """Return the logits of runs of positions, (M, V): run i is the next `counts[i]` rows and has table `tables[i]`.

    Without a table a run is multiplied with the shared weight alone. A table of zeros changes no bit of a run's result.
    There is no second derivative. Raises ValueError where the runs do not have all rows.
    """
    if sum(counts) != len(rows_MD):
        raise ValueError(f"the runs have {sum(counts)} rows, and there are {len(rows_MD)}")
    places = [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True) if count]
    kept = [table for table, count in zip(tables, counts, strict=True) if count]
    settings = _Settings(places, kept, product_dtype(rows_MD, weight_VD))
    return _KeyedLinear.apply(settings, rows_MD, weight_VD, bias_V, delta_RVD)  # type: ignore[no-any-return, no-untyped-call]


def _weight_of(weight_VD: Tensor, delta_RVD: Tensor, table: int | None, dtype: torch.dtype) -> Tensor:
    return (weight_VD if table is None else weight_VD + delta_RVD[table]).to(dtype)


class _KeyedLinear(torch.autograd.Function):
    """The products of `keyed_linear`."""

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, rows_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, delta_RVD: Tensor
    ) -> Tensor:
        ctx.settings, ctx.rows_dtype = settings, rows_MD.dtype
        rows_MD = rows_MD.to(settings.dtype)
        ctx.save_for_backward(rows_MD, weight_VD, delta_RVD)
        logits_MV = rows_MD.new_empty(len(rows_MD), len(weight_VD))
        for place, table in zip(settings.places, settings.tables, strict=True):
            own_DV = _weight_of(weight_VD, delta_RVD, table, settings.dtype).T
            if bias_V is None:
                torch.mm(rows_MD[place], own_DV, out=logits_MV[place])
            else:
                torch.addmm(bias_V.to(settings.dtype), rows_MD[place], own_DV, out=logits_MV[place])
        return logits_MV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MV: Tensor) -> tuple[Tensor | None, ...]:
        rows_MD, weight_VD, delta_RVD = ctx.saved_tensors
        places, tables, dtype = ctx.settings
        _, needs_rows, needs_weight, needs_bias, needs_delta = ctx.needs_input_grad
        grad_MV = grad_MV.to(dtype)
        grad_rows_MD = torch.empty_like(rows_MD) if needs_rows else None
        grad_weight_VD = torch.zeros_like(weight_VD) if needs_weight else None
        used = {table for table in tables if table is not None}
        grad_delta_RVD = gradient_of(delta_RVD, used) if needs_delta else None
        written: set[int] = set()
        for place, table in zip(places, tables, strict=True):
            grad_nV = grad_MV[place]
            if grad_rows_MD is not None:
                torch.mm(grad_nV, _weight_of(weight_VD, delta_RVD, table, dtype), out=grad_rows_MD[place])
            if grad_weight_VD is None and (grad_delta_RVD is None or table is None):
                continue
            own_VD = grad_nV.T @ rows_MD[place]
            if grad_weight_VD is not None:
                grad_weight_VD += own_VD
            if grad_delta_RVD is not None and table is not None:
                if table in written:
                    grad_delta_RVD[table] += own_VD
                else:
                    grad_delta_RVD[table] = own_VD
                written.add(table)
        grad_bias_V = grad_MV.sum(0) if needs_bias else None
        given = None if grad_rows_MD is None else grad_rows_MD.to(ctx.rows_dtype)
        return None, given, grad_weight_VD, grad_bias_V, grad_delta_RVD
