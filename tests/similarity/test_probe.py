import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_model import (
    ATTENTION_MATRICES,
    ENGLISH,
    FFN,
    FFN_MATRICES,
    HIDDEN,
    HINDI,
    LAYERS,
    RUSSIAN,
    VOCABULARY,
    WHOLE,
    ffn_names,
    loss_by_hand,
    state,
    text_steps,
    tiny,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sprachbund.errors import SprachbundError
from sprachbund.similarity import FineTuning, LanguageProbe, Sketches, by_repeat, probe_language, similarity_of


def run(
    model: Any, *repeats: Any, num_steps: int = 3, learning_rate: float = 1e-3, optimizer: Any = "adamw", **changes: Any
) -> LanguageProbe:
    settings: dict[str, Any] = {
        "tag": "eng_Latn",
        "ffn": "mlp",
        "tuning": FineTuning(num_steps, learning_rate, optimizer),
        "layers": range(LAYERS),
        "sketches": WHOLE,
        "base": state(model),
    }
    return probe_language(model, repeats, **{**settings, **changes})


def totals(probe: LanguageProbe) -> list[Tensor]:
    return list(probe.signals["deviation"].totals.values())


def cosine(a: LanguageProbe, b: LanguageProbe) -> float:
    signals = {"a": a.signals["deviation"], "b": b.signals["deviation"]}
    return float(similarity_of(signals, source="deviation", center=False).values_LL[0, 1])


def deviation_by_copy(model: Any, steps: list[list[Tensor]], learning_rate: float) -> tuple[dict[str, Tensor], Any]:
    """Fine-tune a full copy as the paper's code does: plain AdamW, linear decay; return weight differences, losses."""
    after = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(after.parameters(), lr=learning_rate, weight_decay=0.0, foreach=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(steps))
    losses = []
    for micro_batches in steps:
        optimizer.zero_grad()
        loss = torch.stack([loss_by_hand(after, ids) for ids in micro_batches]).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    before = dict(model.named_parameters())
    return {name: (weight - before[name]).detach() for name, weight in after.named_parameters()}, losses


def layer_norms(deltas: dict[str, Tensor], matrices: tuple[str, ...]) -> list[float]:
    names = [[f"model.layers.{layer}.{matrix}.weight" for matrix in matrices] for layer in range(LAYERS)]
    return [math.sqrt(sum(float(deltas[name].double().square().sum()) for name in layer)) for layer in names]


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_norms_and_sketches_are_those_of_a_full_copy(family: str) -> None:
    model, steps = tiny(family), text_steps(ENGLISH)
    deltas, losses = deviation_by_copy(model, steps, 1e-3)
    probe = run(model, steps)
    assert probe.tag == "eng_Latn"
    assert probe.losses == pytest.approx(losses, rel=1e-5)
    assert probe.ffn_norms == pytest.approx(layer_norms(deltas, FFN_MATRICES), rel=1e-4)
    assert probe.attention_norms == pytest.approx(layer_norms(deltas, ATTENTION_MATRICES), rel=1e-4)
    for layer in range(LAYERS):
        exact = torch.cat([deltas[name].flatten() for name in ffn_names(layer)])
        torch.testing.assert_close(probe.signals["deviation"].totals[layer], exact, rtol=0, atol=2e-5)


def test_one_step_is_adamw_by_hand() -> None:
    model, steps = tiny(), text_steps(ENGLISH, num_steps=1)
    torch.autograd.backward(loss_by_hand(model, torch.cat(steps[0])))
    expected = []
    for name in ffn_names(1):
        gradient = model.get_parameter(name).grad.flatten()
        expected.append(-1e-3 * gradient / (gradient.abs() + 1e-8))  # both moments cancel in the first step
    model.zero_grad()
    probe = run(model, steps, num_steps=1)
    found, exact = totals(probe)[1], torch.cat(expected)
    assert float((found - exact).norm() / exact.norm()) < 1e-3
    assert probe.ffn_norms[1] == pytest.approx(float(exact.norm()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_bit_for_bit_what_it_was(dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    before, alive = state(model), [parameter.data_ptr() for parameter in model.parameters()]
    probe = run(model, text_steps(ENGLISH), learning_rate=1e-2)
    assert min(probe.ffn_norms) > 0.1
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == alive
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


def broken_steps() -> Iterator[list[Tensor]]:
    yield text_steps(ENGLISH)[0]
    raise KeyboardInterrupt


def broken_micro_batch() -> Iterator[list[Tensor]]:
    first, second, _ = text_steps(ENGLISH)
    yield first
    yield [second[0], torch.full((2, 32), VOCABULARY)]  # a token that does not exist, with a gradient already there


@pytest.mark.parametrize("steps", [broken_steps, broken_micro_batch])
def test_the_model_is_what_it_was_after_an_error_in_the_middle(steps: Any) -> None:
    model = tiny()
    before = state(model)
    with pytest.raises((KeyboardInterrupt, IndexError)):
        run(model, steps())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize(("num_steps", "where"), [(3, "at step 2"), (1, "at its last step")])
def test_divergence_is_an_error_that_names_the_language(num_steps: int, where: str) -> None:
    model = tiny()
    before = state(model)
    with pytest.raises(SprachbundError, match=f"the probe of eng_Latn diverged {where}; lower probe.learning_rate"):
        run(model, text_steps(ENGLISH, num_steps=num_steps), num_steps=num_steps, learning_rate=math.inf)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_the_same_data_gives_the_same_result_whatever_came_before() -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    first = run(model, steps)
    other = run(model, text_steps(RUSSIAN))
    torch.manual_seed(1234)
    again = run(model, steps)
    assert (first.ffn_norms, first.attention_norms, first.losses) == (
        again.ffn_norms,
        again.attention_norms,
        again.losses,
    )
    assert all(torch.equal(a, b) for a, b in zip(totals(first), totals(again), strict=True))
    assert other.ffn_norms != first.ffn_norms


def test_micro_batches_are_only_a_matter_of_memory() -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    split, whole = run(model, steps), run(model, [[torch.cat(step)] for step in steps])
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    assert split.ffn_norms == pytest.approx(whole.ffn_norms, rel=1e-3)
    assert cosine(split, whole) > 0.999


def test_biases_norms_and_other_modules_do_not_count() -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        mlp_bias=True,
        attention_bias=True,
    )
    torch.manual_seed(0)
    model, steps = LlamaForCausalLM(config), text_steps(ENGLISH)
    deltas, _ = deviation_by_copy(model, steps, 1e-3)
    assert all(float(deltas[f"model.layers.0.{matrix}.bias"].norm()) > 0 for matrix in FFN_MATRICES)
    probe = run(model, steps)
    assert probe.ffn_norms == pytest.approx(layer_norms(deltas, FFN_MATRICES), rel=1e-4)
    assert probe.attention_norms == pytest.approx(layer_norms(deltas, ATTENTION_MATRICES), rel=1e-4)
    assert [total.numel() for total in totals(probe)] == [3 * HIDDEN * FFN] * LAYERS
    assert [float(total.norm()) for total in totals(probe)] == pytest.approx(probe.ffn_norms, rel=1e-5)


def test_only_the_asked_layers_are_sketched_but_all_are_measured() -> None:
    probe = run(tiny(), text_steps(ENGLISH), layers=[1, 2])
    signal = probe.signals["deviation"]
    assert list(signal.totals) == list(signal.parts) == list(signal.norms) == list(signal.compared) == [1, 2]
    assert len(probe.ffn_norms) == len(probe.attention_norms) == LAYERS


def test_a_bfloat16_base_moves_as_its_float32_twin() -> None:
    """The paper's learning rate, 8e-6, is below half a bfloat16 unit of most weights: rounding must not swallow it."""
    half = tiny().bfloat16()
    twin = tiny()
    twin.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    found, exact = (run(model, text_steps(ENGLISH), learning_rate=8e-6) for model in (half, twin))
    assert found.ffn_norms == pytest.approx(exact.ffn_norms, rel=0.05)
    assert cosine(found, exact) > 0.9


@pytest.mark.parametrize("center", [False, True])
def test_one_text_is_like_itself_and_unlike_another_script(center: bool) -> None:
    model = tiny()
    texts = {"a": (ENGLISH, 0), "b": (ENGLISH, 48), "c": (RUSSIAN, 0), "d": (HINDI, 0)}
    signals = {}
    for tag, (text, shift) in texts.items():
        steps = text_steps(text, num_steps=12, shift=shift)
        signals[tag] = run(model, steps, tag=tag, num_steps=12, learning_rate=5e-3).signals["deviation"]
    similarity = similarity_of(signals, source="deviation", center=center)
    values = similarity.values_LL
    assert similarity.tags == ("a", "b", "c", "d")
    assert values[0, 1] > 0.25
    assert values[0, 1] > max(values[0, 2], values[0, 3], values[2, 3]) + 0.3


def test_one_step_of_sgd_is_the_gradient_by_hand() -> None:
    model, steps = tiny(), text_steps(ENGLISH, num_steps=1)
    probe = run(model, steps, num_steps=1, learning_rate=0.5, optimizer="sgd")
    torch.autograd.backward(loss_by_hand(model, torch.cat(steps[0])))
    for layer, found in enumerate(totals(probe)):
        exact = torch.cat([model.get_parameter(name).grad.flatten() for name in ffn_names(layer)])
        torch.testing.assert_close(found, -0.5 * exact, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_parts_are_the_updates_of_the_steps(optimizer: str) -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    whole = run(model, steps, optimizer=optimizer).signals["deviation"]
    shorter = run(model, steps[:2], optimizer=optimizer).signals["deviation"]
    for layer in range(LAYERS):
        assert whole.parts[layer].shape == (3, 3 * HIDDEN * FFN)
        torch.testing.assert_close(whole.parts[layer].sum(0), whole.totals[layer], rtol=0, atol=1e-7)
        torch.testing.assert_close(whole.parts[layer][:2].sum(0), shorter.totals[layer], rtol=0, atol=1e-7)
        assert float(whole.parts[layer].norm(dim=1).min()) > 0


def test_repeats_add_up_and_are_told_apart() -> None:
    model, first, second = tiny(), text_steps(ENGLISH), text_steps(ENGLISH, shift=48)
    other = [text_steps(RUSSIAN), text_steps(RUSSIAN, shift=64)]
    both, one, two = run(model, first, second), run(model, first), run(model, second)
    for layer, total in enumerate(totals(both)):
        torch.testing.assert_close(total, totals(one)[layer] + totals(two)[layer], rtol=1e-5, atol=1e-7)
        assert both.signals["deviation"].norms[layer] == pytest.approx(float(total.norm()), rel=1e-5)
    assert both.losses == one.losses + two.losses
    assert both.ffn_norms == pytest.approx([(a + b) / 2 for a, b in zip(one.ffn_norms, two.ffn_norms, strict=True)])
    russian = run(model, *other)
    signals = {"eng_Latn": both.signals["deviation"], "rus_Cyrl": russian.signals["deviation"]}
    found = by_repeat(signals, source="deviation", center=False)
    alone = [cosine(a, run(model, b)) for a, b in zip((one, two), other, strict=True)]
    assert [similarity.values_LL[0, 1] for similarity in found] == pytest.approx(alone, abs=1e-5)


def test_a_sketched_probe_is_the_sketch_of_the_whole() -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    small = Sketches(200, num_parts=3, seed=1)
    whole, found = run(model, steps), run(model, steps, sketches=small)
    for layer, total in enumerate(totals(whole)):
        assert torch.equal(totals(found)[layer], small.total([total]))
        parts = found.signals["deviation"].parts[layer]
        expected = small.stacked([small.part([part]) for part in whole.signals["deviation"].parts[layer]], [total])
        torch.testing.assert_close(parts, expected, rtol=2e-2, atol=1e-5)  # bfloat16 may round either way
        assert found.signals["deviation"].norms[layer] == whole.signals["deviation"].norms[layer]
