from typing import Any

import pytest
import torch
from tiny_model import (
    ENGLISH,
    FFN,
    HIDDEN,
    HINDI,
    LAYERS,
    RUSSIAN,
    WHOLE,
    ffn_names,
    loss_by_hand,
    state,
    text_steps,
    tiny,
)
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity import (
    STEPWISE,
    FineTuning,
    Signal,
    Sketches,
    measure_gradient,
    probe_language,
    similarity_of,
)

TEXTS = {"eng": ENGLISH, "rus": RUSSIAN, "hin": HINDI}


def measure(model: Any, *repeats: Any, **changes: Any) -> Signal:
    settings = {"tag": "eng_Latn", "ffn": "mlp", "layers": range(LAYERS), "sketches": WHOLE}
    return measure_gradient(model, repeats, **{**settings, **changes})


def gradients_by_hand(model: Any, steps: list[list[Tensor]]) -> Tensor:
    """Return every step's FFN gradients, (steps, layers, P), stored as a user would who has the memory."""
    found = []
    for micro_batches in steps:
        model.zero_grad()
        torch.autograd.backward(loss_by_hand(model, torch.cat(micro_batches)))
        rows = [[model.get_parameter(name).grad.flatten() for name in ffn_names(layer)] for layer in range(LAYERS)]
        found.append(torch.stack([torch.cat(row) for row in rows]))
    model.zero_grad()
    return torch.stack(found)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_it_is_what_stored_gradients_give(family: str) -> None:
    model, steps = tiny(family), text_steps(ENGLISH)
    by_hand_SLP = gradients_by_hand(model, steps)
    signal = measure(model, steps)
    for layer in range(LAYERS):
        assert signal.parts[layer].shape == (3, 3 * HIDDEN * FFN)
        torch.testing.assert_close(signal.parts[layer], by_hand_SLP[:, layer], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(signal.totals[layer], by_hand_SLP[:, layer].sum(0), rtol=1e-3, atol=1e-6)
        assert signal.norms[layer] == pytest.approx(float(by_hand_SLP[:, layer].sum(0).norm()), rel=1e-4)
    assert signal.compared == (0, 1, 2)


@pytest.mark.parametrize("source", ["gradient", STEPWISE])
def test_streamed_cosines_are_those_of_stored_gradients(source: str) -> None:
    model = tiny()
    steps = {tag: text_steps(text) for tag, text in TEXTS.items()}
    found = similarity_of({tag: measure(model, s) for tag, s in steps.items()}, source=source, center=False)
    stored = {tag: gradients_by_hand(model, s) for tag, s in steps.items()}
    for i, a in enumerate(TEXTS):
        for j, b in enumerate(TEXTS):
            by_step = [cosine(x, y) for x, y in zip(stored[a], stored[b], strict=True)]
            exact = cosine(stored[a].sum(0), stored[b].sum(0)) if source == "gradient" else sum(by_step) / 3
            assert found.values_LL[i, j] == pytest.approx(exact, abs=1e-5)
    assert found.values_LL[0, 1] < 0.99


def test_one_step_of_sgd_gives_the_same_similarity() -> None:
    """The deviation is then the gradient, negated and scaled: DMoE's similarity is GradSim's."""
    model = tiny()
    steps = {tag: text_steps(text, num_steps=1) for tag, text in TEXTS.items()}
    moved = {}
    for tag, of_language in steps.items():
        tuning = FineTuning(1, 0.5, "sgd")
        settings: dict[str, Any] = {"layers": range(LAYERS), "sketches": WHOLE, "base": state(model)}
        probe = probe_language(model, [of_language], tag=tag, ffn="mlp", tuning=tuning, **settings)
        moved[tag] = probe.signals["deviation"]
    signals = {tag: measure(model, of_language) for tag, of_language in steps.items()}
    deviation = similarity_of(moved, source="deviation", center=False).values_LL
    stored = {tag: gradients_by_hand(model, of_language) for tag, of_language in steps.items()}
    for source in ("gradient", STEPWISE):
        values = similarity_of(signals, source=source, center=False).values_LL
        assert abs(values - deviation).max() < 1e-5
        for i, a in enumerate(TEXTS):
            for j, b in enumerate(TEXTS):
                assert values[i, j] == pytest.approx(cosine(stored[a], stored[b]), abs=1e-5)
    assert deviation[0, 1] < 0.99


def test_the_scale_of_the_loss_and_the_number_of_equal_steps_do_not_count() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, model: Any, scale: float) -> None:
            super().__init__()
            self.model, self.scale, self.device = model, scale, model.device

        def named_parameters(self, *_: Any, **__: Any) -> Any:
            return self.model.named_parameters()

        def forward(self, **batch: Any) -> Any:
            outputs = self.model(**batch)
            outputs.loss = outputs.loss * self.scale
            return outputs

    model, steps = tiny(), text_steps(ENGLISH, num_steps=1)
    signals = {"a": measure(model, steps), "b": measure(Scaled(model, 1000.0), steps * 3)}
    assert similarity_of(signals, source="gradient", center=False).values_LL[0, 1] == pytest.approx(1, abs=1e-5)


def test_one_text_has_one_gradient_and_repeats_are_kept_in_order() -> None:
    model, first, second = tiny(), text_steps(ENGLISH), text_steps(RUSSIAN)
    both = measure(model, first, second)
    assert both.repeats == 2
    for layer in range(LAYERS):
        expected = torch.cat([measure(model, steps).parts[layer] for steps in (first, second)])
        assert torch.equal(both.parts[layer], expected)
        torch.testing.assert_close(both.totals[layer], expected.sum(0))


def test_micro_batches_are_only_a_matter_of_memory() -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    signals = {"a": measure(model, steps), "b": measure(model, [[torch.cat(step)] for step in steps])}
    assert similarity_of(signals, source=STEPWISE, center=False).values_LL[0, 1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_does_not_change(dtype: torch.dtype) -> None:
    model = tiny().to(dtype).train()
    before = state(model)
    signal = measure(model, text_steps(ENGLISH), layers=[1])
    assert list(signal.totals) == list(signal.parts) == [1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_dropout_is_off() -> None:
    model, steps = tiny("llama"), text_steps(ENGLISH)
    expected = measure(model, steps)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = measure(model.train(), steps)
    assert all(torch.equal(found.totals[layer], expected.totals[layer]) for layer in range(LAYERS))


def test_sketches_keep_the_cosines() -> None:
    model, small = tiny(), Sketches(3 * 256, num_parts=3, seed=0)
    steps = {tag: text_steps(text) for tag, text in TEXTS.items()}
    for source, size in (("gradient", 3 * 256), (STEPWISE, 256)):
        exact, found = (
            similarity_of({t: measure(model, s, sketches=k) for t, s in steps.items()}, source=source, center=False)
            for k in (WHOLE, small)
        )
        assert 0 < abs(found.values_LL - exact.values_LL).max() < 4 / (size * LAYERS) ** 0.5


def test_a_gradient_that_is_not_finite_is_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(float("nan"))
    with pytest.raises(SprachbundError, match="the gradient of eng_Latn is not finite at step 1; "):
        measure(model, text_steps(ENGLISH))
