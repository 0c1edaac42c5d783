"""What must hold for every similarity and all constraints: checked against every grouping of a few languages."""

from itertools import combinations
from math import inf

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from partitions import all_groupings, planted, respects, shuffled

from sprachbund.errors import InputError
from sprachbund.grouping import Grouping, Similarity, group_greedy_exhaustive, group_greedy_seeded
from sprachbund.grouping.engines import Exact, Searched
from sprachbund.grouping.exact import SubsetTables
from sprachbund.grouping.matching import Matching
from sprachbund.grouping.problem import UNCONSTRAINED, Constraints, Problem, build_problem
from sprachbund.grouping.solve import Solution, front, solve

# Sums of pairs in other orders differ in the last bits.
close = pytest.approx
TAGS = "abcdefghij"


@st.composite
def similarities(draw: st.DrawFn, *, smallest: int = 3, largest: int = 7) -> Similarity:
    """Few different values, so that there are ties, and negative ones, so that nothing relies on their sign."""
    num_languages = draw(st.integers(smallest, largest))
    num_pairs = num_languages * (num_languages - 1) // 2
    upper = draw(st.lists(st.integers(-4, 8), min_size=num_pairs, max_size=num_pairs))
    values_LL = np.eye(num_languages)
    for (a, b), value in zip(combinations(range(num_languages), 2), upper, strict=True):
        values_LL[a, b] = values_LL[b, a] = value / 8
    return Similarity(tuple(draw(st.permutations(TAGS[:num_languages]))), values_LL)


@st.composite
def constrained(draw: st.DrawFn, tags: tuple[str, ...]) -> Constraints:
    """Links and weights, many of them impossible."""
    link = st.lists(st.sampled_from(tags), min_size=2, max_size=3, unique=True).map(tuple)
    weight = st.lists(st.integers(1, 5).map(float), min_size=len(tags), max_size=len(tags))
    weights = draw(st.none() | weight.map(lambda drawn: dict(zip(tags, drawn, strict=True))))
    return Constraints(
        must_link=tuple(draw(st.lists(link, max_size=2))),
        cannot_link=tuple(draw(st.lists(link, max_size=2))),
        weights=weights,
        window=draw(st.sampled_from([0.1, 0.3, 0.6])),
    )


def scored(
    similarity: Similarity, num_groups: int, constraints: Constraints = UNCONSTRAINED
) -> list[tuple[float, float]]:
    """(minimum, mean) of every grouping that respects the constraints."""
    found = [one for one in all_groupings(similarity.tags, num_groups) if respects(one, constraints)]
    return [(one.min_similarity(similarity) or 0.0, one.mean_similarity(similarity) or 0.0) for one in found]


@settings(max_examples=60, deadline=None)
@given(st.data(), similarities())
def test_up_to_18_languages_no_grouping_is_better(data: st.DataObject, similarity: Similarity) -> None:
    num_groups = data.draw(st.integers(2, len(similarity.tags) - 1))
    constraints = data.draw(st.just(UNCONSTRAINED) | constrained(similarity.tags))
    scores = scored(similarity, num_groups, constraints)
    floor = data.draw(st.sampled_from([0.0, 0.5, 1.0]))

    def asked(objective: str) -> Solution:
        return solve(similarity, num_groups=num_groups, objective=objective, floor=floor, constraints=constraints)

    if not scores:
        with pytest.raises(InputError):
            asked("mean")
        return
    highest = max(scores)[0]
    least = highest - (1 - floor) * abs(highest) if floor else -inf
    mean, bottleneck, lexicographic = (asked(objective) for objective in ("mean", "bottleneck", "lexicographic"))
    assert mean.value == close(max(mean for smallest, mean in scores if smallest >= least))
    assert bottleneck.value == highest
    assert (lexicographic.min, lexicographic.value) == (highest, close(max(scores)[1]))
    for found in (mean, bottleneck, lexicographic):
        assert found.proven
        assert found.value == found.bound
        assert respects(found.grouping, constraints)
        _check_shape(found.grouping, similarity, num_groups)
        assert found.mean == close(found.grouping.mean_similarity(similarity) or 0.0)
        assert found.min == found.grouping.min_similarity(similarity)
        assert found.least is None or found.min >= found.least  # type: ignore[operator]


def _check_shape(grouping: Grouping, similarity: Similarity, num_groups: int) -> None:
    sizes = [len(tags) for tags in grouping.groups]
    assert len(sizes) == num_groups
    assert max(sizes) - min(sizes) <= 1
    assert sorted(grouping.as_dict()) == sorted(similarity.tags)


@settings(max_examples=40, deadline=None)
@given(st.data(), similarities())
def test_front_is_every_grouping_that_none_beats_in_both(data: st.DataObject, similarity: Similarity) -> None:
    num_groups = data.draw(st.integers(2, len(similarity.tags) - 1))
    scores = {(smallest, round(mean, 9)) for smallest, mean in scored(similarity, num_groups)}
    beaten = {one for one in scores for other in scores if other != one and other[0] >= one[0] and other[1] >= one[1]}
    points = front(similarity, num_groups=num_groups)
    assert [(point.min, round(point.mean or 0.0, 9)) for point in points] == sorted(scores - beaten)


@settings(max_examples=40, deadline=None)
@given(st.data(), similarities(largest=8))
def test_matching_and_tables_agree_on_pairs(data: st.DataObject, similarity: Similarity) -> None:
    num_languages = len(similarity.tags)
    num_groups = data.draw(st.integers(-(-num_languages // 2), num_languages - 1))
    constraints = data.draw(st.just(UNCONSTRAINED) | constrained(similarity.tags))
    try:
        problem = build_problem(similarity, num_groups=num_groups, constraints=constraints)
    except InputError:
        assume(False)
    tables, matching = SubsetTables(problem), Matching(problem)
    expected, found = tables.best_worst(), matching.best_worst()
    assert (expected is None) == (found is None)
    if expected is None or found is None:
        return
    least = problem.worst(expected)
    assert problem.worst(found) == least
    assert problem.satisfied_by(found)
    for limit in (None, least):
        best = matching.best_mean(least=limit)
        assert best is not None
        assert problem.with_least(limit).satisfied_by(best)
        assert problem.total(best) == close(problem.total(tables.best_mean(least=limit)))  # type: ignore[arg-type]


def both(problem: Problem, *, effort: float = 0.1) -> tuple[Exact, Searched]:
    """The exact answers and the search, which `solve` would not ask about so few languages."""
    return Exact(problem, SubsetTables(problem), method="exact"), Searched(problem, seed=0, effort=effort)


@settings(max_examples=30, deadline=None)
@given(st.data(), similarities(smallest=4, largest=10))
def test_the_search_is_never_better_than_the_best_and_its_bounds_hold(
    data: st.DataObject, similarity: Similarity
) -> None:
    num_groups = data.draw(st.integers(2, len(similarity.tags) - 1))
    constraints = data.draw(st.just(UNCONSTRAINED) | constrained(similarity.tags))
    try:
        problem = build_problem(similarity, num_groups=num_groups, constraints=constraints)
    except InputError:
        assume(False)
    exact, search = both(problem, effort=0.05)
    search.little = data.draw(st.booleans())
    best, found = exact.best_worst(), search.best_worst()
    assert found is None or best is not None
    if best is None or found is None:
        return
    assert found.value <= best.value <= found.bound
    for least in (None, found.value):
        best, answer = exact.best_mean(least=least), search.best_mean(least=least)
        assert best is not None
        assert answer is not None, "the grouping with the best minimum is known"
        assert problem.with_least(least).satisfied_by(answer.labels_L)
        assert answer.value <= best.value + 1e-9
        assert best.value <= answer.bound + 1e-9
        assert answer.proven <= (answer.value == close(best.value))
        for greedy in (group_greedy_exhaustive, group_greedy_seeded):
            labels_L = problem.labels(greedy(problem.similarity(), num_groups=num_groups))
            if problem.satisfied_by(labels_L):
                assert found.value >= problem.worst(labels_L)
            if problem.with_least(least).satisfied_by(labels_L):
                assert answer.value >= problem.total(labels_L) - 1e-9


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 99))
def test_the_search_finds_planted_families(num_groups: int, size: int, seed: int) -> None:
    similarity, families = planted(num_groups, size, seed=seed, noise=0.03)
    problem = build_problem(shuffled(similarity, seed=seed), num_groups=num_groups, constraints=UNCONSTRAINED)
    exact, search = both(problem)
    best, found = exact.best_mean(least=None), search.best_mean(least=None)
    assert best is not None
    assert found is not None
    assert problem.grouping(found.labels_L) == problem.grouping(best.labels_L) == families
    assert search.best_worst().value == exact.best_worst().value  # type: ignore[union-attr]


@settings(max_examples=15, deadline=None)
@given(st.data(), similarities(smallest=5, largest=10))
def test_the_order_of_the_input_and_a_second_run_change_nothing(data: st.DataObject, similarity: Similarity) -> None:
    num_groups = data.draw(st.integers(2, len(similarity.tags)))
    other = shuffled(similarity, seed=data.draw(st.integers(0, 9)))
    for objective in ("mean", "bottleneck", "lexicographic"):
        first, second = (solve(one, num_groups=num_groups, objective=objective) for one in (similarity, other))
        assert first == second
    problems = [build_problem(one, num_groups=num_groups, constraints=UNCONSTRAINED) for one in (similarity, other)]
    if problems[0].num_pairs:
        answers = [Searched(problem, seed=1, effort=0.05).best_mean(least=None) for problem in problems]
        assert (answers[0].labels_L == answers[1].labels_L).all()  # type: ignore[union-attr]
