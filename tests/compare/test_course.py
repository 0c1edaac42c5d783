"""The order of work on one method: the grid, its extension, then the seeds at the best rate."""

from typing import Any

import pytest

from sprachbund.compare.course import Course, Task


def scored(perplexity: float | None) -> dict[str, Any]:
    """What a job's result has under `dev`; None diverged."""
    if perplexity is None:
        return {"diverged": "the loss became nan"}
    return {"dev": {"prefix": {"perplexity_after_burn_in": perplexity}, "top_k": {"perplexity_after_burn_in": 1.0}}}


def run(course: Course, dev: dict[float, float | None]) -> list[Task]:
    """Do all tasks in order, with these perplexities on dev; return them."""
    done = []
    while tasks := course.ready():
        task = tasks[0]
        course.started.add(task)
        result = scored(dev[task.learning_rate]) if task.split == "dev" else {"seed": task.seed}
        course.take(task, result)
        done.append(task)
    return done


def test_the_first_seed_at_every_rate_then_all_seeds_at_the_best() -> None:
    course = Course([3, 1], [0.1, 0.2, 0.4], "prefix")
    done = run(course, {0.1: 9.0, 0.2: 7.0, 0.4: 8.0})
    assert done == [
        *(Task(rate, 3, "dev") for rate in (0.1, 0.2, 0.4)),
        *(Task(0.2, seed, "test") for seed in (3, 1)),
    ]
    assert course.done()
    assert not course.at_edge()
    assert [result["seed"] for result in course.runs_in_order()] == [3, 1]


def test_the_headline_decides_not_another_routing() -> None:
    course = Course([0], [0.1, 0.2], "top_k")
    run(course, {0.05: 5.0, 0.025: 5.0, 0.1: 9.0, 0.2: 7.0})
    assert course.best() == 0.025  # all are equal under top_k: the lowest that was tried


def test_the_grid_grows_while_its_edge_wins() -> None:
    course = Course([0], [0.1, 0.2], "prefix")
    run(course, {0.1: 9.0, 0.2: 7.0, 0.4: 6.0, 0.8: 6.5})
    assert course.grid() == [0.1, 0.2, 0.4, 0.8]
    assert course.best() == 0.4
    assert not course.at_edge()


@pytest.mark.parametrize(
    ("rates", "perplexities", "grid", "best"),
    [
        ([0.1, 0.2], {0.1: 9.0, 0.2: 7.0, 0.4: 6.0, 0.8: 5.0, 1.6: 4.0}, [0.1, 0.2, 0.4, 0.8], 0.8),
        ([0.3, 0.9], {0.3: 7.0, 0.9: 9.0, 0.1: 6.0, 0.03333: 5.0}, [0.03333, 0.1, 0.3, 0.9], 0.03333),
    ],
)
def test_it_grows_at_most_twice_on_a_side_and_then_stands_at_the_edge(
    rates: list[float], perplexities: dict[float, float | None], grid: list[float], best: float
) -> None:
    course = Course([0], rates, "prefix")
    run(course, perplexities)
    assert course.grid() == grid
    assert course.best() == best
    assert course.at_edge()


def test_one_rate_is_no_grid() -> None:
    course = Course([0, 1], [0.1], "prefix")
    assert [task.split for task in run(course, {0.1: 9.0})] == ["dev", "test", "test"]
    assert not course.at_edge()


def test_a_rate_that_diverged_does_not_win() -> None:
    course = Course([0], [0.1, 0.2, 0.4], "prefix")
    run(course, {0.1: 9.0, 0.2: 7.0, 0.4: None})
    assert course.best() == 0.2
    assert not course.diverged()


def test_where_every_rate_diverged_lower_ones_are_tried_and_then_it_is_said() -> None:
    course = Course([0], [0.1, 0.2], "prefix")
    for rate in (0.1, 0.2, 0.05, 0.025):
        assert not course.diverged()
        course.take(Task(rate, 0, "dev"), scored(None))
    assert course.grid() == [0.025, 0.05, 0.1, 0.2]
    assert course.diverged()


def test_tasks_are_handed_out_once() -> None:
    course = Course([0], [0.1, 0.2], "prefix")
    first, second = course.ready()
    course.started.add(first)
    assert course.ready() == [second]
    course.started.add(second)
    assert course.ready() == []  # the next rate or the seeds wait for both
