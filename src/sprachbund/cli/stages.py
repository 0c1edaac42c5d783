"""The run and its stages, one verb each; every stage first does what it needs and is not done yet."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.options import (
    JsonOption,
    OutOption,
    SeedOption,
    SetOption,
    TargetArgument,
    UpdateOption,
    default_folder,
    opened,
    pipeline,
)
from sprachbund.errors import InputError


def run(
    recipe: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do everything: probe, group, expand, train, evaluate against the dense control, report. Resumable.

    Example: `sprachbund run examples/bible-18.yaml --set preset=native --out runs/bible-native`
    """
    with pipeline(recipe, out, sets, seed, update) as stages:
        page = stages.report()
        _finish(stages.metrics, f"report: {page}", as_json)


def demo(
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole job on the embedded corpus: 24 languages in 6 groups, from nothing; no download.

    Example: `sprachbund demo`
    """
    from sprachbund.recipe_file import build_recipe, packaged

    recipe = build_recipe(packaged("demo"), name="demo", folder=Path.cwd(), overrides=sets or [], seed=seed)
    with opened(recipe, out or default_folder(recipe, seed), update=update) as stages:
        page = stages.report()
        _finish(stages.metrics, f"report: {page}", as_json)


def _finish(metrics: dict[str, object], last_line: str, as_json: bool) -> None:
    from sprachbund.cli.summary import print_summary

    if as_json:
        typer.echo(json.dumps(metrics, indent=1, ensure_ascii=False))
    else:
        print_summary(metrics)
        typer.echo(last_line)


def probe(
    target: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Fine-tune the base a few steps on each language alone and keep how its parameters moved.

    Example: `sprachbund probe examples/bible-18.yaml`
    """
    with pipeline(target, out, sets, seed, update) as stages:
        _ = stages.probes
        typer.echo(f"probe: {stages.run.path('probe')}")


def group(
    target: Annotated[Path, typer.Argument(help="A recipe, a run, or a similarity CSV.", show_default=False)],
    groups: Annotated[int | None, typer.Option("--groups", help="Number of groups K.")] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="greedy-exhaustive (default of a CSV) or greedy-seeded.", show_default=False),
    ] = None,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Group the languages of a recipe or a run by the probe, or those of any similarity CSV.

    Example: `sprachbund group similarity.csv --groups 6 --method greedy-exhaustive`
    """
    if target.suffix.lower() == ".csv":
        from sprachbund.cli.bare import group_file

        if groups is None:
            raise InputError("--groups is missing: give the number of groups, for example --groups 6")
        typer.echo(group_file(target, num_groups=groups, method=method or "greedy-exhaustive", as_json=as_json))
        return
    if groups is not None:
        sets = [*(sets or []), f"groups.count={groups}"]
    if method is not None:
        sets = [*(sets or []), f"groups.method={method}"]
    with pipeline(target, out, sets, seed, update) as stages:
        grouping = stages.grouping
        if as_json:
            typer.echo(json.dumps({"groups": [list(g) for g in grouping.groups]}, ensure_ascii=False))
        else:
            for number, members in enumerate(grouping.groups):
                typer.echo(f"{number}: {' '.join(members)}")


def layers(
    target: Annotated[Path, typer.Argument(help="A recipe, a run, or a norms JSON.", show_default=False)],
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Threshold on normalised norms, 0 to 1.")] = None,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose the layers that become mixtures, in a recipe or a run, or from any norms JSON.

    Example: `sprachbund layers norms.json --epsilon 0.6`
    """
    if target.suffix.lower() == ".json":
        from sprachbund.cli.bare import layers_file

        if epsilon is None:
            raise InputError("--epsilon is missing: give a threshold between 0 and 1, for example --epsilon 0.6")
        typer.echo(layers_file(target, epsilon=epsilon, as_json=as_json))
        return
    if epsilon is not None:
        sets = [*(sets or []), f"layers={{epsilon: {epsilon}}}"]
    with pipeline(target, out, sets, seed, update) as stages:
        chosen = stages.layers
        typer.echo(json.dumps({"layers": chosen}) if as_json else f"layers: {' '.join(map(str, chosen))}")


def expand(
    target: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Write the mixture at step 0, which computes what the base does, to RUN/expanded.

    Example: `sprachbund expand examples/bible-18.yaml`
    """
    with pipeline(target, out, sets, seed, update) as stages:
        typer.echo(f"expanded: {stages.expanded()}")


def train(
    target: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Train the dense control and the mixture on the same tokens.

    Example: `sprachbund train examples/bible-18.yaml`
    """
    with pipeline(target, out, sets, seed, update) as stages:
        if stages.run.recipe.dense.train:
            _ = stages.dense
        _ = stages.trained
        typer.echo(f"model: {stages.run.path('model')}")


def evaluate(
    target: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score base, dense control and mixture on the test split.

    Example: `sprachbund evaluate runs/demo`
    """
    with pipeline(target, out, sets, seed, update) as stages:
        _finish(stages.metrics, f"metrics: {stages.run.path('metrics.json')}", as_json)


def report(
    target: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Write report.html.

    Example: `sprachbund report runs/demo`
    """
    with pipeline(target, out, sets, seed, update) as stages:
        typer.echo(f"report: {stages.report()}")
