import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sprachbund.errors import SprachbundError
from sprachbund.modeling.base import scratch_model
from sprachbund.recipe import Scratch
from sprachbund.similarity import (
    CountSketch,
    LanguageProbe,
    deviation_similarity,
    load_probe,
    probe_language,
    save_probe,
)

VOCABULARY, HIDDEN, FFN, LAYERS = 260, 16, 24, 3
WHOLE = CountSketch(3 * HIDDEN * FFN, seed=0)  # large enough to keep a layer's deviation exactly
FFN_MATRICES = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ATTENTION_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")

# Article 1 of the Universal Declaration of Human Rights
ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood. "
)
RUSSIAN = (
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства. "
)
HINDI = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और "
    "परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए। "
)


def tiny(family: str = "qwen3") -> Any:
    scratch = Scratch(family=family, hidden_size=HIDDEN, num_layers=LAYERS, ffn_size=FFN, num_heads=2, tokens=1)
    return scratch_model(scratch, vocab_size=VOCABULARY, block_size=32, eos_token_id=0, seed=0).eval()


def state(model: Any) -> dict[str, Tensor]:
    everything = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything}


def text_steps(text: str, *, num_steps: int = 3, shift: int = 0) -> list[list[Tensor]]:
    """Return steps of two micro-batches, (2, 32), of the text's bytes over and over, from byte `shift` on."""
    stream = torch.tensor(list(text.encode()))
    ids = stream.repeat(-(-(num_steps * 128 + shift) // len(stream)))[shift : shift + num_steps * 128]
    return [list(step) for step in ids.view(num_steps, 2, 2, 32)]


def run(model: Any, steps: Any, **changes: Any) -> LanguageProbe:
    settings: dict[str, Any] = {
        "tag": "eng_Latn",
        "ffn": "mlp",
        "num_steps": 3,
        "learning_rate": 1e-3,
        "layers": range(LAYERS),
        "sketch": WHOLE,
        "base": state(model),
    }
    return probe_language(model, steps, **{**settings, **changes})


def loss_by_hand(model: Any, ids_BT: Tensor) -> Tensor:
    logits = model(input_ids=ids_BT).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), ids_BT[:, 1:].reshape(-1))


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
        exact = torch.cat([deltas[f"model.layers.{layer}.{matrix}.weight"].flatten() for matrix in FFN_MATRICES])
        torch.testing.assert_close(probe.sketches[layer], exact, rtol=0, atol=2e-5)


def test_one_step_is_adamw_by_hand() -> None:
    model, steps = tiny(), text_steps(ENGLISH, num_steps=1)
    torch.autograd.backward(loss_by_hand(model, torch.cat(steps[0])))
    expected = []
    for matrix in FFN_MATRICES:
        gradient = model.get_submodule(f"model.layers.1.{matrix}").weight.grad.flatten()
        expected.append(-1e-3 * gradient / (gradient.abs() + 1e-8))  # both moments cancel in the first step
    model.zero_grad()
    probe = run(model, steps, num_steps=1)
    found, exact = probe.sketches[1], torch.cat(expected)
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
    assert all(torch.equal(first.sketches[layer], again.sketches[layer]) for layer in range(LAYERS))
    assert other.ffn_norms != first.ffn_norms


def test_micro_batches_are_only_a_matter_of_memory() -> None:
    model, steps = tiny(), text_steps(ENGLISH)
    split, whole = run(model, steps), run(model, [[torch.cat(step)] for step in steps])
    assert split.losses == pytest.approx(whole.losses, rel=1e-5)
    assert split.ffn_norms == pytest.approx(whole.ffn_norms, rel=1e-3)
    assert float(deviation_similarity([split, copy_as(whole, "b")], center=False).values_LL[0, 1]) > 0.999


def copy_as(probe: LanguageProbe, tag: str) -> LanguageProbe:
    return LanguageProbe(tag, probe.ffn_norms, probe.attention_norms, probe.sketches, probe.losses)


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
    assert [sketch.numel() for sketch in probe.sketches.values()] == [3 * HIDDEN * FFN] * LAYERS
    assert [float(sketch.norm()) for sketch in probe.sketches.values()] == pytest.approx(probe.ffn_norms, rel=1e-5)


def test_only_the_asked_layers_are_sketched_but_all_are_measured() -> None:
    probe = run(tiny(), text_steps(ENGLISH), layers=[1, 2])
    assert list(probe.sketches) == [1, 2]
    assert len(probe.ffn_norms) == len(probe.attention_norms) == LAYERS


def test_a_bfloat16_base_moves_as_its_float32_twin() -> None:
    """The paper's learning rate, 8e-6, is below half a bfloat16 unit of most weights: rounding must not swallow it."""
    half = tiny().bfloat16()
    twin = tiny()
    twin.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    found, exact = (run(model, text_steps(ENGLISH), learning_rate=8e-6) for model in (half, twin))
    assert found.ffn_norms == pytest.approx(exact.ffn_norms, rel=0.05)
    assert float(deviation_similarity([found, copy_as(exact, "b")], center=False).values_LL[0, 1]) > 0.9


@pytest.mark.parametrize("center", [False, True])
def test_one_text_is_like_itself_and_unlike_another_script(center: bool) -> None:
    model = tiny()
    texts = {"a": (ENGLISH, 0), "b": (ENGLISH, 48), "c": (RUSSIAN, 0), "d": (HINDI, 0)}
    probes = [
        run(model, text_steps(text, num_steps=12, shift=shift), tag=tag, num_steps=12, learning_rate=5e-3)
        for tag, (text, shift) in texts.items()
    ]
    similarity = deviation_similarity(probes, center=center)
    values = similarity.values_LL
    assert similarity.tags == ("a", "b", "c", "d")
    assert values[0, 1] > 0.25
    assert values[0, 1] > max(values[0, 2], values[0, 3], values[2, 3]) + 0.3


def test_a_result_survives_the_disk_and_is_small(tmp_path: Path) -> None:
    size = 64
    probe = run(tiny(), text_steps(ENGLISH), layers=[0, 2], sketch=CountSketch(size, seed=0))
    path = tmp_path / "eng_Latn.safetensors"
    save_probe(path, probe)
    save_probe(path, probe)  # replaces what is there
    found = load_probe(path)
    assert (found.tag, found.losses) == (probe.tag, probe.losses)
    assert (found.ffn_norms, found.attention_norms) == (probe.ffn_norms, probe.attention_norms)
    assert list(found.sketches) == [0, 2]
    assert all(torch.equal(found.sketches[layer], probe.sketches[layer]) for layer in (0, 2))
    # norms and sketches, no weights
    assert [file.name for file in tmp_path.iterdir()] == ["eng_Latn.safetensors"]
    assert path.stat().st_size < 2 * size * 4 + 1024
