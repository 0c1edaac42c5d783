"""What finds groupings for `solve`: exact for few languages or pairs, by search above, closed by CP-SAT on request.

All answer the same two questions, with an upper bound that is the answer's own value where it is proven optimal.
Shapes: L languages.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from sprachbund.grouping import cpsat, exact, matching
from sprachbund.grouping.bounds import bound_total, tolerance
from sprachbund.grouping.matching import Matching
from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.search import Search
from sprachbund.grouping.thresholds import ceiling, tightened

# Below this effort an answer is one of many (a bootstrap), so that neither tables of subsets nor eigenvalues pay.
LITTLE_EFFORT = 0.5
MOST_LANGUAGES_LITTLE_EFFORT = 12

# Eigenvalue computations for a bound of the mean and for each threshold, and the number of thresholds; less of both
# above so many languages, where each takes long.
ROUNDS, THRESHOLDS, ROUNDS_OF_THRESHOLD = 200, 6, 40
LARGE, ROUNDS_LARGE, THRESHOLDS_LARGE = 256, 100, 3


@dataclass(frozen=True, eq=False)
class Answer:
    """A grouping, the value that was asked for and a proven upper bound of it.

    The value is a sum over the pairs that share a group, or the smallest similarity of one.
    """

    labels_L: Labels
    value: float
    bound: float

    @property
    def proven(self) -> bool:
        """Whether nothing can be better."""
        return bool(self.bound <= self.value)


class Engine(Protocol):
    """What `solve` asks; None is the answer where no grouping respects the constraints, or none was found."""

    method: str
    proves: bool

    def best_mean(self, *, least: float | None, bounded: bool = True, share: float = 1.0) -> Answer | None:
        """Return the grouping with the largest mean similarity among those with no pair below `least`."""
        ...

    def best_worst(self, *, bounded: bool = True) -> Answer | None:
        """Return a grouping whose least alike pair is most alike."""
        ...


def make_engine(problem: Problem, *, seed: int, effort: float, close: bool = False) -> Engine:
    """Return what solves a problem best: `close` asks for CP-SAT where the answer is not exact anyway."""
    little = effort < LITTLE_EFFORT and not close
    if problem.num_languages <= (MOST_LANGUAGES_LITTLE_EFFORT if little else exact.MOST_LANGUAGES):
        return Exact(problem, exact.SubsetTables(problem), method="exact")
    if matching.is_matching(problem) and problem.num_languages <= matching.MOST_LANGUAGES and not little:
        return Exact(problem, Matching(problem), method="matching")
    searched = Searched(problem, seed=seed, effort=effort)
    return Closing(problem, searched, seed=seed, effort=effort) if close else searched


class Exact:
    """Answers that are proven optimal."""

    proves = True

    def __init__(self, problem: Problem, tables: exact.SubsetTables | Matching, *, method: str) -> None:
        """Take the algorithm and its name."""
        self.problem, self.tables, self.method = problem, tables, method

    def best_mean(self, *, least: float | None, bounded: bool = True, share: float = 1.0) -> Answer | None:
        """See `Engine`."""
        labels_L = self.tables.best_mean(least=least)
        if labels_L is None:
            return None
        total = self.problem.total(labels_L)
        return Answer(labels_L, total, total)

    def best_worst(self, *, bounded: bool = True) -> Answer | None:
        """See `Engine`."""
        labels_L = self.tables.best_worst()
        if labels_L is None:
            return None
        worst = self.problem.worst(labels_L)
        return Answer(labels_L, worst, worst)


class Searched:
    """Answers of the search, with bounds of relaxations."""

    method = "search"
    proves = False

    def __init__(self, problem: Problem, *, seed: int, effort: float) -> None:
        """Take the problem, the seed of the search and its effort."""
        self.problem, self.little = problem, effort < LITTLE_EFFORT
        large = problem.num_languages > LARGE
        self.rounds, self.thresholds = (ROUNDS_LARGE, THRESHOLDS_LARGE) if large else (ROUNDS, THRESHOLDS)
        self.search = Search(problem, seed=seed, effort=effort)

    @cached_property
    def ceiling(self) -> float:
        """What no minimum can exceed, by the quick checks."""
        return ceiling(self.problem)

    def best_mean(self, *, least: float | None, bounded: bool = True, share: float = 1.0) -> Answer | None:
        """See `Engine`; `share` of the moves."""
        problem = self.problem.with_least(least)
        labels_L = self.search.best_mean(least=least, share=share) if len(problem.levels) else None
        if labels_L is None:
            return None
        rounds = 0 if self.little else self.rounds
        bound = bound_total(problem, labels_L, rounds=rounds) if bounded else np.inf
        return Answer(labels_L, problem.total(labels_L), bound)

    def best_worst(self, *, bounded: bool = True) -> Answer | None:
        """See `Engine`."""
        problem = self.problem
        labels_L = self.search.best_worst(ceiling=self.ceiling) if len(problem.levels) else None
        if labels_L is None:
            return None
        worst = problem.worst(labels_L)
        if not bounded or self.little:
            return Answer(labels_L, worst, self.ceiling)
        bound = tightened(
            problem, reached=worst, ceiling=self.ceiling, tests=self.thresholds, rounds=ROUNDS_OF_THRESHOLD
        )
        return Answer(labels_L, worst, bound)


class Closing:
    """Answers of the search that CP-SAT improves or proves, as far as its time goes."""

    method = "cp-sat"
    proves = False

    def __init__(self, problem: Problem, searched: Searched, *, seed: int, effort: float) -> None:
        """Take the search.

        Raises:
            InputError: OR-Tools is not installed, or there are too many languages for it.
        """
        cpsat.check_available(problem.num_languages)
        self.problem, self.searched, self.seed, self.effort = problem, searched, seed, effort

    def best_mean(self, *, least: float | None, bounded: bool = True, share: float = 1.0) -> Answer | None:
        """See `Engine`."""
        first = self.searched.best_mean(least=least)
        if first is not None and first.proven:
            return first
        problem = self.problem.with_least(least)
        known_L, bound = (None, np.inf) if first is None else (first.labels_L, first.bound)
        closed = cpsat.close_total(problem, known_L=known_L, bound=bound, effort=self.effort, seed=self.seed)
        best_L = known_L if closed.labels_L is None else closed.labels_L
        if best_L is None:
            return None
        best_L = best_L if known_L is None or problem.total(best_L) > problem.total(known_L) else known_L
        total = problem.total(best_L)
        return Answer(best_L, total, total if closed.bound <= total + tolerance(problem) else closed.bound)

    def best_worst(self, *, bounded: bool = True) -> Answer | None:
        """See `Engine`: asks for groupings above what is reached, as long as there is doubt about one."""
        problem, levels = self.problem, self.problem.levels
        first = self.searched.best_worst()
        if first is None:
            closed = cpsat.find(problem, effort=self.effort, seed=self.seed)
            if closed.labels_L is None:
                return None
            first = Answer(closed.labels_L, problem.worst(closed.labels_L), self.searched.ceiling)
        best_L, low = first.labels_L, int(np.searchsorted(levels, first.value))
        high = int(np.searchsorted(levels, first.bound, side="right"))
        # Invariant: levels[low] is reached, levels[high] is refuted; what stays undecided is left to the bound.
        undecided = high
        while min(undecided, high) - low > 1:
            middle = (low + min(undecided, high)) // 2
            closed = cpsat.find(problem.with_least(float(levels[middle])), effort=self.effort / 4, seed=self.seed)
            if closed.labels_L is not None:
                best_L, low = closed.labels_L, int(np.searchsorted(levels, problem.worst(closed.labels_L)))
            elif closed.bound == -np.inf:
                high = middle
            else:
                undecided = middle
        return Answer(best_L, float(levels[low]), float(levels[high - 1]))
