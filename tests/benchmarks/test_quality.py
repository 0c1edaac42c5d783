"""What the benchmark scripts compute from the JSON of a comparison, on a small one made by hand."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from comparisons import TAGS, comparison, dense, entry, even
from modules import BENCHMARKS, benchmark

from sprachbund.compare.methods import BaseSizes, methods_of
from sprachbund.recipe_file import load_recipe

EXAMPLES = BENCHMARKS.parent / "examples"


@pytest.fixture
def bars() -> ModuleType:
    return benchmark("quality_bars")


@pytest.fixture
def result() -> dict[str, Any]:
    uneven = {**even(15.0), TAGS[3]: 21.0}
    return comparison(
        {
            "dense": dense(even(20.0)),
            "dense-tag": dense(even(19.0), seeds=(1,)),
            "upcycling": entry(even(18.0), headline="top_k", total=250),
            "ensemble": entry(even(16.0), system="ensemble", headline="group", total=600),
            "default": entry(uneven),
            "shared-6": entry(even(10.0)),
            "half": entry(even(12.0), seeds=(0,)),
        }
    )


def found(bars: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (one,) = [bar for bar in bars if bar["bar"] == name]
    return one


def test_changes_pair_the_seeds_that_both_have(bars: ModuleType, result: dict[str, Any]) -> None:
    # 15, 15, 15 and 21 have the geometric mean 16.316: seed 1 is a tenth worse on both sides, which cancels
    ours = (15**3 * 21) ** 0.25
    assert bars.changes(result, "default", "dense") == pytest.approx([ours / 20 - 1] * 2)
    assert bars.changes(result, "default", "dense-tag") == pytest.approx([ours / 19 - 1])
    assert bars.changes(result, "default", "dense", tags=TAGS[:2]) == pytest.approx([-0.25] * 2)
    assert bars.changes(result, "default", "dense", routing="top_k") == pytest.approx([1.5 * ours / 20 - 1] * 2)


def test_a_rival_is_taken_under_its_best_routing(bars: ModuleType, result: dict[str, Any]) -> None:
    assert bars.best_routing(result, "ensemble") == "group"
    assert bars.best_routing(result, "upcycling") == "top_k"
    assert bars.changes(result, "shared-6", "ensemble") == pytest.approx([10 / 16 - 1] * 2)
    given = bars.changes(result, "shared-6", "ensemble", rival_routing="prefix")
    assert given == pytest.approx([10 / 24 - 1] * 2)


def test_the_worst_language_is_that_of_each_seed(bars: ModuleType, result: dict[str, Any]) -> None:
    assert bars.worst_language(result, "default", "dense") == pytest.approx([0.05, 0.05])


def test_what_half_the_experts_lose_of_the_gain(bars: ModuleType, result: dict[str, Any]) -> None:
    # dense 20, whole 10, half 12: eight of ten are kept
    assert bars.lost_gain(result, "half", "shared-6") == pytest.approx([0.2])


def test_bars_hold_for_every_seed_or_not_at_all(bars: ModuleType, result: dict[str, Any]) -> None:
    made = bars.bible_bars(result)
    assert found(made, "default against dense") == {
        "bar": "default against dense",
        "values": [-0.1842, -0.1842],
        "at_most": -0.22,
        "holds": False,
    }
    assert found(made, "half the experts' width: share of the gain lost")["holds"]
    assert found(made, "default: worst language against dense")["values"] == [0.05, 0.05]
    assert found(made, "default: total parameters, times dense")["values"] == [3.0]
    assert found(made, "default: total parameters, times one model per group") | {"bar": ""} == {
        "bar": "",
        "values": [0.5],
        "at_most": 0.67,
        "holds": True,
    }
    names = [one["bar"] for one in made]
    assert "default against the preset paper" not in names, "what was not trained has no bar"
    assert not any("native" in name for name in names)


def test_a_rate_at_the_edge_of_its_grid_fails(bars: ModuleType, result: dict[str, Any]) -> None:
    name = "methods whose best learning rate is at the edge of its grid"
    assert found(bars.bible_bars(result), name)["holds"]
    result["methods"]["dense"]["edge"] = True
    assert found(bars.bible_bars(result), name) == {"bar": name, "values": [1], "at_most": 0, "holds": False}


def test_the_bars_of_unequal_text_are_of_tiers(bars: ModuleType, result: dict[str, Any]) -> None:
    full, small = TAGS[:2], TAGS[2:]
    result["methods"]["per-language"] = entry({**even(30.0, full), **even(9.0, small)})
    made = bars.unequal_bars(result, {"all": full, "1/10": small[:1], "1/30": small[1:]})
    ours = (15 * 21) ** 0.5
    assert found(made, "default against dense, languages with little text")["values"] == [round(ours / 20 - 1, 4)] * 2
    assert found(made, "default against dense, languages with all their text")["values"] == [-0.25, -0.25]
    assert found(made, "default against the best with little text (per-language)")["values"][0] == round(
        ours / 9 - 1, 4
    )
    assert found(made, "default against the best with all text (shared-6)")["values"][0] == 0.5


def test_the_tiers_are_read_from_the_recipe() -> None:
    tiers = benchmark("quality").tiers(load_recipe(EXAMPLES / "bible-18-unequal.yaml"))
    assert list(tiers) == ["all", "1/10", "1/30"]
    assert [len(tags) for tags in tiers.values()] == [6, 6, 6]
    families = {tag: source.family for tag, source in load_recipe(EXAMPLES / "bible-18-unequal.yaml").languages.items()}
    assert all(len({families[tag] for tag in tags}) == 6 for tags in tiers.values()), "one of each size in a family"


def test_what_is_committed_has_the_bars_of_its_kind(result: dict[str, Any]) -> None:
    quality = benchmark("quality")
    recipe = load_recipe(EXAMPLES / "bible-18.yaml")
    content = quality.evaluated("bible-18", recipe, result)
    assert content["result"] is result
    assert {"date", "hardware", "commit", "packages"} <= set(content)
    assert len(content["bars"]) > 5
    assert quality.evaluated("curse", recipe, {"schema": 1})["bars"] == []
    assert set(quality.EXAMPLES.values()) <= {path.stem for path in EXAMPLES.glob("*.yaml")}


@pytest.mark.parametrize("name", ["bible-18", "bible-18-survey", "bible-18-unequal", "curse"])
def test_the_methods_of_the_examples_are_there(name: str) -> None:
    recipe = load_recipe(EXAMPLES / f"{name}.yaml")
    methods = methods_of(recipe, BaseSizes(num_layers=4, hidden=64, ffn=256))
    assert recipe.compare is not None
    assert len(methods) == len(recipe.compare.methods), "none is left out as impossible"


def test_the_example_trains_every_method_that_a_bar_needs(bars: ModuleType) -> None:
    recipe = load_recipe(EXAMPLES / "bible-18.yaml")
    assert recipe.compare is not None
    made = {}
    for item in recipe.compare.methods:
        name = item if isinstance(item, str) else next(iter(item))
        made[name] = dense(even(20.0)) if name in ("dense", "dense-tag") else entry(even(15.0))
    made["half"], made["quarter"] = entry(even(16.0)), entry(even(17.0))
    every = bars.bible_bars(comparison(made))
    assert len(every) == 19
    for name in ("dense-tag", "native-random", "quarter"):
        without = {method: result for method, result in made.items() if method != name}
        assert len(bars.bible_bars(comparison(without))) == 18, name


def test_without_a_gpu_it_is_skipped_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quality_gpu = benchmark("quality_gpu")
    monkeypatch.setattr(quality_gpu, "device", lambda: None)
    with pytest.raises(SystemExit, match=r"skipped: there is no CUDA device here"):
        quality_gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_gpu_comparison_runs_at_toy_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sprachbund.compare.engine import compare

    quality_gpu = benchmark("quality_gpu")

    def in_this_process(recipe: Path, folder: Path, arguments: list[str]) -> float:
        assert arguments == ["--workers", "1"]
        compare(load_recipe(recipe), folder, workers=1)
        return 1.0

    monkeypatch.setattr(quality_gpu, "compare", in_this_process)
    quality_gpu.main(["--out", str(tmp_path / "out"), "--smoke"])
    content = json.loads((tmp_path / "out/quality-gpu.json").read_text())
    assert set(content["result"]["methods"]) == {"dense", "default", "default-3"}
    sizes = {name: method["parameters"]["total"] for name, method in content["result"]["methods"].items()}
    assert sizes["dense"] < sizes["default"] < sizes["default-3"]
