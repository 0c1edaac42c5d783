"""Which constraints cannot be satisfied: the sentence for a problem without a solution."""

from dataclasses import replace
from itertools import chain, combinations
from typing import NoReturn

import numpy as np

from sprachbund.errors import InputError
from sprachbund.grouping.engines import make_engine
from sprachbund.grouping.problem import UNCONSTRAINED, Constraints, Problem, build_problem


def give_up(problem: Problem, constraints: Constraints, *, proven: bool) -> NoReturn:
    """Say which constraints no grouping satisfies: the fewest kinds of them that fail together.

    Args:
        problem: the one without a solution.
        constraints: those it was made with.
        proven: whether it is certain that there is no solution; a search does not know that, and a smaller problem
            would tell it no more.

    Raises:
        InputError: always.
    """
    kinds = _kinds(constraints)
    subsets = chain.from_iterable(combinations(kinds, number) for number in range(1, len(kinds)))
    guilty = next((subset for subset in subsets if proven and not _solvable(problem, constraints, subset)), kinds)
    said = {
        "must_link": ("the must-links", "drop a must-link"),
        "cannot_link": ("the cannot-links", "drop a cannot-link"),
        "weights": (f"the window of {constraints.window:g} for the groups' weights", "widen the window"),
    }
    names, remedies = zip(*(said[kind] for kind in guilty), strict=True)
    groups = f"{problem.num_groups} groups of {problem.num_languages} languages"
    if proven:
        raise InputError(
            f"No {groups} respect {_and(names)}; {', '.join(remedies)} or ask for another number of groups."
        )
    raise InputError(
        f"No {groups} were found that respect {_and(names)}, which is no proof that there are none; "
        f"{', '.join(remedies)}, ask for another number of groups or give more effort."
    )


def _kinds(constraints: Constraints) -> tuple[str, ...]:
    given = {
        "must_link": bool(constraints.must_link),
        "cannot_link": bool(constraints.cannot_link),
        "weights": constraints.weights is not None,
    }
    kinds = tuple(kind for kind, there in given.items() if there)
    assert kinds, "without constraints every problem has a solution"
    return kinds


def _solvable(problem: Problem, constraints: Constraints, kinds: tuple[str, ...]) -> bool:
    """Return whether there is a solution under these kinds of constraints alone."""
    fewer = replace(UNCONSTRAINED, window=constraints.window, **{kind: getattr(constraints, kind) for kind in kinds})
    smaller = build_problem(problem.similarity(), num_groups=problem.num_groups, constraints=fewer)
    if smaller.num_pairs == 0:
        return smaller.satisfied_by(np.arange(smaller.num_languages))
    return make_engine(smaller, seed=0, effort=1.0).best_worst() is not None


def _and(names: tuple[str, ...]) -> str:
    return " and ".join([*filter(None, [", ".join(names[:-1])]), names[-1]])
