"""How the tokens of one forward pass go to experts: decided once, then read by every mixture layer.

Shapes: B sequences, T tokens of a sequence, N = B*T tokens, K chosen experts, G groups, E experts, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dispatch:
    """Rows sorted by number: `order` (None where they already are), its inverse, and rows per number, (G,) or (E,)."""

    order: Tensor | None
    inverse: Tensor | None
    counts: list[int]


def dispatch(number_of_row: Tensor, how_many: int) -> Dispatch:
    """Plan how rows, (M,) numbers of groups or of experts, are brought into contiguous runs, one per number.

    Sequences whose groups come in rising order need no permutation, which is how the trainer builds its batches.
    """
    counts = torch.bincount(number_of_row, minlength=how_many).tolist()
    if bool((number_of_row[1:] >= number_of_row[:-1]).all()):
        return Dispatch(None, None, counts)
    order = number_of_row.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return Dispatch(order, inverse, counts)


def merge_runs(counts: Sequence[int], expert_of_group: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the lengths of runs and their experts, where `counts`, (G,), are runs of groups that may share experts.

    Neighbours of one expert become one run. Runs stay in the order of the groups, so that the plan of one forward pass
    serves every layer, whichever of its groups share an expert: no layer sorts or moves the rows anew.
    """
    runs = groupby(zip(counts, expert_of_group, strict=True), key=lambda run: run[1])
    merged = [(sum(count for count, _ in run), expert) for expert, run in runs]
    return [count for count, _ in merged], [expert for _, expert in merged]


@dataclass(frozen=True)
class PathRows:
    """The positions of one language's path (language_path.py), the `number`-th: their places among the N = B*T, (n,);
    None where it has all.
    """

    path: Any
    number: int
    index: Tensor | None


@dataclass
class RoutingContext:
    """What was asked of one forward pass, and, once `decided`, what every mixture layer of it needs to know.

    Asked for: `routing`, the `given` group ids and the `token_mask`, (B, T). Decided: `group_ids`, (B, T), and the plan
    made from them; None under top_k, where each layer's router decides. For keyed rows, under every routing,
    `row_plan` sorts positions by group, those without a table last, and `table_ids`, (B, T), are the tables that they
    read, -1 for none. Where `wants_logits`,
    layers give their raw router logits, (B, T, E), to `collect`. Recomputation under gradient checkpointing computes
    them again, as it must, but after `close`, so that nothing is collected twice.

    Where the model has languages with paths of their own, `path_gate` says how text that nothing is known about is
    given to them (path_gate.py), `path_ids`, (B, T), are their numbers, -1 elsewhere, `path_rows` the positions of each
    that has any, and `tokens`, (B, T), what the embedding is to read. Under top_k, `pinned` are their positions, (n,),
    and their parents' groups, (n,): no router decides there.
    """

    routing: str | None = None
    given: Tensor | None = None
    token_mask: Tensor | None = None
    wants_logits: bool = False
    decided: bool = False
    group_ids: Tensor | None = None
    plan: Dispatch | None = None
    row_plan: Dispatch | None = None
    table_ids: Tensor | None = None
    router_logits: list[Tensor] = field(default_factory=list)
    closed: bool = False
    path_gate: str | None = None
    path_ids: Tensor | None = None
    path_rows: Sequence[PathRows] = ()
    tokens: Tensor | None = None
    pinned: tuple[Tensor, Tensor] | None = None

    def collect(self, logits_BTE: Tensor) -> None:
        """Keep a layer's router logits, unless the forward pass is over."""
        if self.wants_logits and not self.closed:
            self.router_logits.append(logits_BTE)

    def close(self) -> None:
        """End the forward pass."""
        self.closed = True


# A context variable, not an attribute of the modules: threads that share one model must not see each other's routing.
_CURRENT: ContextVar[RoutingContext | None] = ContextVar("sprachbund_routing", default=None)


def current_routing() -> RoutingContext | None:
    """Return the routing of the forward pass that is under way in this thread; None outside of one."""
    return _CURRENT.get()


@contextmanager
def routed(context: RoutingContext | None) -> Iterator[None]:
    """Make `context` the current routing inside the block."""
    token = _CURRENT.set(context)
    try:
        yield
    finally:
        _CURRENT.reset(token)
