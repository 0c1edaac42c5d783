"""How long a new language's tokens are, and the vocabulary that is advised where they are short."""

from itertools import islice
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sprachbund.adaptation.merges import MergeLearner, Piece, Vocabulary
from sprachbund.adaptation.token_length import (
    TokenLength,
    bytes_per_token,
    is_out_of_line,
    merges_for,
    out_of_line,
    token_length,
)
from sprachbund.adaptation.vocabulary import extend_tokenizer
from sprachbund.errors import InputError
from sprachbund.modeling.base import tokenize_with, train_tokenizer

OLD = ["the cat sat on the mat and the dog sat on the log", "a cat and a dog and a log"] * 4
NEW = ["qatlo qatlosh matlo qatlo", "matlosh qatlosh qatlo"] * 20
V = 280


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(OLD, vocab_size=V)


def by_words(texts: list[str]) -> list[list[int]]:
    return [[0] * len(text.split()) for text in texts]


def test_bytes_and_characters_per_token() -> None:
    assert token_length(by_words, ["aé bc", "ßßß"]) == TokenLength(12 / 3, 8 / 3)
    assert bytes_per_token(by_words, ["aé bc", "ßßß"]) == 4
    with pytest.raises(InputError, match="has no token"):
        bytes_per_token(by_words, ["", " "])


@pytest.mark.parametrize(
    ("num_bytes", "num_characters", "old", "expected"),
    [
        (1.7, 1.7, {"swh_Latn": 2.0, "deu_Latn": 2.5, "kab_Latn": 1.5}, False),  # exactly 0.85 of the median
        (1.69, 1.69, {"swh_Latn": 2.0, "deu_Latn": 2.5, "kab_Latn": 1.5}, True),
        (3.0, 1.0, {"swh_Latn": 2.0}, True),  # every character a token
        (3.0, 1.2, {"swh_Latn": 2.0}, False),
        (1.3, 1.3, {}, False),
        (1.0, 0.4, {}, True),
    ],
)
def test_what_is_out_of_line(num_bytes: float, num_characters: float, old: dict[str, float], expected: bool) -> None:
    assert is_out_of_line(TokenLength(num_bytes, num_characters), old) is expected


def test_a_language_in_line_is_not_warned_about(tokenizer: Any) -> None:
    own = bytes_per_token(tokenize_with(tokenizer), OLD)
    assert out_of_line("eng_Latn", tokenizer, OLD, {"swh_Latn": own}, vocab_size=V) is None


def test_the_warning_says_how_short_the_tokens_are_and_what_to_do(tokenizer: Any) -> None:
    warning = out_of_line("est_Latn", tokenizer, NEW, {"swh_Latn": 2.0, "deu_Latn": 4.0, "fra_Latn": 3.0}, vocab_size=V)
    length = token_length(tokenize_with(tokenizer), NEW)
    assert warning == (
        f"est_Latn: a token has {length.num_bytes:.2f} bytes ({length.num_characters:.2f} characters) of this text, "
        "and 3.00 of the model's languages' (the least: 2.00 of swh_Latn); --extend-vocab 256 would make its "
        "tokens longer"
    )


def test_without_other_languages_the_characters_decide(tokenizer: Any) -> None:
    assert out_of_line("est_Latn", tokenizer, ["the cat sat " * 30], {}, vocab_size=V) is None
    warning = out_of_line("chr_Cher", tokenizer, ["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ " * 30], {}, vocab_size=V)
    assert warning is not None
    assert warning.startswith("chr_Cher: a token has 1.00 bytes (0.38 characters) of this text; --extend-vocab")


def test_a_tokenizer_without_merges_is_no_reason_to_advise_them() -> None:
    backend = Tokenizer(models.WordPiece({"a": 0, "##a": 1, "[UNK]": 2}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a")
    warning = out_of_line("est_Latn", other, ["aaa aa"], {"swh_Latn": 3.0}, vocab_size=3)
    assert warning is not None
    assert warning.endswith("; the tokenizer is no BPE, whose vocabulary could be extended")


def learner(words: dict[tuple[Piece, ...], int]) -> MergeLearner:
    return MergeLearner(words, Vocabulary({number: chr(97 + number) for number in range(26)}, 100))


@pytest.mark.parametrize(("factor", "merges"), [(1.0, 1), (1.25, 1), (1.5, 2), (2.0, 4), (4.0, 4)])
def test_as_many_merges_as_make_tokens_so_much_longer(
    monkeypatch: pytest.MonkeyPatch, factor: float, merges: int
) -> None:
    monkeypatch.setattr("sprachbund.adaptation.token_length.MERGES", (1, 100))
    words: dict[tuple[Piece, ...], int] = {(0, 1): 50, (2, 3): 30, (4, 5): 20, (6, 7): 19}
    # 238 tokens without merges, 188, 158 and 138 with one, two and three; the fourth would occur 19 times
    assert merges_for(learner(words), factor=factor) == merges


def test_the_number_advised_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[tuple[Piece, ...], int] = {(2 * i, 2 * i + 1): 50 for i in range(10)}
    assert merges_for(learner(words), factor=2.0) == 256
    monkeypatch.setattr("sprachbund.adaptation.token_length.MERGES", (1, 4))
    assert merges_for(learner(words), factor=2.0) == 4


def test_the_number_advised_reaches_the_median(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.adaptation.token_length.MERGES", (1, 100))
    warning = out_of_line("est_Latn", tokenizer, NEW, {"swh_Latn": 3.0}, vocab_size=V)
    assert warning is not None
    advised = int(warning.split("--extend-vocab ")[1].split()[0])
    for num_merges, reached in ((advised, True), (advised // 4, False)):
        extended = extend_tokenizer(tokenizer, NEW, num_merges, vocab_size=V).tokenizer
        assert (bytes_per_token(tokenize_with(extended), NEW) >= 3.0) is reached


def test_pieces_are_counted_as_the_tokenizer_does(tokenizer: Any) -> None:
    words: dict[tuple[Piece, ...], int] = {(0, "é", 1): 2, (2,): 3}
    counted = MergeLearner(words, Vocabulary({0: "a", 1: "b", 2: "c"}, 100, {0xC3: 10, 0xA9: 11}))
    assert counted.num_pieces == 2 * 4 + 3
    saved = sum(step.saved for step in islice(counted.steps(), 2))
    assert counted.num_pieces == 2 * 4 + 3 - saved
