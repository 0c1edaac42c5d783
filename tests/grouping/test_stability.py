from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping, group
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.stability import adjusted_rand, co_assignment, perturbed, stability


def grouping(*groups: str) -> Grouping:
    return Grouping(tuple(map(tuple, groups)))


def from_labels(labels: list[int]) -> Grouping:
    return Grouping(tuple(tuple(f"l{i}" for i, own in enumerate(labels) if own == label) for label in set(labels)))


def planted(blocks: list[str], *, noise: float = 0.0, seed: int = 0) -> Similarity:
    tags = "".join(blocks)
    family = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    values_LL = (family[:, None] == family[None, :]) * 1.0
    noise_LL = np.triu(np.random.default_rng(seed).normal(size=values_LL.shape), k=1) * noise
    return Similarity(tuple(tags), values_LL + noise_LL + noise_LL.T)


two = partial(group, num_groups=2)


def blocks(similarity: Similarity) -> Grouping:
    """The groups as they are planted, of whatever sizes."""
    rows = [
        tuple(tag for tag, value in zip(similarity.tags, row, strict=True) if value) for row in similarity.values_LL
    ]
    return Grouping(tuple(dict.fromkeys(rows)))


def test_rand_of_a_table_worked_by_hand() -> None:
    # Table [[2, 1], [0, 3]]: 1 + 3 pairs together in both, 6 and 7 in each, 15 in all: (4 - 2.8) / (6.5 - 2.8).
    first, second = grouping("abc", "def"), grouping("ab", "cdef")
    assert adjusted_rand(first, second) == pytest.approx(1.2 / 3.7)
    assert adjusted_rand(second, first) == adjusted_rand(first, second)


def test_rand_ignores_the_numbers_of_groups_and_the_order_of_languages() -> None:
    assert adjusted_rand(grouping("abc", "def"), grouping("fde", "cab")) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (("a", "b", "c"), ("c", "b", "a"), 1.0),
        (("abc",), ("cab",), 1.0),
        (("a", "b", "c"), ("abc",), 0.0),
        (("a", "b", "c"), ("ab", "c"), 0.0),
        (("abc",), ("ab", "c"), 0.0),
        (("a",), ("a",), 1.0),
    ],
)
def test_rand_of_trivial_partitions(first: tuple[str, ...], second: tuple[str, ...], expected: float) -> None:
    assert adjusted_rand(grouping(*first), grouping(*second)) == expected


def test_rand_needs_the_same_languages() -> None:
    with pytest.raises(InputError, match="the language 'c'"):
        adjusted_rand(grouping("ab"), grouping("ab", "c"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_rand_is_at_most_1_and_reached_by_equal_partitions_alone(pairs: list[tuple[int, int]]) -> None:
    first, second = from_labels([a for a, _ in pairs]), from_labels([b for _, b in pairs])
    value = adjusted_rand(first, second)
    equal = {frozenset(g) for g in first.groups} == {frozenset(g) for g in second.groups}
    assert value == pytest.approx(1.0) if equal else value < 1.0


def test_rand_of_random_groupings_is_0_on_average() -> None:
    rng = np.random.default_rng(0)
    values = [
        adjusted_rand(from_labels(rng.permutation(12) // 3), from_labels(rng.permutation(12) // 4)) for _ in range(400)
    ]
    assert abs(float(np.mean(values))) < 0.02


def test_co_assignment_is_a_share_of_the_groupings_that_have_both() -> None:
    shares_LL = co_assignment([grouping("ab", "c"), grouping("a", "bc"), grouping("ab")], ["a", "b", "c", "d"])
    np.testing.assert_allclose(shares_LL[0, :3], [1, 2 / 3, 0])
    np.testing.assert_allclose(shares_LL[1, :3], [2 / 3, 1, 1 / 2])
    assert np.isnan(shares_LL[3]).all()
    np.testing.assert_array_equal(shares_LL, shares_LL.T)


def test_what_always_groups_the_same_is_certain() -> None:
    reference = grouping("abc", "def")
    found = stability(reference, [planted(["abc", "def"], noise=0.1, seed=seed) for seed in range(5)], solve_one=two)
    assert found.mean_rand == 1.0
    assert found.confidence == dict.fromkeys("abcdef", 1.0)
    np.testing.assert_array_equal(found.co_assignment_LL, planted(["abc", "def"]).values_LL)
    assert found.tags == tuple("abcdef")
    assert [{frozenset(g) for g in again.groups} for again in found.groupings] == [
        {frozenset("abc"), frozenset("def")}
    ] * 5


def test_the_language_that_changes_sides_is_the_uncertain_one() -> None:
    replicates = [
        planted(["abcx", "def"]),
        planted(["abc", "defx"]),
        planted(["abcx", "def"]),
        planted(["abc", "xdef"]),
    ]
    found = stability(grouping("abcx", "def"), replicates, solve_one=blocks)
    assert found.confidence["x"] == 0.5
    assert found.confidence["d"] == 1.0
    assert found.confidence["a"] == pytest.approx((1 + 1 + 0.5) / 3)
    moved = adjusted_rand(grouping("abcx", "def"), grouping("abc", "defx"))
    assert found.mean_rand == pytest.approx((1 + moved) / 2)


def test_a_language_alone_is_as_certain_as_it_is_often_alone() -> None:
    replicates = [planted(["ab", "c"]), planted(["a", "bc"]), planted(["ab", "c"]), planted(["ab", "c"])]
    found = stability(grouping("ab", "c"), replicates, solve_one=blocks)
    assert found.confidence == {"a": 0.75, "b": 0.75, "c": 0.75}


def test_stability_needs_replicates_of_the_same_languages() -> None:
    with pytest.raises(InputError, match="at least one"):
        stability(grouping("ab", "c"), [], solve_one=two)
    with pytest.raises(InputError, match="resampled similarity 2 lack 'd'"):
        stability(grouping("ab", "c"), [planted(["ab", "c"]), planted(["ab", "cd"])], solve_one=two)


def test_leaving_languages_out_keeps_clear_groups_together() -> None:
    similarity = planted(["abcde", "fghij"])
    found = perturbed(grouping("abcde", "fghij"), similarity, solve_one=two, seed=0)
    assert len(found.groupings) == 20
    assert {sum(map(len, again.groups)) for again in found.groupings} == {8}
    assert found.mean_rand > 0.6  # when two of one family are out, equal sizes force a stranger in
    assert found.co_assignment_LL[0, 1:5].min() > found.co_assignment_LL[0, 5:].max()
    again = perturbed(grouping("abcde", "fghij"), similarity, solve_one=two, seed=0)
    assert again.groupings == found.groupings


def test_leaving_languages_out_needs_enough_of_them() -> None:
    with pytest.raises(InputError, match="2 folds"):
        perturbed(grouping("abc", "def"), planted(["abc", "def"]), solve_one=two, folds=2, seed=0)
    with pytest.raises(InputError, match="only 2 of 3 languages are left for 3 groups"):
        perturbed(grouping("a", "b", "c"), planted(["a", "b", "c"]), solve_one=two, seed=0)
