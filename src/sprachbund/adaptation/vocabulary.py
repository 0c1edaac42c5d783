"""More vocabulary for a new language: merges on top of a BPE tokenizer's own, which stay as they are.

A tokenizer that was trained without a language cuts its text into small pieces, down to single bytes where it does not
know the script. New merges, learned on the language's text and ranked after all old ones, make longer tokens of these
pieces: the new tokenisation is the old one followed by the new merges. No old id changes, and every new one stands for
one sequence of old ones (its pieces), so that the old tokenisation can be read off the new one.

The new ids start where the rows of the model's embedding end, which may be beyond the tokenizer's own last id. The ids
between stay empty, as they are in the old tokenizer; added tokens become part of the vocabulary, under their old ids,
because a tokenizer numbers them anew when it is loaded otherwise.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sprachbund.adaptation.merges import MergeLearner, Piece, Vocabulary
from sprachbund.corpora.documents import total_bytes
from sprachbund.corpora.packing import DOCUMENTS_AT_ONCE
from sprachbund.corpora.splits import thinned
from sprachbund.errors import InputError
from sprachbund.files import read_json_object, write_text
from sprachbund.modeling.base import load_tokenizer

FORMAT_VERSION = 1
FILE = "extension.json"
BYTES_TO_LEARN_FROM = 5_000_000  # a few thousand merges change little with more text, and the words lie in memory
WORD_START = "\u2581"  # what SentencePiece writes for a space
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
KEPT = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "model_input_names")
KEPT_WHERE_SET = ("chat_template", "extra_special_tokens")


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens, numbered from `vocab_size` on.

    `tokens` are their strings and `merges` what each is made of: two ids, old or new, or the ids of the bytes of a
    character. `asked` is how many tokens were asked for: fewer are there where the text was exhausted.
    """

    vocab_size: int
    asked: int
    tokens: list[str]
    merges: list[tuple[int, ...]]
    tokenizer: Any

    @cached_property
    def pieces(self) -> list[tuple[int, ...]]:
        """The old ids that each new token stands for: what its rows start from."""
        found: list[tuple[int, ...]] = []
        for parts in self.merges:
            found.append(tuple(old for part in parts for old in _expanded(part, self.vocab_size, found)))
        return found

    @property
    def shortfall(self) -> str | None:
        """A sentence where the text had fewer merges to offer than were asked for."""
        if len(self.tokens) == self.asked:
            return None
        return (
            f"the text gave {len(self.tokens):,} of the {self.asked:,} new tokens that were asked for: nothing else "
            "that could be a token occurs twice in it"
        )

    def base_ids(self, ids: Iterable[int]) -> list[int]:
        """Return what the old tokenizer makes of the text that this one made `ids` of."""
        return [old for token in ids for old in _expanded(token, self.vocab_size, self.pieces)]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, which AutoTokenizer reads, and extension.json, which comes last and vouches for it."""
        (folder / FILE).unlink(missing_ok=True)
        self.tokenizer.save_pretrained(folder)
        facts = {
            "format": FORMAT_VERSION,
            "vocab_size": self.vocab_size,
            "asked": self.asked,
            "tokens": self.tokens,
            "merges": self.merges,
            "pieces": self.pieces,
        }
        write_text(folder / FILE, json.dumps(facts, ensure_ascii=False) + "\n")


def load_extension(folder: Path) -> Extension:
    """Return the extension that was saved to a folder.

    Raises InputError where a file is missing or damaged, or the tokenizer is not the one of the extension.json.
    """
    facts = read_json_object(folder / FILE)
    try:
        extension = Extension(
            vocab_size=int(facts["vocab_size"]),
            asked=int(facts["asked"]),
            tokens=[str(token) for token in facts["tokens"]],
            merges=[tuple(map(int, parts)) for parts in facts["merges"]],
            tokenizer=load_tokenizer(folder),
        )
        ids = extension.tokenizer.convert_tokens_to_ids(extension.tokens)
        sound = (
            facts["format"] == FORMAT_VERSION
            and extension.pieces == [tuple(pieces) for pieces in facts["pieces"]]
            and ids == list(range(extension.vocab_size, extension.vocab_size + len(extension.merges)))
        )
    except (KeyError, TypeError, ValueError, IndexError):
        sound = False
    if not sound:
        raise InputError(f"{folder / FILE} does not fit the tokenizer beside it; make the path of this language anew")
    return extension


def extend_tokenizer(tokenizer: Any, texts: Sequence[str], num_merges: int, *, vocab_size: int) -> Extension:
    """Return a tokenizer with up to `num_merges` more tokens, learned on `texts`; the old one stays as it is.

    `vocab_size` is the number of rows of the model's embedding. Of long texts 5 MB, from all over them, are read.
    Raises InputError for a tokenizer that is no fast BPE or has ids beyond the rows, and for a negative number.
    """
    if num_merges < 0:
        raise InputError(f"--extend-vocab {num_merges}: give the number of new tokens, 0 or more")
    learner = learner_of(tokenizer, texts if num_merges else [], vocab_size=vocab_size)
    steps = list(islice(learner.steps(), num_merges))
    tokens, merges = [step.string for step in steps], [step.parts for step in steps]
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model = settings["model"]
    for added in settings["added_tokens"]:
        model["vocab"].setdefault(added["content"], added["id"])
    model["vocab"] |= {token: vocab_size + number for number, token in enumerate(tokens)}
    spelled = set(learner.vocabulary.byte_ids.values())
    strings = learner.strings
    model["merges"] += [[strings[part] for part in parts] for parts in merges if not spelled.issuperset(parts)]
    kept = {name: getattr(tokenizer, name) for name in KEPT}
    kept |= {name: value for name in KEPT_WHERE_SET if (value := getattr(tokenizer, name, None))}
    backend = Tokenizer.from_str(json.dumps(settings))
    extended = PreTrainedTokenizerFast(tokenizer_object=backend, **tokenizer.special_tokens_map, **kept)
    return Extension(vocab_size, num_merges, tokens, merges, extended)


def learner_of(tokenizer: Any, texts: Sequence[str], *, vocab_size: int) -> MergeLearner:
    """Return what learns further merges of a tokenizer on `texts`; raises InputError as `extend_tokenizer` does."""
    settings = _bpe_settings(tokenizer)
    model = settings["model"]
    added = {token["id"]: token["content"] for token in settings["added_tokens"]}
    strings = {number: token for token, number in model["vocab"].items()} | added
    if max(strings, default=0) >= vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {max(strings)} and the model's embedding {vocab_size} rows; give the "
            "tokenizer that belongs to the model"
        )
    byte_of = {}
    if model["byte_fallback"]:
        byte_of = {n: int(found[1], 16) for n, token in strings.items() if (found := BYTE_TOKEN.fullmatch(token))}
    backend = Tokenizer.from_str(json.dumps(settings))
    backend.no_truncation()
    backend.no_padding()
    unknown = model["vocab"].get(model["unk_token"])
    starts = {number for number, token in strings.items() if token.startswith(WORD_START)}
    words: Counter[tuple[Piece, ...]] = Counter()
    for ids in _pretokenised(backend, texts):
        words.update(_words(ids, unknown, starts, byte_of))

    vocabulary = Vocabulary(
        strings,
        vocab_size,
        byte_ids={byte: number for number, byte in byte_of.items()},
        prefix=model["continuing_subword_prefix"] or "",
    )
    return MergeLearner(words, vocabulary)


def _bpe_settings(tokenizer: Any) -> dict[str, Any]:
    """Return what a fast BPE tokenizer's tokenizer.json holds; raises InputError for every other tokenizer."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "--extend-vocab needs a fast tokenizer, one with a tokenizer.json, which this model lacks; leave it out"
        )
    settings: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = settings["model"]["type"]
    if kind != "BPE":
        raise InputError(f"--extend-vocab adds merges to BPE tokenizers, and this one is of type {kind}; leave it out")
    return settings


def _pretokenised(backend: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the ids of every word of `texts`, as the tokenizer's own rules cut them."""
    size = total_bytes(texts)
    chosen = thinned(texts, min(BYTES_TO_LEARN_FROM / max(size, 1), 1.0))
    for start in range(0, len(chosen), DOCUMENTS_AT_ONCE):
        batch = chosen[start : start + DOCUMENTS_AT_ONCE]
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            together = zip(encoding.word_ids, encoding.ids, strict=True)
            for _, word in groupby(together, key=lambda entry: entry[0]):
                yield [number for _, number in word]


def _words(
    ids: Sequence[int], unknown: int | None, starts: set[int], byte_of: dict[int, int]
) -> Iterator[tuple[Piece, ...]]:
    """Yield the parts of a word within which pieces may be merged, characters spelled in bytes as such.

    Not with the token of unknown characters, which stands for any of them, and not into one of `starts`: tokenizers in
    the manner of SentencePiece may take a whole text for a word, and mark the beginnings of its words.
    """
    word: list[Piece] = []
    for spelled, group in groupby(ids, key=byte_of.__contains__):
        if spelled:
            word += bytes(byte_of[number] for number in group).decode()
            continue
        for number in group:
            if number == unknown or number in starts:
                yield tuple(word)
                word = []
            if number != unknown:
                word.append(number)
    yield tuple(word)


def _expanded(token: int, vocab_size: int, pieces: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the old tokens that a token stands for; one beyond all known ones raises IndexError."""
    return (token,) if token < vocab_size else pieces[token - vocab_size]
