"""Which native architecture can hold a mixture exactly, why the others cannot, and what is said of other engines."""

from typing import Any

import pytest
from mixtures import KINDS, config_of

from sprachbund.errors import InputError
from sprachbund.export.dense import dense_verdict
from sprachbund.export.foldable import instead
from sprachbund.export.targets import TARGETS, Verdict, find_target, verdicts

EVERY = (0, 1, 2, 3)
INSTEAD = instead(config_of("llama"))


def of(name: str, config: Any, **options: Any) -> Verdict:
    (found,) = [verdict for verdict in verdicts(config, **options) if verdict.target == name]
    return found


@pytest.mark.parametrize(
    ("family", "target", "fields"),
    [
        ("qwen3", "qwen3_moe", {}),
        ("qwen2", "qwen2_moe", {}),
        ("llama", "qwen2_moe", {}),
        ("mistral", "qwen2_moe", {}),
        ("gemma", "qwen2_moe", {}),
        ("ernie4_5", "ernie4_5_moe", {}),
        ("llama", "qwen2_moe", {"kind": "shared"}),
        ("llama", "qwen2_moe", {"kind": "shared", "moe_layers": EVERY}),
        ("llama", "mixtral", {"moe_layers": EVERY}),
        ("mistral", "mixtral", {"moe_layers": EVERY}),
        ("olmo2", "flex_olmo", {"moe_layers": EVERY}),
        ("granite", "granitemoe", {"moe_layers": EVERY}),
    ],
)
def test_native_means_the_first_exact_architecture(family: str, target: str, fields: dict[str, Any]) -> None:
    found, verdict = find_target(config_of(family, **fields), "native")
    assert found.name == target
    assert verdict.exact
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "mixtral"), ("olmo2", "flex_olmo"), ("granite", "granitemoe")]
)
def test_densify_lifts_the_condition_on_layers(family: str, target: str) -> None:
    config = config_of(family)
    found = of(target, config)
    assert (found.exact, found.densify) == (False, True)
    assert found.reasons == (
        "needs experts in every layer; layers 0, 3 are dense (--densify stores dense layers as identical experts)",
    )
    assert of(target, config, densify=True).exact
    assert find_target(config, "native", densify=True)[0].name == target


@pytest.mark.parametrize(
    ("target", "config", "reason"),
    [
        ("qwen3_moe", {"family": "llama"}, "takes qwen3 models; this one is llama"),
        ("mixtral", {"family": "gpt2"}, "takes llama or mistral models; this one is gpt2"),
        (
            "qwen2_moe",
            {"attention_bias": True},
            "has no bias in its attention's output projection; the model has them (attention_bias)",
        ),
        ("qwen2_moe", {"mlp_bias": True}, "has no biases in its FFNs; the model has them (mlp_bias)"),
        (
            "mixtral",
            {"moe_layers": EVERY, "attention_bias": True},
            "has no biases in its attention; the model has them (attention_bias)",
        ),
        (
            "granitemoe",
            {"family": "granite", "moe_layers": EVERY, "mlp_bias": True},
            "has no biases in its FFNs; the model has them (mlp_bias)",
        ),
        (
            "ernie4_5_moe",
            {"family": "ernie4_5", "use_bias": True},
            "has no biases in its experts; the model has them (use_bias)",
        ),
        (
            "ernie4_5_moe",
            {"family": "ernie4_5", "moe_layers": (0, 2)},
            "needs its mixture layers at a regular interval d, at layers l with (l + 1) divisible by d; found layers "
            "0, 2 (--densify stores dense layers as identical experts)",
        ),
        (
            "qwen3_moe",
            {"family": "qwen3", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "has one kind of attention for all layers; the model has sliding windows in some of them (layer_types)",
        ),
        (
            "qwen2_moe",
            {"family": "gemma", "use_bidirectional_attention": True},
            "has causal attention only; the model's is bidirectional (use_bidirectional_attention)",
        ),
        (
            "qwen2_moe",
            {"moe_layers": None, "expert_of_group": {0: [0, 1, 2], 1: [0, 1, 1], 3: [0, 0, 1]}},
            "needs the same number of experts in every mixture layer; found 2 (layers 1, 3), 3 (layer 0)",
        ),
    ],
)
def test_every_condition_says_why_it_fails(target: str, config: dict[str, Any], reason: str) -> None:
    found = of(target, config_of(**config))
    assert not found.exact
    assert found.reasons == (reason,)


def test_an_interval_of_layers_is_one_that_ernie_can_express() -> None:
    for layers in ((1, 3), (1, 2, 3), (0,), (2,), EVERY):
        assert of("ernie4_5_moe", config_of("ernie4_5", moe_layers=layers)).exact, layers
    for layers in ((0, 3), (0, 1, 3)):
        found = of("ernie4_5_moe", config_of("ernie4_5", moe_layers=layers))
        assert (found.exact, found.densify) == (False, True), layers


def test_fewer_experts_than_groups_are_exact_where_all_layers_have_as_many() -> None:
    config = config_of("qwen3", moe_layers=None, expert_of_group={1: [0, 1, 1], 2: [0, 1, 0]})
    assert of("qwen3_moe", config).exact


def test_what_other_engines_are_known_to_do() -> None:
    narrow = of("qwen2_moe", config_of("mistral", sliding_window=8, head_dim=16)).caveats
    assert "vLLM: cannot load it, since it takes a head's width to be 16 / 2 and the model's is 16" in narrow
    assert "vLLM: not exact beyond the sliding window, which it does not use here" in narrow
    assert any(caveat.startswith("llama.cpp: not exact, it does not renormalise") for caveat in narrow)
    mixed = of("qwen3_moe", config_of("qwen3")).caveats
    assert any(
        caveat.startswith("llama.cpp: cannot load it, since it needs experts in every layer") for caveat in mixed
    )
    dense = of("qwen3_moe", config_of("qwen3"), densify=True).caveats
    assert dense == ("llama.cpp: reported to refuse 3 experts, no power of two (not verified)",)
    gelu = of("mixtral", config_of("llama", moe_layers=EVERY, hidden_act="gelu")).caveats
    assert "vLLM: not exact, its experts compute SiLU and the model gelu" in gelu
    assert of("qwen2_moe", config_of("gemma")).caveats[0].startswith("transformers only")
    odd = of("mixtral", config_of("llama", moe_layers=EVERY, intermediate_size=25)).caveats
    assert odd[0].startswith("transformers: widths 16 and 25 are no multiples of 8")


def test_a_family_without_a_target_is_told_what_is_possible() -> None:
    names = ", ".join(target.name for target in TARGETS)
    with pytest.raises(InputError) as raised:
        find_target(config_of("gpt2"), "native")
    assert str(raised.value) == (
        f"no native architecture computes what this gpt2 mixture does: none of {names} extends gpt2 models; {INSTEAD}"
    )
    assert "--to dense --group G" in INSTEAD


def test_no_exact_target_names_the_conditions_that_fail() -> None:
    with pytest.raises(InputError) as raised:
        find_target(config_of("llama", attention_bias=True), "native")
    assert str(raised.value) == (
        "no native architecture computes what this llama mixture does: mixtral has no biases in its attention; the "
        "model has them (attention_bias) and needs experts in every layer; layers 0, 3 are dense (--densify stores "
        "dense layers as identical experts); qwen2_moe has no bias in its attention's output projection; the model has "
        f"them (attention_bias); {INSTEAD}"
    )


def test_a_target_that_is_named_must_be_exact() -> None:
    with pytest.raises(InputError) as raised:
        find_target(config_of("llama"), "qwen3_moe")
    assert str(raised.value) == (
        f"qwen3_moe cannot compute what this model does: it takes qwen3 models; this one is llama; {INSTEAD}"
    )
    with pytest.raises(InputError, match=r"--to qwen3moe is no architecture to export to, did you mean 'qwen3_moe'"):
        find_target(config_of("llama"), "qwen3moe")
    with pytest.raises(InputError, match=r"--to gguf is no architecture to export to; give native, dense, qwen3_moe, "):
        find_target(config_of("llama"), "gguf")


def test_an_ffn_for_all_tokens_is_folded_into_the_experts_where_the_target_has_no_place_for_it() -> None:
    (fold,) = (c for c in of("qwen3_moe", config_of(family="qwen3", kind="shared")).caveats if "for all tokens" in c)
    assert fold == (
        "the FFN for all tokens is stored in each of the 3 experts of a layer, and computed for each of the 2 that a "
        "token chooses"
    )
    everywhere = config_of(kind="shared", moe_layers=(0, 1, 2, 3))
    assert of("mixtral", everywhere).exact
    assert find_target(everywhere, "native")[0].name == "qwen2_moe"  # which has a place for it
    copies = config_of(moe_layers=(0, 1, 2, 3))
    assert find_target(copies, "native")[0].name == "mixtral"
    assert not any("for all tokens" in caveat for caveat in of("mixtral", copies).caveats)


ROWS_BY_GROUP = "has one embedding and one output row for each token; the model has some for each group (row_of_group)"
AFTER_FFN = "has experts that read the FFN's input; those of the model are adapters, which read its output"
FAMILY_OF = {
    **{"qwen3_moe": "qwen3", "mixtral": "mistral", "qwen2_moe": "llama", "flex_olmo": "olmo2"},
    **{"granitemoe": "granite", "ernie4_5_moe": "ernie4_5"},
}
REFUSED = {
    **dict.fromkeys(("rows of groups", "rows of languages", "everything"), (ROWS_BY_GROUP,)),
    "adapter": (AFTER_FFN,),
}


@pytest.mark.parametrize("target", FAMILY_OF)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_held_by_every_target_or_by_none(kind: str, target: str) -> None:
    found = of(target, config_of(FAMILY_OF[target], moe_layers=EVERY, **KINDS[kind]))
    assert found.reasons == REFUSED.get(kind, ())
    assert found.exact == (kind not in REFUSED)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_but_adapters_is_a_dense_model(kind: str) -> None:
    found = dense_verdict(config_of(**KINDS[kind]))
    assert found.exact == (kind != "adapter")
    if kind == "adapter":
        (reason,) = found.reasons
        assert reason.startswith("no FFN of a dense model computes a bottleneck on the FFN's own output")


def test_what_is_said_of_factors_rows_and_a_single_expert() -> None:
    factors = "the factors of the experts, of rank 3, are multiplied out: 576 numbers for each instead of 204"
    config = config_of(**KINDS["low-rank"])
    assert of("qwen2_moe", config).caveats[0] == f"{factors}, so that the file is larger than the model"
    assert dense_verdict(config).caveats == ("one group as a plain llama model", factors)
    wide = config_of(kind="shared", options={"rank": 12})  # factors larger than their product
    assert of("qwen2_moe", wide).caveats[0].endswith("576 numbers for each instead of 816")
    half = config_of(**KINDS["everything"], dtype="bfloat16")
    assert dense_verdict(half).caveats == (
        "one language as a plain llama model",
        "the factors of the experts, of rank 3, are multiplied out: 768 numbers for each instead of 336",
        "the deltas of the keyed rows are added to the embedding and the output rows",
        "products and sums are stored in float32, since half precision would round them",
    )
    single = of("mixtral", config_of(moe_layers=EVERY, **KINDS["one group"])).caveats
    assert (
        single[0]
        == "one expert serves all tokens: --to dense --group 0 is the plainer way; only transformers was tried"
    )
    assert not any("for all tokens is stored" in caveat for caveat in single)


def test_what_is_possible_instead_depends_on_the_kind() -> None:
    assert "--to dense" not in instead(config_of(**KINDS["adapter"]))
    assert instead(config_of(**KINDS["hierarchy"])).endswith(
        "--to dense --group G makes a plain dense model of one language"
    )
    with pytest.raises(InputError) as raised:
        find_target(config_of("qwen3", **KINDS["rows of groups"]), "native")
    assert str(raised.value) == (
        f"no native architecture computes what this qwen3 mixture does: qwen3_moe {ROWS_BY_GROUP}; {INSTEAD}"
    )
