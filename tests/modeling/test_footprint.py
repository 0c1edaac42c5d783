"""What is counted from shapes, against what torch really holds: a step on a CPU, its saved tensors, its peak."""

import copy
import json
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.modeling import expand
from sprachbund.modeling.footprint import (
    Arithmetic,
    at_work_bytes,
    cast_bytes,
    kept_per_token,
    layers_of,
    training_state,
)
from sprachbund.modeling.model import is_dmoe
from sprachbund.modeling.skeleton import skeleton
from sprachbund.training.trainer import recompute_activations

V, M, B, T = 1000, 3, 4, 32
OTHER = {"bloom": {"n_layer": M}, "gpt2": {"n_inner": 176}, "gemma2": {"num_hidden_layers": M}}
GROUPS = {"ron_Latn": 0, "ita_Latn": 1, "rus_Cyrl": 1}
KINDS: dict[str, dict[str, Any]] = {
    "shared": {"width": 40},
    "copy": {},
    "adapter": {},
    "hierarchy": {"width": 40, "language_width": 16},
    "low-rank": {"rank": 8},
    "rows": {"width": 40, "rows": "group", "by": "language"},
}


def model_of(family: str) -> Any:
    """Return a dense model that is wide enough for what is counted to be most of what there is."""
    known = AutoConfig.for_model(family)
    sizes = {
        **families.SIZES,
        **{"vocab_size": V, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": M, "head_dim": 16},
    }
    fields = {key: value for key, value in sizes.items() if key in set(known.to_dict()) | set(known.attribute_map)}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields | OTHER.get(family, {}))).train()


def mixture_of(kind: str, family: str = "llama") -> Any:
    """Return a mixture in every layer."""
    options = KINDS[kind]
    name: Any = {"rows": "shared", "low-rank": "shared"}.get(kind, kind)
    return expand(model_of(family), moe_layers=list(range(M)), groups=GROUPS, kind=name, **options).train()


def saved_bytes(model: Any, arithmetic: Arithmetic, **forward: Any) -> int:
    """Return the bytes that autograd keeps after a forward pass, each storage once, parameters not."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = families.tokens(B, T)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "autocast"),
    ):
        loss = model(input_ids=ids, labels=ids, use_cache=False, **forward).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def counted_bytes(model: Any, arithmetic: Arithmetic, *, experts_per_token: int = 1) -> int:
    """Return the same by arithmetic: of what the loss holds at most, the log-probabilities are what it keeps."""
    twin = skeleton(model.config)
    kept = kept_per_token(twin, arithmetic=arithmetic, block_size=T, experts_per_token=experts_per_token)
    copies = cast_bytes(twin) if arithmetic == "autocast" else 0
    return B * T * (kept.activations(checkpointing=False) + 4 * V) + copies


@pytest.mark.parametrize("arithmetic", ["float32", "autocast"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2", "olmo2", "bloom", "gpt2", "starcoder2"])
def test_what_a_dense_model_keeps_is_counted_within_two_percent(family: str, arithmetic: Arithmetic) -> None:
    model = model_of(family)
    assert counted_bytes(model, arithmetic) == pytest.approx(saved_bytes(model, arithmetic), rel=0.02)


@pytest.mark.parametrize("family", ["llama", "qwen3", "bloom", "gpt2"])
def test_what_a_bfloat16_model_keeps_is_counted_within_two_percent(family: str) -> None:
    model = model_of(family).to(torch.bfloat16)
    assert counted_bytes(model, "bfloat16") == pytest.approx(saved_bytes(model, "bfloat16"), rel=0.02)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_neox", "phi3", "falcon", "cohere"])
def test_families_with_more_operations_of_their_own_are_counted_within_a_quarter(family: str) -> None:
    model = model_of(family)
    for arithmetic in ("float32", "autocast"):
        assert counted_bytes(model, arithmetic) == pytest.approx(saved_bytes(model, arithmetic), rel=0.25)


@pytest.mark.parametrize("routing", ["group", "top_k"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_experts_keep_is_counted_within_five_percent(kind: str, routing: str) -> None:
    model, chosen = mixture_of(kind), 2 if routing == "top_k" else 1
    given = {"group_ids": torch.tensor([0, 0, 1, 1]), "routing": routing, "output_router_logits": True}
    for arithmetic in ("float32", "autocast"):
        counted = counted_bytes(model, arithmetic, experts_per_token=chosen)
        assert counted == pytest.approx(saved_bytes(model, arithmetic, **given), rel=0.05)


def test_weights_gradients_and_optimizer_are_counted_to_the_byte() -> None:
    model = mixture_of("hierarchy")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = families.tokens(B, T)
    outputs = model(input_ids=ids, labels=ids, group_ids=torch.tensor([0, 0, 1, 1]), output_router_logits=True)
    (outputs.loss + sum(logits.sum() for logits in outputs.router_logits)).backward()
    optimizer.step()
    state = training_state(skeleton(model.config))
    tensors = [*model.parameters(), *model.buffers()]
    assert state.weights == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert state.gradients == sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    held = [value for values in optimizer.state.values() for value in values.values()]
    assert state.optimizer == sum(value.numel() * value.element_size() for value in held)


def step(model: Any) -> None:
    """Run one forward and backward pass."""
    ids = families.tokens(B, T)
    given = {"group_ids": torch.tensor([0, 0, 1, 1])} if is_dmoe(model) else {}
    model(input_ids=ids, labels=ids, use_cache=False, **given).loss.backward()


def peak_bytes(model: Any, folder: Path) -> int:
    """Return how much more than before a forward and backward pass holds at its peak, as the allocator saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    memory = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in memory:
        held += change
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "kind"), [("llama", None), ("qwen3", None), ("bloom", None), ("llama", "shared")])
def test_the_peak_of_a_step_with_and_without_gradient_checkpointing(
    family: str, kind: str | None, checkpointing: bool, tmp_path: Path
) -> None:
    model = model_of(family) if kind is None else mixture_of(kind, family)
    if checkpointing:
        recompute_activations(model)
    step(model)  # gradients are there, as in a run
    twin = skeleton(model.config)
    kept = kept_per_token(twin, arithmetic="float32", block_size=T)
    counted = B * T * (kept.activations(checkpointing=checkpointing) + kept.logits) + at_work_bytes(twin, num_gpus=1)
    measured = peak_bytes(model, tmp_path)
    assert measured <= counted <= 1.15 * measured  # not too little, and not much too much


def test_checkpointing_keeps_the_inputs_of_layers_and_one_layer() -> None:
    kept = kept_per_token(skeleton(model_of("llama").config), arithmetic="float32", block_size=T)
    assert kept.inputs == 4 * 64
    assert kept.activations(checkpointing=True) == M * kept.inputs + kept.ends
    assert kept.logits == 12 * V > max(kept.layers)


def test_several_gpus_gather_two_layers_and_what_is_in_none() -> None:
    model = model_of("qwen3")
    (one, *_) = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)]
    outside = sum(p.numel() for p in model.parameters()) - M * one
    assert at_work_bytes(model, num_gpus=1) == 4 * V * 64  # the embedding is the largest
    assert at_work_bytes(model, num_gpus=2) == at_work_bytes(model, num_gpus=64) == 8 * (outside + 2 * one)


def test_a_tied_output_layer_is_copied_once() -> None:
    model = model_of("llama")
    maps = [m for m in copy.deepcopy(model).modules() if isinstance(m, torch.nn.Linear)]
    assert cast_bytes(model) == 2 * sum(linear.weight.numel() for linear in maps)
