"""What training a model keeps in memory, by its shapes alone: nothing is loaded and nothing is run.

Between steps: weights, gradients and the two moments of AdamW, all float32 (the trainer computes in bfloat16 by
autocast, the weights that train stay float32). Within a step, for every token of a micro-batch: what autograd keeps
from the forward pass to the backward pass, counted here layer by layer:

- a norm keeps its input and, where it is computed in steps (RMSNorm), the normalised rows;
- a linear map keeps its input. Maps that read the same rows share them, but under autocast each casts its own copy;
- attention keeps queries, keys, values and its output, and a family without a fused attention the scores: two tables
  of T numbers for each head;
- an FFN of width F keeps 4 F with a gate (gate, its activation, up, their product) and 2 F without; so does an expert,
  for each expert that a token uses, and it keeps its own input;
- the loss: when its backward pass begins, log-probabilities, their gradient and that of the logits are there at once,
  V numbers each in float32. For small models and large vocabularies this is most of everything.

With gradient checkpointing each layer keeps its input, and one layer at a time, after the logits, all of the above.
Not counted: dropout's masks, the loss of the router, temporary results inside a kernel, fragmentation.
Shapes: D model width, F FFN width, V vocabulary, T tokens of a sequence, H numbers of all heads of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from sprachbund.modeling.experts import GroupExperts, GroupMoe
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.ffn_weights import ffn_shape_of
from sprachbund.modeling.model import inner_model, is_dmoe

FLOAT32 = 4  # bytes
MOMENTS = 2  # of AdamW, for each parameter
TABLES = 3  # of V numbers for each token, when the loss's backward pass begins
STEP_BY_STEP = {"NewGELUActivation": 4}  # activations in several operations: the tables of F that they keep, not one

Arithmetic = Literal["float32", "autocast", "bfloat16"]  # the last: weights too, as the probe has them


@dataclass(frozen=True)
class TrainingState:
    """Bytes that training holds between steps; buffers count as weights."""

    weights: int
    gradients: int
    optimizer: int


def training_state(model: Any) -> TrainingState:
    """Return the bytes of a model's float32 weights, their gradients, and AdamW's moments and step counts."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    moments = FLOAT32 * (MOMENTS * sum(sizes) + len(sizes))
    return TrainingState(FLOAT32 * sum(sizes) + buffers, FLOAT32 * sum(sizes), moments)


def at_work_bytes(model: Any, *, num_gpus: int) -> int:
    """Return the bytes that a GPU holds beside its share of weights and gradients while it computes.

    One GPU: the largest parameter's gradient, before it is added to those of earlier micro-batches. Several, with
    weights sharded by layer (FSDP2): two layers, the one at work and the next, and all that is in no layer (embeddings,
    output rows, final norm): their whole weights and their whole gradients, before they are reduced.
    """
    sizes = [parameter.numel() for parameter in model.parameters()]
    if num_gpus == 1:
        return FLOAT32 * int(max(sizes))
    layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(model)]
    return int(2 * FLOAT32 * (sum(sizes) - sum(layers) + sum(sorted(layers)[-2:])))


def cast_bytes(model: Any) -> int:
    """Return the bytes of the bfloat16 copies of linear maps' weights that autocast keeps during a forward pass.

    Experts cast theirs one at a time, and keep none.
    """
    weights = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
    return 2 * int(sum(weights.values()))


@dataclass(frozen=True)
class Kept:
    """Bytes that one token keeps from the forward pass to the backward pass.

    `layers`: everything in each layer; `inputs`: what a layer is given; `ends`: final norm and the output layer's
    input; `logits`: the most that the loss holds at once.
    """

    layers: tuple[int, ...]
    inputs: int
    ends: int
    logits: int

    def activations(self, *, checkpointing: bool) -> int:
        """Return the bytes of a token beside the logits, with or without gradient checkpointing.

        With it a layer is computed again when the logits are gone: it takes what is more than they did.
        """
        if not checkpointing:
            return sum(self.layers) + self.ends
        return self.inputs * len(self.layers) + self.ends + max(max(self.layers) - self.logits, 0)


def kept_per_token(model: Any, *, arithmetic: Arithmetic, block_size: int, experts_per_token: int = 1) -> Kept:
    """Return what one token of sequences of `block_size` keeps; `experts_per_token` is more than 1 under top_k."""
    count = _Count(model, arithmetic, block_size, experts_per_token)
    layers = layers_of(model)
    inside = {id(module) for layer in layers for module in layer.modules()}
    ends = sum(count.norm(module, "") for module in model.modules() if id(module) not in inside)
    head = model.get_output_embeddings()
    ends += head.in_features * count.product
    logits = TABLES * FLOAT32 * head.out_features
    return Kept(tuple(count.layer(layer) for layer in layers), model.config.hidden_size * count.stream, ends, logits)


def layers_of(model: Any) -> list[Any]:
    """Return the decoder layers of a causal model, dense or mixture."""
    return list(getattr(inner_model(model), _family(model).layers))


def _family(model: Any) -> Family:
    config = model.config
    return family_of(config.dense_model_type if is_dmoe(model) else config.model_type, config)


class _Count:
    """Counts what one token keeps in the parts of a layer. `stream`, `product`: bytes of a number of the residual
    stream and of a matrix product."""

    def __init__(self, model: Any, arithmetic: Arithmetic, block_size: int, experts_per_token: int) -> None:
        config = model.config
        self.family, self.block_size, self.chosen = _family(model), block_size, experts_per_token
        self.stream = 2 if arithmetic == "bfloat16" else FLOAT32
        self.product = FLOAT32 if arithmetic == "float32" else 2
        self.casts = arithmetic == "autocast"
        self.hidden_size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.num_key_heads = getattr(config, "num_key_value_heads", None) or self.num_heads
        self.head_dim = getattr(config, "head_dim", None) or self.hidden_size // self.num_heads
        self.fused_attention = config._attn_implementation != "eager"

    def layer(self, layer: Any) -> int:
        """Return the bytes of one layer."""
        ffn = getattr(layer, self.family.ffn)
        in_ffn = {id(module) for module in ffn.modules()}
        named = [(name, module) for name, module in layer.named_modules() if id(module) not in in_ffn]
        norms = sum(self.norm(module, name.rsplit(".", 1)[-1]) for name, module in named)
        maps = [module for _, module in named if isinstance(module, nn.Linear | Conv1D)]
        feed = self._mixture(ffn) if isinstance(ffn, GroupMoe) else self._dense(ffn)
        return norms + self._attention(maps) + feed

    def norm(self, module: Any, name: str) -> int:
        """Return the bytes of a norm; 0 for a module that is none. `name` tells those of query heads from key heads."""
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or weight is None or weight.dim() != 1:
            return 0
        size, second = weight.numel(), self.stream
        if size == self.head_dim != self.hidden_size:  # one for each head
            size *= self.num_heads if name.startswith("q") else self.num_key_heads
            second = self.product
        return int(size * (self.stream if isinstance(module, nn.LayerNorm) else FLOAT32 + second))

    def _attention(self, maps: list[Any]) -> int:
        heads, keys = self.num_heads * self.head_dim, self.num_key_heads * self.head_dim
        inputs = sum(_in_features(linear) for linear in maps) if self.casts else self.hidden_size + heads
        scores = 0
        if not self.fused_attention:
            casts = self.product != FLOAT32
            scores = self.num_heads * self.block_size * (FLOAT32 + (self.product if casts else 0))
        # the output is what the last map reads: counted among the inputs
        return int(self.product * (inputs + heads + 2 * keys) + scores)

    def _dense(self, ffn: Any) -> int:
        shape = ffn_shape_of(self.family, ffn)
        copies = 2 if self.casts and shape.gated and self.family.gate_up is None else 1
        own = chain(ffn.modules(), [getattr(ffn, self.family.activation.removeprefix("="), None)])
        before = max((STEP_BY_STEP.get(type(module).__name__, 1) for module in own), default=1)
        inner = 4 if shape.gated else 1 + before
        return int(self.product * (copies * shape.hidden_size + inner * shape.width))

    def _mixture(self, moe: GroupMoe) -> int:
        total = 0 if moe.shared_expert is None else self._dense(moe.shared_expert)
        total += self.product * int(self.hidden_size) if self.casts else 0  # the router's copy of its input
        beside = moe.shared_expert is not None and not moe.after_ffn  # reads what the dense FFN reads
        banks = [bank for bank in (moe.experts, moe.language_experts) if bank is not None]
        return total + sum(self._experts(bank, beside=beside or bank is moe.language_experts) for bank in banks)

    def _experts(self, bank: GroupExperts, *, beside: bool) -> int:
        chosen = min(self.chosen, bank.num_experts)
        inputs = 0 if beside and not self.casts and chosen == 1 else self.hidden_size
        weighing = self.hidden_size if chosen > 1 else 0
        ranks = 2 * (bank.rank or 0)
        inner = (4 if bank.has_gate else 2) * bank.width
        return int(chosen * self.product * (inputs + inner + ranks + weighing))


def _in_features(linear: Any) -> int:
    return int(linear.in_features if isinstance(linear, nn.Linear) else linear.weight.shape[0])
