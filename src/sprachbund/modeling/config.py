"""`Dmoe<Family>Config`: a dense family's configuration and, beside its fields, those of the mixture."""

from collections.abc import Callable
from dataclasses import field
from functools import lru_cache
from typing import Any

from transformers import AutoConfig

from sprachbund.modeling.ffn import FAMILIES, family_of

ROUTINGS = ("group", "prefix", "top_k")
PATH_GATES = ("counts", "mixture", "off")

# Name -> type and default. Flat fields: a wrapper with a configuration inside would change the names of parameters.
_FIELDS: dict[str, tuple[Any, Any]] = {
    "moe_layers": (list[int], field(default_factory=list)),
    "num_groups": (int, 1),
    "num_experts_per_tok": (int, 2),
    "groups": (dict[str, int], field(default_factory=dict)),
    # layer number -> expert of each group; no entry: each group has its own
    "expert_of_group": (dict[str, list[int]], field(default_factory=dict)),
    # the order of the gate's columns: JSON sorts the keys of `groups`
    "languages": (list[str], field(default_factory=list)),
    "expert_kind": (str, "shared"),
    "expert_width": (int | None, None),  # None: the FFN's own
    "expert_rank": (int | None, None),  # low-rank experts: the columns of their factors
    "language_width": (int | None, None),  # a hierarchy: the width of the small experts that each group owns alone
    # keyed embedding and output rows: the table of each group; empty: none
    "row_of_group": (list[int], field(default_factory=list)),
    "gate_pairs": (int, 0),  # pairs of neighbouring tokens that the count gate knows beside single ones
    "router_gradient": (str, "detach"),
    "routing": (str, "prefix"),
    # languages that came later, each with a path of its own: the fields of language_path.PathSpec
    "language_paths": (list[dict[str, Any]], field(default_factory=list)),
    # how text that nothing is said about finds a path: path_gate.py
    "path_gate": (str, "mixture"),
    "path_advantage": (float, 5.0),  # nats by which a path must be ahead under `counts`
    "path_prior": (float, 1e-3),  # of each path under `mixture`
    "path_commit": (float, 1e-6),  # a path that is less likely than that is dropped
    "path_keep_old": (bool, True),  # the old model never is
}
# What the dense configuration must not take over from a mixture's.
OWN_FIELDS = (*_FIELDS, "auto_map", "architectures", "model_type", "transformers_version")


def class_prefix(model_type: str) -> str:
    """Return the prefix of a family's class names: "Llama" of llama, "Gemma3Text" of gemma3_text."""
    return str(family_of(model_type).dense_config_class.__name__).removesuffix("Config")


def causal_lm_name(model_type: str) -> str:
    """Return the name of a family's mixture class: `DmoeLlamaForCausalLM` of llama."""
    return f"Dmoe{class_prefix(model_type)}ForCausalLM"


@lru_cache
def config_class(model_type: str) -> Any:
    """Return `Dmoe<Family>Config` of a dense model type."""
    parent = family_of(model_type).dense_config_class
    prefix = class_prefix(model_type)

    def post_init(self: Any, **kwargs: Any) -> None:
        if not self.languages:
            self.languages = list(self.groups)
        parent.__post_init__(self, **kwargs)
        _on_creation(model_type)

    namespace: dict[str, Any] = {
        "__module__": "sprachbund.modeling.model",
        "__doc__": f"{prefix}Config with mixture layers: moe_layers, num_groups, groups {{language tag: group}}, ...",
        "__annotations__": {name: kind for name, (kind, _) in _FIELDS.items()},
        "__post_init__": post_init,
        "model_type": f"dmoe_{model_type}",
        "dense_model_type": model_type,
        "register_for_auto_class": classmethod(lambda cls, auto_class="AutoConfig": None),  # see remote.py
        **{name: default for name, (_, default) in _FIELDS.items()},
    }
    return type(f"Dmoe{prefix}Config", (parent,), namespace)


_CREATED: set[str] = set()
_LISTENERS: list[Callable[[str], None]] = []


def on_first_config(listener: Callable[[str], None]) -> None:
    """Call `listener` with a dense model type when the first configuration of its mixture is made.

    The model classes are then made and registered: importing every family's code at import would take a second.
    """
    _LISTENERS.append(listener)


def _on_creation(model_type: str) -> None:
    if model_type not in _CREATED:
        _CREATED.add(model_type)
        for listener in _LISTENERS:
            listener(model_type)


def register_configs() -> None:
    """Make every `dmoe_<family>` known to AutoConfig."""
    for model_type in FAMILIES:
        AutoConfig.register(f"dmoe_{model_type}", config_class(model_type), exist_ok=True)


def dense_config(config: Any) -> Any:
    """Return the dense configuration that a mixture's was made from."""
    values = {key: value for key, value in config.to_dict().items() if key not in OWN_FIELDS}
    return family_of(config.dense_model_type).dense_config_class(**values)
