"""The run and its stages, one verb each; every stage first does what it needs and is not done yet."""

import json
from pathlib import Path

import typer

from sprachbund.cli.engine import AddressOption, CpusOption, EngineOption, GpusOption, probe_engine
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


def run(
    recipe: TargetArgument,
    out: OutOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    gpus: GpusOption = None,
    cpus: CpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Do everything: probe, group, expand, train, evaluate against the dense control, report. Resumable.

    Example: `sprachbund run examples/bible-18.yaml --set preset=native --out runs/bible-native`
    """
    chosen = probe_engine(engine, address, gpus, cpus)
    with pipeline(recipe, out, sets, seed, update) as stages:
        stages.probe_engine = chosen
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
