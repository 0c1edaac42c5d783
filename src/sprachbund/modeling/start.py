"""The weights that a mixture starts from, so that it computes what the dense model did.

Random weights are drawn by the name of what they are for, so that they are the same whether a model is expanded in
memory or from disk, and in whatever order. Shapes: D model width, F expert width, E experts.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

import torch
from torch import Tensor

ROUTER_STD = 0.02


def drawn(name: str, shape: tuple[int, ...], *, std: float, seed: int) -> Tensor:
    """Return normal weights in float32, decided by `seed` and `name` alone."""
    digest = blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(shape, generator=generator) * std


def starting_expert(
    dense: Mapping[str, Tensor], *, kind: Literal["shared", "copy"], width: int | None, name: str, seed: int
) -> dict[str, Tensor]:
    """Return the tensors of one expert from those of the dense FFN, in the experts' own layout (`to_expert`).

    Kind `copy`: the dense ones. Kind `shared`: `width` fresh units (None: as many as the FFN's) whose first projections
    are drawn at the FFN's own scale, with a last projection of zeros, so that the expert adds nothing. Starting from
    the FFN's units instead would start from features that the layer has already (docs/decisions.md has the
    measurement). `name` tells the experts of a model apart.
    """
    if kind == "copy":
        return dict(dense)
    down_DF = dense["down_proj"]
    hidden_size, dense_width = down_DF.shape
    own = width or dense_width
    expert: dict[str, Tensor] = {}
    for key, tensor in dense.items():
        parts = 2 if key.startswith("gate_up") else 1
        if key == "down_proj":
            expert[key] = tensor.new_zeros(hidden_size, own)
        elif key == "down_proj_bias":
            expert[key] = torch.zeros_like(tensor)
        elif key.endswith("_bias"):
            expert[key] = tensor.new_zeros(parts * own)
        else:
            fresh = [
                drawn(f"{name}.{key}.{part}", (own, hidden_size), std=float(half.float().std()), seed=seed)
                for part, half in enumerate(tensor.chunk(parts))
            ]
            expert[key] = torch.cat(fresh).to(tensor.dtype)
    return expert


def starting_router(
    name: str, shape: tuple[int, int], *, init: Literal["zero", "normal"], seed: int, dtype: torch.dtype
) -> Tensor:
    """Return the router's weights, (E, D): zeros, or normal with standard deviation 0.02."""
    if init == "zero":
        return torch.zeros(shape, dtype=dtype)
    return drawn(name, shape, std=ROUTER_STD, seed=seed).to(dtype)
