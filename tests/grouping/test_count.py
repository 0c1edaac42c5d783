from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from sprachbund.errors import InputError
from sprachbund.grouping.count import choose_count, shared_group_correlation
from sprachbund.grouping.greedy import Grouping, group_greedy_seeded
from sprachbund.grouping.similarity_csv import Similarity

Solver = Callable[[Similarity, int], Grouping]


def seeded(similarity: Similarity, count: int) -> Grouping:
    return group_greedy_seeded(similarity, num_groups=count)


def named(values_LL: np.ndarray) -> Similarity:
    return Similarity(tuple(f"l{index:02}" for index in range(len(values_LL))), values_LL)


def symmetric_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    upper_LL = np.triu(rng.normal(size=(size, size)), k=1)
    return upper_LL + upper_LL.T


def planted(size: int, families: int, *, noise: float = 0.0, levels: float = 0.0, seed: int = 0) -> np.ndarray:
    """1 within a family and 0 between, noise on each pair, and a level of each language's own."""
    rng = np.random.default_rng(seed)
    family = np.arange(size) % families
    level = rng.normal(size=size) * levels
    alike_LL = (family[:, None] == family[None, :]) + level[:, None] + level[None, :]
    return alike_LL + noise * symmetric_noise(size, rng)


def replicates_of(values_LL: np.ndarray, *, noise: float, number: int) -> list[Similarity]:
    rng = np.random.default_rng(99)
    return [named(values_LL + noise * symmetric_noise(len(values_LL), rng)) for _ in range(number)]


@pytest.mark.parametrize("families", [2, 3, 4, 6])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_planted_groups_are_counted(families: int, noise: float) -> None:
    choice = choose_count(named(planted(18, families, noise=noise)), solve_one=seeded, seed=0)
    assert choice.count == families
    assert choice.warning is None
    assert choice.p_value == pytest.approx(1 / 21)
    assert [row.count for row in choice.rows] == list(range(2, 10))


@pytest.mark.parametrize("families", [2, 4])
def test_levels_of_single_languages_do_not_count_as_groups(families: int) -> None:
    values_LL = planted(16, families, noise=0.1, levels=1.0)
    choice = choose_count(named(values_LL), solve_one=lambda s, k: seeded(without_levels(s), k), seed=0)
    assert (choice.count, choice.warning) == (families, None)


def without_levels(similarity: Similarity) -> Similarity:
    """The greedy follows levels where a solver of the mean does not; here it is the criterion that is tested."""
    centred_LL = similarity.values_LL - similarity.values_LL.mean(axis=0)
    return Similarity(similarity.tags, centred_LL - centred_LL.mean(axis=1, keepdims=True))


def test_noise_shows_no_groups_and_the_smallest_number_is_taken_with_a_warning() -> None:
    warned = 0
    for seed in range(6):
        values_LL = symmetric_noise(18, np.random.default_rng(seed))
        choice = choose_count(
            named(values_LL), replicates=replicates_of(values_LL, noise=1, number=3), solve_one=seeded, seed=0
        )
        assert (choice.warning is None) == (choice.p_value <= 0.05)
        if choice.warning:
            warned += 1
            assert choice.count == 2
            assert "no groups" in choice.warning
    assert warned >= 5  # one false alarm in 21 is what the level allows


@pytest.mark.parametrize("values_LL", [np.full((8, 8), 0.3), np.add.outer(np.arange(8) * 0.1, np.arange(8) * 0.1)])
def test_levels_alone_are_no_groups(values_LL: np.ndarray) -> None:
    choice = choose_count(named(values_LL), solve_one=seeded, seed=0)
    assert (choice.count, choice.p_value) == (2, 1.0)
    assert choice.warning is not None
    assert {row.correlation for row in choice.rows} == {0.0}


def test_the_curve_says_what_the_choice_was_made_from() -> None:
    values_LL = planted(12, 3, noise=0.2)
    replicates = replicates_of(values_LL, noise=0.2, number=4)
    choice = choose_count(named(values_LL), replicates=replicates, solve_one=seeded, seed=0)
    best = max(choice.rows, key=lambda row: row.score)
    assert choice.count == best.count == 3
    for row in choice.rows:
        grouping = seeded(named(values_LL), row.count)
        assert row.mean == grouping.mean_similarity(named(values_LL))
        assert row.min == grouping.min_similarity(named(values_LL))
        assert row.correlation == pytest.approx(shared_group_correlation(grouping, named(values_LL)))
        assert row.stability is not None
        assert row.score == pytest.approx((row.correlation - row.chance) * row.stability)
    bare = choose_count(named(values_LL), solve_one=seeded, seed=0)
    assert [row.stability for row in bare.rows] == [None] * 5
    assert [row.score for row in bare.rows] == pytest.approx([row.correlation - row.chance for row in bare.rows])


def test_of_two_levels_of_kinship_the_one_that_resampled_data_show_again_is_taken() -> None:
    # Two families of two branches each; the resampled data keep the families and scramble the branches.
    family, branch = np.arange(16) % 2, np.arange(16) % 4

    def kinship(branch: np.ndarray) -> Similarity:
        return named(0.2 * (family[:, None] == family[None, :]) + 0.8 * (branch[:, None] == branch[None, :]))

    scrambled = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        mixed = branch.copy()
        for one in range(2):
            mixed[family == one] = rng.permutation(branch[family == one])
        scrambled.append(kinship(mixed))
    steady = [kinship(branch)] * 3
    choose = partial(choose_count, kinship(branch), counts=[2, 4], solve_one=seeded, seed=0)
    assert choose().count == choose(replicates=steady).count == 4
    assert choose(replicates=scrambled).count == 2


def test_correlation_worked_by_hand() -> None:
    # Four languages, pairs ab and cd alike: of the six pairs the two that share a group, and nothing else, stand out.
    values_LL = np.array([[1, 0.9, 0.1, 0.1], [0.9, 1, 0.1, 0.1], [0.1, 0.1, 1, 0.9], [0.1, 0.1, 0.9, 1]])
    similarity = Similarity(tuple("abcd"), values_LL)
    assert shared_group_correlation(Grouping((("a", "b"), ("c", "d"))), similarity) == pytest.approx(1.0)
    assert shared_group_correlation(Grouping((("a", "c"), ("b", "d"))), similarity) == pytest.approx(-0.5)
    assert shared_group_correlation(Grouping((("a", "b", "c", "d"),)), similarity) == 0.0
    assert shared_group_correlation(Grouping((("a",), ("b",), ("c",), ("d",))), similarity) == 0.0


def test_correlation_is_the_partial_correlation_of_a_regression() -> None:
    rng = np.random.default_rng(5)
    similarity = named(symmetric_noise(9, rng))
    grouping = seeded(similarity, 4)
    rows, columns = np.triu_indices(9, k=1)
    design = np.zeros((len(rows), 9))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), columns] = 1
    number_of = grouping.as_dict()
    shares = np.array(
        [number_of[similarity.tags[i]] == number_of[similarity.tags[j]] for i, j in zip(rows, columns, strict=True)]
    )
    rests = [
        target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        for target in (shares * 1.0, similarity.values_LL[rows, columns])
    ]
    expected = np.corrcoef(rests[0], rests[1])[0, 1]
    assert shared_group_correlation(grouping, similarity) == pytest.approx(expected)


def test_the_order_of_the_languages_does_not_matter_and_the_seed_decides() -> None:
    values_LL = planted(12, 3, noise=0.5, seed=2)
    straight = named(values_LL)
    order = np.random.default_rng(1).permutation(12)
    turned = Similarity(tuple(straight.tags[i] for i in order), values_LL[np.ix_(order, order)])
    first = choose_count(straight, solve_one=seeded, seed=3)
    assert choose_count(turned, solve_one=seeded, seed=3) == first
    assert choose_count(straight, solve_one=seeded, seed=4) != first


def refuses(refused: Sequence[int]) -> Solver:
    def solve_one(similarity: Similarity, count: int) -> Grouping:
        if count in refused:
            raise InputError(f"{count} groups cannot be")
        return seeded(similarity, count)

    return solve_one


def test_numbers_that_the_constraints_refuse_are_left_out() -> None:
    choice = choose_count(named(planted(12, 3)), solve_one=refuses([3, 5]), seed=0)
    assert [row.count for row in choice.rows] == [2, 4, 6]
    with pytest.raises(InputError, match="4 groups cannot be"):
        choose_count(named(planted(12, 3)), counts=[2, 4], solve_one=refuses([2, 4]), seed=0)


def test_candidates_are_half_the_languages_at_most_24_or_as_given() -> None:
    assert [row.count for row in choose_count(named(planted(3, 1)), solve_one=seeded, seed=0).rows] == [2]
    rows = choose_count(named(planted(60, 3)), solve_one=seeded, seed=0).rows
    assert (rows[0].count, rows[-1].count) == (2, 24)
    chosen = choose_count(named(planted(6, 2)), counts=[6, 2, 2], solve_one=seeded, seed=0)
    assert [row.count for row in chosen.rows] == [2, 6]
    assert chosen.rows[-1].mean is None


@pytest.mark.parametrize(
    ("counts", "message"), [([], "at least one"), ([1], "1 groups are a candidate"), ([7], "7 groups are a candidate")]
)
def test_candidates_that_cannot_be_are_refused(counts: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_count(named(planted(6, 2)), counts=counts, solve_one=seeded, seed=0)
    with pytest.raises(InputError, match="nothing to group"):
        choose_count(named(np.eye(1)), solve_one=seeded, seed=0)
