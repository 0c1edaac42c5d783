"""Bounds must hold whatever was computed, and be tight where theory says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import all_groupings, from_rows, planted

from sprachbund.grouping import Similarity
from sprachbund.grouping.bounds import bound_total, degree_bound, proven_bound, relax, semidefinite_bound
from sprachbund.grouping.exact import SubsetTables
from sprachbund.grouping.problem import UNCONSTRAINED, Constraints, Problem, build_problem
from sprachbund.grouping.thresholds import ceiling, tightened


def problem_of(similarity: Similarity, num_groups: int, constraints: Constraints = UNCONSTRAINED) -> Problem:
    return build_problem(similarity, num_groups=num_groups, constraints=constraints)


def best_total(problem: Problem) -> float:
    """The largest sum by trying every grouping."""
    labels = (problem.labels(grouping) for grouping in all_groupings(problem.tags, problem.num_groups))
    return max(problem.total(labels_L) for labels_L in labels if problem.satisfied_by(labels_L))


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 7), st.data())
def test_any_multipliers_whatever_prove_a_bound(num_languages: int, data: st.DataObject) -> None:
    seed, num_groups = data.draw(st.integers(0, 99)), data.draw(st.integers(2, num_languages - 1))
    problem = problem_of(from_rows(num_languages, seed=seed), num_groups)
    highest = best_total(problem)
    relaxation = relax(problem, problem.values_LL)
    multipliers_PP = np.random.default_rng(seed).normal(size=relaxation.values_PP.shape)
    for scale in (0.0, 0.1, 10.0):
        assert proven_bound(relaxation, scale * multipliers_PP) >= highest
    for rounds in (1, 3, 30):
        assert semidefinite_bound(relaxation, rounds=rounds) >= highest
    for value in (-100.0, highest):
        assert degree_bound(problem, problem.values_LL, value=value) >= highest


@pytest.mark.parametrize("seed", range(4))
def test_links_and_least_tighten_the_bounds_and_keep_them_true(seed: int) -> None:
    similarity = from_rows(8, seed=seed)
    tags = similarity.tags
    constraints = Constraints(must_link=((tags[0], tags[1]),), cannot_link=((tags[2], tags[3], tags[4]),))
    free, linked = (problem_of(similarity, 3, asked) for asked in (UNCONSTRAINED, constraints))
    narrowest = SubsetTables(linked).best_worst()
    assert narrowest is not None
    limited = linked.with_least(linked.worst(narrowest))
    bounds = [semidefinite_bound(relax(problem, problem.values_LL), rounds=200) for problem in (free, linked, limited)]
    assert bounds[0] > bounds[1] >= bounds[2] - 1e-6
    for problem, bound in zip((free, linked), bounds[:2], strict=True):
        assert bound >= best_total(problem)
        assert degree_bound(problem, problem.values_LL, value=best_total(problem)) >= best_total(problem)
    best = SubsetTables(limited).best_mean()
    assert best is not None
    assert bounds[2] >= limited.total(best)


def test_the_relaxation_is_tight_on_planted_families_and_near_on_noise() -> None:
    similarity, families = planted(8, 5, seed=1)
    problem = problem_of(similarity, 8)
    labels_L = problem.labels(families)
    assert bound_total(problem, labels_L, rounds=100) == problem.total(labels_L)
    noise = problem_of(from_rows(15, seed=0), 4)
    best = SubsetTables(noise).best_mean()
    assert best is not None
    eigenvalues, sizes = (bound_total(noise, best, rounds=rounds) for rounds in (100, 0))
    assert noise.total(best) < eigenvalues < noise.total(best) * 1.1
    assert eigenvalues < sizes


def test_the_bound_from_sizes_is_tight_where_each_language_has_its_partner() -> None:
    values_LL = np.full((6, 6), 0.1)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        values_LL[a, b] = values_LL[b, a] = 0.8
    problem = problem_of(Similarity(tuple("abcdef"), values_LL), 3)
    best = SubsetTables(problem).best_mean()
    assert best is not None
    assert bound_total(problem, best, rounds=0) == problem.total(best) == pytest.approx(2.4)


@pytest.mark.parametrize("num_groups", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("seed", range(3))
def test_ceilings_of_the_minimum_hold(num_groups: int, seed: int) -> None:
    similarity = from_rows(13, seed=seed)
    tags = similarity.tags
    linked = Constraints(must_link=((tags[0], tags[1]),), cannot_link=((tags[2], tags[3]),))
    for constraints in (UNCONSTRAINED, linked):
        problem = problem_of(similarity, num_groups, constraints)
        best = SubsetTables(problem).best_worst()
        assert best is not None
        highest = problem.worst(best)
        quick = ceiling(problem)
        slow = tightened(problem, reached=highest, ceiling=quick, tests=6, rounds=40)
        assert highest <= slow <= quick
        unlucky = tightened(problem, reached=float(problem.levels[0]), ceiling=quick, tests=6, rounds=40)
        assert highest <= unlucky <= quick


def test_the_least_alike_pair_of_planted_families_is_proven() -> None:
    similarity, families = planted(8, 5, seed=2)
    problem = problem_of(similarity, 8)
    reached = problem.worst(problem.labels(families))
    assert tightened(problem, reached=reached, ceiling=ceiling(problem), tests=1, rounds=60) == reached


def test_more_strangers_than_groups_limit_the_minimum() -> None:
    # Three languages that are alike to nobody: two groups put two of them together.
    values_LL = np.full((6, 6), 0.9)
    values_LL[:3, :3] = -0.5
    assert ceiling(problem_of(Similarity(tuple("abcdef"), values_LL), 2)) == -0.5


def test_parts_that_no_group_can_cross_limit_the_minimum() -> None:
    # Two cliques of three, and groups of two: one pair must cross, whatever the degrees say.
    values_LL = np.full((6, 6), 0.2)
    values_LL[:3, :3] = values_LL[3:, 3:] = 0.9
    assert ceiling(problem_of(Similarity(tuple("abcdef"), values_LL), 3)) == 0.2


def test_a_pair_that_must_be_together_limits_the_minimum() -> None:
    similarity, _ = planted(4, 3, seed=0)
    worst = tuple(similarity.tags[i] for i in np.unravel_index(similarity.values_LL.argmin(), (12, 12)))
    problem = problem_of(similarity, 4, Constraints(must_link=(worst,)))
    assert ceiling(problem) == similarity.values_LL.min()
