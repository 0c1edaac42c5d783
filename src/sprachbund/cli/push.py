"""The verb `push`: a model onto the Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    model: Annotated[Path, typer.Argument(help="A run, or the folder of a saved model.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="The repository: OWNER/NAME.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; default: only its owner.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, made where there is none.", show_default=False)
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.", show_default=False)] = None,
) -> None:
    """Upload a model with its card to the Hugging Face Hub, private unless --public is given.

    Example: `sprachbund push runs/demo me/demo-moe`
    """
    from sprachbund.export.hub import push as upload

    pushed = upload(model, repo_id, public=public, revision=revision, message=message)
    if public and pushed.private:
        typer.echo(f"{repo_id} was there before and stays private: change that in its settings", err=True)
    typer.echo(f"{pushed.url} ({'private' if pushed.private else 'public'}, {len(pushed.files)} files)")
