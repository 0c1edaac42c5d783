"""The verb `compress`: a trained mixture with smaller experts, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sprachbund.cli.options import JsonOption


def compress(
    model: Annotated[str, typer.Argument(help="A run, a mixture's folder, or a Hub id.", show_default=False)],
    width: Annotated[
        int | None,
        typer.Option("--width", help="Prune every expert to its N units that do most.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", help="Factor the experts' weights at rank R (SVD).", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; default MODEL-widthN or MODEL-rankR.", show_default=False),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Run: measure before and after on the dev text.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Make the experts of a trained mixture smaller, without training, and measure the loss of quality.

    Of a run, perplexity before and after is measured on its development text under every routing.

    Example: `sprachbund compress runs/demo --width 96`
    """
    from sprachbund.run.compressing import compress as work

    facts = work(model, width=width, rank=rank, out=out, evaluate=evaluate)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo("\n".join(_report(facts, asked=evaluate)))


def _report(facts: Mapping[str, Any], *, asked: bool) -> list[str]:
    """Return what was written, the sizes, and a table of the routings; `asked`: whether a measurement was wanted."""
    counts, experts = facts["parameters"], facts["experts"]
    what = f"pruned to {facts['width']} units" if facts["method"] == "prune" else f"factored at rank {facts['rank']}"
    sizes = [
        ("parameters", counts["before"]["total"], counts["after"]["total"]),
        ("active a token", counts["before"]["active"], counts["after"]["active"]),
        ("of the experts", experts["before"], experts["after"]),
    ]
    lines = [
        f"{facts['folder']}: experts {what}",
        f"{'':<14}{'before':>16}{'after':>16}{'change':>9}",
        *(f"{name:<14}{before:>16,}{after:>16,}{after / before - 1:>+9.1%}" for name, before, after in sizes),
    ]
    if facts["dev"] is not None:
        lines.append("perplexity on the dev text")
        lines += [
            f"{routing:<14}{dev['before']:>16.2f}{dev['after']:>16.2f}{dev['after'] / dev['before'] - 1:>+9.1%}"
            for routing, dev in facts["dev"].items()
        ]
    elif asked:
        lines.append(
            "note: what this costs was not measured, which takes the run that the model belongs to and its development "
            "text"
        )
    return lines
