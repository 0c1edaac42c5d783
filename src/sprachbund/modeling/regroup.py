"""A mixture with other groups: what each group has is kept, copied, averaged or left out (see regroup_plan.py).

Nothing is trained. Whatever a language keeps is the same to the bit, and so are its logits where its group is given;
the gate of `prefix` and the routers of `top_k` choose among other groups than before.

Shapes: P places (numbers of `config.groups`), E rows of a fused tensor: experts, router rows or tables of keyed rows,
V vocabulary, L languages.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sprachbund.modeling.experts import GroupMoe
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.rebuild import rebuilt
from sprachbund.modeling.regroup_plan import Groups, Part, Plan, groups_of, rows_for_all
from sprachbund.modeling.rows import KeyedEmbedding, KeyedHead
from sprachbund.modeling.start import nudged
from sprachbund.modeling.tables import layer_table


@dataclass(frozen=True)
class _Row:
    """A row of a new fused tensor: the old rows that it is the weighted average of; `copy` names a copy."""

    weights: tuple[tuple[int, float], ...]
    copy: str


@dataclass(frozen=True)
class _Place:
    """A number of the new `config.groups`: what it has by itself and what it has of its group, by old places."""

    languages: tuple[str, ...]
    own: Part
    shared: Part


@torch.no_grad()
def regroup(model: Any, plan: Plan, *, seed: int = 0) -> Any:
    """Return the mixture that a plan for its configuration makes of it; the given one stays as it is.

    The parts of merged groups are averaged, experts and router rows and tables of keyed rows, in float64. Where groups
    share an expert in some layer, one that is averaged or copied becomes an expert of its own there and the others keep
    theirs. A copied router row is nudged by a hundredth of its scale, drawn by `seed`: under `top_k` it must not tie
    with its original.
    """
    groups = groups_of(model.config)
    places = _places(groups, plan.parts)
    table_of = _Tables(groups, places)
    config = _config(groups, places, plan, table_of)
    state = model.state_dict()
    moes = [(name, module) for name, module in model.named_modules() if isinstance(module, GroupMoe)]
    for layer, (name, moe) in zip(sorted(config.moe_layers), moes, strict=True):
        rows, _ = table_of.experts(layer)
        routes = rows if moe.language_experts is None else table_of.places()
        for bank, chosen in (("experts", rows), ("language_experts", table_of.places())):
            if (experts := getattr(moe, bank)) is not None:
                for key, tensor in experts.named_parameters(recurse=False):
                    state[f"{name}.{bank}.{key}"] = _blend(tensor, chosen)
        state[f"{name}.gate.weight"] = _nudged(moe.gate.weight, routes, name=f"layer {layer} router", seed=seed)
    for name, module in model.named_modules():
        if isinstance(module, KeyedEmbedding | KeyedHead):
            state[f"{name}.delta"] = _blend(module.delta, table_of.rows()[0])
    return rebuilt(model, config, _gates(model, plan, state, config.languages))


def changed_languages(config: Any, plan: Plan) -> list[str]:
    """Return the languages of the new model that do not compute what they did: those of averages and those that moved.

    So does a language with a path where what the path stands on has changed.
    """
    groups = groups_of(config)
    now = {tag: part for part in plan.parts for tag in part.languages}
    found = [tag for tag in config.languages if tag in now and not now[tag].is_group(groups.of(tag))]
    for path, languages in plan.paths.items():
        parent = path_specs(config)[path].parent
        if groups.by_group:
            changed = any(config.groups.get(tag) == parent for tag in found)
        else:
            changed = not any(part.is_group(groups.of_place[parent]) for part in plan.parts)
        found += languages if changed else ()
    return found


def _places(groups: Groups, parts: Sequence[Part]) -> list[_Place]:
    """Return the new places: the groups, or, where places are languages, these, group by group."""
    if not groups.by_group:
        return [_Place(part.languages, part, part) for part in parts]
    places = []
    for part in parts:
        shared = Part(part.languages, {groups.place(old): share for old, share in part.sources.items()}, part.copy)
        for tag in sorted(part.languages, key=groups.config.languages.index):
            places.append(_Place((tag,), Part((tag,), {groups.config.groups[tag]: 1.0}), shared))
    return places


class _Tables:
    """The rows of each kind of fused tensor, and which of them each place has, (P,)."""

    def __init__(self, groups: Groups, places: Sequence[_Place]) -> None:
        self.groups = groups
        self._places = places

    def experts(self, layer: int) -> tuple[list[_Row], list[int]]:
        return self._rows("experts", layer_table(self.groups.config, layer))

    def rows(self) -> tuple[list[_Row], list[int]]:
        """Of the tables of keyed rows; one for all stays one."""
        old = self.groups.config.row_of_group
        if rows_for_all(self.groups.config):
            return [_Row(((0, 1.0),), "")], [0] * len(self._places)
        return self._rows("rows", old) if old else ([], [])

    def places(self) -> list[_Row]:
        """Of what each place has for itself, in a hierarchy."""
        return self._rows("places", range(self.groups.config.num_groups))[0]

    def _rows(self, kind: Literal["experts", "rows", "places"], old: Sequence[int]) -> tuple[list[_Row], list[int]]:
        found = []
        for place in self._places:
            part = place.shared if kind in self.groups.by_group else place.own
            weights: dict[int, float] = {}
            for source, weight in part.sources.items():
                if weight:
                    weights[old[source]] = weights.get(old[source], 0.0) + weight
            if len(weights) == 1:  # shared by what is merged: a sum of 0.999... must not tell it apart
                weights = dict.fromkeys(weights, 1.0)
            found.append(_Row(tuple(sorted(weights.items())), part.copy))
        distinct = list(dict.fromkeys(found))
        return distinct, [distinct.index(row) for row in found]


def _blend(tensor: Tensor, rows: Sequence[_Row]) -> Tensor:
    """Return a fused tensor of new rows, (E, ...), from the old one; a row that is one old row is it to the bit."""
    return torch.stack([_blend_one(tensor, row) for row in rows])


def _blend_one(tensor: Tensor, row: _Row) -> Tensor:
    if len(row.weights) == 1:
        return tensor[row.weights[0][0]]
    return torch.stack([weight * tensor[old].double() for old, weight in row.weights]).sum(0).to(tensor.dtype)


def _nudged(weight: Tensor, rows: Sequence[_Row], *, name: str, seed: int) -> Tensor:
    """Return a router's new rows, (E, D), those of copies a little beside their originals."""
    blended = _blend(weight, rows)
    for number, row in enumerate(rows):
        if row.copy:
            blended[number] = nudged(blended[number], f"{name}, {row.copy}", seed=seed)
    return blended


def _config(groups: Groups, places: Sequence[_Place], plan: Plan, table_of: _Tables) -> Any:
    """Return the new model's configuration."""
    config = copy.deepcopy(groups.config)
    number_of = {tag: number for number, place in enumerate(places) for tag in place.languages}
    config.languages = [tag for tag in config.languages if tag in number_of]
    config.groups = {tag: number_of[tag] for tag in config.groups if tag in number_of}
    config.num_groups = len(places)
    config.num_experts_per_tok = min(config.num_experts_per_tok, len(places))
    tables = {layer: table_of.experts(layer)[1] for layer in sorted(config.moe_layers)}
    plain = config.language_width is None  # a hierarchy names its experts' numbers in any case
    own = list(range(len(places)))
    config.expert_of_group = {str(layer): table for layer, table in tables.items() if not plain or table != own}
    config.row_of_group = table_of.rows()[1] if config.row_of_group else []
    config.language_paths = [
        {**config.language_paths[path], "languages": list(languages), "parent": _moved(places, path, config)}
        for path, languages in plan.paths.items()
    ]
    return config


def _moved(places: Sequence[_Place], path: int, config: Any) -> int:
    """Return the new number of the place that a path stands on: not that of a copy."""
    parent = path_specs(config)[path].parent
    return next(n for n, place in enumerate(places) if parent in place.own.sources and not place.own.copy)


def _gates(model: Any, plan: Plan, state: Mapping[str, Tensor], languages: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors with the gates' columns, (V, L), of the languages that stay, and the paths renumbered."""
    base, specs = f"{model.base_model_prefix}.", path_specs(model.config)
    found = {name: tensor for name, tensor in state.items() if not name.startswith(f"{base}language_paths.")}
    columns = [model.config.languages.index(tag) for tag in languages]
    for name in (f"{base}language_gate.log_prob", f"{base}language_gate.pair_gain"):
        if name in state:
            found[name] = state[name][:, columns]
    for number, (path, kept) in enumerate(plan.paths.items()):
        old, new = (f"{base}language_paths.{n}." for n in (path, number))
        columns = [specs[path].languages.index(tag) for tag in kept]
        for name in (name for name in state if name.startswith(old)):
            below = name.removeprefix(old)
            found[new + below] = state[name][:, columns] if below == "language_gate.log_prob" else state[name]
    return found
