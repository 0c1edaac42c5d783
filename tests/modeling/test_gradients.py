"""Which parameter learns from what."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.training.objectives import balance_loss, router_cross_entropy
from sprachbund.training.trainer import recompute_activations

GROUP_IDS = torch.tensor([3, 0, 0, 3])


def gradients(model: Any, input_ids: Tensor, *, loss_of: Callable[[Any], Tensor] | None = None, **mode: Any) -> Any:
    """Return {name: gradient} after one backward pass; a parameter without one counts as all zeros."""
    model.zero_grad()
    output = model(input_ids, labels=input_ids, use_cache=False, output_router_logits=True, **mode)
    if loss_of is None:
        loss = output.loss + 0.5 * router_cross_entropy(output.router_logits, GROUP_IDS)
        loss = loss + 0.5 * balance_loss(output.router_logits, top_k=2)
    else:
        loss = loss_of(output)
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("mode", [{"group_ids": GROUP_IDS}, {"routing": "prefix"}, {"routing": "top_k"}])
@pytest.mark.parametrize("router_gradient", ["detach", "through"])
def test_recomputation_changes_no_gradient(
    family: str,
    mode: dict[str, Any],
    router_gradient: str,
    make_moe: Callable[..., Any],
    tokens: Callable[..., Tensor],
) -> None:
    model, input_ids = make_moe(family, router_gradient=router_gradient).train(), tokens(4, 8)
    calls: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(model, input_ids, **mode)
    assert len(calls) == 1
    recompute_activations(model)
    recomputed = gradients(model, input_ids, **mode)
    assert len(calls) == 3  # once more forward, once again for the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert plain["model.layers.0.mlp.gate.weight"].any()


@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_the_expert_of_an_absent_group_gets_exactly_no_gradient(
    kind: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(kind=kind, moe_layers=[0, 1, 2])
    found = gradients(model, tokens(4, 8), group_ids=GROUP_IDS)
    for layer in range(3):
        for name in ("gate_up_proj", "down_proj"):
            gradient = found[f"model.layers.{layer}.mlp.experts.{name}"]
            assert [bool(gradient[g].any()) for g in range(4)] == [True, False, False, True]


def test_each_sequence_trains_its_own_expert_as_if_it_were_alone(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    """The authors' code sends the whole batch to its most frequent group."""
    model, input_ids = make_moe(), tokens(3, 8)
    name = "model.layers.2.mlp.experts.down_proj"

    def run(rows: list[int], ids: list[int]) -> Tensor:
        gradient: Tensor = gradients(
            model, input_ids[rows], loss_of=lambda output: output.loss * len(rows), group_ids=torch.tensor(ids)
        )[name]
        return gradient

    together = run([0, 1, 2], [1, 1, 2])
    torch.testing.assert_close(together[2], run([2], [2])[2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together[1], run([0, 1], [1, 1])[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", [{"group_ids": GROUP_IDS}, {"routing": "top_k"}])
def test_the_router_loss_reaches_the_trunk_only_where_it_is_let_through(
    mode: dict[str, Any], make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    def router_loss(output: Any) -> Tensor:
        return router_cross_entropy(output.router_logits, GROUP_IDS)

    detached = gradients(make_moe(moe_layers=[2]), tokens(4, 8), loss_of=router_loss, **mode)
    assert {name for name, gradient in detached.items() if gradient.any()} == {"model.layers.2.mlp.gate.weight"}
    through = gradients(make_moe(moe_layers=[2], router_gradient="through"), tokens(4, 8), loss_of=router_loss, **mode)
    assert torch.equal(through["model.layers.2.mlp.gate.weight"], detached["model.layers.2.mlp.gate.weight"])
    assert through["model.embed_tokens.weight"].any()
    assert through["model.layers.0.mlp.up_proj.weight"].any()
    assert not through["model.layers.2.mlp.experts.down_proj"].any()  # comes after the router


def test_under_top_k_the_language_model_trains_the_router_and_under_group_it_does_not(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    for mode, learns in (({"routing": "top_k"}, True), ({"group_ids": GROUP_IDS}, False)):
        found = gradients(make_moe(), tokens(4, 8), loss_of=lambda output: output.loss, **mode)
        assert found["model.layers.0.mlp.gate.weight"].any().item() is learns
