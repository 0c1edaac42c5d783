"""The texts of an adaptation: those of the new languages, checked and as tokens, and what old ones are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sprachbund.adaptation.newcomer import check_script, check_size
from sprachbund.corpora.bad_lines import skipped_warning
from sprachbund.corpora.documents import Documents, SplitDocuments
from sprachbund.corpora.packing import Packed, pack_cached
from sprachbund.corpora.splits import split_documents
from sprachbund.errors import InputError
from sprachbund.evaluation.perplexity import TestText, test_text
from sprachbund.modeling.base import tokenize_with, tokenizer_fingerprint
from sprachbund.progress import track
from sprachbund.recipe import Adaptation, Source

NEAREST_TOKENS = 4096  # of dev text on which the groups are compared


@dataclass(frozen=True)
class NewText:
    """The text of one new language: documents, its training tokens, and what it is scored on before and after."""

    tag: str
    documents: SplitDocuments
    packed: Packed
    dev: TestText
    test: TestText
    warnings: list[str]

    @property
    def stream(self) -> np.ndarray:
        """Return the training tokens, (N,)."""
        return self.packed.tokens

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes of the training text per token."""
        return self.packed.num_bytes / self.packed.num_tokens


def read_new(tag: str, source: Source, settings: Adaptation, tokenizer: Any) -> NewText:
    """Return a new language's text under a tokenizer.

    Its `warnings` are what was odd. Raises InputError, naming the language, where the corpus is missing, damaged,
    empty, in another script than the tag says, or too short to train or to score on.
    """
    try:
        documents = split_documents(source, settings.splits, seed=settings.seed)
    except InputError as error:
        raise InputError(f"--language {tag}: {error}") from None
    tokenize, mark = tokenize_with(tokenizer), tokenizer_fingerprint(tokenizer)
    packed = pack_cached(documents.train, mark, tokenize, tokenizer.eos_token_id, name=f"{tag} (train)")
    name = f"--language {tag}"
    script = check_script(tag, documents.train, force=settings.force)
    test = scored_text(getattr(documents, settings.evaluate.split), settings, tokenizer, name=name)
    size = check_size(
        tag,
        train_tokens=packed.num_tokens,
        scored_tokens=len(test.tokens),
        block_size=settings.block_size,
        burn_in=settings.evaluate.burn_in,
        tokens_per_step=settings.tokens_per_step,
    )
    dev = scored_text(documents.dev, settings, tokenizer, name=f"{name}: the dev split", most=NEAREST_TOKENS)
    bad = skipped_warning(documents.skipped, documents.documents)
    bad = f"{tag}: {bad}" if bad else None
    return NewText(tag, documents, packed, dev, test, [said for said in (script, size, bad) if said])


def scored_text(
    documents: Documents, settings: Adaptation, tokenizer: Any, *, name: str, most: int | None = None
) -> TestText:
    """Return the text to score of some documents; raises InputError, beginning with `name`, where it is too short."""
    text = test_text(
        documents,
        tokenize_with(tokenizer),
        separator=tokenizer.eos_token_id,
        max_tokens=most or settings.evaluate.tokens,
    )
    if len(text.tokens) < settings.evaluate.burn_in + 2:
        raise InputError(
            f"{name}: {len(text.tokens)} tokens to score on are too few for a burn-in of {settings.evaluate.burn_in}; "
            "give more text"
        )
    return text


def retokenised(text: TestText, documents: Documents, tokenizer: Any) -> TestText:
    """Return the documents that a text was made of, the first of `documents`, as tokens of another tokenizer."""
    ends = np.cumsum([len(document.encode()) for document in documents])
    count = int(np.searchsorted(ends, text.num_bytes)) + 1
    separator = tokenizer.eos_token_id
    return test_text(documents[:count], tokenize_with(tokenizer), separator=separator, max_tokens=None)


def read_protected(settings: Adaptation, tokenizer: Any) -> tuple[dict[str, TestText], dict[str, float]]:
    """Return the texts that the languages the model has are measured on, and their bytes per token.

    Raises InputError, naming the language, where a corpus is gone or too short.
    """
    texts, bytes_per_token = {}, {}
    with track("read corpora", len(settings.protect)) as advance:
        for tag, source in settings.protect.items():
            try:
                documents = getattr(
                    split_documents(source, settings.splits, seed=settings.seed), settings.evaluate.split
                )
            except InputError as error:
                raise InputError(f"the protected language {tag}: {error}") from None
            text = scored_text(documents, settings, tokenizer, name=f"the protected language {tag}")
            texts[tag], bytes_per_token[tag] = text, text.num_bytes / len(text.tokens)
            advance(1, tag)
    return texts, bytes_per_token
