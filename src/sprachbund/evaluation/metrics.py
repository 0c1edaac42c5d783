"""metrics.json: every number of a run, in one place (schema 1)."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from sprachbund.evaluation.perplexity import LanguageScores, TestText
from sprachbund.languages import display_name

KINDS = ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in")
ROUTINGS = ("group", "prefix", "top_k")

Scores = Mapping[str, Mapping[str, LanguageScores]]  # system -> language tag -> scores


def _language(tag: str, scores: Scores, text: TestText, group: int) -> dict[str, Any]:
    of = {system: by_tag[tag] for system, by_tag in scores.items()}
    positions = next(iter(of.values())).positions
    # the first token is the only one that is never predicted: the text's bytes belong to the others
    bytes_per_token = text.num_bytes / positions
    return {
        "name": display_name(tag),
        "group": group,
        "bytes": text.num_bytes,
        "tokens": positions,
        "perplexity": {system: s.perplexity for system, s in of.items()},
        "perplexity_after_burn_in": {system: s.perplexity_after_burn_in for system, s in of.items()},
        "bits_per_byte": {system: s.bits_per_byte(bytes_per_token) for system, s in of.items()},
        "bits_per_byte_after_burn_in": {
            system: s.bits_per_byte_after_burn_in(bytes_per_token) for system, s in of.items()
        },
        "router_accuracy": {r: of[r].right / of[r].positions for r in ("prefix", "top_k") if r in of},
        "router_share": {r: of[r].routed for r in ("prefix", "top_k") if r in of},
    }


def _average(languages: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Average over languages: perplexities by the geometric mean, so that each counts by its relative change."""
    first = next(iter(languages.values()))
    average: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        average[kind] = {}
        for system in first[kind]:
            values = [language[kind][system] for language in languages.values()]
            geometric = kind.startswith("perplexity")
            average[kind][system] = math.exp(fmean(map(math.log, values))) if geometric else fmean(values)
    average["router_accuracy"] = {
        routing: fmean(language["router_accuracy"][routing] for language in languages.values())
        for routing in first["router_accuracy"]
    }
    return average


def _changes(languages: Mapping[str, dict[str, Any]], average: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the relative change of perplexity against the dense control, per routing: below zero is better."""
    changes = {}
    for routing in ROUTINGS:
        if routing not in average["perplexity"]:
            continue
        after = "perplexity_after_burn_in"
        by_tag = {tag: language[after][routing] / language[after]["dense"] - 1 for tag, language in languages.items()}
        worst = max(by_tag, key=lambda tag: by_tag[tag])
        changes[routing] = {
            "average": average[after][routing] / average[after]["dense"] - 1,
            "average_all_positions": average["perplexity"][routing] / average["perplexity"]["dense"] - 1,
            "worst": [worst, by_tag[worst]],
        }
    return changes


def build_metrics(
    scores: Scores, texts: Mapping[str, TestText], groups: Mapping[str, int], *, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of metrics.json; `facts` is what is not a score (seed, parameters, seconds, ...)."""
    languages = {tag: _language(tag, scores, text, groups[tag]) for tag, text in texts.items()}
    average = _average(languages)
    changes = {"change_vs_dense": _changes(languages, average)} if "dense" in average["perplexity"] else {}
    members: list[list[str]] = [[] for _ in set(groups.values())]
    for tag, group in groups.items():
        members[group].append(tag)
    return {"schema": 1, **facts, "languages": languages, "average": average, **changes, "groups": members}
