"""The application: verbs are registered here, errors become one sentence and an exit status."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

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
from sprachbund.parallel import check_devices, launched, lead_or_follow
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
    """Run the command line: 0 done, 1 the work failed, 2 wrong usage or input.

    Of several processes (torchrun, accelerate launch) the first does so, and calls the others to what they do together.
    """
    sys.exit(lead_or_follow(_status, _follow) if launched() else _status())


def _status() -> int:
    """Run the command line, say in one sentence what went wrong, and return the exit status."""
    try:
        check_devices()
        app()
    except SystemExit as stop:
        if stop.code != INTERRUPTED:
            return int(stop.code or 0)
        print("sprachbund: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 1
    except SprachbundError as error:
        print(f"sprachbund: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Exception as error:
        if (refused := trouble(error, None)) is None:
            raise
        print(f"sprachbund: {refused}", file=sys.stderr)
        return 2 if isinstance(refused, InputError) else 1
    return 0


def _follow(task: Any) -> None:
    """Do a follower's part of a task."""
    from sprachbund.training.together import follow

    follow(task)
