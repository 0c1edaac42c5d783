"""Closing the gap that a search leaves, with OR-Tools CP-SAT: the optional extra `exact`.

One Boolean for every pair of languages says whether they share a group: sharing is transitive, and every language
shares with as many others as its group has. The search's grouping is the first solution and its bound the first
bound; deterministic time, not seconds, limits the work, so that results can be repeated.
Shapes: L languages.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from sprachbund.errors import InputError
from sprachbund.grouping.problem import Labels, Problem

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

MOST_LANGUAGES = 80

# CP-SAT counts in whole numbers: similarities and weights get so many steps.
STEPS = 2**40
WEIGHT_STEPS = 2**30

# In CP-SAT's deterministic time, of which a unit is one or two seconds of one core.
TIME = 60.0


@dataclass(frozen=True, eq=False)
class Closed:
    """What CP-SAT found: a grouping, or None where none was found, and an upper bound of the sum of similarities.

    Where there is no grouping at all, the bound is -inf.
    """

    labels_L: Labels | None
    bound: float


def check_available(num_languages: int) -> None:
    """Refuse to go on without OR-Tools, or with more languages than its model is good for.

    Raises:
        InputError: in one sentence.
    """
    try:
        import ortools  # noqa: F401
    except ImportError as error:
        raise InputError(
            'Exact grouping of more than 18 languages needs OR-Tools: pip install "sprachbund[exact]", or ask without '
            "exact for the search and its proven bound."
        ) from error
    if num_languages > MOST_LANGUAGES:
        raise InputError(
            f"Exact grouping is for up to {MOST_LANGUAGES} languages, and there are {num_languages}; ask without "
            "exact for the search and its proven bound."
        )


def close_total(problem: Problem, *, known_L: Labels | None, bound: float, effort: float, seed: int) -> Closed:
    """Look for a larger sum of similarities over pairs that share a group, or a proof that there is none.

    Args:
        problem: with its `least`.
        known_L: the best grouping known.
        bound: an upper bound known, or infinity.
        effort: a factor of the deterministic time.
        seed: of CP-SAT's choices.
    """
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    shares = _model(model, problem)
    scale = STEPS / (float(np.abs(problem.values_LL).max()) or 1.0)
    objective = sum(round(float(problem.values_LL[pair]) * scale) * share for pair, share in shares.items())
    model.maximize(objective)
    # Rounding moves each of the pairs in the sum by half a step.
    slack = problem.num_pairs
    if np.isfinite(bound):
        model.add(objective <= int(bound * scale) + slack + 1)
    _hint(model, shares, known_L)
    solver, status = _run(model, effort=effort, seed=seed)
    if status == cp_model.INFEASIBLE:
        return Closed(None, -np.inf)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Closed(known_L, bound)
    return Closed(_labels(solver, shares, problem), min(bound, (solver.best_objective_bound + slack) / scale))


def find(problem: Problem, *, effort: float, seed: int) -> Closed:
    """Look for any grouping that respects a problem with its `least`; a bound of -inf says that there is none."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    shares = _model(model, problem)
    solver, status = _run(model, effort=effort, seed=seed)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Closed(_labels(solver, shares, problem), np.inf)
    return Closed(None, -np.inf if status == cp_model.INFEASIBLE else np.inf)


def _model(model: "cp_model.CpModel", problem: Problem) -> dict[tuple[int, int], "cp_model.IntVar"]:
    """Add the constraints and return the Boolean of every pair that may share a group."""
    everything = range(problem.num_languages)
    shares = {
        (a, b): model.new_bool_var(f"{a},{b}") for a, b in combinations(everything, 2) if problem.allowed_LL[a, b]
    }

    def share(a: int, b: int) -> "cp_model.IntVar | int":
        return shares.get((min(a, b), max(a, b)), 0)

    for a, b, c in combinations(everything, 3):
        for x, y, z in ((a, b, c), (b, c, a), (c, a, b)):
            if isinstance(share(x, y), int) or isinstance(share(y, z), int):
                continue
            model.add(share(x, y) + share(y, z) - share(x, z) <= 1)
    for linked in problem.together:
        for a, b in combinations(linked, 2):
            model.add(share(a, b) == 1)
    in_larger = [model.new_bool_var(f"larger {a}") for a in everything] if problem.num_larger else [0] * len(everything)
    if problem.num_larger:
        model.add(sum(in_larger) == problem.num_larger * (problem.smallest + 1))
    for a in everything:
        others = [b for b in everything if b != a]
        model.add(sum(share(a, b) for b in others) == problem.smallest - 1 + in_larger[a])
        if problem.weights_L is not None:
            steps = WEIGHT_STEPS / float(problem.weights_L.sum())
            weight = sum(round(float(problem.weights_L[b]) * steps) * share(a, b) for b in others)
            weight += round(float(problem.weights_L[a]) * steps)
            # Half a step of rounding for each language: no grouping is lost, and what is found is checked again.
            model.add_linear_constraint(
                weight,
                max(0, int(problem.lightest * steps) - problem.largest),
                int(problem.heaviest * steps) + problem.largest,
            )
    return shares


def _hint(model: "cp_model.CpModel", shares: dict[tuple[int, int], "cp_model.IntVar"], known_L: Labels | None) -> None:
    if known_L is not None:
        for (a, b), share in shares.items():
            model.add_hint(share, bool(known_L[a] == known_L[b]))


def _run(model: "cp_model.CpModel", *, effort: float, seed: int) -> "tuple[cp_model.CpSolver, int]":
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = TIME * effort
    solver.parameters.random_seed = seed
    # Several workers that take turns at fixed points are deterministic; workers that race are not.
    solver.parameters.num_workers = 8
    solver.parameters.interleave_search = True
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    return solver, status


def _labels(
    solver: "cp_model.CpSolver", shares: dict[tuple[int, int], "cp_model.IntVar"], problem: Problem
) -> Labels | None:
    labels_L = np.arange(problem.num_languages)
    for (a, b), share in shares.items():
        if solver.boolean_value(share):
            labels_L[b] = min(labels_L[a], labels_L[b])
    labels_L = np.unique(labels_L, return_inverse=True)[1]
    return labels_L if problem.satisfied_by(labels_L) else None
