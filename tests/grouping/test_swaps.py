"""The bookkeeping of the tabu search: what it remembers equals what a look at the whole grouping says."""

import numpy as np
import pytest
from partitions import from_rows

from sprachbund.grouping.problem import Constraints, build_problem
from sprachbund.grouping.starts import clustered_start, crossover, pad, random_start, shaken, unpad
from sprachbund.grouping.swaps import Goal, Swaps, make_goal, tabu

SIMILARITY = from_rows(11, seed=1)
TAGS = SIMILARITY.tags
LINKED = Constraints(must_link=((TAGS[0], TAGS[5]),), cannot_link=((TAGS[1], TAGS[2]), (TAGS[3], TAGS[4])))
WEIGHED = Constraints(weights={tag: 1.0 + index % 3 for index, tag in enumerate(TAGS)}, window=0.2)
EVERYTHING = Constraints(LINKED.must_link, LINKED.cannot_link, WEIGHED.weights, 0.2)


def goal_of(constraints: Constraints, *, num_groups: int = 4) -> Goal:
    problem = build_problem(SIMILARITY, num_groups=num_groups, constraints=constraints)
    return make_goal(problem, forbidden_LL=~problem.allowed_LL)


def num_empty(goal: Goal, labels_P: np.ndarray) -> int:
    """The largest number of empty places in a group, after a check that groups are equally large."""
    assert set(np.bincount(labels_P, minlength=goal.num_groups)) == {len(labels_P) // goal.num_groups}
    return int(np.bincount(labels_P[goal.empty_P], minlength=goal.num_groups).max())


@pytest.mark.parametrize("constraints", [Constraints(), LINKED, WEIGHED, EVERYTHING])
@pytest.mark.parametrize("num_groups", [2, 4, 5])
def test_gains_and_standing_are_those_of_the_grouping_after_every_swap(
    constraints: Constraints, num_groups: int
) -> None:
    goal, rng = goal_of(constraints, num_groups=num_groups), np.random.default_rng(0)
    swaps = Swaps(goal, random_start(goal, rng))
    places_P = np.arange(len(goal.empty_P))
    for _ in range(30):
        gains_PP = swaps.gains(places_P)
        violation, cost = goal.judge(swaps.labels_P)
        for a, b in rng.integers(len(places_P), size=(20, 2)).tolist():
            labels_P = swaps.labels_P.copy()
            labels_P[[a, b]] = labels_P[[b, a]]
            if gains_PP[a, b] == -np.inf:
                same_group = swaps.labels_P[a] == swaps.labels_P[b]
                assert same_group or num_empty(goal, labels_P) > 1 or goal.empty_P[[a, b]].all()
                continue
            after, cost_after = goal.judge(labels_P)
            assert gains_PP[a, b] == pytest.approx(cost - cost_after - swaps.price * (after - violation))
        a, b = rng.choice(np.argwhere(gains_PP > -np.inf)).tolist()
        touched = swaps.swap(a, b, gain=gains_PP[a, b])
        assert {a, b} <= set(touched.tolist())
        assert swaps.standing == pytest.approx(goal.judge(swaps.labels_P), abs=1e-9)
        assert num_empty(goal, swaps.labels_P) <= 1
        if goal.constrained:
            swaps.set_price(float(rng.uniform(0.1, 5.0)))


@pytest.mark.parametrize("constraints", [Constraints(), LINKED, WEIGHED, EVERYTHING])
def test_tabu_makes_the_best_swap_whatever_it_remembers(
    constraints: Constraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = goal_of(constraints)
    start = random_start(goal, np.random.default_rng(3))
    remembering = tabu(goal, start, moves=60, patience=60, rng=np.random.default_rng(0))
    # With every place stale after every move, nothing is remembered.
    refresh = "sprachbund.grouping.swaps._Partners.refresh"
    original = tabu.__globals__["_Partners"].refresh
    monkeypatch.setattr(refresh, lambda self, stale_P, places: original(self, stale_P | True, places))
    forgetting = tabu(goal, start, moves=60, patience=60, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(remembering.labels_P, forgetting.labels_P)
    assert remembering.standing == forgetting.standing
    assert remembering.standing < goal.judge(start)
    assert remembering.feasible


def test_starts_and_crossings_are_groupings_with_empty_places_apart() -> None:
    goal, rng = goal_of(Constraints(), num_groups=4), np.random.default_rng(0)
    for _ in range(20):
        one, other = random_start(goal, rng), clustered_start(goal, goal.values_PP, rng)
        for labels_P in (one, other, crossover(goal, goal.values_PP, one, other), shaken(goal, one, rng)):
            assert num_empty(goal, labels_P) == 1


def test_a_crossing_keeps_the_groups_that_both_parents_have() -> None:
    goal, rng = goal_of(Constraints(), num_groups=4), np.random.default_rng(1)
    first = tabu(goal, random_start(goal, rng), moves=200, patience=50, rng=rng).labels_P
    second = first.copy()
    in_0, in_1 = np.flatnonzero(first == 0), np.flatnonzero(first == 1)
    second[[in_0[0], in_1[0]]] = second[[in_1[0], in_0[0]]]

    def groups(labels_P: np.ndarray) -> set[frozenset[int]]:
        return {frozenset(np.flatnonzero(labels_P == number).tolist()) for number in range(4)}

    child = crossover(goal, goal.values_PP, first, second)
    assert groups(first) & groups(second) <= groups(child)
    assert groups(crossover(goal, goal.values_PP, first, first)) == groups(first)


def test_padding_gives_each_smaller_group_an_empty_place() -> None:
    problem = build_problem(SIMILARITY, num_groups=4, constraints=Constraints())
    labels_L = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3])
    labels_P = pad(labels_L, problem)
    assert labels_P.tolist() == [*labels_L, 3]
    np.testing.assert_array_equal(unpad(labels_P, problem), labels_L)
