"""The table of a comparison, from its JSON alone: on the terminal, and as Markdown. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean, stdev
from typing import Any

AFTER, ALL = "perplexity_after_burn_in", "perplexity"
BITS_AFTER, BITS_ALL = "bits_per_byte_after_burn_in", "bits_per_byte"
COLUMNS = (
    "method",
    "routing",
    "learning rate",
    "perplexity after burn-in",
    "change",
    "worst language",
    "worse",
    "perplexity",
    "change",
    "bits/byte after burn-in",
    "bits/byte",
    "parameters",
    "active",
    "training FLOPs",
    "seconds",
    "CPU seconds",
    "tokens/s",
    "memory MB",
)
LEFT = 2  # columns of text, then numbers


@dataclass(frozen=True)
class Change:
    """A method against another under the same seed: perplexities after burn-in, as relative changes.

    `mean` and `all_positions` are of the geometric means over languages, averaged over seeds. `worst` is the language
    with the largest change, each language's being that of its mean over seeds, and `worse` counts those above 0.
    """

    mean: float
    all_positions: float
    worst: tuple[str, float]
    worse: int


def change(
    result: Mapping[str, Any], method: str, *, against: str, routing: str | None = None, rival: str | None = None
) -> Change | None:
    """Return how a method compares with another, paired by seed; None where no seed is common.

    `routing` and `rival` are the routings of the two (None: their headlines). Raises KeyError for an unknown method or
    routing.
    """
    pairs = _pairs(result, method, against, routing, rival)
    if not pairs:
        return None
    by_tag = {
        tag: fmean(ours["languages"][tag][AFTER] / theirs["languages"][tag][AFTER] for ours, theirs in pairs) - 1
        for tag in pairs[0][0]["languages"]
    }
    worst = max(by_tag, key=lambda tag: by_tag[tag])
    return Change(
        fmean(ours[AFTER] / theirs[AFTER] for ours, theirs in pairs) - 1,
        fmean(ours[ALL] / theirs[ALL] for ours, theirs in pairs) - 1,
        (worst, by_tag[worst]),
        sum(value > 0 for value in by_tag.values()),
    )


def changes_by_seed(
    result: Mapping[str, Any],
    method: str,
    *,
    against: str,
    kind: str = AFTER,
    routing: str | None = None,
    rival: str | None = None,
    languages: Sequence[str] | None = None,
) -> list[float]:
    """Return the relative change of a score for each common seed: its average, or its mean over some languages only.

    Other arguments as in `change`.
    """
    pairs = _pairs(result, method, against, routing, rival)
    return [level(ours, kind, languages) / level(theirs, kind, languages) - 1 for ours, theirs in pairs]


def level(scores: Mapping[str, Any], kind: str = AFTER, languages: Sequence[str] | None = None) -> float:
    """Return a score of one run under one routing: its average, or its geometric mean over some languages only."""
    if languages is None:
        return float(scores[kind])
    return geometric_mean(scores["languages"][tag][kind] for tag in languages)


def _pairs(
    result: Mapping[str, Any], method: str, against: str, routing: str | None, rival: str | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the test scores of both methods for every common seed."""
    ours, theirs = result["methods"][method], result["methods"][against]
    rivals = {run["seed"]: run["test"][rival or theirs["headline"]] for run in theirs["runs"]}
    own = routing or ours["headline"]
    return [(run["test"][own], rivals[run["seed"]]) for run in ours["runs"] if run["seed"] in rivals]


def rows(result: Mapping[str, Any], *, against: str = "dense", every_routing: bool = False) -> list[list[str]]:
    """Return the cells of every method, best first, in the order of COLUMNS; the base has the last row.

    A method has a row for its headline routing, or for each of its routings. An asterisk marks a learning rate at the
    edge of those tried.
    """
    found = []
    for name, method in result["methods"].items():
        routings = list(method["runs"][0]["test"]) if every_routing else [method["headline"]]
        for routing in sorted(routings, key=lambda r: r != method["headline"]):
            key = fmean(run["test"][routing][AFTER] for run in method["runs"])
            found.append((key, _row(result, name, routing, against)))
    ordered = [row for _, row in sorted(found, key=lambda pair: pair[0])]
    if result.get("base"):
        base = result["base"]
        cells = [f"{base[AFTER]:.2f}", "", "", "", f"{base[ALL]:.2f}", "", f"{base[BITS_AFTER]:.3f}"]
        ordered.append(["base", "untrained", "", *cells, f"{base[BITS_ALL]:.3f}", *[""] * 7])
    return ordered


def _row(result: Mapping[str, Any], name: str, routing: str, against: str) -> list[str]:
    method = result["methods"][name]
    runs = method["runs"]
    tests = [run["test"][routing] for run in runs]
    changed: list[str] = ["", "", "", ""]
    if against in result["methods"] and name != against:
        found = change(result, name, against=against, routing=routing)
        if found is not None:
            worst = f"{found.worst[0]} {found.worst[1]:+.1%}"
            changed = [f"{found.mean:+.1%}", worst, str(found.worse), f"{found.all_positions:+.1%}"]
    return [
        name,
        routing,
        f"{method['learning_rate']:g}{'*' if method['edge'] else ''}",
        spread([test[AFTER] for test in tests], digits=2),
        *changed[:3],
        spread([test[ALL] for test in tests], digits=2),
        changed[3],
        spread([test[BITS_AFTER] for test in tests], digits=3),
        spread([test[BITS_ALL] for test in tests], digits=3),
        short(method["parameters"]["total"]),
        short(method["parameters"]["active"]),
        f"{method['flops']:.2e}",
        *(_clocked(runs, key) for key in ("seconds", "cpu_seconds", "tokens_per_second", "peak_memory_mb")),
    ]


def _clocked(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return what was measured of the machine, the mean over seeds; of memory the most.

    Runs of which something was not measured, or not kept because the machine was busy, do not count.
    """
    values = [run[key] for run in runs if run.get(key) is not None]
    if not values:
        return "-"
    return f"{max(values) if key == 'peak_memory_mb' else fmean(values):,.0f}"


def spread(values: Sequence[float], *, digits: int) -> str:
    """Return the mean, and where there are several values their standard deviation."""
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.{digits}f}"


def short(number: float) -> str:
    """Return a count with three digits: 394k, 1.58M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}" if number < 999.5 * size else f"{number / size:.0f}{letter}"
    return str(round(number))


def table(result: Mapping[str, Any], against: str = "dense", *, every_routing: bool = False) -> list[str]:
    """Return the table as lines of Markdown; changes are of perplexity, against the method `against`."""
    heads = [f"vs {against}" if column == "change" else column for column in COLUMNS]
    marks = ["---"] * LEFT + ["---:"] * (len(COLUMNS) - LEFT)
    cells = [heads, marks, *rows(result, against=against, every_routing=every_routing)]
    return [f"| {' | '.join(row)} |" for row in cells]


def legend(result: Mapping[str, Any], against: str = "dense") -> str:
    """Return what the columns of the table mean, in one paragraph."""
    seeds = max(len(method["runs"]) for method in result["methods"].values())
    return (
        f"Test text of {len(result['languages'])} languages (geometric mean of perplexities), after "
        f"{result['tokens']:,} tokens of training; mean ± standard deviation over {seeds} seed"
        f"{'s' if seeds > 1 else ''}. After burn-in: the positions with {result['burn_in']} tokens of context or more. "
        f"Changes are against {against} under the same seed, `worst language` and `worse` (languages made worse) after "
        "burn-in. Each learning rate is the best on development text; an asterisk: the best stands at the edge of "
        "those tried. CPU seconds: of the training process, all its threads, and comparable beside other work too. "
        "Active: parameters that one token uses, under `top_k` where that is the routing. FLOPs: 6 for each parameter "
        "that a token is multiplied with, and attention's."
    )


def print_comparison(result: Mapping[str, Any], against: str = "dense") -> None:
    """Print the table on the terminal."""
    from rich.table import Table

    from sprachbund.cli.summary import print_table

    printed = Table(title=f"{result['recipe']}: {len(result['languages'])} languages, test split, best first")
    for number, column in enumerate(COLUMNS):
        head = f"vs {against}" if column == "change" else column
        printed.add_column(head, justify="left" if number < LEFT else "right", no_wrap=True)
    for row in rows(result, against=against):
        printed.add_row(*row)
    print_table(printed)
