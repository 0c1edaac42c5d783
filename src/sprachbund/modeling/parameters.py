"""How many parameters a model has, and how many of them one token uses."""

from dataclasses import dataclass
from typing import Any

from sprachbund.modeling.model import is_dmoe, mixture_layers


@dataclass(frozen=True)
class ParameterCounts:
    """`total`, each tied tensor once; `active`: used by one token under `group` or `prefix` routing (one expert a
    layer, the router unused). The gate's table, V x L counts, is a buffer and in neither.
    """

    total: int
    active: int


def count_parameters(model: Any) -> ParameterCounts:
    """Count the parameters of a dense model or a mixture."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if not is_dmoe(model):
        return ParameterCounts(total, total)
    idle = 0
    for moe in mixture_layers(model):
        experts = sum(parameter.numel() for parameter in moe.experts.parameters())
        idle += experts - experts // moe.experts.num_experts + moe.gate.weight.numel()
    return ParameterCounts(total, total - idle)
