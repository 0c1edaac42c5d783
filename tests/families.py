"""A tiny model of every family in the registry, and mixtures of it: 2 layers of width 32, the second one a mixture."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.modeling import expand
from sprachbund.modeling.ffn import FAMILIES

VOCAB = 96
GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1}
# A family takes those that its configuration has.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rotary_dim": 4,
    # no dropout: training must be repeatable
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("residual_dropout", "embedding_dropout", "resid_dropout", "embed_dropout"), 0.0),
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "falcon": {"head_dim": None},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "minicpm3": {
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8},
        **{"num_key_value_heads": 4, "head_dim": 4},
    },
}


def tiny_config(family: str) -> Any:
    """Return the configuration of a tiny dense model."""
    default = AutoConfig.for_model(family)
    known = set(default.to_dict()) | set(default.attribute_map)
    fields = {**{key: value for key, value in SIZES.items() if key in known}, **OWN_SIZES.get(family, {})}
    return AutoConfig.for_model(family, **{key: value for key, value in fields.items() if value is not None})


@cache
def dense(family: str) -> Any:
    """Return a tiny dense model, not to be changed."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() == 1:  # biases start at 0 and norms at 1, which hides mistakes
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def log_prob() -> Tensor:
    """Return a table for the gate that tells the languages apart, (V, L)."""
    generator = torch.Generator().manual_seed(5)
    return (2 * torch.randn(VOCAB, len(GROUPS), generator=generator)).log_softmax(0)


@cache
def _mixture(family: str, kind: str) -> Any:
    model = expand(dense(family), moe_layers=[1], groups=GROUPS, kind=kind, log_prob=log_prob())  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif name.endswith(".gate.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def mixture(family: str, kind: str = "shared") -> Any:
    """Return a mixture in which experts and routers are random and differ from each other; the caller's own copy."""
    return copy.deepcopy(_mixture(family, kind))


def tokens(num_sequences: int, length: int, seed: int = 0) -> Tensor:
    """Draw token ids, (B, T), none of them special."""
    return torch.randint(3, VOCAB, (num_sequences, length), generator=torch.Generator().manual_seed(seed))


def ffn_of(model: Any, index: int) -> Any:
    """Return the FFN of one layer of a dense model or a mixture."""
    family = FAMILIES[getattr(model.config, "dense_model_type", model.config.model_type)]
    layers = getattr(getattr(model, model.base_model_prefix), family.layers)
    return getattr(layers[index], family.ffn)
