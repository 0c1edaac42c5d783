"""What every picture shares: matplotlib draws it in stand-in colours, and the place it is put into colours it.

Inside the report the page's CSS variables do, so that one SVG reads well on a light page, on a dark one and on
paper. A file of its own carries the light colours as plain attributes, which every viewer and converter knows, and a
style sheet that a browser in dark mode puts over them. Text stays text (`svg.fonttype: none`): it is selectable, and
the reader's own fonts cover scripts that matplotlib's do not. Nothing here touches pyplot or leaves a changed
rcParams behind.
"""

import copy
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from sprachbund.report.formats import clean

INK, FAINT, PAGE, OURS, DENSE = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    PAGE: "var(--page)",
    OURS: "var(--ours)",
    DENSE: "var(--dense)",
}
LIGHT = {INK: "#24272c", FAINT: "#83868c", PAGE: "#fdfcfa", OURS: "#1f6f8b", DENSE: "#b5622b"}
DARK = {INK: "#e3e1dc", FAINT: "#868a91", PAGE: "#16181b", OURS: "#64b5cf", DENSE: "#e0985f"}
_NAMES = {INK: "ink", FAINT: "faint", PAGE: "page", OURS: "ours", DENSE: "dense"}
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
_FONTS = 'system-ui,"Segoe UI","Noto Sans","DejaVu Sans",sans-serif'


@dataclass(frozen=True)
class Picture:
    """A drawn figure in stand-in colours, its elements without namespaces."""

    root: ElementTree.Element

    def inline(self) -> str:
        """Return an `<svg>` element to be put into a page, coloured by the page's CSS variables."""
        root = copy.deepcopy(self.root)
        for element in root.iter():
            for key, value in element.attrib.items():
                for stand_in, css in _CSS_COLOURS.items():
                    value = value.replace(stand_in, css)
                element.attrib[key] = value
        return ElementTree.tostring(root, encoding="unicode")

    def standalone(self) -> str:
        """Return the text of an SVG file: light colours as attributes, dark ones by `prefers-color-scheme`."""
        root = copy.deepcopy(self.root)
        for element in root.iter():
            _colour_by_attributes(element)
            if "href" in element.attrib:
                # Viewers and converters older than SVG 2 know the name with the prefix only; browsers know both.
                element.attrib["xlink:href"] = element.attrib.pop("href")
        root.attrib = {
            "xmlns": "http://www.w3.org/2000/svg",
            "xmlns:xlink": "http://www.w3.org/1999/xlink",
            **root.attrib,
        }
        dark = "".join(
            f".{part}-{name}{{{part}:{DARK[stand_in]}}}"
            for stand_in, name in _NAMES.items()
            for part in ("fill", "stroke")
        )
        style = ElementTree.Element("style")
        style.text = f"text{{font-family:{_FONTS}!important}}@media (prefers-color-scheme:dark){{{dark}}}"
        size = {"width": "100%", "height": "100%"}
        paper = ElementTree.Element("rect", {**size, "fill": LIGHT[PAGE], "class": "fill-page"})
        root[2:2] = [style, paper]  # after the title and the description
        return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


@contextmanager
def style(name: str) -> Iterator[None]:
    """Draw in the house style; `name` makes the identifiers of a figure its own and the same in every run."""
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def picture(figure: Figure, *, name: str, title: str, description: str) -> Picture:
    """Return the figure as a picture with a title and a description for those who cannot see it.

    What matplotlib writes for a file of its own goes: its metadata and its style sheet, which inside a page would
    apply to the whole page. Identifiers get the figure's name before them, as they must differ between figures, and
    those that nothing refers to go: two equal images would have the same.
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
        plain = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib = {key: _identify(key, value, name) for key, value in plain.items()}
    _drop_unused_identifiers(root)
    for tag, text in (("desc", description), ("title", title)):
        child = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        child.text = text
        root.insert(0, child)
    width, height = (round(float(part) * 96 / 72) for part in root.attrib["viewBox"].split()[2:])
    root.attrib.update(
        {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "width": str(width), "height": str(height)}
    )
    return Picture(root)


def one_line(text: str) -> str:
    """Return a label on one line that an XML file may hold."""
    return " ".join(clean(text).split())


def _identify(key: str, value: str, name: str) -> str:
    """Return an attribute's value with the figure's own identifiers."""
    if key == "id":
        return f"{name}-{value}"
    if value.startswith("#") and key == "href":
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def _drop_unused_identifiers(root: ElementTree.Element) -> None:
    """Remove every identifier that no link and no `url(#...)` names."""
    values = [value for element in root.iter() for key, value in element.attrib.items() if key != "id"]
    used = {name for value in values for name in re.findall(r"(?:^|url\()#([^)]+)", value)}
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)


def _colour_by_attributes(element: ElementTree.Element) -> None:
    """Move stand-in colours from the `style` attribute, which no style sheet can override, to attributes that one can.

    Each becomes the light colour and a class for the dark one.
    """
    kept, classes = [], []
    for declaration in element.attrib.get("style", "").split(";"):
        part, _, value = (text.strip() for text in declaration.partition(":"))
        if value in _NAMES:
            element.attrib[part] = LIGHT[value]
            classes.append(f"{part}-{_NAMES[value]}")
        elif part:
            kept.append(declaration.strip())
    for part in ("fill", "stroke"):
        if (value := element.attrib.get(part, "")) in _NAMES:
            element.attrib[part] = LIGHT[value]
            classes.append(f"{part}-{_NAMES[value]}")
    if classes:
        element.attrib["class"] = " ".join(classes)
    if "style" in element.attrib:
        element.attrib["style"] = "; ".join(kept)
