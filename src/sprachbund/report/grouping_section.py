"""What the page says about the groups: how they were made, how sure they are, what the other sources say.

Shapes: L languages.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from sprachbund.report import figures, heatmaps
from sprachbund.report.drawing import Picture
from sprachbund.report.formats import fixed, p_value, percent, plural
from sprachbund.report.grouping_file import Families, How, Source, Stability, columns_of, points_of
from sprachbund.report.reading import RunResult
from sprachbund.report.tree import LIFTED, Arrangement, arrange, reordered

_SHAKY = 0.5  # a language that is away from its group mates in more resamples than not
_MOST_IN_SMALL = 128  # languages of a small heatmap: with more a cell is less than a pixel
_MOST_SOURCES = 8
_SOURCE_COLUMNS = {
    "mean": "mean in groups",
    "min": "least alike pair",
    "rand_to_used": "Rand index with these groups",
    "family_rand": "Rand index with families",
    "family_auc": "AUC of same family",
}
_AIMS = {
    "mean": "for the highest mean similarity within groups",
    "bottleneck": "so that the least alike pair of any group is as alike as possible",
    "lexicographic": "so that the least alike pair of any group is as alike as possible, and then for the highest "
    "mean similarity within groups",
    "greedy": "by the paper’s greedy search, one group after the other",
}


@dataclass(frozen=True)
class Member:
    """One language of a group; `confidence` is None where nothing was resampled."""

    tag: str
    name: str
    confidence: float | None

    @property
    def is_shaky(self) -> bool:
        """Whether it is away from its group mates in more than half of the resamples, averaged over them."""
        return self.confidence is not None and self.confidence < _SHAKY


@dataclass(frozen=True)
class _Order:
    """The languages in the order of the pictures: the tree's, or by group and name where there is no similarity."""

    tags: tuple[str, ...]
    groups: tuple[int, ...]


def grouping_section(run: RunResult) -> dict[str, Any]:
    """Return what the section needs; None or empty where the run has no such file."""
    grouping, names = run.grouping, {tag: language.name for tag, language in run.metrics.languages.items()}
    members = _members(run)
    family_rows = _family_rows(members, grouping.families) if grouping.families else []
    arrangement = None
    if run.similarity is not None and len(run.similarity.tags) > 1:
        arrangement = arrange(run.similarity, run.groups, names)
        order = _Order(arrangement.tags, arrangement.groups)
    else:
        tags = tuple(sorted(run.groups, key=lambda tag: (run.groups[tag], names.get(tag, ""), tag)))
        order = _Order(tags, tuple(run.groups[tag] for tag in tags))
    return {
        "groups": members,
        "how": _how_sentences(grouping.how, has_curve=bool(grouping.curve)) if grouping.how else [],
        "grouping_problems": grouping.problems + run.others.problems,
        "sure": _stability_sentences(grouping.stability, members) if grouping.stability else [],
        "shaky": [member.name for group in members for member in group if member.is_shaky],
        "families": _family_sentence(grouping.families) if grouping.families else None,
        "family_rows": family_rows,
        "legend": _legend(members, has_families=bool(family_rows)),
        "curve_rows": grouping.curve,
        "curve_columns": columns_of(grouping.curve),
        "sources": grouping.sources,
        "source_columns": _source_columns(grouping.sources.values()),
        "used_source": grouping.how.source if grouping.how else None,
        **_pictures(run, order),
        **_similarity(arrangement, names),
    }


def _members(run: RunResult) -> list[list[Member]]:
    """Return the languages of each group."""
    confidence = run.grouping.stability.confidence if run.grouping.stability else {}
    return [
        [Member(tag, run.metrics.name_of(tag), confidence.get(tag)) for tag in group]
        for group in run.metrics.tags_by_group()
    ]


def _how_sentences(how: How, *, has_curve: bool) -> list[str]:
    """Say what the groups were made from and for, how good they are, and how good any others could be."""
    sentences = []
    if how.method == "given":
        sentences.append("The groups were given to this run.")
    elif how.source is not None and how.objective is not None:
        aim = _AIMS.get(how.objective, f"for the objective {how.objective}")
        limit = f", with no pair in a group below {fixed(how.least, 4)}" if how.least is not None else ""
        sentences.append(f"The groups were made from the {how.source} similarity, {aim}{limit}.")
    values = (("the mean similarity within groups is", how.mean), ("the least alike pair in a group has", how.min))
    known = [f"{words} {fixed(value, 4)}" for words, value in values if value is not None]
    if known:
        sentences.append(_sentence("; ".join(known)))
    if how.method != "given":
        sentences += _proof(how)
    if how.count_chosen == "auto":
        sentences.append(
            f"The number of groups was chosen automatically{', from the curve below' if has_curve else ''}."
        )
    return sentences


def _proof(how: How) -> list[str]:
    """Say what is proven of all other groupings of the same kind."""
    method = f" ({how.method})" if how.method else ""
    if how.proven:
        return [f"No grouping under the same conditions does better: proven{method}."]
    value = how.min if how.objective == "bottleneck" else how.mean
    if how.bound is not None and value is not None:
        gap = max(how.bound - value, 0.0)
        share = f" ({percent(gap / value, 1)})" if value > 0 else ""
        what = "least alike pair above" if how.objective == "bottleneck" else "mean similarity above"
        return [
            f"Found by {how.method or 'search'} and not proven best; proven is that no such grouping has a {what} "
            f"{fixed(how.bound, 4)}, {fixed(gap, 4)}{share} more than this one."
        ]
    return [f"How near this is to the best possible was not computed{method}."] if how.method else []


def _has_confidence(members: Sequence[Sequence[Member]]) -> bool:
    """Say whether any language has a confidence."""
    return any(member.confidence is not None for group in members for member in group)


def _legend(members: Sequence[Sequence[Member]], *, has_families: bool) -> list[str]:
    """Say what stands beside a language and below a group."""
    parts = []
    if _has_confidence(members):
        parts.append("beside a language, in what share of the resamples it is with its group mates, averaged over them")
    if has_families:
        parts.append("below a group, its language families")
    return [_sentence("; ".join(parts))] if parts else []


def _stability_sentences(stability: Stability, members: Sequence[Sequence[Member]]) -> list[str]:
    """Say how alike the groups are that other probe data give."""
    sentences = []
    if stability.mean_rand is not None:
        kind = f" ({stability.kind})" if stability.kind else ""
        sentences.append(
            f"Grouped again on {plural(stability.resamples, 'resample')}{kind}, the languages fall into groups whose "
            f"adjusted Rand index with these is {fixed(stability.mean_rand)} on average (1: the same groups; 0: alike "
            "as by chance)."
        )
    if stability.between_repeats is not None:
        sentences.append(f"Between repeats of the probe it is {fixed(stability.between_repeats)}.")
    if _has_confidence(members) and not any(member.is_shaky for group in members for member in group):
        sentences.append(
            "Every language is with its group mates in at least half of the resamples, averaged over them."
        )
    return sentences


def _family_sentence(families: Families) -> str | None:
    """Say how well the groups agree with the families, and how often chance would do as well."""
    if families.rand is None:
        return None
    text = f"The adjusted Rand index of the groups with the languages’ families is {fixed(families.rand)}"
    if families.p_value is not None:
        text += f"; p\xa0{p_value(families.p_value)}"
        if families.permutations:
            text += f", from {families.permutations:,} permutations of the families over the languages"
    return f"{text}."


def _family_rows(members: Sequence[Sequence[Member]], families: Families) -> list[str]:
    """Return for each group its families, the most frequent first."""
    counts = [Counter(families.families.get(member.tag, "unknown") for member in group) for group in members]
    known = bool(families.families)
    return [", ".join(f"{name} {num}" for name, num in count.most_common()) for count in counts] if known else []


def _source_columns(sources: Iterable[Source]) -> list[tuple[str, str]]:
    """Return the columns of the table of sources that have a number, as (field, heading)."""
    every = list(sources)
    return [
        (name, heading)
        for name, heading in _SOURCE_COLUMNS.items()
        if any(getattr(source, name) is not None for source in every)
    ]


def _pictures(run: RunResult, order: _Order) -> dict[str, Markup | None]:
    """Return the pictures other than the heatmap of the similarity, None where there is nothing to draw."""
    grouping, others = run.grouping, run.others
    drawn: dict[str, Picture | None] = dict.fromkeys(("curve_figure", "co_assignment", "source_figure", "by_layer"))
    if any(len(points_of(grouping.curve, name)) > 1 for name in columns_of(grouping.curve)):
        drawn["curve_figure"] = figures.count_curve(grouping.curve)
    shares_LL = grouping.stability.shares_LL(order.tags) if grouping.stability else None
    if shares_LL is not None and len(shares_LL) > 1:
        drawn["co_assignment"] = heatmaps.co_assignment_heatmap(shares_LL, order.tags, order.groups)
    used = grouping.how.source if grouping.how and grouping.how.source else None
    matrices = {used: run.similarity} if used and run.similarity else {}
    matrices |= {name: matrix for name, matrix in others.matrices.items() if name not in matrices}
    if len(matrices) > 1 and len(order.tags) <= _MOST_IN_SMALL:
        first = list(matrices.items())[:_MOST_SOURCES]
        values = {name: reordered(matrix, order.tags) for name, matrix in first}
        drawn["source_figure"] = heatmaps.source_heatmaps(values, order.groups)
    if max(len(others.within), len(others.between)) > 1:
        drawn["by_layer"] = figures.layer_similarity(others.within, others.between)
    return {name: Markup(picture.inline()) if picture else None for name, picture in drawn.items()}


def _similarity(arrangement: Arrangement | None, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the heatmap and, for those who cannot see it, mean similarities and everyone's nearest language."""
    if arrangement is None:
        return {"heatmap": None, "has_lifted": False, "nearest": [], "within": None, "between": None}
    tags, groups, values_LL = arrangement.tags, arrangement.groups, arrangement.values_LL
    off_diagonal_LL = ~np.eye(len(tags), dtype=bool)
    same_LL = np.equal.outer(groups, groups)
    nearest_L = np.where(off_diagonal_LL, values_LL, -np.inf).argmax(axis=1).tolist()
    by_group = sorted(range(len(tags)), key=lambda i: (groups[i], names.get(tags[i], ""), tags[i]))
    nearest = [
        {
            "name": names.get(tags[i], tags[i]),
            "nearest": names.get(tags[j], tags[j]),
            "value": float(values_LL[i, j]),
            "same": bool(same_LL[i, j]),
        }
        for i in by_group
        for j in (nearest_L[i],)
    ]
    means = {
        key: float(values_LL[mask].mean()) if mask.any() else None
        for key, mask in (("within", same_LL & off_diagonal_LL), ("between", ~same_LL))
    }
    return {
        "heatmap": Markup(heatmaps.similarity_heatmap(arrangement).inline()),
        "has_lifted": any(fork.kind == LIFTED for fork in arrangement.tree.forks),
        "nearest": nearest,
        **means,
    }


def _sentence(text: str) -> str:
    """Return the text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."
