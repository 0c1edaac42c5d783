"""One adaptation under way: the model, the texts and the vocabularies that its stages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.adaptation.vocabulary import FILE as EXTENSION_FILE
from sprachbund.adaptation.vocabulary import Extension, extend_tokenizer, load_extension
from sprachbund.corpora.documents import Joined
from sprachbund.corpora.packing import Packed, pack_cached
from sprachbund.evaluation import TestText
from sprachbund.files import EXTENSIONS
from sprachbund.grouping.solve import solve
from sprachbund.modeling.base import device, load_model, load_tokenizer, tokenize_with, tokenizer_fingerprint
from sprachbund.progress import say
from sprachbund.recipe import Adaptation
from sprachbund.run.directory import Adapting
from sprachbund.run.newcomers import NewText, read_new, read_protected, retokenised
from sprachbund.similarity import similarity_of
from sprachbund.similarity.counts import count_tokens


@dataclass
class Work:
    """An adaptation's folder, and what its stages share: each thing is read once, when it is first needed."""

    place: Adapting
    source: Path
    config: Any

    @property
    def settings(self) -> Adaptation:
        """Return what is asked for."""
        return self.place.settings

    @cached_property
    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return load_tokenizer(self.source)

    @cached_property
    def protected(self) -> tuple[dict[str, TestText], dict[str, float]]:
        """Return the texts of the languages that the model has, and their bytes per token."""
        return read_protected(self.settings, self.tokenizer)

    @cached_property
    def texts(self) -> dict[str, NewText]:
        """Return the texts of the new languages."""
        found = {}
        for tag, source in self.settings.languages.items():
            found[tag] = read_new(tag, source, self.settings, self.tokenizer)
        return found

    @property
    def steps(self) -> Path:
        """Return the folder of what is trained by now, of these settings and texts alone."""
        return self.place.path(f"steps-{self.place.fingerprints['train']}")

    def extension(self, members: Sequence[str]) -> Extension | None:
        """Return the tokens that a path has beyond the vocabulary; None where it has none."""
        if self.settings.extend_vocab is None:
            return None
        folder = self.steps / EXTENSIONS / members[0]
        if not (folder / EXTENSION_FILE).is_file():
            documents = Joined([self.texts[tag].documents.train for tag in members])
            made = extend_tokenizer(
                self.tokenizer, documents, self.settings.extend_vocab, vocab_size=self.config.vocab_size
            )
            if made.shortfall is not None:
                say(f"{', '.join(members)}: {made.shortfall}")
            folder.mkdir(parents=True, exist_ok=True)
            made.save(folder)
        return load_extension(folder)

    def repacked(self, tag: str, extension: Extension) -> Packed:
        """Return a language's training text as tokens of the extended vocabulary."""
        own = extension.tokenizer
        documents = self.texts[tag].documents.train
        mark = tokenizer_fingerprint(own)
        return pack_cached(documents, mark, tokenize_with(own), self.tokenizer.eos_token_id, name=f"{tag} (train)")

    def load(self, folder: Path | None = None) -> Any:
        """Load the source, or another model, ready to be scored."""
        return load_model(folder or self.source, dtype="float32").to(device()).eval()

    def extended_test(self, tag: str) -> TestText:
        """Return what a new language is scored on, as tokens of its path's extended vocabulary."""
        members = next(members for members in shared_paths(self) if tag in members)
        extension = load_extension(self.place.path("model") / EXTENSIONS / members[0])
        documents = getattr(self.texts[tag].documents, self.settings.evaluate.split)
        return retokenised(self.texts[tag].test, documents, extension.tokenizer)

    def marks(self) -> list[Any]:
        """Return what tells whether the model or a text has changed."""
        files = sorted([*self.source.glob("*.safetensors"), self.source / "config.json"])
        return [
            [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
            {tag: text.packed.digest for tag, text in self.texts.items()},
        ]


def shared_paths(work: Work) -> list[list[str]]:
    """Return which new languages share a path: each has its own, or similar ones have one together."""
    tags, count = list(work.texts), work.settings.together
    if count is None or count >= len(tags):
        return [[tag] for tag in tags]
    if count == 1:
        return [tags]
    signals = {tag: count_tokens(np.asarray(work.texts[tag].stream)) for tag in tags}
    alike = similarity_of(signals, source="lexical", center=True)
    grouping = solve(alike, num_groups=count, objective="mean", seed=work.settings.seed).grouping
    return [list(members) for members in grouping.groups]
