"""How likely a model finds a text, token by token.

Shapes: B sequences, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS_AT_ONCE = 1 << 24  # logits turned into probabilities at once


def token_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return -log p(target), (B, T) float32, a few positions at a time: a vocabulary's float32 copies are large."""
    length = max(FLOATS_AT_ONCE // (logits_BTV.shape[0] * logits_BTV.shape[2]), 1)
    nats = []
    for part_BtV, part_Bt in zip(torch.split(logits_BTV, length, 1), torch.split(targets_BT, length, 1), strict=True):
        losses = F.cross_entropy(part_BtV.flatten(0, 1).float(), part_Bt.flatten(), reduction="none")
        nats.append(losses.view(part_Bt.shape))
    return torch.cat(nats, dim=1)
