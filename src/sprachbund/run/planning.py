"""The stages that plan the mixture: how alike languages are, which share an expert, which layers have experts."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError, nearest
from sprachbund.files import read_text, write_text
from sprachbund.grouping.decide import Decision, Evidence, as_dict, compare_sources, decide
from sprachbund.grouping.families import family_similarity, random_similarity, read_families
from sprachbund.grouping.greedy import Grouping, read_groups, write_groups
from sprachbund.grouping.layers import (
    choose_by_budget,
    choose_by_epsilon,
    choose_top,
    mean_norms,
    noise_warning,
    normalised,
    outlier_warning,
)
from sprachbund.grouping.layerwise import evenness_warning, experts_per_layer
from sprachbund.grouping.similarity_csv import Similarity, read_similarity, write_similarity
from sprachbund.languages import canonical
from sprachbund.modeling.parameters import layer_cost
from sprachbund.progress import say
from sprachbund.recipe import Recipe
from sprachbund.run.data import PackedCorpora
from sprachbund.run.directory import Run
from sprachbund.run.learning import expert_arguments
from sprachbund.run.probing import DenseBase, Probes
from sprachbund.similarity import STEPWISE, by_repeat, resampled, similarity_by_layer, similarity_of

# What a replicate of a source is drawn from, in words for a report.
PARTS = {
    "deviation": "bootstrap of the probe's steps",
    "gradient": "bootstrap of the probe's steps",
    "representation": "bootstrap of the sentences",
    "lexical": "bootstrap of pieces of the text",
    "characters": "bootstrap of pieces of the text",
}
LAYERED = ("deviation", "gradient", STEPWISE, "representation")  # sources with a vector per layer


def compare_languages(run: Run, probes: Probes | None) -> dict[str, Path]:
    """Compute every similarity of the recipe; returns their files, the one to group by first.

    Writes RUN/similarity/<source>.csv, for sources with a vector per layer also <source>-by-layer.csv, and
    RUN/similarity.csv, a copy of the one that the groups are made by.
    """
    recipe = run.recipe
    folder, used = run.path("similarity"), recipe.groups.source
    names = _names(probes)
    if recipe.groups_by_similarity and used not in names:
        names.insert(0, used)

    def work() -> Mapping[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        run.path("similarity.csv").unlink(missing_ok=True)
        for name in names:
            write_similarity(folder / f"{name}.csv", _similarity(run, probes, name))
            if probes is not None and name in LAYERED:
                write_text(folder / f"{name}-by-layer.csv", _by_layer(run, probes, name))
        if recipe.groups_by_similarity:
            shutil.copyfile(folder / f"{used}.csv", run.path("similarity.csv"))
        return {"sources": names}

    given = [read_text(Path(p)) for p in (recipe.groups.similarity, recipe.groups.families) if p]
    inputs: list[Any] = [used, recipe.groups_by_similarity, given, recipe.families(), recipe.tags()]
    inputs += [recipe.probe.center, names, recipe.seed if used == "random" else None]
    outputs = [f"similarity/{name}.csv" for name in names]
    after = ["probe"] if probes is not None else []
    run.stage("similarity", inputs, outputs, work, after=after, also=["similarity.csv"])
    return {name: folder / f"{name}.csv" for name in sorted(names, key=lambda name: name != used)}


def _names(probes: Probes | None) -> list[str]:
    """Return the similarities that the probe's signals give: gradients give two."""
    found = list(probes.signals) if probes is not None else []
    return [*found, *([STEPWISE] if "gradient" in found else [])]


def _similarity(run: Run, probes: Probes | None, name: str) -> Similarity:
    recipe = run.recipe
    tags = recipe.tags()
    if name == "given":
        assert recipe.groups.similarity is not None
        return _in_order(read_similarity(recipe.groups.similarity), tags, recipe.groups.similarity)
    if name == "family":
        return family_similarity(family_levels(run) or {}, tags)
    if name == "random":
        return random_similarity(tags, seed=recipe.seed)
    assert probes is not None
    source = name.removesuffix("-stepwise")
    return similarity_of(probes.signals[source], source=name, center=recipe.probe.centers(source))


def _by_layer(run: Run, probes: Probes, name: str) -> str:
    """Return a CSV of every layer's similarities, each pair once."""
    source = name.removesuffix("-stepwise")
    found = similarity_by_layer(probes.signals[source], source=name, center=run.recipe.probe.centers(source))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["layer", "a", "b", "similarity"])
    for layer, similarity in found.items():
        for i, a in enumerate(similarity.tags):
            for j, b in enumerate(similarity.tags[:i]):
                rows.writerow([layer, a, b, f"{similarity.values_LL[i, j]:.6g}"])
    return table.getvalue()


def _in_order(similarity: Similarity, tags: list[str], path: str) -> Similarity:
    """Return a given similarity of exactly the recipe's languages, in the recipe's order and under its tags."""
    row = {_known(tag, tags): index for index, tag in enumerate(similarity.tags)}
    for tag in row:
        if tag not in tags:
            raise InputError(
                f"{path}, line 1: the recipe has no language {tag!r}{nearest(tag, tags) or '; remove it.'}"
            )
    if missing := [tag for tag in tags if tag not in row]:
        raise InputError(f"{path}, line 1: no column for {', '.join(missing)}; give every language of the recipe one.")
    order = [row[tag] for tag in tags]
    return Similarity(tuple(tags), similarity.values_LL[order][:, order])


def _known(tag: str, tags: list[str]) -> str:
    """Return the recipe's name of a language that a file may call otherwise; unknown ones stay as they are."""
    if tag not in tags:
        with suppress(InputError):
            return canonical(tag)
    return tag


def family_levels(run: Run) -> dict[str, tuple[str, ...]] | None:
    """Return every language's family, genus, ...: from groups.families, or the recipe's own; None where unknown."""
    recipe = run.recipe
    if recipe.groups.families is not None:
        return read_families(recipe.groups.families, tags=recipe.tags())
    own = recipe.families()
    return None if own is None else {tag: (family,) for tag, family in own.items()}


def group_languages(run: Run, probes: Probes | None, packed: PackedCorpora) -> Grouping:
    """Return the grouping: given, or by similarity.csv; writes groups.json, grouping.json and similarity.svg."""
    recipe, settings = run.recipe, run.recipe.groups
    picture = run.path("similarity.svg")

    def work() -> Mapping[str, Any]:
        if not recipe.groups_by_similarity:
            picture.unlink(missing_ok=True)
            one = Grouping((tuple(recipe.tags()),))
            grouping = read_groups(Path(settings.given), tags=recipe.tags()) if settings.given is not None else one
            facts: dict[str, Any] = {"method": "given"}
        else:
            from sprachbund.report import write_similarity_svg

            decision = _decide(run, probes, packed)
            grouping, facts = decision.solution.grouping, as_dict(decision)
            others = {path.stem: read_similarity(path) for path in _matrices(run)}
            facts["sources"] = compare_sources(others, decision, seed=recipe.seed)
            write_similarity_svg(picture, read_similarity(run.path("similarity.csv")), grouping)
        write_groups(run.path("groups.json"), grouping)
        write_text(run.path("grouping.json"), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return {"groups": [list(members) for members in grouping.groups]}

    given = read_text(Path(settings.given)) if settings.given else ""
    weights = [p.num_bytes for p in packed.train.values()] if settings.weights == "bytes" else None
    inputs = [settings.model_dump(), given, family_levels(run), weights, recipe.tags(), recipe.seed]
    after = ["similarity"] if recipe.groups_by_similarity else []
    run.stage("groups", inputs, ["groups.json", "grouping.json"], work, after=after)
    return read_groups(run.path("groups.json"), tags=recipe.tags())


def _matrices(run: Run) -> list[Path]:
    return sorted(p for p in run.path("similarity").glob("*.csv") if not p.stem.endswith("-by-layer"))


def _decide(run: Run, probes: Probes | None, packed: PackedCorpora) -> Decision:
    """Group by similarity.csv under the recipe's settings, with all that the probe's data tells of the certainty."""
    recipe, settings = run.recipe, run.recipe.groups
    source = settings.source.removesuffix("-stepwise")
    replicates: list[Similarity] = []
    repeats: list[Similarity] = []
    if probes is not None and source in probes.signals:
        signals, center = probes.signals[source], recipe.probe.centers(source)
        repeats = by_repeat(signals, source=settings.source, center=center)
        replicates = resampled(signals, source=settings.source, center=center, num=settings.resamples, seed=recipe.seed)
    weights = settings.weights
    levels = family_levels(run)
    evidence = Evidence(
        weights={tag: float(p.num_bytes) for tag, p in packed.train.items()} if weights == "bytes" else weights,
        replicates=replicates,
        resampled=PARTS.get(source, ""),
        repeats=repeats,
        families={tag: names[0] for tag, names in levels.items()} if levels else None,
    )
    return decide(read_similarity(run.path("similarity.csv")), settings, evidence, seed=recipe.seed)


@dataclass(frozen=True)
class LayerPlan:
    """The mixture layers, and where they have experts of their own number, which expert each group has there."""

    layers: list[int]
    experts: dict[int, list[int]] | None = None


def choose_layers(run: Run, base: DenseBase, probes: Probes | None, grouping: Grouping) -> LayerPlan:
    """Return the layers that become mixtures; writes layers.csv and layers.svg where deviations were measured."""
    choice, recipe_tags = run.recipe.layers, run.recipe.tags()
    by_language = run.recipe.experts.by == "language" and run.recipe.experts.kind != "hierarchy"
    measured = probes is not None and "deviation" in probes.signals

    def work() -> Mapping[str, Any]:
        norms = (mean_norms(probes.ffn_norms), mean_norms(probes.attention_norms)) if probes and measured else None
        plan = _chosen(run, base, probes, norms[0] if norms else None, grouping)
        if norms is not None:
            own = len(recipe_tags) if by_language else len(grouping.groups)
            _write_layers(run, plan, *norms, num_experts=own)
        else:
            for name in ("layers.csv", "layers.svg"):
                run.path(name).unlink(missing_ok=True)
        return {"layers": plan.layers, "experts": plan.experts}

    inputs: list[Any] = [choice.model_dump(), by_language]
    after = ["probe"] if measured or choice.source is not None else ["base"]
    if choice.budget is not None or choice.layerwise is not None:
        after.append("groups")
        inputs.append(run.recipe.experts.model_dump(include={"kind", "by", "width", "language_width", "rank"}))
    result = run.stage("layers", inputs, ["layers.csv"] if measured else [], work, after=after)
    experts = result.get("experts")
    return LayerPlan(
        [int(layer) for layer in result["layers"]],
        {int(layer): table for layer, table in experts.items()} if experts else None,
    )


def _chosen(
    run: Run, base: DenseBase, probes: Probes | None, norms: list[float] | None, grouping: Grouping
) -> LayerPlan:
    """Return the layers that the recipe's rule chooses; `norms` are the FFNs' deviations, where measured."""
    choice, num_layers = run.recipe.layers, base.num_layers()
    if choice.layerwise is not None:
        assert probes is not None
        return _layerwise(probes, grouping, total=choice.layerwise)
    if choice.source == "deviation":
        assert norms is not None
        return LayerPlan(_by_deviation(run, base, norms, grouping))
    if choice.given is not None:
        if max(choice.given) >= num_layers:
            raise InputError(f"layers.given names layer {max(choice.given)}; the base has layers 0 to {num_layers - 1}")
        return LayerPlan(sorted(choice.given))
    return LayerPlan(list(range(num_layers)))


def _by_deviation(run: Run, base: DenseBase, norms: list[float], grouping: Grouping) -> list[int]:
    choice = run.recipe.layers
    if choice.epsilon is not None:
        for warning in (noise_warning(norms), outlier_warning(norms, epsilon=choice.epsilon)):
            if warning:
                say(f"layers: {warning}")
        return choose_by_epsilon(norms, epsilon=choice.epsilon)
    if choice.top is not None:
        return choose_top(norms, num_layers=choice.top)
    assert choice.budget is not None
    cost = mixture_layer_cost(run.recipe, base.config(), grouping.as_dict())
    return choose_by_budget(norms, budget=choice.budget, cost_L=[cost] * len(norms))


def mixture_layer_cost(recipe: Recipe, dense: Any, groups: Mapping[str, int]) -> int:
    """Return the parameters that one layer adds when it becomes a mixture of a recipe's experts.

    Their widths are the full ones: experts.budget makes them fit once it is known in how many layers they are.
    """
    experts = recipe.experts.model_copy(update={"budget": None, "rows": None})
    arguments = expert_arguments(experts, dense, groups, LayerPlan([0]))
    return layer_cost(dense, **{name: arguments[name] for name in arguments if name != "moe_layers"})


def _layerwise(probes: Probes, grouping: Grouping, *, total: int) -> LayerPlan:
    """Spread experts over layers by how alike the languages' hidden states are behind each, not centred."""
    signals = probes.signals["representation"]
    behind = similarity_by_layer(signals, source="representation", center=False)
    by_layer = {state - 1: similarity for state, similarity in behind.items() if state > 0}  # 0: the embeddings
    tables = experts_per_layer(by_layer, grouping, total=total)
    if warning := evenness_warning(by_layer, grouping):
        say(f"layers: {warning}")
    return LayerPlan(sorted(tables), tables)


def _write_layers(run: Run, plan: LayerPlan, ffn: list[float], attention: list[float], *, num_experts: int) -> None:
    from sprachbund.report import read_layers, write_layers_svg

    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["layer", "ffn_norm", "attention_norm", "normalised", "chosen", "experts"])
    for layer, values in enumerate(zip(ffn, attention, normalised(ffn), strict=True)):
        own = plan.experts[layer] if plan.experts and layer in plan.experts else range(num_experts)
        experts = len(set(own)) if layer in plan.layers else 0
        rows.writerow([layer, *(f"{value:.6g}" for value in values), int(layer in plan.layers), experts])
    write_text(run.path("layers.csv"), table.getvalue())
    write_layers_svg(run.path("layers.svg"), read_layers(run.path("layers.csv")))
