"""Checks of a new language's text, before anything is trained on it: is it new, enough, and what its tag says?

What cannot be right is refused (InputError); what may be right but seldom is comes back as a warning, one sentence.

Shapes: V vocabulary, L languages that the model knows.
"""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sprachbund.corpora.audit import LEAST_SCRIPT_SHARE, sample_text
from sprachbund.corpora.sentences import evenly_spaced
from sprachbund.errors import InputError
from sprachbund.languages import canonical, display_name, script_counts, script_of, script_share
from sprachbund.modeling.language_path import all_groups

LEAST_STEPS = 20  # of training that a corpus should fill
BLOCK = 256  # tokens: enough to tell a language by
BLOCKS_AT_MOST = 1024
LINES_AT_ONCE = 1 << 16
LEAST_EXCESS = 0.5  # nats per token; below that a text is of the language whose counts they are
MOSTLY = 0.5
AS_GOOD_AS = 1.25  # times the bits per byte of a known language
MOST_SHARED = 0.05


class Nearest(NamedTuple):
    """How well a language's token counts fit a text: its nats per token, and how many more than on its own text."""

    tag: str
    nats_per_token: float
    excess: float


def new_tags(config: Any, tags: Sequence[str]) -> list[str]:
    """Return the canonical tags of new languages.

    Raises InputError for what is no language, for one that the model of this configuration has, in a group or with a
    path, under whichever name, and for one that is given twice.
    """
    known = all_groups(config)
    found: dict[str, str] = {}
    for given in tags:
        tag = canonical(given)
        for name in (given, tag):
            if name in known:
                raise InputError(
                    f"--language {given}: the model has {name} already (group {known[name]}); leave it out"
                )
        if tag in found:
            raise InputError(f"--language {given}: {tag} is there already, as {found[tag]}; give each language once")
        found[tag] = given
    return list(found)


def check_script(tag: str, documents: Sequence[str], *, force: bool = False) -> str | None:
    """Check that most letters of the text are in the script of its tag; with `force` return a warning where not.

    Raises InputError naming both scripts.
    """
    text, script = sample_text(documents), script_of(tag)
    if script_share(text, script) >= LEAST_SCRIPT_SHARE:
        return None
    counts = script_counts(text)
    (other, count), *_ = counts.most_common(1)
    found = f"{count / counts.total():.0%} of the text's letters are in the script {other}, and the tag says {script}"
    if force:
        return f"{tag}: {found}"
    raise InputError(f"--language {tag}: {found}; name it {tag.split('_')[0]}_{other}, give other text, or --force")


def check_size(
    tag: str, *, train_tokens: int, scored_tokens: int, block_size: int, burn_in: int, tokens_per_step: int
) -> str | None:
    """Check that a text can be trained and scored on; return a warning where it is small.

    Raises InputError where it does not fill one block, or leaves nothing to score on.
    """
    if train_tokens < block_size:
        raise InputError(
            f"--language {tag}: its training text has {train_tokens} tokens, and one block has {block_size}; give more "
            "text, or --block-size"
        )
    if scored_tokens < burn_in + 2:
        raise InputError(
            f"--language {tag}: {scored_tokens} tokens to score on are too few for a burn-in of {burn_in}; give more "
            "text"
        )
    if train_tokens >= LEAST_STEPS * tokens_per_step:
        return None
    return (
        f"{tag}: its training text has {train_tokens:,} tokens, less than {LEAST_STEPS} steps of "
        f"{tokens_per_step:,}: what is trained on it for longer will know it by heart; more text would help"
    )


def nearest_by_counts(log_prob_VL: Tensor, tags: Sequence[str], counts_V: np.ndarray | Tensor) -> list[Nearest]:
    """Return the known languages, the nearest first, by the token counts of a text.

    `log_prob_VL` is the table of the model's gate and `tags` its columns. Which language is nearest says little, since
    the new one is none of them; `excess`, the nats per token beyond the entropy of the nearest one's own counts, says
    whether it is that one: about 0 on its own text, 0.5 to 0.9 between the closest relatives that we measured, more
    than 1.5 mostly, but up to 2 on its own language in text of another domain too, which counts cannot tell apart.
    Empty where the gate has no counts.
    """
    if not log_prob_VL.any():
        return []
    counts = torch.as_tensor(counts_V, dtype=torch.float64)
    nats_L = -(counts @ log_prob_VL.double()) / counts.sum()
    excess_L = nats_L - _entropy(log_prob_VL)
    found = [Nearest(*row) for row in zip(tags, nats_L.tolist(), excess_L.tolist(), strict=True)]
    return sorted(found, key=lambda near: near.nats_per_token)


def known_shares(log_prob_VL: Tensor, tags: Sequence[str], tokens: np.ndarray) -> dict[str, float]:
    """Return which share of a text reads like a known language, by its counts in blocks of 256 tokens.

    A block counts for the language whose counts fit it best, where they fit it as they fit that language's own text:
    within half a nat per token. At most 1,024 blocks are read, from all over the text.
    """
    if not len(tokens) or not log_prob_VL.any():
        return {}
    entropy_L = _entropy(log_prob_VL)
    chosen = evenly_spaced(max(len(tokens) // BLOCK, 1), most=BLOCKS_AT_MOST)
    like: Counter[str] = Counter()
    for number in chosen:
        block = torch.from_numpy(np.asarray(tokens[number * BLOCK : (number + 1) * BLOCK], dtype=np.int64))
        excess_L = -log_prob_VL[block].double().mean(0) - entropy_L
        best = int(excess_L.argmin())
        if excess_L[best] < LEAST_EXCESS:
            like[tags[best]] += 1
    return {tag: count / len(chosen) for tag, count in like.most_common()}


def mostly_known(tag: str, shares: Mapping[str, float]) -> str | None:
    """Return a warning where more than half of a text reads like one known language (`known_shares`)."""
    known = max(shares, key=lambda name: shares[name], default=None)
    if known is None or shares[known] <= MOSTLY:
        return None
    return (
        f"{tag}: {shares[known]:.0%} of the text uses the model's tokens as {_named(known)} does, which the model "
        "knows; is it the right text?"
    )


def looks_known(tag: str, new_score: float, old_scores: Mapping[str, float], nearest: str) -> str | None:
    """Return a warning where the model reads a new language nearly as well as the known one that is `nearest`.

    Scores are bits per byte: of the new text under the group of `nearest`, and of the known languages on their own
    text. Nearly is within 25%: other text of a known language had 1.06 times its score, new ones 1.6 times and more of
    any language of their nearest group. Known languages in a domain that the model never saw had as much as new ones,
    and are not found by this. None where `nearest` has no score.
    """
    own = old_scores.get(nearest)
    if own is None or new_score > AS_GOOD_AS * own:
        return None
    return (
        f"{tag}: the model needs {new_score:.2f} bits per byte for the text before it has seen any, and {own:.2f} for "
        f"that of {_named(nearest)}, which it knows; is it the right text?"
    )


def shared_text(documents: Iterable[str], known: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Return which share of a text, by characters, stands word by word in the text of each known language.

    Lines are compared in Unicode form NFC, without case, runs of white space as one space; by hashes of eight bytes,
    beside which four are held for the length of every line of the new text.
    """
    marks, lengths = array("Q"), array("I")
    for line in _lines(documents):
        marks.append(_digest(line))
        lengths.append(len(line))
    if not marks:
        return dict.fromkeys(known, 0.0)
    own, place_of = np.unique(np.frombuffer(marks, dtype=np.uint64), return_inverse=True)
    characters = np.bincount(place_of, weights=np.frombuffer(lengths, dtype=np.uint32))
    shares = {}
    for tag, texts in known.items():
        common = np.zeros(len(own), dtype=bool)
        lines = _lines(texts)
        while len(piece := np.array([_digest(line) for line in islice(lines, LINES_AT_ONCE)], dtype=np.uint64)):
            places = np.minimum(np.searchsorted(own, piece), len(own) - 1)
            common[places[own[places] == piece]] = True
        shares[tag] = float(characters[common].sum() / characters.sum())
    return shares


def mostly_shared(tag: str, shares: Mapping[str, float]) -> str | None:
    """Return a warning where more than 5% of a text stands in that of a known language too (`shared_text`)."""
    known = max(shares, key=lambda name: shares[name], default=None)
    if known is None or shares[known] <= MOST_SHARED:
        return None
    return (
        f"{tag}: {shares[known]:.0%} of the text stands word by word in the text of {_named(known)} too; "
        "remove what is not of this language"
    )


def _entropy(log_prob_VL: Tensor) -> Tensor:
    """Return the nats per token of each language's own text under its own counts, (L,) float64."""
    log_prob_VL = log_prob_VL.double()
    return -(log_prob_VL.exp() * log_prob_VL).sum(0)


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        for line in unicodedata.normalize("NFC", document).casefold().splitlines():
            if words := line.split():
                yield " ".join(words)


def _digest(line: str) -> int:
    return int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "little")


def _named(tag: str) -> str:
    return f"{display_name(tag)} ({tag})"
