"""The figures follow the page's colours, carry their text as text and leave no global state behind."""

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np

from sprachbund.report import figures
from sprachbund.report.reading import Layer, Step


def heatmap(num_languages: int, num_groups: int) -> str:
    rng = np.random.default_rng(0)
    tags = [f"l{i:03d}_Latn" for i in range(num_languages)]
    groups = [i * num_groups // num_languages for i in range(num_languages)]
    return figures.similarity_heatmap(rng.normal(size=(num_languages, num_languages)), tags, groups)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_heatmap_names_both_axes_and_all_groups() -> None:
    found = texts(heatmap(12, 3))
    assert found.count("l007_Latn") == 2
    assert [text for text in found if text.startswith("group")] == ["group 0", "group 1", "group 2"]


def test_heatmap_of_many_languages_keeps_labels_readable() -> None:
    svg = heatmap(128, 32)
    assert len(svg) < 400_000
    root = ElementTree.fromstring(svg)
    pixels_per_language = int(root.attrib["width"]) / 128
    assert pixels_per_language >= 10


def test_heatmap_colours_do_not_depend_on_the_diagonal() -> None:
    values = np.array([[1.0, 0.10, 0.12], [0.10, 1.0, 0.14], [0.12, 0.14, 1.0]])
    other = values + np.diag([5.0, 5.0, 5.0])
    tags, groups = ["a_Latn", "b_Latn", "c_Latn"], [0, 0, 1]
    assert figures.similarity_heatmap(values, tags, groups) == figures.similarity_heatmap(other, tags, groups)


def test_figures_are_coloured_by_the_page() -> None:
    layers = [Layer(0, 0.3, 0.1, 1.0, True), Layer(1, 0.2, 0.1, 0.0, False)]
    steps = [Step(10 * i, 5.0 - i, 0.1 * i, "group") for i in range(1, 4)]
    for svg in (heatmap(6, 2), figures.layer_deviations(layers), figures.training_curves(steps, steps)):
        assert "currentColor" in svg
        assert not any(stand_in in svg for stand_in in ("#010101", "#020202", "#030303", "#040404", "#050505"))
        assert "#000000" not in svg
        assert "<style" not in svg
        assert "xmlns" not in svg


def test_chosen_layers_are_marked_by_form_too() -> None:
    layers = [Layer(0, 0.3, 0.1, 1.0, True), Layer(1, 0.2, 0.1, 0.0, False)]
    svg = figures.layer_deviations(layers)
    assert "<pattern" in svg  # the hatching of the layer that stays dense
    assert "<pattern" not in figures.layer_deviations(layers[:1])
    assert {"FFN, chosen: has experts", "FFN, not chosen: stays dense"} <= set(texts(svg))


def test_curves_mark_a_change_of_routing_and_leave_out_what_was_not_logged() -> None:
    moe = [Step(i, 4.0, 1.0, "group" if i < 5 else "top_k") for i in range(10)]
    assert "routing: top_k" in "".join(texts(figures.training_curves([], moe)))
    no_router = [Step(i, 4.0, float("nan"), "group") for i in range(10)]
    assert not any(text.startswith("Router") for text in texts(figures.training_curves(no_router, no_router)))
    assert texts(figures.training_curves(no_router, [])).count("mixture") == 0


def test_a_long_run_does_not_make_a_heavy_page() -> None:
    steps = [Step(i, 5.0 + np.sin(i), 1.0, "group") for i in range(20_000)]
    assert len(figures.training_curves(steps, steps)) < 150_000


def test_no_global_state_is_touched() -> None:
    # Reading rcParams["backend"] would itself import pyplot.
    settings = [name for name in matplotlib.rcParams if name != "backend"]
    before = [matplotlib.rcParams[name] for name in settings]
    heatmap(4, 2)
    assert [matplotlib.rcParams[name] for name in settings] == before


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, numpy as np; from sprachbund.report.figures import similarity_heatmap as draw;"
        "draw(np.eye(2), ['a', 'b'], [0, 1]); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
