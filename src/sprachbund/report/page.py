"""Write the report of a finished run: one HTML page that opens offline and prints.

All numbers come from the run's own files. Whatever a file holds is escaped (Jinja's autoescape); only the
package's own style sheet, script and figures are put in as they are, and a content security policy in the page
forbids every other script and every connection.
"""

import base64
import hashlib
import math
import os
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sprachbund.report import figures
from sprachbund.report.reading import Events, LanguageMetrics, Metrics, RunResult, Scores, read_run

WAYS = ("prefix", "group", "top_k")  # the headline, told nothing, comes first
_EQUAL = 0.0005  # a change of perplexity below 0.05 % is called equal: it would be shown as 0.0 %
_MOST_COLUMNS = 16  # of a language x expert table; beyond that only the own and the next expert can be read
_STAGES = {"base": "base model", "probe": "probe", "dense": "dense control", "moe": "mixture"}


@dataclass(frozen=True)
class Row:
    """One language of the main table; None where a score was not measured."""

    tag: str
    name: str
    group: int
    bits: dict[str, float | None]
    change: dict[str, float | None]


@dataclass(frozen=True)
class ShareRow:
    """Where one language's tokens went: a share per expert."""

    tag: str
    name: str
    group: int
    shares: list[float]
    accuracy: float | None

    @property
    def own(self) -> float:
        """The share that went to the language's own group."""
        return self.shares[self.group] if self.group < len(self.shares) else 0.0

    @property
    def next_expert(self) -> tuple[int, float] | None:
        """The other expert that got most, None where no other got anything."""
        others = [(share, expert) for expert, share in enumerate(self.shares) if expert != self.group]
        share, expert = max(others, default=(0.0, 0))
        return (expert, share) if share > 0 else None


def write_report(folder: Path) -> Path:
    """Write `report.html` into a finished run's directory and return its path.

    The page appears under its name only when it is complete, so a reader never sees half of one.

    Raises:
        InputError: `folder` is no finished run, or one of its files is malformed.
    """
    page = render_report(read_run(folder))
    target = folder / "report.html"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep a web server or a colleague from reading it
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def render_report(run: RunResult) -> str:
    """Return the whole page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        count=_count,
        fixed=_fixed,
        signed=_signed,
        percent=_percent,
        duration=_duration,
        memory=_memory,
        worse=_is_worse,
    )
    metrics = run.metrics
    script = _asset("sort.js")
    return environment.from_string(_asset("page.html.j2")).render(
        metrics=metrics,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        has_dense=bool(metrics.change_vs_dense),
        summary=_summary(metrics),
        ways=WAYS,
        bits_ways=_measured_ways(metrics),
        rows=_rows(metrics),
        groups=_groups(metrics),
        stages=_STAGES,
        recipe=run.recipe,
        **_similarity(run),
        **_layers(run),
        **_curves(run.events),
        routers={way: _router_rows(metrics, way) for way in ("prefix", "top_k")},
        most_columns=_MOST_COLUMNS,
        **_token_shares(metrics, run.events),
    )


def _asset(name: str) -> str:
    """Read a file of this package that goes into the page."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _summary(metrics: Metrics) -> list[str]:
    """Say in three sentences what was done and what came out, also where the mixture loses."""
    num_languages, num_groups = len(metrics.languages), len(_groups(metrics))
    did = (
        f"{_plural(num_languages, 'language')} were put into {_plural(num_groups, 'group')}, and each group has its "
        f"own expert in {len(metrics.moe_layers)} of {_plural(metrics.num_layers, 'layer')}."
    )
    moe, dense, base = (metrics.tokens.get(key) for key in ("moe", "dense", "base"))
    after = f" after {_count(base)} tokens for the base model" if base else ""
    trained = f"The mixture was trained on {_count(moe)} tokens{after}; "
    if not metrics.change_vs_dense:
        no_control = (
            "no dense control was trained, so this page cannot say what the experts gained over plain training."
        )
        return [did, trained + no_control]
    same = "the same number of tokens" if moe == dense else f"{_count(dense)} tokens"
    trained += f"the control is the dense model, trained further on {same}."
    told = {"prefix": "Told nothing about the language (prefix)", "group": "told the group (group)"}
    parts = [f"{words}, {_outcome(metrics, way)}" for way, words in told.items() if way in metrics.change_vs_dense]
    return [did, trained, "; ".join(parts) + "."] if parts else [did, trained]


def _outcome(metrics: Metrics, way: str) -> str:
    """Say how one routing compares with the dense control, on average and in its worst language."""
    change = metrics.change_vs_dense[way]
    per_language = [row.change[way] for row in _rows(metrics)]
    measured = [value for value in per_language if value is not None]
    better = sum(value < -_EQUAL for value in measured)
    text = (
        f"its perplexity after the first {metrics.burn_in} tokens is {_compared(change.average)} the control’s on "
        f"average and lower in {better} of {_plural(len(measured), 'language')}"
    )
    if change.worst:
        tag, value = change.worst
        name = metrics.languages[tag].name if tag in metrics.languages else tag
        text += f" (worst: {name}, {_signed(value)}\xa0%)"
    return text


def _compared(change: float) -> str:
    """Put a relative change of perplexity into words."""
    if not math.isfinite(change):
        return "not comparable with"
    if abs(change) <= _EQUAL:
        return "equal to"
    return f"{abs(change) * 100:.1f}\xa0% {'lower' if change < 0 else 'higher'} than"


def _measured_ways(metrics: Metrics) -> list[str]:
    """Return the columns of bits per byte that this run measured."""
    return [way for way in ("base", "dense", *WAYS) if way in metrics.average.bits_per_byte]


def _rows(metrics: Metrics) -> list[Row]:
    """Return the main table, ordered by group and within a group by name."""
    ordered = sorted(metrics.languages.items(), key=lambda item: (item[1].group, item[1].name))
    return [
        Row(
            tag=tag,
            name=language.name,
            group=language.group,
            bits={way: _measured(language.bits_per_byte, way) for way in ("base", "dense", *WAYS)},
            change={way: _change(language, way) for way in WAYS},
        )
        for tag, language in ordered
    ]


def _measured(scores: Scores, way: str) -> float | None:
    """Return a score, None where it is absent, null or not finite."""
    value = scores.get(way)
    return value if value is not None and math.isfinite(value) else None


def _change(language: LanguageMetrics, way: str) -> float | None:
    """Return the relative change of perplexity after burn-in against the dense control."""
    ours, dense = (_measured(language.perplexity_after_burn_in, key) for key in (way, "dense"))
    return None if ours is None or dense is None or dense <= 0 else ours / dense - 1


def _groups(metrics: Metrics) -> list[list[str]]:
    """Return the names of each group's languages."""
    tags = metrics.groups or [
        [tag for tag, language in metrics.languages.items() if language.group == group]
        for group in range(1 + max((language.group for language in metrics.languages.values()), default=-1))
    ]
    return [[metrics.languages[tag].name if tag in metrics.languages else tag for tag in group] for group in tags]


def _similarity(run: RunResult) -> dict[str, Any]:
    """Return the heatmap and, for those who cannot see it, mean similarities and everyone's nearest language."""
    if run.similarity is None or len(run.similarity.tags) < 2:
        return {"heatmap": None, "nearest": [], "within": None, "between": None}
    names = {tag: language.name for tag, language in run.metrics.languages.items()}
    similarity, group_of = run.similarity, run.groups
    sort_key = [(group_of[tag], names.get(tag, ""), tag) for tag in similarity.tags]
    order = sorted(range(len(sort_key)), key=sort_key.__getitem__)
    tags = [similarity.tags[i] for i in order]
    groups = [group_of[tag] for tag in tags]
    values_LL = similarity.values_LL[np.ix_(order, order)]
    off_diagonal_LL = ~np.eye(len(tags), dtype=bool)
    same_LL = np.equal.outer(groups, groups)
    nearest_L = np.where(off_diagonal_LL, np.nan_to_num(values_LL, nan=-np.inf), -np.inf).argmax(axis=1)
    nearest = [
        {
            "tag": tags[i],
            "name": names.get(tags[i], tags[i]),
            "nearest": names.get(tags[j], tags[j]),
            "value": float(values_LL[i, j]),
            "same": bool(same_LL[i, j]),
        }
        for i, j in enumerate(nearest_L.tolist())
    ]
    means = {
        key: float(np.nanmean(values_LL[mask])) if np.isfinite(values_LL[mask]).any() else None
        for key, mask in (("within", same_LL & off_diagonal_LL), ("between", ~same_LL))
    }
    heatmap = Markup(figures.similarity_heatmap(values_LL, tags, groups))
    return {"heatmap": heatmap, "nearest": nearest, **means}


def _layers(run: RunResult) -> dict[str, Any]:
    """Return the figure of the layer deviations and how far apart the layers are."""
    if not run.layers:
        return {"layer_figure": None, "layers": [], "layer_spread": None}
    norms = [layer.ffn_norm for layer in run.layers]
    mean = sum(norms) / len(norms)
    spread = (max(norms) - min(norms)) / mean if mean else None
    return {
        "layer_figure": Markup(figures.layer_deviations(run.layers)),
        "layers": run.layers,
        "layer_spread": spread,
    }


def _curves(events: Events | None) -> dict[str, Any]:
    """Return the training curves, None where no step was logged."""
    dense, moe = (events.steps.get(stage, []) if events else [] for stage in ("dense", "train"))
    return {
        "curves": Markup(figures.training_curves(dense, moe)) if dense or moe else None,
        "num_unreadable": events.num_unreadable if events else 0,
        "curve_stages": {"dense": bool(dense), "train": bool(moe)},
    }


def _router_rows(metrics: Metrics, way: str) -> list[ShareRow]:
    """Return which experts a way of routing chose for each language's text."""
    return [
        ShareRow(row.tag, row.name, row.group, shares, _measured(language.router_accuracy, way))
        for row in _rows(metrics)
        if (shares := (language := metrics.languages[row.tag]).router_share.get(way))
    ]


def _token_shares(metrics: Metrics, events: Events | None) -> dict[str, Any]:
    """Return the token share per language and expert in training, and the experts that got no token at all."""
    counts = events.tokens if events else {}
    num_experts = max((len(row) for row in counts.values()), default=0)
    rows = []
    for row in _rows(metrics):
        of_language = counts.get(row.tag, [])
        padded = [*of_language, *[0] * (num_experts - len(of_language))]
        total = sum(padded)
        if total:
            rows.append(ShareRow(row.tag, row.name, row.group, [count / total for count in padded], None))
    groups = _groups(metrics)
    dead = [
        {"expert": expert, "languages": groups[expert] if expert < len(groups) else []}
        for expert in range(num_experts)
        if not any(expert < len(row) and row[expert] for row in counts.values())
    ]
    return {"token_rows": rows, "dead": dead}


def _plural(number: int, word: str) -> str:
    """Return "1 group" or "6 groups"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _is_worse(change: float | None) -> bool:
    """Say whether a change of perplexity is a loss that the page can show."""
    return change is not None and change > _EQUAL


def _count(value: float | None) -> str:
    """Format a count with thousands separators."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def _fixed(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of digits."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _signed(change: float | None) -> str:
    """Format a fraction as a signed number of per cent, with a real minus sign."""
    if change is None or not math.isfinite(change):
        return "n/a"
    return "0.0" if abs(change) <= _EQUAL else f"{change * 100:+.1f}".replace("-", "−")


def _percent(share: float | None, digits: int = 0) -> str:
    """Format a share as per cent."""
    return "n/a" if share is None or not math.isfinite(share) else f"{share * 100:.{digits}f}\xa0%"


def _duration(seconds: float | None) -> str:
    """Format seconds as people say them."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _memory(megabytes: float | None) -> str:
    """Format megabytes."""
    if megabytes is None or not math.isfinite(megabytes):
        return "n/a"
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 10240 else f"{megabytes:,.0f} MB"
