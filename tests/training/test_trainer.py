from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.training import StagePlan
from sprachbund.training.trainer import GroupTrainer, last_checkpoint

Maker = Callable[..., Any]
MIXED = [1, 1, 1, 2, 3, 3, 0, 0]  # languages of a step, sorted by group: 0 0 0 1 1 1 2 2
TIMES = ("tokens_per_second", "memory_mb")


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record every update before it is made: the optimizer's settings, and the gradients by name."""
    recorded: list[dict[str, Any]] = []
    create = GroupTrainer.create_optimizer

    def recording(self: GroupTrainer, *args: Any) -> Any:
        optimizer = create(self, *args)

        def record(*_: Any) -> None:
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            settings, gradients = {}, {}
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = names[id(parameter)]
                    settings[name] = (group["lr"], group["weight_decay"], *group["betas"])
                    gradients[name] = None if parameter.grad is None else parameter.grad.clone()
            recorded.append({"settings": settings, "gradients": gradients})

        optimizer.register_step_pre_hook(record)
        return optimizer

    monkeypatch.setattr(GroupTrainer, "create_optimizer", recording)
    return recorded


def snapshot(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the step events without what depends on the clock."""
    return [{k: v for k, v in e.items() if k not in TIMES} for e in events if e["event"] == "step"]


@pytest.mark.parametrize("routing", ["group", "prefix", "top_k", None])
def test_a_tiny_run_learns(
    routing: Any, make_dense: Maker, make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    model = make_dense() if routing is None else make_moe()
    stages = (StagePlan(30, routing, router_loss=1.0 if routing else 0.0),)
    steps = steps_of(run(model, make_blocks([MIXED] * 30), make_plan(30, stages=stages)))
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert steps[-1]["language_model_loss"] < steps[0]["language_model_loss"] - 1.5
    if routing:
        assert steps[-1]["router_loss"] < 0.9 * steps[0]["router_loss"]
    assert not model.training


def test_every_part_of_the_loss_is_logged(
    make_dense: Maker, make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    stages = (
        StagePlan(2, "group", router_loss=1.28),
        StagePlan(4, "group"),
        StagePlan(6, "top_k", router_loss=0.5, balance_loss=0.02),
    )
    plan = make_plan(6, stages=stages)
    events = run(make_moe(), make_blocks([MIXED] * 6), plan)
    steps = [event for event in events if event["event"] == "step"]
    weights = {"language_model_loss": 1.0, "router_loss": 1.28, "balance_loss": 0.02}
    for step in steps:
        stage = plan.stage_at(step["step"] - 1)
        expected = ["language_model_loss"]
        expected += ["router_loss"] if stage.router_loss else []
        expected += ["balance_loss"] if stage.balance_loss else []
        assert [name for name in weights if name in step] == expected
        weight = {**weights, "router_loss": stage.router_loss}
        assert step["loss"] == pytest.approx(sum(weight[name] * step[name] for name in expected), rel=1e-5)
        assert step["routing"] == stage.routing
        assert step["num_steps"] == 6
        assert step["grad_norm"] > 0
        assert step["tokens_per_second"] > 0
        assert step["memory_mb"] > 10
    dense = run(make_dense(), make_blocks([MIXED] * 2), make_plan(2, stages=(StagePlan(2, None),)), folder="dense")
    assert {event["event"] for event in dense} == {"step"}
    assert all(event["loss"] == event["language_model_loss"] for event in dense)
    assert all("routing" not in event and "router_loss" not in event for event in dense)


def test_the_logged_loss_is_the_mean_since_the_last_line(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    blocks = make_blocks([MIXED] * 4, micro_batch_size=4)
    each = steps_of(run(make_moe(), blocks, make_plan(4, micro_batch_size=4), folder="each"))
    pairs = steps_of(run(make_moe(), blocks, make_plan(4, micro_batch_size=4, log_every=2), folder="pairs"))
    assert [step["step"] for step in pairs] == [2, 4]
    for i, step in enumerate(pairs):
        for part in ("loss", "language_model_loss", "router_loss"):
            assert step[part] == pytest.approx((each[2 * i][part] + each[2 * i + 1][part]) / 2)


def test_routers_have_their_own_rate_and_vectors_no_decay(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker, updates: list[dict[str, Any]]
) -> None:
    model = make_moe()
    plan = make_plan(4, weight_decay=0.1, warmup=0.5)
    run(model, make_blocks([MIXED] * 4), plan)
    assert len(updates) == 4
    for step, update in enumerate(updates):
        assert update["settings"].keys() == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            rate = (4e-2 if name.endswith("mlp.gate.weight") else 1e-2) * plan.rate(step)
            expected = (rate, 0.1 if parameter.dim() > 1 else 0.0, 0.9, 0.95)
            assert update["settings"][name] == pytest.approx(expected), name


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_a_run_that_was_killed_resumes_to_the_identical_result(
    torn: bool, make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker, tmp_path: Path
) -> None:
    blocks = make_blocks([MIXED, [1, 1, 2, 2, 2, 3, 0, 0]] * 3, micro_batch_size=4)
    stages = (StagePlan(3, "group", router_loss=1.28), StagePlan(6, "top_k", router_loss=1.0, balance_loss=0.02))
    plan = make_plan(6, micro_batch_size=4, checkpoints=2, stages=stages)
    undisturbed = make_moe()
    expected = run(undisturbed, blocks, plan, folder="undisturbed")

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise KeyboardInterrupt

    killed = make_moe()
    first: list[dict[str, Any]] = []
    with pytest.raises(KeyboardInterrupt):
        run(killed, blocks, plan, watch=kill, events=first)
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    if torn:
        weights = folder / "checkpoint-4" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        (folder / "checkpoint-4" / "complete").unlink()
    resumed = make_moe(seed=99)  # other weights: what is in the checkpoint counts
    events = run(resumed, blocks, plan)
    assert all(torch.equal(tensor, undisturbed.state_dict()[name]) for name, tensor in resumed.state_dict().items())
    assert not any(torch.equal(p, q) for p, q in zip(resumed.parameters(), killed.parameters(), strict=True))
    start = 2 if torn else 4
    assert steps_of(events) == steps_of(expected)[start:]
    tokens = [event for event in expected if event["event"] == "tokens"]
    assert [event for event in events if event["event"] == "tokens"] == tokens[start:]


def test_a_run_that_was_killed_after_its_last_step_has_nothing_left_to_train(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    blocks, plan = make_blocks([MIXED] * 4), make_plan(4, checkpoints=1)
    done = make_moe()
    run(done, blocks, plan)
    again = make_moe(seed=99)
    assert steps_of(run(again, blocks, plan)) == []
    assert all(torch.equal(tensor, done.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_run_without_checkpoints_writes_none(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker, tmp_path: Path
) -> None:
    run(make_moe(), make_blocks([MIXED] * 3), make_plan(3, checkpoints=0))
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_the_last_checkpoint_is_the_highest_whole_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step < 11:
            (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-11").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    model = make_moe()
    before: list[dict[str, Tensor]] = []

    def break_it(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            with torch.no_grad():
                model.model.norm.weight.fill_(torch.inf)
            before.append(snapshot(model))

    with pytest.raises(SprachbundError, match=r"^the loss became nan at step 3; the model was not updated .*now 0\.01"):
        run(model, make_blocks([MIXED] * 6, micro_batch_size=4), make_plan(6, micro_batch_size=4), watch=break_it)
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_a_mixed_batch_trains_the_experts_of_its_own_groups_and_no_other(
    kind: str, make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker, updates: list[dict[str, Any]]
) -> None:
    """Seven sequences of group 0 and one of group 2: the majority must not take the one along."""
    model = make_moe(kind=kind)
    before = snapshot(model)
    blocks = make_blocks([[1] * 7 + [0]])
    run(model, blocks, make_plan(1, stages=(StagePlan(1, "group"),), max_grad_norm=1e9))
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts.down_proj"
        changed = (model.state_dict()[name] != before[name]).flatten(1).any(1)
        assert changed.tolist() == [True, False, True]
    alone = make_moe(kind=kind)
    ids = blocks[7]["input_ids"].unsqueeze(0)
    (alone(input_ids=ids, labels=ids, group_ids=torch.tensor([2])).loss / 8).backward()
    own = alone.model.layers[1].mlp.experts.down_proj.grad[2]
    found = updates[0]["gradients"]["model.layers.1.mlp.experts.down_proj"][2]
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-7)
    assert own.any()


def test_accumulated_gradients_are_those_of_the_whole_batch(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker, updates: list[dict[str, Any]]
) -> None:
    losses = []
    for micro_batch_size in (8, 4, 2):
        blocks = make_blocks([MIXED], micro_batch_size=micro_batch_size)
        plan = make_plan(1, micro_batch_size=micro_batch_size)
        losses.append(steps_of(run(make_moe(), blocks, plan, folder=str(micro_batch_size)))[0]["loss"])
    whole, *others = (update["gradients"] for update in updates)
    assert len(others) == 2
    for other in others:
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert whole["model.layers.0.mlp.gate.weight"].any()


def test_recomputed_activations_train_the_same_model(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    stages = (StagePlan(2, "group", router_loss=1.28), StagePlan(4, "top_k", router_loss=1.0, balance_loss=0.1))
    losses = []
    for recompute in (False, True):
        model = make_moe()
        calls: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        plan = make_plan(4, stages=stages, gradient_checkpointing=recompute)
        events = run(model, make_blocks([MIXED] * 4), plan, folder=str(recompute))
        losses.append([step["loss"] for step in steps_of(events)])
        assert len(calls) == (8 if recompute else 4)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_bfloat16_is_for_arithmetic_and_the_weights_stay_float32(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    stages = (StagePlan(2, "group", router_loss=1.28), StagePlan(4, "top_k", router_loss=1.0, balance_loss=0.1))
    losses = []
    for bfloat16 in (False, True):
        model = make_moe()
        dtypes: set[torch.dtype] = set()
        model.model.layers[0].mlp.experts.register_forward_hook(lambda *a, dtypes=dtypes: dtypes.add(a[-1].dtype))
        plan = make_plan(4, stages=stages, bfloat16=bfloat16)
        events = run(model, make_blocks([MIXED] * 4), plan, folder=str(bfloat16))
        losses.append([step["loss"] for step in steps_of(events)])
        assert dtypes == {torch.bfloat16 if bfloat16 else torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]


def test_tokens_are_counted_per_language_and_expert_and_dead_experts_are_named(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    rows = [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    events = run(make_moe(), make_blocks(rows, micro_batch_size=3), make_plan(2, 6, micro_batch_size=3))
    first, second = (event for event in events if event["event"] == "tokens")
    none = [0, 0, 0]
    assert first == {
        "event": "tokens",
        "step": 1,
        "tokens": {"zul_Latn": [0, 0, 16], "deu_Latn": [80, 0, 0], "quc_Latn": none, "cak_Latn": none},
        "dead_experts": [1],
    }
    assert second["tokens"] == {"zul_Latn": [0, 0, 80], "deu_Latn": [112, 0, 0], "quc_Latn": none, "cak_Latn": none}
    whole = run(make_moe(), make_blocks([MIXED]), make_plan(1), folder="whole")
    assert whole[-1]["dead_experts"] == []


def test_tokens_of_prefix_and_top_k_routing_are_counted_where_they_went(
    make_moe: Maker, make_blocks: Maker, make_plan: Maker, run: Maker
) -> None:
    blocks = make_blocks([MIXED])
    model = make_moe()
    group_ids = model(torch.stack([blocks[i]["input_ids"] for i in range(8)]), routing="prefix").group_ids
    expected = torch.zeros(4, 3, dtype=torch.long)
    for sequence, language in zip(group_ids.tolist(), MIXED, strict=True):
        for group in sequence:
            expected[language, group] += 1
    events = run(model, blocks, make_plan(1, stages=(StagePlan(1, "prefix"),)))
    assert list(events[-1]["tokens"].values()) == expected.tolist()

    zero = make_moe(router_init="zero")  # ties: experts 0 and 1 share every token
    events = run(zero, blocks, make_plan(1, stages=(StagePlan(1, "top_k"),)), folder="top_k")
    assert events[-1]["tokens"] == {
        "zul_Latn": [16, 16, 0],
        "deu_Latn": [24, 24, 0],
        "quc_Latn": [8, 8, 0],
        "cak_Latn": [16, 16, 0],
    }
    assert events[-1]["dead_experts"] == [2]
