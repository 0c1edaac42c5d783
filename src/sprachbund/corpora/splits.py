"""Cut a corpus into train, dev and test so that no line of text is in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise

from sprachbund.corpora.sources import SPLITS, has_splits, read_documents
from sprachbund.errors import InputError
from sprachbund.recipe import Source, Splits

STRETCH_BYTES = 4000  # of `keep`: about a thousand tokens, so that what is kept is still running text
LEAST_STRETCHES = 8  # a small share of a small corpus comes in shorter stretches, or it would be all from one place


@dataclass(frozen=True)
class SplitDocuments:
    """The documents of one language.

    `documents` is the number read, before anything was removed; `duplicates` how many of these equal an earlier one;
    `removed_lines` how many lines dev and test lost because an earlier split holds them too; `skipped` what was not
    read, by reason: empty documents, and bad lines where the source's `on_bad_line` is skip.
    """

    train: list[str]
    dev: list[str]
    test: list[str]
    removed_lines: int
    duplicates: int
    documents: int
    skipped: dict[str, int] = field(default_factory=dict)

    def all_documents(self) -> Iterator[str]:
        """Yield the documents of train, dev and test."""
        for split in SPLITS:
            yield from getattr(self, split)


def split_documents(source: Source, splits: Splits, *, seed: int) -> SplitDocuments:
    """Return the documents of `source` in three splits that share no line.

    Why by line: web text repeats menus and licences, and verse or sentence corpora repeat whole sentences; a model is
    not tested on what it was trained on. A path with {split} brings the user's splits; otherwise a hash of its text
    (and the seed) sends each document to a split, so that a document stays where it is when the corpus grows, and
    duplicates fall in one split. A line of train is removed from dev and test, a line of dev from test; documents that
    become empty vanish. Exact duplicates stay in train, where how often a text occurs is the user's choice (the audit
    warns); in dev and test each counts once. `source.keep` thins train out at the end, so that dev and test are those
    of the whole corpus.

    Raises:
        InputError: a split ends up empty.
    """
    skipped: Counter[str] = Counter()
    if has_splits(source):
        cut = {split: list(read_documents(source, split=split, seed=seed, skipped=skipped)) for split in SPLITS}
    else:
        cut = {split: [] for split in SPLITS}
        for document in read_documents(source, seed=seed, skipped=skipped):
            cut[_split_of(document, splits, seed)].append(document)
    read = [document for documents in cut.values() for document in documents]
    seen = lines_of(cut["train"])
    dev, removed_dev = _without(cut["dev"], seen)
    test, removed_test = _without(cut["test"], seen | lines_of(cut["dev"]))
    result = SplitDocuments(
        train=thinned(cut["train"], source.keep),
        dev=dev,
        test=test,
        removed_lines=removed_dev + removed_test,
        duplicates=len(read) - len(set(read)),
        documents=len(read),
        skipped=dict(skipped),
    )
    _check(result, source)
    return result


def thinned(documents: Sequence[str], share: float | None) -> list[str]:
    """Return about a share of the bytes of `documents`, in their order: stretches spread evenly over all of them.

    Why stretches: a language of which little was written down has a few texts, not every tenth verse of all; and why
    spread: the first tenth of a corpus may be one author's. A stretch is as many whole documents as it takes to fill
    it; one is kept whenever that brings the share kept so far nearer to `share`, hence the same ones in every run.
    There is always at least one. None and 1 keep everything.
    """
    if share is None or share == 1 or not documents:
        return list(documents)
    num_bytes = [len(document.encode("utf-8")) for document in documents]
    size = min(STRETCH_BYTES, share * sum(num_bytes) / LEAST_STRETCHES)
    starts, filled = [0], 0
    for i, length in enumerate(num_bytes):
        if filled >= size:
            starts.append(i)
            filled = 0
        filled += length
    stretches = list(pairwise([*starts, len(documents)]))
    kept: list[str] = []
    owed = 0.0  # bytes that are still to be kept of what has been passed
    for start, end in stretches:
        length = sum(num_bytes[start:end])
        owed += share * length
        if owed >= length / 2:
            kept += documents[start:end]
            owed -= length
    if not kept:
        start, end = min(stretches, key=lambda stretch: sum(num_bytes[slice(*stretch)]))
        kept = list(documents[start:end])
    return kept


def lines_of(documents: Iterable[str]) -> set[str]:
    """Return the different lines of all documents, stripped, without empty ones."""
    return {line.strip() for document in documents for line in document.splitlines()} - {""}


def _split_of(document: str, splits: Splits, seed: int) -> str:
    digest = blake2b(document.encode("utf-8"), digest_size=8, salt=seed.to_bytes(16, "little")).digest()
    point = int.from_bytes(digest, "little") / 2**64
    if point < splits.test:
        return "test"
    return "dev" if point < splits.test + splits.dev else "train"


def _without(documents: list[str], seen: set[str]) -> tuple[list[str], int]:
    """Return the documents, each once, without the lines in `seen`, and how many lines that removed."""
    removed = 0
    kept: dict[str, None] = {}
    for document in documents:
        lines = document.splitlines()
        own = [line for line in lines if line.strip() not in seen]
        removed += len(lines) - len(own)
        text = document if len(own) == len(lines) else "\n".join(own).strip()
        if text:
            kept[text] = None
    return list(kept), removed


def _check(result: SplitDocuments, source: Source) -> None:
    for split in SPLITS:
        if not getattr(result, split):
            where = source.file or source.hub or f"cldr {source.cldr}"
            advice = (
                f"give a {split} file with text of its own"
                if has_splits(source)
                else "give more documents, or other shares under splits, or your own files with {split} in the path"
            )
            raise InputError(
                f"{where}: the {split} split is empty ({result.documents} documents were read, {result.removed_lines} "
                f"lines removed from dev and test as repetitions); {advice}."
            )
