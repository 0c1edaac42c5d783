"""The first stages: split documents, a tokenizer, packed token streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sprachbund.corpora.bad_lines import skipped_warning
from sprachbund.corpora.documents import Documents, SplitDocuments, total_bytes
from sprachbund.corpora.kept_splits import source_state as source_state
from sprachbund.corpora.mixture import schedule, shares
from sprachbund.corpora.overlap import shared_documents, shared_warning
from sprachbund.corpora.packing import Packed, load_packed, pack_cached
from sprachbund.corpora.shards import Mark, check_same_files, marks_of
from sprachbund.corpora.splits import split_documents
from sprachbund.errors import InputError
from sprachbund.files import write_text
from sprachbund.progress import say, track
from sprachbund.recipe import Recipe
from sprachbund.run.directory import Run, read_json

if TYPE_CHECKING:
    from sprachbund.evaluation.perplexity import TestText

BYTES_FOR_TOKENIZER = 50_000_000  # of all languages together: more text changes a small vocabulary little


@dataclass(frozen=True)
class Corpora:
    """Every language's text, read once and only when a stage needs it.

    Its files are looked at when the first thing is asked for, and again whenever they have been read: what is computed
    is then of one state of them.
    """

    recipe: Recipe

    @cached_property
    def marks(self) -> dict[str, dict[Path, Mark]]:
        """What the files were when they were first looked at."""
        found = {}
        for tag, source in self.recipe.languages.items():
            with _named(tag):
                found[tag] = marks_of(source)
        return found

    @cached_property
    def documents(self) -> dict[str, SplitDocuments]:
        """Split documents per language tag; raises InputError naming the language whose corpus is wrong."""
        found, marks = {}, self.marks
        with track("read corpora", len(self.recipe.languages)) as advance:
            for tag, source in self.recipe.languages.items():
                note = _megabytes(lambda done, tag=tag: advance(0, f"{tag}: {done:,} MB of text"))  # type: ignore[misc]
                with _named(tag):
                    found[tag] = split_documents(source, self.recipe.splits, seed=self.recipe.seed, note=note)
                    check_same_files(marks[tag], source)
                advance(1, tag)
        return found

    @cached_property
    def states(self) -> dict[str, Any]:
        """What the corpora are computed from, for fingerprints."""
        found, marks = {}, self.marks
        for tag, source in self.recipe.languages.items():
            with _named(tag):
                found[tag] = source_state(source)
                check_same_files(marks[tag], source)
        return found


@contextmanager
def _named(tag: str) -> Iterator[None]:
    """Begin what is said of a wrong corpus with its place in the recipe."""
    try:
        yield
    except InputError as error:
        raise InputError(f"languages.{tag}: {error}") from None


def _megabytes(show: Callable[[int], None]) -> Callable[[int], None]:
    """Return what takes bytes and shows the megabytes so far, each time that there are more."""
    done = shown = 0

    def note(num_bytes: int) -> None:
        nonlocal done, shown
        done += num_bytes
        if done // 1_000_000 > shown:
            shown = done // 1_000_000
            show(shown)

    return note


def load_or_train_tokenizer(corpora: Corpora) -> Any:
    """Return the base's tokenizer: loaded, or for a base from scratch, if none is given, trained on the train texts."""
    from sprachbund.modeling.base import load_tokenizer, train_tokenizer

    base = corpora.recipe.base
    if base.scratch is None:
        return load_tokenizer(base.path or "", revision=base.revision, trust_remote_code=base.trust_remote_code)
    if base.scratch.tokenizer is not None:
        return load_tokenizer(base.scratch.tokenizer)
    documents = {tag: split.train for tag, split in corpora.documents.items()}
    texts = _tokenizer_texts(documents, corpora.recipe, BYTES_FOR_TOKENIZER)
    return train_tokenizer(texts, vocab_size=base.scratch.vocab_size)


def make_tokenizer(run: Run, corpora: Corpora) -> Any:
    """Return the base's tokenizer; that of a base from scratch is kept in RUN/tokenizer."""
    from sprachbund.modeling.base import load_tokenizer, tokenizer_fingerprint

    base, folder = run.recipe.base, run.path("tokenizer")
    if base.scratch is None:
        run.fingerprints["tokenizer"] = f"{base.path}@{base.revision}"
        return load_or_train_tokenizer(corpora)

    def work() -> Mapping[str, Any]:
        tokenizer = load_or_train_tokenizer(corpora)
        tokenizer.save_pretrained(folder)
        return {"vocab_size": len(tokenizer)}

    inputs: list[Any]
    if base.scratch.tokenizer is not None:
        inputs = [tokenizer_fingerprint(load_tokenizer(base.scratch.tokenizer))]
    else:
        inputs = [
            base.scratch.vocab_size,
            corpora.states,
            run.recipe.splits.model_dump(),
            run.recipe.mixture.model_dump(),
            run.recipe.seed,
        ]
    run.stage("tokenizer", inputs, ["tokenizer/tokenizer.json"], work)
    return load_tokenizer(folder)


def _tokenizer_texts(documents: Mapping[str, Documents], recipe: Recipe, budget: int) -> Iterator[str]:
    """Yield train documents in the mixture's proportions, at most `budget` bytes of them and each at most once."""
    num_bytes = {tag: total_bytes(texts) for tag, texts in documents.items()}
    share = shares(num_bytes, recipe.mixture, budget_bytes=float(sum(num_bytes.values())))
    scale = min(budget, min(num_bytes[tag] / share[tag] for tag in share))
    for tag, texts in documents.items():
        left = scale * share[tag]
        for text in texts:
            if left <= 0:
                break
            yield text
            left -= len(text.encode())


@dataclass(frozen=True)
class PackedCorpora:
    """Token streams of the train split by language tag."""

    train: dict[str, Packed]

    @property
    def digest(self) -> str:
        """A digest of all train streams."""
        return blake2b("".join(p.digest for p in self.train.values()).encode(), digest_size=12).hexdigest()


def pack_documents(corpora: Corpora, tokenizer: Any) -> dict[str, Packed]:
    """Tokenise and pack every language's train split (cached by content), with its progress in megabytes of text."""
    from sprachbund.modeling.base import tokenize_with, tokenizer_fingerprint

    mark, tokenize = tokenizer_fingerprint(tokenizer), tokenize_with(tokenizer)
    sizes = {tag: max(total_bytes(documents.train) // 1_000_000, 1) for tag, documents in corpora.documents.items()}
    packed: dict[str, Packed] = {}
    with track("tokenise (MB)", sum(sizes.values())) as advance:
        for tag, documents in corpora.documents.items():
            shown = 0

            def show(done: int, tag: str = tag) -> None:
                nonlocal shown
                advance(min(done, sizes[tag]) - shown, tag)
                shown = min(done, sizes[tag])

            packed[tag] = pack_cached(
                documents.train,
                mark,
                tokenize,
                tokenizer.eos_token_id,
                name=f"{tag} (train)",
                note=_megabytes(show),
            )
            show(sizes[tag])
    return packed


def pack_corpora(run: Run, corpora: Corpora, tokenizer: Any) -> PackedCorpora:
    """Return every language's train split as tokens, and write what they are to RUN/corpora.json.

    Raises InputError where a train split does not fill a block or a test split is too short to score: now, and not
    after hours of training.
    """
    from sprachbund.modeling.base import tokenizer_fingerprint

    packed: dict[str, Packed] = {}

    def work() -> Mapping[str, Any]:
        packed.update(pack_documents(corpora, tokenizer))
        for tag, stream in packed.items():
            stream.num_blocks(run.recipe.train.block_size)
            read_test_text(corpora, tag, tokenizer, most=run.recipe.evaluate.burn_in + 2)
        facts = _facts(packed, corpora.documents)
        write_text(run.path("corpora.json"), json.dumps(facts, indent=1) + "\n")
        return {"train_tokens": sum(p.num_tokens for p in packed.values())}

    recipe = run.recipe
    inputs: list[Any] = [corpora.states, tokenizer_fingerprint(tokenizer), recipe.splits.model_dump()]
    inputs += [recipe.train.block_size, recipe.seed, recipe.evaluate.burn_in]
    run.stage("corpora", inputs, ["corpora.json"], work)
    if not packed:  # the stage was skipped: the streams are in the cache, unless that was emptied
        packed.update(_load_packed(run) or {})
    if any(tag not in packed for tag in recipe.languages):
        packed.update(pack_documents(corpora, tokenizer))
    return PackedCorpora({tag: packed[tag] for tag in recipe.languages})


def _facts(packed: Mapping[str, Packed], documents: Mapping[str, SplitDocuments]) -> dict[str, dict[str, Any]]:
    """Return what corpora.json says of every language; what its user should look at is said at once as well."""
    shared = shared_documents({tag: split.all_documents() for tag, split in documents.items()})
    facts: dict[str, dict[str, Any]] = {}
    for tag, stream in packed.items():
        split = documents[tag]
        for warning in (skipped_warning(split.skipped, split.documents), shared_warning(shared[tag])):
            if warning:
                say(f"languages.{tag}: {warning}")
        facts[tag] = {
            "documents": stream.num_documents,
            "bytes": stream.num_bytes,
            "tokens": stream.num_tokens,
            "sha256": stream.digest,
            "dev_documents": len(split.dev),
            "test_documents": len(split.test),
            "skipped": split.skipped,
            "shared": shared[tag],
            "file": str(stream.path),
        }
    return facts


def _load_packed(run: Run) -> dict[str, Packed]:
    """Return the streams that corpora.json names, as far as they are still there and whole."""
    found = {}
    for tag, facts in read_json(run.path("corpora.json")).items():
        with suppress(InputError):
            packed = load_packed(Path(facts["file"]), name=f"{tag} (train)")
            if packed.digest == facts["sha256"]:
                found[tag] = packed
    return found


def read_test_text(corpora: Corpora, tag: str, tokenizer: Any, *, most: int | None = None) -> TestText:
    """Return the text that one language is scored on, its beginning of `most` tokens where that will do.

    Raises InputError where it is too short to score.
    """
    from sprachbund.evaluation.perplexity import test_text
    from sprachbund.modeling.base import tokenize_with

    settings, split = corpora.recipe.evaluate, corpora.recipe.evaluate.split
    text = test_text(
        getattr(corpora.documents[tag], split),
        tokenize_with(tokenizer),
        separator=tokenizer.eos_token_id,
        max_tokens=most or settings.tokens,
    )
    if len(text.tokens) < settings.burn_in + 2:
        raise InputError(
            f"languages.{tag}: the {split} split has {len(text.tokens)} tokens, too few for evaluate.burn_in = "
            f"{settings.burn_in}; give it more text or a larger splits.{split}"
        )
    return text


def batch_schedule(
    run: Run, packed: PackedCorpora, *, num_steps: int, batch_size: int, groups: Mapping[str, int] | None
) -> np.ndarray:
    """Return which language each sequence of each step comes from, (num_steps, batch_size), by the recipe's mixture."""
    recipe = run.recipe
    num_bytes = {tag: p.num_bytes for tag, p in packed.train.items()}
    per_token = sum(num_bytes.values()) / sum(p.num_tokens for p in packed.train.values())
    budget = num_steps * batch_size * recipe.train.block_size * per_token
    share = shares(num_bytes, recipe.mixture, groups=groups, budget_bytes=budget)
    return schedule(share, num_steps=num_steps, batch_size=batch_size, seed=recipe.seed, groups=groups)
