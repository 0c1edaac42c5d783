"""Tabu search over groupings: swap two languages of different groups, always the best swap that is not tabu.

Groups of different sizes are filled up with empty places that are alike to nothing, at most one in a group: to move a
language into a smaller group is then to swap it with an empty place, and every grouping is one of equal sizes. What is
not allowed is a violation with a price; the price falls while the search stays among groupings without violations and
rises while it does not, so that it moves along the border, where the best groupings under constraints lie.

The gain of all P^2 swaps is not computed anew for every move: a swap changes only the gains of the places in its two
groups. For each place the best partner is remembered, and what the move made stale is computed again.
Shapes: P places (languages and empty ones), G groups, S places in a group, N of the places.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.similarity_csv import Matrix

# The price of violations changes after so many moves on one side of the border (one for each 16 places, at least 5:
# it makes all gains stale), by this factor.
PRICE_PATIENCE, PLACES_PER_PATIENCE = 5, 16
PRICE_FACTOR = 1.5

# Violations of pairs are whole numbers, of weights shares of the mean weight: below this there is none.
TOLERANCE = 1e-9

# A gain of less is rounding: with it a search could go in circles and call every round an improvement.
SMALLEST_GAIN = 1e-12


@dataclass(frozen=True, eq=False)
class Goal:
    """What a search maximises, over places.

    Attributes:
        values_PP: (P, P) what two places that share a group add; symmetric, zero on the diagonal.
        bad_PP: (P, P) the violations of two places that share a group, negative where they must; None where nothing
            is forbidden.
        num_together: how many pairs must share a group: added to the violations, so that none is zero.
        weights_P: (P) in shares of the mean weight of a group, or None.
        lightest, heaviest: limits of a group's weight in that unit.
        empty_P: (P) which places are empty.
        num_groups: G.
        scale: the spread of the values, from which the first price is made.
    """

    values_PP: Matrix
    bad_PP: Matrix | None
    num_together: int
    weights_P: Matrix | None
    lightest: float
    heaviest: float
    empty_P: NDArray[np.bool_]
    num_groups: int
    scale: float

    @property
    def constrained(self) -> bool:
        """Whether there can be violations."""
        return self.bad_PP is not None or self.weights_P is not None

    def excess(self, loads: Matrix) -> Matrix:
        """Return by how much weights of groups miss their window."""
        return np.maximum(0.0, np.maximum(self.lightest - loads, loads - self.heaviest))

    def judge(self, labels_P: Labels) -> tuple[float, float]:
        """Return (violations, -value) of a grouping: the smaller, the better."""
        members_GS = members(labels_P, num_groups=self.num_groups)
        pairs = members_GS[:, :, None], members_GS[:, None, :]
        violation = 0.0
        if self.bad_PP is not None:
            violation += float(self.bad_PP[pairs].sum()) / 2 + self.num_together
        if self.weights_P is not None:
            violation += float(self.excess(self.weights_P[members_GS].sum(axis=1)).sum())
        return (violation if violation > TOLERANCE else 0.0), -float(self.values_PP[pairs].sum()) / 2


def make_goal(problem: Problem, values_LL: Matrix | None = None, *, forbidden_LL: NDArray[np.bool_]) -> Goal:
    """Return the goal of a problem; `values_LL` where the sum of something else than similarities is maximised."""
    num_languages, num_places = problem.num_languages, problem.num_groups * problem.largest
    values_LL = problem.values_LL if values_LL is None else values_LL
    upper = np.triu_indices(num_languages, k=1)
    values_PP = np.zeros((num_places, num_places))
    # Less the mean, which changes all groupings alike: then what is alike is positive whatever the similarity.
    values_PP[:num_languages, :num_languages] = values_LL - values_LL[upper].mean()
    np.fill_diagonal(values_PP, 0.0)
    bad_PP = np.zeros((num_places, num_places))
    bad_PP[:num_languages, :num_languages] = forbidden_LL
    num_together = 0
    for linked in problem.together:
        bad_PP[np.ix_(linked, linked)] = -1.0
        num_together += math.comb(len(linked), 2)
    np.fill_diagonal(bad_PP, 0.0)
    mean, weights_P = 1.0, None
    if problem.weights_L is not None:
        mean = float(problem.weights_L.sum()) / problem.num_groups
        weights_P = np.concatenate([problem.weights_L / mean, np.zeros(num_places - num_languages)])
    return Goal(
        values_PP,
        bad_PP if bad_PP.any() else None,
        num_together,
        weights_P,
        problem.lightest / mean,
        problem.heaviest / mean,
        np.arange(num_places) >= num_languages,
        problem.num_groups,
        float(np.ptp(values_LL[upper])) or 1.0,
    )


def members(labels_P: Labels, *, num_groups: int) -> NDArray[np.intp]:
    """Return (G, S) the places of every group, ascending."""
    return np.argsort(labels_P, kind="stable").reshape(num_groups, -1)


class Swaps:
    """A grouping and the gains of its swaps, kept up to date while swaps are made."""

    def __init__(self, goal: Goal, labels_P: Labels) -> None:
        """Start at a grouping of equal sizes with at most one empty place in a group."""
        self.goal = goal
        self.labels_P, self.places_P = labels_P.copy(), np.arange(len(labels_P))
        self.members_GS = members(labels_P, num_groups=goal.num_groups)
        self.slot_P = np.empty(len(labels_P), dtype=np.intp)
        self.slot_P[self.members_GS] = np.arange(self.members_GS.shape[1])
        self.violation, self.cost = goal.judge(labels_P)
        self.has_empty_G: NDArray[np.bool_] = np.any(goal.empty_P[self.members_GS], axis=1)
        self.load_G = np.zeros(0) if goal.weights_P is None else goal.weights_P[self.members_GS].sum(axis=1)
        self.set_price(goal.scale if goal.constrained else 0.0)

    def set_price(self, price: float) -> None:
        """Weigh one violation against the values, and sum up what every place would add to every group."""
        self.price = price
        bad_PP = self.goal.bad_PP
        worth_PP = self.goal.values_PP if bad_PP is None else self.goal.values_PP - price * bad_PP
        self.worth_PP, self.twice_PP = worth_PP, 2 * worth_PP
        self.to_group_GP = worth_PP[self.members_GS].sum(axis=1)
        self.to_group_PG = np.ascontiguousarray(self.to_group_GP.T)
        self.to_own_P = self.to_group_PG[self.places_P, self.labels_P]

    def gains(self, places_N: NDArray[np.intp]) -> Matrix:
        """Return (N, P) what a swap of each of these places with every place gains; -inf where it is none."""
        labels_P, groups_N = self.labels_P, self.labels_P[places_N]
        gains_NP: Matrix = self.to_group_PG[places_N].take(labels_P, axis=1)
        gains_NP += self.to_group_GP[groups_N]
        gains_NP -= self.to_own_P[places_N][:, None]
        gains_NP -= self.to_own_P
        gains_NP -= self.twice_PP[places_N]
        if self.goal.weights_P is not None:
            gains_NP -= self.price * self._more_excess(places_N)
        empty_P = self.goal.empty_P
        if empty_P[-1]:
            crowded_P = self.has_empty_G[labels_P]
            gains_NP[empty_P[places_N][:, None] & crowded_P] = -np.inf
            gains_NP[crowded_P[places_N][:, None] & empty_P] = -np.inf
        gains_NP[groups_N[:, None] == labels_P] = -np.inf
        return gains_NP

    def _more_excess(self, places_N: NDArray[np.intp]) -> Matrix:
        weights_P, loads_P = self.goal.weights_P, self.load_G[self.labels_P]
        assert weights_P is not None
        more_NP = weights_P - weights_P[places_N][:, None]
        after_NP = self.goal.excess(loads_P[places_N][:, None] + more_NP) + self.goal.excess(loads_P - more_NP)
        excess_P = self.goal.excess(loads_P)
        return after_NP - excess_P[places_N][:, None] - excess_P

    def swap(self, a: int, b: int, *, gain: float) -> NDArray[np.intp]:
        """Swap two places and return those in their two groups."""
        group_a, group_b = self.labels_P[a], self.labels_P[b]
        if self.goal.constrained:
            self._account(a, b, group_a, group_b)
        else:
            self.cost -= gain
        change_P = self.worth_PP[b] - self.worth_PP[a]
        self.to_group_GP[group_a] += change_P
        self.to_group_GP[group_b] -= change_P
        self.to_group_PG[:, group_a] = self.to_group_GP[group_a]
        self.to_group_PG[:, group_b] = self.to_group_GP[group_b]
        slot_a, slot_b = self.slot_P[a], self.slot_P[b]
        self.labels_P[a], self.labels_P[b] = group_b, group_a
        self.members_GS[group_a, slot_a], self.members_GS[group_b, slot_b] = b, a
        self.slot_P[a], self.slot_P[b] = slot_b, slot_a
        if self.goal.empty_P[a] != self.goal.empty_P[b]:
            self.has_empty_G[[group_a, group_b]] = self.has_empty_G[[group_b, group_a]]
        self.to_own_P = self.to_group_PG[self.places_P, self.labels_P]
        return self.members_GS[[group_a, group_b]].ravel()

    def _account(self, a: int, b: int, group_a: int, group_b: int) -> None:
        """Keep value and violations apart: their weighted sum is what the gains know."""
        goal, in_a_S, in_b_S = self.goal, self.members_GS[group_a], self.members_GS[group_b]

        def more(matrix_PP: Matrix) -> float:
            moved = matrix_PP[a, in_b_S].sum() + matrix_PP[b, in_a_S].sum() - 2 * matrix_PP[a, b]
            return float(moved - matrix_PP[a, in_a_S].sum() - matrix_PP[b, in_b_S].sum())

        self.cost -= more(goal.values_PP)
        if goal.bad_PP is not None:
            self.violation += more(goal.bad_PP)
        if goal.weights_P is not None:
            pair = [group_a, group_b]
            before = goal.excess(self.load_G[pair]).sum()
            change = goal.weights_P[b] - goal.weights_P[a]
            self.load_G[pair] += [change, -change]
            self.violation += float(goal.excess(self.load_G[pair]).sum() - before)

    @property
    def standing(self) -> tuple[float, float]:
        """(violations, -value): the smaller, the better."""
        return (self.violation if self.violation > TOLERANCE else 0.0), self.cost


@dataclass(frozen=True, eq=False)
class Found:
    """The best grouping of one tabu search, its standing and the moves that were made."""

    labels_P: Labels
    standing: tuple[float, float]
    moves: int

    @property
    def feasible(self) -> bool:
        """Whether nothing is violated."""
        return self.standing[0] == 0


def tabu(
    goal: Goal,
    labels_P: Labels,
    *,
    moves: int,
    patience: int,
    rng: np.random.Generator,
    until_feasible: bool = False,
) -> Found:
    """Search from a grouping until `patience` moves in a row found nothing better, or `moves` are made.

    A language that was moved stays where it is for the next moves: some ten, drawn at random against circles.

    Args:
        goal: what to maximise.
        labels_P: (P) where to start.
        moves: at most so many.
        patience: see above.
        rng: for the number of moves that a moved language stays.
        until_feasible: stop at the first grouping without violations.
    """
    swaps = Swaps(goal, labels_P)
    num_places = len(labels_P)
    best, best_P, since, side, made = swaps.standing, swaps.labels_P.copy(), 0, 0, 0
    shortest = max(1, min(10, num_places // 6))
    stays = rng.integers(shortest, 2 * shortest + 1, size=(min(moves, 2 * patience), 2)).tolist()
    price_patience = max(PRICE_PATIENCE, num_places // PLACES_PER_PATIENCE)
    tabu_until: dict[int, int] = {}
    partners = _Partners(swaps)
    while made < moves and since < patience and not (until_feasible and best[0] == 0):
        a, b, gain = partners.best()
        if gain == -np.inf and not tabu_until:
            break
        stale_P = np.zeros(num_places, dtype=bool)
        if gain > -np.inf:
            stale_P[swaps.swap(a, b, gain=gain)] = True
            tabu_until[a], tabu_until[b] = (made + stay for stay in stays[made % len(stays)])
        made += 1
        for place in [place for place, until in tabu_until.items() if until < made]:
            del tabu_until[place]
            stale_P[place] = True
        if goal.constrained:
            side += 1 if swaps.standing[0] else -1
            if abs(side) >= price_patience:
                swaps.set_price(_next_price(swaps.price, up=side > 0, scale=goal.scale))
                stale_P[:], side = True, 0
        partners.refresh(stale_P, list(tabu_until))
        standing = swaps.standing
        if standing[0] < best[0] - TOLERANCE or (
            standing[0] <= best[0] + TOLERANCE and standing[1] < best[1] - SMALLEST_GAIN * goal.scale
        ):
            best, best_P, since = standing, swaps.labels_P.copy(), 0
        else:
            since += 1
    return Found(best_P, goal.judge(best_P), made)


def _next_price(price: float, *, up: bool, scale: float) -> float:
    return min(1e4 * scale, price * PRICE_FACTOR) if up else max(1e-4 * scale, price / PRICE_FACTOR)


class _Partners:
    """For every place its best partner for a swap among the places that are not tabu, and the gain."""

    def __init__(self, swaps: Swaps) -> None:
        self.swaps = swaps
        self.places_P = swaps.places_P
        gains_PP = swaps.gains(self.places_P)
        self.partner_P = gains_PP.argmax(axis=1)
        self.gain_P = gains_PP[self.places_P, self.partner_P]

    def best(self) -> tuple[int, int, float]:
        a = int(self.gain_P.argmax())
        return a, int(self.partner_P[a]), float(self.gain_P[a])

    def refresh(self, stale_P: NDArray[np.bool_], tabu_places: list[int]) -> None:
        """Compute anew the gains of stale places and of those whose partner is stale."""
        stale_P = stale_P | stale_P[self.partner_P]
        stale_P[tabu_places] = False
        self.gain_P[tabu_places] = -np.inf
        stale_N = stale_P.nonzero()[0]
        if not len(stale_N):
            return
        gains_NP = self.swaps.gains(stale_N)
        gains_NP[:, tabu_places] = -np.inf
        partner_N = gains_NP.argmax(axis=1)
        self.partner_P[stale_N] = partner_N
        self.gain_P[stale_N] = gains_NP[np.arange(len(stale_N)), partner_N]
        # A place that is not stale may have found a better partner among those that are.
        offer_P = gains_NP.max(axis=0)
        better = (offer_P > self.gain_P).nonzero()[0]
        self.gain_P[better] = offer_P[better]
        self.partner_P[better] = stale_N[gains_NP[:, better].argmax(axis=0)]
