"""The figure: what is on the Pareto front, and a file that is the same whenever it is drawn."""

from xml.etree import ElementTree

from results import comparison, entry, scores

from sprachbund.compare.figure import Point, comparison_figure, front, points


def point(name: str, bits: float, parameters: float) -> Point:
    return Point(name, bits, parameters, flops=parameters, dense=False)


def test_the_front_has_what_nothing_beats_in_both() -> None:
    cheap, better, beaten, best, equal = (
        point("cheap", 3.0, 1.0),
        point("better", 2.0, 2.0),
        point("beaten", 2.5, 3.0),
        point("best", 1.0, 9.0),
        point("equal", 2.0, 4.0),
    )
    assert front([best, beaten, equal, better, cheap], "parameters") == [cheap, better, best]


def test_points_are_means_over_seeds_under_the_headline() -> None:
    by_name = {found.name: found for found in points(comparison())}
    assert by_name["ours"].bits == 0.5  # of seed 1 under prefix
    assert by_name["dense"].dense
    assert not by_name["ours"].dense
    assert (by_name["wide"].parameters, by_name["wide"].flops) == (5_000_000, 5_000_000.0)


def test_every_method_is_named_once_and_numbered_in_both_panels_and_a_name_is_only_text() -> None:
    result = comparison()
    result["methods"]["<b>&"] = entry({0: {"prefix": scores(3.0, 4.0)}}, total=10, headline="prefix")
    drawn = comparison_figure(result)
    svg = drawn.standalone()
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for number, name in enumerate(["<b>&", "ours", "dense", "wide"], 1):  # best first
        assert texts.count(f"{number} {name}") == 1
        assert texts.count(str(number)) == 2
    assert "<b>" not in svg
    assert comparison_figure(result).standalone() == svg
