from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.corpora.mixture import schedule, shares
from sprachbund.errors import InputError
from sprachbund.recipe import Mixture

BYTES = {"swh_Latn": 1000, "zul_Latn": 10, "deu_Latn": 100_000}


def test_temperature_is_a_power_of_the_bytes() -> None:
    found = shares(BYTES, Mixture(temperature=0.5))
    assert list(found) == list(BYTES)
    assert sum(found.values()) == pytest.approx(1)
    assert found["deu_Latn"] / found["swh_Latn"] == pytest.approx(10)
    assert shares(BYTES, Mixture(temperature=0)) == pytest.approx(dict.fromkeys(BYTES, 1 / 3))
    assert shares(BYTES, Mixture(temperature=1))["zul_Latn"] == pytest.approx(10 / 101_010)


def test_unimax_caps_the_epochs_of_the_small_and_is_even_for_the_rest() -> None:
    found = shares(BYTES, Mixture(method="unimax", max_epochs=4), budget_bytes=9000)
    drawn = {tag: 9000 * share for tag, share in found.items()}
    # zul: 4 x 10; swh: min((9000 - 40) / 2, 4 x 1000); deu: what is left
    assert drawn == pytest.approx({"zul_Latn": 40, "swh_Latn": 4000, "deu_Latn": 4960})


def test_unimax_is_uniform_for_a_small_budget_and_as_the_bytes_for_an_endless_one() -> None:
    unimax = Mixture(method="unimax", max_epochs=2)
    assert shares(BYTES, unimax, budget_bytes=30) == pytest.approx(dict.fromkeys(BYTES, 1 / 3))
    assert shares(BYTES, unimax, budget_bytes=1e12) == pytest.approx(shares(BYTES, Mixture(temperature=1)))


def test_given_shares_are_normalised() -> None:
    mixture = Mixture(method="given", shares={"deu_Latn": 2, "swh_Latn": 1, "zul_Latn": 1})
    assert shares(BYTES, mixture) == pytest.approx({"swh_Latn": 0.25, "zul_Latn": 0.25, "deu_Latn": 0.5})


def test_balanced_groups_get_the_same_and_share_it_out_inside() -> None:
    groups = {"swh_Latn": 3, "zul_Latn": 3, "deu_Latn": 7}
    found = shares(BYTES, Mixture(temperature=1), groups=groups)
    assert found == pytest.approx({"swh_Latn": 0.5 * 1000 / 1010, "zul_Latn": 0.5 * 10 / 1010, "deu_Latn": 0.5})
    free = Mixture(temperature=1, balance_groups=False)
    assert shares(BYTES, free, groups=groups) == shares(BYTES, free)


def test_unimax_in_balanced_groups_spends_the_group_s_part_of_the_budget() -> None:
    groups = {"swh_Latn": 0, "zul_Latn": 0, "deu_Latn": 1}
    found = shares(BYTES, Mixture(method="unimax", max_epochs=4), groups=groups, budget_bytes=2000)
    assert found == pytest.approx({"zul_Latn": 40 / 2000, "swh_Latn": 960 / 2000, "deu_Latn": 0.5})


def test_what_shares_refuse() -> None:
    with pytest.raises(InputError, match="zul_Latn has no training text"):
        shares({**BYTES, "zul_Latn": 0}, Mixture())
    with pytest.raises(InputError, match="no share for zul_Latn, deu_Latn"):
        shares(BYTES, Mixture(method="given", shares={"swh_Latn": 1}))
    with pytest.raises(ValueError, match="budget_bytes"):
        shares(BYTES, Mixture(method="unimax"))
    with pytest.raises(ValueError, match="groups leave out zul_Latn"):
        shares(BYTES, Mixture(), groups={"swh_Latn": 0, "deu_Latn": 0})


def running_counts(rows: np.ndarray, num_languages: int) -> np.ndarray:
    return np.stack([np.bincount(row, minlength=num_languages) for row in rows]).cumsum(axis=0)


weights = st.lists(st.floats(1e-3, 1), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(weights=weights, num_steps=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 9))
def test_every_running_count_is_within_one_of_its_target(
    weights: list[float], num_steps: int, batch_size: int, seed: int
) -> None:
    share = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    rows = schedule(share, num_steps=num_steps, batch_size=batch_size, seed=seed)
    assert rows.shape == (num_steps, batch_size)
    target = np.outer(np.arange(1, num_steps + 1) * batch_size, list(share.values()))
    assert np.abs(running_counts(rows, len(share)) - target).max() < 1 + 1e-5
    assert (np.diff(rows, axis=1) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(weights=weights, num_groups=st.integers(1, 4), batch_size=st.integers(1, 20), data=st.data())
def test_groups_and_then_languages_follow_their_shares(
    weights: list[float], num_groups: int, batch_size: int, data: st.DataObject
) -> None:
    share = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    group = {tag: data.draw(st.integers(0, num_groups - 1)) for tag in share}
    rows = schedule(share, num_steps=40, batch_size=batch_size, seed=0, groups=group)
    counts = running_counts(rows, len(share))
    slots = np.arange(1, 41) * batch_size
    for number in set(group.values()):
        members = [i for i, tag in enumerate(share) if group[tag] == number]
        total = sum(share[str(i)] for i in members)
        of_group = counts[:, members].sum(axis=1)
        assert np.abs(of_group - slots * total).max() < 1 + 1e-5
        for i in members:
            assert np.abs(counts[:, i] - of_group * share[str(i)] / total).max() < 1 + 1e-5
    keys = [[(group[str(i)], i) for i in row] for row in rows.tolist()]
    assert all(left <= right for row in keys for left, right in pairwise(row))


def test_balanced_groups_are_equal_in_every_step_where_the_batch_divides() -> None:
    group = {"a": 1, "b": 0, "c": 1, "d": 0, "e": 2}
    share = {"a": 0.3, "b": 1 / 6, "c": 1 / 3 - 0.3, "d": 1 / 6, "e": 1 / 3}
    rows = schedule(share, num_steps=50, batch_size=6, seed=0, groups=group)
    of_group = np.array([1, 0, 1, 0, 2])[rows]
    assert (of_group == [0, 0, 1, 1, 2, 2]).all()
    assert np.bincount(rows.ravel()).tolist() == [90, 50, 10, 50, 100]


def test_a_small_language_comes_evenly_and_not_by_luck() -> None:
    rows = schedule({"big": 0.99, "small": 0.01}, num_steps=100, batch_size=10, seed=0)
    where = np.flatnonzero((rows == 1).any(axis=1))
    assert len(where) == 10
    assert (where // 10 == np.arange(10)).all()


def test_the_seed_only_breaks_ties_and_the_same_seed_gives_the_same() -> None:
    share = dict.fromkeys("abcdefg", 1 / 7)
    first, again, other = (schedule(share, num_steps=20, batch_size=4, seed=seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    assert max(Counter(first.ravel().tolist()).values()) - min(Counter(first.ravel().tolist()).values()) <= 1


def test_what_schedule_refuses() -> None:
    for wrong in ({}, {"a": 0.5}, {"a": 1.0, "b": 0.0}):
        with pytest.raises(ValueError, match="sum to 1"):
            schedule(wrong, num_steps=1, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="groups leave out b"):
        schedule({"a": 0.5, "b": 0.5}, num_steps=1, batch_size=1, seed=0, groups={"a": 0})
