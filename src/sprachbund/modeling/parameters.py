"""How many parameters a model has, how many of them one token uses, and what a mixture layer adds."""

from dataclasses import dataclass
from typing import Any

from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.model import inner_model, is_dmoe, mixture_layers
from sprachbund.modeling.rows import keyed_rows
from sprachbund.modeling.skeleton import skeleton


@dataclass(frozen=True)
class ParameterCounts:
    """`total`, each tied tensor once; `active`: used by one token under `group` or `prefix` routing (one expert a
    layer, the router unused) of a language without a path of its own; a path adds all of its parameters to those. The
    gate's table, V x L counts, is a buffer and in neither.
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
        for bank in (moe.experts, moe.language_experts):
            if bank is not None:
                experts = sum(parameter.numel() for parameter in bank.parameters(recurse=False))
                idle += experts - experts // bank.num_experts
        idle += moe.gate.weight.numel()
    for table in keyed_rows(model):
        idle += table.numel() - table.numel() // len(table)
    for path in getattr(inner_model(model), "language_paths", ()):
        idle += sum(parameter.numel() for parameter in path.parameters())
    return ParameterCounts(total, total - idle)


def layer_cost(config: Any, **experts: Any) -> int:
    """Return the parameters that one layer of a dense model adds when it becomes a mixture: experts and router.

    `config` is the dense model's; `experts` are arguments of `mixture_config` (groups or num_groups, kind, width, ...).
    """
    mixture = mixture_config(config, moe_layers=[0], **experts)
    return count_parameters(skeleton(mixture)).total - count_parameters(skeleton(config)).total
