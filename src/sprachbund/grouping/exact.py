"""The best grouping of up to 18 languages, by dynamic programming over subsets.

A set of languages is a number whose bit i says whether language i is in it, so a table over all sets has 2^L entries.
best[set] is the best partition of that set into groups of one size: its first language is in some group, so try each
group with it. Groups of two sizes take two such tables, one for each size, joined at the languages that the larger
groups take. 18 languages need a few million group-and-rest pairs, which numpy looks up a million at a time.
Shapes: M = 2^L sets of languages, P sets of equally many, C combinations of languages.
"""

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.similarity_csv import Matrix

MOST_LANGUAGES = 18
CHUNK = 2**19

Sets: TypeAlias = NDArray[np.int64]


class SubsetTables:
    """What every set of languages would be worth as a group; made once and asked for several optima."""

    def __init__(self, problem: Problem) -> None:
        """Make the tables of a problem of at most 18 languages."""
        num_languages = problem.num_languages
        assert num_languages <= MOST_LANGUAGES, "the tables double with every language"
        self.problem = problem
        allowed_LL, values_LL = problem.allowed_LL, problem.values_LL
        self.total_M = _over_pairs(np.where(allowed_LL, values_LL, -np.inf), combine=np.add, empty=0.0)
        self.worst_M = _over_pairs(np.where(allowed_LL, values_LL, -np.inf), combine=np.minimum, empty=np.inf)
        sets_M = np.arange(2**num_languages)
        for linked in problem.together:
            bits = sum(1 << i for i in linked)
            self._forbid(((sets_M & bits) != 0) & ((sets_M & bits) != bits))
        if problem.weights_L is not None:
            weight_M = np.zeros(1)
            for weight in problem.weights_L.tolist():
                weight_M = np.concatenate([weight_M, weight_M + weight])
            self._forbid((weight_M < problem.lightest) | (weight_M > problem.heaviest))
        self.sets_of_size = _by_size(num_languages)

    def _forbid(self, sets_M: NDArray[np.bool_]) -> None:
        self.total_M[sets_M] = self.worst_M[sets_M] = -np.inf

    def best_mean(self, *, least: float | None = None) -> Labels | None:
        """Return the grouping with the largest mean similarity among those with no pair below `least`, or None."""
        score_M = self.total_M if least is None else np.where(self.worst_M >= least, self.total_M, -np.inf)
        return self._best(score_M, combine=np.add, empty=0.0)

    def best_worst(self) -> Labels | None:
        """Return a grouping whose least alike pair is most alike, or None where nothing satisfies the constraints."""
        return self._best(self.worst_M, combine=np.minimum, empty=np.inf)

    def _best(self, score_M: Matrix, *, combine: Callable[..., Matrix], empty: float) -> Labels | None:
        problem = self.problem
        everything = 2**problem.num_languages - 1
        num_smaller = problem.num_groups - problem.num_larger
        fill = [
            _fill(score_M, self.sets_of_size, size=size, count=count, combine=combine, empty=empty)
            for size, count in ((problem.smallest + 1, problem.num_larger), (problem.smallest, num_smaller))
        ]
        (larger_M, larger_choice_M), (smaller_M, smaller_choice_M) = fill
        in_larger_P = self.sets_of_size[problem.num_larger * (problem.smallest + 1)]
        joined_P = combine(larger_M[in_larger_P], smaller_M[everything ^ in_larger_P])
        winner = int(joined_P.argmax())
        if joined_P[winner] == -np.inf:
            return None
        larger = int(in_larger_P[winner])
        groups = [*_unfold(larger_choice_M, larger), *_unfold(smaller_choice_M, everything ^ larger)]
        labels_L = np.empty(problem.num_languages, dtype=np.intp)
        for number, group in enumerate(groups):
            labels_L[[i for i in range(problem.num_languages) if group >> i & 1]] = number
        return labels_L


def _over_pairs(values_LL: Matrix, *, combine: Callable[..., Matrix], empty: float) -> Matrix:
    """Return (M) the sum or the minimum over the pairs of every set, doubling the table language by language."""
    table_M = np.full(1, empty)
    for new, values_L in enumerate(values_LL):
        to_new_M = np.full(1, empty)
        for value in values_L[:new].tolist():
            to_new_M = np.concatenate([to_new_M, combine(to_new_M, value)])
        table_M = np.concatenate([table_M, combine(table_M, to_new_M)])
    return table_M


def _by_size(num_languages: int) -> list[Sets]:
    """Return for every size 0..L the sets of that many languages, ascending."""
    size_M = np.bitwise_count(np.arange(2**num_languages))
    return [np.flatnonzero(size_M == size) for size in range(num_languages + 1)]


def _fill(
    score_M: Matrix,
    sets_of_size: list[Sets],
    *,
    size: int,
    count: int,
    combine: Callable[..., Matrix],
    empty: float,
) -> tuple[Matrix, Sets]:
    """Return (M) the score of the best partition into up to `count` groups of one size, and the first such group."""
    best_M = np.full(len(score_M), -np.inf)
    choice_M = np.zeros(len(score_M), dtype=np.int64)
    best_M[0] = empty
    for num_members in range(size, size * count + 1, size):
        sets_P = sets_of_size[num_members]
        bits_PS = _bits(sets_P, num_members=num_members)
        best_P, choice_P = np.full(len(sets_P), -np.inf), np.zeros(len(sets_P), dtype=np.int64)
        num_combinations = comb(num_members - 1, size - 1)
        others_CS = np.array(list(combinations(range(1, num_members), size - 1)), dtype=np.intp)
        others_CS = others_CS.reshape(num_combinations, size - 1)
        step = max(1, CHUNK // len(sets_P))
        for begin in range(0, num_combinations, step):
            chunk_CS = others_CS[begin : begin + step]
            group_PC = np.repeat(bits_PS[:, :1], len(chunk_CS), axis=1)
            for other_C in chunk_CS.T:
                group_PC += bits_PS[:, other_C]
            score_PC = combine(score_M[group_PC], best_M[sets_P[:, None] ^ group_PC])
            winner_P = score_PC.argmax(axis=1)[:, None]
            score_P = np.take_along_axis(score_PC, winner_P, axis=1)[:, 0]
            better_P = score_P > best_P
            best_P[better_P] = score_P[better_P]
            choice_P[better_P] = np.take_along_axis(group_PC, winner_P, axis=1)[better_P, 0]
        best_M[sets_P], choice_M[sets_P] = best_P, choice_P
    return best_M, choice_M


def _bits(sets_P: Sets, *, num_members: int) -> Sets:
    """Return (P, members) the bits that are set, lowest first."""
    bits_PS, rest_P = np.empty((len(sets_P), num_members), dtype=np.int64), sets_P.copy()
    for position in range(num_members):
        bits_PS[:, position] = rest_P & -rest_P
        rest_P &= rest_P - 1
    return bits_PS


def _unfold(choice_M: Sets, members: int) -> list[int]:
    groups = []
    while members:
        groups.append(int(choice_M[members]))
        members ^= groups[-1]
    return groups
