import math
from typing import Any

import pytest

from sprachbund.recipe import Recipe
from sprachbund.training import StagePlan, TrainingPlan
from sprachbund.training.stages import plan_base, plan_training


def plan(num_steps: int = 100, ends: tuple[int, ...] = (100,), **fields: Any) -> TrainingPlan:
    values: dict[str, Any] = {"stages": tuple(StagePlan(end, "group") for end in ends), "warmup": 0.1, **fields}
    return TrainingPlan(num_steps=num_steps, batch_size=4, micro_batch_size=4, learning_rate=0.5, **values)


def test_stage_at_changes_at_its_end() -> None:
    stages = (StagePlan(10, "group", router_loss=1.28), StagePlan(30, "prefix"), StagePlan(40, "top_k"))
    found = [plan(40, stages=stages).stage_at(step).routing for step in (0, 9, 10, 29, 30, 39, 40)]
    assert found == ["group", "group", "prefix", "prefix", "top_k", "top_k", "top_k"]


def test_the_rate_warms_up_and_falls_as_a_cosine_to_almost_zero() -> None:
    rates = [plan().rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))
    assert 0 < rates[99] < 1e-3
    assert plan().rate(100) == pytest.approx(0)


def test_one_cosine_runs_over_all_stages_unless_each_has_its_own() -> None:
    assert [plan(ends=(20, 100)).rate(s) for s in range(100)] == [plan().rate(s) for s in range(100)]
    staged = plan(ends=(20, 100), cosine_per_stage=True)
    assert staged.rate(19) < 0.01
    assert [staged.rate(s) for s in (0, 1, 2)] == pytest.approx([0.5, 1, 1])  # 2 of 20 steps of warm-up
    assert [staged.rate(s) for s in (20, 27, 28)] == pytest.approx([1 / 8, 1, 1])  # 8 of 80
    assert staged.rate(99) < 0.001


def test_a_stage_may_have_its_own_peak() -> None:
    stages = (StagePlan(50, "group"), StagePlan(100, "top_k", learning_rate=0.05))
    for cosine_per_stage in (False, True):
        own = plan(stages=stages, cosine_per_stage=cosine_per_stage)
        same = plan(ends=(50, 100), cosine_per_stage=cosine_per_stage)
        assert own.rate(30) == same.rate(30)
        assert own.rate(70) == pytest.approx(same.rate(70) / 10)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate_above_zero(num_steps: int) -> None:
    for warmup in (0.0, 0.03, 0.99):
        for cosine_per_stage in (False, True):
            short = plan(num_steps, (num_steps,), warmup=warmup, cosine_per_stage=cosine_per_stage)
            rates = [short.rate(step) for step in range(num_steps)]
            assert all(0 < rate <= 1 for rate in rates)
            assert max(rates) == 1 or num_steps == 1


def test_a_stage_too_short_for_a_step_is_passed_over() -> None:
    empty = plan(4, (0, 4), cosine_per_stage=True)
    assert empty.stage_at(0).end == 4
    assert empty.rate(0) == 1.0


def test_the_dense_control_has_the_same_steps_and_rates() -> None:
    stages = (StagePlan(10, "group", 1.28, 0.0), StagePlan(100, "top_k", 1.0, 0.02, learning_rate=0.1))
    mixture = plan(stages=stages, router_learning_rate=2.0)
    dense = mixture.dense()
    assert [dense.rate(s) for s in range(100)] == [mixture.rate(s) for s in range(100)]
    assert {(s.routing, s.router_loss, s.balance_loss) for s in dense.stages} == {(None, 0.0, 0.0)}
    assert dense.router_learning_rate is None
    assert dense.num_steps == 100


def test_a_recipe_becomes_a_plan() -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "base": {"scratch": {"tokens": 4096, "tokens_per_step": 512, "learning_rate": 0.02}},
            "languages": {"swh_Latn": "a.txt", "zul_Latn": "b.txt"},
            "groups": {"count": 2},
            "experts": {"router_rate_factor": 4},
            "train": {
                "tokens": 10_000,
                "tokens_per_step": 512,
                "micro_batch_tokens": 256,
                "block_size": 64,
                "learning_rate": 0.01,
                "stages": [
                    {"share": 0.1, "routing": "group", "router_loss": 1.28},
                    {"share": 0.9, "routing": "top_k", "balance_loss": 0.02, "learning_rate": 0.005},
                ],
            },
            "seed": 5,
        }
    )
    found = plan_training(recipe)
    assert (found.num_steps, found.batch_size, found.micro_batch_size) == (19, 8, 4)
    assert found.router_learning_rate == pytest.approx(0.04)
    assert found.stages == (StagePlan(2, "group", 1.28), StagePlan(19, "top_k", 0.0, 0.02, 0.005))
    assert found.seed == 5
    base = plan_base(recipe.base.scratch, recipe)  # type: ignore[arg-type]
    assert (base.num_steps, base.batch_size, base.learning_rate, base.stages[0].routing) == (8, 8, 0.02, None)
