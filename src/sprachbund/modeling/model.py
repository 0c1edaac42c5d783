"""`Dmoe<Family>ForCausalLM`: the dense family's own classes, with some FFNs turned into mixtures of experts.

Real subclasses, made from the registry in ffn.py: attention, norms, caches, masks, generation and saving stay
transformers' own. The inner model and the decoder layer are subclassed as well, since weights are initialised by the
inner model, and what a layer needs to know for its recomputation must be among its own arguments.
"""

import importlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from sprachbund.modeling.cache import keep_scores, scores_so_far
from sprachbund.modeling.experts import GroupExperts, GroupMoe, build_moe
from sprachbund.modeling.ffn import FAMILIES, Family, family_of
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, dispatch

ROUTINGS = ("group", "prefix", "top_k")


@dataclass
class DmoeOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """The output of a causal model, and `router_logits`, a tuple with one (B, T, E) per mixture layer, for
    its own number of experts E, and `group_ids`, (B, T): the groups that `group` or `prefix` routing used, None under
    `top_k`.
    """

    router_logits: tuple[Tensor, ...] | None = None
    group_ids: Tensor | None = None


def _init_weights(model: Any, module: nn.Module) -> bool:
    """Initialise one of our modules; False where it is not ours. Loaded weights are left alone by `init`."""
    std = model.config.initializer_range
    if isinstance(module, GroupRouter):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, GroupExperts):
        init.normal_(module.gate_up_proj, mean=0.0, std=std)
        if model.config.expert_kind == "shared":
            init.zeros_(module.down_proj)
        else:
            init.normal_(module.down_proj, mean=0.0, std=std)
    elif isinstance(module, LanguageGate):
        init.zeros_(module.log_prob)
    else:
        return False
    return True


class _Initialised:
    """Weight initialisation, for the inner model and the causal model alike."""

    def _init_weights(self, module: nn.Module) -> None:
        if not _init_weights(self, module):
            super()._init_weights(module)  # type: ignore[misc]


class _DmoeLayer:
    """A decoder layer that hands the routing to its mixture; a dense layer drops it."""

    def forward(self, *args: Any, routing_context: RoutingContext | None = None, **kwargs: Any) -> Any:
        moe = self.mlp  # type: ignore[attr-defined]
        if not isinstance(moe, GroupMoe):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with moe.using(routing_context):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class _DmoeModel(_Initialised):
    """The inner model: decides the groups once, before layer 0."""

    layer_class: type[nn.Module]
    family: Family

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for index in range(config.num_hidden_layers):
            layer = self.layer_class(config, index)
            if index in config.moe_layers:
                setattr(layer, self.family.ffn, build_moe(config, getattr(layer, self.family.ffn), layer=index))
            self.layers[index] = layer  # type: ignore[attr-defined]
        self.language_gate = LanguageGate(
            config.vocab_size, [config.groups[tag] for tag in config.languages], config.num_groups
        )
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        *,
        group_ids: Tensor | None = None,
        routing: str | None = None,
        token_mask: Tensor | None = None,
        routing_context: RoutingContext | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the dense family's forward with the routing decided; see the causal model for the arguments."""
        use_cache = self.config.use_cache if use_cache is None else use_cache  # type: ignore[attr-defined]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)  # type: ignore[attr-defined]
        routing = routing or ("group" if group_ids is not None else self.config.routing)  # type: ignore[attr-defined]
        context = routing_context or RoutingContext()
        if routing != "top_k":
            shape = kwargs["inputs_embeds"].shape[:2] if input_ids is None else input_ids.shape
            if routing == "group":
                ids_BT = self._given_groups(group_ids, tuple(shape))
            elif routing == "prefix":
                token_mask = attention_mask if token_mask is None else token_mask
                ids_BT = self._prefix_groups(input_ids, token_mask, past_key_values)
            else:
                raise ValueError(f"routing = {routing!r} is unknown; one of {', '.join(ROUTINGS)}")
            context.group_ids = ids_BT
            context.plan = dispatch(ids_BT.flatten(), self.config.num_groups)  # type: ignore[attr-defined]
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            routing_context=context,
            **kwargs,
        )

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

    def _prefix_groups(self, input_ids: Tensor | None, token_mask: Any, cache: Any) -> Tensor:
        """Decide by the tokens so far, whose scores are kept on the key-value cache."""
        if input_ids is None:
            raise ValueError("routing = 'prefix' reads tokens: give input_ids, or group_ids with routing = 'group'")
        mask = (
            token_mask[:, -input_ids.shape[1] :] if isinstance(token_mask, Tensor) and token_mask.dim() == 2 else None
        )
        ids_BT, scores_BTL = self.language_gate(input_ids, mask, scores_so_far(cache))
        if cache is not None:
            keep_scores(cache, scores_BTL)
        return ids_BT  # type: ignore[no-any-return]


class _DmoeForCausalLM(_Initialised):
    """The causal model; `forward` takes the three routing modes."""

    model_class: type[nn.Module]

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.model_class(config)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        group_ids: Tensor | None = None,
        routing: str | None = None,
        output_router_logits: bool = False,
        **kwargs: Any,
    ) -> DmoeOutput:
        """Run the model.

        `group_ids`, (B,) or (B, T), are the given groups; `routing` is `group`, `prefix` or `top_k` (default: `group`
        where group_ids are given, else the configuration's, `prefix`). `output_router_logits` adds every mixture
        layer's raw logits, (B, T, E), also where routing does not use them. Raises ValueError for bad group ids.
        """
        return_dict = kwargs.pop("return_dict", None)
        context = RoutingContext(wants_logits=output_router_logits)
        outputs = super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            group_ids=group_ids,
            routing=routing,
            routing_context=context,
            return_dict=True,
            **kwargs,
        )
        context.close()
        output = DmoeOutput(**outputs, router_logits=tuple(context.router_logits) or None, group_ids=context.group_ids)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add what our routing needs at each step of generation.

        `token_mask`: the (B, T) mask as given, since transformers turns it into a 4-D one for caches of fixed size.
        `group_ids` of the prompt's shape, (B, T): new tokens belong to the group of the prompt's last one.
        """
        group_ids = kwargs.pop("group_ids", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, *args, attention_mask=attention_mask, **kwargs
        )
        inputs["token_mask"] = attention_mask
        if group_ids is not None and group_ids.dim() == 2 and inputs.get("input_ids") is not None:
            missing = max(input_ids.shape[1] - group_ids.shape[1], 0)
            group_ids = torch.cat([group_ids, group_ids[:, -1:].expand(-1, missing)], dim=1)
            group_ids = group_ids[:, -inputs["input_ids"].shape[1] :]
        return {**inputs, "group_ids": group_ids}


@lru_cache
def config_class(model_type: str) -> Any:
    """Return `Dmoe<Family>Config` of a dense model type: the dense configuration and the mixture's fields."""
    family = family_of(model_type)
    dense = importlib.import_module(family.module.replace(".modeling_", ".configuration_"))
    parent = getattr(dense, f"{family.prefix}Config")
    fields: dict[str, Any] = {
        "moe_layers": field(default_factory=list),
        "num_groups": 1,
        "num_experts_per_tok": 2,
        "groups": field(default_factory=dict),
        "expert_of_group": field(default_factory=dict),  # layer number -> expert of each group; no entry: its own
        "languages": field(default_factory=list),  # the order of the gate's table: JSON sorts the keys of `groups`
        "expert_kind": "shared",
        "expert_width": None,
        "router_gradient": "detach",
        "routing": "prefix",
    }
    types = {
        "moe_layers": list[int],
        "num_groups": int,
        "num_experts_per_tok": int,
        "groups": dict[str, int],
        "expert_of_group": dict[str, list[int]],
        "languages": list[str],
        "expert_kind": str,
        "expert_width": int | None,
        "router_gradient": str,
        "routing": str,
    }
    name = f"Dmoe{family.prefix}Config"
    doc = f"{family.prefix}Config with mixture layers: moe_layers, num_groups, groups {{language tag: group}}, ..."
    namespace = {"model_type": f"dmoe_{model_type}", "__doc__": doc, "__module__": __name__}

    def post_init(self: Any, **kwargs: Any) -> None:
        if self.expert_width is None:
            self.expert_width = self.intermediate_size
        if not self.languages:
            self.languages = list(self.groups)
        parent.__post_init__(self, **kwargs)

    return type(name, (parent,), {**namespace, "__annotations__": types, "__post_init__": post_init, **fields})


@lru_cache
def causal_lm_class(model_type: str) -> Any:
    """Return `Dmoe<Family>ForCausalLM` of a dense model type."""
    family = family_of(model_type)
    dense = importlib.import_module(family.module)
    config = config_class(model_type)

    def subclass(kind: str, mixin: type, **members: Any) -> Any:
        parent = getattr(dense, f"{family.prefix}{kind}")
        namespace = {"__module__": __name__, "__doc__": mixin.__doc__, **members}
        return type(f"Dmoe{family.prefix}{kind}", (mixin, parent), namespace)

    layer = subclass("DecoderLayer", _DmoeLayer)
    shared = {
        "config_class": config,
        "_no_split_modules": [layer.__name__],
        "_keep_in_fp32_modules_strict": ["language_gate"],
        "_can_compile_fullgraph": False,  # how many rows each expert gets is read on the host
    }
    model = subclass("Model", _DmoeModel, layer_class=layer, family=family, **shared)
    return subclass("ForCausalLM", _DmoeForCausalLM, model_class=model, **shared)


def register() -> None:
    """Make every `dmoe_<family>` known to AutoConfig and AutoModelForCausalLM."""
    for model_type in FAMILIES:
        AutoConfig.register(f"dmoe_{model_type}", config_class(model_type), exist_ok=True)
        AutoModelForCausalLM.register(config_class(model_type), causal_lm_class(model_type), exist_ok=True)


def __getattr__(name: str) -> Any:
    """Resolve class names such as `DmoeQwen3ForCausalLM` (PEP 562): classes are made on demand."""
    for model_type, family in FAMILIES.items():
        if name == f"Dmoe{family.prefix}Config":
            return config_class(model_type)
        if name == f"Dmoe{family.prefix}ForCausalLM":
            return causal_lm_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def is_dmoe(model: Any) -> bool:
    """Is this one of our models?"""
    return isinstance(model, _DmoeForCausalLM)


def mixture_layers(model: nn.Module) -> list[GroupMoe]:
    """Return the mixture blocks of a model in the order of its layers."""
    return [module for module in model.modules() if isinstance(module, GroupMoe)]


__all__ = ["DmoeOutput", "causal_lm_class", "config_class", "is_dmoe", "mixture_layers", "register"]
