"""How alike the least alike pair can be at best: thresholds that no grouping can reach.

At a threshold, pairs below it may not share a group. What follows from that is checked in turn, cheap before dear: each
check that fails is a proof that the threshold is too high, and none of them proves that it is not.
Shapes: L languages.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from sprachbund.grouping.bounds import relax, semidefinite_bound
from sprachbund.grouping.problem import Problem
from sprachbund.grouping.similarity_csv import Matrix

# A threshold is refuted where every grouping has at least so many pairs below it: any number above 0 would do.
VIOLATIONS = 0.01


def ceiling(problem: Problem) -> float:
    """Return the highest similarity that the quick checks do not refute as a minimum.

    Args:
        problem: without `least`, with at least one pair that shares a group.
    """
    levels = problem.levels
    together = [problem.values_LL[a, b] for linked in problem.together for a in linked for b in linked if a < b]
    highest = min([_mutually_below(problem), *together, float(levels[-1])])
    low, high = 0, int(np.searchsorted(levels, highest, side="right"))
    # Invariant: a minimum of levels[high] or more is refuted, one of levels[low] is not, or is the lowest there is.
    while high - low > 1:
        middle = (low + high) // 2
        if _refuted(problem.with_least(float(levels[middle]))):
            high = middle
        else:
            low = middle
    return float(levels[low])


def tightened(problem: Problem, *, reached: float, ceiling: float, tests: int, rounds: int) -> float:
    """Return a lower ceiling, where the semidefinite relaxation refutes thresholds between `reached` and `ceiling`.

    The threshold next to what is reached comes first: where it is refuted, `reached` is proven optimal.

    Args:
        problem: without `least`.
        reached: the smallest similarity in the best grouping known.
        ceiling: of `ceiling`.
        tests: how many thresholds are tried.
        rounds: of the relaxation, for each.
    """
    levels = problem.levels
    low, high = np.searchsorted(levels, [reached, ceiling], side="right").tolist()
    # levels[low] is the next above what is reached, and levels[high - 1] the ceiling.
    for step in range(tests):
        if low >= high:
            break
        middle = low if step == 0 else (low + high) // 2
        if _too_many_below(problem, float(levels[middle]), rounds=rounds):
            high = middle
        else:
            low = middle + 1
    return float(levels[high - 1])


def _too_many_below(problem: Problem, threshold: float, *, rounds: int) -> bool:
    below_LL = (problem.values_LL < threshold).astype(np.float64)
    return semidefinite_bound(relax(problem, -below_LL), rounds=rounds, enough=-VIOLATIONS) <= -VIOLATIONS


def _refuted(problem: Problem) -> bool:
    """Return whether the pairs that are left cannot make groups of the required sizes."""
    near_LL = problem.allowed_LL & ~np.eye(problem.num_languages, dtype=bool)
    degree_L = near_LL.sum(axis=1)
    if _too_few(degree_L, problem):
        return True
    if problem.smallest > 2:
        near_LL = _in_cliques(near_LL, common=problem.smallest - 2)
        degree_L = near_LL.sum(axis=1)
        if _too_few(degree_L, problem):
            return True
    return not _components_fit(near_LL, problem)


def _too_few(degree_L: NDArray[np.int_], problem: Problem) -> bool:
    """Return whether languages have fewer possible partners than their groups have other members."""
    in_larger = problem.num_larger * (problem.smallest + 1)
    return bool((degree_L < problem.smallest - 1).any() or (degree_L >= problem.smallest).sum() < in_larger)


def _in_cliques(near_LL: NDArray[np.bool_], *, common: int) -> NDArray[np.bool_]:
    """Return the pairs that have so many partners in common, again and again until none falls away."""
    while True:
        shared_LL = near_LL.astype(np.float32) @ near_LL.astype(np.float32)
        kept_LL = near_LL & (shared_LL >= common)
        if (kept_LL == near_LL).all():
            return near_LL
        near_LL = kept_LL


def _components_fit(near_LL: NDArray[np.bool_], problem: Problem) -> bool:
    """Return whether every connected part can be cut into groups of the two sizes, all of them into K."""
    _, part_L = connected_components(csr_matrix(near_LL), directed=False)
    counts = np.bincount(part_L)
    fewest, most = -(-counts // problem.largest), counts // problem.smallest
    return bool((fewest <= most).all() and fewest.sum() <= problem.num_groups <= most.sum())


def _mutually_below(problem: Problem) -> float:
    """Return the smallest largest similarity that was found among K + 1 languages: two of them share a group.

    A set is grown from every language by the one whose largest similarity to the set is smallest.
    """
    cost_LL: Matrix = np.where(problem.allowed_LL, problem.values_LL, -np.inf)
    np.fill_diagonal(cost_LL, np.inf)
    to_set_LL, largest_L = cost_LL, np.full(problem.num_languages, -np.inf)
    everything = np.arange(problem.num_languages)
    for _ in range(min(problem.num_groups, problem.num_languages - 1)):
        new_L = to_set_LL.argmin(axis=1)
        largest_L = np.maximum(largest_L, to_set_LL[everything, new_L])
        to_set_LL = np.maximum(to_set_LL, cost_LL[new_L])
    return float(largest_L.min())
