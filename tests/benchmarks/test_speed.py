"""The benchmark of the whole: every case is measured beside dense, and its page is what the committed JSON says."""

from types import ModuleType

import pytest
from modules import BENCHMARKS, benchmark

PAGE = BENCHMARKS.parent / "docs/speed.md"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark with as little to do as there can be."""
    pipeline = benchmark("pipeline")
    for name, value in {"STEPS": 1, "ROUNDS": 1, "SCORED": 300, "NUM_GROUPS": 3}.items():
        monkeypatch.setattr(pipeline, name, value)
    return pipeline


def test_every_case_is_measured_beside_dense(small: ModuleType) -> None:
    found = small.speed()
    trained = {row["case"]: row for row in found["training"]}
    assert set(trained) == {"dense", "default, group", "native, group", "native, top_k", "copy, group", "copy, top_k"}
    assert trained["dense"]["of_dense"] == trained["dense"]["of_dense_by_flops"] == 1
    assert trained["copy, group"]["of_dense_by_flops"] == 1, "a copy costs what the FFN costs"
    assert trained["native, top_k"]["of_dense_by_flops"] < trained["native, group"]["of_dense_by_flops"] < 1
    assert {row["case"] for row in found["evaluation"]} == {
        "dense",
        *(f"{name}, {routing}" for name in ("default", "native", "copy") for routing in ("group", "prefix", "top_k")),
    }
    assert all(row["of_dense_by_flops"] <= 1 for row in found["evaluation"])
    assert len(found["bars"]) == 5 + 9


def test_a_bar_is_missed_by_what_is_slower(small: ModuleType) -> None:
    def rows(of_dense: float, cases: list[str]) -> list[dict[str, object]]:
        return [{"case": case, "of_dense": 1.0 if case == "dense" else of_dense} for case in cases]

    cases = ["dense", "default, group", "native, group", "copy, group", "native, top_k", "copy, top_k"]
    made = small.bars(rows(0.7, cases), rows(0.9, ["dense", "default, prefix"]))
    holds = {one["bar"].split(": ")[0]: one["holds"] for one in made}
    assert holds == {
        "training, default, group": False,
        "training, native, group": False,
        "training, copy, group": False,
        "training, native, top_k": True,
        "training, copy, top_k": True,
        "evaluation, default, prefix": True,
    }


def test_a_missed_bar_is_told_from_one_that_its_operations_miss() -> None:
    rows = [{"case": case, "of_dense_by_flops": share} for case, share in {"native": 0.7, "default": 0.95}.items()]
    bars = [
        {"bar": f"{case}: time over dense", "at_most": 1.25, "holds": holds}
        for case, holds in {"training, native": False, "training, default": True, "evaluation, default": False}.items()
    ]
    lines = benchmark("pipeline_tables").missed({"training": rows, "evaluation": rows, "bars": bars})
    computed, overhead = (line for line in lines if line)
    assert computed.endswith(": training, native (0.70).")
    assert overhead.endswith(": evaluation, default (0.95).")


def test_the_committed_page_is_generated_from_the_committed_measurements() -> None:
    assert PAGE.read_text(encoding="utf-8") == benchmark("pipeline_tables").page()
