"""How much text a token of a new language holds, and what to do where that is little.

A language whose text a tokenizer cuts into short pieces pays with its context and its compute for every byte, and the
model has to spell what it writes (Petrov et al. 2023; Ahia et al. 2023). More vocabulary mends that (`vocabulary.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sprachbund.adaptation.merges import MergeLearner
from sprachbund.adaptation.vocabulary import learner_of
from sprachbund.corpora.audit import num_tokens
from sprachbund.corpora.documents import total_bytes, total_characters
from sprachbund.errors import InputError
from sprachbund.modeling.base import tokenize_with

LEAST_OF_MEDIAN = 0.85  # of the bytes per token of the middle one of the model's languages
LEAST_CHARACTERS = 1.2  # per token
LEAST_USES = 20  # times that a new token should occur: rows that are seen less often learn little
MERGES = (256, 8192)  # fewest and most that are advised

Tokenize = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True)
class TokenLength:
    """How much of a text one token holds on average: UTF-8 bytes, and Unicode characters."""

    num_bytes: float
    num_characters: float


def token_length(tokenize: Tokenize, documents: Sequence[str]) -> TokenLength:
    """Return how long the tokens of the documents are; raises InputError where there is no token."""
    count = num_tokens(documents, tokenize)
    if count == 0:
        raise InputError("the text has no token, so that none has a length; give some text")
    return TokenLength(total_bytes(documents) / count, total_characters(documents) / count)


def bytes_per_token(tokenize: Tokenize, documents: Sequence[str]) -> float:
    """Return the UTF-8 bytes of the documents per token; raises InputError where there is no token."""
    return token_length(tokenize, documents).num_bytes


def is_out_of_line(new: TokenLength, old: Mapping[str, float]) -> bool:
    """Return whether a language's tokens are too short beside those of `old`, which has bytes per token.

    Bytes are compared with the median of the languages that the model has, which one language with a poor tokenisation
    of its own does not move. The bound, 0.85 of it, is between both kinds: in Bible translations (33 languages, four of
    them unknown to a byte-level BPE of 2,048 tokens, 2.5 bytes per token in the middle) those left out in known letters
    had 0.75 to 0.81 of the median and the one in unknown letters 0.4, while 27 of the 29 others had at least 0.85.
    Bytes alone would pass a script of three bytes a character whose every character is a token: so tokens must have
    1.2 characters as well, of which the languages that a tokenizer knows have more in every script that we looked at
    (1.4 in Cyrillic and Armenian). Writing in Han characters may fall below that: the advice costs little.
    """
    too_few_bytes = bool(old) and new.num_bytes < LEAST_OF_MEDIAN * median(old.values())
    return too_few_bytes or new.num_characters < LEAST_CHARACTERS


def out_of_line(
    tag: str, tokenizer: Any, documents: Sequence[str], old: Mapping[str, float], *, vocab_size: int
) -> str | None:
    """Return a warning where a new language's tokens are short (`is_out_of_line`), with the vocabulary that it needs.

    `old` has the bytes per token of the languages that the model has; it may be empty. The number advised is that of
    the merges, learned on the spot, which bring the language to their median; a power of two, of 256 at least, and no
    more than there are merges that occur 20 times in the text. Raises InputError where there is no token.
    """
    new = token_length(tokenize_with(tokenizer), documents)
    if not is_out_of_line(new, old):
        return None
    found = f"{tag}: a token has {new.num_bytes:.2f} bytes ({new.num_characters:.2f} characters) of this text"
    if old:
        least = min(old, key=lambda known: old[known])
        found += f", and {median(old.values()):.2f} of the model's languages' (the least: {old[least]:.2f} of {least})"
    wanted = max(median(old.values()) / new.num_bytes if old else 1.0, LEAST_CHARACTERS / new.num_characters)
    try:
        learner = learner_of(tokenizer, documents, vocab_size=vocab_size)
    except InputError:
        return f"{found}; the tokenizer is no BPE, whose vocabulary could be extended"
    return f"{found}; --extend-vocab {merges_for(learner, factor=wanted)} would make its tokens longer"


def merges_for(learner: MergeLearner, *, factor: float) -> int:
    """Return how many merges make a text's tokens `factor` times as long, rounded up to a power of two.

    At least 256 and at most 8,192; no merge counts that occurs less than 20 times.
    """
    before = left = learner.num_pieces
    least, most = MERGES
    wanted = 0
    for step in learner.steps():
        if left * factor <= before or step.saved < LEAST_USES or wanted == most:
            break
        left -= step.saved
        wanted += 1
    return max(1 << (wanted - 1).bit_length() if wanted else 0, least)
