"""`Dmoe<Family>ForCausalLM`: the dense family's own classes, with some FFNs turned into mixtures of experts.

Real subclasses, made from the registry in ffn.py: attention, norms, caches, masks, generation and saving stay
transformers' own. The inner model and the decoder layer are subclassed as well, since weights are initialised by the
inner model, and what a layer needs to know for its recomputation must be among its own arguments.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from sprachbund.modeling.cache import keep_scores, scores_so_far
from sprachbund.modeling.config import (
    ROUTINGS,
    causal_lm_name,
    class_prefix,
    config_class,
    on_first_config,
    register_configs,
)
from sprachbund.modeling.experts import GroupExperts, GroupMoe, build_moe
from sprachbund.modeling.ffn import FAMILIES, Family, family_of
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.generation import DmoeGeneration
from sprachbund.modeling.remote import write_remote_code
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, current_routing, dispatch, routed
from sprachbund.modeling.rows import KeyedEmbedding, KeyedHead, add_rows


@dataclass
class DmoeOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """The output of a causal model, and `router_logits`, a tuple with one (B, T, E) per mixture layer, for
    its own number of experts E, and `group_ids`, (B, T): the groups that `group` or `prefix` routing used, None under
    `top_k`.
    """

    router_logits: tuple[Tensor, ...] | None = None
    group_ids: Tensor | None = None


_OUTPUTS = tuple(CausalLMOutputWithPast.__dataclass_fields__)


def _init_weights(model: Any, module: nn.Module) -> bool:
    """Initialise one of our modules; False where it is not ours. Loaded weights are left alone by `init`."""
    std = getattr(model.config, "initializer_range", 0.02)
    if isinstance(module, GroupRouter):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, GroupExperts):
        for name, parameter in module.named_parameters(recurse=False):
            last = name in ("down_proj", "down_proj_b") and model.config.expert_kind != "copy"
            if name.endswith("_bias") or last:
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)
    elif isinstance(module, LanguageGate):
        init.zeros_(module.log_prob)
    else:
        if isinstance(module, KeyedEmbedding | KeyedHead):
            init.zeros_(module.delta)
        return False
    return True


class _Ours:
    """What the inner model and the causal model share: initialisation, and what transformers reads from a class."""

    dense_class: Any

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_weights(self, module):
            super()._init_weights(module)  # type: ignore[misc]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Decline: transformers would copy source files into saved models (see remote.py)."""

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(cls.dense_class._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


class RoutedLayer:
    """A decoder layer that hands the routing to its mixture.

    The routing is put among the arguments in `__call__`: gradient checkpointing keeps a layer's arguments and nothing
    else for the recomputation, which happens when the forward pass is long over.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, routing_context=current_routing(), **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, routing_context: RoutingContext | None = None, **kwargs: Any) -> Any:
        with routed(routing_context):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _DmoeModel(_Ours):
    """The inner model: decides the groups once, before layer 0."""

    layer_class: Any
    family: Family
    argument_names: tuple[str, ...]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.become_mixture(config)
        self.post_init()  # type: ignore[attr-defined]

    def become_mixture(self, config: Any) -> None:
        """Turn a decoder that the dense family's code has just built into a mixture, in place."""
        for index, layer in enumerate(getattr(self, self.family.layers)):
            layer.__class__ = self.layer_class  # the same layer, with our two methods
            if index in config.moe_layers:
                ffn = getattr(layer, self.family.ffn)
                setattr(layer, self.family.ffn, build_moe(config, self.family, ffn, layer=index))
        self.language_gate = LanguageGate(
            config.vocab_size, [config.groups[tag] for tag in config.languages], config.num_groups
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the dense family's forward with the routing decided; see the causal model for the arguments."""
        kwargs.update(zip(self.argument_names, args, strict=False))
        context = current_routing()
        asked = {name: kwargs.pop(name, None) for name in ("routing", "group_ids", "token_mask")}
        if context is None or context.decided:
            context = RoutingContext(asked["routing"], asked["group_ids"], asked["token_mask"])
        self._decide(context, kwargs)
        with routed(context):
            return super().forward(**kwargs)  # type: ignore[misc]

    def _decide(self, context: RoutingContext, arguments: dict[str, Any]) -> None:
        """Fill in the groups of every position, unless the routers choose."""
        config: Any = self.config  # type: ignore[attr-defined]
        context.decided = True
        routing = context.routing or ("group" if context.given is not None else config.routing)
        if routing not in ROUTINGS:
            raise ValueError(f"routing = {routing!r} is unknown; one of {', '.join(ROUTINGS)}")
        if routing == "top_k" and not config.row_of_group:
            return
        tokens: Any = arguments.get("input_ids")
        shape = tuple(arguments["inputs_embeds"].shape[:2] if tokens is None else tokens.shape)
        if routing == "group" or (routing == "top_k" and context.given is not None):
            ids_BT = self._given_groups(context.given, shape)
        else:
            ids_BT = self._prefix_groups(tokens, context.token_mask, arguments)
        plan = dispatch(ids_BT.flatten(), config.num_groups)
        if config.row_of_group:  # rows are chosen before layer 0, where no router has decided anything
            context.row_plan = plan
            context.table_ids = torch.tensor(config.row_of_group, device=ids_BT.device)[ids_BT]
        if routing != "top_k":
            context.group_ids, context.plan = ids_BT, plan

    def _given_groups(self, group_ids: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if group_ids is None:
            raise ValueError("routing = 'group' needs group_ids, (B,) or (B, T)")
        ids = group_ids.unsqueeze(1) if group_ids.dim() == 1 else group_ids
        if ids.dim() != 2 or ids.shape[0] != shape[0] or ids.shape[1] not in (1, shape[1]):
            raise ValueError(f"group_ids has shape {tuple(group_ids.shape)}; the batch needs {shape[:1]} or {shape}")
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"group_ids is {ids.dtype}; it must hold whole numbers (torch.int64)")
        num_groups = self.config.num_groups  # type: ignore[attr-defined]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_groups:
            raise ValueError(f"group_ids must lie in 0..{num_groups - 1}; found {int(ids.min())}..{int(ids.max())}")
        return ids.expand(shape)

    def _prefix_groups(self, input_ids: Tensor | None, token_mask: Any, arguments: dict[str, Any]) -> Tensor:
        """Decide by the tokens so far, whose scores are kept on the key-value cache."""
        if input_ids is None:
            raise ValueError("routing = 'prefix' reads tokens: give input_ids, or group_ids with routing = 'group'")
        if not self.language_gate.groups:
            raise ValueError("routing = 'prefix' needs languages, and this model's groups have none; give group_ids")
        use_cache = arguments.get("use_cache")
        cache = arguments.get("past_key_values")
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):  # type: ignore[attr-defined]
            cache = arguments["past_key_values"] = DynamicCache(config=self.config)  # type: ignore[attr-defined]
        mask: Any = arguments.get("attention_mask") if token_mask is None else token_mask
        plain = isinstance(mask, Tensor) and mask.dim() == 2
        ids_BT, scores_BTL = self.language_gate(
            input_ids, mask[:, -input_ids.shape[1] :] if plain else None, scores_so_far(cache)
        )
        if cache is not None:
            keep_scores(cache, scores_BTL)
        return ids_BT  # type: ignore[no-any-return]


class _DmoeForCausalLM(DmoeGeneration, _Ours):
    """The causal model; `forward` takes the three routing modes."""

    model_class: Any

    def __init__(self, config: Any) -> None:
        wanted = config._experts_implementation
        super().__init__(config)  # type: ignore[call-arg]
        # The dense inner model, built by the line above, knows no experts and has said so in the configuration.
        config._experts_implementation_internal = self.get_correct_experts_implementation(wanted)  # type: ignore[attr-defined]
        inner = inner_model(self)
        inner.__class__ = self.model_class
        inner.become_mixture(config)
        if config.row_of_group:
            add_rows(self, config)
        self.post_init()  # type: ignore[attr-defined]

    def _check_and_adjust_experts_implementation(self, experts_implementation: str | None) -> str | None:
        """Leave the choice open until the inner model is a mixture, then make it as transformers does."""
        if not hasattr(self, self.base_model_prefix):  # type: ignore[attr-defined]
            return None
        return super()._check_and_adjust_experts_implementation(experts_implementation)  # type: ignore[misc, no-any-return]

    def forward(
        self,
        *args: Any,
        group_ids: Tensor | None = None,
        routing: str | None = None,
        output_router_logits: bool = False,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> DmoeOutput:
        """Run the model with the dense family's arguments and these.

        `group_ids`, (B,) or (B, T), are the given groups; `routing` is `group`, `prefix` or `top_k` (default: `group`
        where group_ids are given, else the configuration's, `prefix`). `output_router_logits` adds every mixture
        layer's raw logits, (B, T, E), also where routing does not use them. `token_mask`, (B, T), is 0 at padding,
        where the attention mask is not of that shape. Raises ValueError for bad group ids.
        """
        return_dict = kwargs.pop("return_dict", None)
        context = RoutingContext(routing, group_ids, token_mask, output_router_logits)
        with routed(context):
            outputs = super().forward(*args, return_dict=True, **kwargs)  # type: ignore[misc]
        context.close()
        output = DmoeOutput(
            **{name: outputs.get(name) for name in _OUTPUTS},
            router_logits=tuple(context.router_logits) or None,
            group_ids=context.group_ids,
        )
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, with the few lines that load the model under `trust_remote_code=True`."""
        write_remote_code(Path(save_directory), self.config)
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]


def _with_arguments(parent: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ours`, whose signature shows the dense forward's arguments too: Trainer and generate look there."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    theirs = inspect.signature(parent.forward).parameters
    own = [p for p in inspect.signature(ours).parameters.values() if p.kind is p.KEYWORD_ONLY]
    plain = [p for p in theirs.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in theirs.values() if p.kind is p.VAR_KEYWORD]
    forward.__signature__ = inspect.Signature([*plain, *own, *rest])  # type: ignore[attr-defined]
    forward.__doc__ = ours.__doc__
    return forward


def _subclass(name: str, mixin: type, parent: Any, members: Mapping[str, Any]) -> Any:
    namespace = {"__module__": __name__, "__doc__": mixin.__doc__, "dense_class": parent, **members}
    return type(name, (mixin, parent), namespace)


def _layer_class(family: Family, model_class: Any) -> Any:
    """Return the class of a family's decoder layers: the one that transformers never splits over devices."""
    module = inspect.getmodule(model_class)
    (name,) = set(model_class._no_split_modules)
    return getattr(module, name)


@lru_cache
def causal_lm_class(model_type: str) -> Any:
    """Return `Dmoe<Family>ForCausalLM` of a dense model type."""
    family = family_of(model_type)
    dense_lm, dense_model = family.dense_causal_lm_class, family.dense_model_class
    dense_layer = _layer_class(family, dense_model)
    layer = _subclass(f"Dmoe{dense_layer.__name__}", RoutedLayer, dense_layer, {})
    shared = {
        "config_class": config_class(model_type),
        "_no_split_modules": [layer.__name__],
        "_keep_in_fp32_modules_strict": ["language_gate"],
        "_can_compile_fullgraph": False,  # how many rows each expert gets is read on the host
    }
    own = {
        "layer_class": layer,
        "family": family,
        "argument_names": tuple(inspect.signature(dense_model.forward).parameters)[1:],
    }
    model = _subclass(f"Dmoe{class_prefix(model_type)}Model", _DmoeModel, dense_model, {**shared, **own})
    members = {**shared, "model_class": model, "forward": _with_arguments(dense_lm, _DmoeForCausalLM.forward)}
    return _subclass(causal_lm_name(model_type), _DmoeForCausalLM, dense_lm, members)


def _register_model(model_type: str) -> None:
    AutoModelForCausalLM.register(config_class(model_type), causal_lm_class(model_type), exist_ok=True)


def register() -> None:
    """Make every `dmoe_<family>` known to AutoConfig, and to AutoModelForCausalLM once its configuration is used."""
    register_configs()
    on_first_config(_register_model)


def __getattr__(name: str) -> Any:
    """Resolve class names such as `DmoeQwen3ForCausalLM` (PEP 562): classes are made on demand."""
    for model_type in FAMILIES:
        if name == config_class(model_type).__name__:
            return config_class(model_type)
        if name == causal_lm_name(model_type):
            return causal_lm_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_dmoe(model: Any) -> bool:
    """Is this one of our models?"""
    return isinstance(model, _DmoeForCausalLM)


def inner_model(model: Any) -> Any:
    """Return the decoder below a causal model's output layer, dense or mixture."""
    return getattr(model, model.base_model_prefix)


def mixture_layers(model: nn.Module) -> list[GroupMoe]:
    """Return the mixture blocks of a model in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, GroupMoe)]


__all__ = ["DmoeOutput", "causal_lm_class", "config_class", "inner_model", "is_dmoe", "mixture_layers", "register"]
