from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import GROUPS, dense_model, log_prob, make_job, some_ids, train_job

from sprachbund.compare import branches, btx
from sprachbund.compare.btx import BtxSystem, split_plan
from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.average import average, branch_train_mix
from sprachbund.modeling.ffn import family_of
from sprachbund.modeling.ffn_weights import to_expert
from sprachbund.modeling.model import mixture_layers
from sprachbund.training import StagePlan, TrainingPlan

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": {},  # ungated, with biases
    "phi3": {"pad_token_id": 0},  # gate and up in one
    "apertus": {},  # its activation function has weights
}


@pytest.fixture(params=FAMILIES)
def models(request: pytest.FixtureRequest) -> list[Any]:
    """Three models that differ in everything, also in what starts at ones and zeros."""
    found = [dense_model(seed, request.param, **FAMILIES[request.param]) for seed in range(3)]
    with torch.no_grad():
        for model in found:
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return found


def mixed(models: list[Any], **options: Any) -> Any:
    return branch_train_mix(models, groups=GROUPS, log_prob=log_prob(), **options)


def test_averaging_equals_the_hand_computation(models: list[Any]) -> None:
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    for name, tensor in average(models).state_dict().items():
        by_hand = (before[0][name] + before[1][name] + before[2][name]) / 3
        torch.testing.assert_close(tensor, by_hand, rtol=1e-6, atol=1e-7)
    for model, state in zip(models, before, strict=True):  # and changes none of them
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_each_expert_is_the_ffn_of_its_model(models: list[Any]) -> None:
    mixture, family = mixed(models), family_of(models[0].config.model_type)
    blocks = mixture_layers(mixture)
    assert len(blocks) == 2
    for layer, moe in enumerate(blocks):
        for number, model in enumerate(models):
            ffn = model.base_model.layers[layer].mlp
            tensors = to_expert(family, ffn.state_dict().__getitem__)
            assert {name for name, _ in moe.experts.named_parameters(recurse=False)} == set(tensors)
            for name, tensor in tensors.items():
                assert torch.equal(getattr(moe.experts, name)[number], tensor)


def test_all_else_is_the_mean(models: list[Any]) -> None:
    mixture, means = mixed(models).state_dict(), average(models).state_dict()
    common = [name for name in means if name in mixture]
    lost = {name.rsplit(".", 2)[1] for name in means if name not in mixture}
    assert all(torch.equal(mixture[name], means[name]) for name in common)
    assert lost <= {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "dense_h_to_4h", "dense_4h_to_h", "act_fn"}
    assert len(common) > 10
    if "apertus" in models[0].config.model_type:
        (weight,) = (mixture[name] for name in mixture if name.endswith("1.mlp.experts.act_fn.alpha_p"))
        assert torch.equal(weight, means["model.layers.1.mlp.act_fn.alpha_p"])


@torch.no_grad()
@pytest.mark.parametrize("routing", ["group", "prefix", "top_k"])
def test_identical_models_are_one_model(models: list[Any], routing: str) -> None:
    ids = some_ids()
    expected = models[0](input_ids=ids).logits
    given = {"group_ids": torch.tensor([2, 0])} if routing == "group" else {}
    found = mixed([models[0]] * 3)(input_ids=ids, routing=routing, **given).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_given_group_is_the_mean_model_with_its_ffns() -> None:
    models = [dense_model(seed) for seed in range(3)]
    mean, ids = average(models), some_ids()
    for layer, own in zip(mean.model.layers, models[1].model.layers, strict=True):
        layer.mlp = own.mlp
    found = mixed(models)(input_ids=ids, group_ids=torch.tensor([1, 1])).logits
    torch.testing.assert_close(found, mean(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_the_mixture_is_made_for_training_the_router() -> None:
    models = [dense_model(seed) for seed in range(3)]
    first, again, other = mixed(models), mixed(models), mixed(models, seed=1)
    gates = [mixture_layers(model)[0].gate.weight for model in (first, again, other)]
    assert torch.equal(gates[0], gates[1])
    assert float(gates[0].detach().std()) == pytest.approx(0.02, rel=0.3)
    assert not torch.equal(gates[0], gates[2])
    assert (first.config.routing, first.config.router_gradient) == ("top_k", "through")
    assert mixed(models, num_experts_per_tok=9).config.num_experts_per_tok == 3


def test_a_model_is_needed_for_each_group() -> None:
    with pytest.raises(ValueError, match="2 models for 3 groups"):
        mixed([dense_model(0), dense_model(1)])


def plan_of(num_steps: int) -> TrainingPlan:
    stages = (StagePlan(num_steps // 2, "group", router_loss=1.0), StagePlan(num_steps, "top_k"))
    return TrainingPlan(num_steps, 4, 4, 1e-2, stages, router_learning_rate=4e-2, expert_rate_factor=3.0, warmup=0.0)


def test_each_part_has_a_cosine_of_its_own() -> None:
    plan = plan_of(10)
    first, rest = split_plan(plan, branch_share=0.7)
    assert (first.num_steps, rest.num_steps) == (7, 3)
    assert first.stages == (StagePlan(7, None),)
    assert rest.stages == (StagePlan(3, "top_k", balance_loss=0.01),)
    assert (rest.router_learning_rate, rest.expert_rate_factor) == (None, 1.0)
    for part in (first, rest):
        rates = [part.rate(step) for step in range(part.num_steps)]
        assert rates[0] == 1.0
        assert rates == sorted(rates, reverse=True)
        assert part.rate(part.num_steps) == pytest.approx(0.0)


@pytest.mark.parametrize(("share", "lacks"), [(0.01, "the branches"), (0.99, "the mixture")])
def test_both_parts_need_a_step(share: float, lacks: str) -> None:
    with pytest.raises(InputError, match=rf"branch_share = {share} of 10 training steps leaves none for {lacks}"):
        split_plan(plan_of(10), branch_share=share)


def test_a_job_trains_both_parts_on_the_common_sequences(
    shared_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, seen = make_job(shared_tiny, tmp_path / "job", branch_share=0.7), {}

    def recording(run: Any, stage: str, model: Any, blocks: Any, plan: Any, **options: Any) -> dict[str, Any]:
        seen[stage] = blocks
        return original(run, stage, model, blocks, plan, **options)

    original = branches.run_training
    monkeypatch.setattr(branches, "run_training", recording)
    monkeypatch.setattr(btx, "run_training", recording)
    system = BtxSystem()
    facts = train_job(system, job)
    train = job.run.recipe.train
    assert facts["tokens"] == train.num_steps * train.tokens_per_step
    assert facts["flops"] > 0

    whole, batch = job.blocks(job.plan()), train.batch_size
    assert list(seen) == ["branch-0", "branch-1", "train"]
    parts = [seen["branch-0"].whole, seen["branch-1"].whole]
    of_branches = np.concatenate([part.languages for part in parts])
    assert sorted(of_branches) == sorted(whole.languages[: 7 * batch])
    assert np.array_equal(seen["train"].languages, whole.languages[7 * batch :])
    assert np.array_equal(seen["train"].blocks, whole.blocks[7 * batch :])

    scorer = system.scorer(job)
    assert set(scorer.routings) >= {"top_k", "group", "prefix"}
    assert scorer.parameters.total == count_parameters(btx.mix(job)).total
    start, end = btx.mix(job).state_dict(), scorer.model.state_dict()
    moved = [name for name in end if not torch.equal(start[name], end[name])]
    assert any(name.endswith("gate.weight") for name in moved)
    assert any(name.endswith("experts.down_proj") for name in moved)
    assert any("embed_tokens" in name for name in moved)
