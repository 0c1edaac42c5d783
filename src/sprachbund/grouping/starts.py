"""Where a search begins: groupings made from nothing, and from two others (crossover).

All are over places, see `swaps.py`: groups of equal sizes, with at most one empty place in a group.
Shapes: P places, L languages, G groups, S places in a group.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sprachbund.grouping.greedy import (
    MOST_COMBINATIONS,
    group_greedy_exhaustive,
    group_greedy_seeded,
    num_combinations,
)
from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.similarity_csv import Matrix
from sprachbund.grouping.swaps import Goal, members

CLUSTERING_ROUNDS = 4


def greedy_starts(problem: Problem, *, effort: float) -> Iterator[Labels]:
    """Yield what the paper's two algorithms find: the exhaustive one where it can be run, at little effort at once."""
    similarity, num_groups = problem.similarity(), problem.num_groups
    yield pad(problem.labels(group_greedy_seeded(similarity, num_groups=num_groups)), problem)
    if num_combinations(problem.num_languages, num_groups=num_groups) <= MOST_COMBINATIONS * min(1.0, effort**2):
        yield pad(problem.labels(group_greedy_exhaustive(similarity, num_groups=num_groups)), problem)


def pad(labels_L: Labels, problem: Problem) -> Labels:
    """Return the labels of all places, where each smaller group has an empty one."""
    sizes_G = np.bincount(labels_L, minlength=problem.num_groups)
    return np.concatenate([labels_L, np.flatnonzero(sizes_G < problem.largest)])


def unpad(labels_P: Labels, problem: Problem) -> Labels:
    """Return the labels of the languages."""
    return labels_P[: problem.num_languages]


def random_start(goal: Goal, rng: np.random.Generator) -> Labels:
    """Return a grouping drawn at random."""
    return spread(goal, rng.permutation(np.arange(len(goal.empty_P)) % goal.num_groups))


def clustered_start(goal: Goal, worth_PP: Matrix, rng: np.random.Generator) -> Labels:
    """Return a balanced clustering: k-means with places for centres' members, by optimal assignment.

    After Bradley, Bennett and Demiriz (Constrained K-Means Clustering, 2000), with the similarity to a group in place
    of the distance to a centre.
    """
    num_places, num_groups = len(worth_PP), goal.num_groups
    affinity_PG = worth_PP[:, rng.choice(num_places, num_groups, replace=False)]
    size = num_places // num_groups
    labels_P = np.empty(num_places, dtype=np.intp)
    for _ in range(CLUSTERING_ROUNDS):
        places, seats = linear_sum_assignment(-np.repeat(affinity_PG, size, axis=1))
        labels_P[places] = seats // size
        affinity_PG = worth_PP[members(labels_P, num_groups=num_groups)].sum(axis=1).T
    return spread(goal, labels_P)


def crossover(goal: Goal, worth_PP: Matrix, first_P: Labels, second_P: Labels) -> Labels:
    """Return a grouping made of the best groups of two: what is good in both survives.

    In turns, the group of one parent whose remaining members are worth most together becomes a group of the child;
    places that remain are assigned to seats that remain. After the greedy partition crossover of Galinier and Hao
    (Hybrid Evolutionary Algorithms for Graph Coloring, 1999).
    """
    num_groups, num_places = goal.num_groups, len(first_P)
    parents = first_P, second_P
    members_2GS = [members(labels_P, num_groups=num_groups) for labels_P in parents]
    worth_2G = [_worth(worth_PP, members_GS, np.ones(num_places, bool)) for members_GS in members_2GS]
    free_P = np.ones(num_places, dtype=bool)
    child_P = np.full(num_places, -1, dtype=np.intp)
    for number in range(num_groups):
        turn, other = number % 2, 1 - number % 2
        best = int(worth_2G[turn].argmax())
        chosen = members_2GS[turn][best]
        chosen = chosen[free_P[chosen]]
        child_P[chosen] = number
        free_P[chosen] = False
        worth_2G[turn][best] = -np.inf
        touched = np.unique(parents[other][chosen])
        touched = touched[worth_2G[other][touched] > -np.inf]
        worth_2G[other][touched] = _worth(worth_PP, members_2GS[other][touched], free_P)
    rest = np.flatnonzero(free_P)
    if len(rest):
        taken = np.flatnonzero(~free_P)
        counts_G = np.bincount(child_P[taken], minlength=num_groups)
        affinity_PG = np.zeros((len(rest), num_groups))
        np.add.at(affinity_PG.T, child_P[taken], worth_PP[taken][:, rest])
        seats = np.repeat(np.arange(num_groups), num_places // num_groups - counts_G)
        rows, columns = linear_sum_assignment(-affinity_PG[:, seats])
        child_P[rest[rows]] = seats[columns]
    return spread(goal, child_P)


def _worth(worth_PP: Matrix, members_GS: NDArray[np.intp], free_P: NDArray[np.bool_]) -> Matrix:
    """Return (G) what the free members of each group are worth together."""
    free_GS = free_P[members_GS]
    worth_GSS = worth_PP[members_GS[:, :, None], members_GS[:, None, :]]
    both_GSS = free_GS[:, :, None] & free_GS[:, None, :]
    worth_G: Matrix = np.where(both_GSS, worth_GSS, 0.0).sum(axis=(1, 2)) / 2
    return worth_G


def shaken(goal: Goal, labels_P: Labels, rng: np.random.Generator) -> Labels:
    """Return a grouping where the members of two groups drawn at random are dealt anew."""
    labels_P = labels_P.copy()
    where = np.flatnonzero(np.isin(labels_P, rng.choice(goal.num_groups, 2, replace=False)))
    labels_P[where] = rng.permutation(labels_P[where])
    return spread(goal, labels_P)


def spread(goal: Goal, labels_P: Labels) -> Labels:
    """Exchange empty places, where a group has more than one, with the last language of a group that has none."""
    labels_P = labels_P.copy()
    empty = np.flatnonzero(goal.empty_P)
    counts_G = np.bincount(labels_P[empty], minlength=goal.num_groups)
    without = [group for group in range(goal.num_groups) if counts_G[group] == 0]
    for place in empty[::-1].tolist():
        crowded = int(labels_P[place])
        if counts_G[crowded] > 1:
            group = without.pop(0)
            language = np.flatnonzero(labels_P == group)[-1]
            labels_P[place], labels_P[language] = group, crowded
            counts_G[crowded] -= 1
    return labels_P
