"""Tiny models, made on the spot. The languages of the mixtures are not in alphabetical order, on purpose."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.modeling import expand

VOCAB = 300
GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1, "acu_Latn": 3}


@pytest.fixture
def make_dense() -> Callable[..., Any]:
    """Build a dense model of a family: 3 layers of width 16, weights large enough that every layer matters."""

    def make(family: str = "llama", **fields: Any) -> Any:
        torch.manual_seed(7)
        sizes = {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **fields})).eval()

    return make


@pytest.fixture
def make_moe(make_dense: Callable[..., Any]) -> Callable[..., Any]:
    """Build a mixture in which experts, routers and the gate's table are random, and differ from each other."""

    def make(
        family: str = "llama",
        *,
        moe_layers: Sequence[int] = (0, 2),
        fields: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        generator = torch.Generator().manual_seed(11)
        log_prob = (2 * torch.randn(VOCAB, len(GROUPS), generator=generator)).log_softmax(0)
        dense = make_dense(family, **(fields or {}))
        model = expand(dense, **{"moe_layers": moe_layers, "groups": GROUPS, "log_prob": log_prob, **options})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".experts." in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
                elif name.endswith(".gate.weight"):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model

    return make


@pytest.fixture
def tokens() -> Callable[..., Tensor]:
    """Draw token ids, (B, T), none of them padding."""

    def draw(num_sequences: int, length: int, seed: int = 0) -> Tensor:
        return torch.randint(1, VOCAB, (num_sequences, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def modes() -> Callable[[int], list[dict[str, Any]]]:
    """List the keyword arguments of `forward` for each routing mode, for a batch of B sequences of unsorted groups."""

    def of(num_sequences: int) -> list[dict[str, Any]]:
        group_ids = torch.tensor([3, 0, 2, 0, 1, 3, 0, 2])[:num_sequences]
        return [{"group_ids": group_ids}, {"routing": "prefix"}, {"routing": "top_k"}]

    return of
