"""Training a mixture whose layers have different numbers of experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.modeling.tables import expert_tables
from sprachbund.training import StagePlan
from sprachbund.training.objectives import balance_loss, router_cross_entropy

Maker = Callable[..., Any]
MIXED = [1, 1, 1, 2, 3, 3, 0, 0]  # languages of a step, sorted by group: 0 0 0 1 1 1 2 2
UNEVEN = {0: [0, 1, 0], 1: [0, 1, 2]}


@pytest.fixture
def make_uneven(make_moe: Maker) -> Maker:
    """Build a mixture of 3 groups with 2 experts in layer 0, groups 0 and 2 sharing one, and 3 in layer 1."""

    def make(**options: Any) -> Any:
        return make_moe(moe_layers=None, expert_of_group=UNEVEN, **options)

    return make


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "step"]


def whole_batch(blocks: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens of the first step, (B, T), and their groups."""
    return torch.stack([blocks[i]["input_ids"] for i in range(8)]), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("routing", ["group", "prefix", "top_k"])
def test_an_uneven_mixture_learns(
    routing: Any, make_uneven: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    stages = (StagePlan(30, routing, router_loss=1.0),)
    steps = steps_of(run(make_uneven(), make_blocks([MIXED] * 30), make_plan(30, stages=stages)))
    assert steps[-1]["language_model_loss"] < steps[0]["language_model_loss"] - 1.5
    assert steps[-1]["router_loss"] < 0.9 * steps[0]["router_loss"]


def test_the_losses_are_those_of_the_mapped_groups(
    make_uneven: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    model, blocks = make_uneven(num_experts_per_tok=3), make_blocks([MIXED])
    input_ids, group_ids = whole_batch(blocks)
    logits = model(input_ids, routing="top_k", output_router_logits=True).router_logits
    assert [layer.shape[-1] for layer in logits] == [2, 3]
    expected = router_cross_entropy(logits, group_ids, torch.tensor([[0, 1, 0], [0, 1, 2]])).item()
    stages = (StagePlan(1, "top_k", router_loss=1.0, balance_loss=0.1),)
    (step,) = steps_of(run(model, blocks, make_plan(1, stages=stages)))
    assert step["router_loss"] == pytest.approx(expected)
    assert step["balance_loss"] == pytest.approx(balance_loss(logits, top_k=3).item())


def test_tokens_of_uneven_layers_are_counted_by_group(
    make_uneven: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    """A zero router ties; expert 0 wins: in layer 0 that of groups 0 and 2, in layer 1 that of group 0."""
    blocks = make_blocks([MIXED])
    by_group = run(make_uneven(), blocks, make_plan(1, stages=(StagePlan(1, "group"),)), folder="group")
    own = {"zul_Latn": [0, 0, 32], "deu_Latn": [48, 0, 0], "quc_Latn": [0, 16, 0], "cak_Latn": [0, 32, 0]}
    assert by_group[-1]["tokens"] == own
    zero = make_uneven(router_init="zero", num_experts_per_tok=1)
    events = run(zero, blocks, make_plan(1, stages=(StagePlan(1, "top_k"),)), folder="top_k")
    assert events[-1]["tokens"] == {
        "zul_Latn": [16, 0, 16],  # right in layer 0, wrong in layer 1
        "deu_Latn": [48, 0, 0],
        "quc_Latn": [12, 0, 4],  # in layer 0 at an expert of two other groups, half for each
        "cak_Latn": [24, 0, 8],
    }
    assert events[-1]["dead_experts"] == [1]


def test_a_resumed_uneven_run_ends_as_the_undisturbed_one(
    make_uneven: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    blocks = make_blocks([MIXED] * 4)
    stages = (StagePlan(2, "group", router_loss=1.0), StagePlan(4, "top_k", router_loss=1.0, balance_loss=0.02))
    plan = make_plan(4, checkpoints=1, stages=stages)
    undisturbed = make_uneven()
    expected = run(undisturbed, blocks, plan, folder="undisturbed")

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_uneven(), blocks, plan, watch=kill)
    resumed = make_uneven(seed=99)
    events = run(resumed, blocks, plan)
    assert [step["step"] for step in steps_of(events)] == [3, 4]
    assert events[-1] == expected[-1]  # tokens counted since the first step
    assert all(torch.equal(tensor, undisturbed.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    assert expert_tables(resumed.config).tolist() == [[0, 1, 0], [0, 1, 2]]
