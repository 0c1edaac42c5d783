"""Products of runs of rows with fused expert weights: one dense product for each run, forward and backward.

The rows of one expert lie together, so nothing is padded; what is left is not to pay for the experts that have no rows.
Autograd would: the gradient of an expert indexed out of a fused tensor is as large as the fused tensor, for every
expert anew. Here each expert's gradient is written where it belongs in one tensor.

Shapes: N tokens, K experts chosen by a token, M rows (N, or N*K), n rows of one run, D columns in, O columns out,
E experts.
"""

import mmap as mmap_module
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from mmap import mmap
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_Function = TypeVar("_Function", bound=Callable[..., Any])
_LARGE = 1 << 22  # bytes
_PRIVATE = None if sys.platform == "win32" else mmap_module.MAP_PRIVATE | mmap_module.MAP_ANONYMOUS


class _Run(NamedTuple):
    """The rows `start:end`, all of one expert."""

    start: int
    end: int
    expert: int


def _runs(counts: Sequence[int], experts: Sequence[int]) -> list[_Run]:
    """Return the runs that have rows; where none has, a single one without."""
    ends = list(accumulate(counts))
    runs = [_Run(end - count, end, expert) for end, count, expert in zip(ends, counts, experts, strict=True)]
    return [run for run in runs if run.end > run.start] or [_Run(0, 0, experts[0])]


def gradient_of(tensor_E: Tensor, used: set[int]) -> Tensor:
    """Return memory for a gradient, with zeros for the experts that are not in `used`.

    A large one on a CPU is a mapping of its own, whose pages are zeros that cost nothing until something is written:
    zeros written for 15 idle experts of 16 would be a tenth of the layer's time. (`numpy.zeros` does the same, but
    asks for huge pages, which took longer to get than small ones where we measured.)
    """
    num_bytes = tensor_E.numel() * tensor_E.element_size()
    if _PRIVATE is not None and tensor_E.device.type == "cpu" and num_bytes >= _LARGE:
        pages = mmap(-1, num_bytes, flags=_PRIVATE)
        return torch.frombuffer(pages, dtype=tensor_E.dtype).view(tensor_E.shape)
    gradient_E = torch.empty_like(tensor_E, memory_format=torch.contiguous_format)
    for expert in set(range(len(tensor_E))) - used:
        gradient_E[expert].zero_()
    return gradient_E


def uncompiled(function: _Function) -> _Function:
    """Keep a function out of torch.compile, which would compile its loop anew for every new length of a run."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]


@uncompiled
def linear_of_runs(
    rows: Tensor | Sequence[Tensor],
    weights_EOD: Tensor,
    bias_EO: Tensor | None,
    counts: Sequence[int],
    experts: Sequence[int],
    *,
    parts: int = 1,
    apart: bool = False,
) -> tuple[Tensor, ...]:
    """Apply `torch.nn.functional.linear` to each run of rows, with the weight and bias of the run's own expert.

    Run i is the next `counts[i]` rows, for `experts[i]`; a run may be empty, and an expert may have several. `rows` are
    one tensor, (M, D), or one for each run that has rows, as come out with `apart`. With `parts`, each weight is that
    many of equal height above each other: their products are computed apart, as separate projections would.

    Returns one tensor for each part, (M, O / parts); with `apart` one for each run that has rows (a single empty one
    where none has) and each of its parts, in this order.

    Every product is the very one that `linear` computes, under autocast too, so that rows of a single run get its
    result to the last bit. The gradient of `weights_EOD` is one tensor; experts without rows get zeros in it. There is
    no second derivative: asking for it raises RuntimeError, as do rows and weights of different types.
    """
    pieces = (rows,) if isinstance(rows, Tensor) else tuple(rows)
    num_rows = sum(len(piece) for piece in pieces)
    if sum(counts) != num_rows:
        raise ValueError(f"the runs have {sum(counts)} rows, and there are {num_rows}")
    settings = _Settings(_runs(counts, experts), parts, apart, product_dtype(pieces[0], weights_EOD))
    return _RunLinear.apply(settings, weights_EOD, bias_EO, *pieces)  # type: ignore[no-any-return, no-untyped-call]


class _Settings(NamedTuple):
    """What `_RunLinear` computes: see `linear_of_runs`; products are computed in `dtype`."""

    runs: list[_Run]
    parts: int
    apart: bool
    dtype: torch.dtype


def _by_run(pieces: Sequence[Tensor], runs: Sequence[_Run]) -> list[Tensor]:
    """Return the rows of each run, from one tensor of all rows or from one for each run."""
    if len(pieces) == len(runs):
        return list(pieces)
    (whole,) = pieces
    return [whole[run.start : run.end] for run in runs]


class _RunLinear(torch.autograd.Function):
    """The products of `linear_of_runs`."""

    @staticmethod
    def forward(
        ctx: Any, settings: _Settings, weights_EOD: Tensor, bias_EO: Tensor | None, *pieces: Tensor
    ) -> tuple[Tensor, ...]:
        runs, parts, apart, dtype = settings
        ctx.settings, ctx.rows_dtype = settings, pieces[0].dtype
        pieces = tuple(piece.to(dtype) for piece in pieces)
        ctx.save_for_backward(weights_EOD, bias_EO, *pieces)
        width = weights_EOD.shape[1] // parts
        lengths = [run.end - run.start for run in runs] if apart else [runs[-1].end]
        outputs = tuple(pieces[0].new_empty(length, width) for length in lengths for _ in range(parts))
        by_part = [_by_run(outputs[part::parts], runs) for part in range(parts)]
        for number, (run_nD, run) in enumerate(zip(_by_run(pieces, runs), runs, strict=True)):
            for part in range(parts):
                own = slice(part * width, (part + 1) * width)
                weight_DO = weights_EOD[run.expert, own].to(dtype).T
                if bias_EO is None:
                    torch.mm(run_nD, weight_DO, out=by_part[part][number])
                else:
                    torch.addmm(bias_EO[run.expert, own].to(dtype), run_nD, weight_DO, out=by_part[part][number])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights_EOD, bias_EO, *pieces = ctx.saved_tensors
        runs, parts, _, dtype = ctx.settings
        _, needs_weights, needs_bias, *needs_pieces = ctx.needs_input_grad
        needs_rows = any(needs_pieces)
        width = weights_EOD.shape[1] // parts
        grad_pieces = [piece.new_empty(piece.shape) for piece in pieces] if needs_rows else []
        grad_weights_EOD = gradient_of(weights_EOD, {run.expert for run in runs}) if needs_weights else None
        grad_bias_EO = torch.zeros_like(bias_EO) if needs_bias else None
        by_part = [_by_run(grads[part::parts], runs) for part in range(parts)]
        rows_by_run, grad_rows_by_run = _by_run(pieces, runs), _by_run(grad_pieces, runs) if needs_rows else []
        written: set[int] = set()
        for number, (_, _, expert) in enumerate(runs):
            for part in range(parts):
                own = slice(part * width, (part + 1) * width)
                grad_nO = by_part[part][number]
                if needs_rows:
                    _put(grad_nO, weights_EOD[expert, own].to(dtype), grad_rows_by_run[number], add=part > 0)
                if grad_weights_EOD is not None:
                    _put(grad_nO.T, rows_by_run[number], grad_weights_EOD[expert, own], add=expert in written)
                if grad_bias_EO is not None:
                    grad_bias_EO[expert, own] += grad_nO.sum(0)
            written.add(expert)
        given = [gradient.to(ctx.rows_dtype) for gradient in grad_pieces] or [None] * len(pieces)
        return None, grad_weights_EOD, grad_bias_EO, *given


def _put(left: Tensor, right: Tensor, out: Tensor, *, add: bool) -> None:
    """Write left @ right into `out`, or add it there; `out` may be of another type than the factors (autocast)."""
    if out.dtype != left.dtype:
        product = left @ right
        out.copy_(out + product if add else product)
    elif add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


def product_dtype(rows: Tensor, weights: Tensor) -> torch.dtype:
    """Return the type that products are computed in: autocast's where it is on, as for `torch.nn.functional.linear`."""
    device = rows.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (rows.dtype, weights.dtype):
        return torch.get_autocast_dtype(device)
    if rows.dtype != weights.dtype:
        raise RuntimeError(f"rows are {rows.dtype} and experts are {weights.dtype}; they must be of one type")
    return rows.dtype


@uncompiled
def gather_rows(rows_ND: Tensor, order_M: Tensor | None, inverse_M: Tensor | None, *, copies: int = 1) -> Tensor:
    """Return `copies` of each row, (M, D), brought into an order: row j is copy `order_M[j]`, of N * copies.

    The copies of a row are neighbours before the ordering; None for the order leaves them so. `inverse_M` is the
    inverse permutation: with it the backward pass reads where plain indexing would scatter, which is faster, and the
    same on every run.
    """
    if order_M is None or inverse_M is None:
        return rows_ND if copies == 1 else rows_ND.repeat_interleave(copies, dim=0)
    return _Gather.apply(rows_ND, order_M, inverse_M, copies)  # type: ignore[no-any-return, no-untyped-call]


class _Gather(torch.autograd.Function):
    """The ordering of `gather_rows`."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, order_M: Tensor, inverse_M: Tensor, copies: int) -> Tensor:
        ctx.copies = copies
        ctx.save_for_backward(inverse_M)
        return rows_ND.index_select(0, order_M if copies == 1 else order_M // copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor | None, ...]:
        (inverse_M,) = ctx.saved_tensors
        grad_MD = grad_MD.index_select(0, inverse_M)
        if ctx.copies > 1:
            grad_MD = grad_MD.view(-1, ctx.copies, grad_MD.shape[-1]).sum(1)
        return grad_MD, None, None, None


def weighted_mean(outputs_NKD: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the mean over K of `outputs_NKD`, by weights that need not sum to 1, (N, D).

    Computed as a chain of interpolations: equal outputs have exactly themselves as their mean, whatever the weights,
    also in bfloat16, where rounded weights do not sum to 1.
    """
    exact_NK = weights_NK.to(torch.promote_types(weights_NK.dtype, torch.float32))
    shares_NK = exact_NK / exact_NK.cumsum(-1)
    mean_ND, *others = outputs_NKD.unbind(1)
    if not others:  # times 1, which keeps the weights in the graph: under DDP every parameter must have a gradient
        return mean_ND * shares_NK.to(mean_ND.dtype)
    for k, output_ND in enumerate(others, start=1):
        mean_ND = torch.lerp(mean_ND, output_ND, shares_NK[:, k, None].to(output_ND.dtype))
    return mean_ND
