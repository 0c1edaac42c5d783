"""A mixture rewritten as a native architecture: its configuration and its tensors, one at a time.

Shapes: E experts, D model width, F expert width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sprachbund.export.expert_files import ExpertFiles
from sprachbund.export.source import Source, zeros
from sprachbund.export.targets import (
    Target,
    attention_types,
    dense_layers,
    expert_width,
    folded,
    head_dim,
    interval,
    native_width,
    num_experts,
)
from sprachbund.modeling.checkpoint import LazyTensor
from sprachbund.modeling.config import dense_config

# A shared expert that adds nothing. Not of width 0, which transformers writes as tensors without elements: few loaders
# were made for these. It divides by usual numbers of tensor-parallel ranks.
EMPTY_WIDTH = 64


def native_config(target: Target, config: Any, *, densify: bool) -> Any:
    """Return the target's configuration for a mixture's; with `densify` every layer has experts."""
    native_class = CONFIG_MAPPING[target.name]
    known = {entry.name for entry in fields(native_class)}
    values = {key: value for key, value in dense_config(config).to_dict().items() if key in known}
    experts = num_experts(config)
    values |= {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[target.name]],
        "num_experts_per_tok": min(config.num_experts_per_tok, experts),
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
    }
    if head_dim(config) * config.num_attention_heads != config.hidden_size:
        values["head_dim"] = head_dim(config)
    if "norm_topk_prob" in known:
        values["norm_topk_prob"] = True
    width = native_width(target, config)
    own = _OWN_FIELDS[target.name](config, [] if densify else dense_layers(config), experts, width)
    return native_class(**(values | own))


def _qwen3_moe(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    return {
        "num_experts": experts,
        "moe_intermediate_size": width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "use_sliding_window": "sliding_attention" in attention_types(config),
    }


def _qwen2_moe(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    types = attention_types(config)
    own: dict[str, Any] = {
        "layer_types": types,
        "sliding_window": getattr(config, "sliding_window", None),
        "qkv_bias": True,
        "shared_expert_intermediate_size": config.intermediate_size if config.expert_kind == "shared" else EMPTY_WIDTH,
    }
    if config.dense_model_type == "gemma":
        own["tie_word_embeddings"] = False  # the embeddings are scaled, the output layer is not
    return _qwen3_moe(config, dense, experts, width) | own


def _mixtral(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None)
    return {"num_local_experts": experts, "intermediate_size": width, "sliding_window": window}


def _flex_olmo(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    return {"num_experts": experts, "intermediate_size": width}


def _granitemoe(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    return {"num_local_experts": experts, "intermediate_size": width}


def _ernie4_5_moe(config: Any, dense: list[int], experts: int, width: int) -> dict[str, Any]:
    layers = [layer for layer in range(config.num_hidden_layers) if layer not in dense]
    return {
        "moe_num_experts": experts,
        "moe_num_shared_experts": 0,
        "moe_intermediate_size": width,
        "moe_layer_start_index": layers[0],
        "moe_layer_end_index": layers[-1],
        "moe_layer_interval": interval(layers),
    }


_OWN_FIELDS = {
    "qwen3_moe": _qwen3_moe,
    "qwen2_moe": _qwen2_moe,
    "mixtral": _mixtral,
    "flex_olmo": _flex_olmo,
    "granitemoe": _granitemoe,
    "ernie4_5_moe": _ernie4_5_moe,
}


def native_tensors(target: Target, source: Source, *, densify: bool) -> list[LazyTensor]:
    """Return the tensors of the target's checkpoint, under the names that transformers gives them on disk.

    Raises InputError where the mixture's folder lacks a tensor.
    """
    config = source.config
    found: list[LazyTensor] = []
    done: set[int] = set()
    for name in source.names:
        layer = source.layer_of_ffn(name)
        if layer is None:
            found += _outside(target, source, name)
        elif layer not in config.moe_layers and not densify:
            found.append(source.as_it_is(name))
        elif layer not in done:
            done.add(layer)
            found += _MixtureLayer(target, source, layer).tensors()
    return found


def _outside(target: Target, source: Source, name: str) -> Iterator[LazyTensor]:
    """Yield a tensor outside the FFNs, with what the target wants beside it."""
    if source.config.dense_model_type == "gemma":
        yield from _folded(source, name)
    else:
        yield source.as_it_is(name)
    projection = name.removesuffix("_proj.weight")
    if target.qkv_bias and projection.endswith(("self_attn.q", "self_attn.k", "self_attn.v")):
        bias = f"{projection}_proj.bias"
        if bias not in source:
            yield zeros(bias, source.shape(name)[:1], source.dtype(name))


def _folded(source: Source, name: str) -> Iterator[LazyTensor]:
    """Yield a tensor of Gemma as Llama's family has it: norms multiply by w, not 1 + w; embeddings are not scaled.

    In float32, since neither 1 + w nor the scaled embedding is a number of half precision.
    """
    if name.endswith("norm.weight"):
        yield source.changed(name, lambda tensor: 1.0 + tensor.float(), dtype=torch.float32)
    elif name.endswith("embed_tokens.weight"):
        scale = torch.tensor(source.config.hidden_size**0.5)
        yield source.changed(name, lambda tensor: tensor.float() * scale, dtype=torch.float32)
        if "lm_head.weight" not in source:
            yield source.as_it_is(name, under="lm_head.weight")
    else:
        yield source.as_it_is(name)


class _MixtureLayer:
    """One layer that has experts in the target: a mixture layer, or a dense one that becomes one (`--densify`)."""

    def __init__(self, target: Target, source: Source, layer: int) -> None:
        self.target, self.source, self.config = target, source, source.config
        self.names = target.layout
        self.prefix = source.ffn(layer)
        self.out = f"{self.prefix.removesuffix('mlp.')}{self.names.block}."
        self.mixture = layer in self.config.moe_layers
        self.num_experts, self.width = num_experts(self.config), native_width(target, self.config)
        self.folded, self.own_width = folded(target, self.config), expert_width(self.config)
        self.hidden = int(self.config.hidden_size)
        self.experts = ExpertFiles(source, layer) if self.mixture else None
        self.dtype = source.dtype(f"{self.prefix}down_proj.weight") if self.experts is None else self.experts.dtype

    def tensors(self) -> Iterator[LazyTensor]:
        """Yield the layer's router, experts, and what else the target has there."""
        router = f"{self.out}{self.names.router}"
        if self.mixture:
            yield self.source.as_it_is(f"{self.prefix}gate.weight", under=router)
        else:
            yield zeros(router, (self.num_experts, self.hidden), self.dtype)
        yield from self._fused() if self.names.fused else self._apart()
        if self.target.shared:
            yield from self._shared()
        if self.target.name == "ernie4_5_moe":
            yield zeros(f"{self.out}moe_statics.e_score_correction_bias", (1, self.num_experts), torch.float32)

    def _apart(self) -> Iterator[LazyTensor]:
        names = {"gate": self.names.gate, "up": self.names.up, "down": self.names.down}
        for expert in range(self.num_experts):
            for part, name in names.items():
                full = f"{self.out}experts.{expert}.{name}.weight"
                yield LazyTensor(full, self._shape(part), self.dtype, lambda e=expert, p=part: [self._expert(e, p)])  # type: ignore[misc]

    def _fused(self) -> Iterator[LazyTensor]:
        def pieces(*parts: str) -> Iterable[Tensor]:
            return (self._expert(expert, part) for expert in range(self.num_experts) for part in parts)

        shape_up = (self.num_experts, 2 * self.width, self.hidden)
        shape_down = (self.num_experts, self.hidden, self.width)
        yield LazyTensor(f"{self.out}{self.names.up}.weight", shape_up, self.dtype, lambda: pieces("gate", "up"))
        yield LazyTensor(f"{self.out}{self.names.down}.weight", shape_down, self.dtype, lambda: pieces("down"))

    def _shared(self) -> Iterator[LazyTensor]:
        """Yield the expert for all tokens, whose output the target multiplies by sigmoid(0) = 1/2: ours is doubled."""
        yield zeros(f"{self.out}shared_expert_gate.weight", (1, self.hidden), self.dtype)
        dense = f"{self.prefix}shared_expert." if self.mixture else self.prefix
        for part in ("gate", "up", "down"):
            name = f"{self.out}shared_expert.{part}_proj.weight"
            if self.config.expert_kind == "copy":
                yield zeros(name, self._shape(part, EMPTY_WIDTH), self.dtype)
            elif part == "down":
                yield self.source.changed(f"{dense}down_proj.weight", lambda tensor: 2 * tensor, under=name)
            else:
                yield self.source.as_it_is(f"{dense}{part}_proj.weight", under=name)

    def _expert(self, expert: int, part: str) -> Tensor:
        """Return one projection of one expert.

        A dense layer's experts are the FFN itself, where they replace it: weights that sum to 1 make it whole again.
        Where they are added to it they are zeros. Folded ones are the FFN for all tokens and the expert, side by side.
        """
        if not self.folded:
            return self._own(expert, part)
        dense = f"{self.prefix}shared_expert." if self.mixture else self.prefix
        pieces = [self.source.read(f"{dense}{part}_proj.weight"), self._own(expert, part)]
        return torch.cat(pieces, dim=1 if part == "down" else 0)

    def _own(self, expert: int, part: str) -> Tensor:
        """Return one projection of what is one expert's alone."""
        if self.experts is not None:
            return self.experts.part(expert, part)
        if self.config.expert_kind == "shared":
            return torch.zeros(self._shape(part, self.own_width), dtype=self.dtype)
        return self.source.read(f"{self.prefix}{part}_proj.weight")

    def _shape(self, part: str, width: int | None = None) -> tuple[int, int]:
        width = width or self.width
        return (self.hidden, width) if part == "down" else (width, self.hidden)
