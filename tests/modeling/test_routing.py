"""The three routing modes against a slow and obvious reference, and what must not depend on what."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprachbund.modeling.routing import RoutingContext, dispatch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class SlowMoe(nn.Module):
    """A mixture layer, one token at a time. `group_ids`, (B, T); None: the learned router chooses the top K."""

    def __init__(self, moe: Any, group_ids: Tensor | None, top_k: int) -> None:
        super().__init__()
        self.moe, self.group_ids, self.top_k = moe, group_ids, top_k

    def expert(self, g: int, x_D: Tensor) -> Tensor:
        gate_up, down = self.moe.experts.gate_up_proj[g], self.moe.experts.down_proj[g]
        width = gate_up.shape[0] // 2
        return down @ (F.silu(gate_up[:width] @ x_D) * (gate_up[width:] @ x_D))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        output = torch.zeros_like(hidden_BTD)
        for b, sequence in enumerate(hidden_BTD):
            for t, x_D in enumerate(sequence):
                if self.group_ids is not None:
                    output[b, t] = self.expert(int(self.group_ids[b, t]), x_D)
                else:
                    probability = torch.softmax(self.moe.gate.weight @ x_D, 0).tolist()
                    best = sorted(range(len(probability)), key=lambda g: -probability[g])[: self.top_k]
                    for g in best:
                        output[b, t] += probability[g] / sum(probability[i] for i in best) * self.expert(g, x_D)
                if self.moe.shared_expert is not None:
                    ffn = self.moe.shared_expert
                    gated = F.silu(ffn.gate_proj.weight @ x_D) * (ffn.up_proj.weight @ x_D)
                    output[b, t] += ffn.down_proj.weight @ gated
        return output


def slow_logits(model: Any, dense: Any, input_ids: Tensor, group_ids: Tensor | None, top_k: int = 2) -> Tensor:
    """Run transformers' own dense model with the slow mixture in place of its FFNs."""
    slow = copy.deepcopy(dense)
    for index in model.config.moe_layers:
        slow.model.layers[index].mlp = SlowMoe(model.model.layers[index].mlp, group_ids, top_k)
    logits: Tensor = slow(input_ids).logits
    return logits


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [{"kind": "shared"}, {"kind": "copy"}, {"kind": "shared", "width": 5, "moe_layers": [1]}],
    ids=["shared", "copy", "narrow"],
)
@torch.no_grad()
def test_every_mode_equals_the_slow_reference(
    family: str,
    options: dict[str, Any],
    make_dense: Callable[..., Any],
    make_moe: Callable[..., Any],
    tokens: Callable[..., Tensor],
) -> None:
    dense, model = make_dense(family), make_moe(family, **options)
    input_ids = tokens(5, 6)
    given = {
        "unsorted, unequal, all groups": torch.tensor([3, 0, 2, 0, 1]),
        "groups 0 and 3 absent": torch.tensor([2, 1, 2, 1, 1]),
        "one group": torch.tensor([1, 1, 1, 1, 1]),
        "sorted": torch.tensor([0, 1, 2, 2, 3]),
    }
    for name, group_ids in given.items():
        expected = slow_logits(model, dense, input_ids, group_ids.unsqueeze(1).expand(5, 6))
        torch.testing.assert_close(model(input_ids, group_ids=group_ids).logits, expected, **CLOSE, msg=name)
    per_position = torch.randint(0, 4, (5, 6), generator=torch.Generator().manual_seed(3))
    expected = slow_logits(model, dense, input_ids, per_position)
    torch.testing.assert_close(model(input_ids, group_ids=per_position).logits, expected, **CLOSE)

    prefix = model(input_ids, routing="prefix")
    assert (prefix.group_ids[:, 1:] != prefix.group_ids[:, :-1]).any()  # the gate changes its mind in some sequence
    torch.testing.assert_close(prefix.logits, slow_logits(model, dense, input_ids, prefix.group_ids), **CLOSE)

    for top_k in (1, 2, 4):
        routed = make_moe(family, num_experts_per_tok=top_k, **options)
        expected = slow_logits(routed, dense, input_ids, None, top_k)
        torch.testing.assert_close(routed(input_ids, routing="top_k").logits, expected, **CLOSE)


@torch.no_grad()
def test_equal_runs_and_unequal_runs_give_the_same(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    """Equal counts take one batched product, unequal ones a loop."""
    model, input_ids = make_moe(), tokens(5, 6)
    equal = model(input_ids[:4], group_ids=torch.tensor([0, 1, 2, 3])).logits
    unequal = model(input_ids, group_ids=torch.tensor([0, 1, 2, 3, 3])).logits
    torch.testing.assert_close(equal, unequal[:4], **CLOSE)


@torch.no_grad()
def test_the_group_changes_the_output(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, input_ids = make_moe(), tokens(1, 6)
    outputs = [model(input_ids, group_ids=torch.tensor([g])).logits for g in range(4)]
    assert all((outputs[g] - outputs[0]).abs().max() > 0.01 for g in (1, 2, 3))


@torch.no_grad()
def test_no_mode_looks_at_future_tokens(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, input_ids = make_moe(), tokens(4, 12)
    switched = False
    for mode in modes(4):
        before = model(input_ids, **mode)
        for t in (1, 5, 11):
            changed = input_ids.clone()
            changed[:, t:] = (changed[:, t:] + 137) % 299 + 1
            after = model(changed, **mode)
            torch.testing.assert_close(after.logits[:, :t], before.logits[:, :t], **CLOSE)
            assert (after.logits[:, t:] - before.logits[:, t:]).abs().amax(-1).min() > 1e-3
            if mode.get("routing") == "prefix":
                assert torch.equal(after.group_ids[:, :t], before.group_ids[:, :t])
                switched |= bool((after.group_ids[:, t:] != before.group_ids[:, t:]).any())
    assert switched  # the future was another group's, and still nothing before it changed


@torch.no_grad()
def test_a_sequence_does_not_depend_on_its_batch(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, input_ids = make_moe(), tokens(4, 8)
    for mode in modes(4):
        together = model(input_ids, **mode).logits
        for b in range(4):
            alone = {key: value[b : b + 1] if isinstance(value, Tensor) else value for key, value in mode.items()}
            torch.testing.assert_close(model(input_ids[b : b + 1], **alone).logits[0], together[b], **CLOSE)


@torch.no_grad()
def test_router_logits_are_raw_and_one_per_mixture_layer(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, input_ids = make_moe(), tokens(3, 5)
    inputs: list[Tensor] = []
    for index in model.config.moe_layers:
        model.model.layers[index].mlp.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    for mode in modes(3):
        inputs.clear()
        assert model(input_ids, **mode).router_logits is None
        inputs.clear()
        output = model(input_ids, output_router_logits=True, **mode)
        assert len(output.router_logits) == 2
        for index, hidden, logits in zip(model.config.moe_layers, inputs, output.router_logits, strict=True):
            assert logits.shape == (3, 5, 4)
            torch.testing.assert_close(logits, hidden @ model.model.layers[index].mlp.gate.weight.T)
        assert (output.group_ids is None) == (mode.get("routing") == "top_k")


def test_nothing_is_collected_unasked_nor_after_the_forward_pass() -> None:
    """Recomputation in the backward pass must not keep every layer's logits a second time."""
    asked, unasked = RoutingContext(wants_logits=True), RoutingContext()
    for context in (asked, unasked):
        context.collect(torch.zeros(1, 2, 3))
        context.close()
        context.collect(torch.ones(1, 2, 3))
    assert len(asked.router_logits) == 1
    assert unasked.router_logits == []


def test_dispatch_brings_rows_into_runs_and_back() -> None:
    experts = torch.tensor([2, 0, 2, 0, 3])
    plan = dispatch(experts, 4)
    assert plan.counts == [2, 0, 2, 1]
    assert plan.order is not None
    assert plan.inverse is not None
    assert experts[plan.order].tolist() == [0, 0, 2, 2, 3]
    assert plan.order.tolist() == [1, 3, 0, 2, 4]  # stable: the same on every run
    assert plan.order[plan.inverse].tolist() == [0, 1, 2, 3, 4]
    already = dispatch(torch.tensor([0, 0, 3]), 4)
    assert (already.order, already.inverse, already.counts) == (None, None, [2, 0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_ids": torch.tensor([0, 1])}, r"group_ids has shape \(2,\); the batch needs \(3,\) or \(3, 5\)"),
        ({"group_ids": torch.zeros(3, 4, dtype=torch.long)}, r"shape \(3, 4\); the batch needs \(3,\) or \(3, 5\)"),
        ({"group_ids": torch.zeros(3, 5, 1, dtype=torch.long)}, r"shape \(3, 5, 1\)"),
        ({"group_ids": torch.tensor(1)}, r"shape \(\)"),
        ({"group_ids": torch.tensor([0.0, 1.0, 2.0])}, "must hold whole numbers"),
        ({"group_ids": torch.tensor([0, 4, 1])}, r"group_ids must lie in 0\.\.3; found 0\.\.4"),
        ({"group_ids": torch.tensor([0, -1, 1])}, r"found -1\.\.1"),
        ({"routing": "group"}, "routing = 'group' needs group_ids"),
        ({"routing": "majority"}, "routing = 'majority' is unknown; one of group, prefix, top_k"),
    ],
)
def test_bad_routing_arguments_are_named(
    arguments: dict[str, Any], message: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_moe()(tokens(3, 5), **arguments)


def test_prefix_needs_tokens_and_other_modes_do_not(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model, input_ids = make_moe(), tokens(2, 4)
    embeddings = model.get_input_embeddings()(input_ids)
    with pytest.raises(ValueError, match="routing = 'prefix' reads tokens"):
        model(inputs_embeds=embeddings)
    assert torch.equal(
        model(inputs_embeds=embeddings, routing="top_k").logits, model(input_ids, routing="top_k").logits
    )


def test_a_layer_called_without_its_model_says_so(make_moe: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="called outside its model"):
        make_moe().model.layers[0].mlp(torch.zeros(1, 2, 16))
