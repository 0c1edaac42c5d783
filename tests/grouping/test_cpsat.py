import sys
from importlib.util import find_spec

import numpy as np
import pytest
from partitions import from_rows, respects

from sprachbund.errors import InputError
from sprachbund.grouping.problem import Constraints, build_problem
from sprachbund.grouping.solve import solve

needs_ortools = pytest.mark.skipif(find_spec("ortools") is None, reason="OR-Tools, the extra `exact`, is not installed")


def test_without_ortools_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ortools", None)
    with pytest.raises(InputError, match=r'needs OR-Tools: pip install "sprachbund\[exact\]"'):
        solve(from_rows(20, seed=0), num_groups=5, exact=True)
    # Few languages are solved exactly without it.
    assert solve(from_rows(9, seed=0), num_groups=3, exact=True).proven


@needs_ortools
def test_too_many_languages_are_refused() -> None:
    with pytest.raises(InputError, match="Exact grouping is for up to 80 languages, and there are 81"):
        solve(from_rows(81, seed=0), num_groups=9, exact=True)


@needs_ortools
@pytest.mark.parametrize("objective", ["mean", "bottleneck", "lexicographic"])
def test_the_gap_is_closed(objective: str) -> None:
    similarity = from_rows(21, seed=2)
    searched = solve(similarity, num_groups=6, objective=objective, effort=0.1)
    closed = solve(similarity, num_groups=6, objective=objective, effort=0.1, exact=True)
    assert (closed.method, closed.proven) == ("cp-sat", True)
    assert closed.value == closed.bound
    if objective != "lexicographic":
        assert searched.value <= closed.value <= searched.bound  # type: ignore[operator]
    assert solve(similarity, num_groups=6, objective=objective, effort=0.1, exact=True) == closed


@needs_ortools
def test_constraints_hold_and_impossible_ones_are_known_to_be() -> None:
    similarity = from_rows(20, seed=1)
    tags = similarity.tags
    constraints = Constraints(
        must_link=((tags[0], tags[1]),),
        cannot_link=((tags[2], tags[3]),),
        weights={tag: 1.0 + index % 4 for index, tag in enumerate(tags)},
        window=0.1,
    )
    found = solve(similarity, num_groups=6, constraints=constraints, effort=0.1, exact=True)
    assert found.proven
    assert respects(found.grouping, constraints)
    heavy = Constraints(weights={tag: 1.0 + 9.0 * (index < 3) for index, tag in enumerate(tags)}, window=0.1)
    with pytest.raises(InputError, match="No 4 groups of 20 languages"):
        solve(similarity, num_groups=4, constraints=heavy, effort=0.1, exact=True)


@needs_ortools
def test_a_language_without_partners_is_no_grouping_and_no_crash() -> None:
    from sprachbund.grouping import cpsat

    similarity = from_rows(20, seed=1)
    weighed = Constraints(weights=dict.fromkeys(similarity.tags, 1.0))
    for constraints in (Constraints(), weighed):
        problem = build_problem(similarity, num_groups=6, constraints=constraints)
        above = problem.with_least(float(similarity.values_LL[~np.eye(20, dtype=bool)].max()))
        closed = cpsat.find(above, effort=0.1, seed=0)
        assert (closed.labels_L, closed.bound) == (None, -np.inf)
        assert cpsat.close_total(above, known_L=None, bound=np.inf, effort=0.1, seed=0).bound == -np.inf
