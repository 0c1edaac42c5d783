"""Write the report of a finished run. All numbers come from the run's own files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sprachbund.files import write_text
from sprachbund.report import figures
from sprachbund.report.corpora_section import corpora_section
from sprachbund.report.formats import EQUAL, count, plural, signed
from sprachbund.report.frame import render
from sprachbund.report.grouping_section import grouping_section
from sprachbund.report.reading import Events, LanguageMetrics, Layer, Metrics, RunResult, Scores, read_run

WAYS = ("prefix", "group", "top_k")  # the headline, told nothing, comes first
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

    Raises:
        InputError: `folder` is no finished run, or one of its files is malformed.
    """
    target = folder / "report.html"
    write_text(target, render_report(read_run(folder)))
    return target


def render_report(run: RunResult) -> str:
    """Return the whole page as HTML."""
    metrics = run.metrics
    return render(
        "page.html.j2",
        metrics=metrics,
        has_dense=bool(metrics.change_vs_dense),
        summary=_summary(metrics, run.layers or []),
        ways=WAYS,
        bits_ways=_measured_ways(metrics),
        rows=_rows(metrics),
        stages=_STAGES,
        recipe=run.recipe,
        **grouping_section(run),
        **corpora_section(run.corpora, {tag: language.name for tag, language in metrics.languages.items()}),
        **_layers(run),
        **_curves(run.events),
        routers={way: _router_rows(metrics, way) for way in ("prefix", "top_k")},
        most_columns=_MOST_COLUMNS,
        **_token_shares(metrics, run.events),
    )


def _summary(metrics: Metrics, layers: Sequence[Layer]) -> list[str]:
    """Say in three sentences what was done and what came out, also where the mixture loses."""
    num_languages, num_groups = len(metrics.languages), len(_groups(metrics))
    in_layers = f"in {len(metrics.moe_layers)} of {plural(metrics.num_layers, 'layer')}"
    experts = [layer.experts for layer in layers if layer.chosen and layer.experts is not None]
    if experts and min(experts) < num_groups:
        spread = f"{min(experts)} to {max(experts)}" if min(experts) < max(experts) else f"{max(experts)}"
        has = f"the groups share {spread} experts {in_layers}"
    else:
        has = f"{_owners(metrics)} {in_layers}"
    if (rows := metrics.experts.get("rows")) in ("group", "language"):
        has += f"; each {rows} also has its own rows of the embedding and of the output"
    did = f"{plural(num_languages, 'language')} were put into {plural(num_groups, 'group')}, and {has}."
    moe, dense, base = (metrics.tokens.get(key) for key in ("moe", "dense", "base"))
    after = f" after {count(base)} tokens for the base model" if base else ""
    trained = f"The mixture was trained on {count(moe)} tokens{after}; "
    if not metrics.change_vs_dense:
        no_control = (
            "no dense control was trained, so this page cannot say what the experts gained over plain training."
        )
        return [did, trained + no_control]
    same = "the same number of tokens" if moe == dense else f"{count(dense)} tokens"
    trained += f"the control is the dense model, trained further on {same}."
    told = {"prefix": "Told nothing about the language (prefix)", "group": "told the group (group)"}
    parts = [f"{words}, {_outcome(metrics, way)}" for way, words in told.items() if way in metrics.change_vs_dense]
    return [did, trained, "; ".join(parts) + "."] if parts else [did, trained]


def _owners(metrics: Metrics) -> str:
    """Say who has experts."""
    if metrics.experts.get("kind") == "hierarchy":
        return "each group has its own expert and each language a small one"
    return f"each {metrics.experts.get('by') or 'group'} has its own expert"


def _outcome(metrics: Metrics, way: str) -> str:
    """Say how one routing compares with the dense control, on average and in its worst language."""
    change = metrics.change_vs_dense[way]
    per_language = [row.change[way] for row in _rows(metrics)]
    measured = [value for value in per_language if value is not None]
    better = sum(value < -EQUAL for value in measured)
    text = (
        f"its perplexity after the first {metrics.burn_in} tokens is {_compared(change.average)} the control’s on "
        f"average and lower in {better} of {plural(len(measured), 'language')}"
    )
    if change.worst:
        tag, value = change.worst
        text += f" (worst: {metrics.name_of(tag)}, {signed(value)}\xa0%)"
    return text


def _compared(change: float) -> str:
    """Put a relative change of perplexity into words."""
    if not math.isfinite(change):
        return "not comparable with"
    if abs(change) <= EQUAL:
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
    return [[metrics.name_of(tag) for tag in group] for group in metrics.tags_by_group()]


def _layers(run: RunResult) -> dict[str, Any]:
    """Return the figure of the layer deviations and how far apart the layers are."""
    if not run.layers:
        return {"layer_figure": None, "layers": [], "layer_spread": None, "uneven_experts": False}
    norms = [layer.ffn_norm for layer in run.layers]
    mean = sum(norms) / len(norms)
    spread = (max(norms) - min(norms)) / mean if mean else None
    return {
        "layer_figure": Markup(figures.layer_deviations(run.layers).inline()),
        "layers": run.layers,
        "layer_spread": spread,
        "uneven_experts": figures.has_uneven_experts(run.layers),
    }


def _curves(events: Events | None) -> dict[str, Any]:
    """Return the training curves, None where no step was logged."""
    dense, moe = (events.steps.get(stage, []) if events else [] for stage in ("dense", "train"))
    return {
        "curves": Markup(figures.training_curves(dense, moe).inline()) if dense or moe else None,
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
