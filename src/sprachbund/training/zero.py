"""What DeepSpeed's ZeRO-3 needs to know of our models. Written from its documentation; not run here (no GPU)."""

from typing import Any

import torch

from sprachbund.modeling.experts import GroupExperts, GroupMoe


def mark_leaf_modules(model: Any) -> None:
    """Let ZeRO-3 gather a mixture layer as a whole, whatever inside it a rank's tokens use.

    It gathers weights module by module as they are called, on all ranks in step; ranks that call different ones wait
    for each other for ever. Our fused experts are used on every rank, but an FFN that one rank skips would be enough.
    """
    from deepspeed.utils import set_z3_leaf_modules

    kinds = [kind for kind in (GroupMoe, GroupExperts) if any(isinstance(module, kind) for module in model.modules())]
    if kinds:
        set_z3_leaf_modules(model, kinds)


@torch.no_grad()
def gather_partitions(model: Any, whole: Any) -> None:
    """Give `whole`, which rank 0 has and the others do not (None), the weights of its twin that ZeRO-3 partitioned."""
    from deepspeed.zero import GatheredParameters

    given = {} if whole is None else dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter]):
            if whole is not None:
                given[name].copy_(parameter)
