"""The application: verbs are registered here, errors become one sentence and an exit status."""

import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from sprachbund import __version__
from sprachbund.cli import (
    adapt,
    compare,
    compress,
    expand,
    export,
    inspect,
    make,
    plan,
    push,
    regroup,
    resources,
    stages,
)
from sprachbund.errors import InputError, SprachbundError
from sprachbund.run.trouble import trouble

INTERRUPTED = 130  # how typer exits after Ctrl-C, without a word

app = typer.Typer(
    name="sprachbund",
    help="Group, then scale: turn a multilingual model into a mixture of experts with one expert per language group.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Group, then scale: turn a multilingual model into a mixture of experts with one expert per language group."""


VERBS: list[Callable[..., None]] = [
    *(make.init, make.audit, stages.run, stages.demo),
    *(plan.probe, plan.group, plan.layers),
    *(expand.expand, stages.train, stages.evaluate, stages.report),
    *(compare.compare, resources.plan),
    adapt.adapt,
    *(regroup.split, regroup.merge, regroup.prune, regroup.keep, regroup.reassign),
    *(inspect.inspect, compress.compress, export.export, push.push),
]
for verb in VERBS:
    app.command()(verb)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 the work failed, 2 wrong usage or input."""
    try:
        app()
    except SystemExit as stop:
        if stop.code != INTERRUPTED:
            raise
        print("sprachbund: interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(1)
    except SprachbundError as error:
        print(f"sprachbund: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except Exception as error:
        if (refused := trouble(error, None)) is None:
            raise
        print(f"sprachbund: {refused}", file=sys.stderr)
        sys.exit(2 if isinstance(refused, InputError) else 1)
    sys.exit(0)
