"""Pairs of neighbouring tokens: what a token tells about the language beyond itself, from the one before it.

The count gate knows a language by its tokens, and is at its weakest at the first few of a text. A pair of tokens tells
more than the two alone. The most frequent pairs are kept, each with a gain for every language,

    gain(v | u, language) = log p(v | u, language) - log p(v | language),

which the gate adds to log p(v | language). A pair that is not kept adds nothing, for any language. The conditional
probability has that of single tokens as its prior, worth PRIOR tokens (MacKay and Peto 1995). Hashed pairs instead of
kept ones lost: what collides is wrong for all (docs/experiments.md). Our own addition; not in the DMoE paper.

Shapes: B sequences, T tokens, L languages, V vocabulary, P pairs that are kept, C candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PRIOR = 10.0  # tokens; 2 to 50 make no difference (docs/experiments.md)
TOKENS_AT_ONCE = 1 << 24  # a stream on disk may be larger than memory


@dataclass(frozen=True)
class PairTable:
    """The pairs (u, v) by `keys`, (P,) int64 in rising order, which are u * V + v, and their `gain`, (P, L) float32."""

    keys: Tensor
    gain: Tensor


def pair_table(streams: Sequence[np.ndarray], log_prob_VL: Tensor, *, num_pairs: int) -> PairTable:
    """Return the most frequent pairs of the languages' texts, from one training token stream each, and their gains.

    `log_prob_VL` is the gate's table of the same streams (`count_log_prob`). Frequency is the share of a language's
    pairs, summed over languages, so that each counts the same however much text it has; fewer than `num_pairs` where
    there are no more. To be weighed, a pair is among the `num_pairs` most frequent ones of some language.
    """
    vocab_size = len(log_prob_VL)
    if not num_pairs or not streams:
        return PairTable(torch.zeros(0, dtype=torch.int64), torch.zeros(0, len(streams)))
    keys_C = np.unique(np.concatenate([_most_frequent(stream, vocab_size, num_pairs) for stream in streams]))
    share_C = np.zeros(len(keys_C))
    for stream in streams:
        share_C += _counts(stream, keys_C, vocab_size) / max(len(stream) - 1, 1)
    kept_P = np.sort(np.argsort(-share_C, kind="stable")[:num_pairs])
    keys = torch.from_numpy(keys_C[kept_P])
    return PairTable(keys, pair_gains(streams, log_prob_VL, keys))


def pair_gains(streams: Sequence[np.ndarray], log_prob_VL: Tensor, keys_P: Tensor) -> Tensor:
    """Return what pairs tell for each language, (P, L), from one token stream per language and its column of the
    gate's table, `log_prob_VL`.
    """
    vocab_size, keys = len(log_prob_VL), keys_P.cpu().numpy()
    gain_PL = np.zeros((len(keys), len(streams)), dtype=np.float32)
    for column, stream in enumerate(streams):
        single_V = log_prob_VL[:, column].double().exp().cpu().numpy()
        before, after = single_V[keys // vocab_size] * len(stream), single_V[keys % vocab_size]
        joint_P = _counts(stream, keys, vocab_size)
        gain_PL[:, column] = np.log((joint_P / after + PRIOR) / (before + PRIOR))
    return torch.from_numpy(gain_PL)


def _pairs_of(stream: np.ndarray, vocab_size: int) -> Iterator[np.ndarray]:
    """Yield the keys of all pairs of neighbours, a part of the stream at a time."""
    for start in range(0, len(stream) - 1, TOKENS_AT_ONCE):
        part = stream[start : start + TOKENS_AT_ONCE + 1].astype(np.int64)
        yield part[:-1] * vocab_size + part[1:]


def _most_frequent(stream: np.ndarray, vocab_size: int, how_many: int) -> np.ndarray:
    """Return the keys of a stream's most frequent pairs, by its first part where it is longer than that."""
    first = next(_pairs_of(stream, vocab_size), np.empty(0, dtype=np.int64))
    keys, counts = np.unique(first, return_counts=True)
    kept: np.ndarray = keys[np.argsort(-counts, kind="stable")[:how_many]]
    return kept


def _counts(stream: np.ndarray, keys_P: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return how often each of some pairs, whose keys come in rising order, is in a stream, (P,) float64."""
    counts_P = np.zeros(len(keys_P))
    for found in _pairs_of(stream, vocab_size) if len(keys_P) else ():
        places = np.searchsorted(keys_P, found).clip(max=len(keys_P) - 1)
        counts_P += np.bincount(places[keys_P[places] == found], minlength=len(keys_P))
    return counts_P


def with_previous(input_ids: Tensor, mask: Tensor | None, before_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the token before each one and the last one up to and including each, (B, T) both, -1 where there is none.

    Padding, 0 in `mask`, (B, T), is no token; `before_B` is the last one of what was read earlier, (B,).
    """
    if before_B is None:
        before_B = input_ids.new_full((len(input_ids),), -1)
    last_BT = input_ids
    if mask is not None:
        places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        latest_BT = torch.where(mask.bool(), places_T, -1).cummax(1).values
        last_BT = torch.where(latest_BT >= 0, input_ids.gather(1, latest_BT.clamp(min=0)), before_B.unsqueeze(1))
    return torch.cat([before_B.unsqueeze(1), last_BT[:, :-1]], dim=1), last_BT
