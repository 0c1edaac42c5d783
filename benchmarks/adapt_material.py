"""The texts and models that every job of benchmarks/adapt.py starts from, read once per process."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from adapt_systems import Setting

from sprachbund.adaptation.vocabulary import Extension, extend_tokenizer
from sprachbund.corpora.cldr import render
from sprachbund.corpora.packing import Packed, pack_cached
from sprachbund.corpora.splits import split_documents
from sprachbund.evaluation import TestText, test_text
from sprachbund.modeling.base import load_model, load_tokenizer, tokenize_with, tokenizer_fingerprint
from sprachbund.recipe import Adaptation, Source
from sprachbund.run.adapt_settings import complete
from sprachbund.run.newcomers import NewText, read_new, read_protected, retokenised

BEFORE = "before.json"
DOMAIN_LINES = 120  # of about 60 to 200 characters
SWITCH_TOKENS = 8192


class Material:
    """Everything that a setting names, read when it is asked for."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tokenizer = load_tokenizer(setting.run / "model")
        self._new: dict[str, NewText] = {}
        self._extended: dict[str, tuple[NewText, Extension]] = {}

    @cached_property
    def settings(self) -> Adaptation:
        """How `sprachbund adapt` would read and score these languages."""
        setting = self.setting
        sources = {tag: Source(file=setting.corpus.replace("{tag}", tag)) for tag in setting.languages}
        return complete(str(setting.run), sources, tokens=setting.tokens, tokens_per_step=setting.tokens_per_step)

    @cached_property
    def before(self) -> dict[str, Any]:
        """What was measured before anything was trained."""
        found: dict[str, Any] = json.loads((self.setting.out / BEFORE).read_text(encoding="utf-8"))
        return found

    def load(self, name: str) -> Any:
        """Return the run's `dense` or `model`."""
        return load_model(self.setting.run / name, dtype="float32").eval()

    def new(self, tag: str) -> NewText:
        """Return a new language's text."""
        if tag not in self._new:
            self._new[tag] = read_new(tag, self.settings.languages[tag], self.settings, self.tokenizer)
        return self._new[tag]

    def extended(self, tag: str) -> tuple[NewText, Extension]:
        """Return the same text under a vocabulary that is extended for it: of dev and test the same documents."""
        if tag not in self._extended:
            plain, vocab_size = self.new(tag), len(self.tokenizer)
            documents = plain.documents
            extension = extend_tokenizer(self.tokenizer, documents.train, self.setting.merges, vocab_size=vocab_size)
            tokenizer = extension.tokenizer
            packed = self._packed(documents.train, tokenizer, tag)
            dev, test = (
                retokenised(text, part, tokenizer)
                for text, part in ((plain.dev, documents.dev), (plain.test, documents.test))
            )
            self._extended[tag] = replace(plain, packed=packed, dev=dev, test=test), extension
        return self._extended[tag]

    def _packed(self, documents: list[str], tokenizer: Any, tag: str) -> Packed:
        mark = tokenizer_fingerprint(tokenizer)
        return pack_cached(documents, mark, tokenize_with(tokenizer), tokenizer.eos_token_id, name=tag)

    @cached_property
    def old(self) -> dict[str, TestText]:
        """The test text of the languages that the model has."""
        evaluate = self.settings.evaluate.model_copy(update={"tokens": self.setting.old_tokens})
        texts, _ = read_protected(self.settings.model_copy(update={"evaluate": evaluate}), self.tokenizer)
        return texts

    @cached_property
    def old_train(self) -> dict[str, Packed]:
        """The training tokens of the languages that the model has: what replay needs, and ours does not."""
        settings = self.settings
        documents = {
            tag: split_documents(source, settings.splits, seed=settings.seed).train
            for tag, source in settings.protect.items()
        }
        return {tag: self._packed(texts, self.tokenizer, tag) for tag, texts in documents.items()}

    @cached_property
    def domain(self) -> dict[str, TestText]:
        """Text of another kind than the gates' counts are of, lists and dates, in the languages that have it."""
        return {
            tag: test_text(
                render(tag, lines=DOMAIN_LINES),
                tokenize_with(self.tokenizer),
                separator=self.tokenizer.eos_token_id,
                max_tokens=self.setting.old_tokens // 2,
            )
            for tag in self.setting.domain
        }

    def switching(self, tag: str) -> tuple[TestText, np.ndarray]:
        """Return text whose sentences are of a new language and an old one in turn, and which tokens are the new's."""
        source = self.settings.protect[self.setting.switch_with]
        settings = self.settings
        others = split_documents(source, settings.splits, seed=settings.seed).test
        tokenize = tokenize_with(self.tokenizer)
        ids: list[int] = []
        is_new: list[bool] = []
        num_bytes = 0
        for pair in zip(self.new(tag).documents.test, others, strict=False):
            for place, sentence in enumerate(pair):
                said = f" {sentence}" if ids else sentence
                (found,) = tokenize([said])
                ids += found
                is_new += [place == 0] * len(found)
                num_bytes += len(said.encode())
            if len(ids) >= SWITCH_TOKENS:
                break
        return TestText(np.array(ids, dtype=np.int64), num_bytes), np.array(is_new)


@cache
def material(setting: Setting) -> Material:
    """Return the material of a setting; a process reads it once."""
    return Material(setting)
