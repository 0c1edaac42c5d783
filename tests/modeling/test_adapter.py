"""Experts of kind adapter: X-MOD's bottleneck after the FFN, in a decoder, one for each group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sprachbund.modeling import count_parameters, expand
from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.xmod import adapter_shape

TAGS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1, "acu_Latn": 3}
# gated; ungated with biases, weights (in, out); an FFN that is given the residual and adds it; a trained activation
FAMILIES = ["llama", "gpt2", "bloom", "apertus"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_starts_as_the_dense_model_in_every_routing(
    family: str, make_dense: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    dense = make_dense(family)
    model = expand(dense, moe_layers=[0, 2], groups=TAGS, kind="adapter", width=5)
    assert all(moe.experts.up_proj.any() for moe in mixture_layers(model))  # zero is the last projection alone
    expected = dense(tokens(6, 9)).logits
    for mode in modes(6):
        assert torch.equal(model(tokens(6, 9), **mode).logits, expected)


class Wrapped(nn.Module):
    """A dense FFN followed by the bottleneck of one group, written out as the paper has it."""

    def __init__(self, ffn: nn.Module, bank: Any, group: int) -> None:
        super().__init__()
        self.ffn, self.bank, self.group = ffn, bank, group

    def forward(self, *given: Tensor) -> Tensor:
        hidden, bank, group = self.ffn(*given), self.bank, self.group
        inner = F.gelu(F.linear(hidden, bank.up_proj[group], bank.up_proj_bias[group]))
        return hidden + F.linear(inner, bank.down_proj[group], bank.down_proj_bias[group])


@pytest.mark.parametrize(("family", "layers", "ffn"), [("llama", "layers", "mlp"), ("gpt2", "h", "mlp")])
@torch.no_grad()
def test_each_group_computes_its_bottleneck_on_the_ffns_output(
    family: str,
    layers: str,
    ffn: str,
    make_dense: Callable[..., Any],
    make_moe: Callable[..., Any],
    tokens: Callable[..., Tensor],
) -> None:
    model = make_moe(family, kind="adapter", width=5)
    group_ids, input_ids = torch.tensor([3, 0, 1, 0, 2]), tokens(5, 9)
    found = model(input_ids, group_ids=group_ids).logits
    for group in range(4):
        dense = make_dense(family)
        for index, moe in zip(model.config.moe_layers, mixture_layers(model), strict=True):
            layer = getattr(dense.base_model, layers)[index]
            setattr(layer, ffn, Wrapped(getattr(layer, ffn), moe.experts, group))
        expected = dense(input_ids).logits
        chosen = group_ids == group
        assert torch.allclose(found[chosen], expected[chosen], rtol=0, atol=1e-5)
        assert not torch.allclose(found[~chosen], expected[~chosen], rtol=0, atol=1e-2)


def test_groups_do_not_touch_each_other(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, group_ids = make_moe(kind="adapter", width=5), torch.tensor([3, 0, 1, 0, 2])
    with torch.no_grad():
        before = model(tokens(5, 9), group_ids=group_ids).logits
        for moe in mixture_layers(model):
            for parameter in moe.experts.parameters():
                parameter[0] += 0.5
        after = model(tokens(5, 9), group_ids=group_ids).logits
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == (group_ids != 0).tolist()
    model(tokens(2, 9), group_ids=torch.tensor([3, 1])).logits.square().sum().backward()
    for moe in mixture_layers(model):
        for parameter in moe.experts.parameters():
            assert [bool(parameter.grad[group].any()) for group in range(4)] == [False, True, False, True]


@pytest.mark.parametrize("mode", [{"group_ids": torch.tensor([0, 1, 2, 3])}, {"routing": "top_k"}])
def test_the_first_gradient_reaches_the_last_projection(
    mode: dict[str, Any], make_dense: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    # Under top_k a router of zeros gives every token the same two of four experts.
    model = expand(make_dense(), moe_layers=[0, 1, 2], groups=TAGS, kind="adapter")
    F.cross_entropy(model(tokens(4, 9), **mode).logits.flatten(0, 1), tokens(4, 9, seed=1).flatten()).backward()
    for moe in mixture_layers(model):
        reached = [bool(moe.experts.down_proj.grad[group].any()) for group in range(4)]
        assert sum(reached) == (4 if "group_ids" in mode else 2)
        assert not moe.experts.up_proj.grad.any()  # behind a projection of zeros
        assert [bool(gradient.any()) for gradient in moe.experts.down_proj_bias.grad] == reached


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(
    family: str,
    make_moe: Callable[..., Any],
    tokens: Callable[..., Tensor],
    modes: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model = make_moe(family, kind="adapter", width=5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (loaded.config.expert_kind, loaded.config.expert_width) == ("adapter", 5)
    for mode in modes(6):
        assert torch.equal(loaded(tokens(6, 9), **mode).logits, model(tokens(6, 9), **mode).logits)


def test_its_size_is_x_mods(make_dense: Callable[..., Any]) -> None:
    dense = make_dense()
    model = expand(dense, moe_layers=[0, 2], groups=TAGS, kind="adapter")
    added = count_parameters(model).total - count_parameters(dense).total
    one = adapter_shape(16, 8).num_parameters  # half of the model's width, as in X-MOD
    assert added == 2 * (4 * one + 4 * 16)  # and a row of the router for each
    assert count_parameters(model).active == count_parameters(dense).total + 2 * one
