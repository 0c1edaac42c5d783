"""The verb `plan`: memory and time of a recipe on given hardware, before anything is bought or run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sprachbund.cli.options import JsonOption, RecipeArgument, SetOption
from sprachbund.recipe_file import load_recipe


def plan(
    recipe: RecipeArgument,
    gpus: Annotated[int, typer.Option("--gpus", help="Number of GPUs.")] = 1,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", help="Memory of one GPU, in GB.")] = 80.0,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second",
            help="Measured on one GPU in the dense base's training; replaces the next two.",
            show_default=False,
        ),
    ] = None,
    mfu: Annotated[float, typer.Option("--mfu", help="Share of the peak that is reached.")] = 0.4,
    peak_tflops: Annotated[float, typer.Option("--peak-tflops", help="Peak of one GPU, in TFLOP/s.")] = 989.0,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute what a recipe takes: memory of every GPU, the largest micro-batch, hours. Nothing is loaded or run.

    Exit status 0 also where something does not fit: the last lines, or `fits` in the JSON, say so.

    Example: `sprachbund plan examples/bible-18.yaml --gpus 8 --gpu-memory 80`
    """
    from sprachbund.planner.cluster import Cluster
    from sprachbund.planner.plan import as_dict, plan_resources, table

    hardware = Cluster(gpus, gpu_memory, peak_tflops=peak_tflops, mfu=mfu, tokens_per_second=tokens_per_second)
    found = plan_resources(load_recipe(recipe, overrides=sets or []), hardware)
    typer.echo(json.dumps(as_dict(found)) if as_json else "\n".join(table(found)))
