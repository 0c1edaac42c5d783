"""The learned router of a mixture layer: a linear map from the hidden state to one logit per expert.

Shapes: N tokens, D model width, E experts (one per group, or fewer where groups share one), K chosen experts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupRouter(nn.Module):
    """Softmax over all experts, the top K kept and renormalised to sum 1 (DMoE, as released; names as in transformers).

    With `detach` the router reads the hidden state without a gradient into it, so that its loss cannot disturb the
    language model; the paper's code lets the gradient through.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, *, detach: bool) -> None:
        super().__init__()
        self.top_k = top_k
        self.detach = detach
        self.weight = nn.Parameter(torch.zeros(num_experts, hidden_size))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return raw logits, (N, E)."""
        return F.linear(hidden_ND.detach() if self.detach else hidden_ND, self.weight)

    def forward(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return raw logits (N, E), weights of the chosen experts (N, K) and their numbers (N, K)."""
        logits_NE = self.logits(hidden_ND)
        probs_NE = logits_NE.softmax(-1, dtype=torch.float32)
        weights_NK, index_NK = probs_NE.topk(self.top_k, dim=-1)
        weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        return logits_NE, weights_NK.to(hidden_ND.dtype), index_NK
