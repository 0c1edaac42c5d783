"""X-MOD on our bank computes what transformers' XmodModel does; its adapters are apart, and can be frozen."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import XmodConfig, XmodForMaskedLM, XmodModel

from sprachbund.errors import InputError
from sprachbund.modeling.xmod import (
    XmodBankConfig,
    XmodBankModel,
    freeze_embeddings_and_banks,
    from_xmod,
    parameters_per_language,
)

LANGUAGES = ["en_XX", "sw_KE", "id_ID", "de_DE"]
MIXED = torch.tensor([2, 0, 3, 2, 1, 0])


def tiny_xmod(**fields: Any) -> Any:
    """Build transformers' own model with every tensor random, norms and biases too, so that none is missed."""
    sizes: dict[str, Any] = {
        **{"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"intermediate_size": 24, "max_position_embeddings": 40, "languages": LANGUAGES, **fields},
    }
    model = XmodModel(XmodConfig(**sizes)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def xmod() -> Any:
    return tiny_xmod()


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Six sequences of four languages, in no order, padded on the right."""
    input_ids = torch.randint(5, 90, (6, 11), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(11) < torch.tensor([[11], [4], [9], [1], [11], [7]])).long()
    return {"input_ids": input_ids.where(mask.bool(), 1), "attention_mask": mask}


@torch.no_grad()
def test_a_batch_of_mixed_languages_equals_transformers(xmod: Any, batch: dict[str, Tensor]) -> None:
    ours = from_xmod(xmod)
    theirs, found = xmod(**batch, lang_ids=MIXED), ours(**batch, lang_ids=MIXED)
    assert (
        found.last_hidden_state - theirs.last_hidden_state
    ).abs().max() < 1e-6 * theirs.last_hidden_state.abs().max()
    assert (found.pooler_output - theirs.pooler_output).abs().max() < 1e-6
    other = ours(**batch, lang_ids=MIXED.roll(1)).last_hidden_state
    assert (other - found.last_hidden_state).abs().amax((1, 2)).min() > 0.01  # every sequence's language matters


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter_reduction_factor": 4},
        {"hidden_act": "relu"},
        {"chunk_size_feed_forward": 4, "max_position_embeddings": 40},
        {"languages": ["en_XX"]},
    ],
    ids=["quarter", "relu", "chunks", "one language"],
)
@torch.no_grad()
def test_other_settings_equal_transformers_too(fields: dict[str, Any], batch: dict[str, Tensor]) -> None:
    theirs = tiny_xmod(**fields)
    lang_ids = MIXED % len(theirs.config.languages)
    input_ids, mask = batch["input_ids"].repeat(1, 2)[:, :20], batch["attention_mask"].repeat(1, 2)[:, :20]
    expected = theirs(input_ids, lang_ids, mask).last_hidden_state
    found = from_xmod(theirs)(input_ids, mask, lang_ids=lang_ids).last_hidden_state
    assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_transformers_with_and_without_recomputation(recompute: bool, batch: dict[str, Tensor]) -> None:
    theirs = tiny_xmod(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()  # recomputes in training only
    ours = from_xmod(theirs)
    if recompute:
        ours.activation_checkpointing_enable()
        assert ours.encoder.layer[0].gradient_checkpointing
    weights = torch.randn(6, 11, 16, generator=torch.Generator().manual_seed(1))
    for model in (theirs, ours):
        (model(**batch, lang_ids=MIXED).last_hidden_state * weights).sum().backward()
    for layer, own in zip(theirs.encoder.layer, ours.encoder.layer, strict=True):
        bank = own.output.bank
        for place, language in enumerate(LANGUAGES):
            adapter = layer.output.adapter_modules[language]
            assert torch.allclose(bank.up_proj.grad[place], adapter.dense1.weight.grad, rtol=1e-4, atol=1e-5)
            assert torch.allclose(bank.down_proj.grad[place], adapter.dense2.weight.grad, rtol=1e-4, atol=1e-5)
        norm = layer.output.LayerNorm.weight.grad  # of both uses
        assert torch.allclose(own.output.LayerNorm.weight.grad, norm, rtol=1e-4, atol=1e-5)


def test_a_model_with_a_head_gives_its_encoder(batch: dict[str, Tensor]) -> None:
    with_head = XmodForMaskedLM(tiny_xmod().config).eval()
    ours = from_xmod(with_head)
    assert ours.pooler is None
    expected = with_head.roberta(**batch, lang_ids=MIXED).last_hidden_state
    assert torch.allclose(ours(**batch, lang_ids=MIXED).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("field", ["pre_norm", "adapter_layer_norm", "is_decoder"])
def test_what_is_not_the_published_model_is_refused(field: str) -> None:
    with pytest.raises(InputError, match=f"this X-MOD model has {field} = True; only {field} = False is supported"):
        from_xmod(tiny_xmod(**{field: True}))


@pytest.mark.parametrize(
    ("lang_ids", "sentence"),
    [
        (None, "lang_ids is missing: give the number of each sequence's language, 0 to 3"),
        (
            MIXED + 2,
            "lang_ids has 4, and the model has adapters for 4 languages: 0 to 3 (en_XX, sw_KE, id_ID, de_DE)",
        ),
        (
            MIXED - 1,
            "lang_ids has -1, and the model has adapters for 4 languages: 0 to 3 (en_XX, sw_KE, id_ID, de_DE)",
        ),
        (
            MIXED[:5],
            "lang_ids has shape (5,) and type torch.int64; the batch needs (6,) whole numbers (torch.int64)",
        ),
        (
            MIXED.float(),
            "lang_ids has shape (6,) and type torch.float32; the batch needs (6,) whole numbers (torch.int64)",
        ),
    ],
    ids=["missing", "too large", "negative", "too few", "no whole numbers"],
)
def test_an_unknown_language_is_one_sentence(
    lang_ids: Tensor | None, sentence: str, xmod: Any, batch: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        from_xmod(xmod)(**batch, lang_ids=lang_ids)


@torch.no_grad()
def test_embeddings_may_take_the_place_of_tokens(xmod: Any) -> None:
    ours = from_xmod(xmod)
    embeddings = torch.randn(6, 11, 16, generator=torch.Generator().manual_seed(9))
    expected = xmod(inputs_embeds=embeddings, lang_ids=MIXED).last_hidden_state
    found = ours(inputs_embeds=embeddings, lang_ids=MIXED).last_hidden_state
    assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    with pytest.raises(InputError, match=r"^the model was given nothing to read: give input_ids or inputs_embeds$"):
        ours(lang_ids=MIXED)


def test_languages_are_found_by_name(xmod: Any) -> None:
    ours = from_xmod(xmod)
    assert ours.language_ids(["id_ID", "en_XX"]).tolist() == [2, 0]
    with pytest.raises(InputError, match=r"no adapter for the language 'de_AT', did you mean 'de_DE'"):
        ours.language_ids(["de_AT"])
    with pytest.raises(InputError, match=r"give at least one, and each once"):
        XmodBankModel(XmodBankConfig(languages=["en_XX", "en_XX"]))


def test_a_language_adds_seven_million_parameters_to_xlm_r_base() -> None:
    def size(languages: list[str]) -> int:
        config = XmodBankConfig(
            **{"vocab_size": 50, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
            **{"intermediate_size": 3072, "languages": languages, "adapter_width": 768 // 2},
        )
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in XmodBankModel(config).parameters())

    assert parameters_per_language(768, 12) == 7_091_712
    assert size(["a", "b", "c"]) - size(["a", "b"]) == 7_091_712
    with torch.device("meta"):
        adapters = XmodModel(XmodConfig(vocab_size=50)).encoder.layer[0].output.adapter_modules
    assert 12 * sum(parameter.numel() for parameter in adapters.parameters()) == 7_091_712


def test_one_languages_adapters_change_nothing_for_another(xmod: Any, batch: dict[str, Tensor]) -> None:
    ours = from_xmod(xmod)
    with torch.no_grad():
        before = ours(**batch, lang_ids=MIXED).last_hidden_state
        for layer in ours.encoder.layer:
            for parameter in layer.output.bank.parameters():
                parameter[2] += 1.0
        after = ours(**batch, lang_ids=MIXED).last_hidden_state
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == (MIXED != 2).tolist()
    (ours(**batch, lang_ids=MIXED.where(MIXED != 1, 0)).last_hidden_state ** 2).sum().backward()
    for layer in ours.encoder.layer:
        for parameter in layer.output.bank.parameters():
            assert [bool(parameter.grad[language].any()) for language in range(4)] == [True, False, True, True]


def test_frozen_banks_and_embeddings_do_not_move_by_a_bit(xmod: Any, batch: dict[str, Tensor]) -> None:
    ours = from_xmod(xmod)
    freeze_embeddings_and_banks(ours)
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.1, weight_decay=0.1)
    ours(**batch, lang_ids=torch.zeros_like(MIXED)).pooler_output.sum().backward()
    optimizer.step()
    frozen = {name for name in before if name.startswith("embeddings.") or ".bank." in name}
    assert len(frozen) == 5 + 3 * 4
    same = {name for name, parameter in ours.named_parameters() if torch.equal(parameter, before[name])}
    assert same == frozen


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(xmod: Any, batch: dict[str, Tensor], tmp_path: Path) -> None:
    ours = from_xmod(xmod)
    ours.save_pretrained(tmp_path)
    loaded = XmodBankModel.from_pretrained(tmp_path).eval()
    assert loaded.config.languages == LANGUAGES
    expected = ours(**batch, lang_ids=MIXED).last_hidden_state
    assert torch.equal(loaded(**batch, lang_ids=MIXED).last_hidden_state, expected)


def test_a_fresh_model_starts_with_biases_of_zero_and_normal_weights(make_xmod: Callable[[], Any]) -> None:
    bank = make_xmod().encoder.layer[1].output.bank
    assert not bank.up_proj_bias.any()
    assert not bank.down_proj_bias.any()
    assert 0.015 < float(bank.up_proj.detach().std()) < 0.025
    assert 0.015 < float(bank.down_proj.detach().std()) < 0.025


@pytest.fixture
def make_xmod() -> Callable[[], Any]:
    """Build a fresh model of ours, not from any weights."""

    def make() -> Any:
        torch.manual_seed(0)
        sizes = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return XmodBankModel(XmodBankConfig(**sizes, intermediate_size=48, languages=LANGUAGES, adapter_width=16))

    return make
