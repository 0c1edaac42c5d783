"""How the tokens of one forward pass go to experts: decided once, then read by every mixture layer.

Shapes: B sequences, T tokens of a sequence, N = B*T tokens, K chosen experts, G groups, D model width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dispatch:
    """Rows sorted by expert: `order` (None where they already are), its inverse, and rows per expert, (G,)."""

    order: Tensor | None
    inverse: Tensor | None
    counts: list[int]


def dispatch(expert_of_row: Tensor, num_groups: int) -> Dispatch:
    """Plan how rows, (M,) expert numbers, are brought into contiguous runs, one per expert.

    Sequences whose groups come in rising order need no permutation, which is how the trainer builds its batches.
    """
    counts = torch.bincount(expert_of_row, minlength=num_groups).tolist()
    if bool((expert_of_row[1:] >= expert_of_row[:-1]).all()):
        return Dispatch(None, None, counts)
    order = expert_of_row.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return Dispatch(order, inverse, counts)


@dataclass
class RoutingContext:
    """What every mixture layer of one forward pass needs to know.

    `group_ids`, (B, T), and the plan made from them; None under top_k, where each layer's router decides. Where
    `wants_logits`, layers give their raw router logits, (B, T, G), to `collect`. Recomputation under gradient
    checkpointing computes them again, as it must, but after `close`, so that nothing is collected twice.
    """

    group_ids: Tensor | None = None
    plan: Dispatch | None = None
    wants_logits: bool = False
    router_logits: list[Tensor] = field(default_factory=list)
    closed: bool = False

    def collect(self, logits_BTG: Tensor) -> None:
        """Keep a layer's router logits, unless the forward pass is over."""
        if self.wants_logits and not self.closed:
            self.router_logits.append(logits_BTG)

    def close(self) -> None:
        """End the forward pass."""
        self.closed = True
