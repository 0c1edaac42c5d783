from typing import Any

import pytest
import torch
from tiny_model import ENGLISH, HIDDEN, LAYERS, RUSSIAN, state, tiny
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity import Signal, measure_representation, similarity_of


def sentences(text: str, num: int = 20) -> list[list[int]]:
    """Return byte sequences of many lengths."""
    data = list(text.encode())
    return [data[i : i + 3 + 7 * i % 31] for i in range(num)]


def measure(model: Any, texts: list[list[int]], *, hidden_layer: int = 1, batch_tokens: int = 200) -> Signal:
    return measure_representation(model, texts, tag="eng_Latn", hidden_layer=hidden_layer, batch_tokens=batch_tokens)


def means_by_hand(model: Any, texts: list[list[int]]) -> Tensor:
    """Return (layers + 1, D), one sentence at a time, without padding."""
    found = []
    with torch.no_grad():
        for text in texts:
            outputs = model(input_ids=torch.tensor([text]), output_hidden_states=True)
            found.append(torch.stack([state[0].mean(0) for state in outputs.hidden_states]))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_padding_does_not_count(family: str, batch_tokens: int) -> None:
    model, texts = tiny(family), sentences(ENGLISH)
    expected = means_by_hand(model, texts)
    signal = measure(model, texts, batch_tokens=batch_tokens)
    assert list(signal.totals) == list(range(LAYERS + 1))
    for layer, total in signal.totals.items():
        torch.testing.assert_close(total, expected[layer], rtol=1e-4, atol=1e-6)
        assert signal.norms[layer] == pytest.approx(float(total.norm()), rel=1e-5)


def test_parts_are_eighths_of_the_sentences_and_add_up() -> None:
    model, texts = tiny(), sentences(ENGLISH, num=24)
    signal = measure(model, texts)
    for layer in (0, LAYERS):
        assert signal.parts[layer].shape == (8, HIDDEN)
        torch.testing.assert_close(signal.parts[layer].sum(0), signal.totals[layer])
        torch.testing.assert_close(signal.parts[layer][2], means_by_hand(model, texts[6:9])[layer] * 3 / 24)


def test_fewer_sentences_than_parts_leave_some_empty() -> None:
    signal = measure(tiny(), sentences(ENGLISH, num=3))
    assert signal.parts[1].shape == (8, HIDDEN)
    assert int(signal.parts[1].abs().sum(1).count_nonzero()) == 3


def test_identical_text_is_alike_and_the_chosen_layer_decides() -> None:
    model = tiny()
    by_layer = []
    for layer in (0, LAYERS):
        texts = {"a": sentences(ENGLISH), "b": sentences(ENGLISH), "c": sentences(RUSSIAN)}
        signals = {tag: measure(model, text, hidden_layer=layer) for tag, text in texts.items()}
        values = similarity_of(signals, source="representation", center=False).values_LL
        assert values[0, 1] == pytest.approx(1)
        assert values[0, 2] < 0.9
        by_layer.append(values[0, 2])
    assert by_layer[0] != pytest.approx(by_layer[1], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_does_not_change(dtype: torch.dtype) -> None:
    model = tiny().to(dtype).train()
    before = state(model)
    signal = measure(model, sentences(ENGLISH))
    assert signal.totals[0].dtype == torch.float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def test_states_that_are_not_finite_are_an_error() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("inf"))
    with pytest.raises(SprachbundError, match="the hidden states of eng_Latn are not finite"):
        measure(model, sentences(ENGLISH))
