"""Cut a corpus into train, dev and test so that no line of text is in two of them.

A corpus is read once, and what is read goes to disk where it is much (`Collector`). In memory are, of every document, a
hash of eight bytes, and another of every line of dev and test: which of these lines train has is seen in a second pass,
over what was stored.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np

from sprachbund.corpora.cache import working_folder
from sprachbund.corpora.documents import (
    Collector,
    Documents,
    Hashes,
    SplitDocuments,
    byte_sizes,
    different_hashes,
    discard,
)
from sprachbund.corpora.kept_splits import keep_splits, load_splits, splits_key
from sprachbund.corpora.shards import SPLITS, check_same_files, has_splits, marks_of
from sprachbund.corpora.sources import read_documents
from sprachbund.errors import InputError
from sprachbund.recipe import Source, Splits

STRETCH_BYTES = 4000  # of `keep`: about a thousand tokens, so that what is kept is still running text
LEAST_STRETCHES = 8  # a small share of a small corpus comes in shorter stretches, or it would be all from one place
HASHES_AT_ONCE = 1 << 16

Note = Callable[[int], None]


def split_documents(source: Source, splits: Splits, *, seed: int, note: Note | None = None) -> SplitDocuments:
    """Return the documents of `source` in three splits that share no line.

    Why by line: web text repeats menus and licences, and verse or sentence corpora repeat whole sentences; a model is
    not tested on what it was trained on. A path with {split} brings the user's splits; otherwise a hash of its text
    (and the seed) sends each document to a split, so that a document stays where it is when the corpus grows, and
    duplicates fall in one split. A line of train is removed from dev and test, a line of dev from test; documents that
    become empty vanish. Exact duplicates stay in train, where how often a text occurs is the user's choice (the audit
    warns); in dev and test each counts once. `source.keep` thins train out at the end, so that dev and test are those
    of the whole corpus. Lines and documents are told apart by 64-bit hashes.

    Large corpora from files are kept, cut, in the cache, under what they were made of (`kept_splits`). `note` is told
    the bytes of text that are read, now and then.

    Raises:
        InputError: a split ends up empty, or a file changes meanwhile.
    """
    marks = marks_of(source)
    key = splits_key(source, splits, seed)
    if (kept := load_splits(key)) is not None:
        return kept
    folder = working_folder()
    result = _cut(source, splits, seed, folder, note)
    check_same_files(marks, source)  # since the key was made of them
    return keep_splits(result, folder, key)


def _cut(source: Source, splits: Splits, seed: int, folder: Path, note: Note | None) -> SplitDocuments:
    """Read a source once and cut it; what is large is written to `folder`."""
    skipped: Counter[str] = Counter()
    read = {split: Collector(folder / f"{split}.read") for split in SPLITS}
    different = array("q")
    noted = 0
    for split, document in _assigned(source, splits, seed, skipped):
        read[split].add(document)
        different.append(hash(document))
        if note is not None and len(different) % 1024 == 0:
            total = sum(collector.num_bytes for collector in read.values())
            note(total - noted)
            noted = total
    cut = {split: collector.finish() for split, collector in read.items()}
    num_documents = len(different)
    duplicates = num_documents - len(different_hashes(different))
    seen_by_dev, seen_by_test = _seen(cut)
    dev, removed_dev = _without(cut["dev"], seen_by_dev, Collector(folder / "dev"))
    test, removed_test = _without(cut["test"], seen_by_test, Collector(folder / "test"))
    for split in ("dev", "test"):
        discard(cut[split])
    result = SplitDocuments(
        train=_thinned(cut["train"], source.keep, Collector(folder / "train")),
        dev=dev,
        test=test,
        removed_lines=removed_dev + removed_test,
        duplicates=duplicates,
        documents=num_documents,
        skipped=dict(skipped),
    )
    _check(result, source)
    return result


def _assigned(source: Source, splits: Splits, seed: int, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield every document with its split."""
    if has_splits(source):
        for split in SPLITS:
            for document in read_documents(source, split=split, seed=seed, skipped=skipped):
                yield split, document
        return
    for document in read_documents(source, seed=seed, skipped=skipped):
        yield _split_of(document, splits, seed), document


def _thinned(documents: Documents, share: float | None, into: Collector) -> Documents:
    if share is None or share == 1 or not documents:
        return documents
    for document in _in_stretches(documents, share):
        into.add(document)
    discard(documents)
    return into.finish()


def thinned(documents: Sequence[str], share: float | None) -> list[str]:
    """Return about a share of the bytes of `documents`, in their order: stretches spread evenly over all of them.

    Why stretches: a language of which little was written down has a few texts, not every tenth verse of all; and why
    spread: the first tenth of a corpus may be one author's. A stretch is as many whole documents as it takes to fill
    it; one is kept whenever that brings the share kept so far nearer to `share`, hence the same ones in every run.
    There is always at least one. None and 1 keep everything.
    """
    if share is None or share == 1 or not documents:
        return list(documents)
    return list(_in_stretches(documents, share))


def _in_stretches(documents: Sequence[str], share: float) -> Iterator[str]:
    """Yield the documents of `thinned` in two passes: their sizes say which are kept."""
    kept = iter(_kept_stretches(byte_sizes(documents), share))
    start, end = next(kept)
    for number, document in enumerate(documents):
        if number == end:
            start, end = next(kept, (len(documents), len(documents) + 1))
        if number >= start:
            yield document


def _kept_stretches(num_bytes: Sequence[int], share: float) -> list[tuple[int, int]]:
    """Return the (start, end) of the stretches that are kept, of documents of these sizes."""
    size = min(STRETCH_BYTES, share * sum(num_bytes) / LEAST_STRETCHES)
    starts, filled = [0], 0
    for i, length in enumerate(num_bytes):
        if filled >= size:
            starts.append(i)
            filled = 0
        filled += length
    stretches = list(pairwise([*starts, len(num_bytes)]))
    kept: list[tuple[int, int]] = []
    owed = 0.0  # bytes that are still to be kept of what has been passed
    for start, end in stretches:
        length = sum(num_bytes[start:end])
        owed += share * length
        if owed >= length / 2:
            kept.append((start, end))
            owed -= length
    return kept or [min(stretches, key=lambda stretch: sum(num_bytes[slice(*stretch)]))]


def lines_of(documents: Iterable[str]) -> set[str]:
    """Return the different lines of all documents, stripped, without empty ones."""
    return {line.strip() for document in documents for line in document.splitlines()} - {""}


def _line_hashes(documents: Iterable[str]) -> Iterator[array[int]]:
    """Yield the hashes of all lines that are not empty, stripped, in pieces."""
    piece = array("q")
    for document in documents:
        piece.extend(hash(text) for line in document.splitlines() if (text := line.strip()))
        if len(piece) >= HASHES_AT_ONCE:
            yield piece
            piece = array("q")
    yield piece


def _seen(cut: dict[str, Documents]) -> tuple[set[int], set[int]]:
    """Return the hashes of the lines of dev that train has, and of those of test that train or dev has."""
    of_split: dict[str, Hashes] = {}
    for split in ("dev", "test"):
        hashes = array("q")
        for piece in _line_hashes(cut[split]):
            hashes.extend(piece)
        of_split[split] = different_hashes(hashes)
    held_out = np.union1d(of_split["dev"], of_split["test"])
    if not len(held_out):
        return set(), set()
    in_train = np.zeros(len(held_out), dtype=bool)
    for piece in _line_hashes(cut["train"]):
        found = np.frombuffer(piece, dtype=np.int64)
        places = np.minimum(np.searchsorted(held_out, found), len(held_out) - 1)
        in_train[places[held_out[places] == found]] = True
    of_train = held_out[in_train]
    before_test = np.union1d(of_train, of_split["dev"])
    by_dev = np.intersect1d(of_train, of_split["dev"], assume_unique=True)
    return set(by_dev.tolist()), set(np.intersect1d(before_test, of_split["test"], assume_unique=True).tolist())


def _split_of(document: str, splits: Splits, seed: int) -> str:
    digest = blake2b(document.encode("utf-8"), digest_size=8, salt=seed.to_bytes(16, "little")).digest()
    point = int.from_bytes(digest, "little") / 2**64
    if point < splits.test:
        return "test"
    return "dev" if point < splits.test + splits.dev else "train"


def _without(documents: Documents, seen: set[int], into: Collector) -> tuple[Documents, int]:
    """Return the documents, each once, without the lines whose hashes are `seen`, and how many lines that removed."""
    removed = 0
    kept: set[int] = set()
    for document in documents:
        lines = document.splitlines()
        own = [line for line in lines if hash(line.strip()) not in seen]
        removed += len(lines) - len(own)
        text = document if len(own) == len(lines) else "\n".join(own).strip()
        if text and hash(text) not in kept:
            kept.add(hash(text))
            into.add(text)
    return into.finish(), removed


def _check(result: SplitDocuments, source: Source) -> None:
    for split in SPLITS:
        if not getattr(result, split):
            where = ", ".join(source.patterns()) or source.hub or f"cldr {source.cldr}"
            advice = (
                f"give a {split} file with text of its own"
                if has_splits(source)
                else "give more documents, or other shares under splits, or your own files with {split} in the path"
            )
            raise InputError(
                f"{where}: the {split} split is empty ({result.documents} documents were read, {result.removed_lines} "
                f"lines removed from dev and test as repetitions); {advice}."
            )
