"""Checks of a new language's text: what is refused, what is warned about, and what passes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.adaptation.newcomer import (
    check_script,
    check_size,
    known_shares,
    looks_known,
    mostly_known,
    mostly_shared,
    nearest_by_counts,
    new_tags,
    shared_text,
)
from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob

TAGS = ["swh_Latn", "deu_Latn"]
VOCAB = 50


def config(**paths: int) -> Any:
    later = [{"languages": [tag], "parent": parent} for tag, parent in paths.items()]
    return SimpleNamespace(groups={"swh_Latn": 0, "deu_Latn": 1}, num_groups=2, language_paths=later)


def text_of(language: int, num_tokens: int, seed: int = 0) -> np.ndarray:
    """Draw tokens of one of three languages with different favourites, (N,)."""
    weights = np.roll(1 / np.arange(1, VOCAB + 1), 17 * language)
    return np.random.default_rng([seed, language]).choice(VOCAB, size=num_tokens, p=weights / weights.sum())


def table() -> Tensor:
    return count_log_prob([text_of(language, 20_000, seed=1) for language in (0, 1)], vocab_size=VOCAB)


def test_new_languages_get_their_canonical_tags() -> None:
    assert new_tags(config(), ["mam", "Estonian", "chr_Cher"]) == ["mam_Latn", "est_Latn", "chr_Cher"]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["sw"], r"--language sw: the model has swh_Latn already \(group 0\); leave it out"),
        (["German"], r"--language German: the model has deu_Latn already \(group 1\)"),
        (["mam_Latn"], r"--language mam_Latn: the model has mam_Latn already \(group 2\)"),
        (["est", "Estonian"], r"--language Estonian: est_Latn is there already, as est; give each language once"),
        (["Klingonese"], r"unknown language 'Klingonese'"),
    ],
)
def test_languages_that_are_not_new_are_refused(tags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        new_tags(config(mam_Latn=0), tags)


def test_the_same_language_in_another_script_is_new() -> None:
    assert new_tags(config(), ["swh_Arab"]) == ["swh_Arab"]


def test_text_in_the_script_of_the_tag_passes() -> None:
    assert check_script("est_Latn", ["tere hommikust, 12 привет", "kuidas läheb"]) is None
    assert check_script("jpn_Jpan", ["日本語の文章", "漢字 かな カナ"]) is None
    assert check_script("est_Latn", ["12345 !?"]) is None


def test_text_in_another_script_is_refused_or_with_force_warned_about() -> None:
    documents = ["привет мир", "как дела ok"]
    with pytest.raises(InputError) as refused:
        check_script("est_Latn", documents)
    assert str(refused.value) == (
        "--language est_Latn: 89% of the text's letters are in the script Cyrl, and the tag says Latn; "
        "name it est_Cyrl, give other text, or --force"
    )
    assert check_script("est_Latn", documents, force=True) == (
        "est_Latn: 89% of the text's letters are in the script Cyrl, and the tag says Latn"
    )


def size(**changes: int) -> str | None:
    values = {"train_tokens": 2000, "scored_tokens": 50, "block_size": 64, "burn_in": 32, "tokens_per_step": 100}
    return check_size("est_Latn", **{**values, **changes})


def test_enough_text_passes() -> None:
    assert size() is None
    assert size(scored_tokens=34) is None


def test_too_little_text_is_refused() -> None:
    with pytest.raises(InputError, match="its training text has 63 tokens, and one block has 64; give more text"):
        size(train_tokens=63)
    with pytest.raises(InputError, match="its training text has 0 tokens"):
        size(train_tokens=0)
    with pytest.raises(InputError, match="33 tokens to score on are too few for a burn-in of 32"):
        size(scored_tokens=33)


def test_a_small_text_is_warned_about() -> None:
    assert size(train_tokens=1999) == (
        "est_Latn: its training text has 1,999 tokens, less than 20 steps of 100: what is trained on it for longer "
        "will know it by heart; more text would help"
    )


def test_counts_tell_the_nearest_language_and_whether_it_is_the_one() -> None:
    same = nearest_by_counts(table(), TAGS, np.bincount(text_of(1, 5000), minlength=VOCAB))
    assert [near.tag for near in same] == ["deu_Latn", "swh_Latn"]
    assert abs(same[0].excess) < 0.05
    new = nearest_by_counts(table(), TAGS, np.bincount(text_of(2, 5000), minlength=VOCAB))
    assert new[0].excess > 0.5
    assert new[0].nats_per_token <= new[1].nats_per_token
    expected = -(table()[text_of(2, 5000)]).double().mean(0)
    assert [near.nats_per_token for near in new] == pytest.approx(sorted(expected.tolist()), abs=1e-9)


def test_a_gate_without_counts_knows_nothing() -> None:
    empty = torch.zeros(VOCAB, 2)
    assert nearest_by_counts(empty, TAGS, np.ones(VOCAB)) == []
    assert known_shares(empty, TAGS, text_of(0, 600)) == {}


def test_the_share_that_reads_like_a_known_language() -> None:
    assert known_shares(table(), TAGS, text_of(2, 10_000)) == {}
    mixed = np.concatenate([text_of(1, 256 * 30), text_of(2, 256 * 8), text_of(0, 256 * 2)]).astype(np.uint16)
    shares = known_shares(table(), TAGS, mixed)
    assert shares == {"deu_Latn": 0.75, "swh_Latn": 0.05}
    assert mostly_known("est_Latn", shares) == (
        "est_Latn: 75% of the text uses the model's tokens as German (deu_Latn) does, which the model knows; "
        "is it the right text?"
    )


def test_little_text_is_one_block() -> None:
    assert known_shares(table(), TAGS, text_of(0, 100)) == {"swh_Latn": 1.0}
    assert known_shares(table(), TAGS, text_of(0, 0)) == {}


def test_of_a_long_text_a_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.adaptation.newcomer.BLOCKS_AT_MOST", 4)
    mixed = np.concatenate([text_of(0, 256 * 40), text_of(1, 256 * 40)])
    assert known_shares(table(), TAGS, mixed) == {"swh_Latn": 0.5, "deu_Latn": 0.5}


def test_half_a_text_is_not_most_of_it() -> None:
    assert mostly_known("est_Latn", {"deu_Latn": 0.5}) is None
    assert mostly_known("est_Latn", {}) is None


def test_a_text_that_the_model_reads_well_is_warned_about() -> None:
    scores = {"swh_Latn": 2.0, "deu_Latn": 1.0}
    assert looks_known("est_Latn", 2.5, scores, "swh_Latn") == (
        "est_Latn: the model needs 2.50 bits per byte for the text before it has seen any, and 2.00 for that of "
        "Swahili (swh_Latn), which it knows; is it the right text?"
    )
    assert looks_known("est_Latn", 2.51, scores, "swh_Latn") is None
    assert looks_known("est_Latn", 2.0, scores, "deu_Latn") is None
    assert looks_known("est_Latn", 1.0, scores, "fra_Latn") is None


def test_shared_text_is_found_however_it_is_spaced() -> None:
    new = ["Tere  hommikust\nsee on uus rida", "Cafe\u0301 noir", "tere hommikust"]
    known = {"deu_Latn": ["TERE hommikust \n anders"], "fra_Latn": ["Café noir"], "swh_Latn": ["see on"]}
    shares = shared_text(new, known)
    num_characters = 14 + 15 + 9 + 14
    assert shares == pytest.approx({"deu_Latn": 28 / num_characters, "fra_Latn": 9 / num_characters, "swh_Latn": 0})
    assert mostly_shared("est_Latn", shares) == (
        "est_Latn: 54% of the text stands word by word in the text of German (deu_Latn) too; "
        "remove what is not of this language"
    )


def test_a_little_shared_text_is_no_matter() -> None:
    assert mostly_shared("est_Latn", {"deu_Latn": 0.05}) is None
    assert mostly_shared("est_Latn", shared_text([], {"deu_Latn": ["a"]})) is None
    assert mostly_shared("est_Latn", {}) is None
