"""The figures follow the page's colours, carry their text as text and leave no global state behind."""

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np

from sprachbund.grouping.similarity_csv import Matrix, Similarity
from sprachbund.report import figures, heatmaps
from sprachbund.report.grouping_file import CountRow
from sprachbund.report.reading import Layer, Step
from sprachbund.report.tree import arrange


def draw(values: Matrix, group_of: dict[str, int]) -> str:
    return heatmaps.similarity_heatmap(arrange(Similarity(tuple(group_of), values), group_of)).inline()


def heatmap(num_languages: int, num_groups: int) -> str:
    values = np.random.default_rng(0).normal(size=(num_languages, num_languages))
    group_of = {f"l{i:03d}_Latn": i * num_groups // num_languages for i in range(num_languages)}
    return draw(values + values.T, group_of)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_heatmap_names_both_axes_and_all_groups() -> None:
    found = texts(heatmap(12, 3))
    assert found.count("l007_Latn") == 2
    assert sorted(text for text in found if text.startswith("group")) == ["group 0", "group 1", "group 2"]
    assert "mean similarity" in found  # the axis of the tree


def test_heatmap_of_many_languages_keeps_labels_readable() -> None:
    svg = heatmap(128, 32)
    assert len(svg) < 400_000
    root = ElementTree.fromstring(svg)
    pixels_per_language = int(root.attrib["width"]) / 128
    assert pixels_per_language >= 10


def test_heatmap_colours_do_not_depend_on_the_diagonal() -> None:
    values = np.array([[1.0, 0.10, 0.12], [0.10, 1.0, 0.14], [0.12, 0.14, 1.0]])
    other = values + np.diag([5.0, 5.0, 5.0])
    group_of = {"a_Latn": 0, "b_Latn": 0, "c_Latn": 1}
    assert draw(values, group_of) == draw(other, group_of)


def test_figures_are_coloured_by_the_page() -> None:
    layers = [Layer(0, 0.3, 0.1, 1.0, True), Layer(1, 0.2, 0.1, 0.0, False)]
    steps = [Step(10 * i, 5.0 - i, 0.1 * i, "group") for i in range(1, 4)]
    rows = [CountRow(count, {"mean": count / 10}, count == 3) for count in (2, 3, 4)]
    matrices = {"a": np.eye(4), "b": np.eye(4)}
    pictures = (
        figures.layer_deviations(layers),
        figures.training_curves(steps, steps),
        figures.count_curve(rows),
        figures.layer_similarity({0: 0.3, 1: 0.4}, {0: 0.1, 1: 0.2}),
        heatmaps.co_assignment_heatmap(np.eye(3), ["a", "b", "c"], [0, 0, 1]),
        heatmaps.source_heatmaps(matrices, [0, 0, 1, 1]),
    )
    for svg in (heatmap(6, 2), *(picture.inline() for picture in pictures)):
        assert "currentColor" in svg
        assert not any(stand_in in svg for stand_in in ("#010101", "#020202", "#030303", "#040404", "#050505"))
        assert "#000000" not in svg
        assert "<style" not in svg
        assert "xmlns" not in svg


def test_chosen_layers_are_marked_by_form_too() -> None:
    layers = [Layer(0, 0.3, 0.1, 1.0, True), Layer(1, 0.2, 0.1, 0.0, False)]
    svg = figures.layer_deviations(layers).inline()
    assert "<pattern" in svg  # the hatching of the layer that stays dense
    assert "<pattern" not in figures.layer_deviations(layers[:1]).inline()
    assert {"FFN, chosen: has experts", "FFN, not chosen: stays dense"} <= set(texts(svg))


def test_numbers_of_experts_stand_over_the_bars_where_they_differ() -> None:
    def over_bars(*experts: int | None) -> list[str]:
        layers = [Layer(i, 0.3, 0.1, 1.0, number != 1, number) for i, number in enumerate(experts)]
        axis = {"0", "1", "2", "layer"}
        found = texts(figures.layer_deviations(layers).inline())
        return [text for text in found if text.isdecimal() and text not in axis]

    assert over_bars(6, 3, 1) == ["6", "3"]
    assert over_bars(6, 6, 1) == []
    assert over_bars(None, None, None) == []


def test_count_curve_has_a_panel_for_every_column_and_marks_the_chosen_number() -> None:
    def curve(chosen: int) -> str:
        rows = [
            CountRow(
                count,
                {"mean": count / 10, "held_out": -0.1 * count, "gap": None if count == 2 else 1.0},
                chosen == count,
            )
            for count in (2, 3, 4, 6)
        ]
        return figures.count_curve(rows).inline()

    found = texts(curve(3))
    assert [text for text in found if text in ("mean", "held out", "gap", "number of groups")] == [
        "mean", "held out", "gap", "number of groups",
    ]  # fmt: skip
    assert "var(--dense)" in curve(3)
    assert "var(--dense)" not in curve(0)


def test_source_heatmaps_depend_on_the_order_of_the_pairs_only() -> None:
    values = np.random.default_rng(0).random((6, 6))
    values = values + values.T

    def sources(matrix: Matrix) -> str:
        return heatmaps.source_heatmaps({"one": matrix, "two": values}, [0, 0, 0, 1, 1, 1]).inline()

    assert sources(values) == sources(np.exp(3 * values))
    assert sources(values) != sources(-values)


def test_curves_mark_a_change_of_routing_and_leave_out_what_was_not_logged() -> None:
    moe = [Step(i, 4.0, 1.0, "group" if i < 5 else "top_k") for i in range(10)]
    assert "routing: top_k" in "".join(texts(figures.training_curves([], moe).inline()))
    no_router = [Step(i, 4.0, float("nan"), "group") for i in range(10)]
    assert not any(text.startswith("Router") for text in texts(figures.training_curves(no_router, no_router).inline()))
    assert texts(figures.training_curves(no_router, []).inline()).count("mixture") == 0


def test_a_long_run_does_not_make_a_heavy_page() -> None:
    steps = [Step(i, 5.0 + np.sin(i), 1.0, "group") for i in range(20_000)]
    assert len(figures.training_curves(steps, steps).inline()) < 150_000


def test_no_global_state_is_touched() -> None:
    # Reading rcParams["backend"] would itself import pyplot.
    settings = [name for name in matplotlib.rcParams if name != "backend"]
    before = [matplotlib.rcParams[name] for name in settings]
    heatmap(4, 2)
    assert [matplotlib.rcParams[name] for name in settings] == before


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, numpy as np; from sprachbund.grouping import Similarity;"
        "from sprachbund.report.heatmaps import similarity_heatmap as draw; from sprachbund.report.tree import arrange;"
        "draw(arrange(Similarity(('a', 'b'), np.eye(2)), {'a': 0, 'b': 1}));"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
