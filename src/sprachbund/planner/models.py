"""The models of a recipe as skeletons: the base by its configuration, the mixture by what the recipe says of it.

What only the probe will tell is assumed where that changes no size, or taken at its largest, and said in a note.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import read_groups
from sprachbund.grouping.layers import choose_by_budget
from sprachbund.grouping.layerwise import allocate, check_total
from sprachbund.modeling.base import check_base, load_tokenizer, read_config, scratch_config
from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.skeleton import skeleton
from sprachbund.recipe import Recipe
from sprachbund.run.learning import expert_arguments
from sprachbund.run.planning import LayerPlan, mixture_layer_cost


@dataclass(frozen=True)
class Models:
    """The base and the mixture without weights, and what was assumed about the mixture."""

    base: Any
    mixture: Any
    notes: tuple[str, ...]


def models_of(recipe: Recipe) -> Models:
    """Return the models of a recipe; raises InputError for a base that cannot be used, or groups that are not known."""
    dense = _base_config(recipe)
    groups = _groups(recipe)
    layers, notes = _layers(recipe, dense, groups)
    experts = recipe.experts
    arguments = expert_arguments(experts, dense, groups, layers)
    mixture = mixture_config(dense, **arguments, gate_pairs=experts.gate_pairs)
    return Models(skeleton(dense), skeleton(mixture), tuple(notes))


def _base_config(recipe: Recipe) -> Any:
    scratch = recipe.base.scratch
    if scratch is None:
        check_base(recipe)
        return read_config(recipe.base)
    size = scratch.vocab_size if scratch.tokenizer is None else len(load_tokenizer(scratch.tokenizer))
    return scratch_config(scratch, vocab_size=size, block_size=recipe.train.block_size, eos_token_id=0)


def _groups(recipe: Recipe) -> dict[str, int]:
    """Return the given groups, or as many as the recipe asks for: who is in which changes no size."""
    tags, count = recipe.tags(), recipe.groups.count
    if recipe.groups.given is not None:
        return read_groups(Path(recipe.groups.given), tags=tags).as_dict()
    if count == "auto":
        raise InputError("groups.count is auto, which the probe decides; plan with a number: --set groups.count=6")
    return {tag: number % int(count) for number, tag in enumerate(tags)}


def _layers(recipe: Recipe, dense: Any, groups: dict[str, int]) -> tuple[LayerPlan, list[str]]:
    choice, num_layers = recipe.layers, int(dense.num_hidden_layers)
    every = list(range(num_layers))
    if choice.given is not None:
        return LayerPlan(sorted(choice.given)), []
    if choice.top is not None:
        return LayerPlan(every[: choice.top]), []
    if choice.budget is not None:
        cost = mixture_layer_cost(recipe, dense, groups)
        return LayerPlan(choose_by_budget([1.0] * num_layers, budget=choice.budget, cost_L=[cost] * num_layers)), []
    if choice.layerwise is not None:
        most = len(set(groups.values()))
        check_total(choice.layerwise, num_groups=most, num_layers=num_layers)
        counts = allocate([1.0] * num_layers, total=choice.layerwise, most=most)
        tables = {layer: [group % count for group in range(most)] for layer, count in enumerate(counts) if count}
        note = f"layers.layerwise: the {choice.layerwise} experts are planned evenly over {len(tables)} layers"
        return LayerPlan(sorted(tables), tables), [note]
    if choice.epsilon is not None:
        note = f"layers.epsilon: the probe chooses; planned with all {num_layers} layers, the most it can be"
        return LayerPlan(every), [note]
    return LayerPlan(every), []
