"""Branch-Train-Mix: dense models that were trained apart become one mixture (Sukhbaatar et al. 2024, arXiv 2403.07816).

Their FFNs are its experts, in every layer; all else is their mean. Shapes: V vocabulary, L languages.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprachbund.modeling.expand import expand
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.ffn_weights import to_expert
from sprachbund.modeling.model import inner_model


def _ffn(model: Any, family: Family, layer: int) -> nn.Module:
    """Return what stands at the place of a layer's FFN: it, or the mixture that took its place."""
    ffn: nn.Module = getattr(getattr(inner_model(model), family.layers)[layer], family.ffn)
    return ffn


@torch.no_grad()
def average(models: Sequence[Any]) -> Any:
    """Return a model whose every parameter is the mean of those of `models`, which are of one shape and stay as is."""
    mean = copy.deepcopy(models[0])
    others = [dict(model.named_parameters()) for model in models]
    for name, parameter in mean.named_parameters():
        total = sum((other[name].double() for other in others[1:]), others[0][name].double())
        parameter.copy_(total / len(models))
    return mean


@torch.no_grad()
def branch_train_mix(
    models: Sequence[Any],
    *,
    groups: Mapping[str, int],
    log_prob: Tensor | None = None,
    num_experts_per_tok: int = 2,
    seed: int = 0,
) -> Any:
    """Return the mixture of dense models, one for each group in the order of their numbers.

    In every layer expert g is the FFN of model g; attention, norms and embeddings are the mean over the models, and
    the routers are drawn at random by `seed`, for what training follows under `top_k`. The language model's loss
    reaches the state that they read (the paper's way). `groups` and `log_prob`, (V, L), are as in `expand`, which
    raises InputError for what is wrong with them; raises ValueError where models and groups differ in number.
    """
    if len(models) != len(set(groups.values())):
        raise ValueError(f"{len(models)} models for {len(set(groups.values()))} groups")
    mean = average(models)
    family = family_of(mean.config.model_type)
    mixture = expand(
        mean,
        moe_layers=range(mean.config.num_hidden_layers),
        groups=groups,
        kind="copy",
        num_experts_per_tok=min(num_experts_per_tok, len(models)),
        router_gradient="through",
        router_init="normal",
        routing="top_k",
        log_prob=log_prob,
        seed=seed,
    )
    for layer in mixture.config.moe_layers:
        experts: Any = _ffn(mixture, family, layer).experts
        for number, model in enumerate(models):
            tensors = to_expert(family, _ffn(model, family, layer).state_dict().__getitem__)
            for name, tensor in tensors.items():
                getattr(experts, name)[number].copy_(tensor)
    return mixture
