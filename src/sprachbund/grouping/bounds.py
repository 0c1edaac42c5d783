"""Proven upper bounds: no grouping under the constraints can be better, whatever search is used.

A grouping is a matrix X over places, 1 where two share a group: positive semidefinite, with ones on its diagonal, S in
every row's sum, nothing outside 0..1. Its eigenvalues are S, once for each group, and 0. Without the demand for whole
numbers the best such X is a semidefinite program whose value is a bound (after Donath and Hoffman 1973 and Rendl and
Wolkowicz 1995 for eigenvalues, Zhao and others 1998 for the nonnegative relaxation of graph partitioning).

The bounds here hold whether or not that program is solved to the end. X is taken from two sets at once, one given by
eigenvalues and one by entries; multipliers M price the difference, and for any M whatever

    max over eigenvalue set of <V + M, X>  +  max over entry set of <-M, Z>

is at least the best grouping's value: the alternating directions method only looks for an M that makes it small.
Shapes: P places (languages, and empty ones that fill up smaller groups), L languages.
"""

from dataclasses import dataclass

import numpy as np

from sprachbund.grouping.problem import Labels, Problem
from sprachbund.grouping.similarity_csv import Matrix

# Of the spread of the similarities: a bound nearer to the value than this proves it optimal.
PROOF = 1e-9

# The penalty of the alternating directions, for values of standard deviation 1, and their over-relaxation.
PENALTY, RELAXATION = 3.0, 1.6

# The rounds end early where the last so many closed less than this share of the gap.
STALE_ROUNDS, STALE = 20, 0.002

DEGREE_ROUNDS = 60


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The entries of X that are allowed, and the values.

    Attributes:
        values_PP: (P, P) symmetric, zero on the diagonal.
        lower_PP, upper_PP: (P, P) limits of the entries of X; both 1 on the diagonal.
        num_groups: K, a divisor of P.
    """

    values_PP: Matrix
    lower_PP: Matrix
    upper_PP: Matrix
    num_groups: int


def relax(problem: Problem, values_LL: Matrix) -> Relaxation:
    """Return the relaxation of a problem with these values in place of the similarities."""
    num_languages, num_places = problem.num_languages, problem.num_groups * problem.largest
    values_PP, upper_PP = np.zeros((num_places, num_places)), np.ones((num_places, num_places))
    values_PP[:num_languages, :num_languages] = values_LL
    np.fill_diagonal(values_PP, 0.0)
    upper_PP[:num_languages, :num_languages] = problem.allowed_LL
    upper_PP[num_languages:, num_languages:] = 0.0
    np.fill_diagonal(upper_PP, 1.0)
    lower_PP = np.eye(num_places)
    for linked in problem.together:
        lower_PP[np.ix_(linked, linked)] = 1.0
    return Relaxation(values_PP, lower_PP, upper_PP, problem.num_groups)


def semidefinite_bound(relaxation: Relaxation, *, rounds: int, enough: float = -np.inf) -> float:
    """Return an upper bound of the sum of values over the pairs that share a group.

    Args:
        relaxation: the values and what is allowed.
        rounds: how often the eigenvalues are computed at most; the bound is the best of all rounds.
        enough: stop where the bound is at most this.
    """
    num_places = len(relaxation.values_PP)
    size = num_places // relaxation.num_groups
    upper = np.triu_indices(num_places, k=1)
    scale = float(relaxation.values_PP[upper].std()) or 1.0
    half_PP = relaxation.values_PP / (2 * scale)
    lower_PP, upper_PP = relaxation.lower_PP, relaxation.upper_PP
    multipliers_PP = best_PP = np.zeros_like(half_PP)
    entries_PP = np.clip(np.full_like(half_PP, (size - 1) / (num_places - 1)), lower_PP, upper_PP)
    smallest, history = np.inf, [np.inf] * STALE_ROUNDS
    for _ in range(rounds):
        pulled_PP = entries_PP + (half_PP + multipliers_PP) / PENALTY
        solution_PP = _nearest(pulled_PP, size=size)
        # With these multipliers the solution at hand is the best of its set: the bound costs no eigenvalues.
        certain_PP = multipliers_PP - PENALTY * (solution_PP - entries_PP)
        bound = float(((half_PP + certain_PP) * solution_PP).sum()) + _entry_side(certain_PP, lower_PP, upper_PP)
        if bound < smallest:
            smallest, best_PP = bound, certain_PP
            if smallest * scale <= enough and proven_bound(relaxation, best_PP * scale) <= enough:
                break
        history.append(smallest)
        gap = smallest - enough / scale if np.isfinite(enough) else abs(smallest)
        if history[-1 - STALE_ROUNDS] - smallest < STALE * gap:
            break
        relaxed_PP = RELAXATION * solution_PP + (1 - RELAXATION) * entries_PP
        entries_PP = np.clip(relaxed_PP - multipliers_PP / PENALTY, lower_PP, upper_PP)
        multipliers_PP = multipliers_PP - PENALTY * (relaxed_PP - entries_PP)
    return proven_bound(relaxation, best_PP * scale)


def proven_bound(relaxation: Relaxation, multipliers_PP: Matrix) -> float:
    """Return the bound that these multipliers prove, whatever they are, with an allowance for rounding."""
    num_places = len(multipliers_PP)
    size = num_places // relaxation.num_groups
    multipliers_PP = (multipliers_PP + multipliers_PP.T) / 2
    priced_PP = relaxation.values_PP / 2 + multipliers_PP
    eigenvalues = np.linalg.eigvalsh(_centred(priced_PP))
    # One of them belongs to the vector of ones and is not to be chosen; taking the largest is on the safe side.
    chosen = np.sort(eigenvalues)[::-1][: relaxation.num_groups - 1]
    bound = size / num_places * float(priced_PP.sum()) + size * float(chosen.sum())
    bound += _entry_side(multipliers_PP, relaxation.lower_PP, relaxation.upper_PP)
    rounding = 4 * np.finfo(np.float64).eps * num_places**2
    return bound + rounding * float(np.abs(eigenvalues).max(initial=0.0))


def _entry_side(multipliers_PP: Matrix, lower_PP: Matrix, upper_PP: Matrix) -> float:
    """Return the largest <-M, Z> over matrices Z between the limits."""
    return -float((multipliers_PP * np.where(multipliers_PP > 0, lower_PP, upper_PP)).sum())


def _centred(matrix_PP: Matrix) -> Matrix:
    """Return the matrix on the complement of the vector of ones."""
    rows_P = matrix_PP.mean(axis=0)
    centred_PP: Matrix = matrix_PP - rows_P - rows_P[:, None] + rows_P.mean()
    return (centred_PP + centred_PP.T) / 2


def _nearest(matrix_PP: Matrix, *, size: int) -> Matrix:
    """Return the nearest matrix with row sums `size`, trace P and, beside one, eigenvalues in 0..size."""
    num_places = len(matrix_PP)
    centred_PP = _centred(matrix_PP)
    # Pushes the vector of ones to the end, where its eigenvalue becomes 0; its own part is added at last.
    centred_PP -= 1e3 * (1 + np.abs(matrix_PP).max())
    values_P, vectors_PP = np.linalg.eigh(centred_PP)
    values_P[0] = -np.inf
    kept_P = _capped(values_P, cap=float(size), total=float(num_places - size))
    used_P = kept_P > 0
    nearest_PP: Matrix = (vectors_PP[:, used_P] * kept_P[used_P]) @ vectors_PP[:, used_P].T
    return nearest_PP + size / num_places


def _capped(values_P: Matrix, *, cap: float, total: float) -> Matrix:
    """Return the nearest numbers in 0..cap with this total (Wang and Lu 2015, by bisection)."""
    low, high = float(values_P[1:].min()) - cap - 1, float(values_P.max()) + 1
    for _ in range(80):
        middle = (low + high) / 2
        if np.clip(values_P - middle, 0.0, cap).sum() > total:
            low = middle
        else:
            high = middle
    return np.clip(values_P - high, 0.0, cap)


def degree_bound(problem: Problem, values_LL: Matrix, *, value: float) -> float:
    """Return an upper bound of the sum of values over the pairs that share a group, from the groups' sizes alone.

    Every language shares its group with a given number of others: the best choice of pairs under that alone is a
    fractional b-matching, and any prices of the languages bound it (its linear program's dual). The prices descend
    along subgradients, with Polyak's step.

    Args:
        problem: sizes, pairs that are not allowed and pairs that must be.
        values_LL: in place of the similarities.
        value: what is known to be reached.
    """
    others, num_more = problem.smallest - 1, problem.num_larger * (problem.smallest + 1)
    off_LL = ~np.eye(problem.num_languages, dtype=bool)
    must_LL = np.zeros_like(off_LL)
    for linked in problem.together:
        must_LL[np.ix_(linked, linked)] = True
    free_LL, must_LL = problem.allowed_LL & off_LL & ~must_LL, must_LL & off_LL
    by_value_LL = np.sort(np.where(free_LL | must_LL, values_LL, values_LL.min()), axis=1)[:, ::-1]
    prices_L = by_value_LL[:, min(problem.largest - 1, problem.num_languages - 1)] / 2
    smallest = np.inf
    for _ in range(DEGREE_ROUNDS):
        rest_LL = values_LL - prices_L[:, None] - prices_L
        taken_LL = (free_LL & (rest_LL > 0)) | must_LL
        more_L = np.zeros(problem.num_languages)
        more_L[np.argsort(-prices_L, kind="stable")[:num_more]] = 1.0
        bound = float(((others + more_L) * prices_L).sum() + rest_LL[taken_LL].sum() / 2)
        smallest = min(smallest, bound)
        slope_L = others + more_L - taken_LL.sum(axis=1)
        steepness = float((slope_L**2).sum())
        if steepness == 0 or bound <= value:
            break
        prices_L = prices_L - (bound - value) / steepness * slope_L
    rounding = 4 * np.finfo(np.float64).eps * problem.num_languages**2
    return smallest + rounding * float(np.abs(values_LL).max())


def bound_total(problem: Problem, labels_L: Labels, *, rounds: int) -> float:
    """Return an upper bound of the sum of similarities over the pairs that share a group.

    Args:
        problem: with its `least`.
        labels_L: (L) the best grouping known; where it is proven optimal, the bound is its own sum.
        rounds: of the semidefinite bound; 0 for the bound from the sizes alone.
    """
    value = problem.total(labels_L)
    upper = np.triu_indices(problem.num_languages, k=1)
    # Less the mean: the sums are then near zero and lose nothing to rounding.
    mean = float(problem.values_LL[upper].mean())
    values_LL, constant = problem.values_LL - mean, mean * problem.num_pairs
    bound = degree_bound(problem, values_LL, value=value - constant)
    enough = value - constant + tolerance(problem)
    if rounds and bound > enough:
        bound = min(bound, semidefinite_bound(relax(problem, values_LL), rounds=rounds, enough=enough))
    return value if bound <= enough else bound + constant


def tolerance(problem: Problem) -> float:
    """Return how near to a sum over pairs a bound must come to prove it optimal."""
    upper = np.triu_indices(problem.num_languages, k=1)
    return PROOF * float(np.ptp(problem.values_LL[upper])) * problem.num_pairs
