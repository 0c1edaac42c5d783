"""The representation: where a language's sentences lie in the base's hidden states.

After the representation sprachbunds of Fan et al. (Findings of EMNLP 2021), of whose paper we could read the abstract
only: there the representations of a multilingual encoder, clustered. Ours are choices of our own: the mean over tokens
of a decoder's hidden states, then the mean over sentences, compared by cosine after removing the mean over languages.
The languages' sentences should say the same: else topics are compared along with languages.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity.signal import Signal, norm_of

NUM_PARTS = 8


def measure_representation(
    model: Any, sentences: Sequence[Sequence[int]], *, tag: str, hidden_layer: int, batch_tokens: int
) -> Signal:
    """Return the mean hidden state of `sentences`, token ids without special tokens, of every layer.

    Layer n is the state after n decoder layers, 0 the embeddings, and the last includes the final norm; `hidden_layer`
    is the one that the similarity compares. Vectors are exact, (D,); the parts are consecutive sentences.
    `batch_tokens` bounds the tokens on the device at once, padding included.

    Raises:
        SprachbundError: a hidden state is not finite.
    """
    model.eval()
    part_of = torch.arange(len(sentences)) * NUM_PARTS // len(sentences)
    parts_PLD = torch.empty(0)
    for chosen in _batches([len(sentence) for sentence in sentences], batch_tokens):
        states_SLD = _mean_states(model, [sentences[i] for i in chosen]).double() / len(sentences)
        if not states_SLD.isfinite().all():
            raise SprachbundError(
                f"the hidden states of {tag} are not finite; check the base, or set train.dtype: float32"
            )
        if not parts_PLD.numel():
            parts_PLD = states_SLD.new_zeros(NUM_PARTS, *states_SLD.shape[1:])
        parts_PLD.index_add_(0, part_of[chosen], states_SLD)
    totals_LD = parts_PLD.sum(0)
    layers = range(len(totals_LD))
    return Signal(
        totals={layer: totals_LD[layer].float() for layer in layers},
        parts={layer: parts_PLD[:, layer].float() for layer in layers},
        norms={layer: norm_of([totals_LD[layer]]) for layer in layers},
        compared=(hidden_layer,),
    )


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Return the numbers of the sentences in batches of at most `batch_tokens` with padding, or of one sentence."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):  # sentences alike in length need little padding
        if not batches or lengths[i] * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


@torch.no_grad()
def _mean_states(model: Any, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Return the mean over each sentence's tokens of the hidden states of all layers, (S, layers + 1, D) float32."""
    longest = max(map(len, sentences))
    ids_ST = torch.zeros(len(sentences), longest, dtype=torch.long)
    mask_ST = torch.zeros(len(sentences), longest, dtype=torch.long)
    for row, sentence in enumerate(sentences):
        ids_ST[row, : len(sentence)] = torch.as_tensor(sentence)
        mask_ST[row, : len(sentence)] = 1  # padded on the right, where causal attention never looks
    mask_ST = mask_ST.to(model.device)
    outputs = getattr(model, model.base_model_prefix)(
        input_ids=ids_ST.to(model.device), attention_mask=mask_ST, output_hidden_states=True, use_cache=False
    )
    weights_ST1 = (mask_ST / mask_ST.sum(1, keepdim=True)).unsqueeze(-1)
    return torch.stack([(state.float() * weights_ST1).sum(1) for state in outputs.hidden_states], dim=1).cpu()
