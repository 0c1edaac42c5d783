"""Tiny mixtures on disk, with random routers and experts that differ: 4 layers of width 16, three groups."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.export import fresh_process, verify
from sprachbund.modeling import expand
from sprachbund.modeling.expand import mixture_config

VOCAB = 128
GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1}
EXPERT_WIDTH = 12  # of kind shared
LANGUAGE_WIDTH = 4  # of a hierarchy
KINDS: dict[str, dict[str, Any]] = {
    "copy": {"kind": "copy"},
    "shared": {"kind": "shared"},
    "hierarchy": {"kind": "hierarchy"},
    "low-rank": {"kind": "shared", "options": {"rank": 3}},
    "low-rank hierarchy": {"kind": "hierarchy", "options": {"rank": 3}},
    "adapter": {"kind": "adapter"},
    "one group": {"kind": "shared", "options": {"groups": dict.fromkeys(GROUPS, 0)}},
    "one group of copies": {"kind": "copy", "options": {"groups": dict.fromkeys(GROUPS, 0)}},
    "rows of groups": {"kind": "copy", "options": {"rows": "group"}},
    "rows of languages": {"kind": "shared", "options": {"rows": "language"}},
    "rows for all": {"kind": "shared", "options": {"rows": "all"}},
    "everything": {"kind": "hierarchy", "options": {"rank": 3, "rows": "group"}},
}


def dense_config(family: str = "llama", **fields: Any) -> Any:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(family, **{**sizes, **fields})


def config_of(
    family: str = "llama", *, moe_layers: Sequence[int] | None = (1, 2), kind: str = "copy", **fields: Any
) -> Any:
    """Return a mixture's configuration alone."""
    own = expert_options(kind, fields.pop("expert_of_group", None), fields.pop("options", {}))
    return mixture_config(dense_config(family, **fields), moe_layers=moe_layers, **own)


def expert_options(kind: str, tables: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `expand` is told of the experts."""
    return {
        "kind": kind,
        "groups": GROUPS,
        "width": None if kind == "copy" else EXPERT_WIDTH,
        "language_width": LANGUAGE_WIDTH if kind == "hierarchy" else None,
        "expert_of_group": tables,
        **options,
    }


def randomise(model: Any, seed: int = 1) -> None:
    """Give a mixture random routers, experts that differ, and norms and biases away from their starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "experts." in name or name.endswith(".delta"):
                parameter.copy_(0.2 * noise)
            elif name.endswith(".gate.weight"):
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                parameter.add_(0.3 * noise)


def save_mixture(
    folder: Path,
    family: str = "llama",
    *,
    moe_layers: Sequence[int] | None = (1, 2),
    kind: str = "copy",
    dtype: torch.dtype = torch.float32,
    expert_of_group: dict[int, list[int]] | None = None,
    options: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Save a mixture to a folder and return the folder; `options` are those of `expand`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(dense_config(family, **fields)).eval()
    mixture = expand(model, moe_layers=moe_layers, **expert_options(kind, expert_of_group, options or {}))
    randomise(mixture)
    mixture.to(dtype).save_pretrained(folder)
    return folder


def verify_here(folder: Path, expected: dict[str, Tensor]) -> float:
    """Do what `verify` does, but in this process: loading torch anew takes seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "expected.safetensors"
        save_file(expected, file)
        return verify.judge(fresh_process.compare(folder, file), expected)
