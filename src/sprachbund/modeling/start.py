"""The weights that a mixture starts from, so that it computes what the dense model did.

Random weights are drawn by the name of what they are for, so that they are the same whether a model is expanded in
memory or from disk, and in whatever order. Shapes: D model width, F expert width, E experts, R rank.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

from sprachbund.modeling.ffn_weights import FfnShape

ROUTER_STD = 0.02
NUDGE = 0.01  # of a router row's scale

Scales = Mapping[str, Sequence[float]]  # standard deviations of an FFN's first projections: of gate and up, or of up


def drawn(name: str, shape: tuple[int, ...], *, std: float, seed: int) -> Tensor:
    """Return normal weights in float32, decided by `seed` and `name` alone."""
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(shape, generator=generator) * std


def scales_of(dense: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return the scales of the first projections of a dense FFN, given in the experts' own layout (`to_expert`)."""
    first = next(name for name in ("gate_up_proj", "up_proj") if name in dense)
    parts = 2 if first.startswith("gate_up") else 1
    return {first: [float(part.float().std()) for part in dense[first].chunk(parts)]}


def fresh_tensor(key: str, shape: FfnShape, scales: Scales, *, name: str, seed: int) -> Tensor:
    """Return one tensor, in float32, of a fresh expert that adds nothing: its last projection is zero, so are biases.

    The first projections are drawn at the FFN's own scale. Starting from the FFN's units instead would start from
    features that the layer has already (docs/decisions.md has the measurement). `name` tells the experts of a model
    apart. Of the factors of a low-rank expert the last is zero; the scale of the others is that of their product.
    """
    own = shape.tensors()[key]
    weight = key.removesuffix("_a").removesuffix("_b")
    if key.endswith("_bias") or key == "down_proj" or key == "down_proj_b":
        return torch.zeros(own)
    if weight == "down_proj":
        return drawn(f"{name}.{key}", own, std=shape.width**-0.5, seed=seed)
    stds = scales.get(weight) or [shape.hidden_size**-0.5] * (2 if shape.gated else 1)
    if shape.rank is None:
        rows = own[0] // len(stds)
        parts = [drawn(f"{name}.{key}.{part}", (rows, own[1]), std=std, seed=seed) for part, std in enumerate(stds)]
        return torch.cat(parts)
    std = (sum(stds) / len(stds) / shape.rank**0.5) ** 0.5
    return drawn(f"{name}.{key}", own, std=std, seed=seed)


def starting_router(
    name: str, shape: tuple[int, int], *, init: Literal["zero", "normal"], seed: int, dtype: torch.dtype
) -> Tensor:
    """Return the router's weights, (E, D): zeros, or normal with standard deviation 0.02."""
    if init == "zero":
        return torch.zeros(shape, dtype=dtype)
    return drawn(name, shape, std=ROUTER_STD, seed=seed).to(dtype)


def nudged(row_D: Tensor, name: str, *, seed: int) -> Tensor:
    """Return a copy of a router's row a little beside its original, with which it would tie under `top_k` otherwise."""
    scale = max(float(row_D.float().square().mean().sqrt()), ROUTER_STD)
    return row_D + drawn(name, tuple(row_D.shape), std=NUDGE * scale, seed=seed).to(row_D)
