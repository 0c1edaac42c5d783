"""The losses beside the language model's own, all on raw router logits.

Shapes: B sequences, T tokens, G groups, E experts of a layer (as many as groups, or fewer where groups share one),
N = B*T tokens, K chosen experts, M mixture layers; one (B, T, E) tensor of logits per mixture layer.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def router_cross_entropy(
    router_logits: Sequence[Tensor], group_ids: Tensor, expert_of_group: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of the routers to the true groups, (B,), over layers and tokens.

    DMoE, stage 1 of the released code (weight 1.28): the routers learn which group a token's language belongs to.
    Where layers let groups share experts, `expert_of_group`, (M, G), says which expert is the right one.
    """
    losses = []
    if expert_of_group is None:
        targets_MB = group_ids.expand(len(router_logits), -1)
    else:
        targets_MB = expert_of_group.to(group_ids.device)[:, group_ids]
    for logits_BTE, targets_B in zip(router_logits, targets_MB, strict=True):
        targets_BT = targets_B.unsqueeze(1).expand(logits_BTE.shape[:2])
        losses.append(F.cross_entropy(logits_BTE.flatten(0, 1).float(), targets_BT.flatten()))
    return sum(losses[1:], losses[0]) / len(losses)


def balance_loss(router_logits: Sequence[Tensor], *, top_k: int) -> Tensor:
    """Return the load-balancing loss E * sum_e f_e P_e, mean over layers (Switch, Fedus et al. 2022, eq. 4).

    f_e is the share of the N*K assignments that go to expert e, P_e its mean probability over *all* experts: 1 when
    balanced, up to E when collapsed. Every expert has the same weight, also one that several groups share. A layer with
    fewer than `top_k` experts chooses all. The DMoE code applies softmax inside the chosen top k and averages over it,
    which is constant and has no gradient: `balance_loss: 0` reproduces what it does.
    """
    losses = []
    for logits_BTE in router_logits:
        probs_NE = logits_BTE.flatten(0, 1).float().softmax(-1)
        num_experts = probs_NE.shape[-1]
        num_chosen = min(top_k, num_experts)
        chosen_NK = probs_NE.topk(num_chosen, dim=-1).indices
        share_E = F.one_hot(chosen_NK, num_experts).float().sum(1).mean(0) / num_chosen
        losses.append(num_experts * (share_E * probs_NE.mean(0)).sum())
    return sum(losses[1:], losses[0]) / len(losses)
