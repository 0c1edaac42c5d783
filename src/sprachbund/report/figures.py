"""The figures of the report that are charts: layers, losses, the number of groups; the heatmaps are in `heatmaps`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sprachbund.report.drawing import DENSE, FAINT, OURS, PAGE, Picture, one_line, picture, style
from sprachbund.report.grouping_file import CountRow, columns_of, points_of
from sprachbund.report.reading import Layer, Step

_MOST_POINTS = 400  # of one curve: more cannot be seen, and a long run's page would weigh megabytes
_MOST_PANELS = 6  # of the curve over the number of groups; its table has every column


def layer_deviations(layers: Sequence[Layer]) -> Picture:
    """Draw how far the probe moved each layer's FFN and attention; the layers that got experts are filled bars."""
    with style("layers"):
        figure = Figure(figsize=(max(6.8, 1.2 + 0.3 * len(layers)), 2.9), layout="constrained")
        axes = figure.add_subplot()
        for chosen, label in ((True, "FFN, chosen: has experts"), (False, "FFN, not chosen: stays dense")):
            rows = [layer for layer in layers if layer.chosen == chosen]
            if rows:
                axes.bar(
                    [layer.index for layer in rows],
                    [layer.ffn_norm for layer in rows],
                    width=0.62,
                    facecolor=OURS if chosen else "none",
                    edgecolor=OURS if chosen else FAINT,
                    hatch=None if chosen else "////",
                    label=label,
                )
        if any(np.isfinite(layer.attention_norm) for layer in layers):
            axes.plot(
                [layer.index for layer in layers],
                [layer.attention_norm for layer in layers],
                linestyle="none",
                marker="D",
                markersize=6.5,
                color=DENSE,
                markeredgecolor=PAGE,
                label="attention",
            )
        if has_uneven_experts(layers):
            _write_experts(axes, layers)
        axes.set_xticks([layer.index for layer in layers])
        axes.set_xlabel("layer")
        axes.set_ylabel("norm of the deviation")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        return picture(
            figure,
            name="layers",
            title="Deviation of each layer in the probe",
            description="One bar per layer for the FFN and one mark for attention; filled bars are the layers that "
            "got experts.",
        )


def has_uneven_experts(layers: Sequence[Layer]) -> bool:
    """Say whether the layers with experts have different numbers of them."""
    return len({layer.experts for layer in layers if layer.chosen and layer.experts is not None}) > 1


def _write_experts(axes: Any, layers: Sequence[Layer]) -> None:
    """Write the number of experts over each bar that has some, clear of the mark for attention."""
    for layer in layers:
        if layer.chosen and layer.experts is not None:
            clear_of_mark = layer.attention_norm >= layer.ffn_norm * 0.9  # false where there is none
            top = max(layer.ffn_norm, layer.attention_norm) if clear_of_mark else layer.ffn_norm
            offset = (0, 6 if clear_of_mark else 2)
            axes.annotate(
                str(layer.experts), (layer.index, top), offset, textcoords="offset points", ha="center", fontsize=8.5
            )
    axes.margins(y=0.12)


def layer_similarity(within: Mapping[int, float], between: Mapping[int, float]) -> Picture:
    """Draw the mean similarity of each layer, of pairs that share a group and of pairs that do not."""
    with style("by-layer"):
        figure = Figure(figsize=(6.8, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(list(within), list(within.values()), color=OURS, marker="o", markersize=4, label="within groups")
        axes.plot(
            list(between),
            list(between.values()),
            color=DENSE,
            linestyle=(0, (5, 2)),
            marker="D",
            markersize=4,
            label="between groups",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("mean similarity")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=2, fontsize=9)
        return picture(
            figure,
            name="by-layer",
            title="Mean similarity of each layer, within and between groups",
            description="Two lines over the layers: the mean similarity of languages that share a group, and of "
            "languages that do not.",
        )


def count_curve(rows: Sequence[CountRow]) -> Picture:
    """Draw each column of the curve over the number of groups in a panel of its own; the chosen number is marked."""
    shown = [name for name in columns_of(rows) if len(points_of(rows, name)) > 1][:_MOST_PANELS]
    num_rows = ceil(len(shown) / 3)
    num_columns = ceil(len(shown) / num_rows)
    counts = [row.count for row in rows]
    margin = 0.06 * (max(counts) - min(counts))
    with style("curve"):
        figure = Figure(figsize=(max(3.4, 2.5 * num_columns), 0.3 + 1.75 * num_rows), layout="constrained")
        all_axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axes, name in zip(all_axes, shown, strict=False):
            axes.plot(*zip(*points_of(rows, name), strict=True), color=OURS, linewidth=1.4, marker="o", markersize=2.5)
            for row in rows:
                if row.chosen:
                    axes.axvline(row.count, color=FAINT, linewidth=0.9, linestyle=":")
                    if (value := row.values.get(name)) is not None:
                        axes.plot([row.count], [value], marker="o", markersize=7, color=DENSE)
            axes.set_title(one_line(name.replace("_", " ")), fontsize=9)
            axes.set_xlim(min(counts) - margin, max(counts) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelsize=8)
            axes.grid(visible=True, axis="y")
        for axes in all_axes[len(shown) :]:
            axes.set_axis_off()
        figure.supxlabel("number of groups", fontsize=9)
        return picture(
            figure,
            name="curve",
            title="Curves over the number of groups",
            description=f"One panel each for {', '.join(one_line(name.replace('_', ' ')) for name in shown)}; the "
            "chosen number of groups is marked.",
        )


def training_curves(dense: Sequence[Step], moe: Sequence[Step]) -> Picture:
    """Draw language-model loss of the dense control and the mixture, and the router's loss, over the steps."""
    has_router = any(np.isfinite(step.router_loss) for step in moe)
    with style("curves"):
        figure = Figure(figsize=(6.8, 5.0 if has_router else 3.2), layout="constrained")
        all_axes = list(figure.subplots(2 if has_router else 1, 1, squeeze=False, sharex=True)[:, 0])
        axes = all_axes[0]
        for steps, label, colour, line in ((dense, "dense control", DENSE, (0, (5, 2))), (moe, "mixture", OURS, "-")):
            if steps:
                x, y = _thin([s.step for s in steps], [s.language_model_loss for s in steps])
                axes.plot(x, y, color=colour, linestyle=line, linewidth=1.6, label=label, marker=_marker(x))
        axes.set_title("Language-model loss, nats per token")
        axes.legend(loc="upper right")
        if has_router:
            x, y = _thin([s.step for s in moe], [s.router_loss for s in moe])
            all_axes[1].plot(x, y, color=OURS, linewidth=1.6, marker=_marker(x))
            all_axes[1].set_title("Router loss, nats per token")
            all_axes[1].set_ylim(bottom=0)
        for before, after in pairwise(moe):
            if before.routing != after.routing and after.routing:
                _mark_routing(all_axes, after)
        for axes in all_axes:
            axes.grid(visible=True, axis="y")
        all_axes[-1].set_xlabel("step")
        named = (("dense control", dense), ("mixture", moe))
        ends = [f"{label} {steps[-1].language_model_loss:.3f}" for label, steps in named if steps]
        return picture(
            figure,
            name="curves",
            title="Losses during training",
            description=f"Loss over steps; the language-model loss ends at: {', '.join(ends)}.",
        )


def _mark_routing(all_axes: Sequence[Any], step: Step) -> None:
    """Mark the step at which training went over to another routing."""
    for axes in all_axes:
        axes.axvline(step.step, color=FAINT, linewidth=0.9, linestyle=":")
    position = all_axes[-1].get_xaxis_transform()
    all_axes[-1].text(step.step, 0.97, f" routing: {step.routing}", transform=position, va="top", fontsize=8)


def _marker(x: Sequence[float]) -> str:
    """Return a marker where a line alone would show nothing."""
    return "o" if len(x) == 1 else ""


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average neighbouring points until at most `_MOST_POINTS` are left; points without a number are dropped."""
    points = np.array([(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(b)], dtype=np.float64).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, _MOST_POINTS)])
    return points[:, 0].tolist(), points[:, 1].tolist()
