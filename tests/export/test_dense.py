"""One group of a mixture as a dense model, for every family in the registry."""

import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from mixtures import GROUPS, KINDS, expert_options, randomise, save_mixture, verify_here
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.export import exporter
from sprachbund.export.dense import dense_verdict, specialist_config, specialist_tensors
from sprachbund.export.exporter import export_dense
from sprachbund.export.source import Source, read_mixture_config
from sprachbund.modeling import PairTable, expand
from sprachbund.modeling.checkpoint import write_checkpoint
from sprachbund.modeling.ffn import FAMILIES

REASONS = {
    **dict.fromkeys(sorted(name for name, family in FAMILIES.items() if family.width is None), "have a fixed width"),
    **dict.fromkeys(
        sorted(name for name, family in FAMILIES.items() if family.trained_activation),
        "have activation functions with trained weights",
    ),
}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process, without a card; a test in tests/cli goes through the fresh one."""
    monkeypatch.setattr(exporter, "verify", verify_here)
    monkeypatch.setattr(exporter, "write_card", lambda folder, **_: None)


def specialist(folder: Path, out: Path, *, group: int) -> Any:
    """Return the dense model of one group, written to `out` and loaded."""
    source = Source(folder, read_mixture_config(folder))
    config = specialist_config(source)
    out.mkdir()
    write_checkpoint(out, specialist_tensors(source, config, group=group))
    config.save_pretrained(out)
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@torch.no_grad()
def outputs(mixture: Any, dense: Any, *, group: int, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    input_ids = families.tokens(2, length)
    return mixture(input_ids, group_ids=torch.full((2,), group)).logits, dense(input_ids).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_the_ffn_bit_by_bit(family: str, tmp_path: Path) -> None:
    mixture = families.mixture(family, "copy")
    mixture.save_pretrained(tmp_path / "model")
    dense = specialist(tmp_path / "model", tmp_path / "out", group=2)
    assert type(dense) is FAMILIES[family].dense_causal_lm_class
    assert sum(p.numel() for p in dense.parameters()) == sum(p.numel() for p in families.dense(family).parameters())
    ours, theirs = outputs(mixture, dense, group=2)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(outputs(mixture, dense, group=0)[0], theirs)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REASONS])
def test_a_shared_ffn_and_an_expert_are_one_wider_ffn(family: str, tmp_path: Path) -> None:
    mixture = families.mixture(family, "shared")
    mixture.save_pretrained(tmp_path / "model")
    dense = specialist(tmp_path / "model", tmp_path / "out", group=1)
    ours, theirs = outputs(mixture, dense, group=1)
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()
    assert not torch.allclose(outputs(mixture, dense, group=2)[0], theirs)


KEYED = [
    ("qwen3", "hierarchy"),
    ("gpt2", "low-rank hierarchy"),
    ("starcoder2", "everything"),
    ("phi3", "everything"),
    ("gemma3_text", "rows of groups"),
    ("bloom", "rows of groups"),
    ("phi", "rows of languages"),
    ("cohere", "rows for all"),
    ("gpt_neox", "one group"),
    ("mpt", "one group of copies"),
]


@pytest.mark.parametrize(("family", "kind"), KEYED)
def test_what_a_group_has_becomes_plain_weights(family: str, kind: str, tmp_path: Path) -> None:
    given = KINDS[kind]
    options = expert_options(given["kind"], None, given.get("options", {}))
    mixture = expand(families.dense(family), moe_layers=[1], **options).eval()
    randomise(mixture)
    mixture.save_pretrained(tmp_path / "model")
    group = mixture.config.num_groups - 1
    dense = specialist(tmp_path / "model", tmp_path / "out", group=group)
    assert type(dense) is FAMILIES[family].dense_causal_lm_class
    ours, theirs = outputs(mixture, dense, group=group)
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()
    if group:
        assert not torch.allclose(outputs(mixture, dense, group=0)[0], theirs)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_of_a_hierarchy_with_rows(tied: bool, tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", **KINDS["everything"], tie_word_embeddings=tied, dtype=torch.bfloat16)
    facts = export_dense(model, tmp_path / "out", language="quc")
    assert (facts["languages"], facts["difference"] <= 1e-6) == (["quc_Latn"], True)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out"))
    assert ("lm_head.weight" in theirs) != tied
    table = read_mixture_config(model).row_of_group[facts["group"]]
    for module in ("model.embed_tokens", *(() if tied else ("lm_head",))):
        both = [ours[f"{module}.weight"].float(), ours[f"{module}.delta"][table].float()]
        assert torch.equal(theirs[f"{module}.weight"], sum(both))
    assert not any(name.endswith(".delta") for name in theirs)


def test_adapters_are_no_dense_model(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", **KINDS["adapter"])
    with pytest.raises(InputError, match="no FFN of a dense model computes a bottleneck on the FFN's own output"):
        export_dense(model, tmp_path / "out", group=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_one_group_is_the_dense_model_that_it_is(tmp_path: Path) -> None:
    facts = export_dense(save_mixture(tmp_path / "model", **KINDS["one group of copies"]), tmp_path / "out", group=0)
    assert (facts["difference"], facts["caveats"]) == (0, [])


@pytest.mark.parametrize(("family", "reason"), REASONS.items())
def test_an_ffn_that_cannot_hold_an_expert_beside_itself(family: str, reason: str, tmp_path: Path) -> None:
    families.mixture(family, "shared").save_pretrained(tmp_path / "model")
    sentence = (
        f"the FFNs of {family} models {reason}, so that one FFN cannot hold the shared FFN and an expert; only a "
        "mixture of kind copy can be exported as a dense model"
    )
    with pytest.raises(InputError) as raised:
        export_dense(tmp_path / "model", tmp_path / "out", group=0)
    assert str(raised.value) == sentence
    assert not (tmp_path / "out").exists()
    verdict = dense_verdict(read_mixture_config(tmp_path / "model"))
    assert (verdict.exact, verdict.reasons) == (False, (sentence,))


@pytest.mark.usefixtures("here")
def test_the_configuration_is_the_base_with_a_wider_ffn(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", "qwen3", kind="shared", head_dim=16)
    facts = export_dense(model, tmp_path / "out", group=1)
    assert facts["difference"] <= 1e-6
    assert (facts["target"], facts["group"], facts["languages"]) == ("dense", 1, ["quc_Latn", "cak_Latn"])
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config["intermediate_size"] == 24 + 12
    assert not {"moe_layers", "groups", "routing", "auto_map", "expert_kind"} & set(config)
    up = load_file(tmp_path / "out/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    ours = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(up, torch.cat([ours, torch.zeros(12, 16)]))  # a dense layer is padded with units of zeros


@pytest.mark.usefixtures("here")
def test_half_precision_is_kept_but_for_sums_of_biases(tmp_path: Path) -> None:
    model = save_mixture(
        tmp_path / "model", "starcoder2", kind="shared", dtype=torch.bfloat16, residual_dropout=0.0, use_bias=True
    )
    assert export_dense(model, tmp_path / "out", group=0)["difference"] <= 1e-6
    tensors = load_file(tmp_path / "out/model.safetensors")
    summed = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert summed == {f"model.layers.{layer}.mlp.c_proj.bias" for layer in (1, 2)}


@pytest.mark.usefixtures("here")
def test_a_language_stands_for_its_group(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", moe_layers=None, expert_of_group={1: [0, 1, 1], 3: [0, 0, 1]})
    by_language = export_dense(model, tmp_path / "zul", language="zu")
    assert by_language["group"] == GROUPS["zul_Latn"] == 2
    export_dense(model, tmp_path / "two", group=2)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("zul", "two"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    experts = load_file(model / "model.safetensors")  # groups 1 and 2 share expert 1 of layer 1
    assert torch.equal(one["model.layers.1.mlp.down_proj.weight"], experts["model.layers.1.mlp.experts.down_proj"][1])
    with pytest.raises(InputError, match=r"language = 'zul_Cyrl' is none of this model's, did you mean 'zul_Latn'"):
        export_dense(model, tmp_path / "out", language="zul_Cyrl")
    for given, message in (
        ({"group": 3}, r"--group 3: the mixture has groups 0 to 2"),
        ({"group": -1}, r"--group -1: the mixture has groups 0 to 2"),
        ({}, r"a dense model is of one group: give --group or --language \(neither was given\)"),
        ({"group": 0, "language": "zul_Latn"}, r"give --group or --language \(both were given\)"),
    ):
        with pytest.raises(InputError, match=message):
            export_dense(model, tmp_path / "out", **given)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = save_mixture(tmp_path / "model", moe_layers=(1,), num_hidden_layers=2)
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: torch.zeros(16, 17)}, model / "model.safetensors", {"format": "pt"})
    source = Source(model, read_mixture_config(model))
    with pytest.raises(InputError, match=rf"the tensor {name} is \(16, 17\), where the dense model has \(16, 16\)"):
        specialist_tensors(source, specialist_config(source), group=0)
    tensors.pop("model.layers.1.mlp.experts.down_proj")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    source = Source(model, read_mixture_config(model))
    with pytest.raises(InputError, match=r"lacks the tensor model\.layers\.1\.mlp\.experts\.down_proj, which"):
        specialist_tensors(source, specialist_config(source), group=0)


@pytest.mark.usefixtures("here")
def test_the_gates_tables_stay_behind(tmp_path: Path) -> None:
    pairs = PairTable(torch.arange(6), torch.ones(6, len(GROUPS)))
    save_mixture(tmp_path / "mixture", kind="shared", options={"pairs": pairs})
    export_dense(tmp_path / "mixture", tmp_path / "dense", group=1)
    assert not [name for name in load_file(tmp_path / "dense/model.safetensors") if "gate." in name]
