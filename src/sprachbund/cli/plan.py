"""The verbs that plan a mixture: probe, group, layers; the last two also take bare files."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.engine import AddressOption, CpusOption, EngineOption, GpusOption, probe_engine
from sprachbund.cli.options import (
    JsonOption,
    OutOption,
    SeedOption,
    SetOption,
    TargetArgument,
    UpdateOption,
    pipeline,
)
from sprachbund.errors import InputError


def probe(
    target: TargetArgument,
    sources: Annotated[
        str | None,
        typer.Option(
            "--sources",
            help="Similarities to compute: deviation, gradient, representation, lexical, characters; comma-separated.",
            show_default=False,
        ),
    ] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    gpus: GpusOption = None,
    cpus: CpusOption = None,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure on the base how alike the languages are and how far each layer moves for them.

    Example: `sprachbund probe examples/bible-18.yaml --sources deviation,gradient,representation,lexical`
    """
    if sources is not None:
        sets = [*(sets or []), f"probe.sources={json.dumps([s.strip() for s in sources.split(',') if s.strip()])}"]
    chosen = probe_engine(engine, address, gpus, cpus)
    with pipeline(target, out, sets, seed, update) as stages:
        stages.probe_engine = chosen
        if not stages.run.recipe.probe_sources():
            raise InputError("nothing to probe: groups and layers need nothing; give --sources, for example deviation")
        files = stages.similarities
        if as_json:
            typer.echo(json.dumps({"similarities": {name: str(path) for name, path in files.items()}}))
        else:
            for name, path in files.items():
                typer.echo(f"{name}: {path}")


def group(
    target: Annotated[Path, typer.Argument(help="A recipe, a run, or a similarity CSV.", show_default=False)],
    groups: Annotated[
        str | None, typer.Option("--groups", help="Number of groups K, or auto.", show_default=False)
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="mean (default), bottleneck, lexicographic, greedy.", show_default=False),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            "--floor", help="mean: no pair below this share of the best minimum (default 0.7).", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="The paper's greedy-exhaustive or greedy-seeded.", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Similarity to group by (recipe or run): deviation, ...", show_default=False),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse groups of unequal size.")] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="Capacity: a JSON file {language: number}, or bytes.", show_default=False),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option("--window", help="Weights: share a group may differ from the mean.", show_default=False),
    ] = None,
    must_link: Annotated[
        list[str] | None,
        typer.Option("--must-link", help="Languages that share a group: a,b (repeatable).", show_default=False),
    ] = None,
    cannot_link: Annotated[
        list[str] | None,
        typer.Option("--cannot-link", help="Languages that never do: a,b (repeatable).", show_default=False),
    ] = None,
    families: Annotated[
        Path | None, typer.Option("--families", help="CSV of families to judge the groups by.", show_default=False)
    ] = None,
    resamples: Annotated[
        int | None, typer.Option("--resamples", help="Regroupings for the stability.", show_default=False)
    ] = None,
    front: Annotated[bool, typer.Option("--front", help="Print every trade-off between minimum and mean.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Close the gap with CP-SAT (extra: exact).")] = False,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Also draw the matrix and groups to this file.", show_default=False)
    ] = None,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Group the languages of a recipe or a run by its probe, or those of any similarity CSV.

    A CSV is only read: `sprachbund group RUN/similarity.csv --groups 4` explores without touching the run.

    Example: `sprachbund group similarity.csv --groups 6 --objective lexicographic`
    """
    from sprachbund.cli import bare

    wishes: dict[str, Any] = {
        "count": _count(groups),
        "objective": objective or ("greedy" if method else None),
        "floor": floor,
        "method": method,
        "source": source,
        "strict": strict or None,
        "window": window,
        "must_link": [link.split(",") for link in must_link] if must_link else None,
        "cannot_link": [link.split(",") for link in cannot_link] if cannot_link else None,
        "weights": bare.read_weights(weights),
        "families": str(families.resolve()) if families else None,
        "resamples": resamples,
        "exact": exact or None,
    }
    wishes = {key: value for key, value in wishes.items() if value is not None}
    if target.suffix.lower() == ".csv":
        if source is not None:
            raise InputError(f"--source {source}: a CSV holds one similarity; give --source with a recipe or a run")
        typer.echo(bare.group_file(target, wishes, show_front=front, svg=svg, seed=seed or 0, as_json=as_json))
        return
    sets = [*(sets or []), *(f"groups.{key}={json.dumps(value)}" for key, value in wishes.items())]
    with pipeline(target, out, sets, seed, update) as stages:
        typer.echo(bare.group_run(stages.run, stages.grouping, show_front=front, svg=svg, as_json=as_json))


def _count(groups: str | None) -> int | str | None:
    """Return a number or the word auto."""
    if groups is None or groups == "auto":
        return groups
    try:
        return int(groups)
    except ValueError:
        raise InputError(f"--groups {groups}: give a whole number from 2, or auto") from None


def layers(
    target: Annotated[Path, typer.Argument(help="A recipe, a run, or a norms JSON.", show_default=False)],
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="Threshold on normalised deviations, 0 to 1 (paper: 0.6).", show_default=False),
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="So many layers.", show_default=False)] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", help="As many layers as so many parameters allow.", show_default=False)
    ] = None,
    cost: Annotated[
        int | None,
        typer.Option("--cost", help="Norms JSON: parameters that one mixture layer adds.", show_default=False),
    ] = None,
    layerwise: Annotated[
        int | None,
        typer.Option(
            "--layerwise",
            help="So many experts in all, more where languages differ (recipe or run).",
            show_default=False,
        ),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Also draw the norms to this file.", show_default=False)
    ] = None,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the layers that become mixtures, in a recipe or a run, or from any norms JSON.

    Example: `sprachbund layers norms.json --epsilon 0.6`
    """
    from sprachbund.cli import bare

    wishes = {"epsilon": epsilon, "top": top, "budget": budget, "layerwise": layerwise}
    given = {key: value for key, value in wishes.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"--{' and --'.join(given)} were given; a layer choice has one of them")
    if target.suffix.lower() == ".json":
        typer.echo(bare.layers_file(target, given, cost=cost, svg=svg, as_json=as_json))
        return
    if cost is not None:
        raise InputError("--cost belongs to a norms JSON; a recipe's or run's model knows its own")
    if given:
        sets = [*(sets or []), f"layers={json.dumps(given)}"]
    with pipeline(target, out, sets, seed, update) as stages:
        typer.echo(bare.layers_run(stages.run, stages.layers, svg=svg, as_json=as_json))
