"""The verb `inspect`: what a model is, without loading it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sprachbund.export.targets import Verdict
    from sprachbund.modeling.description import Description, Mixture


def inspect(
    model: Annotated[str, typer.Argument(help="A run, a folder with a config.json, or a Hub id.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show what a model is, by its configuration alone: layers, experts, groups, parameters, memory, exports.

    Example: `sprachbund inspect runs/demo`
    """
    from sprachbund.export.dense import dense_verdict
    from sprachbund.export.targets import verdicts
    from sprachbund.modeling.description import describe_config, read_config

    config = read_config(model)
    description = describe_config(config)
    exports = [dense_verdict(config), *verdicts(config)] if description.mixture else []
    if as_json:
        typer.echo(json.dumps(as_dict(description, exports), indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(f"{head:<12}{text}".rstrip() for head, text in lines(model, description, exports)))


def as_dict(description: Description, exports: list[Verdict]) -> dict[str, Any]:
    """Return everything as JSON values."""
    facts = asdict(description)
    if description.mixture is not None:
        facts["mixture"]["language_names"] = {
            tag: _name(tag)
            for members in (*description.mixture.groups, *(path.languages for path in description.mixture.paths))
            for tag in members
        }
        facts["exports"] = [asdict(verdict) for verdict in exports]
    return facts


def lines(model: str, description: Description, exports: list[Verdict]) -> Iterator[tuple[str, str]]:
    """Yield what is said of a model: a heading and its text."""
    mixture, counts = description.mixture, description.parameters
    kind = "a mixture of experts on" if mixture else "a model of type"
    yield "model", f"{model}: {description.architecture}, {kind} {description.family or description.model_type}"
    yield "layers", _layers(description)
    if mixture:
        yield "experts", _experts(mixture)
        if mixture.rows:
            yield "rows", _rows(mixture)
        yield (
            "routing",
            f"{mixture.routing} where none is asked for; top_k chooses {mixture.num_experts_per_tok} experts",
        )
    if description.ffn is not None:
        ffn = description.ffn
        biases = "with" if ffn.bias else "without"
        yield "FFN", f"{'gated' if ffn.gated else 'not gated'}, {ffn.width:,} units wide, {biases} biases"
    active = "" if counts.active == counts.total else f", {counts.active:,} of them active per token"
    yield "parameters", f"{counts.total:,}{active}"
    yield "memory", "weights " + ", ".join(f"{size(number)} in {dtype}" for dtype, number in description.bytes.items())
    if mixture:
        yield from _groups(mixture)
        yield from _paths(mixture)
        yield from _exports(description, exports)
    elif description.refusal is None:
        yield "expand", f"possible: sprachbund expand {model} --layers ... --groups ... --out DIR"
    else:
        yield "expand", f"not possible: {description.refusal}"


def size(number: int) -> str:
    """Return a number of bytes as people say it, in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}" if number < 999.5 * scale else f"{number / scale:,.0f} {unit}"
    return f"{number} bytes"


def _layers(description: Description) -> str:
    if description.mixture is None:
        return str(description.num_layers)
    from sprachbund.export.markdown import ranges

    chosen = description.mixture.layers
    if len(chosen) == description.num_layers:
        return f"{description.num_layers}, all of them mixtures"
    return f"{description.num_layers}, of which {len(chosen)} are mixtures: {ranges(chosen)}"


def _experts(mixture: Mixture) -> str:
    same = len(set(mixture.experts)) == 1
    by_layer = ", ".join(f"{layer}: {count}" for layer, count in zip(mixture.layers, mixture.experts, strict=True))
    if mixture.language_width is None:
        text = f"{mixture.experts[0]} in each mixture layer" if same else f"by layer {by_layer}"
        text += f"; kind {mixture.kind}, {mixture.width:,} units wide"
    else:
        shared = str(mixture.experts[0]) if same else f"by layer ({by_layer})"
        text = (
            f"a hierarchy in each mixture layer: {shared} experts for groups of languages of width {mixture.width:,}, "
            f"{len(mixture.groups)} for languages of width {mixture.language_width:,}"
        )
    return text if mixture.rank is None else f"{text}, in factors of rank {mixture.rank}"


def _rows(mixture: Mixture) -> str:
    tables = f"{mixture.row_tables} table{'s' if mixture.row_tables > 1 else ''} of deltas"
    whose = "for all groups" if mixture.rows == "all" else f"one for each {mixture.rows}"
    return f"{tables} on the embedding and the output rows, {whose}"


def _groups(mixture: Mixture) -> Iterator[tuple[str, str]]:
    if not any(mixture.groups):
        yield "groups", f"{len(mixture.groups)}, without languages"
        return
    for number, members in enumerate(mixture.groups):
        expert = f", with expert {mixture.expert_of_group[number]}" if mixture.expert_of_group else ""
        yield f"group {number}", _named(members) + expert


def _paths(mixture: Mixture) -> Iterator[tuple[str, str]]:
    for path in mixture.paths:
        own = f", {path.extension:,} tokens of its own" if path.extension else ""
        yield (
            f"path {path.group_id}",
            f"{_named(path.languages)}, on group {path.parent}; {path.parameters:,} parameters{own}",
        )
    if mixture.paths:
        yield "path gate", f"{mixture.path_gate} where none is asked for"


def _named(tags: list[str]) -> str:
    return ", ".join(f"{_name(tag)} ({tag})" for tag in tags)


def _name(tag: str) -> str:
    from sprachbund.export.card_facts import language_name

    return language_name(tag)


def _exports(description: Description, exports: list[Verdict]) -> Iterator[tuple[str, str]]:
    """Yield the export of one group, and the native targets that take models of this family."""
    from sprachbund.export.targets import TARGETS

    takers = {"dense", *(target.name for target in TARGETS if description.family in target.bases)}
    own = [verdict for verdict in exports if verdict.target in takers]
    for line, verdict in enumerate(own):
        if verdict.exact or verdict.densify:
            notes = "; ".join(verdict.caveats) if verdict.target == "dense" else "caveats: sprachbund export --list"
            said = f"{'yes' if verdict.exact else 'with --densify'}{f' ({notes})' if verdict.caveats else ''}"
        else:
            subject = "" if verdict.target == "dense" else "it "
            said = "no, " + "; ".join(f"{subject}{reason}" for reason in verdict.reasons)
        yield "" if line else "exports", f"{verdict.target}: {said}"
    if len(own) == 1:
        yield "", f"native: no, no architecture of transformers extends {description.family} models"
