"""A tiny model, and steps of text in three scripts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sprachbund.modeling.base import scratch_model
from sprachbund.recipe import Scratch
from sprachbund.similarity import Sketches

VOCABULARY, HIDDEN, FFN, LAYERS = 260, 16, 24, 3
FFN_MATRICES = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ATTENTION_MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
WHOLE = Sketches(20 * 3 * HIDDEN * FFN, num_parts=20, seed=0)  # keeps twenty parts of a layer exactly

# Article 1 of the Universal Declaration of Human Rights
ENGLISH = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood. "
)
RUSSIAN = (
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства. "
)
HINDI = (
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और "
    "परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए। "
)


def tiny(family: str = "qwen3") -> Any:
    scratch = Scratch(family=family, hidden_size=HIDDEN, num_layers=LAYERS, ffn_size=FFN, num_heads=2, tokens=1)
    return scratch_model(scratch, vocab_size=VOCABULARY, block_size=32, eos_token_id=0, seed=0).eval()


def state(model: Any) -> dict[str, Tensor]:
    everything = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in everything}


def text_steps(text: str, *, num_steps: int = 3, shift: int = 0) -> list[list[Tensor]]:
    """Return steps of two micro-batches, (2, 32), of the text's bytes over and over, from byte `shift` on."""
    stream = torch.tensor(list(text.encode()))
    ids = stream.repeat(-(-(num_steps * 128 + shift) // len(stream)))[shift : shift + num_steps * 128]
    return [list(step) for step in ids.view(num_steps, 2, 2, 32)]


def loss_by_hand(model: Any, ids_BT: Tensor) -> Tensor:
    logits = model(input_ids=ids_BT).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, VOCABULARY), ids_BT[:, 1:].reshape(-1))


def ffn_names(layer: int) -> list[str]:
    return [f"model.layers.{layer}.{matrix}.weight" for matrix in FFN_MATRICES]
