"""Which expert serves which group, where layers have different numbers of experts.

A mixture layer has one expert for each group, or its entry in the configuration's `expert_of_group` says which expert
each group has there; several groups may share one.
Shapes: G groups, M mixture layers, E experts of a layer.
"""

from typing import Any

import torch
from torch import Tensor


def layer_table(config: Any, layer: int) -> list[int]:
    """Return the expert of each group, (G,), in one mixture layer of a Dmoe configuration."""
    table = config.expert_of_group.get(str(layer))
    return list(range(config.num_groups)) if table is None else [int(expert) for expert in table]


def expert_tables(config: Any) -> Tensor | None:
    """Return the router's answer that is each group's own in each mixture layer, (M, G); None where it is its number.

    That is its expert; in a hierarchy, whose routers choose among groups, the group itself. The rows are in the order
    of the layers, as `router_logits` are.
    """
    if config.language_width is not None:
        return None
    tables = [layer_table(config, layer) for layer in sorted(config.moe_layers)]
    own = list(range(config.num_groups))
    return None if all(table == own for table in tables) else torch.tensor(tables)


def group_credit(expert_of_group: Tensor, *, group: int) -> Tensor:
    """Return (E, G): for which groups a token of `group` counts, by the expert of a layer that it went to.

    Tokens are counted by group, since only groups are the same in every layer. A token at the expert of its own group
    counts for its own group; at an expert of others it counts for them, in equal parts where they share it. Where each
    group has its own expert this is the identity.
    """
    num_groups, num_experts = len(expert_of_group), int(expert_of_group.max()) + 1
    serves_EG = torch.zeros(num_experts, num_groups, dtype=torch.float64)
    serves_EG[expert_of_group, torch.arange(num_groups)] = 1.0
    credit_EG = serves_EG / serves_EG.sum(1, keepdim=True)
    own = int(expert_of_group[group])
    credit_EG[own] = 0.0
    credit_EG[own, group] = 1.0
    return credit_EG
