"""What every family in the registry must do, each on a tiny random model of its own."""

from typing import Any

import pytest
import torch
from families import GROUPS, dense, ffn_of, log_prob, mixture, tiny_config, tokens
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sprachbund.modeling import count_parameters, expand
from sprachbund.modeling.experts import GroupMoe
from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.parameters import layer_cost

every_family = pytest.mark.parametrize("family", FAMILIES)
GROUP_IDS = torch.tensor([2, 0, 1, 0])
MODES: list[dict[str, Any]] = [{"group_ids": GROUP_IDS}, {"routing": "prefix"}, {"routing": "top_k"}]
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@every_family
@torch.no_grad()
def test_the_twin_starts_as_the_dense_model(family: str) -> None:
    model, input_ids = dense(family), tokens(4, 9)
    expected = model(input_ids).logits
    twin: Any = None
    for kind in ("shared", "copy"):
        for init in ("zero", "normal"):
            twin = expand(model, moe_layers=[1], groups=GROUPS, kind=kind, router_init=init, log_prob=log_prob())  # type: ignore[arg-type]
            for mode in MODES:
                logits = twin(input_ids, **mode).logits
                if kind == "shared" or (init == "zero" and mode.get("routing") == "top_k"):
                    assert torch.equal(logits, expected), (kind, init, mode)
                else:
                    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max(), (kind, init, mode)
    assert isinstance(ffn_of(twin, 1), GroupMoe)
    assert not isinstance(ffn_of(twin, 0), GroupMoe)
    for group in range(3):  # one group in the whole batch: the same product as the dense one
        assert torch.equal(twin(input_ids, group_ids=torch.full((4,), group)).logits, expected)


@every_family
@torch.no_grad()
def test_the_twin_starts_as_the_dense_model_in_bfloat16(family: str) -> None:
    torch.manual_seed(3)
    model, input_ids = type(dense(family))(tiny_config(family)).eval().to(torch.bfloat16), tokens(4, 9)
    expected = model(input_ids).logits
    for kind in ("shared", "copy"):
        twin = expand(model, moe_layers=[0, 1], groups=GROUPS, kind=kind, log_prob=log_prob())  # type: ignore[arg-type]
        for mode in ({"routing": "top_k"}, {"group_ids": torch.zeros(4, dtype=torch.int64)}):
            assert torch.equal(twin(input_ids, **mode).logits, expected), (kind, mode)


@every_family
def test_parameters_are_counted_and_priced(family: str) -> None:
    before = count_parameters(dense(family))
    for kind in ("shared", "copy"):
        after = count_parameters(mixture(family, kind))
        assert after.total == before.total + layer_cost(dense(family).config, num_groups=3, kind=kind)  # type: ignore[arg-type]
    assert after.active == before.total  # one copy is as large as the FFN
    ffn = sum(p.numel() for name, p in ffn_of(dense(family), 1).named_parameters() if not name.startswith("act_fn."))
    assert after.total == before.total + 2 * ffn + 3 * 32


@every_family
@torch.no_grad()
def test_a_mixed_batch_equals_each_sequence_alone(family: str) -> None:
    model, input_ids = mixture(family, "copy"), tokens(4, 9)
    per_position = torch.randint(0, 3, (4, 9), generator=torch.Generator().manual_seed(1))
    for ids in (GROUP_IDS, per_position):
        together = model(input_ids, group_ids=ids).logits
        for row in range(4):
            alone = model(input_ids[row : row + 1], group_ids=ids[row : row + 1]).logits
            torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    for group in range(3):
        others = model(input_ids, group_ids=torch.full((4,), group)).logits
        assert (others - model(input_ids, group_ids=torch.full((4,), (group + 1) % 3)).logits).abs().max() > 1e-3
    for routing in ("prefix", "top_k"):
        together = model(input_ids, routing=routing).logits
        torch.testing.assert_close(together[2:3], model(input_ids[2:3], routing=routing).logits, **CLOSE)


@every_family
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(family: str) -> None:
    model, short = mixture(family), tokens(2, 5)
    twin = expand(dense(family), moe_layers=[1], groups=GROUPS, log_prob=log_prob())
    groups = model(short).group_ids
    for side in ("left", "right"):
        pad = torch.zeros(2, 3, dtype=torch.int64)
        parts = (pad, short) if side == "left" else (short, pad)
        input_ids = torch.cat(parts, 1)
        mask = torch.cat([torch.zeros_like(p) if p is pad else torch.ones_like(p) for p in parts], 1)
        real = mask.bool()
        expected = dense(family)(input_ids, attention_mask=mask).logits[real]
        assert torch.equal(twin(input_ids, attention_mask=mask).logits[real], expected)
        assert torch.equal(model(input_ids, attention_mask=mask).group_ids[real], groups.flatten())
        # what stands at the padding must not matter, nor which group it is said to be
        other = torch.where(real, input_ids, 7)
        for mode in ({"routing": "prefix"}, {"routing": "top_k"}):
            a, b = (model(ids, attention_mask=mask, **mode).logits[real] for ids in (input_ids, other))
            torch.testing.assert_close(a, b, **CLOSE)


@every_family
@torch.no_grad()
def test_generation_with_a_cache_equals_the_full_forward(family: str) -> None:
    model, prompt = mixture(family), tokens(2, 5)
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(prompt)
    mask[0, :2] = 0  # the first prompt is padded on the left
    prompt[0, :2] = 0
    for mode in ({"group_ids": GROUP_IDS[:2]}, {"routing": "prefix"}, {"routing": "top_k"}):
        for beams in (1, 3):
            written = [
                model.generate(
                    prompt,
                    attention_mask=mask,
                    max_new_tokens=4,
                    do_sample=False,
                    num_beams=beams,
                    use_cache=use,
                    **mode,
                )
                for use in (True, False)
            ]
            assert torch.equal(*written), (mode, beams)


@every_family
@torch.no_grad()
def test_decoding_token_by_token_equals_the_full_forward(family: str) -> None:
    model, input_ids = mixture(family), tokens(2, 7)
    full = model(input_ids)
    cache, logits, groups = None, [], []
    for position in range(7):
        output = model(input_ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
        groups.append(output.group_ids)
    assert torch.equal(torch.cat(groups, 1), full.group_ids)
    torch.testing.assert_close(torch.cat(logits, 1), full.logits, **CLOSE)


def _gradients(model: Any, mode: dict[str, Any], input_ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(input_ids, labels=input_ids, use_cache=False, output_router_logits=True, **mode)
    (output.loss + sum(logits.float().square().mean() for logits in output.router_logits)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_family
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    model, input_ids = mixture(family).train(), tokens(4, 9)
    for mode in MODES:
        plain = _gradients(model, mode, input_ids)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = _gradients(model, mode, input_ids)
        model.gradient_checkpointing_disable()
        assert plain.keys() == again.keys()
        assert any(name.endswith(".gate.weight") for name in plain)
        assert any(".experts." in name and gradient.any() for name, gradient in plain.items())
        for name in plain:
            assert torch.equal(plain[name], again[name]), (mode, name)


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, MODES[0]) for family in FAMILIES), ("llama", MODES[1]), ("llama", MODES[2])],
)
@torch.no_grad()
def test_a_compiled_forward_gives_the_same(family: str, mode: dict[str, Any]) -> None:
    model, input_ids = mixture(family), tokens(4, 6)
    expected = model(input_ids, use_cache=False, **mode)
    torch.compiler.reset()
    output = torch.compile(model, backend="eager")(input_ids, use_cache=False, **mode)
    torch.testing.assert_close(output.logits, expected.logits, **CLOSE)
    if expected.group_ids is not None:
        assert torch.equal(output.group_ids, expected.group_ids)


def _attention_layers(model: Any) -> list[str]:
    paths = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [path for path in paths if "attn" in path or "attention" in path]


@every_family
def test_lora_on_attention_and_experts_trains_and_merges(family: str) -> None:
    model, input_ids, registered = mixture(family), tokens(4, 9), FAMILIES[family]
    torch.manual_seed(0)  # of the adapters
    attention = {"target_modules": _attention_layers(model)}
    names = sorted({"gate_up_proj", "up_proj", "down_proj"} & dict(ffn_of(model, 1).experts.named_parameters()).keys())
    experts = {"target_parameters": [f"{registered.ffn}.experts.{name}" for name in names], "target_modules": []}
    # PEFT has one setting for the layout of all weights of an adapter; Conv1D's is not the experts'
    adapters = [attention, experts] if registered.transposed else [{**experts, **attention}]
    for targets in adapters:
        adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **targets)).train()
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
        adapted(input_ids, labels=input_ids, group_ids=GROUP_IDS).loss.backward()
        optimizer.step()
        changed = {name for name, parameter in adapted.named_parameters() if not torch.equal(parameter, before[name])}
        assert changed <= trained
        assert any(".experts." in name for name in changed) == ("target_parameters" in targets)
        assert any("attn" in name or "attention" in name for name in changed) == bool(targets["target_modules"])
        adapted.eval()
        with torch.no_grad():
            expected = [adapted(input_ids, **mode).logits for mode in MODES]
            model = adapted.merge_and_unload()
            for mode, logits in zip(MODES, expected, strict=True):
                assert (model(input_ids, **mode).logits - logits).abs().max() <= 1e-4 * logits.abs().max()
