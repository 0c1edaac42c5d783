"""The pictures as files: valid, self-contained, readable in every viewer and on a dark page."""

import os
import re
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sprachbund.errors import InputError
from sprachbund.grouping import Grouping, Similarity
from sprachbund.report import Layer, read_layers, write_layers_svg, write_similarity_svg
from sprachbund.report.drawing import DARK, FAINT, INK, LIGHT, PAGE

SVG = "{http://www.w3.org/2000/svg}"


def similarity(num_languages: int, *, value: float | None = None, shift: float = 0.0) -> Similarity:
    values = np.random.default_rng(0).normal(scale=0.1, size=(num_languages, num_languages))
    values = (values + values.T) / 2 + shift
    if value is not None:
        values = np.full_like(values, value)
    np.fill_diagonal(values, 1.0)
    return Similarity(tuple(f"l{i:03d}_Latn" for i in range(num_languages)), values)


def split(tags: tuple[str, ...], *sizes: int) -> Grouping:
    rest = iter(tags)
    return Grouping(tuple(tuple(next(rest) for _ in range(size)) for size in sizes))


def read(path: Path) -> ElementTree.Element:
    return ElementTree.fromstring(path.read_bytes())


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("num_languages", "sizes", "value", "shift"),
    [
        (2, (2,), None, 0.0),
        (2, (1, 1), None, 0.0),
        (7, (1, 3, 3), None, 0.0),
        (6, (2, 2, 2), 0.25, 0.0),
        (6, (3, 3), 0.0, 0.0),
        (8, (4, 4), None, -0.7),
        (8, (4, 4), None, 40.0),
        (128, (8,) * 16, None, 0.1),
    ],
)
def test_extremes_are_drawn(
    tmp_path: Path, num_languages: int, sizes: tuple[int, ...], value: float | None, shift: float
) -> None:
    given = similarity(num_languages, value=value, shift=shift)
    path = tmp_path / "similarity.svg"
    write_similarity_svg(path, given, split(given.tags, *sizes))
    root = read(path)
    found = texts(root)
    assert sorted(text for text in found if text in given.tags) == sorted(given.tags * 2)
    assert sorted(text for text in found if text.startswith("group")) == sorted(f"group {i}" for i in range(len(sizes)))
    numbers = [element.attrib.get(key, "") for element in root.iter() for key in ("d", "transform", "x", "y")]
    assert not any("nan" in value or "inf" in value for value in numbers)
    assert path.stat().st_size < 300_000


def test_a_file_says_what_it_is_and_needs_nothing_else(tmp_path: Path) -> None:
    given = similarity(4)
    write_similarity_svg(tmp_path / "similarity.svg", given, split(given.tags, 2, 2))
    write_layers_svg(tmp_path / "layers.svg", [Layer(0, 0.3, 0.1, 1.0, True), Layer(1, 0.2, 0.1, 0.0, False)])
    for name, title in (
        ("similarity.svg", "Similarity of the languages, ordered by group"),
        ("layers.svg", "Deviation of each layer in the probe"),
    ):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.startswith('<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg"')
        root = read(tmp_path / name)
        assert [child.tag for child in root[:4]] == [f"{SVG}{tag}" for tag in ("title", "desc", "style", "rect")]
        assert root[0].text == title
        assert root.attrib["role"] == "img"
        names = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
        assert set(root.attrib["aria-labelledby"].split()) <= names
        links = [value for element in root.iter() for key, value in element.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
        assert {link[1:] for link in links if link.startswith("#")} <= names
        assert "@import" not in text
        assert "url(http" not in text


def test_colours_are_plain_attributes_with_classes_for_the_dark_page(tmp_path: Path) -> None:
    given = similarity(4)
    write_similarity_svg(tmp_path / "similarity.svg", given, split(given.tags, 2, 2))
    root = read(tmp_path / "similarity.svg")
    text = (tmp_path / "similarity.svg").read_text(encoding="utf-8")
    # A viewer without CSS variables or currentColor would draw black on black.
    assert "var(" not in text
    assert "currentColor" not in text
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", text)
    labels = list(root.iter(f"{SVG}text"))
    assert all(label.attrib["fill"] == LIGHT[INK] for label in labels)
    assert all(label.attrib["class"].split() == ["fill-ink"] for label in labels)
    assert all("fill:" not in label.attrib["style"] for label in labels)
    style = root.find(f"{SVG}style")
    assert style is not None
    assert f"@media (prefers-color-scheme:dark){{.fill-ink{{fill:{DARK[INK]}}}" in (style.text or "")
    paper = root.find(f"{SVG}rect")
    assert paper is not None
    assert (paper.attrib["fill"], paper.attrib["class"]) == (LIGHT[PAGE], "fill-page")
    used = {name for element in root.iter() for name in element.attrib.get("class", "").split()}
    assert all(f".{name}{{" in (style.text or "") for name in used)


def test_files_and_page_have_the_same_colours() -> None:
    css = resources.files("sprachbund.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in css.split("{", 4)[1:4:2])
    for palette, variables in ((LIGHT, light), (DARK, dark)):
        assert palette[INK] == variables["ink"]
        assert palette[PAGE] == variables["page"]
        assert palette[FAINT] == variables["faint"]
        assert set(palette.values()) <= set(variables.values())


@pytest.mark.parametrize(
    ("tag", "shown"),
    [
        ("<b>&amp;</text>", "<b>&amp;</text>"),
        ("$x_1$", "$x_1$"),
        ("bell\x07", "bell\ufffd"),
        ("two\nlines", "two lines"),
        ("]]>--><!--", "]]>--><!--"),
        ("a" * 60, "a" * 60),
    ],
)
def test_any_tag_is_text(tmp_path: Path, tag: str, shown: str) -> None:
    values = similarity(3).values_LL
    path = tmp_path / "similarity.svg"
    write_similarity_svg(path, Similarity(("a", "b", tag), values), Grouping((("a", "b"), (tag,))))
    assert texts(read(path)).count(shown) == 2


def test_long_tags_get_room(tmp_path: Path) -> None:
    def width(tag: str) -> int:
        path = tmp_path / "similarity.svg"
        write_similarity_svg(path, Similarity(("a", tag), np.eye(2)), Grouping((("a",), (tag,))))
        return int(read(path).attrib["width"])

    assert width("b" * 40) > width("b" * 20) > width("b")


def test_a_language_without_a_group_is_named(tmp_path: Path) -> None:
    given = similarity(3)
    with pytest.raises(InputError, match="No group has the language 'l002_Latn'"):
        write_similarity_svg(tmp_path / "similarity.svg", given, Grouping((given.tags[:2],)))
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "layers.svg"
    layers = [Layer(0, 0.3, 0.1, 1.0, True)]
    write_layers_svg(path, layers)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_layers_svg(path, [*layers, Layer(1, 0.2, 0.1, 0.0, False)])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["layers.svg"]


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    given = similarity(6)
    for name in ("a.svg", "b.svg"):
        write_similarity_svg(tmp_path / name, given, split(given.tags, 3, 3))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_layers_are_drawn_from_their_file(planned_folder: Path) -> None:
    layers = read_layers(planned_folder / "layers.csv")
    assert [layer.experts for layer in layers] == [6, 3, 1, 2]
    write_layers_svg(planned_folder / "layers.svg", layers)
    assert {"6", "3", "2"} <= set(texts(read(planned_folder / "layers.svg")))
