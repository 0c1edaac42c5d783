"""Dense to mixture: each chosen FFN becomes experts, and at step 0 the model computes what the dense one did."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sprachbund.errors import InputError
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.model import causal_lm_class, config_class


def _check_layers(num_layers: int, moe_layers: Sequence[int]) -> None:
    """Raise InputError for layers that cannot become mixtures."""
    if not moe_layers:
        raise InputError("no layer is chosen to become a mixture of experts; choose at least one")
    for layer in moe_layers:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer} does not exist; the base has layers 0 to {num_layers - 1}")
    if len(set(moe_layers)) != len(moe_layers):
        raise InputError(f"a layer is chosen twice: {list(moe_layers)}")


def _check_groups(groups: Mapping[str, int], num_experts_per_tok: int) -> int:
    """Return the number of groups; raises InputError where they are not numbered as they must be."""
    num_groups = len(set(groups.values()))
    if not groups or set(groups.values()) != set(range(num_groups)):
        raise InputError(f"groups must be numbered 0, 1, ... without gaps; found {sorted(set(groups.values()))}")
    if num_experts_per_tok > num_groups:
        raise InputError(f"num_experts_per_tok = {num_experts_per_tok} is more than the {num_groups} groups")
    return num_groups


def _check_tables(expert_of_group: Mapping[int, Sequence[int]], moe_layers: Sequence[int], num_groups: int) -> None:
    """Raise InputError for tables that are not for the mixture layers, or do not number the experts of a layer."""
    if sorted(moe_layers) != sorted(expert_of_group):
        raise InputError(
            f"expert_of_group is for the layers {sorted(expert_of_group)} and moe_layers are {sorted(moe_layers)}; "
            "give the same layers, or leave moe_layers out"
        )
    for layer, table in expert_of_group.items():
        experts = sorted(set(table))
        if len(table) != num_groups:
            raise InputError(f"expert_of_group of layer {layer} has {len(table)} entries for {num_groups} groups")
        if experts != list(range(len(experts))):
            raise InputError(f"the experts of layer {layer} must be numbered 0, 1, ... without gaps; found {experts}")
        if len(experts) < 2:
            raise InputError(f"layer {layer} has one expert for all groups: leave it out, it is then a dense layer")


def _check_base(config: Any, log_prob: Tensor | None, num_languages: int) -> None:
    """Raise InputError for a base or a gate's table that experts cannot be added to."""
    if getattr(config, "mlp_bias", False):
        raise InputError("the base has biases in its FFN (mlp_bias = true), which experts do not support yet")
    if log_prob is not None and log_prob.shape != (config.vocab_size, num_languages):
        raise InputError(
            f"log_prob has shape {tuple(log_prob.shape)}; it needs {(config.vocab_size, num_languages)}: a row for "
            "each token of the vocabulary, a column for each language of groups"
        )


def _dmoe_config(dense: Any, **fields: Any) -> Any:
    """Return the Dmoe configuration with everything that the dense one holds."""
    values = dense.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        values.pop(key, None)
    return config_class(dense.model_type)(**values, **fields)


@torch.no_grad()
def _fill_experts(moe: Any, dense_ffn: nn.Module, family: Family, *, kind: str, generator: torch.Generator) -> None:
    """Fill the experts: copies of the dense FFN, or, kind `shared`, fresh ones that end in zeros and add nothing.

    A fresh expert's first projections are drawn at the dense FFN's own scale. Starting from the FFN's units instead
    would start from features that the layer has already (docs/decisions.md has the measurement).
    """
    gate_FD: Tensor = getattr(dense_ffn, family.gate).weight
    up_FD: Tensor = getattr(dense_ffn, family.up).weight
    experts = moe.experts
    if kind == "copy":
        experts.gate_up_proj.copy_(torch.cat([gate_FD, up_FD]).expand_as(experts.gate_up_proj))
        experts.down_proj.copy_(getattr(dense_ffn, family.down).weight.expand_as(experts.down_proj))
        return
    width = experts.down_proj.shape[-1]
    for expert_2FD in experts.gate_up_proj:
        for half_FD, dense_FD in zip(expert_2FD.split(width), (gate_FD, up_FD), strict=True):
            half_FD.copy_(torch.randn(half_FD.shape, generator=generator) * dense_FD.float().std().cpu())
    experts.down_proj.zero_()


def expand(
    model: Any,
    *,
    moe_layers: Sequence[int] | None = None,
    groups: Mapping[str, int],
    expert_of_group: Mapping[int, Sequence[int]] | None = None,
    kind: Literal["shared", "copy"] = "shared",
    width: int | None = None,
    num_experts_per_tok: int = 2,
    router_gradient: Literal["detach", "through"] = "detach",
    router_init: Literal["zero", "normal"] = "normal",
    log_prob: Tensor | None = None,
    seed: int = 0,
) -> Any:
    """Return the mixture twin of a loaded dense model: the same function at step 0, whatever the routing.

    `groups` is {language tag: group}, in the order of the languages of `log_prob`, (V, L), the gate's table
    (`count_log_prob`; uniform when None). Kind `copy`: one copy of each chosen FFN per expert replaces it (sparse
    upcycling, DMoE, as released). Kind `shared`: the FFN stays and each expert is a fresh one of `width` units
    (default: the FFN's) with a zero last projection, which adds to it.

    Every layer of `moe_layers` has one expert per group, unless `expert_of_group`, {layer: expert of each group, (G,)},
    says which groups share one there (`experts_per_layer`); its layers are then the mixture layers. A layer with fewer
    experts than `num_experts_per_tok` uses all that it has.

    Raises InputError for an unsupported family, layers that do not exist, groups or experts with gaps and a table of
    another shape. The dense model is left as it was.
    """
    family = family_of(model.config.model_type)
    tables = dict(sorted((expert_of_group or {}).items()))
    layers = list(tables) if moe_layers is None else list(moe_layers)
    _check_layers(model.config.num_hidden_layers, layers)
    num_groups = _check_groups(groups, num_experts_per_tok)
    if tables:
        _check_tables(tables, layers, num_groups)
    _check_base(model.config, log_prob, len(groups))
    config = _dmoe_config(
        model.config,
        moe_layers=sorted(layers),
        num_groups=num_groups,
        num_experts_per_tok=num_experts_per_tok,
        groups=dict(groups),
        expert_of_group={str(layer): list(table) for layer, table in tables.items()},
        languages=list(groups),
        expert_kind=kind,
        expert_width=width if kind == "shared" and width else model.config.intermediate_size,
        router_gradient=router_gradient,
    )
    generator = torch.Generator().manual_seed(seed)
    twin = causal_lm_class(family.model_type)(config).to(model.dtype)
    dense_state = model.state_dict()
    missing = twin.load_state_dict(_renamed(dense_state, config, family), strict=False)
    if missing.unexpected_keys:
        raise InputError(f"the base holds tensors that its family does not: {', '.join(missing.unexpected_keys[:3])}")
    for index in config.moe_layers:
        moe = getattr(twin.model.layers[index], family.ffn)
        dense_ffn = getattr(model.model.layers[index], family.ffn)
        _fill_experts(moe, dense_ffn, family, kind=kind, generator=generator)
        with torch.no_grad():
            if router_init == "zero":
                moe.gate.weight.zero_()
            else:
                moe.gate.weight.copy_(torch.randn(moe.gate.weight.shape, generator=generator) * 0.02)
    if log_prob is not None:
        twin.model.language_gate.log_prob.copy_(log_prob)
    twin.generation_config = model.generation_config
    return twin.train(model.training).to(model.device)


def _renamed(state: Mapping[str, Tensor], config: Any, family: Family) -> dict[str, Tensor]:
    """Return the dense tensors under their names in the twin: a chosen FFN is the shared expert, or left out."""
    prefixes = {f"model.layers.{i}.{family.ffn}.": f"model.layers.{i}.{family.ffn}." for i in config.moe_layers}
    renamed = {}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None:
            renamed[name] = tensor
        elif config.expert_kind == "shared":
            renamed[f"{prefix}shared_expert.{name.removeprefix(prefix)}"] = tensor
    return renamed
