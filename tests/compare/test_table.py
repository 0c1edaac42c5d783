"""The table: every number of it computed by hand for a small comparison."""

from typing import Any

import pytest
from results import comparison

from sprachbund.compare.table import COLUMNS, change, changes_by_seed, legend, rows, short, spread, table


@pytest.fixture
def result() -> dict[str, Any]:
    return comparison()


def test_a_change_is_paired_by_seed(result: dict[str, Any]) -> None:
    found = change(result, "ours", against="dense")  # seed 1 only: 40 against 60
    assert found is not None
    assert found.mean == pytest.approx(40 / 60 - 1)
    assert found.all_positions == pytest.approx(40 / 60 - 1)
    assert found.worst == ("rus_Cyrl", pytest.approx(80 / 72 - 1))
    assert found.worse == 1


def test_without_a_common_seed_there_is_no_change(result: dict[str, Any]) -> None:
    assert change(result, "ours", against="wide") is None
    assert changes_by_seed(result, "ours", against="wide") == []


def test_changes_by_seed_under_other_routings(result: dict[str, Any]) -> None:
    assert changes_by_seed(result, "dense", against="ours", rival="top_k") == [pytest.approx(60 / 80 - 1)]
    assert changes_by_seed(result, "ours", against="dense", routing="top_k", kind="bits_per_byte") == [
        pytest.approx(80 / 61 - 1)
    ]


def test_the_rows_are_sorted_and_complete(result: dict[str, Any]) -> None:
    found = rows(result)
    assert [row[0] for row in found] == ["ours", "dense", "wide", "base"]
    assert all(len(row) == len(COLUMNS) for row in found)
    by_name = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in found}
    assert by_name["ours"]["learning rate"] == "0.01*"  # at the edge
    assert by_name["dense"]["learning rate"] == "0.01"
    assert by_name["dense"]["perplexity after burn-in"] == "60.00 ± 0.00"
    assert by_name["ours"]["perplexity"] == "44.00"
    assert by_name["ours"]["worst language"] == "rus_Cyrl +11.1%"
    assert by_name["wide"]["bits/byte after burn-in"] == "0.640"
    assert by_name["wide"]["parameters"] == "5M"
    assert by_name["wide"]["active"] == "2.5M"
    assert by_name["base"]["perplexity after burn-in"] == "100.00"


def test_every_routing_has_a_row_where_asked(result: dict[str, Any]) -> None:
    assert [row[:2] for row in rows(result, every_routing=True)] == [
        ["ours", "prefix"],
        ["dense", "dense"],
        ["wide", "group"],
        ["ours", "top_k"],
        ["base", "untrained"],
    ]


def test_markdown(result: dict[str, Any]) -> None:
    lines = table(result)
    assert lines[0].startswith(
        "| method | routing | learning rate | perplexity after burn-in | vs dense | worst language |"
    )
    assert lines[1].startswith("| --- | --- | ---: |")
    assert lines[2].startswith("| ours | prefix | 0.01* | 40.00 | -33.3% | rus_Cyrl +11.1% | 1 | 44.00 | -33.3% |")
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "2 languages" in legend(result)
    assert "2 seeds" in legend(result)


def test_against_another_method(result: dict[str, Any]) -> None:
    lines = table(result, against="wide")
    assert "vs wide" in lines[0]
    assert "| 60.00 ± 0.00 | -6.2% | rus_Cyrl +40.6% | 1 |" in lines[3]


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (394_000, "394k"), (1_575_000, "1.57M"), (999_700, "1e+03k"), (2.5e9, "2.5B")]
)
def test_short_numbers(number: float, text: str) -> None:
    assert short(number) == text.replace("1e+03k", "1000k")


def test_the_spread_is_the_standard_deviation() -> None:
    assert spread([1.0, 2.0, 3.0], digits=2) == "2.00 ± 1.00"
    assert spread([1.0], digits=1) == "1.0"
