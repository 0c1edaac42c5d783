import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partitions import from_rows, planted, respects, shuffled

from sprachbund.errors import InputError
from sprachbund.grouping import Similarity, group, read_similarity
from sprachbund.grouping.problem import Constraints
from sprachbund.grouping.solve import OBJECTIVES, front, solve

DMOE = Path(__file__).parents[2] / "../shared/reference/dmoe"
needs_reference = pytest.mark.skipif(not DMOE.is_dir(), reason="the authors' files are not beside this checkout")

# Ten languages; at this many the answers are exact.
TEN = from_rows(10, seed=0)
# Twenty: too many for the tables of subsets, so that the search answers.
TWENTY = from_rows(20, seed=0)


def bloom() -> Similarity:
    return read_similarity(DMOE / "bloom-560m_last3_sim_fine.csv")


@needs_reference
@pytest.mark.parametrize("objective", ["mean", "bottleneck", "lexicographic"])
def test_nine_groups_of_the_paper_s_languages(objective: str) -> None:
    found = solve(bloom(), num_groups=9, objective=objective)
    assert (found.min, found.mean) == (pytest.approx(0.0339, abs=5e-5), pytest.approx(0.1292, abs=5e-5))
    assert found.proven
    greedy = solve(bloom(), num_groups=9, objective="greedy")
    assert found.min is not None
    assert greedy.min is not None
    # "Its worst pair is 2.3 times worse and its mean 5% lower than the optimum."
    assert found.min / greedy.min == pytest.approx(2.3, abs=0.05)
    assert greedy.mean == pytest.approx(0.95 * found.mean, rel=0.001)  # type: ignore[operator]


@needs_reference
@pytest.mark.parametrize(("num_groups", "mean"), [(3, 0.0750), (6, 0.1042)])
def test_best_means_of_the_paper_s_languages(num_groups: int, mean: float) -> None:
    found = solve(bloom(), num_groups=num_groups, objective="mean", floor=0)
    assert found.value == found.bound == pytest.approx(mean, abs=5e-5)
    assert (found.method, found.least, found.gap, found.proven) == ("exact", None, 0.0, True)


@needs_reference
def test_front_of_the_paper_s_languages_in_six_groups() -> None:
    points = [(round(point.min or 0, 4), round(point.mean or 0, 4)) for point in front(bloom(), num_groups=6)]
    assert points == [(0.0129, 0.1042), (0.0176, 0.1030), (0.0199, 0.0803)]


@needs_reference
@pytest.mark.parametrize("num_groups", range(2, 19))
def test_eighteen_languages_are_proven_optimal_for_every_number_of_groups(num_groups: int) -> None:
    found = solve(bloom(), num_groups=num_groups)
    assert (found.method, found.proven) == ("exact", True)
    assert found.value == found.bound == found.mean


def test_floor_is_a_share_of_the_best_minimum() -> None:
    best = solve(TEN, num_groups=2, objective="bottleneck")
    loose, tight = (solve(TEN, num_groups=2, floor=floor) for floor in (0.0, 1.0))
    assert best.min is not None
    assert best.min < 0
    assert tight.min == tight.least == best.min == best.value
    assert loose.least is None
    assert solve(TEN, num_groups=2, floor=0.7).least == pytest.approx(best.min - 0.3 * abs(best.min))
    assert loose.mean > tight.mean  # type: ignore[operator]
    lexicographic = solve(TEN, num_groups=2, objective="lexicographic")
    assert (lexicographic.grouping, lexicographic.least) == (tight.grouping, best.min)
    positive = Similarity(TEN.tags, TEN.values_LL + 1)
    highest = solve(positive, num_groups=2, objective="bottleneck").min
    assert solve(positive, num_groups=2, floor=0.7).least == pytest.approx(0.7 * highest)  # type: ignore[operator]


@pytest.mark.parametrize("objective", ["mean", "bottleneck", "lexicographic"])
@pytest.mark.parametrize("similarity", [TEN, TWENTY])
def test_groups_are_sorted_whatever_the_order_of_the_input(similarity: Similarity, objective: str) -> None:
    found = solve(similarity, num_groups=3, objective=objective, effort=0.1)
    groups = found.grouping.groups
    assert list(groups) == sorted(tuple(sorted(tags)) for tags in groups)
    assert sorted(len(tags) for tags in groups) == sorted([len(similarity.tags[i::3]) for i in range(3)])
    assert solve(shuffled(similarity, seed=1), num_groups=3, objective=objective, effort=0.1) == found


def test_the_search_is_repeatable_and_never_worse_than_greedy() -> None:
    similarity = from_rows(26, seed=3)
    found = solve(similarity, num_groups=4, floor=0, effort=0.2, seed=5)
    assert solve(similarity, num_groups=4, floor=0, effort=0.2, seed=5) == found
    worst = solve(similarity, num_groups=4, objective="bottleneck", effort=0.2)
    for method in ("greedy-exhaustive", "greedy-seeded"):
        grouping = group(similarity, num_groups=4, method=method)
        assert found.mean >= grouping.mean_similarity(similarity)  # type: ignore[operator]
        assert worst.min >= grouping.min_similarity(similarity)  # type: ignore[operator]


def test_planted_families_are_found_and_proven_by_the_search() -> None:
    similarity, families = planted(6, 5, seed=0)
    for objective in ("mean", "bottleneck", "lexicographic"):
        found = solve(similarity, num_groups=6, objective=objective, effort=0.5)
        assert found.grouping == families
        assert (found.method, found.proven) == ("search", True)


def test_pairs_are_matched_exactly_beyond_the_reach_of_tables() -> None:
    similarity = from_rows(31, seed=2)
    found = solve(similarity, num_groups=18, floor=0)
    assert (found.method, found.proven) == ("matching", True)
    assert sorted(map(len, found.grouping.groups)) == [1] * 5 + [2] * 13
    assert found.mean > solve(similarity, num_groups=18, floor=0, effort=0.1).mean - 1e-12  # type: ignore[operator]


def test_a_pair_that_must_be_together_is_matched_and_one_that_must_not_is_not() -> None:
    similarity = from_rows(21, seed=2)
    free = solve(similarity, num_groups=16, floor=0)
    pairs = [tags for tags in free.grouping.groups if len(tags) == 2]
    alone = [tags[0] for tags in free.grouping.groups if len(tags) == 1]
    constraints = Constraints(must_link=((alone[0], alone[1]),), cannot_link=(pairs[0],))
    found = solve(similarity, num_groups=16, floor=0, constraints=constraints)
    assert (found.method, found.proven) == ("matching", True)
    assert respects(found.grouping, constraints)
    assert sorted(map(len, found.grouping.groups)) == [1] * 11 + [2] * 5
    weights = {tag: 5.0 if tag in pairs[0] else 3.0 for tag in similarity.tags}
    window = Constraints(weights=weights, window=0.6)
    assert respects(solve(similarity, num_groups=16, constraints=window).grouping, window)
    assert not respects(free.grouping, window)


def test_as_many_groups_as_languages_leave_nothing_to_compare() -> None:
    for objective in ("mean", "bottleneck", "lexicographic"):
        found = solve(TWENTY, num_groups=20, objective=objective)
        assert found.grouping.groups == tuple((tag,) for tag in TWENTY.tags)
        assert (found.mean, found.min, found.value, found.gap, found.proven) == (None, None, None, None, True)
    assert [point.grouping for point in front(TWENTY, num_groups=20)] == [found.grouping]


def test_constraints_are_respected_by_the_search() -> None:
    tags = TWENTY.tags
    constraints = Constraints(
        must_link=((tags[0], tags[1]), (tags[1], tags[7])),
        cannot_link=((tags[2], tags[3], tags[4]), (tags[0], tags[19])),
        weights={tag: 1 + index / 10 for index, tag in enumerate(tags)},
        window=0.05,
    )
    for objective in ("mean", "bottleneck", "lexicographic"):
        found = solve(TWENTY, num_groups=3, objective=objective, constraints=constraints, effort=0.2)
        assert respects(found.grouping, constraints)
    assert not respects(solve(TWENTY, num_groups=3, effort=0.2).grouping, constraints)


def test_front_of_the_search_rises_from_the_best_mean_to_the_best_minimum() -> None:
    points = front(TWENTY, num_groups=4, effort=0.3)
    assert len(points) > 1
    assert [point.min for point in points] == sorted({point.min for point in points})
    assert [point.mean for point in points] == sorted({point.mean for point in points}, reverse=True)
    assert not any(point.proven or point.bound for point in points)
    assert points[0].mean == solve(TWENTY, num_groups=4, floor=0, effort=0.3).mean
    assert points[-1].min == solve(TWENTY, num_groups=4, objective="bottleneck", effort=0.3).min


def test_greedy_is_the_paper_s_algorithms_in_the_order_of_the_input() -> None:
    similarity = shuffled(TEN, seed=4)
    found = solve(similarity, num_groups=5, objective="greedy")
    assert found.method == "greedy-exhaustive"
    assert found.grouping == group(similarity, num_groups=5, method="greedy-exhaustive")
    assert (found.value, found.bound, found.gap, found.proven) == (None, None, None, False)
    assert found.mean == found.grouping.mean_similarity(similarity)
    seeded = solve(similarity, num_groups=5, objective="greedy", method="greedy-seeded")
    assert (seeded.method, seeded.grouping) == ("greedy-seeded", group(similarity, num_groups=5))
    assert solve(from_rows(64, seed=0), num_groups=8, objective="greedy").method == "greedy-seeded"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_groups": 1}, "1 group asked for 10 languages; ask for 2 to 10"),
        ({"num_groups": 11}, "11 groups asked for 10 languages; ask for 2 to 10"),
        ({"num_groups": 1, "objective": "greedy"}, "1 group asked for 10 languages; ask for 2 to 10"),
        (
            {"constraints": Constraints(strict=True)},
            "3 groups do not divide 10 languages, which strict .* 2 or 5 or 10",
        ),
        ({"objective": "median"}, "Unknown objective: 'median'. Available: mean, bottleneck, lexicographic, greedy"),
        ({"floor": 1.5}, "The floor is 1.5; .* a number in 0..1"),
        ({"floor": float("nan")}, "The floor is nan"),
        ({"effort": 0.0}, "The effort is 0.0; give a positive number"),
        ({"method": "greedy-seeded"}, "The method 'greedy-seeded' was given with the objective 'mean'"),
        ({"objective": "greedy", "method": "k-means"}, "Unknown grouping method: 'k-means'"),
        (
            {"objective": "greedy", "constraints": Constraints(must_link=(("l00", "l01"),))},
            "The objective 'greedy' is the paper's algorithm, which knows neither links nor weights",
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(TEN, **{"num_groups": 3, **options})


WEIGHTS = dict.fromkeys(TEN.tags, 1.0)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"must_link": (("l00", "l0x"),)}, "A must-link names the unknown language 'l0x', did you mean 'l0"),
        ({"cannot_link": (("l00", "xyz"),)}, "A cannot-link names the unknown language 'xyz'; name languages of"),
        ({"must_link": (("l00",),)}, "The must-link ('l00') names 1 different language(s) in 1 place(s)"),
        ({"cannot_link": (("l00", "l00"),)}, "names 1 different language(s) in 2 place(s); name at least two"),
        (
            {"must_link": (("l00", "l01", "l02"), ("l02", "l03", "l04"))},
            "The must-links put 5 languages into one group ('l00', 'l01', 'l02', 'l03', 'l04'), and the largest of 3",
        ),
        (
            {"must_link": (("l00", "l01"), ("l01", "l02")), "cannot_link": (("l02", "l05", "l00"),)},
            "'l00' and 'l02' must share a group by the must-links and must not by the cannot-link "
            "('l00', 'l02', 'l05')",
        ),
        (
            {"cannot_link": (("l00", "l01", "l02", "l03"),)},
            "The cannot-links keep 4 languages apart from each other ('l00', 'l01', 'l02', 'l03'), and there are 3",
        ),
        (
            # l00 and l04 count as one: each of the four is kept apart from the others by two links together.
            {
                "must_link": (("l00", "l04"),),
                "cannot_link": (("l00", "l01", "l02"), ("l04", "l03"), ("l03", "l01", "l02")),
            },
            "The cannot-links keep 4 languages apart from each other",
        ),
        ({"weights": {**WEIGHTS, "l0x": 1.0}}, "The weights name the unknown language 'l0x', did you mean"),
        ({"weights": {"l00": 1.0}}, "There is no weight for 'l01', 'l02'"),
        ({"weights": {**WEIGHTS, "l03": 0.0}}, "The weight of 'l03' is 0.0; give a positive finite number"),
        ({"weights": {**WEIGHTS, "l03": float("inf")}}, "The weight of 'l03' is inf"),
        ({"weights": WEIGHTS, "window": -0.1}, "The window for the groups' weights is -0.1"),
        (
            {"weights": {**WEIGHTS, "l03": 9.0}},
            "'l03' weighs 9, and the window of 0.25 allows no group more than 7.5; widen the window, lower",
        ),
        (
            {"weights": {**WEIGHTS, "l03": 4.0, "l04": 4.0}, "must_link": (("l03", "l04"),)},
            "'l03', 'l04', must-linked, weigh 8, and the window of 0.25 allows no group more than 6.66667",
        ),
        # What only a search can tell names the kinds of constraints that fail together, and no others.
        (
            {"weights": {**WEIGHTS, "l03": 1.5}, "window": 0.1, "must_link": (("l00", "l01"),)},
            "No 3 groups of 10 languages respect the window of 0.1 for the groups' weights; widen the window or ask",
        ),
        (
            {
                "must_link": (("l00", "l01", "l02"), ("l03", "l04", "l05"), ("l06", "l07", "l08")),
                "cannot_link": (("l09", "l00"), ("l09", "l03"), ("l09", "l06")),
                "weights": WEIGHTS,
                "window": 0.5,
            },
            "No 3 groups of 10 languages respect the must-links and the cannot-links; drop a must-link, drop a cannot-",
        ),
    ],
)
def test_impossible_constraints_are_named(constraints: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        solve(TEN, num_groups=3, constraints=Constraints(**constraints))


def test_a_search_without_result_does_not_claim_a_proof() -> None:
    weights = {tag: 1.0 + 9.0 * (index < 3) for index, tag in enumerate(TWENTY.tags)}
    with pytest.raises(InputError, match=r"were found that respect the window of 0\.1 .* no proof that there are none"):
        solve(TWENTY, num_groups=4, constraints=Constraints(weights=weights, window=0.1), effort=0.1)


def test_weights_that_no_single_language_can_meet() -> None:
    constraints = Constraints(weights={**WEIGHTS, "l03": 0.1}, window=0.5)
    with pytest.raises(InputError, match=r"No 10 groups of 10 languages respect the window of 0\.5"):
        solve(TEN, num_groups=10, constraints=constraints)


def test_similarities_of_any_size_and_sign_are_grouped_alike() -> None:
    for similarity in (TEN, TWENTY):
        found = solve(similarity, num_groups=4, floor=0, effort=0.2)
        for scale, shift in ((1e-6, 0.0), (1e6, -3e6), (-0.001, 0.0)):
            other = Similarity(similarity.tags, similarity.values_LL * abs(scale) + shift)
            again = solve(other, num_groups=4, floor=0, effort=0.2)
            assert again.grouping == found.grouping
            assert again.bound >= again.value  # type: ignore[operator]


def test_constant_similarity_is_solved_all_the_same() -> None:
    constant = Similarity(TWENTY.tags, np.full((20, 20), 0.25))
    found = solve(constant, num_groups=6, effort=0.1)
    assert (found.min, found.mean) == (0.25, pytest.approx(0.25))


def test_objectives_are_listed() -> None:
    assert OBJECTIVES == ("mean", "bottleneck", "lexicographic", "greedy")
