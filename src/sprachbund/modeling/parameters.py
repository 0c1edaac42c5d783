"""How many parameters a model has, how many of them one token uses, and what a mixture layer adds."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from sprachbund.modeling.model import is_dmoe, mixture_layers
from sprachbund.modeling.skeleton import dense_ffn_shape


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
        # what is theirs alone: the weights of an activation function are shared
        experts = sum(parameter.numel() for parameter in moe.experts.parameters(recurse=False))
        idle += experts - experts // moe.experts.num_experts + moe.gate.weight.numel()
    return ParameterCounts(total, total - idle)


def layer_cost(config: Any, *, num_groups: int, kind: Literal["shared", "copy"], width: int | None = None) -> int:
    """Return the parameters that one layer of a dense model adds when it becomes a mixture of `num_groups` experts.

    The experts, and the router's row for each; `copy` replaces the dense FFN, `shared` keeps it. `width` is that of a
    shared-kind expert (None: the dense FFN's), as in `expand`. `config` is the dense model's.
    """
    dense = dense_ffn_shape(config)
    expert = replace(dense, width=width) if kind == "shared" and width else dense
    # experts beside the FFN have an activation function of their own, experts in its place have taken over its own
    replaced = dense.num_parameters if kind == "copy" else -dense.activation
    return num_groups * (expert.num_parameters + dense.hidden_size) - replaced
