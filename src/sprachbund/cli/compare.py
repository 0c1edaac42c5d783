"""The verb `compare`: ways of lifting the curse side by side."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.options import JsonOption, RecipeArgument, SetOption
from sprachbund.errors import InputError
from sprachbund.parallel import refuse_several
from sprachbund.recipe_file import load_recipe


def compare(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; default runs/NAME-compare.", show_default=False),
    ] = None,
    sets: SetOption = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Only these, separated by commas.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; default one per core, on a GPU one.", show_default=False),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the trained models.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train the methods of the recipe's `compare` part from one base on the same tokens, and compare them. Resumable.

    Each has its best learning rate, chosen on the dev split; test text is scored at the end.

    Example: `sprachbund compare examples/bible-18.yaml --methods dense,upcycling,default`
    """
    refuse_several("compare")
    loaded = load_recipe(recipe, overrides=sets or [])
    folder = out or Path("runs") / f"{loaded.name}-compare"
    named = [name.strip() for name in methods.split(",") if name.strip()] if methods is not None else None
    if named == []:
        raise InputError(f"--methods {methods} names no method; give names separated by commas, such as dense,default")
    from sprachbund.compare.curse import curse, print_curse
    from sprachbund.compare.engine import compare as run_comparison
    from sprachbund.compare.table import print_comparison

    repeated = loaded.compare is not None and loaded.compare.languages is not None
    work = curse if repeated else run_comparison
    result: dict[str, Any] = work(loaded, folder, workers=workers, keep=keep, methods=named)
    if as_json:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
        return
    for one in result["counts"].values() if repeated else [result]:
        print_comparison(one)
    if repeated:
        print_curse(result)
    names = ("curse.json", "curse.svg") if repeated else ("compare.json", "compare.md", "compare.svg")
    typer.echo(", ".join(f"{folder}/{name}" for name in names))
