"""Expanded on disk, tensor by tensor: what comes out is what `expand` gives in memory, in little memory."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GROUPS, VOCAB, dense, tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters, expand
from sprachbund.modeling.base import train_tokenizer
from sprachbund.modeling.expand_files import expand_files
from sprachbund.modeling.ffn import FAMILIES

OPTIONS: dict[str, Any] = {"moe_layers": [1], "groups": GROUPS}


def written(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a checkpoint that is one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def settings(model: Any) -> dict[str, Any]:
    """The configuration without what saving and loading add: names of classes, and data types at any depth."""
    added = ("architectures", "auto_map", "dtype", "_name_or_path", "attn_config")
    return {name: value for name, value in model.config.to_dict().items() if name not in added}


def assert_same(folder: Path, twin: Any) -> None:
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert type(loaded) is type(twin)
    expected, found = twin.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert settings(loaded) == settings(twin)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny llama of two layers in one file; it may be changed."""
    dense("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_what_it_becomes_in_memory(family: str, tmp_path: Path) -> None:
    model = dense(family)
    model.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    kinds: dict[str, dict[str, Any]] = {"copy": {"kind": "copy"}, "narrow": {"kind": "shared", "width": 5}}
    for name, kind in kinds.items():
        options = {**OPTIONS, **kind, "router_init": "normal", "seed": 3}
        done = expand_files(tmp_path / "base", tmp_path / name, **options, max_shard_bytes=30_000)
        twin = expand(model, **options)
        assert_same(tmp_path / name, twin)
        assert done.parameters == count_parameters(twin)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_data_types_are_kept(family: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    del config["dtype"]  # many older checkpoints do not say
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    expand_files(tmp_path / "base", tmp_path / "out", **OPTIONS, router_init="normal")
    assert_same(tmp_path / "out", expand(model, **OPTIONS, router_init="normal"))
    assert {tensor.dtype for name, tensor in written(tmp_path / "out").items() if "log_prob" not in name} == {
        torch.bfloat16
    }


def test_experts_by_layer_and_all_layers(base: Path, tmp_path: Path) -> None:
    tables = {0: [0, 0, 1], 1: [0, 1, 2]}
    groups = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1}
    options: dict[str, Any] = {"groups": groups, "expert_of_group": tables, "kind": "copy", "router_init": "normal"}
    expand_files(base, tmp_path / "uneven", **options)
    assert_same(tmp_path / "uneven", expand(dense("llama"), **options))
    assert written(tmp_path / "uneven")["model.layers.0.mlp.gate.weight"].shape == (2, 32)
    done = expand_files(base, tmp_path / "all", moe_layers="all", num_groups=3, num_experts_per_tok=1)
    assert_same(tmp_path / "all", expand(dense("llama"), moe_layers=[0, 1], num_groups=3, num_experts_per_tok=1))
    assert (done.config.moe_layers, done.config.routing) == ([0, 1], "top_k")
    assert written(tmp_path / "all")["model.language_gate.log_prob"].shape == (VOCAB, 0)


def test_random_weights_are_decided_by_the_seed(base: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 4), ("two", 4), ("other", 5)):
        expand_files(base, tmp_path / name, **OPTIONS, router_init="normal", seed=seed)
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    second = written(tmp_path / "other")
    changed = {name for name, tensor in written(tmp_path / "one").items() if not torch.equal(tensor, second[name])}
    assert changed == {"model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.gate.weight"}


def test_the_folder_is_a_whole_model(base: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["ein Text", "another text"] * 5, vocab_size=300)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    (base / "README.md").write_text("the dense model's")
    (base / "modeling_other.py").write_text("raise RuntimeError")
    expand_files(base, tmp_path / "out", **OPTIONS)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        *("config.json", "generation_config.json", "model.safetensors", "modeling_dmoe.py"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert not (tmp_path / "out/README.md").exists()
    assert not (tmp_path / "out/modeling_other.py").exists()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["DmoeLlamaForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_dmoe.DmoeLlamaForCausalLM"
    assert config["languages"] == list(GROUPS)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.temperature == 0.5
    read = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (read("ein Text").input_ids, read.chat_template) == (tokenizer("ein Text").input_ids, "{{ messages }}")


# --- checkpoints that are older, or of the inner model


@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama"])
def test_a_checkpoint_of_the_inner_model_gets_its_prefix(family: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = tiny_config(family)
    config.tie_word_embeddings = True  # else the output layer is missing
    model = AutoModelForCausalLM.from_config(config)
    model.base_model.save_pretrained(tmp_path / "base")
    assert not any(name.startswith(model.base_model_prefix) for name in written(tmp_path / "base"))
    expand_files(tmp_path / "base", tmp_path / "out", **OPTIONS, kind="copy")
    assert_same(tmp_path / "out", expand(model, **OPTIONS, kind="copy"))


def test_older_names_are_those_that_transformers_renames(tmp_path: Path) -> None:
    model = dense("gpt_neox")
    model.save_pretrained(tmp_path / "base")

    def old(tensors: dict[str, Tensor]) -> None:
        head = "embed_out.weight" if "embed_out.weight" in tensors else "lm_head.weight"
        tensors["embed_out.weight"] = tensors.pop(head)

    rewrite(tmp_path / "base", old)
    expand_files(tmp_path / "base", tmp_path / "out", **OPTIONS)
    assert_same(tmp_path / "out", expand(model, **OPTIONS))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
        ("gpt_neo", "transformer.h.0.attn.attention.bias"),
        ("gptj", "transformer.h.0.attn.masked_bias"),
        ("codegen", "transformer.h.0.attn.causal_mask"),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_older_versions_are_dropped(family: str, name: str, tmp_path: Path) -> None:
    dense(family).save_pretrained(tmp_path / "base")
    rewrite(tmp_path / "base", lambda tensors: tensors.update({name: torch.ones(1, 2)}))
    expand_files(tmp_path / "base", tmp_path / "out", **OPTIONS)
    assert name not in written(tmp_path / "out")
    assert_same(tmp_path / "out", expand(dense(family), **OPTIONS))


def test_one_of_two_tied_tensors_is_enough(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = tiny_config("llama")
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config)
    twin = expand(model, **OPTIONS)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        folder = tmp_path / name
        model.save_pretrained(folder)
        rewrite(folder, lambda tensors, name=name: tensors.update({name: tensors.pop("model.embed_tokens.weight")}))
        expand_files(folder, tmp_path / f"{name}.out", **OPTIONS)
        assert name in written(tmp_path / f"{name}.out")
        assert_same(tmp_path / f"{name}.out", twin)
    rewrite(folder, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(InputError, match=r"lacks the tensor model\.embed_tokens\.weight"):
        expand_files(folder, tmp_path / "out", **OPTIONS)


# --- bad input


def add(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


Q, UP = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(Q), f"{{base}} lacks the tensor {Q}, which its model needs; give a complete"),
        (lambda tensors: tensors.pop(UP), f"{{base}} lacks the tensor {UP}, which its model needs; give a complete"),
        (
            add("lm_head.bias", torch.ones(VOCAB)),
            "{base} has the tensor lm_head.bias, which a llama model of its configuration has not; give a checkpoint",
        ),
        (add(UP, torch.ones(40, 32)), f"the tensor {UP} of {{base}} has the shape (40, 32), and a llama model of its"),
        (add(Q.removeprefix("model."), torch.ones(32, 32)), f"{{base}} has {Q} twice, as "),
        (add(UP, torch.ones(48, 32, dtype=torch.int8)), f"the tensor {UP} of {{base}} is int8: the base is quantised"),
        (add(UP, torch.ones(48, 32).to(torch.float8_e5m2)), f"the tensor {UP} of {{base}} is float8_e5m2: the base is"),
    ],
    ids=["missing", "missing FFN", "unexpected", "shape", "twice", "int8", "float8"],
)
def test_a_checkpoint_that_is_not_its_configurations_is_refused(
    change: Callable[[dict[str, Tensor]], None], message: str, base: Path, tmp_path: Path
) -> None:
    rewrite(base, change)
    with pytest.raises(InputError) as refused:
        expand_files(base, tmp_path / "out", **OPTIONS)
    assert str(refused.value).startswith(message.format(base=base))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised, which cannot be expanded; give"),
        ({"model_type": "opt"}, "the base is a 'opt' model, which cannot be expanded: its decoder layer computes"),
        ({"model_type": "qwen3_moe"}, "the base is a 'qwen3_moe' model, a mixture of experts already"),
        ({"model_type": "dmoe_llama"}, "the base is a 'dmoe_llama' model: it has been expanded already"),
        ({"model_type": "no_such"}, "cannot be read ("),
        ({"model_type": None}, "cannot be read ("),
        ({"hidden_size": "wide"}, "cannot be read ("),
        ({"num_attention_heads": 0}, "cannot be read ("),
        ({"hidden_act": "no_such"}, "no causal language model can be built from this configuration of type"),
    ],
)
def test_a_configuration_that_cannot_be_expanded_is_refused(
    fields: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({k: v for k, v in {**config, **fields}.items() if v is not None}))
    with pytest.raises(InputError) as refused:
        expand_files(base, tmp_path / "out", **OPTIONS)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_layers": [2]}, "layer 2 does not exist; the base has layers 0 to 1"),
        ({"moe_layers": [-1]}, "layer -1 does not exist; the base has layers 0 to 1"),
        ({"moe_layers": [0, 1, 0]}, "a layer is chosen twice: [0, 1, 0]"),
        ({"moe_layers": []}, "no layer is chosen to become a mixture of experts; choose at least one"),
        ({"groups": None, "num_groups": 0}, "num_groups = 0; at least one group is needed"),
        ({"num_experts_per_tok": 4}, "num_experts_per_tok = 4 must lie in 1..3, the groups' number"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok = 0 must lie in 1..3, the groups' number"),
        ({"width": 0}, "width = 0: "),
    ],
)
def test_wrong_wishes_leave_nothing_behind(options: dict[str, Any], message: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        expand_files(base, tmp_path / "deep" / "out", **{**OPTIONS, **options})
    assert str(refused.value).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_folder_that_exists_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists already; give another --out, or remove it first"):
        expand_files("nobody/nothing", tmp_path / "out", **OPTIONS)


def test_a_disk_that_is_full_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sprachbund.modeling import expand_files as module

    def full(source: Path, target: Path) -> None:
        assert (target / "model.safetensors").exists()
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(module, "copy_tokenizer", full)
    with pytest.raises(OSError, match="No space left"):
        expand_files(base, tmp_path / "out", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


# --- memory


MEMORY = """
import re, sys, torch
from pathlib import Path
from transformers import LlamaConfig
from sprachbund.modeling.checkpoint import LazyTensor, write_checkpoint
from sprachbund.modeling.expand_files import expand_files
from sprachbund.modeling.skeleton import skeleton

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
base = folder / "base"
config = LlamaConfig(vocab_size=256, hidden_size=512, intermediate_size=2048, num_hidden_layers=14,
                     num_attention_heads=8, num_key_value_heads=8)
config.save_pretrained(base)
make = lambda shape: lambda: [torch.zeros(shape)]
write_checkpoint(base, [LazyTensor(name, tuple(tensor.shape), torch.float32, make(tensor.shape))
                        for name, tensor in skeleton(config).state_dict().items()], max_shard_bytes=30_000_000)
shards = [path.stat().st_size for path in base.glob("*.safetensors")]
before = peak()
for kind in ("copy", "shared"):
    expand_files(base, folder / kind, moe_layers=[9], num_groups=3, kind=kind)
print(len(shards), sum(shards), max(shards), peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak of resident memory of Linux")
def test_memory_stays_below_a_shard_and_the_experts_of_a_layer(tmp_path: Path) -> None:
    """The bar of the command: 1.25 times the largest shard and one layer's experts, a quarter of the model here."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    num_shards, size, largest, used = map(int, done.stdout.split())
    experts = 3 * 3 * 512 * 2048 * 4
    assert (num_shards, size > 230e6, largest < 31e6) == (8, True, True)
    assert used <= 1.25 * largest + experts, (used, largest, experts)
