"""docs/comparison.md is what the committed JSON says; the sections are checked on a small one made by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
from comparisons import TAGS, comparison, dense, entry, even
from modules import BENCHMARKS, benchmark

DOCS = BENCHMARKS.parent / "docs"
WHERE = {
    "date": "2026-01-01",
    "commit": "abc",
    "hardware": "2 cores",
    "packages": {"sprachbund": "0", "torch": "2"},
    "bars": [],
}
Write = Callable[..., None]


@pytest.fixture
def tables() -> ModuleType:
    return benchmark("quality_tables")


@pytest.fixture
def write(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that puts a measurement where the tables look for it; there are no others."""
    for module in (tables, benchmark("grouping_tables")):
        monkeypatch.setattr(module, "RESULTS", tmp_path)

    def write_one(name: str, result: dict[str, Any], **more: Any) -> None:
        (tmp_path / f"quality-{name}.json").write_text(json.dumps({**WHERE, "result": result, **more}))

    return write_one


def rows(page: str, first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose head begins with a cell, by their first cells."""
    (block,) = [block for block in page.split("\n\n") if block.startswith(f"| {first} |")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return {name: rest for name, *rest in cells}


def test_the_committed_page_and_figures_are_generated_from_the_committed_measurements(tables: ModuleType) -> None:
    pages = tables.pages()
    assert {path.name for path in DOCS.glob("comparison*")} | {"experiments.md"} == set(pages)
    for name, text in pages.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, name


def test_what_has_not_been_measured_has_no_section(tables: ModuleType, write: Write) -> None:
    (page,) = tables.pages().values()
    assert page.startswith("# Side by side\n")
    assert "\n## " not in page


def test_a_comparison_has_its_table_its_figure_and_its_bars(tables: ModuleType, write: Write) -> None:
    bar = {"bar": "default against dense", "values": [-0.25, -0.2], "at_most": -0.22, "holds": False}
    result = comparison({"dense": dense(even(20.0)), "default": entry(even(15.0))})
    write("bible-18", result, bars=[bar])
    pages = tables.pages()
    assert set(pages) == {"comparison.md", "comparison-bible-18.svg"}
    page = pages["comparison.md"]
    assert "| default against dense | -0.25, -0.2 | -0.22 | **no** |" in page
    assert "](comparison-bible-18.svg)" in page
    assert "Measured 2026-01-01 on 2 cores (torch 2), commit abc." in page
    assert "-25.0%" in page
    ElementTree.fromstring(pages["comparison-bible-18.svg"].encode())


def test_what_native_missed_is_told_with_the_figures_and_what_was_tried(tables: ModuleType, write: Write) -> None:
    missed = {"bar": "native, `prefix`, against default, `prefix`", "values": [0.5], "at_most": 0.02, "holds": False}
    levels = {"default": 10.0, "shared-6": 12.0, "shared-6-random": 16.0, "native": 15.0, "native-random": 20.0}
    result = comparison({"dense": dense(even(20.0)), **{name: entry(even(level)) for name, level in levels.items()}})
    write("bible-18", result, bars=[missed])
    page = tables.pages()["comparison.md"]
    assert "`native` under `prefix` is +50.0% against the default" in page
    assert "is +20.0% against the default; against `shared-6`, native is +25.0%" in page
    assert "native's groups are worth -25.0% against random ones" in page
    assert "as it is" not in page
    write("survey", result, bars=[])
    page = tables.pages()["comparison.md"]
    assert (
        "| `native`: as it is: a tenth by group, then `top_k` with a weak router loss | +12.5% | -25.0% | +50.0% |"
        in page
    )
    assert "The nearest under" not in page, "one variant says nothing"
    tried = {"native-alternate": 12.0, "native-last": 16.0, "native-last-random": 20.0}
    more = {**result["methods"], **{name: entry(even(level)) for name, level in tried.items()}}
    write("survey", comparison(more), bars=[])
    page = tables.pages()["comparison.md"]
    assert "The nearest under `prefix`, `native-alternate`, is +20.0% against the default, and -20.0% against" in page
    assert "random groups, `top_k`: -20.0%), and that router gains less (against `native`: +6.7%)" in page
    write("bible-18", result, bars=[{**missed, "holds": True}])
    assert "missed" not in tables.pages()["comparison.md"]


def test_unequal_text_is_told_by_tier(tables: ModuleType, write: Write) -> None:
    full, small = TAGS[:2], TAGS[2:]
    methods = {
        "dense": dense(even(20.0)),
        "shared-6": entry({**even(10.0, full), **even(18.0, small)}),
        "shared-6-random": entry({**even(12.5, full), **even(15.0, small)}),
    }
    write("unequal", comparison(methods), tiers={"all": full, "1/10": small[:1], "1/30": small[1:]})
    page = tables.pages()["comparison.md"]
    levels = rows(page, "perplexity after burn-in")
    # a mean over two seeds, of which the second is a tenth worse
    assert levels["shared-6"] == ["10.50", "-50.0%", "18.90", "-10.0%", "18.90", "-10.0%", "-10.0%"]
    assert levels["dense"] == ["21.00", "", "21.00", "", "21.00", "", ""]
    pairs = rows(page, "")
    random = pairs["families against random groups"]
    assert random == ["-20.0% (-20.0% to -20.0%)", *["+20.0% (+20.0% to +20.0%)"] * 2, "2 of 4"]
    assert not any("hierarchy" in what for what in pairs), "a pair of which one was not trained has no row"


def test_the_curse_is_told_by_number_of_languages(tables: ModuleType, write: Write) -> None:
    first = TAGS[:2]
    counts = {
        "2": comparison({"dense": dense(even(20.0, first)), "default": entry(even(18.0, first))}, tags=first),
        "4": comparison({"dense": dense(even(40.0)), "default": entry(even(20.0))}),
    }
    write("curse", {"schema": 1, "recipe": "small", "fixed": list(first), "counts": counts})
    pages = tables.pages()
    assert set(pages) == {"comparison.md", "comparison-curse.svg"}
    found = rows(pages["comparison.md"], "languages")
    assert found == {"2": ["21.00", "18.90", "-10.0%"], "4": ["42.00", "21.00", "-50.0%"]}


def test_the_survey_tells_what_a_mixture_is_worth_under_every_routing(tables: ModuleType, write: Write) -> None:
    result = comparison({"dense": dense(even(20.0)), "default": entry(even(15.0)), "native": entry(even(16.0))})
    write("survey", result)
    pages = tables.pages()
    assert set(pages) == {"comparison.md", "comparison-survey.svg"}
    page = pages["comparison.md"]
    block = page[page.index("under every routing: the change") :]
    assert block.splitlines()[2] == "| method | `group` | `prefix` | `top_k` |"
    routed = [line.split(" | ")[0] for line in block.splitlines()[4:] if line.startswith("|")]
    assert routed == ["| default", "| native"], "dense has no routing"
    assert "-25.0%" in block
    assert "What had to be reached" not in page


def test_the_plain_answer_is_in_words_and_says_where_seeds_disagree(tables: ModuleType, write: Write) -> None:
    full, small = TAGS[:2], TAGS[2:]
    tiers = {"all": full, "1/10": small}
    names = ("shared-6", "shared-6-random", "per-language", "hierarchy", "hierarchy-random", "default")
    methods = {"dense": dense(even(20.0)), **{name: entry(even(15.0)) for name in names}}
    methods["shared-6-random"] = entry({**even(12.0, full), **even(20.0, small)})
    # seed 0 a tenth better than the hierarchy's, seed 1 a tenth worse
    methods["hierarchy-random"] = entry(even(15.0))
    for run, factor in zip(methods["hierarchy-random"]["runs"], (0.9, 1.1), strict=True):
        for one in run["test"]["prefix"]["languages"].values():
            one["perplexity_after_burn_in"] *= factor
    write("unequal", comparison(methods), tiers=tiers)
    page = tables.pages()["comparison.md"]
    assert "against random groups: 25.0% worse (all text), 25.0% better (little text)." in page
    assert "families against random groups: between -9.1% and +11.1%, no difference (all text)" in page
    del methods["default"]
    write("unequal", comparison(methods), tiers=tiers)
    assert "plain answer" not in tables.pages()["comparison.md"]
