"""Dense to mixture: each chosen FFN becomes experts, and at step 0 the model computes what the dense one did."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.initialization import no_init_weights

from sprachbund.errors import InputError
from sprachbund.modeling.config import OWN_FIELDS, config_class
from sprachbund.modeling.experts import banks
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.ffn_weights import FfnShape, ffn_shape_of, to_expert
from sprachbund.modeling.model import causal_lm_class, inner_model
from sprachbund.modeling.pairs import PairTable
from sprachbund.modeling.paths import paths_of
from sprachbund.modeling.rows import keyed_rows
from sprachbund.modeling.start import fresh_tensor, scales_of, starting_router

Kind = Literal["shared", "copy", "adapter", "hierarchy"]
By = Literal["group", "language"]
Rows = Literal["group", "language", "all"]
RouterInit = Literal["zero", "normal"]


def _check_layers(num_layers: int, moe_layers: Sequence[int]) -> None:
    """Raise InputError for layers that cannot become mixtures."""
    if not moe_layers:
        raise InputError("no layer is chosen to become a mixture of experts; choose at least one")
    for layer in moe_layers:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer} does not exist; the base has layers 0 to {num_layers - 1}")
    if len(set(moe_layers)) != len(moe_layers):
        raise InputError(f"a layer is chosen twice: {list(moe_layers)}")


def _check_groups(groups: Mapping[str, int] | None, num_groups: int | None) -> int:
    """Return the number of groups; raises InputError where there are none or they are not numbered as they must be."""
    if groups is None:
        if num_groups is None:
            raise InputError("give groups, {language tag: group}, or num_groups, their number")
        if num_groups < 1:
            raise InputError(f"num_groups = {num_groups}; at least one group is needed")
    else:
        counted = len(set(groups.values()))
        if not groups or set(groups.values()) != set(range(counted)):
            raise InputError(f"groups must be numbered 0, 1, ... without gaps; found {sorted(set(groups.values()))}")
        if num_groups is not None and num_groups != counted:
            raise InputError(f"num_groups = {num_groups}, but groups has {counted}; give one of the two")
        num_groups = counted
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


def _check_sizes(kind: Kind, *, width: int | None, language_width: int | None, rank: int | None) -> None:
    """Raise InputError for sizes that experts of a kind do not have."""
    if width is not None and (kind == "copy" or width < 1):
        raise InputError(f"width = {width}: copies have the FFN's own width, experts of other kinds at least one unit")
    if (kind == "hierarchy") != (language_width is not None):
        raise InputError(
            f"language_width = {language_width} with kind = {kind!r}: a hierarchy has it, and no other kind does"
        )
    if language_width is not None and language_width < 1:
        raise InputError(f"language_width = {language_width}: the experts of languages have at least one unit")
    if rank is not None and (kind not in ("shared", "hierarchy") or rank < 1):
        raise InputError(
            f"rank = {rank} with kind = {kind!r}: experts of kind shared or hierarchy may have one, from 1"
        )


def mixture_config(
    dense: Any,
    *,
    moe_layers: Sequence[int] | None = None,
    groups: Mapping[str, int] | None = None,
    num_groups: int | None = None,
    expert_of_group: Mapping[int, Sequence[int]] | None = None,
    kind: Kind = "shared",
    by: By = "group",
    width: int | None = None,
    language_width: int | None = None,
    rank: int | None = None,
    rows: Rows | None = None,
    num_experts_per_tok: int = 2,
    router_gradient: Literal["detach", "through"] = "detach",
    routing: Literal["group", "prefix", "top_k"] = "top_k",
    gate_pairs: int = 0,
) -> Any:
    """Return the mixture's configuration from the dense model's; see `expand` for the arguments.

    `gate_pairs` is the number of pairs of tokens in the gate.

    Raises InputError for an unsupported family, layers that do not exist, groups or experts with gaps.
    """
    family = family_of(dense.model_type, dense)
    if getattr(dense, "quantization_config", None):
        raise InputError("the base is quantised, which cannot be expanded; give the unquantised checkpoint")
    tables = dict(sorted((expert_of_group or {}).items()))
    layers = list(tables) if moe_layers is None else list(moe_layers)
    _check_layers(dense.num_hidden_layers, layers)
    num_groups = _check_groups(groups, num_groups)
    _check_sizes(kind, width=width, language_width=language_width, rank=rank)
    if tables:
        _check_tables(tables, layers, num_groups)
    if by == "language" and (kind == "hierarchy" or tables):
        other = "a hierarchy has experts of both" if kind == "hierarchy" else "expert_of_group is about groups"
        raise InputError(f"by = 'language' gives each language its own expert; {other}")
    paths = paths_of(groups, num_groups, layers, tables, hierarchy=kind == "hierarchy", by=by, rows=rows)
    if paths.count > 1 and not 1 <= num_experts_per_tok <= paths.count:
        raise InputError(
            f"num_experts_per_tok = {num_experts_per_tok} must lie in 1..{paths.count}, the groups' number"
        )
    values = {key: value for key, value in dense.to_dict().items() if key not in OWN_FIELDS}
    return config_class(family.model_type)(
        **values,
        moe_layers=sorted(layers),
        num_groups=paths.count,
        num_experts_per_tok=min(num_experts_per_tok, paths.count),
        groups=paths.groups,
        expert_of_group=paths.expert_of_group,
        row_of_group=paths.row_of_group,
        languages=list(groups or {}),
        expert_kind="shared" if kind == "hierarchy" else kind,
        expert_width=width,
        expert_rank=rank,
        language_width=language_width,
        router_gradient=router_gradient,
        routing=routing,
        gate_pairs=gate_pairs,
    )


def expand(
    model: Any,
    *,
    moe_layers: Sequence[int] | None = None,
    groups: Mapping[str, int] | None = None,
    num_groups: int | None = None,
    expert_of_group: Mapping[int, Sequence[int]] | None = None,
    kind: Kind = "shared",
    by: By = "group",
    width: int | None = None,
    language_width: int | None = None,
    rank: int | None = None,
    rows: Rows | None = None,
    num_experts_per_tok: int = 2,
    router_gradient: Literal["detach", "through"] = "detach",
    router_init: RouterInit = "zero",
    routing: Literal["group", "prefix", "top_k"] | None = None,
    log_prob: Tensor | None = None,
    pairs: PairTable | None = None,
    seed: int = 0,
) -> Any:
    """Return the mixture twin of a loaded dense model: the same function at step 0, whatever the routing.

    `groups` is {language tag: group}, in the order of the languages of `log_prob`, (V, L), the gate's table
    (`count_log_prob`; uniform when None), which may have `pairs` of tokens beside it (`pair_table`); where languages
    are not known yet, `num_groups` says how many groups there are.

    Kind `copy`: one copy of each chosen FFN per expert replaces it (sparse upcycling, DMoE, as released). Kind
    `shared`: the FFN stays and each expert is a fresh one of `width` units (default: the FFN's) with a zero last
    projection, which adds to it; with one group for all that is the dense model with a wider FFN. Kind `adapter`: a
    bottleneck of `width` (default: half the model's) on the FFN's output, as in X-MOD (Pfeiffer et al. 2022). Kind
    `hierarchy`: shared, and beside each group's expert one of `language_width` for each language; its languages are
    groups of their own then (`config.groups`), those of one group sharing an expert. `by="language"` gives each
    language, not each group, its expert; what else there is by group, its languages share. With `router_init="zero"`
    copies give the dense model's logits bit by bit also under `top_k`.

    `rank` makes the experts' matrices products of two factors of so many columns. `rows` adds tables of deltas, (V, D),
    zero at first, to the embedding and the output rows: one for each `group` or `language`, or one for `all`.

    Every layer of `moe_layers` has one expert per group, unless `expert_of_group`, {layer: expert of each group, (G,)},
    says which groups share one there (`experts_per_layer`); its layers are then the mixture layers. A layer with fewer
    experts than `num_experts_per_tok` uses all that it has. `routing` is what the model does where `forward` is told
    nothing: by default `prefix`, or `top_k` where there is no `log_prob`, without which `prefix` knows nothing.

    Raises InputError for an unsupported family, layers that do not exist, groups or experts with gaps and a table of
    another shape. The dense model is left as it was.
    """
    config = mixture_config(
        model.config,
        moe_layers=moe_layers,
        groups=groups,
        num_groups=num_groups,
        expert_of_group=expert_of_group,
        kind=kind,
        by=by,
        width=width,
        language_width=language_width,
        rank=rank,
        rows=rows,
        num_experts_per_tok=num_experts_per_tok,
        router_gradient=router_gradient,
        routing=routing or ("top_k" if log_prob is None else "prefix"),
        gate_pairs=0 if pairs is None else len(pairs.keys),
    )
    family = family_of(model.config.model_type)
    if log_prob is not None and log_prob.shape != (config.vocab_size, len(config.languages)):
        raise InputError(
            f"log_prob has shape {tuple(log_prob.shape)}; it needs {(config.vocab_size, len(config.languages))}: a row "
            "for each token of the vocabulary, a column for each language of groups"
        )
    if pairs is not None and pairs.gain.shape != (len(pairs.keys), len(config.languages)):
        raise InputError(
            f"pairs.gain has shape {tuple(pairs.gain.shape)}; it needs {(len(pairs.keys), len(config.languages))}: a "
            "row for each pair, a column for each language of groups"
        )
    layers = getattr(inner_model(model), family.layers)
    for index in config.moe_layers:
        ffn_shape_of(family, getattr(layers[index], family.ffn))
    with no_init_weights():
        twin = causal_lm_class(family.model_type)(config).to(model.dtype)
    twin.tie_weights()
    _load_dense(twin, model, family, config)
    for index in config.moe_layers:
        dense_ffn = getattr(layers[index], family.ffn)
        moe = getattr(getattr(inner_model(twin), family.layers)[index], family.ffn)
        shape = ffn_shape_of(family, dense_ffn)
        _start(
            moe,
            dense_ffn.state_dict(),
            family,
            config,
            ffn_shape=shape,
            layer=index,
            router_init=router_init,
            seed=seed,
        )
    for table in keyed_rows(twin):
        torch.nn.init.zeros_(table)
    gate = inner_model(twin).language_gate
    if log_prob is not None:
        gate.log_prob.copy_(log_prob)
    if pairs is not None and len(pairs.keys):
        gate.pair_keys.copy_(pairs.keys)
        gate.pair_gain.copy_(pairs.gain)
    twin.generation_config = model.generation_config
    return twin.train(model.training).to(model.device)


@torch.no_grad()
def _start(
    moe: Any,
    dense_ffn: Mapping[str, Tensor],
    family: Family,
    config: Any,
    *,
    ffn_shape: FfnShape,
    layer: int,
    router_init: RouterInit,
    seed: int,
) -> None:
    """Fill a layer's experts and router with the weights that they start from."""
    dense = to_expert(family, dense_ffn.__getitem__)
    scales = scales_of(dense)
    for bank in banks(config, ffn_shape, layer=layer):
        experts = getattr(moe, bank.name)
        for number in range(bank.num_experts):
            for key in bank.shape.tensors():
                name = expert_name(layer, number, bank.name)
                copy = config.expert_kind == "copy"
                start = dense[key] if copy else fresh_tensor(key, bank.shape, scales, name=name, seed=seed)
                getattr(experts, key)[number].copy_(start)
    if family.trained_activation:
        weights = {family.of_activation(name): tensor for name, tensor in dense_ffn.items()}
        own = {name: tensor for name, tensor in weights.items() if name is not None}
        if config.expert_kind != "adapter":
            for bank in (moe.experts, moe.language_experts):
                if bank is not None:
                    bank.act_fn.load_state_dict(own)
    weight = moe.gate.weight
    weight.copy_(starting_router(router_name(layer), weight.shape, init=router_init, seed=seed, dtype=weight.dtype))


def expert_name(layer: int, expert: int, bank: str = "experts") -> str:
    """Return what an expert's random weights are drawn by."""
    return f"layer {layer} {'expert' if bank == 'experts' else 'language expert'} {expert}"


def router_name(layer: int) -> str:
    """Return what a router's random weights are drawn by."""
    return f"layer {layer} router"


@torch.no_grad()
def _load_dense(twin: Any, model: Any, family: Family, config: Any) -> None:
    """Copy everything that the twin shares with the dense model; raises InputError for what has no place in it."""
    report = twin.load_state_dict(dict(_renamed(model.state_dict(), family, config)), strict=False)
    if report.unexpected_keys:
        raise InputError(f"the base holds tensors that its family does not: {', '.join(report.unexpected_keys[:3])}")


def dense_name_in_twin(name: str, family: Family, config: Any) -> str | None:
    """Return a dense tensor's name in the twin.

    A chosen FFN is the shared expert, or, among copies, gone (None), but for the weights of its activation function.
    """
    base = family.dense_causal_lm_class.base_model_prefix
    for index in config.moe_layers:
        prefix = f"{base}.{family.layers}.{index}.{family.ffn}."
        if name.startswith(prefix):
            below = name.removeprefix(prefix)
            if config.expert_kind != "copy":
                return f"{prefix}shared_expert.{below}"
            weight = family.of_activation(below)
            return None if weight is None else f"{prefix}experts.act_fn.{weight}"
    return name


def _renamed(state: Mapping[str, Tensor], family: Family, config: Any) -> list[tuple[str, Tensor]]:
    named = [(dense_name_in_twin(name, family, config), tensor) for name, tensor in state.items()]
    return [(name, tensor) for name, tensor in named if name is not None]
