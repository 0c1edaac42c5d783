"""What holds for every corpus: no token lost or repeated, shares kept, and no bytes that break the reader."""

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sprachbund.corpora import sources
from sprachbund.corpora.lines import split_lines
from sprachbund.corpora.mixture import schedule, shares
from sprachbund.corpora.overlap import shared_documents
from sprachbund.corpora.packing import block_sequence, load_packed, pack, pack_cached
from sprachbund.corpora.sources import read_documents
from sprachbund.errors import InputError
from sprachbund.recipe import Mixture, Source

# ---- packing ----

SEPARATOR = 7
# A vocabulary without the separator, and beyond 65,535: the type of the stored ids changes within a corpus.
token = st.integers(0, 6) | st.integers(8, 70_000)
documents_of_tokens = st.lists(st.lists(token, max_size=9), min_size=1, max_size=30)


def spelled(documents: list[list[int]]) -> list[str]:
    return [" ".join(map(str, ids)) for ids in documents]


def tokenize(texts: list[str]) -> list[list[int]]:
    return [[int(word) for word in text.split()] for text in texts]


@settings(max_examples=60, deadline=None)
@given(documents=documents_of_tokens, block_size=st.integers(1, 12), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_every_pass_over_a_packed_corpus_has_every_token_and_every_document(
    documents: list[list[int]], block_size: int, seed: int, epochs: int
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        pack(spelled(documents), tokenize, separator=SEPARATOR, path=path)
        packed = load_packed(path)
        stream = packed.tokens.tolist()
        ends = [place for place, value in enumerate(stream) if value == SEPARATOR]
        assert [stream[a + 1 : b] for a, b in pairwise([-1, *ends])] == documents
        assert ends[-1] == len(stream) - 1
        if len(stream) < block_size:
            with pytest.raises(InputError):
                packed.num_blocks(block_size)
            return
        num_blocks = packed.num_blocks(block_size)
        order = block_sequence(num_blocks, epochs * num_blocks, seed=seed, tag="a").reshape(epochs, num_blocks)
        for numbers in order.tolist():
            places = np.concatenate([_places(number, block_size, len(stream)) for number in numbers])
            seen = np.concatenate([packed.block(number, block_size) for number in numbers])
            assert seen.tolist() == [stream[place] for place in places]
            times = np.bincount(places, minlength=len(stream))
            # Only what fills up the last block comes twice in a pass, and that is less than a block.
            assert times.min() == 1
            assert times.sum() - len(stream) < block_size
            assert times.max() <= 2


def _places(number: int, block_size: int, length: int) -> np.ndarray:
    start = min(number * block_size, length - block_size)
    return np.arange(start, start + block_size)


@settings(max_examples=40, deadline=None)
@given(first=documents_of_tokens, second=documents_of_tokens)
def test_two_corpora_have_one_cached_stream_exactly_where_they_are_the_same(
    first: list[list[int]], second: list[list[int]]
) -> None:
    with TemporaryDirectory() as folder:
        one, other = (pack_cached(spelled(d), "t", tokenize, SEPARATOR, Path(folder)) for d in (first, second))
        assert (one.path == other.path) == (first == second)
        assert one.tokens.tolist() == [value for ids in first for value in [*ids, SEPARATOR]]


# ---- mixtures ----

sizes = st.lists(st.integers(1, 10**12), min_size=1, max_size=10)
mixtures = st.builds(Mixture, temperature=st.floats(0, 1)) | st.builds(
    lambda epochs: Mixture(method="unimax", max_epochs=epochs), st.floats(0.01, 50)
)


@settings(max_examples=100, deadline=None)
@given(sizes=sizes, mixture=mixtures, budget=st.floats(1, 1e13), data=st.data())
def test_what_is_drawn_is_what_the_mixture_says(
    sizes: list[int], mixture: Mixture, budget: float, data: st.DataObject
) -> None:
    num_bytes = {f"l{i}": size for i, size in enumerate(sizes)}
    groups = data.draw(st.none() | st.fixed_dictionaries({tag: st.integers(0, 3) for tag in num_bytes}))
    found = shares(num_bytes, mixture, groups=groups, budget_bytes=budget)
    assert list(found) == list(num_bytes)
    assert sum(found.values()) == pytest.approx(1)
    assert min(found.values()) > 0
    for group in set((groups or {}).values()):
        of_group = sum(share for tag, share in found.items() if groups is not None and groups[tag] == group)
        assert of_group == pytest.approx(1 / len(set((groups or {}).values())))
    same_group = [tag for tag in num_bytes if groups is None or groups[tag] == groups["l0"]]
    ordered = sorted(same_group, key=lambda tag: num_bytes[tag])  # more text never has the smaller share
    assert all(found[a] <= found[b] * (1 + 1e-9) for a, b in pairwise(ordered))
    if mixture.method == "unimax" and groups is None and budget <= mixture.max_epochs * sum(sizes):
        assert all(found[tag] * budget <= mixture.max_epochs * num_bytes[tag] * (1 + 1e-6) for tag in num_bytes)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, mixture=mixtures, num_steps=st.integers(1, 30), batch_size=st.integers(1, 24), data=st.data())
def test_sequences_follow_the_shares_after_every_step(
    sizes: list[int], mixture: Mixture, num_steps: int, batch_size: int, data: st.DataObject
) -> None:
    num_bytes = {f"l{i}": size for i, size in enumerate(sizes)}
    groups = data.draw(st.none() | st.fixed_dictionaries({tag: st.integers(0, 3) for tag in num_bytes}))
    share = shares(num_bytes, mixture, groups=groups, budget_bytes=1e9)
    rows = schedule(share, num_steps=num_steps, batch_size=batch_size, seed=0, groups=groups)
    counts = np.stack([np.bincount(row, minlength=len(share)) for row in rows]).cumsum(axis=0)
    due = np.outer(np.arange(1, num_steps + 1) * batch_size, list(share.values()))
    assert np.abs(counts - due).max() < (1 if groups is None else 2) + 1e-5  # 1 in the group, 1 of the group
    assert (counts.sum(axis=1) == np.arange(1, num_steps + 1) * batch_size).all()


# ---- the same text under two languages ----


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("uvwxyz"), max_size=8), min_size=1))
def test_shared_documents_are_those_of_the_sets(documents: dict[str, list[str]]) -> None:
    expected = {
        tag: {
            other: len(set(texts) & set(theirs)) / len(set(texts))
            for other, theirs in documents.items()
            if other != tag and set(texts) & set(theirs)
        }
        for tag, texts in documents.items()
    }
    assert shared_documents(documents) == expected


# ---- the reader ----

# Bytes that mean something to one of the layers, and any others.
PIECES = [
    b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"\0", b"\xff", b"\xe2\x80\xa8", b"\xd7\xa9", b"\\ud800", b"\\u0000", b'"',
    b'{"text": "', b'"}', b'{"text": "fine"}\n', b'{"text": ""}', b"{", b"[", b"[[[[", b"null", b"1e999", b"\\", b" ",
    b'{"text": 1}', b'{"body": "x"}', b'{"text": "a", "text": "b"}', b"9" * 4400, b"NaN", b"x" * 50, b"\x1f\x8b",
]  # fmt: skip
content = st.lists(st.sampled_from(PIECES) | st.binary(max_size=12), max_size=25).map(b"".join)
LONGEST = 40


def outcome(path: Path, policy: str) -> tuple[list[str], Counter[str], str | None]:
    """Documents, what was skipped, and the error's sentence; anything but an InputError is a failure of the test."""
    source, skipped = Source.model_validate({"file": str(path), "on_bad_line": policy}), Counter[str]()
    texts: list[str] = []
    try:
        for text in read_documents(source, skipped=skipped):
            texts.append(text)
    except InputError as error:
        said = str(error)
        assert "\n" not in said
        assert str(path) in said
        return texts, skipped, said
    return texts, skipped, None


@settings(max_examples=250, deadline=None)
@given(data=content, kind=st.sampled_from([".jsonl", ".txt"]), chunk=st.sampled_from([1, 3, 1 << 20]))
@example(data=b'{"text": ' + b"9" * 4400 + b"}", kind=".jsonl", chunk=3)
@example(data=b"[" * 100_000, kind=".jsonl", chunk=1 << 20)
def test_any_bytes_give_documents_or_one_sentence(data: bytes, kind: str, chunk: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sources, "CHUNK_BYTES", chunk)
        path = Path(folder) / f"a{kind}"
        path.write_bytes(data)
        read_with, skipped_with, stopped = outcome(path, "error")
        kept, skipped, failed = outcome(path, "skip")
    for text in kept:
        assert text == text.strip() != ""
        assert "\0" not in text
        text.encode("utf-8")
    bad = Counter({reason: count for reason, count in skipped.items() if reason != "empty"})
    assert kept[: len(read_with)] == read_with  # skipping changes nothing before the first bad line
    assert not set(skipped_with) - {"empty"}
    if stopped is None:  # without a bad line the policies are one
        assert (kept, skipped, failed) == (read_with, skipped_with, None)
    elif "holds no document" in stopped:
        assert (bad, kept) == (Counter(), [])
    else:
        assert bad
    assert (failed is not None) == (kept == [])
    _check_nothing_vanished(data, kind, len(kept) + skipped.total())


def _check_nothing_vanished(data: bytes, kind: str, accounted: int) -> None:
    """Every line that is not blank is a document or counted: checked against Python's own reading of lines."""
    lines = [line.removeprefix(b"\xef\xbb\xbf") for line in data.splitlines()]
    readable = [line.decode("utf-8", errors="replace").strip() for line in lines]
    assert accounted == sum(line != "" for line in readable)


@settings(max_examples=80, deadline=None)
@given(data=content, cuts=st.lists(st.integers(0, 300), max_size=6))
def test_lines_depend_neither_on_chunks_nor_on_compression(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    whole = [line.removeprefix(b"\xef\xbb\xbf") for line in data.splitlines()]
    assert list(split_lines(chunks, longest=len(data) + 1)) == whole
    short = [None if len(line) > LONGEST else line for line in data.splitlines()]
    marked = [line if line is None else line.removeprefix(b"\xef\xbb\xbf") for line in short]
    assert list(split_lines(chunks, longest=LONGEST)) == marked
    with TemporaryDirectory() as folder:
        for suffix, packed in ((".gz", gzip.compress(data)), (".zst", zstandard.compress(data))):
            (Path(folder) / f"a{suffix}").write_bytes(packed)
            assert b"".join(sources._chunks(Path(folder) / f"a{suffix}", suffix)) == data


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".gz", ".zst"]), place=st.integers(0, 400))
def test_flipped_bytes_in_a_compressed_file_give_the_text_or_one_sentence(data: bytes, suffix: str, place: int) -> None:
    packed = bytearray(gzip.compress(data) if suffix == ".gz" else zstandard.compress(data))
    packed[place % len(packed)] ^= 1 << place % 8
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a.txt{suffix}"
        path.write_bytes(packed)
        outcome(path, "skip")


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=10), ascii_only=st.booleans())
def test_text_comes_back_as_it_was_written(texts: list[str], ascii_only: bool) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes("\n".join(lines).encode("utf-8", errors="surrogatepass"))
        found, skipped, _ = outcome(path, "skip")
    sound = [text for text in texts if text.strip() and "\0" not in text]
    assert found == [text.strip() for text in sound]
    assert found or skipped
