"""What a model lost when it took in a language: the scores of its languages before and after, worst first.

The scores are those of an adaptation's adapt.json:

    {tag: {"new": bool, "before": {mode: score}, "after": {mode: score}, "routed": {mode: share}}}

where a mode is a way of evaluation ("group", or a routing with its gate), a score holds the `KINDS` of metrics.json,
and a share is that of the positions that went to paths of other languages afterwards. A change is that of perplexity
over all positions, relative: 0.001 is 0.1% more. Bits per byte change by the same information: since the text is one
and the same, log2 of the ratio of perplexities, divided by the bytes of a token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

MAX_FORGETTING = 0.001
"""A protected language may lose 0.1% of its perplexity: far below what two seeds of one training differ by."""

Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """One language under one mode, before and after; None is what was not measured.

    `change` and `change_after_burn_in` are relative changes of perplexity, `taken` the share of the language's
    positions that went to paths of other languages afterwards.
    """

    language: str
    mode: str
    perplexity_before: float | None
    perplexity: float
    bits_per_byte_before: float | None
    bits_per_byte: float
    change: float | None
    change_after_burn_in: float | None
    taken: float | None


def forgetting_table(scores: Scores, *, new: bool = False) -> dict[str, list[Change]]:
    """Return for each mode the changes of the old languages (of the new ones with `new`), the worst first.

    Modes come in the order of the scores; what was not measured before stands at the end.
    """
    table: dict[str, list[Change]] = {}
    for tag, of in scores.items():
        if bool(of["new"]) == new:
            for mode in of["after"]:
                table.setdefault(mode, []).append(_change(tag, mode, of))
    return {mode: sorted(rows, key=_badness, reverse=True) for mode, rows in table.items()}


def _change(tag: str, mode: str, of: Mapping[str, Any]) -> Change:
    before, after = of["before"].get(mode) or {}, of["after"][mode]
    return Change(
        language=tag,
        mode=mode,
        perplexity_before=before.get("perplexity"),
        perplexity=after["perplexity"],
        bits_per_byte_before=before.get("bits_per_byte"),
        bits_per_byte=after["bits_per_byte"],
        change=_relative(before.get("perplexity"), after["perplexity"]),
        change_after_burn_in=_relative(before.get("perplexity_after_burn_in"), after.get("perplexity_after_burn_in")),
        taken=(of.get("routed") or {}).get(mode),
    )


def _relative(before: float | None, after: float | None) -> float | None:
    """Return the relative change, 0 where nothing has changed."""
    if before is None or after is None:
        return None
    return 0.0 if after == before else after / before - 1


def _badness(row: Change) -> float:
    if row.change is None:
        return -math.inf
    return math.inf if math.isnan(row.change) else row.change


def mean_change(rows: Sequence[Change]) -> float | None:
    """Return the relative change of the geometric mean of perplexity over languages, None where nothing is known."""
    known = [row.change for row in rows if row.change is not None]
    return math.expm1(fmean(math.log1p(change) for change in known)) if known else None


def forgetting(scores: Scores, *, limit: float = MAX_FORGETTING) -> dict[str, Any]:
    """Return what adapt.json says of forgetting: `limit`, `worst` and whether it `holds`.

    `worst` is {"language", "mode", "change"} of the old language that lost most under any mode, None where there is no
    old language with scores before and after. A limit that is met exactly holds; a change that is no number never does.
    """
    rows = [row for of_mode in forgetting_table(scores).values() for row in of_mode if row.change is not None]
    worst = max(rows, key=_badness, default=None)
    if worst is None:
        return {"limit": limit, "worst": None, "holds": True}
    assert worst.change is not None
    named = {"language": worst.language, "mode": worst.mode, "change": worst.change}
    return {"limit": limit, "worst": named, "holds": worst.change <= limit}


def forgetting_warning(found: Mapping[str, Any]) -> str | None:
    """Return one plain sentence where an old language lost more than the limit of `forgetting`; None where none did."""
    if found["holds"]:
        return None
    worst = found["worst"]
    return (
        f"warning: the model has forgotten: the perplexity of {worst['language']} under {worst['mode']} changed by "
        f"{fine_percent(worst['change'])}, and --max-forgetting allows {fine_percent(found['limit']).lstrip('+')}; "
        "report.html has every language"
    )


def fine_percent(change: float | None) -> str:
    """Write a relative change as per cent, small ones to a millionth: "+12.3%", "+0.0008%"; "0" only where it is none.

    "n/a" is what was not measured or is no number.
    """
    if change is None or not math.isfinite(change):
        return "n/a"
    if change == 0:
        return "0"
    percent = 100 * change
    digits = 1 if abs(percent) >= 10 else 2 if abs(percent) >= 0.1 else 4
    text = f"{percent:+.{digits}f}"
    return f"{text if float(text) else text[1:]}%"  # what rounds to zero has no sign
