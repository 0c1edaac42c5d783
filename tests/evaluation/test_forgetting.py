"""What the old languages lost: worst first, exact where nothing changed, and one plain sentence above the limit."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprachbund.evaluation.forgetting import (
    Change,
    fine_percent,
    forgetting,
    forgetting_table,
    forgetting_warning,
    mean_change,
)

BEFORE = 37.3


def score(perplexity: float) -> dict[str, float]:
    bits = math.log2(perplexity) / 3
    return {
        **{"perplexity": perplexity, "perplexity_after_burn_in": perplexity / 2},
        **{"bits_per_byte": bits, "bits_per_byte_after_burn_in": bits - 1 / 3},
    }


def language(*, new: bool = False, **changes: float) -> dict[str, Any]:
    """Return one language's entry; its perplexity changes by as much under each mode."""
    return {
        "new": new,
        "before": {mode: score(BEFORE) for mode in changes},
        "after": {mode: score(BEFORE if change == 0 else BEFORE * (1 + change)) for mode, change in changes.items()},
        "routed": {mode: 10 * abs(change) for mode, change in changes.items() if mode != "group"},
    }


SCORES = {
    "swh_Latn": language(group=0, prefix=0.002, counts=-0.01),
    "ell_Grek": language(group=0, prefix=0.004, counts=0.0),
    "mam_Latn": language(new=True, group=-0.9, prefix=-0.8, counts=-0.7),
    "zul_Latn": language(group=0, prefix=-0.001, counts=0.03),
}


def test_old_languages_are_sorted_worst_first_and_new_ones_are_apart() -> None:
    table = forgetting_table(SCORES)
    assert list(table) == ["group", "prefix", "counts"]
    assert [row.language for row in table["prefix"]] == ["ell_Grek", "swh_Latn", "zul_Latn"]
    assert [row.language for row in table["counts"]] == ["zul_Latn", "ell_Grek", "swh_Latn"]
    assert [row.change for row in table["group"]] == [0.0, 0.0, 0.0]
    assert [row.taken for row in table["group"]] == [None, None, None]
    worst = table["counts"][0]
    assert worst == Change(
        "zul_Latn", "counts", BEFORE, worst.perplexity, score(BEFORE)["bits_per_byte"], worst.bits_per_byte,
        pytest.approx(0.03), pytest.approx(0.03), 0.3,
    )  # fmt: skip
    assert worst.perplexity == pytest.approx(BEFORE * 1.03)
    assert {mode: [row.language for row in rows] for mode, rows in forgetting_table(SCORES, new=True).items()} == {
        "group": ["mam_Latn"], "prefix": ["mam_Latn"], "counts": ["mam_Latn"],
    }  # fmt: skip


def test_the_worst_over_all_modes_decides_and_new_languages_do_not() -> None:
    found = forgetting(SCORES)
    assert found["limit"] == 0.001
    assert (found["worst"]["language"], found["worst"]["mode"]) == ("zul_Latn", "counts")
    assert found["worst"]["change"] == pytest.approx(0.03)
    assert found["holds"] is False
    assert forgetting(SCORES, limit=0.031)["holds"] is True
    assert forgetting({"new": language(new=True, group=3.0)}) == {"limit": 0.001, "worst": None, "holds": True}
    assert forgetting({"old": language(group=0.0)}, limit=0.0) == {
        "limit": 0.0, "worst": {"language": "old", "mode": "group", "change": 0.0}, "holds": True,
    }  # fmt: skip


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(-0.9, 5.0), min_size=1))
def test_whatever_holds_holds_for_every_language(changes: dict[str, float]) -> None:
    scores = {tag: language(prefix=change) for tag, change in changes.items()}
    found = forgetting(scores, limit=0.5)
    every = [row.change for row in forgetting_table(scores)["prefix"] if row.change is not None]
    assert every == sorted(every, reverse=True)
    assert found["holds"] == all(change <= 0.5 for change in every)


def test_what_was_not_measured_before_is_last_and_decides_nothing() -> None:
    fresh = {**language(prefix=0.5), "before": {}}
    table = forgetting_table({"a": fresh, "b": language(prefix=-0.2)})
    assert [(row.language, row.perplexity_before) for row in table["prefix"]] == [("b", BEFORE), ("a", None)]
    assert table["prefix"][1].change is None
    assert forgetting({"a": fresh}) == {"limit": 0.001, "worst": None, "holds": True}


def test_a_perplexity_that_is_no_number_is_the_worst_and_never_holds() -> None:
    broken = language(prefix=0.0)
    broken["after"]["prefix"]["perplexity"] = math.nan
    found = forgetting({"a": language(prefix=9.0), "b": broken}, limit=100.0)
    assert found["worst"]["language"] == "b"
    assert found["holds"] is False


def test_the_mean_is_that_of_the_geometric_mean_of_perplexity() -> None:
    rows = forgetting_table({"a": language(prefix=1.0), "b": language(prefix=-0.5)})["prefix"]
    assert mean_change(rows) == pytest.approx(0.0, abs=1e-12)
    assert mean_change([]) is None


def test_the_warning_is_one_sentence_with_the_worst_case() -> None:
    assert forgetting_warning(forgetting(SCORES, limit=0.05)) is None
    assert forgetting_warning(forgetting(SCORES)) == (
        "warning: the model has forgotten: the perplexity of zul_Latn under counts changed by +3.00%, and "
        "--max-forgetting allows 0.10%; report.html has every language"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (0.0, "0"), (0.1234, "+12.3%"), (0.0123, "+1.23%"), (-0.001, "-0.10%"), (0.000008, "+0.0008%"),
        (-1e-9, "0.0000%"), (1e-9, "0.0000%"), (900.0, "+90000.0%"), (None, "n/a"), (math.nan, "n/a"),
        (math.inf, "n/a"),
    ],
)  # fmt: skip
def test_small_changes_are_shown_and_only_none_is_zero(change: float | None, text: str) -> None:
    assert fine_percent(change) == text
