"""What the comparisons must reach: every bar computed from the JSON of a comparison, one value per seed.

A change pairs the runs of two methods by seed. It is relative: -0.2 is a fifth lower. Averages over languages are
geometric, so that each language counts by its relative change. A rival is taken under its best routing, whichever that
is, ours under the one that the bar names.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from runs import bar

from sprachbund.compare.table import AFTER, ALL, changes_by_seed, level

Result = dict[str, Any]


def best_routing(result: Result, method: str, key: str = AFTER) -> str:
    """Return the routing under which a method is best, over seeds."""
    runs = result["methods"][method]["runs"]
    routings: list[str] = list(runs[0]["test"])
    return min(routings, key=lambda routing: fmean(level(run["test"][routing], key) for run in runs))


def changes(
    result: Result,
    method: str,
    rival: str,
    *,
    routing: str | None = None,
    rival_routing: str | None = None,
    key: str = AFTER,
    tags: Sequence[str] | None = None,
) -> list[float]:
    """Return the change of a method's perplexity against a rival's, per seed that both have.

    `routing` null: the method's headline; `rival_routing` null: the rival's best. `tags` null: over all languages.
    """
    other = rival_routing or best_routing(result, rival, key)
    return changes_by_seed(result, method, against=rival, kind=key, routing=routing, rival=other, languages=tags)


def worst_language(result: Result, method: str, rival: str, *, routing: str | None = None) -> list[float]:
    """Return the change of the language that fares worst, per seed."""
    each = [changes(result, method, rival, routing=routing, tags=[tag]) for tag in result["languages"]]
    return [max(of_seed) for of_seed in zip(*each, strict=True)]


def lost_gain(result: Result, smaller: str, larger: str) -> list[float]:
    """Return the share of a larger method's gain over dense, in perplexity, that a smaller one does not have."""
    # both changes are against the same dense run, so that their ratio is that of the gains in perplexity
    seeds = [{run["seed"] for run in result["methods"][name]["runs"]} for name in (smaller, larger, "dense")]
    common = {**result, "methods": {name: _only(result, name, set.intersection(*seeds)) for name in result["methods"]}}
    gains = [changes(common, name, "dense") for name in (smaller, larger)]
    return [1 - small / large for small, large in zip(*gains, strict=True)]


def _only(result: Result, method: str, seeds: set[int]) -> dict[str, Any]:
    """Return a method's result with the runs of some seeds."""
    entry = result["methods"][method]
    return {**entry, "runs": [run for run in entry["runs"] if run["seed"] in seeds]}


def times(result: Result, method: str, rival: str, what: str) -> list[float]:
    """Return how many times a rival's parameters a method has: `total` or `active`."""
    sizes = [result["methods"][name]["parameters"][what] for name in (method, rival)]
    return [sizes[0] / sizes[1]]


def _bars(result: Result, wanted: Sequence[tuple[str, Callable[[], list[float]], float]]) -> list[dict[str, Any]]:
    """Return the bars whose methods were trained; those of others are not there, rather than failed."""
    found = []
    for name, values, limit in wanted:
        try:
            measured = values()
        except KeyError:
            continue
        if measured:
            found.append(bar(name, measured, limit))
    edges = sum(bool(entry["edge"]) for entry in result["methods"].values())
    return [*found, bar("methods whose best learning rate is at the edge of its grid", [edges], 0)]


def bible_bars(result: Result) -> list[dict[str, Any]]:
    """Return the bars of the 18 languages with equal text; perplexity after burn-in, `prefix`, where not said."""

    def ours(rival: str, **how: Any) -> Callable[[], list[float]]:
        return lambda: changes(result, "default", rival, routing="prefix", **how)

    wanted = [
        ("default against dense", ours("dense"), -0.22),
        ("default against dense, all positions", ours("dense", key=ALL), -0.20),
        ("default against dense with a language tag", ours("dense-tag"), -0.18),
        ("default against dense of equal active size", ours("dense-active"), -0.16),
        ("default against plain top-2 upcycling", ours("upcycling"), -0.12),
        ("default against the preset paper", ours("paper"), -0.15),
        ("default against one dense model per group", ours("ensemble"), -0.10),
        (
            "default: worst language against dense",
            lambda: worst_language(result, "default", "dense", routing="prefix"),
            0.0,
        ),
        ("default: total parameters, times dense", lambda: times(result, "default", "dense", "total"), 4.0),
        ("default: active parameters, times dense", lambda: times(result, "default", "dense", "active"), 1.5),
        (
            "default: total parameters, times one model per group",
            lambda: times(result, "default", "ensemble", "total"),
            0.67,
        ),
        ("native, `top_k`, against dense", lambda: changes(result, "native", "dense", routing="top_k"), -0.10),
        (
            "native, `top_k`, against plain top-2 upcycling",
            lambda: changes(result, "native", "upcycling", routing="top_k"),
            0.0,
        ),
        (
            "native, `prefix`, against default, `prefix`",
            lambda: changes(result, "native", "default", routing="prefix", rival_routing="prefix"),
            0.02,
        ),
        ("half the experts' width: share of the gain lost", lambda: lost_gain(result, "half", "shared-6"), 0.20),
        ("a quarter of the width: share of the gain lost", lambda: lost_gain(result, "quarter", "shared-6"), 0.45),
        (
            "experts trained by group, `top_k`: our groups against random ones",
            lambda: changes(result, "shared-6", "shared-6-random", routing="top_k", rival_routing="top_k"),
            -0.08,
        ),
        (
            "native, `top_k`: our groups against random ones",
            lambda: changes(result, "native", "native-random", routing="top_k", rival_routing="top_k"),
            -0.08,
        ),
    ]
    return _bars(result, wanted)


def best_method(result: Result, tags: Sequence[str]) -> str:
    """Return the method with the lowest perplexity on some languages under its headline routing, over seeds."""

    def mean(method: str) -> float:
        entry = result["methods"][method]
        return fmean(level(run["test"][entry["headline"]], AFTER, tags) for run in entry["runs"])

    methods: list[str] = list(result["methods"])
    return min(methods, key=mean)


def unequal_bars(result: Result, tiers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the bars of unequal text; `tiers` names the languages of each, those with all their text first."""
    full, *others = tiers.values()
    small = [tag for tags in others for tag in tags]

    def ours(rival: str, **how: Any) -> Callable[[], list[float]]:
        return lambda: changes(result, "default", rival, routing="prefix", **how)

    best_small, best_full = best_method(result, small), best_method(result, full)

    def rival_of(method: str) -> dict[str, Any]:
        return {"rival_routing": result["methods"][method]["headline"]}

    wanted = [
        ("default against dense, languages with little text", ours("dense", tags=small), -0.20),
        ("default against dense, languages with all their text", ours("dense", tags=full), -0.24),
        (
            f"default against the best with little text ({best_small})",
            ours(best_small, tags=small, **rival_of(best_small)),
            0.02,
        ),
        (
            f"default against the best with all text ({best_full})",
            ours(best_full, tags=full, **rival_of(best_full)),
            0.02,
        ),
        (
            "default: worst language against dense",
            lambda: worst_language(result, "default", "dense", routing="prefix"),
            0.0,
        ),
    ]
    return _bars(result, wanted)
