"""docs/adapt-results.md is what the committed JSON says; bars and sections are checked on a small one made by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from modules import BENCHMARKS, benchmark

DOCS = BENCHMARKS.parent / "docs"
TAGS = ("mam_Latn", "est_Latn", "chr_Cher")
OLD = ("swh_Latn", "ukr_Cyrl")
WHERE = {"date": "2026-01-01", "commit": "abc", "hardware": "2 cores", "packages": {"torch": "2"}}


def test_the_guide_shows_what_was_measured() -> None:
    guide = (DOCS / "adapt.md").read_text(encoding="utf-8")
    made = benchmark("adapt_tables").guide(guide)
    assert made == guide
    assert "| **`full`** |" in made
    assert "| **`full`**, group given | 0, to the bit |" in made


def numbers(bits: float, **more: float) -> dict[str, float]:
    """Return the scores of a new language: after burn-in a tenth lower."""
    return {"bits_per_byte": bits, "bits_per_byte_after_burn_in": 0.9 * bits, **more}


def old(*levels: float, share: float = 0.0) -> dict[str, Any]:
    return {tag: {"perplexity": level, "share": share} for tag, level in zip(OLD, levels, strict=True)}


def entry(*tests: dict[str, Any], share: float = 1.0, **more: Any) -> dict[str, Any]:
    """Return a system's result in a language: a run per seed."""
    runs = [{"seed": seed, "share_of_dense": share, "test": test} for seed, test in enumerate(tests)]
    return {"learning_rate": 0.01, "runs": runs, **more}


def dense_test(bits: float) -> dict[str, Any]:
    return {"new": {"dense": numbers(bits)}, "old": {"dense": old(400.0, 900.0)}}


def path_test(bits: float) -> dict[str, Any]:
    """Return what a path came to: told nothing it loses 2%, and with the count gate 5%, of which none after burn-in."""
    new = {"group": numbers(bits)}
    for mode, loss in (("prefix", 1.02), ("counts", 1.05), ("top_k", 1.02)):
        new[mode] = {"bits_per_byte": loss * bits, "bits_per_byte_after_burn_in": 0.9 * bits, "share": 0.96}
    modes = {"prefix": old(10.0001, 20.0), "counts": old(10.0, 20.01, share=0.001), "top_k": old(11.0, 21.0)}
    switching = {
        "given": {"bits_per_byte": 2.0},
        "mixture": {"bits_per_byte": 2.2, "right_new": 0.7, "right_old": 0.6},
        "counts": {"bits_per_byte": 2.4, "right_new": 0.8, "right_old": 0.5},
        "off": {"bits_per_byte": 3.0},
    }
    domain = {mode: {"ukr_Cyrl": {"perplexity": 33.0, "share": 0.01}} for mode in ("prefix", "counts")}
    same = dict.fromkeys(OLD, True)
    return {"new": new, "old": modes, "identical": same, "domain": domain, "switching": switching}


@pytest.fixture
def result() -> dict[str, Any]:
    before = {
        "new": {tag: {"dense": numbers(4.0), "group": numbers(4.5)} for tag in TAGS},
        "old": {"dense": old(20.0, 30.0), "prefix": old(10.0, 20.0), "top_k": old(10.0, 20.0)},
        "domain": {"prefix": {"ukr_Cyrl": {"perplexity": 30.0, "share": 0.0}}},
        "bytes_per_token": dict.fromkeys(TAGS, 2.0),
        "bytes_per_token_merges": dict.fromkeys(TAGS, 4.0),
    }
    systems = {
        "dense": {tag: entry(dense_test(2.0), dense_test(1.0), grid={"0.01": 30.0}, edge=False) for tag in TAGS},
        "full": {tag: entry(path_test(2.004), path_test(0.99), share=0.6) for tag in TAGS},
        "lean": {"mam_Latn": entry(path_test(2.1), path_test(1.01), share=0.4)},
        "several": {"mam_Latn": entry(*({"2": {**path_test(b), "unchanged": True}} for b in (2.004, 0.99)))},
    }
    return {
        "languages": list(TAGS),
        "tokens": 1000,
        "merges": 8,
        "switch_with": "swh_Latn",
        "before": before,
        "systems": systems,
    }


@pytest.fixture
def bars() -> ModuleType:
    return benchmark("adapt_bars")


@pytest.fixture
def page(bars: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], str]:
    """A function that makes the page of a result."""
    tables = benchmark("adapt_tables")

    def make(found: dict[str, Any]) -> str:
        for module in (tables, benchmark("grouping_tables")):
            monkeypatch.setattr(module, "RESULTS", tmp_path)
        content = {**WHERE, "bars": bars.adapt_bars(found), "result": found}
        (tmp_path / "adapt.json").write_text(json.dumps(content))
        text: str = tables.page()
        return text

    return make


def found(made: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (one,) = [bar for bar in made if bar["bar"] == name]
    return one


def rows(page: str, first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose head begins with a cell, by their first cells."""
    (block,) = [block for block in page.split("\n\n") if block.startswith(f"| {first} |")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
    return {name: rest for name, *rest in cells}


def test_the_committed_page_is_generated_from_the_committed_measurements() -> None:
    assert (DOCS / "adapt-results.md").read_text(encoding="utf-8") == benchmark("adapt_tables").page()


def test_new_languages_are_compared_seed_by_seed(bars: ModuleType, result: dict[str, Any]) -> None:
    made = bars.adapt_bars(result)
    assert found(made, "mam_Latn: `full` against dense fine-tuning, %") == {
        "bar": "mam_Latn: `full` against dense fine-tuning, %",
        "values": [0.2, -1.0],
        "at_most": 1,
        "holds": True,
    }
    assert found(made, "mam_Latn: `lean` against dense fine-tuning, %")["values"] == [5.0, 1.0]
    assert not found(made, "mam_Latn: `lean` against dense fine-tuning, %")["holds"], "every seed has to hold"
    assert found(made, "est_Latn: told nothing, mixture, all positions, %")["values"] == [2.0, 2.0]
    assert found(made, "est_Latn: told nothing, counts, all positions, %")["values"] == [5.0, 5.0]
    assert found(made, "est_Latn: told nothing, counts, after 32 tokens, %")["values"] == [0.0, 0.0]
    names = " ".join(one["bar"] for one in made)
    assert "chr_Cher" not in names, "it is reported beside"
    assert "small" not in names, "what was not trained has no bar"


def test_old_languages_are_compared_with_the_same_routing_before(bars: ModuleType, result: dict[str, Any]) -> None:
    made = bars.adapt_bars(result)
    assert found(made, "old languages after mam_Latn: mixture, worst, %")["values"] == [0.001, 0.001]
    assert found(made, "old languages after mam_Latn: mixture, mean, %")["values"] == [0.0005, 0.0005]
    assert found(made, "old languages after est_Latn: counts, worst, %")["values"] == [0.05, 0.05], "prefix was before"
    assert found(made, "old languages after est_Latn: counts, mean, %")["values"] == [0.025, 0.025]
    assert found(made, "old languages after est_Latn: counts, mean, %")["holds"] is False


def test_a_changed_bit_fails(bars: ModuleType, result: dict[str, Any]) -> None:
    name, later = "old languages after mam_Latn: logits changed, group given", "with further languages: "
    assert found(bars.adapt_bars(result), name)["holds"]
    runs = result["systems"]["full"]["mam_Latn"]["runs"]
    runs[1]["test"]["identical"]["ukr_Cyrl"] = False
    stage = result["systems"]["several"]["mam_Latn"]["runs"][0]["test"]["2"]
    stage["unchanged"] = False
    made = bars.adapt_bars(result)
    assert found(made, name) == {"bar": name, "values": [0.0, 1.0], "at_most": 0, "holds": False}
    assert not found(made, f"{later}times that the first one's logits changed")["holds"]
    assert found(made, f"{later}old languages whose logits changed")["holds"]


def test_a_rate_at_the_edge_fails(bars: ModuleType, result: dict[str, Any]) -> None:
    name = "grids whose best learning rate is at their edge"
    assert found(bars.adapt_bars(result), name)["holds"]
    result["systems"]["dense"]["est_Latn"]["edge"] = True
    assert found(bars.adapt_bars(result), name)["values"] == [1.0]


def test_the_page_has_means_over_seeds(page: Callable[[dict[str, Any]], str], result: dict[str, Any]) -> None:
    text = page(result)
    new = rows(text, "bits per byte, all positions")
    assert new["dense fine-tuning of everything"] == ["100%", *["1.5000", ""] * 3]
    assert new["**`full`**"] == ["60%", *["1.4970", "-0.4%"] * 3]
    assert new["`lean`: a path of at most 40% of dense"] == ["40%", "1.5550", "+3.0%", "", "", "", ""]
    lost = rows(text, "old perplexity, all positions")
    assert lost["dense fine-tuning of everything"] == ["x24", "x30"] * 3
    assert lost["**`full`**, told nothing, mixture"] == ["+0.0005%", "+0.0010%"] * 3
    assert lost["**`full`**, group given"] == ["0, to the bit", ""] * 3
    assert rows(text, "against the group given")["told nothing, counts"][:4] == [
        "+5.00%",
        "+0.000%",
        "96.00%",
        "0.100%",
    ]
    assert "| mam_Latn | without the path | 3.0000 | +50.0% |  |  |" in text
    assert "| mam_Latn | ukr_Cyrl | 1.00% | +10.0000% | 1.00% | +10.0000% |" in text
    assert "| dense | mam_Latn | 0.01: 30.00 | 0.01 |" in text
    assert "| 2 languages | yes | yes |" in text


def test_larger_budgets_and_vocabularies_are_compared_with_their_like(
    page: Callable[[dict[str, Any]], str], result: dict[str, Any]
) -> None:
    result["systems"]["dense-2x"] = {"mam_Latn": entry(dense_test(0.5), dense_test(0.5))}
    result["systems"]["full-2x"] = {"mam_Latn": entry(path_test(0.6), path_test(0.6))}
    new = rows(page(result), "bits per byte, all positions")
    assert new["`full`, 2x the tokens"][1:3] == ["0.6000", "+20.0%"]
    assert new["dense, 2x the tokens"][1:3] == ["0.5000", ""]


def test_what_is_not_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = benchmark("adapt_tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.page().endswith("\nNot measured yet.\n")
