"""Where each model family keeps its feed-forward network (FFN), and how it is shaped: one line a family.

Everything else about a family (its classes, attention, norms, caches) is found through transformers' own tables.
"""

from dataclasses import dataclass
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from sprachbund.errors import InputError, nearest


@dataclass(frozen=True)
class Family:
    """One dense decoder family of transformers: where its FFN is, and the names of its parts.

    `layers` is the list of decoder layers in the inner model, `ffn` the FFN in a layer. A gated FFN is
    down(act(gate(x)) * up(x)), with `gate` and `up` apart or, where `gate_up` is named, fused with the gate first; an
    ungated one (neither `gate` nor `gate_up`) is down(act(up(x))). `activation` is the FFN's attribute with the
    activation function, or `=NAME` for the function of that name where the FFN has no such attribute.

    `transposed`: weights are (in, out), as in transformers' Conv1D. `residual`: the FFN is given the residual as well
    and adds it. `trained_activation`: the activation function has weights, which the experts of a layer share.
    `dropout` is the configuration's dotted field with the dropout that the FFN applies to its output. `width` is the
    configuration's field with the FFN's width; None where the family fixes it.
    """

    model_type: str
    ffn: str = "mlp"
    gate: str | None = "gate_proj"
    up: str | None = "up_proj"
    gate_up: str | None = None
    down: str = "down_proj"
    activation: str = "act_fn"
    layers: str = "layers"
    transposed: bool = False
    residual: bool = False
    trained_activation: bool = False
    dropout: str | None = None
    width: str | None = "intermediate_size"

    @property
    def gated(self) -> bool:
        """Has the FFN a gate?"""
        return self.gate is not None or self.gate_up is not None

    def of_activation(self, name: str) -> str | None:
        """Return the name within a trained activation function of an FFN's tensor; None for every other tensor."""
        prefix = f"{self.activation}."
        return name.removeprefix(prefix) if self.trained_activation and name.startswith(prefix) else None

    @property
    def dense_config_class(self) -> Any:
        """The family's configuration class in transformers."""
        return CONFIG_MAPPING[self.model_type]

    @property
    def dense_causal_lm_class(self) -> Any:
        """The family's causal language model class in transformers."""
        return MODEL_FOR_CAUSAL_LM_MAPPING[self.dense_config_class]

    @property
    def dense_model_class(self) -> Any:
        """The class of the inner model: the decoder without its output layer."""
        return MODEL_MAPPING[self.dense_config_class]


def _ungated(model_type: str, up: str, down: str, activation: str = "act", **parts: Any) -> Family:
    return Family(model_type, gate=None, up=up, down=down, activation=activation, **parts)


def _fused(model_type: str) -> Family:
    return Family(model_type, gate=None, up=None, gate_up="gate_up_proj", activation="activation_fn")


# The shape of Llama's: gate_proj, up_proj, down_proj in `mlp`.
_LIKE_LLAMA = (
    *("llama", "mistral", "ministral", "ministral3", "qwen2", "qwen3"),
    *("gemma", "gemma2", "gemma3_text", "vaultgemma"),
    *("olmo", "olmo2", "olmo3", "granite", "smollm3", "stablelm", "cohere", "cohere2"),
    *("ernie4_5", "helium", "exaone4", "seed_oss", "hunyuan_v1_dense", "hyperclovax", "minicpm3", "diffllama", "cwm"),
)

FAMILIES = {
    family.model_type: family
    for family in (
        *(Family(model_type) for model_type in _LIKE_LLAMA),
        Family("lfm2", ffn="feed_forward", gate="w1", up="w3", down="w2", activation="=silu", width=None),
        *(_fused(model_type) for model_type in ("phi3", "glm", "glm4")),
        *(_ungated(model_type, "up_proj", "down_proj", "act_fn") for model_type in ("nemotron", "arcee", "jais2")),
        _ungated("apertus", "up_proj", "down_proj", "act_fn", trained_activation=True),
        _ungated("nanochat", "fc1", "fc2", "activation_fn"),
        _ungated("phi", "fc1", "fc2", "activation_fn"),
        _ungated("persimmon", "dense_h_to_4h", "dense_4h_to_h"),
        _ungated("gpt_neox", "dense_h_to_4h", "dense_4h_to_h"),
        _ungated("falcon", "dense_h_to_4h", "dense_4h_to_h", layers="h", width="ffn_hidden_size"),
        _ungated(
            "bloom",
            "dense_h_to_4h",
            "dense_4h_to_h",
            "gelu_impl",
            layers="h",
            residual=True,
            dropout="hidden_dropout",
            width=None,
        ),
        _ungated(
            "mpt",
            "up_proj",
            "down_proj",
            ffn="ffn",
            layers="blocks",
            residual=True,
            dropout="attn_config.attn_pdrop",
            width=None,
        ),
        _ungated("starcoder2", "c_fc", "c_proj", dropout="residual_dropout"),
        _ungated("gpt2", "c_fc", "c_proj", layers="h", transposed=True, dropout="resid_pdrop", width="n_inner"),
        _ungated("gpt_bigcode", "c_fc", "c_proj", layers="h", dropout="resid_pdrop", width="n_inner"),
        _ungated("gpt_neo", "c_fc", "c_proj", layers="h", dropout="resid_dropout"),
        _ungated("gptj", "fc_in", "fc_out", layers="h", dropout="resid_pdrop", width="n_inner"),
        _ungated("codegen", "fc_in", "fc_out", layers="h", dropout="resid_pdrop", width="n_inner"),
    )
}

_INLINE = "its decoder layer computes the FFN itself, without a module that could be replaced"
# Families that cannot be expanded, and why.
REFUSED = {
    **dict.fromkeys(("opt", "xglm", "biogpt", "bart", "mbart"), _INLINE),
    "bitnet": "its FFN normalises between its projections and its weights are ternary",
}
# Configuration fields that only mixtures of experts have.
_MIXTURE_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


def family_of(model_type: str, config: Any = None) -> Family:
    """Return the registry entry of a dense model type.

    `config`, where given, tells mixtures of experts from dense models that are merely unknown. Raises InputError, with
    the reason, for families that are not supported.
    """
    family = FAMILIES.get(model_type)
    if family is not None:
        return family
    if reason := REFUSED.get(model_type):
        raise InputError(f"the base is a {model_type!r} model, which cannot be expanded: {reason}; {_choose()}")
    if model_type.startswith("dmoe_"):
        raise InputError(f"the base is a {model_type!r} model: it has been expanded already; give the dense model")
    if any(getattr(config, field, None) for field in _MIXTURE_FIELDS):
        raise InputError(f"the base is a {model_type!r} model, a mixture of experts already; {_choose()}")
    near = nearest(model_type, FAMILIES)
    raise InputError(f"the base is a {model_type!r} model, a family that is not supported{near or '; ' + _choose()}")


def _choose() -> str:
    return f"give a dense decoder of one of {', '.join(sorted(FAMILIES))}"
