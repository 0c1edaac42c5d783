"""The verbs that change the groups of a trained mixture: `split`, `merge`, `prune`, `keep`, `reassign`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprachbund.cli.options import JsonOption
from sprachbund.errors import InputError

if TYPE_CHECKING:
    from sprachbund.modeling.regroup_plan import Plan

SHOWN = 8  # languages whose perplexity is printed; the file has all

ModelArgument = Annotated[str, typer.Argument(help="A run, a mixture's folder, or a Hub id.", show_default=False)]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder to write; default beside the model.", show_default=False)
]
EvaluateOption = Annotated[
    bool, typer.Option("--evaluate/--no-evaluate", help="Run: measure before and after on the dev text.")
]


def split(
    model: ModelArgument,
    group: Annotated[
        str, typer.Option("--group", help="The group: its number, or a language of it.", show_default=False)
    ],
    into: Annotated[
        str, typer.Option("--into", help="Its languages, the sides apart: 'a,b | c,d'.", show_default=False)
    ],
    out: OutOption = None,
    evaluate: EvaluateOption = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws what tells copied router rows apart.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Split a group: its first languages keep it, each other side gets a new group with copies of its parts.

    With its group given, every language computes what it did, to the bit, until it is trained further.

    Example: `sprachbund split runs/demo --group 0 --into "spa_Latn,por_Latn | ita_Latn"`
    """
    from sprachbund.modeling.regroup_plan import plan_split

    decide = partial(plan_split, group=group, into=[_listed(side) for side in into.split("|")])
    _do("split", model, decide, out=out, evaluate=evaluate, as_json=as_json, seed=seed)


def merge(
    model: ModelArgument,
    groups: Annotated[
        str, typer.Option("--groups", help="Two or more: numbers, or languages of them: 2,5.", show_default=False)
    ],
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="A share for each; default their numbers of languages.", show_default=False),
    ] = None,
    out: OutOption = None,
    evaluate: EvaluateOption = True,
    as_json: JsonOption = False,
) -> None:
    """Merge groups into one, whose experts, router rows and tables are their weighted average; measure what it costs.

    Example: `sprachbund merge runs/demo --groups 2,5`
    """
    from sprachbund.modeling.regroup_plan import plan_merge

    decide = partial(plan_merge, groups=_listed(groups), weights=_numbers(weights))
    _do("merge", model, decide, out=out, evaluate=evaluate, as_json=as_json)


def prune(
    model: ModelArgument,
    group: Annotated[
        str,
        typer.Option("--group", help="The group or path: its number, or a language of it.", show_default=False),
    ],
    out: OutOption = None,
    evaluate: EvaluateOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make a model smaller by one group, or one language's path: with its languages and all that is theirs alone.

    Example: `sprachbund prune runs/demo --group 3`
    """
    from sprachbund.modeling.regroup_plan import plan_prune

    _do("prune", model, partial(plan_prune, group=group), out=out, evaluate=evaluate, as_json=as_json)


def keep(
    model: ModelArgument,
    languages: Annotated[
        str, typer.Option("--languages", help="The languages that stay, comma-separated.", show_default=False)
    ],
    out: OutOption = None,
    evaluate: EvaluateOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make a model smaller: some languages stay, with the groups and paths that have any of them.

    Example: `sprachbund keep runs/demo --languages spa_Latn,deu_Latn`
    """
    from sprachbund.modeling.regroup_plan import plan_keep

    _do("keep", model, partial(plan_keep, languages=_listed(languages)), out=out, evaluate=evaluate, as_json=as_json)


def reassign(
    model: ModelArgument,
    language: Annotated[str, typer.Argument(help="The language that moves.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="The group: its number, or a language of it.", show_default=False)],
    out: OutOption = None,
    evaluate: EvaluateOption = True,
    as_json: JsonOption = False,
) -> None:
    """Move a language to another group, whose experts and tables it then uses; measure what it costs.

    Example: `sprachbund reassign runs/demo cat_Latn --to 2`
    """
    from sprachbund.modeling.regroup_plan import plan_reassign

    decide = partial(plan_reassign, language=language, to=to)
    _do("reassign", model, decide, out=out, evaluate=evaluate, as_json=as_json)


def _do(
    verb: str,
    model: str,
    decide: Callable[[Any], Plan],
    *,
    out: Path | None,
    evaluate: bool,
    as_json: bool,
    seed: int = 0,
) -> None:
    from sprachbund.run.regrouping import change_groups

    facts = change_groups(model, decide, verb=verb, out=out, evaluate=evaluate, seed=seed)
    typer.echo(json.dumps(facts) if as_json else "\n".join(report(facts, asked=evaluate)))


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in _listed(text)]
    except ValueError:
        raise InputError(f"--weights {text}: give numbers with commas between them, such as 3,1") from None


def report(facts: Mapping[str, Any], *, asked: bool) -> Iterator[str]:
    """Yield the lines that say what was written; `asked`: whether a measurement was wanted."""
    yield f"{facts['folder']}: {facts['done'][-1]}"
    yield f"{'group':<8}{'was':<12}languages"
    for number, (members, sources) in enumerate(zip(facts["groups"]["after"], facts["sources"], strict=True)):
        yield f"{number:<8}{'+'.join(sources):<12}{', '.join(members) or '(none)'}"
    for tags in facts["paths"]:
        yield f"{'path':<20}{', '.join(tags)}"
    before, after = (facts["parameters"][when]["total"] for when in ("before", "after"))
    yield f"parameters {before:,}, now {after:,} ({after / before - 1:+.1%})"
    changed = ", ".join(facts["changed"])
    others = "all other languages" if changed else "all languages"
    yield f"with the group given {others} compute what they did, to the bit{f'; not so {changed}' if changed else ''}"
    if facts["dev"] is not None:
        yield from _table(facts["dev"], facts["changed"])
    elif asked:
        yield (
            "note: what this costs was not measured, which takes the run that the model belongs to and its development "
            "text"
        )


def _table(dev: Mapping[str, Any], changed: Sequence[str]) -> Iterator[str]:
    """Yield the perplexities: the means, then, with the group given, the languages that changed, the worst first."""
    yield f"{'perplexity on the dev text':<28}{'before':>12}{'after':>12}{'change':>9}"
    for routing, scores in dev["mean"].items():
        yield _line(f"{routing}, mean", scores)
    measured = [(tag, dev["languages"][tag]["group"]) for tag in changed if tag in dev["languages"]]
    measured.sort(key=lambda item: item[1]["before"] / item[1]["after"])
    for tag, scores in measured[:SHOWN]:
        yield _line(f"group, {tag}", scores)


def _line(name: str, scores: Mapping[str, float]) -> str:
    before, after = scores["before"], scores["after"]
    return f"{name:<28}{before:>12.2f}{after:>12.2f}{after / before - 1:>+9.1%}"
