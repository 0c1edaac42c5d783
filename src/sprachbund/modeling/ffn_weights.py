"""A dense FFN's tensors as those of one expert, and back.

Experts are stored the same way for every family, so that one computation serves all: weights are (out, in), a gate lies
above its up projection. Names are transformers': `gate_up_proj` or `up_proj`, `down_proj`, and the same with `_bias`.
Shapes: D model width, F FFN width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from sprachbund.errors import InputError
from sprachbund.modeling.ffn import Family


@dataclass(frozen=True)
class FfnShape:
    """The shape of an FFN or of an expert: model width D, own width F, whether it has a gate, whether biases.

    `activation` counts the weights of the activation function, which the experts of a layer share. With a `rank` R each
    weight, (O, I), is the product of two factors, `_b` (O, R) and `_a` (R, I).
    """

    hidden_size: int
    width: int
    gated: bool
    bias: bool
    activation: int = 0
    rank: int | None = None

    @property
    def num_parameters(self) -> int:
        """Weights and biases of the projections of one FFN of this shape."""
        return sum(map(prod, self.tensors().values()))

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of one expert's tensors."""
        up, rows = ("gate_up_proj", 2 * self.width) if self.gated else ("up_proj", self.width)
        weights: dict[str, tuple[int, ...]] = {
            up: (rows, self.hidden_size),
            "down_proj": (self.hidden_size, self.width),
        }
        shapes = weights
        if self.rank is not None:
            shapes = {}
            for name, (columns_out, columns_in) in weights.items():
                shapes |= {f"{name}_a": (self.rank, columns_in), f"{name}_b": (columns_out, self.rank)}
        if self.bias:
            shapes |= {f"{up}_bias": (rows,), "down_proj_bias": (self.hidden_size,)}
        return shapes


def ffn_tensors(family: Family) -> tuple[str, ...]:
    """Return the names of an FFN's projections, as they are in the family."""
    names = (family.gate, family.up, family.gate_up, family.down)
    return tuple(name for name in names if name is not None)


def ffn_shape(family: Family, shapes: Mapping[str, tuple[int, ...]]) -> FfnShape:
    """Return the shape of a dense FFN from the shapes of its tensors, named as below the FFN ("down_proj.weight").

    Raises InputError where a projection is missing, there are tensors that an expert would lose, or only some of the
    projections have biases.
    """
    activation = {name: shape for name, shape in shapes.items() if family.of_activation(name) is not None}
    shapes = {name: shape for name, shape in shapes.items() if name not in activation}
    projections = ffn_tensors(family)
    known = {f"{name}.{kind}" for name in projections for kind in ("weight", "bias")}
    if lost := sorted(set(shapes) - known):
        raise InputError(f"the FFN of this {family.model_type} model has the tensor {lost[0]!r}, which experts lack")
    if missing := [name for name in projections if f"{name}.weight" not in shapes]:
        raise InputError(f"the FFN of this {family.model_type} model has no projection {missing[0]!r}")
    biases = {f"{name}.bias" in shapes for name in projections}
    if len(biases) > 1:
        raise InputError(f"the FFN of this {family.model_type} model has biases in some of its projections only")
    out_in = shapes[f"{family.down}.weight"]
    hidden_size, width = reversed(out_in) if family.transposed else out_in
    return FfnShape(hidden_size, width, family.gated, biases.pop(), sum(map(prod, activation.values())))


def ffn_shape_of(family: Family, ffn: nn.Module) -> FfnShape:
    """Return the shape of a dense FFN module; raises InputError as `ffn_shape`."""
    return ffn_shape(family, {name: tuple(tensor.shape) for name, tensor in ffn.named_parameters()})


def to_expert(family: Family, get: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Return one expert's tensors from a dense FFN's; `get` returns a tensor by its name below the FFN.

    A fused gate is passed on as it is; separate ones are stacked. Biases are asked for last, where `get` raises
    KeyError for one there is none.
    """

    def kind(which: str) -> dict[str, Tensor]:
        def one(name: str) -> Tensor:
            tensor = get(f"{name}.{which}")
            return tensor.T if family.transposed and which == "weight" else tensor

        suffix = "" if which == "weight" else "_bias"
        if not family.gated:
            assert family.up is not None
            return {f"up_proj{suffix}": one(family.up), f"down_proj{suffix}": one(family.down)}
        if family.gate_up is not None:
            fused = one(family.gate_up)
        else:
            assert family.gate is not None
            assert family.up is not None
            fused = torch.cat([one(family.gate), one(family.up)])
        return {f"gate_up_proj{suffix}": fused, f"down_proj{suffix}": one(family.down)}

    tensors = kind("weight")
    try:
        return tensors | kind("bias")
    except KeyError:
        return tensors


def from_expert(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a dense FFN's tensors, under the family's names, from one expert's; the inverse of `to_expert`."""
    dense: dict[str, Tensor] = {}

    def put(name: str, which: str, tensor: Tensor) -> None:
        turned = tensor.T if family.transposed and which == "weight" else tensor
        dense[f"{name}.{which}"] = turned.contiguous()

    for which, suffix in (("weight", ""), ("bias", "_bias")):
        if f"down_proj{suffix}" not in tensors:
            continue
        put(family.down, which, tensors[f"down_proj{suffix}"])
        if not family.gated:
            assert family.up is not None
            put(family.up, which, tensors[f"up_proj{suffix}"])
            continue
        fused = tensors[f"gate_up_proj{suffix}"]
        if family.gate_up is not None:
            put(family.gate_up, which, fused)
        else:
            assert family.gate is not None
            assert family.up is not None
            for name, half in zip((family.gate, family.up), fused.chunk(2), strict=True):
                put(name, which, half)
    return dense
