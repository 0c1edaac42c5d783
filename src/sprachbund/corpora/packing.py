"""Tokens of one language as one stream on disk, cut into full blocks: no padding, no token lost."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sprachbund.corpora.cache import cache_folder as cache_folder
from sprachbund.corpora.documents import Stored, batches
from sprachbund.corpora.workers import num_workers, tokenise_in_workers
from sprachbund.errors import InputError, SprachbundError
from sprachbund.files import remove_left, temporary_for
from sprachbund.progress import say

FORMAT_VERSION = 1
DOCUMENTS_AT_ONCE = 1024
BYTES_AT_ONCE = 1 << 20  # of text
TOKENS_AT_ONCE = 1 << 20
LEAST_FOR_WORKERS = 8_000_000  # bytes of text: about four seconds of one core, and workers take half a second to start
COMPARED_DOCUMENTS, COMPARED_BYTES = 64, 1 << 16

Tokenize = Callable[[list[str]], list[list[int]]]
Note = Callable[[int], None]


@dataclass(frozen=True)
class Packed:
    """A corpus as tokens: 1-D unsigned integers, each document followed by the separator.

    `num_bytes` counts the UTF-8 bytes of the documents, without separators; `digest` is the SHA-256 of the stored
    tokens, good for fingerprints; `name` is what errors call the corpus.
    """

    tokens: NDArray[Any]
    num_documents: int
    num_bytes: int
    digest: str
    name: str = "the corpus"
    path: Path | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens, separators included."""
        return len(self.tokens)

    def num_blocks(self, block_size: int) -> int:
        """Return how many blocks of `block_size` tokens cover the corpus.

        Raises:
            InputError: the corpus is shorter than one block.
        """
        if self.num_tokens < block_size:
            raise InputError(
                f"{self.name} has {self.num_tokens} tokens, less than one block of {block_size}; give it more text or "
                "set a smaller block_size."
            )
        return -(-self.num_tokens // block_size)

    def block(self, i: int, block_size: int) -> NDArray[np.int64]:
        """Return block `i`, (block_size,): consecutive cuts, the last one moved back so that it is full.

        Raises:
            IndexError: there is no such block.
        """
        if not 0 <= i < self.num_blocks(block_size):
            raise IndexError(f"block {i} of {self.num_blocks(block_size)}")
        start = min(i * block_size, self.num_tokens - block_size)
        return np.asarray(self.tokens[start : start + block_size], dtype=np.int64)


def pack(
    documents: Iterable[str],
    tokenize: Tokenize,
    *,
    separator: int,
    path: Path,
    name: str = "the corpus",
    note: Note | None = None,
) -> Packed:
    """Tokenise `documents` into `path` (.npy, with a .json of the same name beside it) and return the stream.

    Why on disk: the stream is memory-mapped, so that tokens larger than memory train like few. Ids are
    stored as uint16 if all are below 65536, else as uint32. Both files appear whole or not at all, the .json last.
    Large `Stored` documents are tokenised by several processes (`workers.py`), where `tokenize` has a `definition()`
    of its tokenizer for them; the stream is the same. `note` is told the bytes of text that are done, now and then.

    Raises:
        InputError: there are no documents.
        SprachbundError: a worker process ended before its time.
        ValueError: `path` does not end in .npy, or `tokenize` does not return one list per document.
    """
    if path.suffix != ".npy":
        raise ValueError(f"{path} does not end in .npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    num_documents = num_bytes = num_tokens = highest = 0
    with tempfile.TemporaryFile(dir=path.parent) as wide, _temporary(path) as final:
        for batch, ids in _tokenised(documents, tokenize, separator):
            wide.write(ids.tobytes())  # tofile hides why the disk refused
            batch_bytes = sum(len(document.encode("utf-8")) for document in batch)
            num_documents += len(batch)
            num_bytes += batch_bytes
            num_tokens += len(ids)
            highest = max(highest, int(ids.max()))
            if note is not None:
                note(batch_bytes)
        if num_documents == 0:
            raise InputError(f"{name} has no documents to pack; give it some text.")
        digest = _narrowed(wide, final, num_tokens, np.dtype(np.uint16 if highest < 1 << 16 else np.uint32))
        os.replace(final, path)
    sidecar = {
        "format": FORMAT_VERSION,
        "num_documents": num_documents,
        "num_bytes": num_bytes,
        "num_tokens": num_tokens,
        "sha256": digest,
    }
    with _temporary(path) as text:
        text.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
        os.replace(text, path.with_suffix(".json"))
    return load_packed(path, name=name)


def load_packed(path: Path, *, name: str = "the corpus") -> Packed:
    """Return the stream stored at `path`, memory-mapped, after checking it against its .json.

    Raises:
        InputError: a file is missing or damaged, or the two do not belong together.
    """
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
        sound = (
            sidecar["format"] == FORMAT_VERSION
            and tokens.ndim == 1
            and len(tokens) == sidecar["num_tokens"]
            and _digest(path, tokens) == sidecar["sha256"]
        )
        result = Packed(
            tokens, int(sidecar["num_documents"]), int(sidecar["num_bytes"]), str(sidecar["sha256"]), name, path
        )
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as packed tokens ({type(error).__name__}: {error}); delete it."
        ) from None
    if not sound:
        raise InputError(f"{path} does not fit the digest beside it; delete both files, they are made again.")
    return result


def pack_cached(
    documents: Sequence[str],
    tokenizer_fingerprint: str,
    tokenize: Tokenize,
    separator: int,
    folder: Path | None = None,
    *,
    name: str = "the corpus",
    note: Note | None = None,
) -> Packed:
    """Return `documents` packed, from `folder` (null: `cache_folder()`) where the same was packed there before.

    The key covers the text of every document, the tokenizer's fingerprint, the separator and the format version. What
    is damaged or half written is packed anew.
    """
    key = blake2b(digest_size=16)
    for part in chain((str(FORMAT_VERSION), tokenizer_fingerprint, str(separator)), documents):
        data = part.encode("utf-8")
        key.update(len(data).to_bytes(8, "little"))  # else ["ab", "c"] and ["a", "bc"] would be one corpus
        key.update(data)
    path = (folder or cache_folder()) / f"{key.hexdigest()}.npy"
    try:
        return load_packed(path, name=name)
    except InputError:
        remove_left(path)
    try:
        return pack(documents, tokenize, separator=separator, path=path, name=name, note=note)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write that fails does not say where
        raise


def epoch_order(num_blocks: int, *, seed: int, tag: str, epoch: int) -> NDArray[np.int64]:
    """Return the order of the blocks in one pass over a language, (num_blocks,): the same on every machine and run."""
    key = blake2b(f"epoch/{seed}/{tag}/{epoch}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(key, "little")).permutation(num_blocks).astype(np.int64)


def block_sequence(num_blocks: int, count: int, *, seed: int, tag: str) -> NDArray[np.int64]:
    """Return the first `count` block numbers over successive epochs, (count,): each epoch has every block once."""
    epochs = range(-(-count // num_blocks))
    orders = [epoch_order(num_blocks, seed=seed, tag=tag, epoch=epoch) for epoch in epochs]
    return np.concatenate([np.empty(0, dtype=np.int64), *orders])[:count]


def _flat(batch: list[str], tokenize: Tokenize, separator: int) -> NDArray[np.uint32]:
    lists = tokenize(batch)
    if len(lists) != len(batch):
        raise ValueError(f"tokenize returned {len(lists)} lists for {len(batch)} documents")
    return np.concatenate([np.array([*ids, separator], dtype=np.uint32) for ids in lists])


def _tokenised(
    documents: Iterable[str], tokenize: Tokenize, separator: int
) -> Iterator[tuple[list[str], NDArray[np.uint32]]]:
    """Yield the documents in batches, each with its tokens: by worker processes where that pays."""
    pieces = batches(documents, most=DOCUMENTS_AT_ONCE, most_bytes=BYTES_AT_ONCE)
    workers = num_workers()
    define = getattr(tokenize, "definition", None)
    large = isinstance(documents, Stored) and documents.num_bytes >= LEAST_FOR_WORKERS
    if large and define is not None and workers > 1 and sys.executable:
        definition = define()
        if _workers_agree(documents, tokenize, separator, definition):
            yield from tokenise_in_workers(pieces, definition, separator=separator, workers=workers)
            return
    for batch in pieces:
        yield batch, _flat(batch, tokenize, separator)


def _workers_agree(documents: Iterable[str], tokenize: Tokenize, separator: int, definition: str) -> bool:
    """Does a worker make the same tokens of the first documents? Not where a tokenizer's class has its own way."""
    first = next(batches(islice(documents, COMPARED_DOCUMENTS), most=COMPARED_DOCUMENTS, most_bytes=COMPARED_BYTES))
    try:
        [(_, ids)] = tokenise_in_workers([first], definition, separator=separator, workers=1)
    except SprachbundError as error:
        say(f"tokenising in one process: {error}")
        return False
    return np.array_equal(ids, _flat(first, tokenize, separator))


def _narrowed(wide: IO[bytes], final: Path, num_tokens: int, dtype: np.dtype[Any]) -> str:
    """Copy raw uint32 tokens into an .npy file of `dtype`, in pieces, and return the digest of what is stored."""
    wide.seek(0)
    with final.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_tokens,)}
        np.lib.format.write_array_header_1_0(file, header)
        digest = sha256(str(dtype).encode())
        while piece := wide.read(4 * TOKENS_AT_ONCE):
            data = np.frombuffer(piece, dtype=np.uint32).astype(dtype).tobytes()
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def _digest(path: Path, tokens: NDArray[Any]) -> str:
    """Return the digest of stored tokens, read and not mapped: mapped pages would count as this process's memory."""
    digest = sha256(str(tokens.dtype).encode())
    with path.open("rb") as file:
        file.seek(-tokens.nbytes, os.SEEK_END)
        while piece := file.read(TOKENS_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield an unused name beside `path`, so that a rename stays on one file system; what is left there goes."""
    temporary = temporary_for(path, f"-{secrets.token_hex(4)}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
