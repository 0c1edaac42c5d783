"""What the comparisons did not reach: how far, what was tried, and why, in words with the figures of the JSON."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from quality_bars import changes

Result = dict[str, Any]
TRIED = {  # of the survey: what was tried to bring native's routings closer, or its groups to bear on `top_k`
    "native": "as it is: a tenth by group, then `top_k` with a weak router loss",
    "native-kept": "the router's loss kept whole under `top_k`",
    "native-alternate": "`top_k` and the group in turns after the first tenth",
    "native-last": "`top_k` in the last 30% only, the router's loss whole",
    "native-last-random": "the same with random groups",
    "native-through": "the router's gradient into the hidden state",
    "native-router": "the model's learning rate for the router",
}
PREFIX = {"routing": "prefix", "rival_routing": "prefix"}
TOP_K = {"routing": "top_k", "rival_routing": "top_k"}


def change(result: Result, method: str, rival: str, routing: str, rival_routing: str, **how: Any) -> str:
    """Return the mean change of a method against a rival, each under a routing."""
    values = changes(result, method, rival, routing=routing, rival_routing=rival_routing, **how)
    return f"{fmean(values):+.1%}"


def missed(content: Mapping[str, Any], start: str) -> bool:
    """Is a bar whose name starts so not reached?"""
    return any(one["bar"].startswith(start) and not one["holds"] for one in content["bars"])


def native(content: Mapping[str, Any], survey: Result | None) -> list[str]:
    """Return why `native` is further behind the default under `prefix`, and its groups less worth, than was hoped."""
    if not missed(content, "native"):
        return []
    result = content["result"]
    lines = [
        "What was missed, and why:",
        "",
        f"- `native` under `prefix` is {change(result, 'native', 'default', 'prefix', 'prefix')} against the default. "
        "Most of that is what a native architecture cannot hold: the default's rows of the embedding by group and its "
        "narrow experts by language. `shared-6`, which has native's kind of experts and is trained by group to the "
        f"end, is {change(result, 'shared-6', 'default', 'prefix', 'prefix')} against the default; against `shared-6`, "
        f"native is {change(result, 'native', 'shared-6', 'prefix', 'prefix')}, which is the price of training for "
        "`top_k`.",
        "- Under `top_k` native's groups are worth "
        f"{change(result, 'native', 'native-random', 'top_k', 'top_k')} against random ones. Where experts are "
        "trained by group to the end, and only scored under `top_k`, they are worth "
        f"{change(result, 'shared-6', 'shared-6-random', 'top_k', 'top_k')}; native's routers choose for themselves in "
        "nine tenths of the training, by when what the experts began with counts for little.",
    ]
    rows = survey_rows(survey)
    if rows:
        lines += [
            "- What was tried for it, in the survey below (one seed; changes against the survey's own runs):",
            "",
            "| | `top_k` vs dense | `prefix` vs dense | `prefix` vs the default's |",
            "| --- | ---: | ---: | ---: |",
            *rows,
            "",
            *lesson(survey),
        ]
    return [*lines, ""]


def lesson(survey: Result | None) -> list[str]:
    """Return what the variants of native say together, of those that were measured."""
    tried = [name for name in TRIED if survey and name in survey["methods"] and not name.endswith("-random")]
    if survey is None or len(tried) < 2:
        return []
    nearest = min(tried, key=lambda name: fmean(changes(survey, name, "default", **PREFIX)))
    lines = [
        f"The nearest under `prefix`, `{nearest}`, is {change(survey, nearest, 'default', **PREFIX)} against the "
        f"default, and {change(survey, nearest, 'native', **TOP_K)} against `native` under `top_k`, for which the "
        "preset is there; differences below 1% are noise."
    ]
    if {"native-last", "native-last-random"} <= set(survey["methods"]):
        worth = change(survey, "native-last", "native-last-random", **TOP_K)
        lines.append(
            "Where groups train the experts for longer, they are worth more to the router that follows (`native-last` "
            f"against random groups, `top_k`: {worth}), and that router gains less (against `native`: "
            f"{change(survey, 'native-last', 'native', **TOP_K)})."
        )
    return [" ".join(lines)]


def survey_rows(survey: Result | None) -> list[str]:
    """Return a row for each variant of native that was tried."""
    if survey is None:
        return []
    return [
        f"| `{name}`: {what} | {change(survey, name, 'dense', 'top_k', 'dense')} "
        f"| {change(survey, name, 'dense', 'prefix', 'dense')} "
        f"| {change(survey, name, 'default', 'prefix', 'prefix')} |"
        for name, what in TRIED.items()
        if name in survey["methods"]
    ]


def full_text(content: Mapping[str, Any]) -> list[str]:
    """Return how far the default is from what was hoped for the languages with all their text."""
    if not missed(content, "default against dense, languages with all"):
        return []
    result, full = content["result"], next(iter(content["tiers"].values()))
    others = [name for name in result["methods"] if name not in ("dense", "default", "base")]

    def against_dense(name: str) -> str:
        return change(result, name, "dense", result["methods"][name]["headline"], "dense", tags=full)

    rivals = ", ".join(f"`{name}` {against_dense(name)}" for name in others)
    return [
        f"What was missed: with all their text, languages are at {against_dense('default')} against dense where -24% "
        f"was asked. No method measured comes closer ({rivals}). Other ways to spend the parameters, rates, gates and "
        "layers were tried on equal text ([experiments.md](experiments.md)); the best lead is wider experts in the "
        "bottom layers, which is not built.",
        "",
    ]
