"""What needs no model: how often a language uses each token, and each run of characters.

The cheap baselines that every source with a model must be compared with.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sprachbund.corpora.documents import total_characters
from sprachbund.similarity.signal import Signal, norm_of

NUM_PARTS = 8
BUCKETS = 1 << 16
CHARACTERS_AT_MOST = 1_000_000
TOKENS_AT_ONCE = 1 << 22
# Knuth's 64-bit linear congruential multiplier, of which a polynomial is made, and SplitMix64's two, which mix its bits
MULTIPLIER = np.uint64(6364136223846793005)
MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def count_tokens(tokens: NDArray[Any]) -> Signal:
    """Return how often each token occurs in a packed stream; parts are eighths of it.

    Separators do not count: they tell how long documents are. A stream ends with one.
    """
    separator, length = int(tokens[-1]), int(tokens.max()) + 1
    counts = [_token_counts(chunk, length) for chunk in np.array_split(tokens, NUM_PARTS)]
    for count in counts:
        count[separator] = 0
    return _signal(counts)


def _token_counts(tokens: NDArray[Any], length: int) -> NDArray[np.int64]:
    counts = np.zeros(length, dtype=np.int64)
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        counts += np.bincount(tokens[start : start + TOKENS_AT_ONCE], minlength=length)
    return counts


def count_characters(documents: Sequence[str], *, ngram: int) -> Signal:
    """Return how often runs of `ngram` characters occur, hashed to 65,536 buckets; parts are eighths of them.

    Documents are taken evenly spaced up to about a million characters, in Unicode form NFC and lower case, each run of
    white space as one space; documents follow each other after one. Runs that fall in one bucket count together.
    """
    texts = _chosen(documents)
    chunks = np.array_split(np.arange(len(texts)), NUM_PARTS)
    return _signal([_run_counts(" ".join(texts[i] for i in chunk), ngram) for chunk in chunks])


def _chosen(documents: Sequence[str]) -> list[str]:
    """Return documents, normalised, evenly spaced so that together they have about as many characters as allowed."""
    step = max(total_characters(documents) / CHARACTERS_AT_MOST, 1.0)
    chosen = dict.fromkeys(int(i * step) for i in range(int(np.ceil(len(documents) / step))))
    return [" ".join(unicodedata.normalize("NFC", documents[i].lower()).split()) for i in chosen if i < len(documents)]


def _run_counts(text: str, ngram: int) -> NDArray[np.int64]:
    """Count the runs of `ngram` code points by the hash of their polynomial, which is the same on every machine."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    num_runs = max(len(points) - ngram + 1, 0)
    hashed = np.zeros(num_runs, dtype=np.uint64)
    for place in range(ngram):
        hashed = hashed * MULTIPLIER + points[place : place + num_runs] + np.uint64(1)
    for shift, mixer in zip((30, 27), MIXERS, strict=True):
        hashed = (hashed ^ (hashed >> np.uint64(shift))) * mixer
    hashed ^= hashed >> np.uint64(31)
    return np.bincount((hashed % np.uint64(BUCKETS)).astype(np.int64), minlength=BUCKETS)


def _signal(counts: Sequence[NDArray[np.int64]]) -> Signal:
    parts = torch.from_numpy(np.stack(counts)).float()
    total = torch.from_numpy(np.sum(counts, axis=0)).float()
    return Signal(totals={0: total}, parts={0: parts}, norms={0: norm_of([total])}, compared=(0,))
