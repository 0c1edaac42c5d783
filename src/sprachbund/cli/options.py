"""Arguments that several verbs share, and what they open."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprachbund.parallel import world_size
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe
from sprachbund.run.directory import open_run, read_run

if TYPE_CHECKING:
    from sprachbund.run.pipeline import Pipeline

RecipeArgument = Annotated[Path, typer.Argument(help="A recipe (.yaml).", show_default=False)]
TargetArgument = Annotated[Path, typer.Argument(help="A recipe (.yaml), or the folder of a run.", show_default=False)]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run; default runs/NAME.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one value of the recipe: a.b=c (repeatable).", show_default=False),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed; overrides the recipe's.")]
UpdateOption = Annotated[
    bool, typer.Option("--update", help="Take a changed recipe in an existing run; recompute what depends on it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def default_folder(recipe: Recipe, seed: int | None) -> Path:
    """Return runs/NAME, or runs/NAME-seedN where the seed was given on the command line."""
    return Path("runs") / (recipe.name if seed is None else f"{recipe.name}-seed{seed}")


@contextmanager
def pipeline(
    target: Path, out: Path | None, sets: list[str] | None, seed: int | None, update: bool
) -> Iterator["Pipeline"]:
    """Open the run of a recipe or a folder; the run is released at the end, whatever happens."""
    if target.is_dir():
        read_run(target)  # says what is wrong with a folder that is no run
        recipe = load_recipe(target / "recipe.yaml", overrides=sets or [], seed=seed)
        folder = out or target
    else:
        recipe = load_recipe(target, overrides=sets or [], seed=seed)
        folder = out or default_folder(recipe, seed)
    with opened(recipe, folder, update=update) as stages:
        yield stages


@contextmanager
def opened(recipe: Recipe, folder: Path, *, update: bool) -> Iterator["Pipeline"]:
    """Open a run in a folder; a base that cannot be used is found before anything is written."""
    if recipe.base.path is not None:
        from sprachbund.modeling.base import check_base

        check_base(recipe)
    if world_size() > 1:
        from sprachbund.training.stages import check_ranks

        check_ranks(recipe, world_size())
    run = open_run(recipe, folder, update=update)
    try:
        from sprachbund.run.pipeline import Pipeline

        yield Pipeline(run)
    finally:
        run.close()
