"""Groups, layers and widths of every method, from the one probe that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.compare.methods import Method, with_recipe
from sprachbund.compare.shared import PLAIN, Shared, needs_similarity
from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping, write_groups
from sprachbund.modeling import ParameterCounts, count_parameters, mixture_config
from sprachbund.modeling.skeleton import skeleton
from sprachbund.recipe import Part, Recipe
from sprachbund.run import planning
from sprachbund.run.directory import fingerprint, open_run
from sprachbund.run.learning import expert_arguments
from sprachbund.run.pipeline import Pipeline
from sprachbund.run.planning import LayerPlan
from sprachbund.run.probing import Probes, probed_layers
from sprachbund.similarity import Signal

STEPS_OF_LAYERS = ("deviation", "gradient")  # signals that the layers of probe.layers make together


@dataclass(frozen=True)
class Plan:
    """The groups and layers of a method under one seed, and the file of the groups."""

    grouping: Grouping
    layers: LayerPlan
    file: Path


def make_plan(
    stages: Pipeline, shared: Shared, method: Method, *, seed: int, folder: Path, known: dict[str, Plan]
) -> Plan:
    """Return a method's groups and layers; they are the same for every seed, unless groups are drawn at random.

    Methods of the same groups and layers have one plan; `known` are those that are there, to which it is added.
    """
    recipe = method.recipe
    tags = recipe.tags()
    if not method.has_groups:
        return _given_plan(shared.stream, LayerPlan([]), folder)
    drawn = is_drawn(recipe)
    parts: list[Part] = [recipe.groups, recipe.layers, recipe.probe]
    parts += [recipe.experts] if recipe.layers.budget is not None else []  # which says how many layers they allow
    key = fingerprint([[part.model_dump(mode="json") for part in parts], shared.base_mark, seed if drawn else None])
    if key in known:
        return known[key]
    own = recipe.model_copy(
        update={
            "compare": None,
            "base": shared.recipe.base,
            "seed": seed if drawn else shared.recipe.seed,
            "groups": recipe.groups.model_copy(update=PLAIN),
        }
    )
    if not needs_similarity(recipe) and recipe.groups.given is None:
        one = recipe.groups.count == 1
        grouping = Grouping((tuple(tags),) if one else tuple((tag,) for tag in tags))
        file = folder / f"{key}.json"
        write_groups(file, grouping)
        own = own.model_copy(update={"groups": own.groups.model_copy(update={"given": str(file)})})
    known[key] = _planned(stages, own, folder / key)
    return known[key]


def is_drawn(recipe: Recipe) -> bool:
    """Are the groups drawn at random, anew for each seed?"""
    return recipe.groups.source == "random" and needs_similarity(recipe)


def _given_plan(grouping: Grouping, layers: LayerPlan, folder: Path) -> Plan:
    file = folder / "stream.json"
    write_groups(file, grouping)
    return Plan(grouping, layers, file)


def _planned(stages: Pipeline, recipe: Recipe, folder: Path) -> Plan:
    """Group and choose layers in a run of its own, by the shared probe."""
    run = open_run(recipe, folder, update=True)
    try:
        run.fingerprints.update({name: mark for name, mark in stages.run.fingerprints.items() if name != "groups"})
        probes = _restricted(stages, recipe)
        if recipe.groups.given is None:
            planning.compare_languages(run, probes)
        grouping = planning.group_languages(run, probes, stages.packed)
        layers = planning.choose_layers(run, stages.base, probes, grouping)
    finally:
        run.close()
    return Plan(grouping, layers, folder / "groups.json")


def _restricted(stages: Pipeline, recipe: Recipe) -> Probes | None:
    """Return what the shared probe measured as this recipe's own probe would have: its sources, over its layers."""
    sources = recipe.probe_sources()
    if stages.probes is None or not sources:
        return None
    layers = probed_layers(recipe.probe.layers, stages.base.num_layers())
    found = {}
    for tag, probe in stages.probes.languages.items():
        signals: dict[str, Signal] = {source: probe.signals[source] for source in sources}
        for source in set(signals) & set(STEPS_OF_LAYERS):
            compared = tuple(layer for layer in signals[source].compared if layer in layers)
            signals[source] = replace(signals[source], compared=compared or signals[source].compared)
        found[tag] = replace(probe, signals=signals)
    return Probes(found)


def counts_of(method: Method, plan: Plan, dense: Any) -> ParameterCounts:
    """Return the parameters of a method, from its plan and the configuration of the base alone."""
    alone = count_parameters(skeleton(dense))
    if method.system in ("mixture", "btx"):
        groups = plan.grouping.as_dict()
        arguments = expert_arguments(method.recipe.experts, dense, groups, plan.layers)
        return count_parameters(skeleton(mixture_config(dense, **arguments)))
    if method.system == "ensemble":
        return ParameterCounts(alone.total * len(plan.grouping.groups), alone.total)
    return alone


def with_width(method: Method, plan: Plan, dense: Any, aim: int) -> Method:
    """Return a method with experts as wide as brings its parameters, by its `size`, nearest to `aim`.

    Both counts grow linearly with the width. Raises InputError where not even one unit is small enough.
    """

    def size(width: int) -> int:
        counts = counts_of(_of_width(method, width), plan, dense)
        return int(getattr(counts, method.keys.size or "total"))

    smallest = size(1)
    width = 1 + round((aim - smallest) / (size(2) - smallest))
    if width < 1:
        raise InputError(
            f"compare.methods.{method.name}.size_of: with a single unit in each expert it has {smallest:,} "
            f"{method.keys.size} parameters, and {method.keys.size_of} has {aim:,}; leave it out, or take fewer groups"
        )
    return _of_width(method, width)


def _of_width(method: Method, width: int) -> Method:
    return with_recipe(method, experts=method.recipe.experts.model_copy(update={"width": width, "budget": None}))


def plan_methods(
    stages: Pipeline,
    shared: Shared,
    methods: Sequence[Method],
    *,
    others: Mapping[str, Method],
    seeds: Mapping[str, Sequence[int]],
    folder: Path,
) -> dict[str, tuple[Method, dict[int, Plan]]]:
    """Return every method, its widths found, with its plan under each seed; `others` are methods that give a size."""
    dense = stages.base.config()
    known: dict[str, Plan] = {}
    plan_of = partial(make_plan, stages, shared, folder=folder, known=known)
    found = {}
    for method in methods:
        plans = {seed: plan_of(method, seed=seed) for seed in seeds[method.name]}
        if method.keys.size_of is not None:
            first, other = seeds[method.name][0], others[method.keys.size_of]
            counts = counts_of(other, plan_of(other, seed=first), dense)
            method = with_width(method, plans[first], dense, int(getattr(counts, method.keys.size or "total")))
        found[method.name] = (method, plans)
    return found
