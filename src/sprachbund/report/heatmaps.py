"""The pictures of matrices over languages: similarity with its tree, co-assignment, the sources side by side.

Shapes: L languages. All matrices come in one order of languages in which a group's languages follow each other.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sprachbund.report.drawing import FAINT, INK, OURS, PAGE, Picture, one_line, picture, style
from sprachbund.report.tree import BETWEEN, INSIDE, LIFTED, Arrangement, Fork, Tree, stretches

_TREE_COLOURS = {INSIDE: (OURS, "-"), BETWEEN: (INK, "-"), LIFTED: (INK, (0, (2.5, 1.5)))}


def similarity_heatmap(arrangement: Arrangement) -> Picture:
    """Draw the similarity of every pair of languages, ordered by group, with the tree of the languages beside it.

    The diagonal is left out and does not set the colour scale: it is 1 by definition, while the cosines of
    weight deviations often lie within a few hundredths of each other.
    """
    tags, num_languages = arrangement.tags, len(arrangement.tags)
    with style("similarity"):
        # The tree gets more room for more forks, but less than the table.
        sheet = _Sheet(tags, arrangement.groups, largest_cell=0.34, left=min(2.2, 1.35 + 0.02 * num_languages))
        sheet.fill(arrangement.values_LL, limits=None)
        _draw_tree(sheet, arrangement.tree)
        return picture(
            sheet.figure,
            name="similarity",
            title="Similarity of the languages, ordered by group",
            description=f"A {num_languages} by {num_languages} table of colours, brighter where two languages are "
            "more alike to this model; gaps separate the groups. Beside it a tree that joins the most alike parts "
            "first, inside each group and then between the groups; a fork stands at the mean similarity of the pairs "
            "that it joins.",
        )


def co_assignment_heatmap(shares_LL: NDArray[np.float64], tags: Sequence[str], groups: Sequence[int]) -> Picture:
    """Draw in what share of the resamples two languages were put into one group, on a scale from 0 to 1."""
    with style("co-assignment"):
        sheet = _Sheet(tags, groups, largest_cell=0.24, left=0.1)
        sheet.fill(shares_LL, limits=(0.0, 1.0))
        return picture(
            sheet.figure,
            name="co-assignment",
            title="How often two languages share a group",
            description=f"A {len(tags)} by {len(tags)} table of colours, brighter where two languages were put into "
            "one group in more of the resamples; gaps separate the groups of this run.",
        )


def source_heatmaps(matrices: Mapping[str, NDArray[np.float64]], groups: Sequence[int]) -> Picture:
    """Draw several similarities of the same languages side by side, each coloured by the rank of a pair in it.

    Ranks make sources comparable whose values have other scales: grouping by the least alike pair reads no more
    than the order of the pairs.
    """
    num_columns = min(4, len(matrices))
    num_rows = ceil(len(matrices) / num_columns)
    with style("sources"):
        figure = Figure(figsize=(1.75 * num_columns, 1.95 * num_rows), layout="constrained")
        all_axes = figure.subplots(num_rows, num_columns, squeeze=False).flat
        for axes, (name, values_LL) in zip(all_axes, matrices.items(), strict=False):
            axes.imshow(_ranks(values_LL), interpolation="none", cmap="viridis", aspect="equal", vmin=0, vmax=1)
            axes.set_title(one_line(name), fontsize=9)
            _separate(axes, groups, width=0.9)
        for axes in figure.axes:
            axes.set_axis_off()
        return picture(
            figure,
            name="sources",
            title="The similarity sources side by side",
            description=f"{len(matrices)} small tables of colours over the same languages in the same order, brighter "
            "where a pair ranks higher in a source; gaps separate the groups of this run.",
        )


class _Sheet:
    """A square table of colours with labels to the right and below, and a scale; sizes in inches."""

    def __init__(self, tags: Sequence[str], groups: Sequence[int], *, largest_cell: float, left: float) -> None:
        self.tags, self.groups, self.left = [one_line(tag) for tag in tags], groups, left
        # Small enough for 128 languages, large enough for a label.
        self.cell = max(0.14, min(largest_cell, 6.2 / len(tags)))
        self.side = self.cell * len(tags)
        self.font = min(9.0, self.cell * 72 * 0.8)
        self.beside = max(0.6, max(map(len, self.tags)) * self.font * 0.64 / 72 + 0.15)
        below = max(0.6, self.beside)
        self.width, self.height = self.left + self.side + self.beside + 1.5, self.side + below + 0.1
        self.bottom = below
        self.figure = Figure(figsize=(self.width, self.height))
        self.axes = self.place(self.left, self.side)

    def place(self, left: float, width: float, *, height: float | None = None) -> Any:
        """Return axes of the table's height, or of a smaller one from its top."""
        height = height or self.side
        bottom = self.bottom + self.side - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def fill(self, values_LL: NDArray[np.float64], *, limits: tuple[float, float] | None) -> None:
        """Colour the table, on a scale from the smallest value off the diagonal to the largest or between `limits`."""
        shown_LL = values_LL.copy()
        np.fill_diagonal(shown_LL, np.nan)
        low, high = limits or (float(np.nanmin(shown_LL)), float(np.nanmax(shown_LL)))
        ends = (low, high) if low < high else (low - 0.5, high + 0.5)
        image = self.axes.imshow(
            shown_LL, interpolation="none", cmap="viridis", aspect="auto", vmin=ends[0], vmax=ends[1]
        )
        axes, rows = self.axes, range(len(self.tags))
        axes.yaxis.tick_right()
        axes.set_xticks(rows, labels=self.tags, rotation=90, fontsize=self.font)
        axes.set_yticks(rows, labels=self.tags, fontsize=self.font)
        axes.tick_params(length=0, pad=3)
        axes.spines[:].set_visible(False)
        # Points; the gap must not eat up the cells of small groups.
        _separate(axes, self.groups, width=min(2.2, self.cell * 72 * 0.12))
        self._name_groups()
        bar = self.place(self.left + self.side + self.beside + 0.85, 0.12, height=min(self.side, 2.4))
        self.figure.colorbar(image, cax=bar, ticks=None if low < high else [low])
        bar.tick_params(labelsize=8, length=2)
        bar.spines[:].set_visible(False)

    def _name_groups(self) -> None:
        """Write the group of every stretch of rows beside its labels."""
        at = len(self.tags) - 0.5 + self.beside / self.cell
        for start, end in stretches(self.groups):
            ends = (start - 0.5 + 0.15, end - 0.5 - 0.15)
            self.axes.plot((at, at), ends, color=FAINT, linewidth=0.8, clip_on=False, scalex=False, scaley=False)
            middle = (start + end - 1) / 2
            name, font = f"group {self.groups[start]}", min(self.font, 8.5)
            self.axes.text(at + 0.07 / self.cell, middle, name, va="center", fontsize=font)


def _separate(axes: Any, groups: Sequence[int], *, width: float) -> None:
    """Leave a gap between the groups."""
    for start, _ in stretches(groups)[1:]:
        axes.axhline(start - 0.5, color=PAGE, linewidth=width)
        axes.axvline(start - 0.5, color=PAGE, linewidth=width)


def _draw_tree(sheet: _Sheet, tree: Tree) -> None:
    """Draw the tree to the left of the table, its root to the left, on an axis of similarity."""
    root = min(fork.similarity for fork in tree.forks)
    span = tree.closest - root
    # Leaves hang a little beyond the closest pair, or its fork would have no stem; equal values leave one unit.
    stem = 0.08 * span if span > 0 else 1.0
    axes = sheet.place(0.15, sheet.left - 0.2)
    for kind, (colour, line) in _TREE_COLOURS.items():
        forks = [fork for fork in tree.forks if fork.kind == kind]
        if forks:
            points = np.concatenate([_outline(fork, leaf=tree.closest + stem) for fork in forks])
            axes.plot(points[:, 0], points[:, 1], color=colour, linestyle=line, linewidth=1.1, solid_joinstyle="miter")
    axes.set_xlim(root - stem, tree.closest + stem)
    axes.set_ylim(len(sheet.tags) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(root, tree.closest)
    if span > 0:
        ticks = [tick for tick in MaxNLocator(2).tick_values(root, tree.closest) if root <= tick <= tree.closest]
        axes.set_xticks(ticks or [root, tree.closest])
    else:
        axes.set_xticks([root])
    axes.tick_params(labelsize=8, length=2)
    axes.set_xlabel("mean similarity", fontsize=8)


def _outline(fork: Fork, *, leaf: float) -> NDArray[np.float64]:
    """Return the points (similarity, row) of a fork's bracket, and a break after it."""
    ends = [leaf if end is None else end for end in fork.ends]
    at = fork.similarity
    bracket = [(ends[0], fork.rows[0]), (at, fork.rows[0]), (at, fork.rows[1]), (ends[1], fork.rows[1])]
    return np.array([*bracket, (np.nan, np.nan)])


def _ranks(values_LL: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each pair's rank as a share of all pairs, equal values in the middle of their ranks; no diagonal."""
    pairs = np.sort(values_LL[np.triu_indices(len(values_LL), k=1)])
    below = np.searchsorted(pairs, values_LL, side="left")
    ranks_LL: NDArray[np.float64] = (below + np.searchsorted(pairs, values_LL, side="right")) / (2 * len(pairs))
    np.fill_diagonal(ranks_LL, np.nan)
    return ranks_LL
