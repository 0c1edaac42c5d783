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

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from sprachbund.modeling.config import (
    causal_lm_name,
    class_prefix,
    config_class,
    on_first_config,
    register_configs,
)
from sprachbund.modeling.decision import GroupDecision
from sprachbund.modeling.experts import GroupExperts, GroupMoe, build_moe
from sprachbund.modeling.ffn import FAMILIES, Family, family_of
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.generation import DmoeGeneration
from sprachbund.modeling.language_path import (
    LanguagePath,
    LowRank,
    PathSpec,
    hook_head,
    hook_inner,
    path_specs,
)
from sprachbund.modeling.path_mixture import is_mixed, mixture
from sprachbund.modeling.remote import write_remote_code
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, current_routing, routed
from sprachbund.modeling.rows import KeyedEmbedding, KeyedHead, add_rows


@dataclass
class DmoeOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """The output of a causal model, and `router_logits`, a tuple with one (B, T, E) per mixture layer, for
    its own number of experts E, and `group_ids`, (B, T): the groups that `group` or `prefix` routing used, None under
    `top_k`. `path_ids`, (B, T), are the languages' paths that were taken under any routing, -1 for none (None where the
    model has none); under the mixture, that which had more than half of the weight. `path_weights`, (B, T, P), are what
    each of the P paths had there; None under all else.
    """

    router_logits: tuple[Tensor, ...] | None = None
    group_ids: Tensor | None = None
    path_ids: Tensor | None = None
    path_weights: Tensor | None = None


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
        for table in module.buffers():
            init.zeros_(table)
    elif isinstance(module, LowRank):
        init.normal_(module.a, std=module.a.shape[1] ** -0.5)
        init.zeros_(module.b)
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


class _Held:
    """A routing as an argument whose inside is nobody's business."""

    def __init__(self, context: RoutingContext | None) -> None:
        self.context = context


class RoutedLayer:
    """A decoder layer that hands the routing to its mixture.

    The routing is put among the arguments in `__call__`: gradient checkpointing keeps a layer's arguments and nothing
    else for the recomputation, which happens when the forward pass is long over. It is held by a plain object: FSDP2
    looks for tensors in arguments, and would give the layer a copy of a routing that has some, in which the router
    logits that the layer collects would be lost.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, routing_context=_Held(current_routing()), **kwargs)  # type: ignore[misc]

    def forward(self, *args: Any, routing_context: "_Held | None" = None, **kwargs: Any) -> Any:
        with routed(None if routing_context is None else routing_context.context):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _DmoeModel(GroupDecision, _Ours):
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
            config.vocab_size,
            [config.groups[tag] for tag in config.languages],
            config.num_groups,
            num_pairs=config.gate_pairs,
        )
        for spec in path_specs(config):
            add_language_path(self, config, spec)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the dense family's forward with the routing decided; see the causal model for the arguments."""
        kwargs.update(zip(self.argument_names, args, strict=False))
        context = current_routing()
        asked = {name: kwargs.pop(name, None) for name in ("routing", "group_ids", "token_mask", "path_gate")}
        if context is None or context.decided:
            context = RoutingContext(
                asked["routing"], asked["group_ids"], asked["token_mask"], path_gate=asked["path_gate"]
            )
        self.decide(context, kwargs)
        with routed(context):
            return super().forward(**kwargs)  # type: ignore[misc]


class _DmoeForCausalLM(DmoeGeneration, _Ours):
    """The causal model; `forward` takes the three routing modes."""

    model_class: Any
    argument_names: tuple[str, ...]

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
        if config.language_paths:
            hook_head(self, config)
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
        path_gate: str | None = None,
        **kwargs: Any,
    ) -> DmoeOutput:
        """Run the model with the dense family's arguments and these.

        `group_ids`, (B,) or (B, T), are the given groups; `routing` is `group`, `prefix` or `top_k` (default: `group`
        where group_ids are given, else the configuration's, `prefix`). `output_router_logits` adds every mixture
        layer's raw logits, (B, T, E), also where routing does not use them. `token_mask`, (B, T), is 0 at padding,
        where the attention mask is not of that shape. Raises ValueError for bad group ids.
        """
        return_dict = kwargs.pop("return_dict", None)
        kwargs.update(zip(self.argument_names, args, strict=False))
        context = RoutingContext(routing, group_ids, token_mask, output_router_logits, path_gate=path_gate)
        path_weights = None
        if is_mixed(self.config, context, kwargs):
            mixed = mixture(self, self._plain, context, {**kwargs, "token_mask": token_mask})
            outputs, context, path_weights = mixed.outputs, mixed.context, mixed.path_weights
        else:
            outputs = self._plain(kwargs, context)
        output = DmoeOutput(
            **{name: outputs.get(name) for name in _OUTPUTS},
            router_logits=tuple(context.router_logits) or None,
            group_ids=context.group_ids,
            path_ids=context.path_ids,
            path_weights=path_weights,
        )
        return output.to_tuple() if return_dict is False else output

    def _plain(self, arguments: dict[str, Any], context: RoutingContext) -> Any:
        """Run the dense family's forward under one routing."""
        # where a path has more tokens than the vocabulary, the dense family's loss would not know them
        extended = any(spec.extension for spec in path_specs(self.config))
        labels = arguments.pop("labels", None) if extended else None
        with routed(context):
            outputs = super().forward(return_dict=True, **arguments)  # type: ignore[misc]
        context.close()
        if labels is not None:
            outputs["loss"] = F.cross_entropy(outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return outputs

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
    members = {
        **shared,
        "model_class": model,
        "argument_names": tuple(inspect.signature(dense_lm.forward).parameters)[1:],
        "forward": _with_arguments(dense_lm, _DmoeForCausalLM.forward),
    }
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


def add_language_path(inner: Any, config: Any, spec: PathSpec) -> LanguagePath:
    """Give an inner model one more path, whose weights are not started; the configuration stays as it is."""
    if not hasattr(inner, "language_paths"):
        inner.language_paths = nn.ModuleList()
        hook_inner(inner, config)
    path = LanguagePath(spec, config, inner)
    inner.language_paths.append(path)
    return path


def add_path(model: Any, spec: PathSpec, *, seed: int = 0) -> LanguagePath:
    """Give a causal model one more path, in place: its group id is the next one, and it computes what its parent does.

    The token ids, `tokens` (R,), ascending, and the gate's table are the caller's to fill in.
    """
    config = model.config
    if not config.language_paths:
        hook_head(model, config)
    path = add_language_path(inner_model(model), config, spec)
    path.reset(seed=seed)
    path.to(device=model.device, dtype=model.dtype)
    config.language_paths = [*config.language_paths, spec.entry()]
    return path


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
