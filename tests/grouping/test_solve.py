"""The solver: published numbers, and what must hold of every grouping it returns."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping, group_greedy_exhaustive, group_greedy_seeded
from sprachbund.grouping.problem import Constraints
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.grouping.solve import Solution, front, solve

BLOOM = Path(__file__).parents[2] / "../shared/reference/dmoe/bloom-560m_last3_sim_fine.csv"
needs_bloom = pytest.mark.skipif(not BLOOM.exists(), reason="../shared/reference/dmoe is not beside this clone")


def similarity(values: np.ndarray) -> Similarity:
    symmetric = (values + values.T) / 2
    np.fill_diagonal(symmetric, 1.0)
    return Similarity(tuple(f"l{i:02}" for i in range(len(values))), symmetric)


def drawn(size: int, seed: int) -> Similarity:
    return similarity(np.random.default_rng(seed).normal(size=(size, size)))


def planted(size: int, num_groups: int, *, noise: float, seed: int) -> tuple[Similarity, Grouping]:
    """Blocks of equal size under noise, in an order that tells nothing."""
    rng = np.random.default_rng(seed)
    number_L = rng.permutation(np.arange(size) % num_groups)
    values = (number_L[:, None] == number_L[None, :]) + noise * rng.normal(size=(size, size))
    found = similarity(values)
    return found, Grouping.from_dict(dict(zip(found.tags, number_L.tolist(), strict=True)))


def as_sets(grouping: Grouping) -> set[frozenset[str]]:
    return {frozenset(members) for members in grouping.groups}


def every_grouping(tags: tuple[str, ...], sizes: tuple[int, ...]) -> list[Grouping]:
    """All partitions with these sizes, by brute force."""
    if not tags:
        return [Grouping(())]
    found = []
    for size in sorted(set(sizes)):
        left = list(sizes)
        left.remove(size)
        for mates in combinations(tags[1:], size - 1):
            group = (tags[0], *mates)
            rest = tuple(tag for tag in tags if tag not in group)
            found += [Grouping((group, *others.groups)) for others in every_grouping(rest, tuple(left))]
    return found


def sizes_of(num_languages: int, num_groups: int) -> tuple[int, ...]:
    small, larger = divmod(num_languages, num_groups)
    return (small + 1,) * larger + (small,) * (num_groups - larger)


# --- published numbers


@needs_bloom
def test_the_authors_matrix_has_a_much_better_grouping_than_theirs() -> None:
    bloom = read_similarity(BLOOM)
    for objective in ("mean", "bottleneck", "lexicographic"):
        nine = solve(bloom, num_groups=9, objective=objective)
        assert (round(nine.min or 0, 4), round(nine.mean or 0, 4)) == (0.0339, 0.1292)
        assert nine.proven
    greedy = solve(bloom, num_groups=9, objective="greedy")
    assert greedy.method == "greedy-exhaustive"
    assert (nine.min or 0) / (greedy.min or 1) > 2.2
    assert (greedy.mean or 0) / (nine.mean or 1) < 0.96
    assert round(solve(bloom, num_groups=3, floor=0).mean or 0, 4) == 0.0750
    assert round(solve(bloom, num_groups=6, floor=0).mean or 0, 4) == 0.1042


@needs_bloom
def test_the_trade_off_on_the_authors_matrix() -> None:
    points = front(read_similarity(BLOOM), num_groups=6)
    rounded = [(round(p.min or 0, 4), round(p.mean or 0, 4)) for p in points]
    assert rounded == [(0.0129, 0.1042), (0.0176, 0.1030), (0.0199, 0.0803)]
    assert all(p.proven for p in points)


@needs_bloom
def test_the_floor_is_kept_on_the_authors_matrix() -> None:
    found = solve(read_similarity(BLOOM), num_groups=6)
    assert found.least == pytest.approx(0.7 * 0.0199, abs=1e-4)
    assert (round(found.min or 0, 4), round(found.mean or 0, 4)) == (0.0176, 0.1030)


# --- against brute force


@settings(max_examples=25, deadline=None)
@given(size=st.integers(4, 7), seed=st.integers(0, 10_000), data=st.data())
def test_the_exact_answer_is_that_of_brute_force(size: int, seed: int, data: st.DataObject) -> None:
    num_groups = data.draw(st.integers(2, size - 1))
    one = drawn(size, seed)
    every = every_grouping(one.tags, sizes_of(size, num_groups))
    best_mean = max(g.mean_similarity(one) or 0 for g in every)
    best_min = max(g.min_similarity(one) or 0 for g in every)
    both = max(g.mean_similarity(one) or 0 for g in every if (g.min_similarity(one) or 0) >= best_min)
    assert solve(one, num_groups=num_groups, floor=0).value == pytest.approx(best_mean)
    assert solve(one, num_groups=num_groups, objective="bottleneck").value == pytest.approx(best_min)
    lexicographic = solve(one, num_groups=num_groups, objective="lexicographic")
    assert (lexicographic.min, lexicographic.mean) == (pytest.approx(best_min), pytest.approx(both))
    assert lexicographic.proven


@settings(max_examples=15, deadline=None)
@given(size=st.integers(5, 8), seed=st.integers(0, 10_000))
def test_links_and_weights_are_those_of_brute_force(size: int, seed: int) -> None:
    one = drawn(size, seed)
    a, b, c = one.tags[:3]
    weights = dict(zip(one.tags, np.random.default_rng(seed).uniform(1, 2, size=size).tolist(), strict=True))
    constraints = Constraints(must_link=((a, b),), cannot_link=((b, c),), weights=weights, window=0.5)

    def allowed(grouping: Grouping) -> bool:
        number = grouping.as_dict()
        totals = [sum(weights[tag] for tag in members) for members in grouping.groups]
        mean = sum(totals) / len(totals)
        in_window = all(0.5 * mean <= total <= 1.5 * mean for total in totals)
        return number[a] == number[b] != number[c] and in_window

    every = [g for g in every_grouping(one.tags, sizes_of(size, 2)) if allowed(g)]
    if not every:
        with pytest.raises(InputError):
            solve(one, num_groups=2, constraints=constraints)
        return
    found = solve(one, num_groups=2, floor=0, constraints=constraints)
    assert allowed(found.grouping)
    assert found.value == pytest.approx(max(g.mean_similarity(one) or 0 for g in every))


# --- what holds of every answer


def check(found: Solution, one: Similarity, num_groups: int) -> None:
    assert sorted(found.grouping.as_dict()) == sorted(one.tags)
    assert sorted(map(len, found.grouping.groups)) == sorted(sizes_of(len(one.tags), num_groups))
    assert found.mean == pytest.approx(found.grouping.mean_similarity(one))
    assert found.min == pytest.approx(found.grouping.min_similarity(one))
    if found.bound is not None and found.value is not None:
        assert found.bound >= found.value - 1e-12
    if found.least is not None and found.min is not None:
        assert found.min >= found.least


@settings(max_examples=12, deadline=None)
@given(size=st.integers(4, 24), seed=st.integers(0, 10_000), objective=st.sampled_from(["mean", "bottleneck"]))
def test_answers_are_balanced_bounded_and_no_worse_than_greedy(size: int, seed: int, objective: str) -> None:
    one = drawn(size, seed)
    num_groups = 2 + seed % (size // 2 - 1) if size > 4 else 2
    found = solve(one, num_groups=num_groups, objective=objective, floor=0, effort=0.1)
    check(found, one, num_groups)
    for greedy in (group_greedy_seeded, group_greedy_exhaustive):
        try:
            rival = greedy(one, num_groups=num_groups)
        except InputError:  # too many combinations
            continue
        theirs = rival.mean_similarity(one) if objective == "mean" else rival.min_similarity(one)
        assert found.value is not None
        assert found.value >= (theirs or 0) - 1e-12


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([9, 21]))
def test_the_order_of_the_input_changes_nothing(seed: int, size: int) -> None:
    one = drawn(size, seed)
    order = np.random.default_rng(seed).permutation(size)
    other = Similarity(tuple(one.tags[i] for i in order), one.values_LL[np.ix_(order, order)])
    first, second = (solve(s, num_groups=4, effort=0.1, seed=1) for s in (one, other))
    assert first.grouping == second.grouping
    assert first.value == second.value
    firsts = [members[0] for members in first.grouping.groups]
    assert firsts == sorted(firsts)
    assert solve(one, num_groups=4, effort=0.1, seed=1) == first


@pytest.mark.parametrize(("size", "num_groups"), [(24, 6), (40, 8)])
def test_planted_groups_are_found_and_proven(size: int, num_groups: int) -> None:
    one, truth = planted(size, num_groups, noise=0.1, seed=3)
    found = solve(one, num_groups=num_groups)
    assert as_sets(found.grouping) == as_sets(truth)
    assert found.method == "search"
    assert found.proven
    assert found.bound == found.value


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_is_proven_best(seed: int) -> None:
    """Twenty languages in pairs are out of reach of the subset tables, and solved by matching."""
    one = drawn(20, seed)
    matched = solve(one, num_groups=10, floor=0)
    assert (matched.method, matched.proven) == ("matching", True)
    assert matched.bound == matched.value
    check(matched, one, 10)


def test_bounds_hold_where_the_search_is_poor() -> None:
    one = drawn(30, 1)
    poor, good = (solve(one, num_groups=6, floor=0, effort=effort) for effort in (0.5, 1.0))
    assert poor.bound is not None
    assert good.value is not None
    assert poor.bound >= good.value
    assert good.gap is not None
    assert 0 <= good.gap < math.inf


# --- wishes that cannot be


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"num_groups": 1}, "1 group asked for 6 languages; ask for 2 to 6"),
        ({"num_groups": 7}, "7 groups asked for 6 languages"),
        ({"num_groups": 4, "constraints": Constraints(strict=True)}, "4 groups do not divide 6 languages"),
        ({"num_groups": 2, "objective": "best"}, "Unknown objective: 'best'"),
        ({"num_groups": 2, "floor": 1.5}, "The floor is 1.5"),
        ({"num_groups": 2, "method": "greedy-seeded"}, "leave the method out"),
        (
            {"num_groups": 2, "objective": "greedy", "constraints": Constraints(must_link=(("l00", "l01"),))},
            "knows neither links nor weights",
        ),
        ({"num_groups": 2, "constraints": Constraints(must_link=(("l00", "l0"),))}, "unknown language 'l0'"),
        (
            {"num_groups": 3, "constraints": Constraints(must_link=(("l00", "l01"), ("l01", "l02")))},
            "The must-links put 3 languages into one group",
        ),
        (
            {"num_groups": 2, "constraints": Constraints(cannot_link=(("l00", "l01", "l02"),))},
            "there are 2 groups",
        ),
        (
            {
                "num_groups": 2,
                "constraints": Constraints(weights={f"l{i:02}": 9.0 if i == 0 else 1.0 for i in range(6)}),
            },
            "'l00' weighs 9",
        ),
        (
            {"num_groups": 2, "constraints": Constraints(weights={f"l{i:02}": -1.0 for i in range(6)})},
            "give a positive finite number",
        ),
    ],
)
def test_wishes_that_cannot_be_are_one_sentence(wishes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        solve(drawn(6, 0), **wishes)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_only_together_cannot_be_names_the_kind() -> None:
    """Each constraint alone can be met; with the two heavy languages together no three others balance them."""
    weights = {"l00": 3.0, "l01": 3.0, "l02": 1.0, "l03": 1.0, "l04": 1.0, "l05": 1.0}
    constraints = Constraints(must_link=(("l00", "l01"),), weights=weights, window=0.3)
    with pytest.raises(InputError, match="No 2 groups of 6 languages respect the must-links and the window"):
        solve(drawn(6, 0), num_groups=2, constraints=constraints)
