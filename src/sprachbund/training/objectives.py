"""The losses beside the language model's own, all on raw router logits.

Shapes: B sequences, T tokens, G groups, N = B*T tokens, K chosen experts; one (B, T, G) tensor per mixture layer.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def router_cross_entropy(router_logits: Sequence[Tensor], group_ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of the routers to the true groups, (B,), over layers and tokens.

    DMoE, stage 1 of the released code (weight 1.28): the routers learn which group a token's language belongs to.
    """
    losses = []
    for logits_BTG in router_logits:
        targets_BT = group_ids.unsqueeze(1).expand(logits_BTG.shape[:2])
        losses.append(F.cross_entropy(logits_BTG.flatten(0, 1).float(), targets_BT.flatten()))
    return sum(losses[1:], losses[0]) / len(losses)


def balance_loss(router_logits: Sequence[Tensor], *, top_k: int) -> Tensor:
    """Return the load-balancing loss G * sum_g f_g P_g, mean over layers (Switch, Fedus et al. 2022, eq. 4).

    f_g is the share of the N*K assignments that go to expert g, P_g its mean probability over *all* experts: 1 when
    balanced, up to G when collapsed. The DMoE code applies softmax inside the chosen top k and averages over it, which
    is constant and has no gradient: `balance_loss: 0` reproduces what it does.
    """
    losses = []
    for logits_BTG in router_logits:
        probs_NG = logits_BTG.flatten(0, 1).float().softmax(-1)
        num_groups = probs_NG.shape[-1]
        chosen_NK = probs_NG.topk(top_k, dim=-1).indices
        share_G = F.one_hot(chosen_NK, num_groups).float().sum(1).mean(0) / top_k
        losses.append(num_groups * (share_G * probs_NG.mean(0)).sum())
    return sum(losses[1:], losses[0]) / len(losses)
