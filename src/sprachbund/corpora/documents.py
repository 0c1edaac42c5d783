"""Documents that are read again and again and need not fit in memory.

Few are a list. Many lie in a file of blocks, each of about a megabyte of text and compressed on its own, so that the
documents can be gone through in order, and one of them found, with one block in memory. A block is, for every document,
four bytes with the length of its UTF-8 and then these bytes.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sprachbund.corpora.shards import SPLITS
from sprachbund.errors import SprachbundError

IN_MEMORY_BYTES = 1 << 20  # of text; what is more goes to disk. A thousand languages have three such parts each
BLOCK_BYTES = 1 << 20
LEVEL = 1  # of zstd: about a third of the size, faster than the disk

Documents = Sequence[str]
Hashes = NDArray[np.int64]  # sorted, each once


class Stored(Sequence[str]):
    """Documents in a file, in their order: `len`, iteration and, block by block, access by number.

    `num_bytes` counts their UTF-8, `num_characters` their code points. Iterating twice reads the file twice; a file
    that is gone or damaged by then raises SprachbundError. A slice is a list.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Take the file and what `Collector` says of it."""
        self.path = path
        self.facts = facts
        self.num_bytes, self.num_characters = int(facts["num_bytes"]), int(facts["num_characters"])
        self._ends = list(accumulate(int(count) for _, count in facts["blocks"]))  # number of the block's last, plus 1
        self._places = [0, *accumulate(int(size) for size, _ in facts["blocks"])]
        self._held: tuple[int, list[str]] = (-1, [])

    @property
    def sound(self) -> bool:
        """Is the file there, and as long as it should be?"""
        return self.path.is_file() and self.path.stat().st_size == self._places[-1]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self._ends)):
            yield from self._block(number)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step > 0 and start == 0:
                return list(islice(self, 0, stop, step))
            return [self[number] for number in range(start, stop, step)]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"document {place} of {len(self)}")
        block = bisect_right(self._ends, number)
        if self._held[0] != block:
            self._held = (block, self._block(block))
        return self._held[1][number - (self._ends[block - 1] if block else 0)]

    def _block(self, number: int) -> list[str]:
        import zstandard

        start, end = self._places[number : number + 2]
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = zstandard.ZstdDecompressor().decompress(file.read(end - start))
            return _unpacked(data)
        except (OSError, zstandard.ZstdError, struct.error, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise SprachbundError(
                f"{self.path}, where the text was kept, cannot be read any more ({said}); remove the folder "
                f"{self.path.parent} if it is there, and start again."
            ) from None


class Collector:
    """Takes documents one by one; `finish` returns them, as a list or, once there are many, `Stored` at `path`."""

    def __init__(self, path: Path) -> None:
        """Take the file, which is written only where it is needed."""
        self.path = path
        self._few: list[str] | None = []
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._blocks: list[tuple[int, int]] = []
        self.num_bytes = self.num_characters = 0

    def add(self, document: str) -> None:
        """Take one more document."""
        data = document.encode("utf-8")
        self.num_bytes += len(data)
        self.num_characters += len(document)
        if self._few is not None:
            self._few.append(document)
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._few is not None and self.num_bytes > IN_MEMORY_BYTES:
            self._few = None
        if self._few is None and self._waiting_bytes >= BLOCK_BYTES:
            self._write()

    def finish(self) -> Documents:
        """Return the documents that were added."""
        if self._few is not None:
            self._waiting = []
            return self._few
        if self._waiting:
            self._write()
        facts = {"num_bytes": self.num_bytes, "num_characters": self.num_characters, "blocks": self._blocks}
        return Stored(self.path, facts)

    def _write(self) -> None:
        import zstandard

        raw = b"".join(part for data in self._waiting for part in (struct.pack("<I", len(data)), data))
        data = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw)
        with self.path.open("ab") as file:
            file.write(data)
        self._blocks.append((len(data), len(self._waiting)))
        self._waiting, self._waiting_bytes = [], 0


class Joined(Sequence[str]):
    """The documents of several parts, one after the other, as one sequence."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        """Take the parts."""
        self.parts = list(parts)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from part

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"document {place} of {len(self)}")
        part = bisect_right(self._ends, number)
        return self.parts[part][number - (self._ends[part - 1] if part else 0)]


@dataclass(frozen=True)
class SplitDocuments:
    """The documents of one language: lists, or `Stored` ones where they are many.

    `documents` is the number read, before anything was removed; `duplicates` how many of these equal an earlier one;
    `removed_lines` how many lines dev and test lost because an earlier split holds them too; `skipped` what was not
    read, by reason: empty documents, and bad lines where the source's `on_bad_line` is skip.
    """

    train: Documents
    dev: Documents
    test: Documents
    removed_lines: int
    duplicates: int
    documents: int
    skipped: dict[str, int] = field(default_factory=dict)

    def all_documents(self) -> Iterator[str]:
        """Yield the documents of train, dev and test."""
        for split in SPLITS:
            yield from getattr(self, split)


def discard(documents: Documents) -> None:
    """Remove the file of documents that nobody needs any more."""
    if isinstance(documents, Stored):
        documents.path.unlink(missing_ok=True)


def total_bytes(documents: Iterable[str]) -> int:
    """Return the bytes of all documents in UTF-8; of stored ones they are known."""
    if isinstance(documents, Stored):
        return documents.num_bytes
    return sum(len(document.encode("utf-8")) for document in documents)


def total_characters(documents: Iterable[str]) -> int:
    """Return the code points of all documents; of stored ones they are known."""
    return documents.num_characters if isinstance(documents, Stored) else sum(map(len, documents))


def batches(documents: Iterable[str], *, most: int, most_bytes: int) -> Iterator[list[str]]:
    """Yield the documents in lists of at most `most`; one ends when it reaches `most_bytes` of UTF-8."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.encode("utf-8"))
        if len(batch) == most or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def byte_sizes(documents: Iterable[str]) -> Sequence[int]:
    """Return the bytes of each document in UTF-8: four bytes for a document, however many there are."""
    return array("I", (len(document.encode("utf-8")) for document in documents))


def different_hashes(hashes: array[int]) -> Hashes:
    """Return the different hashes, sorted; the memory of those that were given is used."""
    found = np.frombuffer(hashes, dtype=np.int64)
    found.sort()
    return found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found


def _unpacked(data: bytes) -> list[str]:
    found, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        found.append(data[place : place + length].decode("utf-8"))
        place += length
    return found
