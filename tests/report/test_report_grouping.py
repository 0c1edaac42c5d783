"""What the page says about the groups: only what the run's files say, whole or in part."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_report_page import Page, report

Edit = Callable[[Callable[[dict[str, Any]], object]], None]


@pytest.fixture(scope="module")
def page(shared_planned_folder: Path) -> Page:
    """The page of a run in which everything was computed."""
    return report(shared_planned_folder)


@pytest.fixture
def edit_grouping(told_folder: Path) -> Edit:
    """Change the grouping.json of the run in `told_folder` in place."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        path = told_folder / "grouping.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        change(found)
        path.write_text(json.dumps(found), encoding="utf-8")

    return edit


def plain(page: Page) -> str:
    """The text of the page on one line."""
    return re.sub(r"\s+", " ", page.text)


def test_says_how_the_groups_were_made_and_the_proven_gap(page: Page) -> None:
    text = plain(page)
    assert (
        "The groups were made from the deviation similarity, for the highest mean similarity within groups, with no "
        "pair in a group below 0.2808. The mean similarity within groups is 0.4987; the least alike pair in a group "
        "has 0.4012. Found by search and not proven best; proven is that no such grouping has a mean similarity above "
        "0.5087, 0.0100 (2.0 %) more than this one. The number of groups was chosen automatically, from the curve "
        "below."
    ) in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"proven": True, "method": "exact"}, "No grouping under the same conditions does better: proven (exact)."),
        (
            {"objective": "greedy", "method": "greedy-exhaustive", "bound": None, "least": None},
            "by the paper’s greedy search, one group after the other. The mean similarity within groups is 0.4987; the "
            "least alike pair in a group has 0.4012. How near this is to the best possible was not computed "
            "(greedy-exhaustive).",
        ),
        (
            {"objective": "bottleneck", "method": "search", "bound": 0.4212, "least": None},
            "no such grouping has a least alike pair above 0.4212, 0.0200 (5.0 %) more than this one.",
        ),
        ({"mean": -0.1, "bound": -0.05}, "similarity above −0.0500, 0.0500 more than this one."),
        ({"method": "given", "count_chosen": "given"}, "The groups were given to this run. The mean similarity"),
    ],
)
def test_claims_no_more_than_was_proven(
    told_folder: Path, edit_grouping: Edit, change: dict[str, Any], sentence: str
) -> None:
    edit_grouping(lambda grouping: grouping.update({"curve": None, "stability": None, **change}))
    text = plain(report(told_folder))
    assert sentence in text
    assert text.count("proven") == (
        0 if change.get("method") in ("given", "greedy-exhaustive") else 1 + ("bound" in change)
    )


def test_every_picture_is_there(page: Page) -> None:
    figures = [attributes["aria-labelledby"] or "" for tag, attributes in page.elements if tag == "svg"]
    assert [figure.split("-title")[0] for figure in figures] == [
        "similarity", "by-layer", "curve", "co-assignment", "sources", "layers", "curves",
    ]  # fmt: skip
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_all_pictures_have_the_languages_in_one_order(page: Page) -> None:
    text = page.text
    tags = re.findall(
        r"\b[a-z]{3}_(?:Latn|Cyrl|Arab|Hebr|Grek|Deva)\b", text[text.index("Similarity of the languages") :]
    )
    columns, rows = tags[:18], tags[18:36]
    assert columns == rows
    assert tags[36:54] == tags[54:72] == columns  # the co-assignment


def test_curve_is_given_in_numbers(page: Page) -> None:
    header = next(row for row in page.rows if [cell.strip() for cell in row][:1] == ["Groups"])
    assert [cell.strip() for cell in header] == ["Groups", "mean", "min", "held out", "gap", "chosen"]
    rows = [[cell.strip() for cell in row] for row in page.rows]
    assert ["2", "0.2000", "0.0400", "0.1400", "n/a", ""] in rows
    assert ["6", "0.4000", "0.1200", "0.3000", "0.6000", "yes"] in rows


def test_says_how_sure_the_groups_are(page: Page) -> None:
    text = plain(page)
    assert (
        "Grouped again on 100 resamples (bootstrap of the probe's steps), the languages fall into groups whose "
        "adjusted Rand index with these is 0.871 on average (1: the same groups; 0: alike as by chance). Between "
        "repeats of the probe it is 0.664. With their group mates in less than half of the "
        "resamples, averaged over them: Wolof."
    ) in text
    assert "Wolof 31 %" in text
    assert "Kiswahili 92 %" in text
    assert "Every language is" not in text


def test_says_so_where_every_language_is_sure(told_folder: Path, edit_grouping: Edit) -> None:
    edit_grouping(lambda grouping: grouping["stability"]["confidence"].update(wol_Latn=0.5))
    text = plain(report(told_folder))
    assert "Every language is with its group mates in at least half of the resamples" in text
    assert "in less than half" not in text


def test_families_are_counted_and_tested(page: Page, told_folder: Path, edit_grouping: Edit) -> None:
    text = plain(page)
    assert (
        "The adjusted Rand index of the groups with the languages’ families is 0.537; p = 0.00012, from 10,000 "
        "permutations of the families over the languages."
    ) in text
    assert "Jivaroan 3" in text
    edit_grouping(lambda grouping: grouping["families"]["families"].update(acu_Latn="Isolate"))
    assert "Jivaroan 2, Isolate 1" in plain(report(told_folder))


def test_sources_are_compared(page: Page) -> None:
    assert page.row("lexical") == ["lexical", "0.7000", "−0.0100", "0.412", "0.300", "n/a"]
    assert page.row("deviation used") == ["deviation used", "0.4987", "0.4012", "1.000", "0.537", "0.810"]


def test_columns_that_no_source_has_are_left_out(told_folder: Path, edit_grouping: Edit) -> None:
    def forget(grouping: dict[str, Any]) -> None:
        for source in grouping["sources"].values():
            source.update(family_auc=None, family_rand=None)

    edit_grouping(forget)
    assert report(told_folder).row("lexical") == ["lexical", "0.7000", "−0.0100", "0.412"]


def test_a_run_without_the_file_says_nothing_of_it(run_folder: Path) -> None:
    page = report(run_folder)
    for word in ("resample", "proven", "families", "How sure", "How many groups", "Similarities compared", "Left out"):
        assert word not in page.text


PARTS = ("stability", "families", "sources", "curve", "source")


def test_an_empty_file_is_no_file(told_folder: Path) -> None:
    (told_folder / "grouping.json").write_text("{}", encoding="utf-8")
    empty = report(told_folder).text
    (told_folder / "grouping.json").unlink()
    assert report(told_folder).text == empty


@pytest.mark.parametrize("part", [*PARTS, "mean", "bound", "method"])
def test_every_part_may_stand_alone(told_folder: Path, edit_grouping: Edit, part: str) -> None:
    edit_grouping(lambda grouping: [grouping.pop(name) for name in list(grouping) if name != part])
    page = report(told_folder)
    assert "Left out" not in page.text
    assert page.row("Українська")[1] == "ukr_Cyrl"


@pytest.mark.parametrize("value", ["<b>wrong</b>", 3, [1], {"a": {"b": []}}, [[]]])
def test_every_part_may_be_malformed(told_folder: Path, edit_grouping: Edit, value: object) -> None:
    edit_grouping(lambda grouping: grouping.update({**dict.fromkeys(PARTS, value), "source": 3}))
    page = report(told_folder)
    assert "Left out, as it could not be read: source: " in page.text
    assert "; curve.0: " in page.text
    assert page.count("b") == 0
    assert page.row("Українська")[1] == "ukr_Cyrl"


def test_a_file_of_another_run_breaks_nothing(told_folder: Path, edit_grouping: Edit) -> None:
    def rename(grouping: dict[str, Any]) -> None:
        stability = grouping["stability"]
        stability["tags"] = [f"x{tag}" for tag in stability["tags"]]
        stability["confidence"] = {f"x{tag}": value for tag, value in stability["confidence"].items()}

    edit_grouping(rename)
    page = report(told_folder)
    assert "co-assignment-title" not in str(page.elements)
    assert "0.871 on average" in page.text


def test_pairs_never_resampled_together_are_left_blank(told_folder: Path, edit_grouping: Edit) -> None:
    def forget(grouping: dict[str, Any]) -> None:
        grouping["stability"]["co_assignment"][0][1] = grouping["stability"]["co_assignment"][1][0] = None
        grouping["stability"]["confidence"]["wol_Latn"] = None

    edit_grouping(forget)
    page = report(told_folder)
    assert "Left out" not in page.text
    assert "How often two languages share a group" in page.text
    assert "Wolof 31" not in page.text.replace("\xa0", " ")


def test_nothing_in_the_files_is_markup(planned_folder: Path) -> None:
    evil = "<script>bad()</script>\u0007"

    def spoil(grouping: dict[str, Any]) -> None:
        grouping.update(source=evil, objective=evil, method=evil)
        grouping["stability"]["kind"] = evil
        grouping["families"]["families"]["acu_Latn"] = evil
        grouping["sources"][evil] = {"mean": 1.0}
        for row in grouping["curve"]:
            row[evil] = 0.5 * row["count"]

    path = planned_folder / "grouping.json"
    grouping = json.loads(path.read_text(encoding="utf-8"))
    spoil(grouping)
    path.write_text(json.dumps(grouping), encoding="utf-8")
    lexical = planned_folder / "similarity" / "lexical.csv"
    lexical.rename(lexical.with_name("<script>.csv"))
    page = report(planned_folder)
    assert page.count("script") == 1
    assert "\u0007" not in page.text
    # The sentence (source, objective, method), the kind, a family, a source, its heatmap, the curve and its table.
    assert page.text.count("<script>bad()</script>\ufffd") >= 9


def test_given_groups_may_still_be_compared(planned_folder: Path) -> None:
    for name in ("similarity.csv", "layers.csv", "events.jsonl"):
        (planned_folder / name).unlink()
    (planned_folder / "grouping.json").write_text('{"method": "given"}', encoding="utf-8")
    page = report(planned_folder)
    assert "No similarity was computed in this run" in page.text
    assert "The groups were given to this run." in page.text
    # The other sources in the order of the groups.
    assert "The similarity sources side by side" in page.text


def test_numbers_of_experts_are_shown(page: Page) -> None:
    assert "the groups share 2 to 6 experts in 3 of 4 layers" in page.text
    assert "Filled bars are the layers that got experts, their number above." in page.text
    rows = [[cell.strip() for cell in row] for row in page.rows]
    assert ["1", "0.3500", "0.3450", "1.000", "3"] in rows
    assert ["2", "0.2200", "0.1100", "0.000", "no"] in rows


def test_the_page_stays_light(page: Page, shared_planned_folder: Path) -> None:
    assert (shared_planned_folder / "report.html").stat().st_size < 400_000
