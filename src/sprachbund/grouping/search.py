"""Good groupings of any number of languages, by an evolution of tabu searches.

A population of groupings starts from the paper's two greedy algorithms, balanced clusterings and random ones, each
improved by a tabu search; then two of them at a time are crossed and the child improved, and it replaces the worst
if it is better. Numbers of moves, never seconds, limit it, so that a result depends on the seed alone. After Galinier
and Hao (Hybrid Evolutionary Algorithms for Graph Coloring, 1999).
Shapes: L languages, P places.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.similarity_csv import Matrix
from sprachbund.grouping.starts import clustered_start, crossover, greedy_starts, random_start, unpad
from sprachbund.grouping.swaps import Found, Goal, make_goal, tabu

# Moves at effort 1: a constant and a share for each language; fewer where groups are large and each move is slow.
# Below effort 1 the constant, there to make sure, shrinks twice.
MOVES, MOVES_PER_LANGUAGE, QUICK_GROUP = 25_000, 120, 32
POPULATION = 12

# Moves without success after which a tabu search ends: a constant and a share for each language.
PATIENCE, LANGUAGES_PER_PATIENCE = 40, 8

# In the search for the best minimum a pair below the threshold costs FIXED and, over the whole range of similarities,
# SLOPE; similarity itself counts TIE_BREAK, enough to choose between swaps that are otherwise equal.
FIXED, SLOPE, TIE_BREAK = 0.3, 2.0, 0.05

# The next threshold lies so far between the best minimum and the lowest that was missed, and gets this share of moves.
LEAP, SHARE = 0.3, 0.2


class Search:
    """The best groupings that were found, each the start of the next search."""

    def __init__(self, problem: Problem, *, seed: int, effort: float) -> None:
        """Make the greedy starts; nothing is searched yet.

        Args:
            problem: what to respect. Its `least` must be None: each search is told its own.
            seed: what the starts and all choices are drawn from.
            effort: a factor of the numbers of moves.
        """
        assert problem.least is None, "each search has its own"
        self.problem, self.seed = problem, seed
        moves = MOVES * min(1.0, effort) + MOVES_PER_LANGUAGE * problem.num_languages
        self.moves = max(50, round(effort * moves * min(1.0, QUICK_GROUP / problem.largest)))
        self.patience = PATIENCE + problem.num_languages // LANGUAGES_PER_PATIENCE
        self.population = max(4, round(POPULATION * min(1.0, effort**0.5)))
        self.known = list(greedy_starts(problem, effort=effort))

    def best_mean(self, *, least: float | None = None, share: float = 1.0) -> Labels | None:
        """Return the grouping with the largest mean similarity that was found among those with no pair below `least`.

        What an earlier search of this object found is among the starts.

        Args:
            least: the smallest similarity of a pair that may share a group.
            share: of the moves.

        Returns:
            (L), or None where no grouping was found that satisfies the constraints.
        """
        problem = self.problem.with_least(least)
        goal = make_goal(problem, forbidden_LL=~problem.allowed_LL)
        rng = np.random.default_rng((self.seed, 1))
        moves = round(self.moves * share)
        found = self._evolve(goal, self._starts(goal, rng), moves=moves, rng=rng)[0]
        # What is known counts even where the moves ended before its turn came.
        known = [Found(labels_P, goal.judge(labels_P), 0) for labels_P in self.known]
        best = min([*found, *known], key=lambda one: one.standing)
        return self._keep(best.labels_P) if best.feasible else None

    def best_worst(self, *, ceiling: float) -> Labels | None:
        """Return a grouping whose least alike pair is as much alike as was found.

        A threshold rises towards the ceiling: an evolution for no pair below it, and the others as near to it as can
        be, goes on from the groupings of the threshold before.

        Args:
            ceiling: no grouping can reach more; the search ends there.

        Returns:
            (L), or None where no grouping was found that satisfies the constraints.
        """
        levels, rng = self.problem.levels, np.random.default_rng((self.seed, 2))
        goal = make_goal(self.problem, forbidden_LL=~self.problem.allowed_LL)
        starts = self._starts(goal, rng)
        if goal.constrained:
            found, _ = self._evolve(goal, starts, moves=self.moves, rng=rng, done=lambda one: one.feasible)
            starts[: len(found)] = [one.labels_P for one in found]
        feasible = [labels_P for labels_P in starts if goal.judge(labels_P)[0] == 0]
        if not feasible:
            return None
        best, moves = max(feasible, key=self._worst), self.moves
        last = missed = int(np.searchsorted(levels, ceiling))
        while moves > 0 and (reached := int(np.searchsorted(levels, self._worst(best)))) < last:
            missed = missed if missed > reached else last
            threshold = float(levels[reached + max(1, round(LEAP * (missed - reached)))])
            found, spent = self._evolve(
                self._threshold_goal(threshold),
                starts,
                moves=min(moves, max(self.patience, round(SHARE * self.moves))),
                rng=rng,
                done=partial(self._reaches, threshold),
            )
            moves -= spent
            starts[: len(found)] = [one.labels_P for one in found]
            best = max([best, *(one.labels_P for one in found if goal.judge(one.labels_P)[0] == 0)], key=self._worst)
            if self._worst(best) < threshold:
                missed = int(np.searchsorted(levels, threshold)) - 1
        return self._keep(best)

    def _reaches(self, threshold: float, found: Found) -> bool:
        return found.feasible and self._worst(found.labels_P) >= threshold

    def _threshold_goal(self, threshold: float) -> Goal:
        problem = self.problem
        spread = float(np.ptp(problem.values_LL[np.triu_indices(problem.num_languages, k=1)])) or 1.0
        below_LL = problem.values_LL < threshold
        missing_LL = np.where(below_LL, FIXED + SLOPE * (threshold - problem.values_LL) / spread, 0.0)
        value_LL = TIE_BREAK * problem.values_LL / spread - missing_LL
        return make_goal(problem, value_LL, forbidden_LL=~problem.allowed_LL)

    def _evolve(
        self,
        goal: Goal,
        starts: Sequence[Labels],
        *,
        moves: int,
        rng: np.random.Generator,
        done: Callable[[Found], bool] = lambda _: False,
    ) -> tuple[list[Found], int]:
        """Return the population that grew from the starts, and the moves spent; it ends with the first one `done`."""
        worth_PP, left, population = _worth(goal), moves, list[Found]()
        queue = list(starts)
        while left > 0 and not (population and done(population[-1])):
            if queue:
                population.append(tabu(goal, queue.pop(0), moves=left, patience=self.patience, rng=rng))
                left -= max(1, population[-1].moves)
                continue
            pair = rng.choice(len(population), 2, replace=False).tolist()
            start = crossover(goal, worth_PP, *(population[parent].labels_P for parent in pair))
            child = tabu(goal, start, moves=left, patience=self.patience, rng=rng)
            left -= max(1, child.moves)
            population.sort(key=lambda one: one.standing)
            if done(child) or all(_differ(child, one, scale=goal.scale) for one in population):
                if done(child) or child.standing < population[-1].standing:
                    population[-1] = child
            elif left > 0:
                # A child that is there already says that the population has become one family: bring in a stranger.
                stranger = tabu(goal, random_start(goal, rng), moves=left, patience=self.patience, rng=rng)
                left -= max(1, stranger.moves)
                population[-1] = stranger
        return population, moves - left

    def _starts(self, goal: Goal, rng: np.random.Generator) -> list[Labels]:
        """Return what is known, then clusterings and random groupings in turns."""
        worth_PP, starts = _worth(goal), list(self.known)
        while len(starts) < max(self.population, len(self.known) + 2):
            clustered = len(starts) % 2 == 0
            starts.append(clustered_start(goal, worth_PP, rng) if clustered else random_start(goal, rng))
        return starts

    def _keep(self, labels_P: Labels) -> Labels:
        self.known.append(labels_P)
        return unpad(labels_P, self.problem)

    def _worst(self, labels_P: Labels) -> float:
        return self.problem.worst(unpad(labels_P, self.problem))


def _worth(goal: Goal) -> Matrix:
    """Return the values with a price for violations: what crossover and clustering go by."""
    return goal.values_PP if goal.bad_PP is None else goal.values_PP - goal.scale * goal.bad_PP


def _differ(one: Found, other: Found, *, scale: float) -> bool:
    return abs(one.standing[1] - other.standing[1]) > 1e-9 * scale or one.standing[0] != other.standing[0]
