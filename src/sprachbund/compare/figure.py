"""The figure of a comparison: what each method reaches, against its size and against what a token costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sprachbund.compare.table import short
from sprachbund.report.drawing import DENSE, FAINT, INK, OURS, Picture, one_line, picture, style

KEY_COLUMNS = 6
NUMBER_WIDTH, NUMBER_HEIGHT = 0.035, 0.03  # of an axis, what a number takes
PANELS = (("total parameters", "parameters"), ("FLOPs per token", "flops"))


@dataclass(frozen=True)
class Point:
    """One method: bits per byte after burn-in (mean over seeds), total parameters, active FLOPs per token.

    `dense` says that there is nothing to route: a dense model, or one widened for a single group of all languages.
    """

    name: str
    bits: float
    parameters: float
    flops: float
    dense: bool


def points(result: Mapping[str, Any]) -> list[Point]:
    """Return the methods of a comparison under their headlines."""
    return [
        Point(
            name,
            fmean(run["test"][method["headline"]]["bits_per_byte_after_burn_in"] for run in method["runs"]),
            method["parameters"]["total"],
            method["flops_per_token_active"],
            method["system"] == "dense" or len(method.get("groups") or ()) == 1,
        )
        for name, method in result["methods"].items()
    ]


def front(found: Sequence[Point], cost: str) -> list[Point]:
    """Return the points that no other beats or equals in both bits per byte and `cost`, cheapest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (getattr(point, cost), point.bits)):
        if not best or point.bits < best[-1].bits:
            best.append(point)
    return best


def comparison_figure(result: Mapping[str, Any], *, name: str = "comparison") -> Picture:
    """Draw bits per byte after burn-in against total parameters and against FLOPs per token, the Pareto front joined.

    Methods have their number in the key below, best first; those on a front are filled.
    """
    found = sorted(points(result), key=lambda point: point.bits)
    num_rows = -(-len(found) // KEY_COLUMNS)
    with style(name):
        figure = Figure(figsize=(9.6, 4.4 + 0.17 * num_rows), layout="constrained")
        for axes, (label, cost) in zip(figure.subplots(1, 2, sharey=True), PANELS, strict=True):
            best = front(found, cost)
            axes.plot([_at(p, cost) for p in best], [p.bits for p in best], color=FAINT, linewidth=1.0)
            for point in found:
                colour = DENSE if point.dense else OURS
                face = colour if point in best else "none"
                axes.plot(_at(point, cost), point.bits, "o", markersize=5, markerfacecolor=face, markeredgecolor=colour)
            axes.set_xscale("log")
            axes.margins(x=0.1, y=0.06)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(label)
            axes.grid(visible=True, axis="y")
            _write_numbers(axes, found, best, cost)
        figure.axes[0].set_ylabel("bits per byte after burn-in")
        keys = [Line2D([], [], linestyle="none", label=f"{i} {one_line(p.name)}") for i, p in enumerate(found, 1)]
        figure.legend(
            handles=keys, loc="outside lower center", ncols=KEY_COLUMNS, fontsize=8, handlelength=0, columnspacing=1.2
        )
        return picture(
            figure,
            name=name,
            title=f"{one_line(result['recipe'])}: quality against size and cost",
            description="Two panels with one numbered mark per method: bits per byte after burn-in, lower is better, "
            "over total parameters and over floating-point operations per token. A line joins the methods that no "
            "other beats in both; these are filled. "
            + "; ".join(f"{one_line(p.name)}: {p.bits:.3f}, {short(p.parameters)} parameters" for p in found)
            + ".",
        )


def _at(point: Point, cost: str) -> float:
    return float(getattr(point, cost))


def _write_numbers(axes: Any, found: Sequence[Point], best: Sequence[Point], cost: str) -> None:
    """Write each method's number beside its mark; where marks lie on each other, the numbers stand in a column."""
    lowest, highest = axes.get_ylim()
    left, right = map(log, axes.get_xlim())
    placed: list[tuple[float, float]] = []
    for number, point in enumerate(found, 1):
        x = (log(_at(point, cost)) - left) / (right - left)
        own = (point.bits - lowest) / (highest - lowest)
        taken = [height for column, height in placed if abs(x - column) < NUMBER_WIDTH]
        places = (own + sign * step * NUMBER_HEIGHT / 4 for step in range(len(found) * 8) for sign in (1, -1))
        y = next(y for y in places if all(abs(y - height) >= NUMBER_HEIGHT for height in taken))
        placed.append((x, y))
        axes.annotate(
            str(number),
            (x + 0.015, y),
            xycoords="axes fraction",
            va="center",
            fontsize=7.5,
            color=INK if point in best else FAINT,
        )
