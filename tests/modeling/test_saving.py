"""Saved and loaded, constructed afresh, or filled from a dense checkpoint; and how many parameters there are."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.modeling import causal_lm_class, config_class, count_parameters, layer_cost
from sprachbund.modeling.base import load_model
from sprachbund.modeling.model import is_dmoe, mixture_layers

LANGUAGES = ["zul_Latn", "deu_Latn", "quc_Latn", "cak_Latn", "acu_Latn"]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["shared", "copy"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@torch.no_grad()
def test_a_saved_model_loads_with_the_same_logits_in_every_mode(
    family: str,
    kind: str,
    tied: bool,
    make_moe: Callable[..., Any],
    tokens: Callable[..., Tensor],
    modes: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model = make_moe(family, kind=kind, fields={"tie_word_embeddings": tied}, router_gradient="through")
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == f"dmoe_{family}"
    assert list(stored["groups"]) == sorted(LANGUAGES)  # JSON sorts, so that the order of the table needs a list
    assert stored["languages"] == LANGUAGES
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == f"Dmoe{family.title()}ForCausalLM"
    assert torch.equal(loaded.model.language_gate.log_prob, model.model.language_gate.log_prob)
    assert all(not moe.gate.detach for moe in mixture_layers(loaded))
    input_ids = tokens(4, 12)
    for mode in modes(4):
        assert torch.equal(loaded(input_ids, **mode).logits, model(input_ids, **mode).logits)
    found = loaded(input_ids).group_ids
    assert torch.equal(found, model(input_ids).group_ids)
    assert len(found.unique()) > 2


@torch.no_grad()
def test_a_fresh_process_loads_the_same_model(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any], tmp_path: Path
) -> None:
    model, input_ids = make_moe("qwen3"), tokens(4, 12)
    model.save_pretrained(tmp_path)
    group_ids = modes(4)[0]["group_ids"]
    logits = {name: model(input_ids, routing=name, group_ids=group_ids).logits for name in ("group", "prefix", "top_k")}
    save_file({"input_ids": input_ids, "group_ids": group_ids, **logits}, tmp_path / "expected.st")
    script = """
import sys, torch, sprachbund.modeling
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
model, expected = AutoModelForCausalLM.from_pretrained(folder), load_file(folder + "/expected.st")
for name in ("group", "prefix", "top_k"):
    logits = model(expected["input_ids"], routing=name, group_ids=expected["group_ids"]).logits
    print(name, float((logits - expected[name]).abs().max()) < 1e-6)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == ["group True", "prefix True", "top_k True"]


@torch.no_grad()
def test_the_gate_stays_exact_in_a_bfloat16_model(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    exact = make_moe()
    make_moe().to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.model.language_gate.log_prob, exact.model.language_gate.log_prob)
    assert torch.equal(loaded(tokens(3, 12)).group_ids, exact(tokens(3, 12)).group_ids)


def fresh_config(**fields: Any) -> Any:
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    groups = {"zul_Latn": 1, "deu_Latn": 0}
    return config_class("llama")(**{**sizes, "moe_layers": [0, 1], "num_groups": 2, "groups": groups, **fields})


@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_a_freshly_constructed_model_is_initialised(kind: str) -> None:
    config = fresh_config(expert_kind=kind)
    assert config.expert_width is None
    assert config.languages == ["zul_Latn", "deu_Latn"]
    model = causal_lm_class("llama")(config)
    for moe in mixture_layers(model):
        assert moe.gate.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert moe.experts.gate_up_proj.std().item() == pytest.approx(0.02, rel=0.1)
        assert moe.experts.down_proj.std().item() == pytest.approx(0.0 if kind == "shared" else 0.02, rel=0.1)
    assert all(tensor.isfinite().all() and tensor.abs().max() <= 1 for tensor in model.state_dict().values())
    assert model(torch.arange(6).view(2, 3)).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_a_dense_checkpoint_leaves_no_uninitialised_weight(
    kind: str, make_dense: Callable[..., Any], tmp_path: Path
) -> None:
    dense = make_dense()
    dense.save_pretrained(tmp_path)
    values = {key: value for key, value in dense.config.to_dict().items() if key != "model_type"}
    config = config_class("llama")(
        **values, moe_layers=[1], num_groups=3, groups={"zul_Latn": 1, "deu_Latn": 0, "acu_Latn": 2}, expert_kind=kind
    )
    model = causal_lm_class("llama").from_pretrained(tmp_path, config=config)
    (moe,) = mixture_layers(model)
    assert 0.1 < moe.gate.weight.std() < 0.3  # this base's initializer_range is 0.2
    assert 0.1 < moe.experts.gate_up_proj.std() < 0.3
    assert moe.experts.down_proj.any() == (kind == "copy")
    assert not model.model.language_gate.log_prob.any()
    for index in (0, 2):
        assert torch.equal(model.model.layers[index].mlp.up_proj.weight, dense.model.layers[index].mlp.up_proj.weight)
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, dense.model.layers[1].self_attn.q_proj.weight)
    assert model(torch.arange(6).view(2, 3)).logits.isfinite().all()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_parameters_are_counted_by_their_closed_form(
    tied: bool, make_dense: Callable[..., Any], make_moe: Callable[..., Any]
) -> None:
    width, ffn, vocab, num_groups = 16, 24, 300, 4
    attention = 2 * width * width + 2 * width * 8  # query and output of two heads, key and value of one
    layer = attention + 3 * width * ffn + 2 * width
    expected = 3 * layer + width + (1 if tied else 2) * vocab * width
    fields = {"tie_word_embeddings": tied}
    counts = count_parameters(make_dense(**fields))
    assert (counts.total, counts.active) == (expected, expected)

    router = num_groups * width
    copies = count_parameters(make_moe(kind="copy", fields=fields))
    assert copies.total == expected + 2 * ((num_groups - 1) * 3 * width * ffn + router)
    assert copies.active == expected  # a token meets one copy: no larger than the dense model
    shared = count_parameters(make_moe(kind="shared", width=10, fields=fields))
    assert shared.total == expected + 2 * (num_groups * 3 * width * 10 + router)
    assert shared.active == expected + 2 * 3 * width * 10


@pytest.mark.parametrize(
    ("kind", "width"), [("copy", None), ("shared", None), ("shared", 10)], ids=["copy", "shared", "narrow"]
)
def test_the_cost_of_a_layer_is_what_expanding_it_adds(
    kind: Any, width: int | None, make_dense: Callable[..., Any], make_moe: Callable[..., Any]
) -> None:
    dense = make_dense()
    before = count_parameters(dense).total
    cost = layer_cost(dense.config, num_groups=4, kind=kind, width=width)
    for layers in ([1], [0, 2], [0, 1, 2]):
        expanded = make_moe(kind=kind, width=width, moe_layers=layers)
        assert count_parameters(expanded).total == before + len(layers) * cost
    uneven = make_moe(kind=kind, width=width, moe_layers=None, expert_of_group={0: [0, 0, 1, 1], 2: [0, 1, 2, 1]})
    costs = [layer_cost(dense.config, num_groups=experts, kind=kind, width=width) for experts in (2, 3)]
    assert count_parameters(uneven).total == before + sum(costs)
    assert count_parameters(uneven).active == count_parameters(make_moe(kind=kind, width=width)).active


def test_what_cannot_be_loaded_is_named_in_one_sentence(make_moe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^base: the model of '.*empty' cannot be loaded \(.*\); give a Hub id"):
        load_model(tmp_path / "empty", dtype="float32")
    make_moe().save_pretrained(tmp_path / "whole")
    assert is_dmoe(load_model(tmp_path / "whole", dtype="float32"))
    weights = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.2.mlp.gate.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of its model's tensors, model\.layers\.2\.mlp\.gate\.weight among"):
        load_model(tmp_path / "whole", dtype="float32")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="is truncated: it has "):
        load_model(tmp_path / "whole", dtype="float32")
