"""Every row of the table of native architectures: written, loaded in transformers, equal to the mixture."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mixtures import EXPERT_WIDTH, KINDS, LANGUAGE_WIDTH, save_mixture, verify_here
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.errors import InputError, SprachbundError
from sprachbund.export import exporter
from sprachbund.export.exporter import export_native
from sprachbund.export.verify import expected_of, judge, verify

EVERY = (0, 1, 2, 3)
EXACT = 2e-6  # of the largest logit
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 16,
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process, without a card; tests in tests/cli go through the fresh one."""
    monkeypatch.setattr(exporter, "verify", verify_here)
    monkeypatch.setattr(exporter, "write_card", lambda folder, **_: None)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}


def config_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


ROWS: list[tuple[str, str, dict[str, Any], bool]] = [
    ("qwen3_moe", "qwen3", {"head_dim": 16, "tie_word_embeddings": True}, False),
    ("qwen3_moe", "qwen3", {"attention_bias": True, "moe_layers": (3,)}, True),
    ("qwen3_moe", "qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, False),
    ("qwen3_moe", "qwen3", {"moe_layers": None, "expert_of_group": {0: [0, 1, 1], 2: [0, 1, 0]}}, False),
    ("qwen3_moe", "qwen3", {"kind": "shared"}, False),
    ("qwen3_moe", "qwen3", {"kind": "shared", "moe_layers": (1,)}, True),
    ("mixtral", "llama", {"kind": "shared"}, True),
    ("flex_olmo", "olmo2", {"kind": "shared", "moe_layers": EVERY}, False),
    ("granitemoe", "granite", {"kind": "shared"}, True),
    ("ernie4_5_moe", "ernie4_5", {"kind": "shared", "moe_layers": (1, 3), "head_dim": 16}, False),
    ("qwen2_moe", "qwen2", {}, False),
    ("qwen2_moe", "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, False),
    ("qwen2_moe", "qwen2", {"kind": "shared"}, False),
    ("qwen2_moe", "llama", {"tie_word_embeddings": True, "moe_layers": (0, 3)}, False),
    ("qwen2_moe", "llama", {"kind": "shared"}, False),
    ("qwen2_moe", "llama", {"kind": "shared", "dtype": torch.bfloat16}, True),
    ("qwen2_moe", "llama", {"moe_layers": (2,), "hidden_act": "gelu", "intermediate_size": 25}, False),
    ("qwen2_moe", "mistral", {"sliding_window": 8, "head_dim": 16}, False),
    ("qwen2_moe", "mistral", {"sliding_window": None}, False),
    ("qwen2_moe", "gemma", {"head_dim": 8}, False),
    ("qwen2_moe", "gemma", {"head_dim": 8, "dtype": torch.bfloat16, "kind": "shared"}, False),
    ("mixtral", "llama", {"moe_layers": EVERY, "rope_parameters": LLAMA3, "tie_word_embeddings": True}, False),
    ("mixtral", "mistral", {"sliding_window": 8, "head_dim": 16}, True),
    ("flex_olmo", "olmo2", {"moe_layers": EVERY}, False),
    (
        "granitemoe",
        "granite",
        {"attention_multiplier": 0.3, "residual_multiplier": 0.7, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
        True,
    ),
    ("ernie4_5_moe", "ernie4_5", {"moe_layers": (1, 3), "head_dim": 16}, False),
    ("ernie4_5_moe", "ernie4_5", {"moe_layers": (1, 2), "head_dim": 8}, False),
    ("ernie4_5_moe", "ernie4_5", {"moe_layers": (0, 3), "head_dim": 8}, True),
    ("qwen3_moe", "qwen3", KINDS["hierarchy"], False),
    ("mixtral", "llama", KINDS["hierarchy"], True),
    ("qwen2_moe", "llama", KINDS["hierarchy"] | {"dtype": torch.bfloat16}, False),
    ("qwen2_moe", "gemma", KINDS["low-rank hierarchy"] | {"head_dim": 8}, False),
    ("granitemoe", "granite", KINDS["hierarchy"], True),
    ("ernie4_5_moe", "ernie4_5", KINDS["low-rank"] | {"moe_layers": (1, 3), "head_dim": 8}, True),
    ("qwen2_moe", "llama", KINDS["low-rank"] | {"dtype": torch.bfloat16}, False),
    (
        "qwen3_moe",
        "qwen3",
        KINDS["hierarchy"] | {"moe_layers": None, "expert_of_group": {1: [0, 1, 1], 2: [0, 1, 2]}},
        False,
    ),
    ("qwen3_moe", "qwen3", {"options": {"rows": "all", "groups": None, "num_groups": 2}}, False),
    ("qwen3_moe", "qwen3", KINDS["one group"], False),
    ("mixtral", "mistral", KINDS["one group of copies"] | {"sliding_window": None}, True),
    ("flex_olmo", "olmo2", KINDS["one group"] | {"moe_layers": EVERY}, False),
    ("granitemoe", "granite", KINDS["one group"], True),
    ("ernie4_5_moe", "ernie4_5", KINDS["one group of copies"] | {"head_dim": 8}, False),
    ("qwen2_moe", "llama", KINDS["rows for all"] | {"tie_word_embeddings": True, "dtype": torch.bfloat16}, False),
    ("qwen2_moe", "gemma", KINDS["rows for all"] | {"head_dim": 8}, False),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("target", "family", "fields", "densify"), ROWS)
def test_a_native_architecture_computes_what_the_mixture_does(
    target: str, family: str, fields: dict[str, Any], densify: bool, tmp_path: Path
) -> None:
    model, out = save_mixture(tmp_path / "model", family, **fields), tmp_path / "out"
    facts = export_native(model, out, to=target, densify=densify)
    assert facts["difference"] <= EXACT
    assert (facts["target"], facts["densified"], facts["dev"]) == (target, densify, None)
    assert json.loads((out / "export.json").read_text(encoding="utf-8")) == facts
    config = config_in(out)
    assert config["model_type"] == target
    assert not {"moe_layers", "groups", "auto_map", "expert_kind", "layer_norm"} & set(config)
    # what transformers itself would write for such a model
    native = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out))
    native.save_pretrained(tmp_path / "native")
    assert shapes(out) == shapes(tmp_path / "native")


def test_a_hierarchy_is_proven_in_a_fresh_process(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", **KINDS["hierarchy"])
    facts = export_native(model, tmp_path / "out")
    assert (facts["target"], facts["groups"]) == ("qwen2_moe", config_in(model)["groups"])
    assert facts["difference"] <= EXACT
    config = config_in(tmp_path / "out")
    assert (config["num_experts"], config["moe_intermediate_size"]) == (4, EXPERT_WIDTH + LANGUAGE_WIDTH)
    ours, theirs = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    block, tag = "model.layers.2.mlp.", "cak_Latn"
    number, relatives = config_in(model)["groups"][tag], config_in(model)["expert_of_group"]["2"]
    parts = [ours[f"{block}experts.down_proj"][relatives[number]], ours[f"{block}language_experts.down_proj"][number]]
    assert torch.equal(theirs[f"{block}experts.{number}.down_proj.weight"], torch.cat(parts, dim=1))


@pytest.mark.usefixtures("here")
def test_products_of_factors_are_stored_in_float32_and_the_rest_as_it_was(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", **KINDS["low-rank"], dtype=torch.bfloat16)
    export_native(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    wide = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert {name for name in tensors if ".experts." in name} <= wide
    assert not {name for name in wide if "self_attn" in name or "embed" in name or "shared_expert." in name}


@pytest.mark.usefixtures("here")
def test_the_configuration_says_what_the_engine_needs(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "mistral", sliding_window=8, head_dim=16, moe_layers=(0, 2))
    export_native(model, tmp_path / "out", to="native")
    config = config_in(tmp_path / "out")
    wanted = {
        **{"architectures": ["Qwen2MoeForCausalLM"], "mlp_only_layers": [1, 3], "decoder_sparse_step": 1},
        **{"num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True, "router_aux_loss_coef": 0.0},
        **{"moe_intermediate_size": 24, "intermediate_size": 24, "shared_expert_intermediate_size": 64},
        **{"layer_types": ["sliding_attention"] * 4, "use_sliding_window": True, "sliding_window": 8},
        **{"head_dim": 16, "qkv_bias": True, "dtype": "float32"},
    }
    assert {key: config[key] for key in wanted} == wanted
    tensors = load_file(tmp_path / "out/model.safetensors")
    zero = [name for name in tensors if re.search(r"[qkv]_proj\.bias|shared_expert", name)]
    assert len(zero) == 4 * 3 + 2 * 4
    assert not any(tensors[name].any() for name in zero)


@pytest.mark.usefixtures("here")
def test_a_shared_expert_is_doubled_because_its_gate_halves(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "qwen2", kind="shared")
    export_native(model, tmp_path / "out")
    ours, theirs = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    block = "model.layers.1.mlp."
    for part, factor in (("gate", 1), ("up", 1), ("down", 2)):
        name = f"{block}shared_expert.{part}_proj.weight"
        assert torch.equal(theirs[name], factor * ours[name])
    assert not theirs[f"{block}shared_expert_gate.weight"].any()
    config = config_in(tmp_path / "out")
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (EXPERT_WIDTH, 24)
    assert torch.equal(theirs["model.layers.2.self_attn.q_proj.bias"], ours["model.layers.2.self_attn.q_proj.bias"])
    assert theirs["model.layers.2.self_attn.q_proj.bias"].any()


@pytest.mark.usefixtures("here")
def test_densified_layers_hold_the_ffn_in_every_expert(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "llama")
    export_native(model, tmp_path / "out", densify=True)
    ours, theirs = load_file(model / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert config_in(tmp_path / "out")["model_type"] == "mixtral"
    for expert in range(3):
        for part, name in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            stored = theirs[f"model.layers.3.block_sparse_moe.experts.{expert}.{name}.weight"]
            assert torch.equal(stored, ours[f"model.layers.3.mlp.{part}_proj.weight"])
    assert not theirs["model.layers.3.block_sparse_moe.gate.weight"].any()


@pytest.mark.usefixtures("here")
def test_what_is_in_half_precision_stays_so_except_what_is_folded(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "gemma", head_dim=8, dtype=torch.bfloat16)
    facts = export_native(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    folded = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert folded == {name for name in tensors if "norm" in name or "embed" in name}
    ours = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(tensors["lm_head.weight"], ours)
    assert torch.equal(tensors["model.embed_tokens.weight"], 4.0 * ours.float())
    assert not config_in(tmp_path / "out")["tie_word_embeddings"]
    assert facts["caveats"][0].startswith("equal in float32")


@pytest.mark.usefixtures("here")
def test_shards_are_read(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "qwen3")
    export_native(model, tmp_path / "one")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards/model.safetensors").exists()
    export_native(tmp_path / "shards", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("here")
def test_the_tokenizer_and_the_generation_settings_go_along(finished: Path, tmp_path: Path) -> None:
    export_native(finished / "model", tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / "model" / name).read_bytes()


def changed(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.usefixtures("here")
def test_an_export_that_differs_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_mixture(tmp_path / "model", "llama")
    router = "model.layers.1.mlp.gate.weight"

    def spoil(folder: Path, expected: dict[str, torch.Tensor]) -> float:
        changed(folder, router, torch.zeros(3, 16))
        return verify_here(folder, expected)

    monkeypatch.setattr(exporter, "verify", spoil)
    with pytest.raises(SprachbundError, match=r"computes something else: its logits differ by 0\.\d+ of the largest"):
        export_native(model, tmp_path / "sub/out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.usefixtures("here")
def test_a_card_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, **_: Any) -> None:
        raise InputError("no card")

    monkeypatch.setattr(exporter, "write_card", refuse)
    with pytest.raises(InputError, match="no card"):
        export_native(save_mixture(tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_proof_finds_is_judged(tmp_path: Path) -> None:
    expected = {
        "logits": torch.tensor([[[1.0, -2.0]]]),
        "prompt": torch.tensor([[5]]),
        "generated": torch.tensor([[5, 7, 8]]),
        "margins": torch.tensor([[0.5, 0.5]]),
    }
    found: dict[str, Any] = {
        **{"class": "MixtralForCausalLM", "module": "transformers.models.mixtral", "missing": [], "unexpected": []},
        **{"difference": 1e-6, "generated": [[5, 7, 8]]},
    }
    assert judge(found, expected) == pytest.approx(5e-7)
    for change, message in (
        ({"missing": ["a", "b"]}, "the export has missing tensors, a among 2, so nothing was written"),
        ({"unexpected": ["c"]}, "the export has unexpected tensors, c among 1, so nothing was written"),
        ({"module": "sprachbund.modeling"}, "not of transformers"),
        ({"difference": float("nan")}, "differ by nan of the largest, more than 1e-04"),
        ({"difference": 3e-4}, "differ by 0.00015 of the largest"),
        ({"generated": [[5, 7, 9]]}, "generates another text than the mixture, from token 1 on"),
        ({"generated": [[5]]}, "generates another text than the mixture, from token 0 on"),
    ):
        with pytest.raises(SprachbundError) as raised:
            judge(found | change, expected)
        assert message in str(raised.value)
    close = expected | {"margins": torch.tensor([[1e-5, 0.5]])}  # two logits equal but for rounding: either is right
    assert judge(found | {"generated": [[5, 6, 1]]}, close) == pytest.approx(5e-7)


def test_the_fresh_process_knows_nothing_of_this_package(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", moe_layers=(1,), num_hidden_layers=2)
    shutil.copytree(model, tmp_path / "copy")
    with pytest.raises(SprachbundError, match="the export does not load in plain transformers, so nothing was written"):
        verify(tmp_path / "copy", expected_of(model, routing="top_k"))


def test_what_is_no_mixture_is_refused(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", moe_layers=(1,), num_hidden_layers=2)
    out = tmp_path / "out"
    changed(model, "model.layers.1.mlp.gate.weight", None)
    with pytest.raises(InputError, match=r"lacks 1 of its model's tensors, model\.layers\.1\.mlp\.gate\.weight among"):
        export_native(model, out)
    AutoConfig.for_model("llama").save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match="dense is a 'llama' model and no mixture of this package"):
        export_native(tmp_path / "dense", out)
    with pytest.raises(InputError, match=r"has no config\.json"):
        export_native(tmp_path / "nothing", out)
    out.mkdir()
    with pytest.raises(InputError, match="out exists already"):
        export_native(model, out)
