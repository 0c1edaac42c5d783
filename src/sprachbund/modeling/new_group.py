"""A new language among the groups themselves: in a group that there is, or in a copy of one, as the DMoE paper adds it.

Unlike a path (language_path.py) this changes what the model decides: the gate has one language more, and a router one
row more. What trains is the group's own rows of the fused tensors, and nothing else.

Shapes: V vocabulary, L languages, P pairs of the gate, E experts.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.rebuild import rebuilt
from sprachbund.modeling.start import nudged
from sprachbund.modeling.tables import layer_table


def with_language(model: Any, tag: str, place: int, log_prob_V: Tensor, gain_P: Tensor | None = None) -> Any:
    """Return the mixture with a language more in one of its groups.

    `log_prob_V` is its column of the gate's table, `gain_P` that of the table of pairs where the gate has one.
    """
    config = copy.deepcopy(model.config)
    config.groups = {**config.groups, tag: place}
    config.languages = [*config.languages, tag]
    state = model.state_dict()
    columns = {"log_prob": log_prob_V} | ({"pair_gain": gain_P} if config.gate_pairs else {})
    for key, column in columns.items():
        name = f"{model.base_model_prefix}.language_gate.{key}"
        assert column is not None
        state[name] = torch.cat([state[name], column.to(state[name]).unsqueeze(1)], dim=1)
    return rebuilt(model, config, state)


def with_copy(
    model: Any, tag: str, place: int, log_prob_V: Tensor, gain_P: Tensor | None = None, *, seed: int = 0
) -> Any:
    """Return the mixture with a group more for a new language: a copy of another's experts and router rows.

    The copied row of each router is nudged, by `seed`, so that under `top_k` it does not tie with its original. Tables
    of keyed rows are shared with the other group. Source: DMoE (Li et al., Findings of ACL 2025, and its released
    code), where the new group is the copy of the one with the lowest perplexity on the new text.
    """
    config, state = copy.deepcopy(model.config), model.state_dict()
    config.num_groups += 1
    if config.row_of_group:
        config.row_of_group = [*config.row_of_group, config.row_of_group[place]]
    layers = dict(zip(sorted(config.moe_layers), mixture_layers(model), strict=True))
    names = {id(module): name for name, module in model.named_modules()}
    tables = {}
    for layer, moe in layers.items():
        table = layer_table(model.config, layer)
        tables[layer] = [*table, max(table) + 1]
        row = place if moe.language_experts is not None else table[place]
        for bank, number in ((moe.experts, table[place]), (moe.language_experts, place)):
            if bank is not None:
                for key, tensor in bank.named_parameters(recurse=False):
                    copied = tensor.detach()[number : number + 1]
                    state[f"{names[id(bank)]}.{key}"] = torch.cat([tensor.detach(), copied])
        weight = moe.gate.weight.detach()
        own_D = nudged(weight[row], f"layer {layer} router, {tag}", seed=seed)
        state[f"{names[id(moe.gate)]}.weight"] = torch.cat([weight, own_D.unsqueeze(0)])
    own = list(range(config.num_groups))
    always = config.language_width is not None
    config.expert_of_group = {str(layer): table for layer, table in tables.items() if always or table != own}
    return with_language(rebuilt(model, config, state), tag, config.num_groups - 1, log_prob_V, gain_P)


class _OneRow(nn.Module):
    """A fused tensor, (E, ...), of which one row trains: a parametrisation from that row, (1, ...), to the whole."""

    whole: Tensor

    def __init__(self, whole: Tensor, row: int) -> None:
        super().__init__()
        self.row = row
        self.register_buffer("whole", whole.detach().clone(), persistent=False)

    def forward(self, own: Tensor) -> Tensor:
        return torch.cat([self.whole[: self.row], own, self.whole[self.row + 1 :]])

    def right_inverse(self, whole: Tensor) -> Tensor:
        """Return the row that trains, of a whole tensor."""
        return whole[self.row : self.row + 1].clone()


@contextmanager
def only_rows(model: Any, place: int, *, router: bool) -> Iterator[None]:
    """Let what one group alone owns in the mixture layers train inside the block, and nothing else.

    That is its experts, where no other group shares them, and with `router` its row of each router. Everything else
    is the same to the bit afterwards, since no optimiser holds it.
    """
    model.requires_grad_(False)
    changed: list[tuple[nn.Module, str]] = []
    for layer, moe in zip(sorted(model.config.moe_layers), mixture_layers(model), strict=True):
        table = layer_table(model.config, layer)
        rows: list[tuple[nn.Module | None, int]] = [(moe.language_experts, place)]
        if table.count(table[place]) == 1:
            rows.append((moe.experts, table[place]))
        if router:
            rows.append((moe.gate, place if moe.language_experts is not None else table[place]))
        for module, row in rows:
            for name, tensor in [] if module is None else list(module.named_parameters(recurse=False)):
                tensor.requires_grad_(True)
                parametrize.register_parametrization(module, name, _OneRow(tensor, row))  # type: ignore[arg-type]
                changed.append((module, name))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module, name in changed:
            parametrize.remove_parametrizations(module, name)
        model.requires_grad_(True)
