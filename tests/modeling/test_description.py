"""What a model is, from its configuration alone: counts against closed forms and the published totals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import dense, mixture, tiny_config
from transformers import AutoConfig, BloomConfig

from sprachbund.errors import InputError
from sprachbund.modeling.description import describe, describe_config, read_config
from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.parameters import ParameterCounts

BLOOM_560M = BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
BLOOM_LAYERS = [0, 1, 2, 3, 4, 20, 21, 22, 23]  # epsilon 0.6 of DMoE, Li et al. 2025
DENSE_TOTAL = 559_214_592


@pytest.mark.parametrize(
    ("num_groups", "published"),
    [(3, 710_329_344), (6, 936_987_648), (9, 1_163_645_952), (16, 1_692_515_328)],
)
def test_the_published_totals_of_dmoe_are_reproduced_without_weights(num_groups: int, published: int) -> None:
    config = mixture_config(BLOOM_560M, moe_layers=BLOOM_LAYERS, num_groups=num_groups, kind="copy")
    found = describe_config(config)
    ffn = (4096 * 1024 + 4096) + (1024 * 4096 + 1024)
    closed = DENSE_TOTAL + len(BLOOM_LAYERS) * ((num_groups - 1) * ffn + num_groups * 1024)
    assert found.parameters == ParameterCounts(total=published, active=DENSE_TOTAL)
    assert closed == published
    assert found.ffn is not None
    assert found.ffn.num_parameters == ffn
    assert found.mixture is not None
    assert found.mixture.layers == BLOOM_LAYERS


def test_the_dense_total_counts_tied_embeddings_once() -> None:
    found = describe_config(BLOOM_560M)
    assert found.parameters == ParameterCounts(DENSE_TOTAL, DENSE_TOTAL)
    assert found.bytes == {"float32": 4 * DENSE_TOTAL, "bfloat16": 2 * DENSE_TOTAL}
    assert (found.family, found.num_layers, found.mixture, found.refusal) == ("bloom", 24, None, None)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kind", ["copy", "shared"])
def test_counts_of_every_family_are_the_closed_form(family: str, kind: Any) -> None:
    base = tiny_config(family)
    plain = describe_config(base)
    config = mixture_config(base, moe_layers=[1], groups={"a": 0, "b": 1, "c": 2}, kind=kind)
    found = describe_config(config)
    assert plain.ffn is not None
    assert found.ffn == plain.ffn
    expert, total = plain.ffn.num_parameters, plain.parameters.total
    routers = 3 * plain.hidden_size
    if kind == "copy":
        assert found.parameters == ParameterCounts(total + 2 * expert + routers, total)
    else:
        assert found.parameters == ParameterCounts(
            total + 3 * expert + routers + plain.ffn.activation, total + expert + plain.ffn.activation
        )
    assert found.mixture is not None
    assert (found.mixture.experts, found.mixture.width) == ([3], plain.ffn.width)
    table = 4 * base.vocab_size * 3  # the gate's, always float32
    assert found.bytes == {
        dtype: found.parameters.total * size + table for dtype, size in (("float32", 4), ("bfloat16", 2))
    }


def test_counts_are_those_of_the_loaded_model() -> None:
    model = mixture("gemma3_text")
    total = sum(parameter.numel() for parameter in model.parameters())
    assert describe_config(model.config).parameters.total == total
    assert describe_config(dense("gpt2").config).parameters.total == sum(p.numel() for p in dense("gpt2").parameters())


def test_layers_that_share_experts_are_told() -> None:
    tables = {0: [0, 1, 1], 1: [0, 1, 2]}
    config = mixture_config(
        tiny_config("llama"),
        expert_of_group=tables,
        groups={"deu_Latn": 0, "swh_Latn": 1, "zul_Latn": 2},
        width=8,
        routing="group",
    )
    found = describe_config(config).mixture
    assert found is not None
    assert (found.layers, found.experts, found.width, found.kind) == ([0, 1], [2, 3], 8, "shared")
    assert found.groups == [["deu_Latn"], ["swh_Latn"], ["zul_Latn"]]
    assert (found.routing, found.num_experts_per_tok) == ("group", 2)


FOUR = {"deu_Latn": 0, "swh_Latn": 1, "zul_Latn": 1, "nld_Latn": 0}


def test_a_hierarchy_has_experts_of_groups_and_of_languages() -> None:
    base = tiny_config("llama")
    plain = describe_config(base).parameters.total
    config = mixture_config(
        base, moe_layers=[0, 1], groups=FOUR, kind="hierarchy", width=7, language_width=3, rows="group"
    )
    found = describe_config(config)
    mixture = found.mixture
    assert mixture is not None
    assert (mixture.experts, mixture.width, mixture.language_width, mixture.rank) == ([2, 2], 7, 3, None)
    assert mixture.groups == [["deu_Latn"], ["nld_Latn"], ["swh_Latn"], ["zul_Latn"]]
    assert mixture.expert_of_group == [0, 0, 1, 1]
    assert (mixture.rows, mixture.row_tables) == ("group", 2)
    unit, rows = 3 * found.hidden_size, base.vocab_size * found.hidden_size * (1 if base.tie_word_embeddings else 2)
    experts = 2 * (2 * 7 + 4 * 3) * unit
    assert found.parameters.total == plain + experts + 2 * 4 * found.hidden_size + 2 * rows
    assert found.parameters.active == plain + 2 * (7 + 3) * unit + rows


def test_factors_and_tables_are_counted() -> None:
    base = tiny_config("llama")
    plain = describe_config(base).parameters.total
    options: dict[str, Any] = {"kind": "shared", "width": 8, "rank": 2}
    found = describe_config(mixture_config(base, moe_layers=[1], groups=FOUR, **options))
    expert = 2 * (found.hidden_size + 2 * 8) + 2 * (8 + found.hidden_size)
    assert found.parameters == ParameterCounts(plain + 2 * expert + 2 * found.hidden_size, plain + expert)
    assert found.mixture is not None
    assert (found.mixture.rank, found.mixture.width, found.mixture.rows) == (2, 8, None)
    adapters = describe_config(mixture_config(base, moe_layers=[1], groups=FOUR, kind="adapter"))
    assert adapters.mixture is not None
    assert adapters.mixture.width == found.hidden_size // 2
    for rows, tables in (("all", 1), ("group", 2), ("language", 4)):
        keyed = describe_config(mixture_config(base, moe_layers=[1], groups=FOUR, rows=rows)).mixture  # type: ignore[arg-type]
        assert keyed is not None
        assert (keyed.rows, keyed.row_tables) == (rows, tables)


def test_a_native_mixture_counts_its_chosen_experts() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=32, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0],
    )  # fmt: skip
    found = describe_config(config)
    experts = 2 * 4 * 3 * 16 * 8
    assert found.parameters.total - found.parameters.active == experts // 2
    assert found.family is None
    assert found.refusal == "the base is a 'qwen3_moe' model, a mixture of experts already"


@pytest.mark.parametrize(
    ("model_type", "fields", "sentence"),
    [
        ("opt", {}, "cannot be expanded: its decoder layer computes the FFN itself, without a module"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "the base is quantised"),
    ],
)
def test_what_cannot_be_expanded_says_why(model_type: str, fields: dict[str, Any], sentence: str) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = describe_config(AutoConfig.for_model(model_type, **sizes, **fields))
    assert found.refusal is not None
    assert sentence in found.refusal


def test_a_folder_with_a_configuration_is_enough(tmp_path: Path) -> None:
    tiny_config("phi").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert describe(tmp_path).parameters.total == sum(parameter.numel() for parameter in dense("phi").parameters())


def test_no_memory_is_taken_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    real = torch.nn.Parameter.__new__

    def spy(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        made.append(data.device)
        return real(cls, data, requires_grad)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", spy)
    describe_config(BLOOM_560M)
    assert {device.type for device in made} == {"meta"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "has no config.json; give the folder of a model or a run, or a Hub id"),
        ("{", "the configuration of .* cannot be read"),
        ({"model_type": "no_such_model"}, "the configuration of .* cannot be read .*no_such_model"),
        ({"hidden_size": 3}, "the configuration of .* cannot be read"),
    ],
)
def test_a_folder_without_a_configuration_is_one_sentence(config: Any, sentence: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(InputError, match=sentence) as failed:
        describe(tmp_path)
    assert "\n" not in str(failed.value)


def test_a_model_that_is_no_decoder_is_one_sentence() -> None:
    with pytest.raises(InputError, match="no causal language model can be built from this configuration of type 't5'"):
        describe_config(AutoConfig.for_model("t5", num_layers=1, d_model=16))


def test_paths_that_do_not_exist_are_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for given in (str(tmp_path / "nowhere"), "./nowhere", "a/b/c"):
        with pytest.raises(InputError, match="is no folder; give the folder of a model or a run, or a Hub id"):
            read_config(given)


def test_a_hub_id_that_cannot_be_had_is_one_sentence() -> None:
    said = r"^the configuration of no-one/nothing-here cannot be read \(.+\); give the folder"
    with pytest.raises(InputError, match=said):
        read_config("no-one/nothing-here")


def test_a_hub_id_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stand_in(name: str, **options: Any) -> Any:
        asked.append(name)
        assert options == {"revision": "main", "trust_remote_code": False}
        return tiny_config("qwen3")

    monkeypatch.setattr(AutoConfig, "from_pretrained", stand_in)
    assert describe("Qwen/Qwen3-0.6B").family == "qwen3"
    assert asked == ["Qwen/Qwen3-0.6B"]


def test_a_run_is_its_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="has no model yet; finish it with `sprachbund run"):
        describe(tmp_path)
    tiny_config("olmo2").save_pretrained(tmp_path / "model")
    assert describe(tmp_path).family == "olmo2"


def test_a_model_without_one_stack_of_layers_is_one_sentence() -> None:
    with pytest.raises(InputError, match="a model of type 'blt' is no plain decoder, and cannot be described"):
        describe_config(AutoConfig.for_model("blt"))
