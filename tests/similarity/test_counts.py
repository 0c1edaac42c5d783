import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.similarity import count_characters, count_tokens, counts, similarity_of

END = 9  # the separator


def test_tokens_are_counted_by_hand() -> None:
    signal = count_tokens(np.array([1, 2, 2, END, 5, 2, END], dtype=np.uint16))
    assert signal.totals[0].tolist() == [0, 1, 3, 0, 0, 1, 0, 0, 0, 0]
    assert signal.compared == (0,)
    assert signal.norms[0] == pytest.approx(11**0.5)


def test_the_cosine_of_tokens_is_the_bhattacharyya_coefficient() -> None:
    signals = {
        "a": count_tokens(np.array([0, 0, 1, END], dtype=np.uint16)),
        "b": count_tokens(np.array([0, 1, END, 1, 2, END], dtype=np.uint16)),
    }
    found = similarity_of(signals, source="lexical", center=False).values_LL[0, 1]
    assert found == pytest.approx((2 / 3 * 1 / 4) ** 0.5 + (1 / 3 * 2 / 4) ** 0.5)


def test_the_parts_are_eighths_of_the_stream_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "TOKENS_AT_ONCE", 3)
    tokens = np.repeat(np.arange(8, dtype=np.uint32), 10)
    signal = count_tokens(np.append(tokens, END).astype(np.uint32))
    parts = signal.parts[0]
    assert parts.shape == (8, END + 1)
    assert torch.equal(parts.sum(0), signal.totals[0])
    assert parts.argmax(1).tolist() == list(range(8))
    assert parts.sum().item() == 80


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=12), st.integers(1, 4))
def test_runs_of_characters_are_those_of_the_normalised_text(documents: list[str], ngram: int) -> None:
    signal = count_characters(documents, ngram=ngram)
    texts = [" ".join(unicodedata.normalize("NFC", document.lower()).split()) for document in documents]
    chunks = [" ".join(texts[i] for i in chunk) for chunk in np.array_split(np.arange(len(texts)), 8)]
    runs = [text[i : i + ngram] for text in chunks for i in range(len(text) - ngram + 1)]
    assert signal.totals[0].sum() == len(runs)
    # runs may share a bucket, never the other way round
    expected = torch.zeros(counts.BUCKETS)
    for run, count in Counter(runs).items():
        alone = counts._run_counts(run, ngram)
        assert alone.sum() == 1
        expected[int(alone.argmax())] += count
    assert torch.equal(signal.totals[0], expected)
    assert torch.equal(signal.parts[0].sum(0), signal.totals[0])


def test_case_form_and_white_space_do_not_count() -> None:
    plain = count_characters(["über den fluss"], ngram=3).totals[0]
    assert torch.equal(count_characters(["  \u0055\u0308BER\u00a0den \n Fluss"], ngram=3).totals[0], plain)


def slow_bucket(run: str) -> int:
    """The polynomial of the code points and SplitMix64's finaliser, on Python's unbounded integers."""
    word, number = (1 << 64) - 1, 0
    for character in run:
        number = (number * 6364136223846793005 + ord(character) + 1) & word
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & word
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & word
    return (number ^ (number >> 31)) % (1 << 16)


@pytest.mark.parametrize("run", ["a", "abc", "我们", "\U0001f600x", "\0\0\0"])
def test_buckets_are_those_of_a_slow_reference_in_every_process(run: str) -> None:
    assert counts._run_counts(run, len(run)).argmax() == slow_bucket(run)


def test_runs_spread_evenly_over_the_buckets() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    runs = counts._run_counts("".join(a + b + c for a in letters for b in letters for c in letters), 3)
    expected = counts.BUCKETS * (1 - np.exp(-(26**3) / counts.BUCKETS))
    assert np.count_nonzero(runs) == pytest.approx(expected, rel=0.02)


def test_a_long_text_is_read_in_evenly_spaced_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "CHARACTERS_AT_MOST", 100)
    documents = [letter * 10 for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert counts._chosen(documents) == [letter * 10 for letter in "acfhknpsux"]
    assert counts._chosen(documents[:7]) == documents[:7]


def test_a_text_without_a_run_counts_nothing() -> None:
    assert count_characters(["ab"], ngram=3).norms[0] == 0
