"""Who shares an expert, solved: the best grouping for an objective, and how far from the best it can be at most.

Up to 18 languages, or 200 where groups are pairs, the answer is proven optimal; above it is found by search and comes
with a proven upper bound. See `engines.py` for what does the work.
Shapes: L languages.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from sprachbund.errors import InputError
from sprachbund.grouping.engines import Answer, Engine, make_engine
from sprachbund.grouping.greedy import MOST_COMBINATIONS, Grouping, group, num_combinations
from sprachbund.grouping.infeasible import give_up
from sprachbund.grouping.problem import UNCONSTRAINED, Constraints, Problem, build_problem
from sprachbund.grouping.similarity_csv import Similarity

OBJECTIVES = ("mean", "bottleneck", "lexicographic", "greedy")

# The search for a good mean among groupings with the best minimum, where only the minimum was asked for.
SHARE_FOR_TIES = 0.2

# Above 18 languages the front has at most so many points, each with this share of the moves.
MOST_POINTS, SHARE_OF_POINT = 12, 0.4


@dataclass(frozen=True)
class Solution:
    """A grouping and how good it is.

    Attributes:
        grouping: groups ordered by their first tag, tags sorted inside (under `greedy` as the paper's algorithms do).
        objective: mean, bottleneck, lexicographic or greedy.
        method: exact, matching, search, cp-sat, greedy-exhaustive or greedy-seeded.
        mean: the mean similarity over the pairs that share a group; None where no two languages do.
        min: the similarity of the least alike such pair, likewise.
        value: what the objective maximises: the mean for `mean` and for `lexicographic` (under its minimum), the
            minimum for `bottleneck`, None for `greedy`.
        bound: a proven upper bound of `value`, the value itself where it is proven optimal; None for `greedy` and on a
            front that was searched. For `mean` it holds for all groupings with no pair below `least`.
        least: the smallest similarity that a pair was allowed, or None where there was no limit.
        proven: whether the value is proven optimal, up to a billionth of the spread of similarities.
    """

    grouping: Grouping
    objective: str
    method: str
    mean: float | None
    min: float | None
    value: float | None
    bound: float | None
    least: float | None
    proven: bool

    @property
    def gap(self) -> float | None:
        """How much better another grouping can be at most, in units of similarity; None without a bound."""
        return None if self.bound is None or self.value is None else self.bound - self.value


def solve(
    similarity: Similarity,
    *,
    num_groups: int,
    objective: str = "mean",
    floor: float = 0.7,
    method: str | None = None,
    constraints: Constraints = UNCONSTRAINED,
    seed: int = 0,
    effort: float = 1.0,
    exact: bool = False,
) -> Solution:
    """Group languages: the sizes of groups differ by at most one.

    The objectives:
    - `mean`: the largest mean similarity over pairs that share a group, among groupings whose least alike pair keeps
      `floor` of the best minimum b that can be attained. b is exact where the method is; by search it is the best
      that was found, so that no pair of the result lies below the floor, whichever way it was found.
    - `bottleneck`: the most alike least alike pair; among equals, a good mean where it comes cheaply.
    - `lexicographic`: as `bottleneck`, then the largest mean.
    - `greedy`: the paper's two algorithms, for reproduction: exhaustive up to three million combinations, else the one
      for 128 languages. They keep to the order of the input, as the authors' do.

    Deterministic by seed and, except for `greedy`, whatever the order of the input.

    Args:
        similarity: over at least two languages.
        num_groups: 2 to the number of languages.
        objective: see above.
        floor: for `mean`, a share in 0..1. The least similarity allowed is b - (1 - floor) * |b|: floor * b where b
            is positive. 0 is no floor at all.
        method: for `greedy`, greedy-exhaustive or greedy-seeded to force one.
        constraints: links, weights and strict sizes; not with `greedy`.
        seed: of the search.
        effort: a factor of the numbers of moves of the search; below 0.5 the expensive bounds are left out, too.
        exact: above 18 languages, let CP-SAT close the gap (the extra `exact`).

    Raises:
        InputError: an option out of its range, or constraints that cannot be satisfied: the sentence says which.
    """
    _check_options(objective=objective, floor=floor, method=method, effort=effort, constraints=constraints)
    if objective == "greedy":
        return _greedy(similarity, num_groups=num_groups, method=method, strict=constraints.strict)
    problem = build_problem(similarity, num_groups=num_groups, constraints=constraints)
    if problem.num_pairs == 0:
        return _alone(problem, objective, constraints)
    engine = make_engine(problem, seed=seed, effort=effort, close=exact)
    if objective == "mean":
        return _mean(problem, engine, floor=floor, constraints=constraints)
    worst = engine.best_worst() or give_up(problem, constraints, proven=engine.proves)
    least = worst.value
    mean = engine.best_mean(
        least=least,
        bounded=objective == "lexicographic",
        share=SHARE_FOR_TIES if objective == "bottleneck" else 1.0,
    )
    assert mean is not None, "the grouping with the best minimum is one"
    if objective == "bottleneck":
        # Only the minimum counts here, and a larger one that turned up on the way to the mean counts, too.
        reached = problem.worst(mean.labels_L)
        return _solution(problem, engine, Answer(mean.labels_L, reached, max(reached, worst.bound)), objective, None)
    return _solution(problem, engine, mean, objective, least, proven=worst.proven and mean.proven)


def _alone(problem: Problem, objective: str, constraints: Constraints) -> Solution:
    """Return as many groups as languages: there is nothing to compare."""
    labels_L = np.arange(problem.num_languages)
    if not problem.satisfied_by(labels_L):
        give_up(problem, constraints, proven=True)
    return Solution(problem.grouping(labels_L), objective, "exact", None, None, None, None, None, True)


def _mean(problem: Problem, engine: Engine, *, floor: float, constraints: Constraints) -> Solution:
    least = None
    if floor > 0:
        worst = engine.best_worst(bounded=False) or give_up(problem, constraints, proven=engine.proves)
        least = worst.value - (1 - floor) * abs(worst.value)
    mean = engine.best_mean(least=least) or give_up(problem, constraints, proven=engine.proves)
    return _solution(problem, engine, mean, "mean", least)


def _solution(
    problem: Problem,
    engine: Engine,
    answer: Answer,
    objective: str,
    least: float | None,
    *,
    proven: bool | None = None,
) -> Solution:
    of_pairs = 1 if objective == "bottleneck" else problem.num_pairs
    return Solution(
        grouping=problem.grouping(answer.labels_L),
        objective=objective,
        method=engine.method,
        mean=float(problem.total(answer.labels_L) / problem.num_pairs),
        min=float(problem.worst(answer.labels_L)),
        value=float(answer.value / of_pairs),
        bound=float(answer.bound / of_pairs) if isfinite(answer.bound) else None,
        least=None if least is None else float(least),
        proven=answer.proven if proven is None else proven,
    )


def front(
    similarity: Similarity,
    *,
    num_groups: int,
    constraints: Constraints = UNCONSTRAINED,
    seed: int = 0,
    effort: float = 1.0,
) -> list[Solution]:
    """Return the trade-off between minimum and mean: every grouping that none beats in both, the minimum rising.

    Each is the best mean for its `least`, from no limit at all to the best minimum. Complete and proven up to 18
    languages and for pairs; above it is what a search finds, a dozen points at most, none of them proven.

    Raises:
        InputError: as `solve`.
    """
    _check_options(objective="mean", floor=0.0, method=None, effort=effort, constraints=constraints)
    problem = build_problem(similarity, num_groups=num_groups, constraints=constraints)
    if problem.num_pairs == 0:
        return [_alone(problem, "mean", constraints)]
    engine = make_engine(problem, seed=seed, effort=effort)
    levels, leap = problem.levels, 1
    last = len(levels) - 1
    if not engine.proves:
        # The best minimum first: its grouping is a start that satisfies every smaller limit.
        worst = engine.best_worst(bounded=False) or give_up(problem, constraints, proven=engine.proves)
        last = int(np.searchsorted(levels, worst.value))
    points: list[Solution] = []
    least: float | None = None
    while (answer := engine.best_mean(least=least, bounded=False, share=SHARE_OF_POINT)) is not None:
        points.append(_solution(problem, engine, answer, "mean", least))
        reached = int(np.searchsorted(levels, problem.worst(answer.labels_L)))
        if reached >= last:
            break
        if not engine.proves:
            leap = max(1, (last - reached) // max(1, MOST_POINTS - len(points)))
        least = float(levels[reached + leap])
    if not points:
        give_up(problem, constraints, proven=engine.proves)
    return _undominated(points)


def _undominated(points: list[Solution]) -> list[Solution]:
    """Return the points that none beats in both minimum and mean, the minimum rising."""
    kept: list[Solution] = []
    for point in sorted(points, key=lambda one: (-(one.min or 0.0), -(one.mean or 0.0))):
        if not kept or (point.mean or 0.0) > (kept[-1].mean or 0.0) + 1e-12 * abs(kept[-1].mean or 0.0):
            kept.append(point)
    return kept[::-1]


def _check_options(
    *, objective: str, floor: float, method: str | None, effort: float, constraints: Constraints
) -> None:
    if objective not in OBJECTIVES:
        raise InputError(f"Unknown objective: {objective!r}. Available: {', '.join(OBJECTIVES)}.")
    if not 0 <= floor <= 1:
        raise InputError(f"The floor is {floor}; it is a share of the best minimum: give a number in 0..1.")
    if not (effort > 0 and isfinite(effort)):
        raise InputError(f"The effort is {effort}; give a positive number, 1 for the usual effort.")
    if method is not None and objective != "greedy":
        raise InputError(
            f"The method {method!r} was given with the objective {objective!r}, which chooses its own; leave the "
            f"method out, or ask for the objective 'greedy'."
        )
    if objective == "greedy" and constraints.given:
        raise InputError(
            "The objective 'greedy' is the paper's algorithm, which knows neither links nor weights; choose another "
            "objective or leave the constraints out."
        )


def _greedy(similarity: Similarity, *, num_groups: int, method: str | None, strict: bool) -> Solution:
    # Made for its checks: a bad number of groups is refused with the same words as for the other objectives.
    problem = build_problem(similarity, num_groups=num_groups, constraints=Constraints(strict=strict))
    if method is None:
        few = num_combinations(problem.num_languages, num_groups=num_groups) <= MOST_COMBINATIONS
        method = "greedy-exhaustive" if few else "greedy-seeded"
    found = group(similarity, num_groups=num_groups, method=method)
    mean, smallest = found.mean_similarity(similarity), found.min_similarity(similarity)
    return Solution(found, "greedy", method, mean, smallest, None, None, None, False)
