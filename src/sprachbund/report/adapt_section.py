"""The report of an adaptation: what was added, what the new languages gained, and what the old ones lost.

All numbers come from adapt.json; one function gives the page, the other what its sections need, for other pages too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sprachbund.export.card_facts import language_name
from sprachbund.files import write_text
from sprachbund.report.adapt_file import AdaptResult, NewLanguage, read_adapt_file
from sprachbund.report.formats import count, fixed, percent, plural
from sprachbund.report.frame import render

if TYPE_CHECKING:
    from sprachbund.evaluation.forgetting import Change

MODES = {
    "group": "told the language",
    "prefix": "told nothing",
    "counts": "told nothing, counts decide",
    "top_k": "learned routers",
}
_KINDS = {
    "full": "an expert of the FFN’s width beside every FFN, low-rank changes of the attention, rows of the embedding "
    "and of the output, an output bias, and gains of the norms",
    "lean": "what the path full has, with experts so narrow that the whole is at most 40 % of the dense model",
    "small": "what the path full has, with narrow experts and a low rank: at most 25 % of the dense model",
    "rows": "what the path full has, without experts",
    "expert": "experts alone, beside every FFN",
    "paper": "a copy of the nearest expert in every mixture layer, with its router row",
}


@dataclass(frozen=True)
class Loss:
    """What one mode shows of all old languages together: changes of perplexity, shares that went to others' paths."""

    mode: str
    mean: float | None
    worst: Change | None
    mean_taken: float | None
    most_taken: Change | None


def write_adapt_report(folder: Path) -> Path:
    """Write `report.html` into the folder of an adaptation, from its adapt.json alone, and return its path.

    Raises:
        InputError: the folder has no adapt.json, or it is malformed.
    """
    page = render_adapt_report(read_adapt_file(folder / "adapt.json"))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render_adapt_report(result: AdaptResult) -> str:
    """Return the whole page as HTML."""
    names = " and ".join(language_name(tag) for tag in result.languages)
    return render("adapt_page.html.j2", title=f"{names}, added later", **adapt_section(result))


def adapt_section(result: AdaptResult) -> dict[str, Any]:
    """Return what `adapt.html.j2` needs."""
    # not at import: evaluation brings torch, which pictures of bare files must not wait for
    from sprachbund.evaluation.forgetting import fine_percent, forgetting_table, mean_change

    scores = result.model_dump(include={"scores"})["scores"]
    old, new = forgetting_table(scores), forgetting_table(scores, new=True)
    losses = [_loss(mode, rows, mean_change(rows)) for mode, rows in old.items()]
    return {
        "result": result,
        "fine": lambda change: fine_percent(change).replace("-", "−"),
        "lost": lambda change: change is not None and not change <= result.forgetting.limit,
        "modes": MODES,
        "kind": _KINDS.get(result.path),
        "names": {tag: language_name(tag) for tag in [*result.languages, *scores]},
        "adapted": _summary(result, new),
        "losses": losses,
        "old": old,
        "new": {tag: [row for rows in new.values() for row in rows if row.language == tag] for tag in result.languages},
    }


def _loss(mode: str, rows: list[Change], mean: float | None) -> Loss:
    known = [row for row in rows if row.change is not None]
    taken = [row for row in rows if row.taken is not None]
    return Loss(
        mode=mode,
        mean=mean,
        worst=known[0] if known else None,  # rows are sorted
        mean_taken=fmean(row.taken or 0.0 for row in taken) if taken else None,
        most_taken=max(taken, key=lambda row: row.taken or 0.0) if taken else None,
    )


def _summary(result: AdaptResult, new: Mapping[str, list[Change]]) -> list[str]:
    """Say in a few sentences what was added and what came out, also where something was lost."""
    members: dict[int, list[str]] = {}
    for tag, language in result.languages.items():
        members.setdefault(language.group_id, []).append(tag)
    sentences = [_added(tags, result.languages[tags[0]], result.path) for tags in members.values()]
    if result.tokens is not None:
        sentences[-1] += f" The training took {count(result.tokens)} tokens."
    for tag in result.languages:
        found = {mode: row for mode, rows in new.items() for row in rows if row.language == tag}
        if parts := [_gained(MODES.get(mode, mode), found[mode]) for mode in ("group", "prefix") if mode in found]:
            sentences.append(f"{language_name(tag)} now has {'; '.join(parts)}.")
    return sentences


def _added(tags: list[str], language: NewLanguage, path: str) -> str:
    """Say what the languages of one path were given."""
    size = f" of {count(language.parameters)} parameters" if language.parameters is not None else ""
    if language.share_of_dense is not None:
        size += f" ({percent(language.share_of_dense)} of the dense model)"
    names, were = " and ".join(map(language_name, tags)), "was" if len(tags) == 1 else "were"
    if language.joined is not None:
        return f"{names} joined group {language.joined}, whose own part{size} was trained further."
    what = f"a group of their own, the path “{path}”," if path == "paper" else f"a path “{path}”"
    where = ", on top of" if path != "paper" else " copied from"
    stands = f"{where} {_group(language.parent.group, language.parent.languages)}" if language.parent else ""
    extension = f", with {plural(language.extension, 'token')} of its own" if language.extension else ""
    return f"{names} {were} given {what}{size}{stands}{extension}."


def _group(number: int, tags: list[str]) -> str:
    named = ", ".join(language_name(tag) for tag in tags[:6]) + (f" and {len(tags) - 6} more" if len(tags) > 6 else "")
    return f"group {number}" + (f" ({named})" if named else "")


def _gained(told: str, row: Change) -> str:
    before = row.bits_per_byte_before
    was = f", before {fixed(before)}" if before is not None else ""
    return f"{fixed(row.bits_per_byte)} bits per byte {told}{was}"
