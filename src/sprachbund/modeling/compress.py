"""Smaller experts from trained ones: units that do little are cut, or weights become products of two thin factors.

Nothing is trained here, so both lose quality, which `run.compressing` measures. Only experts that are a difference to
the dense FFN can be made small: a copy holds the whole FFN.

Shapes: E experts, D model width, F expert width, W the width kept, R rank, P 2 (gate and up) or 1 (up alone).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.modeling.experts import GroupExperts, GroupMoe
from sprachbund.modeling.ffn_weights import FfnShape
from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.rebuild import rebuilt

_Change = Callable[[GroupExperts], dict[str, Tensor]]


def expert_banks(model: Any, *, of_groups: bool = False) -> Iterator[tuple[str, GroupExperts]]:
    """Yield the banks of experts of a mixture's layers with their names; those of languages' paths stay as they are.

    `of_groups` leaves out a hierarchy's banks of languages.
    """
    for name, module in model.named_modules():
        if isinstance(module, GroupMoe):
            yield f"{name}.experts", module.experts
            if module.language_experts is not None and not of_groups:
                yield f"{name}.language_experts", module.language_experts


def check_width(model: Any, width: int) -> None:
    """Raise InputError where a mixture's experts cannot be pruned to `width` units."""
    _refuse_copies(model)
    present = mixture_layers(model)[0].experts.width
    if not 1 <= width < present:
        raise InputError(f"width = {width}: the experts have {present} units now; give one from 1 to {present - 1}")


def check_rank(model: Any, rank: int) -> None:
    """Raise InputError where a mixture's experts cannot be brought to a rank: copies, adapters, a rank they have."""
    _refuse_copies(model)
    if model.config.expert_kind == "adapter":
        raise InputError("rank: adapters are two thin factors already; prune their units instead, with width")
    largest = max(min(shape) for _, bank in expert_banks(model) for shape in _shapes(bank).values())
    if model.config.expert_rank is not None:
        largest = min(largest, model.config.expert_rank - 1)
    if not 1 <= rank <= largest:
        raise InputError(f"rank = {rank}: these experts can be brought to the ranks 1 to {largest}")


def saving_rank(model: Any) -> int:
    """Return the largest rank at which the factors of a mixture's experts have fewer parameters than they have now."""
    now = per_rank = 0
    for _, bank in expert_banks(model):
        weights = [tensor for name, tensor in bank.named_parameters(recurse=False) if not name.endswith("_bias")]
        now += sum(weight.numel() for weight in weights)
        per_rank += bank.num_experts * sum(map(sum, _shapes(bank).values()))
    return (now - 1) // per_rank


@torch.no_grad()
def prune_experts(model: Any, width: int) -> Any:
    """Return a mixture whose experts keep `width` of their units, those that do most; the given one stays as it is.

    A unit counts by the product of the norms of its weights, |gate row| x |up row| x |down column| (without a gate
    |up row| x |down column|), which bounds what it can add. Units stay in their order. In a hierarchy the experts of
    groups are pruned and those of languages kept.

    Raises InputError for copies, which hold the whole FFN, and for a width that is not below the present one.
    """
    check_width(model, width)
    return _rebuilt(model, {"expert_width": width}, partial(_pruned, width=width), of_groups=True)


@torch.no_grad()
def factor_experts(model: Any, rank: int) -> Any:
    """Return a mixture whose experts' weights are their best approximations of a rank, as two factors each.

    By the singular value decomposition (Eckart and Young 1936), the roots of the singular values in either factor, so
    that training goes on with both of one scale; gate and up projection are one matrix. At full rank nothing is lost.
    Weights of a lower rank than asked for have zeros in the rest of their factors.

    Raises InputError for copies, which hold the whole FFN, for adapters, and for a rank below 1, above the weights' own
    or not below that of experts in factors.
    """
    check_rank(model, rank)
    return _rebuilt(model, {"expert_rank": rank}, partial(_factored, rank=rank))


def _refuse_copies(model: Any) -> None:
    if model.config.expert_kind == "copy":
        raise InputError(
            "the experts are of kind copy: each holds the whole FFN, so there is no small difference to compress; "
            "train with experts of kind shared"
        )


def _rebuilt(model: Any, changes: Mapping[str, Any], change: _Change, *, of_groups: bool = False) -> Any:
    """Return a mixture of a changed configuration, with banks changed and everything else copied."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    state = model.state_dict()
    for name, bank in expert_banks(model, of_groups=of_groups):
        for key, _ in bank.named_parameters(recurse=False):
            del state[f"{name}.{key}"]
        state |= {f"{name}.{key}": tensor.to(model.dtype) for key, tensor in change(bank).items()}
    return rebuilt(model, config, state)


def _shapes(bank: GroupExperts) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes, (out, in), of an expert's weights, as they are without factors."""
    last: Tensor = getattr(bank, "down_proj" if bank.rank is None else "down_proj_b")
    return FfnShape(last.shape[1], bank.width, bank.has_gate, bias=False).tensors()


def _weights(bank: GroupExperts) -> dict[str, Tensor]:
    """Return the weights of a bank's projections in float32, (E, out, in), those of low-rank experts multiplied out."""
    if bank.rank is None:
        return {name: getattr(bank, name).float() for name in _shapes(bank)}
    return {name: getattr(bank, f"{name}_b").float() @ getattr(bank, f"{name}_a").float() for name in _shapes(bank)}


def _pruned(bank: GroupExperts, *, width: int) -> dict[str, Tensor]:
    """Return a bank's tensors with the `width` units of each expert that count most."""
    (first, up), (_, down_EDF) = _weights(bank).items()
    parts = 2 if bank.has_gate else 1
    value_EF = up.norm(dim=2).unflatten(1, (parts, bank.width)).prod(1) * down_EDF.norm(dim=1)
    kept_EW = value_EF.argsort(descending=True, stable=True)[:, :width].sort().values
    rows = torch.cat([kept_EW + part * bank.width for part in range(parts)], dim=1)
    found: dict[str, Tensor] = {}
    for name, tensor in bank.named_parameters(recurse=False):
        if name in (first, f"{first}_b"):
            found[name] = tensor.take_along_dim(rows[:, :, None], 1)
        elif name == f"{first}_bias":
            found[name] = tensor.take_along_dim(rows, 1)
        elif name in ("down_proj", "down_proj_a"):
            found[name] = tensor.take_along_dim(kept_EW[:, None, :], 2)
        else:
            found[name] = tensor
    return found


def _factored(bank: GroupExperts, *, rank: int) -> dict[str, Tensor]:
    """Return a bank's tensors with each weight as two factors: `_a` (E, R, in) and `_b` (E, out, R)."""
    found: dict[str, Tensor] = {
        name: tensor for name, tensor in bank.named_parameters(recurse=False) if name.endswith("_bias")
    }
    for name, weight in _weights(bank).items():
        left, values_ER, right = torch.linalg.svd(weight, full_matrices=False)
        kept = min(rank, values_ER.shape[1])
        roots_ER = values_ER[:, :kept].sqrt()
        factor_a = weight.new_zeros(len(weight), rank, weight.shape[2])
        factor_b = weight.new_zeros(len(weight), weight.shape[1], rank)
        factor_a[:, :kept] = roots_ER[:, :, None] * right[:, :kept]
        factor_b[:, :, :kept] = left[:, :, :kept] * roots_ER[:, None, :]
        found |= {f"{name}_a": factor_a, f"{name}_b": factor_b}
    return found
