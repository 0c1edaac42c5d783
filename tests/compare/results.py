"""A small comparison as its JSON says it, made by hand."""

from typing import Any

KINDS = ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in")
TAGS = ["ron_Latn", "rus_Cyrl"]


def scores(ron: float, rus: float) -> dict[str, Any]:
    """Scores of one routing; over all positions perplexities are a tenth higher, bits are a hundredth of them."""
    by_tag = dict(zip(TAGS, (ron, rus), strict=True))
    languages = {
        tag: dict(zip(KINDS, (1.1 * value, value, 0.011 * value, 0.01 * value), strict=True))
        for tag, value in by_tag.items()
    }
    mean = (ron * rus) ** 0.5
    bits = 0.01 * (ron + rus) / 2
    return {**dict(zip(KINDS, (1.1 * mean, mean, 1.1 * bits, bits), strict=True)), "languages": languages}


def entry(runs: dict[int, dict[str, Any]], *, total: int, headline: str, system: str = "mixture") -> dict[str, Any]:
    """The part of one method: {seed: {routing: scores}}."""
    measured = {"seconds": 10.0, "cpu_seconds": 9.0, "tokens_per_second": 1000.0, "peak_memory_mb": 512.3}
    return {
        "system": system,
        "groups": None if system == "dense" else [["ron_Latn"], ["rus_Cyrl"]],
        "headline": headline,
        "grid": [{"learning_rate": 0.01, "dev": {headline: 9.0}}, {"learning_rate": 0.02, "dev": None}],
        "learning_rate": 0.01,
        "edge": headline == "prefix",
        "parameters": {"total": total, "active": total // 2},
        "flops": 1.5e12,
        "flops_per_token_active": float(total),
        "runs": [{"seed": seed, **measured, "test": test} for seed, test in runs.items()],
    }


def comparison() -> dict[str, Any]:
    """Three methods of two languages; `ours` lacks a seed, and is worse than dense in one language."""
    return {
        "schema": 1,
        "recipe": "small",
        "languages": TAGS,
        "device": "cpu",
        "tokens": 2560,
        "burn_in": 8,
        "window": 32,
        "base": scores(100.0, 100.0),
        "methods": {
            "dense": entry(
                {0: {"dense": scores(40.0, 90.0)}, 1: {"dense": scores(50.0, 72.0)}},
                total=1000,
                headline="dense",
                system="dense",
            ),
            "ours": entry(
                {1: {"prefix": scores(20.0, 80.0), "top_k": scores(80.0, 80.0)}}, total=4000, headline="prefix"
            ),
            "wide": entry({0: {"group": scores(64.0, 64.0)}}, total=5_000_000, headline="group"),
        },
    }
