"""Experts made smaller: which units stay, what a rank keeps, and everything else untouched."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.compress import expert_banks, factor_experts, prune_experts, saving_rank
from sprachbund.modeling.model import mixture_layers

# gated; ungated with biases; a gate fused with the up projection; ungated, with a trained activation function
FAMILIES = ["llama", "gpt2", "phi3", "apertus"]
HIERARCHY: dict[str, Any] = {"kind": "hierarchy", "width": 12, "language_width": 6}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_units_that_do_least_go(
    family: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model = make_moe(family, width=10)
    for moe in mixture_layers(model):
        moe.experts.down_proj[:, :, [0, 3, 9]] = 0.0
    smaller = prune_experts(model, 7)
    assert smaller.config.expert_width == 7
    assert model.config.expert_width == 10
    for mode in modes(6):  # what was cut added nothing, so the rest says whether units, gates and biases stay together
        expected = model(tokens(6, 9), **mode).logits
        assert torch.allclose(smaller(tokens(6, 9), **mode).logits, expected, rtol=0, atol=2e-5)
    ours, theirs = smaller.state_dict(), model.state_dict()
    changed = {name for name in ours if name not in theirs or not torch.equal(ours[name], theirs[name])}
    assert {name.rpartition(".experts.")[2] for name in changed} <= {
        *("gate_up_proj", "up_proj", "up_proj_bias", "gate_up_proj_bias", "down_proj")
    }


@torch.no_grad()
def test_a_unit_counts_by_the_product_of_its_norms(make_moe: Callable[..., Any]) -> None:
    model = make_moe(width=4)
    experts = mixture_layers(model)[0].experts
    experts.gate_up_proj[:] = 0.1
    experts.down_proj[:] = 0.1
    gate, up = experts.gate_up_proj[1].chunk(2)
    gate[0] *= 100.0
    up[0] *= 0.001  # 0.1 of the others' product
    experts.down_proj[1, :, 1] *= 0.5  # the second that is kept, and in its place
    gate[3] *= 0.4
    kept = mixture_layers(prune_experts(model, 2))[0].experts
    assert torch.equal(kept.gate_up_proj[1], experts.gate_up_proj[1, [1, 2, 5, 6]])
    assert torch.equal(kept.down_proj[1], experts.down_proj[1][:, [1, 2]])
    assert torch.equal(kept.down_proj[0], experts.down_proj[0][:, [0, 1]])  # equal ones: the first, in their order


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_rank_is_exact(
    family: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model = make_moe(family, width=10)
    full = factor_experts(model, 16 if family in ("llama", "phi3") else 10)
    assert {name.rpartition(".")[2] for name, _ in full.named_parameters() if ".experts.down_proj_" in name} >= {
        "down_proj_a",
        "down_proj_b",
    }
    for mode in modes(6):
        expected = model(tokens(6, 9), **mode).logits
        assert torch.allclose(full(tokens(6, 9), **mode).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_error_falls_with_the_rank(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model = make_moe(width=12)
    weight = mixture_layers(model)[1].experts.down_proj
    values = torch.linalg.svdvals(weight)
    routed = {"group_ids": torch.tensor([3, 0, 2, 1])}
    expected, errors = model(tokens(4, 9), **routed).logits, []
    for rank in (1, 4, 8, 16):
        low = factor_experts(model, rank)
        experts = mixture_layers(low)[1].experts
        lost = (experts.down_proj_b @ experts.down_proj_a - weight).square().sum((1, 2))
        # the best of its rank (Eckart and Young): what is lost is exactly what the other singular values hold
        assert torch.allclose(lost, values[:, rank:].square().sum(1), rtol=1e-4, atol=1e-9)
        # both factors are of one scale
        assert torch.allclose(experts.down_proj_a.norm(dim=(1, 2)), experts.down_proj_b.norm(dim=(1, 2)), rtol=1e-4)
        errors.append(float((low(tokens(4, 9), **routed).logits - expected).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] > 1e4 * errors[3]  # below full rank something is lost


@torch.no_grad()
def test_low_rank_experts_can_be_made_smaller_again(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(width=10)
    low, group_ids = factor_experts(model, 6), torch.tensor([1, 3])
    found = factor_experts(low, 3)(tokens(2, 9), group_ids=group_ids).logits
    expected = factor_experts(model, 3)(tokens(2, 9), group_ids=group_ids).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    for moe in mixture_layers(low):
        moe.experts.down_proj_a[:, :, 4] = 0.0
    pruned = prune_experts(low, 9)
    found = pruned(tokens(2, 9), group_ids=group_ids).logits
    assert torch.allclose(found, low(tokens(2, 9), group_ids=group_ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_in_a_hierarchy_pruning_is_for_groups_and_ranks_for_both(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(**HIERARCHY)
    pruned, low = prune_experts(model, 5), factor_experts(model, 4)
    widths = {name.rpartition(".")[2]: bank.width for name, bank in expert_banks(pruned)}
    assert widths == {"experts": 5, "language_experts": 6}
    assert {(bank.width, bank.rank) for _, bank in expert_banks(low)} == {(12, 4), (6, 4)}
    for mode in ({"group_ids": torch.tensor([4, 0, 2])}, {"routing": "prefix"}, {"routing": "top_k"}):
        expected = model(tokens(3, 9), **mode).logits
        full = factor_experts(model, 16)(tokens(3, 9), **mode).logits
        assert torch.allclose(full, expected, rtol=0, atol=1e-5)
        for smaller in (pruned, low):
            assert not torch.allclose(smaller(tokens(3, 9), **mode).logits, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_saved_and_loaded_they_are_the_same(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    model = make_moe("gpt2", width=10).to(torch.bfloat16)
    for number, smaller in enumerate((prune_experts(model, 4), factor_experts(model, 3))):
        assert {parameter.dtype for parameter in smaller.parameters()} == {torch.bfloat16}
        assert smaller.transformer.language_gate.log_prob.dtype == torch.float32
        assert torch.equal(smaller.transformer.language_gate.log_prob, model.transformer.language_gate.log_prob)
        smaller.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number), dtype=torch.bfloat16).eval()
        assert torch.equal(loaded(tokens(3, 9)).logits, smaller(tokens(3, 9)).logits)
        assert count_parameters(loaded).total < count_parameters(model).total


@torch.no_grad()
def test_adapters_are_pruned(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model = make_moe(kind="adapter", width=6)
    for moe in mixture_layers(model):
        moe.experts.down_proj[:, :, 2] = 0.0
    smaller = prune_experts(model, 5)
    assert torch.allclose(smaller(tokens(2, 9)).logits, model(tokens(2, 9)).logits, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="adapters are two thin factors already"):
        factor_experts(model, 2)


def test_the_rank_that_saves_is_counted(make_moe: Callable[..., Any]) -> None:
    for model in (make_moe(width=10), make_moe("gpt2", width=10), make_moe(**HIERARCHY)):
        size, rank = count_parameters(model).total, saving_rank(model)
        assert count_parameters(factor_experts(model, rank)).total < size
        assert count_parameters(factor_experts(model, rank + 1)).total >= size
        assert saving_rank(factor_experts(model, 3)) == 2


@pytest.mark.parametrize(
    ("shrink", "value", "sentence"),
    [
        (prune_experts, 10, "width = 10: the experts have 10 units now; give one from 1 to 9"),
        (prune_experts, 0, "width = 0: the experts have 10 units now; give one from 1 to 9"),
        (factor_experts, 0, "rank = 0: these experts can be brought to the ranks 1 to 16"),
        (factor_experts, 17, "rank = 17: these experts can be brought to the ranks 1 to 16"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    shrink: Callable[[Any, int], Any], value: int, sentence: str, make_moe: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        shrink(make_moe(width=10), value)


@pytest.mark.parametrize("shrink", [prune_experts, factor_experts])
def test_copies_have_nothing_to_compress(shrink: Callable[[Any, int], Any], make_moe: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="kind copy: each holds the whole FFN, so there is no small difference"):
        shrink(make_moe(kind="copy"), 2)
