"""How a corpus was cut and packed by 0.1, and how it is now: one process each, for benchmarks/corpora.py.

    python benchmarks/corpora_before.py tokenizer|before|now|library_threads|one_thread|worker_processes FOLDER

`before` holds every document, and every line of train, in memory and tokenises in this process, with the threads of the
tokenizer's library.
"""

import json
import sys
import time
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sprachbund.corpora.documents import batches
from sprachbund.corpora.packing import BYTES_AT_ONCE, DOCUMENTS_AT_ONCE, pack_cached
from sprachbund.corpora.sources import read_documents
from sprachbund.corpora.splits import split_documents
from sprachbund.corpora.workers import num_workers, tokenise_in_workers
from sprachbund.modeling.base import load_tokenizer, tokenize_with, tokenizer_fingerprint, train_tokenizer
from sprachbund.recipe import Source, Splits

VOCABULARY = 8000
TOKENIZER_DOCUMENTS = 10_000
TIMED_DOCUMENTS = 30_000


def train_before(source: Source) -> list[str]:
    """Return the train split as 0.1 made it; dev and test are cut as well and dropped."""
    cut: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for document in read_documents(source):
        digest = blake2b(document.encode("utf-8"), digest_size=8, salt=(0).to_bytes(16, "little")).digest()
        point = int.from_bytes(digest, "little") / 2**64
        cut["test" if point < 0.05 else "dev" if point < 0.1 else "train"].append(document)
    read = [document for documents in cut.values() for document in documents]
    seen = lines_of(cut["train"])
    without(cut["dev"], seen)
    without(cut["test"], seen | lines_of(cut["dev"]))
    assert len(set(read)) <= len(read)
    return cut["train"]


def lines_of(documents: Iterable[str]) -> set[str]:
    return {line.strip() for document in documents for line in document.splitlines()} - {""}


def without(documents: list[str], seen: set[str]) -> list[str]:
    kept: dict[str, None] = {}
    for document in documents:
        lines = document.splitlines()
        own = [line for line in lines if line.strip() not in seen]
        text = document if len(own) == len(lines) else "\n".join(own).strip()
        if text:
            kept[text] = None
    return list(kept)


def megabytes_per_second(way: str, texts: list[str], tokenizer: Any) -> float:
    """Tokenise and flatten in one way; the worker processes' start counts."""
    pieces = batches(texts, most=DOCUMENTS_AT_ONCE, most_bytes=BYTES_AT_ONCE)
    tokenize, end = tokenize_with(tokenizer), tokenizer.eos_token_id
    begun = time.monotonic()
    if way == "worker_processes":
        for _ in tokenise_in_workers(pieces, tokenize.definition(), separator=end, workers=num_workers()):
            pass
    else:
        for piece in pieces:
            np.concatenate([np.array([*ids, end], dtype=np.uint32) for ids in tokenize(piece)])
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.monotonic() - begun)


def main() -> None:
    way, folder = sys.argv[1], Path(sys.argv[2])
    source = Source(file=str(folder / "ron.jsonl"))
    if way == "tokenizer":
        texts = islice(read_documents(source), TOKENIZER_DOCUMENTS)
        train_tokenizer(texts, vocab_size=VOCABULARY).save_pretrained(folder / "tokenizer")
        return
    tokenizer = load_tokenizer(folder / "tokenizer")
    if way not in ("before", "now"):
        texts = list(islice(read_documents(source), TIMED_DOCUMENTS))
        print(megabytes_per_second(way, texts, tokenizer))
        return
    train = train_before(source) if way == "before" else split_documents(source, Splits(), seed=0).train
    mark, tokenize = tokenizer_fingerprint(tokenizer), tokenize_with(tokenizer)
    packed = pack_cached(train, mark, tokenize, tokenizer.eos_token_id)  # a list is tokenised in this process
    print(json.dumps({"sha256": packed.digest, "tokens": packed.num_tokens}))


if __name__ == "__main__":
    main()
