"""What adding a language must reach: every bar computed from the JSON of benchmarks/adapt.py, a value per seed.

Changes are relative, in percent: of bits per byte for a new language, of perplexity for old ones, over all positions
where not said. The mode `prefix` finds paths by the mixture, `counts` by the count gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from runs import bar

ALL, AFTER = "bits_per_byte", "bits_per_byte_after_burn_in"
BEFORE_OF = {"counts": "prefix"}  # which of the two gates there is makes no difference where there are no paths

Result = Mapping[str, Any]
Values = list[float]


def runs_of(result: Result, system: str, tag: str) -> list[dict[str, Any]]:
    """Return what was measured on test of a system in a language, seed by seed; raises KeyError where nothing was."""
    return [run["test"] for run in result["systems"][system][tag]["runs"]]


def new_bits(test: Mapping[str, Any], mode: str | None = None, key: str = ALL) -> float:
    """Return the bits per byte of the new language; `mode` null: the group given, of a dense model its only one."""
    new = test["new"]
    return float(new[mode or ("dense" if "dense" in new else "group")][key])


def against(result: Result, system: str, rival: str, tag: str) -> Values:
    """Return the change of a new language's bits per byte against a rival's, in percent, per seed."""
    pairs = zip(runs_of(result, system, tag), runs_of(result, rival, tag), strict=True)
    return [percent(new_bits(ours), new_bits(theirs)) for ours, theirs in pairs]


def unlabelled(result: Result, system: str, tag: str, mode: str, key: str = ALL) -> Values:
    """Return what a new language loses where it has to be found, against its group given, in percent, per seed."""
    tests = runs_of(result, system, tag)
    return [percent(new_bits(test, mode, key), new_bits(test, "group", key)) for test in tests]


def percent(value: float, reference: float) -> float:
    """Return the relative change, in percent."""
    return 100 * (value / reference - 1)


def old_changes(result: Result, test: Mapping[str, Any], mode: str, *, what: str = "old") -> dict[str, float]:
    """Return the change of perplexity of every old language in a mode, in percent."""
    before = result["before"][what][BEFORE_OF.get(mode, mode)]
    return {tag: percent(test[what][mode][tag]["perplexity"], before[tag]["perplexity"]) for tag in before}


def spread(result: Result, test: Mapping[str, Any], mode: str) -> tuple[float, float]:
    """Return the changes of old languages as their geometric mean and the worst, in percent."""
    changes = old_changes(result, test, mode).values()
    return 100 * (math.exp(fmean(math.log1p(change / 100) for change in changes)) - 1), max(changes)


def changed(test: Mapping[str, Any]) -> int:
    """Return how many old languages have logits, their group given, that are not to the bit what they were."""
    return sum(not same for same in test["identical"].values())


def stages(result: Result) -> list[dict[str, Any]]:
    """Return what was measured after each further language, of all seeds."""
    (entry,) = result["systems"]["several"].values()
    return [stage for run in entry["runs"] for stage in run["test"].values()]


def adapt_bars(result: Result) -> list[dict[str, Any]]:
    """Return the bars; the last language, in a script of its own, has none, and what was not trained has none."""
    wanted: list[tuple[str, Callable[[], Values], float]] = []
    for tag in result["languages"][:-1]:
        wanted += _new_language(result, tag)
    for tag in result["languages"][:-1]:
        wanted += _old_languages(result, tag)
    later = "with further languages"
    wanted += [
        (f"{later}: old languages whose logits changed", lambda: [float(changed(test)) for test in stages(result)], 0),
        (
            f"{later}: times that the first one's logits changed",
            lambda: [float(not test["unchanged"]) for test in stages(result)],
            0,
        ),
    ]
    made = []
    for name, values, limit in wanted:
        try:
            made.append(bar(name, values(), limit))
        except KeyError:
            continue
    entries = [entry for languages in result["systems"].values() for entry in languages.values()]
    edges = sum(entry.get("edge", False) for entry in entries)
    return [*made, bar("grids whose best learning rate is at their edge", [float(edges)], 0)]


def _new_language(result: Result, tag: str) -> list[tuple[str, Callable[[], Values], float]]:
    """Return the bars of a new language's own text."""

    def against_dense(system: str, rival: str = "dense") -> Callable[[], Values]:
        return lambda: against(result, system, rival, tag)

    def told_nothing(mode: str, key: str) -> Callable[[], Values]:
        return lambda: unlabelled(result, "full", tag, mode, key)

    merges = "with more vocabulary against dense with the same"
    return [
        (f"{tag}: `full` against dense fine-tuning, %", against_dense("full"), 1),
        (f"{tag}: `lean` against dense fine-tuning, %", against_dense("lean"), 2),
        (f"{tag}: `small` against dense fine-tuning, %", against_dense("small"), 5),
        (f"{tag}: `full` {merges}, %", against_dense("full-merges", "dense-merges"), 0),
        (f"{tag}: the same with as much text, %", against_dense("full-merges-same-text", "dense-merges-same-text"), 0),
        (f"{tag}: told nothing, mixture, after 32 tokens, %", told_nothing("prefix", AFTER), 0.1),
        (f"{tag}: told nothing, counts, after 32 tokens, %", told_nothing("counts", AFTER), 0.1),
        (f"{tag}: told nothing, mixture, all positions, %", told_nothing("prefix", ALL), 3),
        (f"{tag}: told nothing, counts, all positions, %", told_nothing("counts", ALL), 9),
    ]


def _old_languages(result: Result, tag: str) -> list[tuple[str, Callable[[], Values], float]]:
    """Return the bars of the old languages after one was added."""

    def spreads(mode: str, place: int) -> Callable[[], Values]:
        return lambda: [spread(result, test, mode)[place] for test in runs_of(result, "full", tag)]

    after = f"old languages after {tag}"
    return [
        (f"{after}: logits changed, group given", lambda: [float(changed(t)) for t in runs_of(result, "full", tag)], 0),
        (f"{after}: mixture, mean, %", spreads("prefix", 0), 0.002),
        (f"{after}: mixture, worst, %", spreads("prefix", 1), 0.002),
        (f"{after}: counts, mean, %", spreads("counts", 0), 0.02),
        (f"{after}: counts, worst, %", spreads("counts", 1), 0.1),
    ]
