"""Verbs before a run: init and audit."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.options import JsonOption, RecipeArgument, SetOption
from sprachbund.errors import InputError, nearest
from sprachbund.files import write_text


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    preset: Annotated[
        str | None, typer.Option("--preset", help="Print a preset (default, paper, native) and write nothing.")
    ] = None,
) -> None:
    """Write a commented recipe to start from.

    Example: `sprachbund init my-run.yaml`
    """
    from sprachbund.recipe_file import PRESETS, packaged

    if preset is not None:
        if preset not in PRESETS:
            hint = nearest(preset, PRESETS) or "."
            raise InputError(f"--preset {preset} is unknown{hint} One of: {', '.join(PRESETS)}.")
        typer.echo(packaged(preset), nl=False)
        return
    if path.exists():
        raise InputError(f"{path} exists and is left as it is; give another name")
    write_text(path, packaged("init"))
    typer.echo(f"{path} written; edit it, then: sprachbund audit {path} && sprachbund run {path}")


def audit(recipe: RecipeArgument, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what the corpora are, before anything is trained.

    Example: `sprachbund audit examples/bible-18.yaml`
    """
    from sprachbund.cli.summary import print_table
    from sprachbund.corpora.audit import as_json as to_json
    from sprachbund.corpora.audit import audit as run_audit
    from sprachbund.corpora.audit import render_audit
    from sprachbund.recipe_file import load_recipe
    from sprachbund.run.data import Corpora, load_or_train_tokenizer, pack_documents

    corpora = Corpora(load_recipe(recipe, overrides=sets or []))
    packed = pack_documents(corpora, load_or_train_tokenizer(corpora))  # kept: `run` need not tokenise them again
    tokens = {tag: stream.num_tokens - stream.num_documents for tag, stream in packed.items()}  # less the separators
    rows = run_audit(corpora.recipe, documents=corpora.documents, tokens=tokens)
    if as_json:
        typer.echo(json.dumps(to_json(rows), indent=1, ensure_ascii=False))
        return
    print_table(render_audit(rows))
