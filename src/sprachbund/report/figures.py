"""The figures of the report: matplotlib draws them, the page colours them.

Each figure is drawn in stand-in colours that are then replaced by CSS variables, so that one SVG reads well on a
light page, on a dark one and on paper. Text stays text (`svg.fonttype: none`): it is selectable, and the reader's
own fonts cover scripts that matplotlib's do not. Nothing here touches pyplot or leaves a changed rcParams behind.

Legend: L languages.
"""

import io
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sprachbund.report.reading import Layer, Step

INK, FAINT, PAGE, OURS, DENSE = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    PAGE: "var(--page)",
    OURS: "var(--ours)",
    DENSE: "var(--dense)",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a tag holding "$" is text, not a formula
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.color": FAINT,
}
_MOST_POINTS = 400  # of one curve: more cannot be seen, and a long run's page would weigh megabytes


def similarity_heatmap(values_LL: NDArray[np.float64], tags: Sequence[str], groups: Sequence[int]) -> str:
    """Draw the similarity of every pair of languages as inline SVG, with a gap between groups.

    The diagonal is left out and does not set the colour scale: it is 1 by definition, while the cosines of
    weight deviations often lie within a few hundredths of each other.

    Args:
        values_LL: the similarities, rows and columns in the order of `tags`.
        tags: the languages, ordered so that a group's languages follow each other.
        groups: the group of each of them.
    """
    num_languages = len(tags)
    cell = max(0.14, min(0.34, 6.2 / num_languages))  # inches; small enough for 128, large enough for a label
    side, margin = cell * num_languages, 0.95
    shown_LL = values_LL.copy()
    np.fill_diagonal(shown_LL, np.nan)
    with rc_context({**_STYLE, "svg.hashsalt": "similarity"}):
        figure = Figure(figsize=(side + margin + 1.35, side + margin + 0.1))
        width, height = figure.get_size_inches()
        axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
        image = axes.imshow(shown_LL, interpolation="none", cmap="viridis", aspect="auto")
        size = min(9.0, cell * 72 * 0.8)
        axes.set_xticks(range(num_languages), labels=tags, rotation=90, fontsize=size)
        axes.set_yticks(range(num_languages), labels=tags, fontsize=size)
        axes.tick_params(length=0, pad=3)
        axes.spines[:].set_visible(False)
        gap = min(2.2, cell * 72 * 0.12)  # points; it must not eat up the cells of small groups
        for start, end in _runs(groups):
            if start:
                axes.axhline(start - 0.5, color=PAGE, linewidth=gap)
                axes.axvline(start - 0.5, color=PAGE, linewidth=gap)
            middle = (start + end - 1) / 2
            axes.text(num_languages - 0.35, middle, f"group {groups[start]}", va="center", fontsize=min(size, 8.5))
        bar_height = min(side, 2.4)
        bar_top = (margin + side - bar_height) / height
        bar = figure.add_axes(((margin + side + 0.75) / width, bar_top, 0.12 / width, bar_height / height))
        if np.isfinite(shown_LL).any():
            figure.colorbar(image, cax=bar)
            bar.tick_params(labelsize=8, length=2)
            bar.spines[:].set_visible(False)
        else:
            bar.set_axis_off()
        return _inline(
            figure,
            name="similarity",
            title="Similarity of the languages, ordered by group",
            description=f"A {num_languages} by {num_languages} table of colours, brighter where two languages are more "
            "alike to this model; gaps separate the groups.",
        )


def layer_deviations(layers: Sequence[Layer]) -> str:
    """Draw how far the probe moved each layer's FFN and attention; the layers that got experts are filled bars."""
    with rc_context({**_STYLE, "svg.hashsalt": "layers"}):
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
        axes.set_xticks([layer.index for layer in layers])
        axes.set_xlabel("layer")
        axes.set_ylabel("norm of the deviation")
        axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
        return _inline(
            figure,
            name="layers",
            title="Deviation of each layer in the probe",
            description="One bar per layer for the FFN and one mark for attention; filled bars are the layers that "
            "got experts. The numbers are in the table below.",
        )


def training_curves(dense: Sequence[Step], moe: Sequence[Step]) -> str:
    """Draw language-model loss of the dense control and the mixture, and the router's loss, over the steps."""
    has_router = any(np.isfinite(step.router_loss) for step in moe)
    with rc_context({**_STYLE, "svg.hashsalt": "curves"}):
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
        return _inline(
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


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) of every stretch of equal neighbours."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return list(zip(starts, [*starts[1:], len(values)], strict=True))


def _inline(figure: Figure, *, name: str, title: str, description: str) -> str:
    """Return the figure as an `<svg>` element to be put into a page.

    A file of its own needs namespaces, metadata and a style sheet; inside a page the first two are useless and the
    last would apply to the whole page, and identifiers must differ between figures.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Matplotlib only measures the text; the browser, which has the glyphs, draws it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _adapt(key.rpartition("}")[2], value, name) for key, value in element.attrib.items()
        }
    for tag, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        child.text = text
        root.insert(0, child)
    width, height = (round(float(part) * 96 / 72) for part in root.attrib["viewBox"].split()[2:])
    root.attrib.update(
        {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "width": str(width), "height": str(height)}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(key: str, value: str, name: str) -> str:
    """Adapt one attribute: identifiers become the figure's own, stand-in colours become CSS."""
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key == "href":
        return f"#{name}-{value[1:]}"
    value = value.replace("url(#", f"url(#{name}-")
    for stand_in, css in _CSS_COLOURS.items():
        value = value.replace(stand_in, css)
    return value
