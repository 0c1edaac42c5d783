"""The verb `export`: a mixture as a native architecture, or one of its groups as a dense model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.options import JsonOption
from sprachbund.errors import InputError

if TYPE_CHECKING:
    from sprachbund.export.targets import Verdict

ROUTES = "A native architecture routes every token by the learned router (top_k): it has no other routing."


def export(
    model: Annotated[str, typer.Argument(help="A run, a mixture's folder, or a Hub id.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="native (the first exact architecture), an architecture (see --list), or dense (one group).",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write.", show_default=False)] = None,
    group: Annotated[
        int | None, typer.Option("--group", help="dense: the group to fold in.", show_default=False)
    ] = None,
    language: Annotated[
        str | None, typer.Option("--language", help="dense: the group of this language.", show_default=False)
    ] = None,
    densify: Annotated[
        bool, typer.Option("--densify", help="Native: store dense layers as identical experts.")
    ] = False,
    list_targets: Annotated[
        bool, typer.Option("--list", help="Only print which architectures hold this model exactly, and why not.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a mixture as a checkpoint that needs no package: a native architecture, or one group as a dense model.

    It is loaded in plain transformers in a fresh process, and compared with the mixture, before it is kept.

    Example: `sprachbund export runs/demo --to native --out demo-native`
    """
    if list_targets:
        typer.echo(_listed(model, densify=densify, as_json=as_json))
        return
    if to is None or out is None:
        missing = "--to" if to is None else "--out"
        raise InputError(f"{missing} is missing: give --to native --out FOLDER, or --list to see what is possible")
    dense = to == "dense"
    if not dense and (group is not None or language is not None):
        raise InputError(f"--group and --language belong to --to dense; {to} holds all groups")
    if dense and densify:
        raise InputError("--densify belongs to a native architecture; --to dense has no experts")
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; give another --out, or remove it first")
    from sprachbund.export.exporter import export_dense, export_native
    from sprachbund.run.exporting import measure_routings

    folder, run = _resolve(model)
    work: Callable[[], dict[str, Any]]
    if dense:
        work = partial(export_dense, folder, out, group=group, language=language, run=run)
    else:
        measure = partial(measure_routings, folder, run) if run else None
        work = partial(export_native, folder, out, to=to, densify=densify, measure=measure, run=run)
    facts = work()
    typer.echo(json.dumps({"folder": str(out), **facts}) if as_json else _report(out, facts))


def _resolve(model: str) -> tuple[Path, Path | None]:
    from sprachbund.modeling.checkpoint import fetch
    from sprachbund.run.exporting import model_and_run

    return model_and_run(fetch(model))


def _listed(model: str, *, densify: bool, as_json: bool) -> str:
    """Return the table of architectures for one model."""
    from sprachbund.export.dense import dense_verdict
    from sprachbund.export.source import read_mixture_config
    from sprachbund.export.targets import verdicts

    config = read_mixture_config(_resolve(model)[0])
    found = [*verdicts(config, densify=densify), dense_verdict(config)]
    if as_json:
        return json.dumps([asdict(verdict) for verdict in found], indent=1)
    rows = [row for verdict in found for row in _rows(verdict, densify=densify)]
    heads = ("target", "exact", "why not, and what to know")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in (0, 1)]
    table = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in [heads, *rows]]
    return "\n".join([*table, ROUTES])


def _rows(verdict: Verdict, *, densify: bool) -> list[tuple[str, str, str]]:
    exact = "yes" if verdict.exact else "with --densify" if verdict.densify and not densify else "no"
    said = [*verdict.reasons, *verdict.caveats] or [""]
    return [(verdict.target if not line else "", exact if not line else "", text) for line, text in enumerate(said)]


def _report(out: Path, facts: Mapping[str, Any]) -> str:
    """Return what was written, how it was proven, and what the engine's routing costs."""
    from sprachbund.run.exporting import warning

    what = facts["architecture"]
    if facts["target"] == "dense":
        languages = f" ({' '.join(facts['languages'])})" if facts["languages"] else ""
        what += f", group {facts['group']}{languages}"
    lines = [
        f"{out}: {what}",
        "loaded in plain transformers in a fresh process: the same greedy generation; logits differ by at most "
        f"{facts['difference']:.1e} of the largest",
        *(f"note: {caveat}" for caveat in facts["caveats"]),
    ]
    if facts["target"] == "dense":
        return "\n".join(lines)
    if facts["dev"] is None:
        lines.append(
            "note: this engine's routing is top_k; what that costs against prefix was not measured, which takes "
            "the run that the model belongs to and its development text"
        )
        return "\n".join(lines)
    dev = ", ".join(f"{routing} {value:.2f}" for routing, value in facts["dev"].items())
    lines.append(f"perplexity on the dev text: {dev}")
    if (said := warning(facts["dev"])) is not None:
        lines.append(said)
    return "\n".join(lines)
