"""A small result of a comparison, made by hand: what is computed from it can be checked in the head."""

from collections.abc import Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import Any

TAGS = ("ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl")
ROUTINGS = {"mixture": ("group", "prefix", "top_k"), "ensemble": ("group", "prefix"), "dense": ("dense",)}


def scores(levels: Mapping[str, float]) -> dict[str, Any]:
    """Return the scores of one routing: perplexities after burn-in as given, over all positions one more."""
    languages = {
        tag: {
            "perplexity": value + 1,
            "perplexity_after_burn_in": value,
            "bits_per_byte": value / 10 + 0.1,
            "bits_per_byte_after_burn_in": value / 10,
        }
        for tag, value in levels.items()
    }
    average = {}
    for key in next(iter(languages.values())):
        values = [one[key] for one in languages.values()]
        average[key] = geometric_mean(values) if key.startswith("perplexity") else fmean(values)
    return {**average, "languages": languages}


def entry(
    levels: Mapping[str, float],
    *,
    system: str = "mixture",
    headline: str = "prefix",
    seeds: Sequence[int] = (0, 1),
    total: int = 300,
    active: int = 130,
    other: float = 1.5,
) -> dict[str, Any]:
    """Return a method's result: `levels` under its headline, `other` times that under its other routings.

    Seed 1 is a tenth worse than seed 0, of every method, so that changes within a seed are the same in both.
    """
    routings = ROUTINGS[system]
    runs = []
    for seed in seeds:
        factor = 1 + 0.1 * seed
        test = {
            routing: scores({tag: v * factor * (1 if routing == headline else other) for tag, v in levels.items()})
            for routing in routings
        }
        runs.append(
            {
                "seed": seed,
                "seconds": 60.0,
                "cpu_seconds": 55.0,
                "tokens_per_second": 20000.0,
                "peak_memory_mb": 900.0,
                "test": test,
            }
        )
    dev = dict.fromkeys(routings, 30.0)
    return {
        "system": system,
        "headline": headline,
        "grid": [{"learning_rate": rate, "dev": dev} for rate in (0.012, 0.02)],
        "learning_rate": 0.02,
        "edge": False,
        "parameters": {"total": total, "active": active},
        "flops": 2.5e12,
        "flops_per_token_active": 1.2e6,
        "runs": runs,
    }


def dense(levels: Mapping[str, float], **changes: Any) -> dict[str, Any]:
    """Return the result of a dense method of 100 parameters."""
    given = {"system": "dense", "headline": "dense", "total": 100, "active": 100, **changes}
    return entry(levels, **given)


def even(value: float, tags: Sequence[str] = TAGS) -> dict[str, float]:
    """Return the same perplexity for every language."""
    return dict.fromkeys(tags, value)


def comparison(methods: Mapping[str, Any], *, tags: Sequence[str] = TAGS) -> dict[str, Any]:
    """Return the result of a comparison."""
    return {
        "schema": 1,
        "recipe": "small",
        "languages": list(tags),
        "tokens": 2560,
        "burn_in": 8,
        "base": scores(even(90.0, tags)),
        "methods": dict(methods),
    }
