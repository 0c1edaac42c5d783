"""More vocabulary for a new language, on tokenizers of every make that we meet."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sprachbund.adaptation.vocabulary import Extension, extend_tokenizer, load_extension
from sprachbund.errors import InputError
from sprachbund.modeling.base import tokenize_with, train_tokenizer

OLD = ["the cat sat on the mat and the dog sat on the log", "a cat and a dog and a log", "über die größte Katze"] * 4
# words that share pieces with the old text, and letters that it lacks
NEW = ["qatlo the qatlosh matlosh ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏣᎳᎩ qatlo\nmatlo ᎠᏂᏣᎳᎩ", "kàtlosh ᎦᏬᏂᎯᏍᏗ qatloshim ᏣᎳᎩ <unused> 12"] * 5
SPECIAL = ["<unk>", "<s>", "</s>"]
V = 285  # of the byte-level tokenizer: less than its text would give
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Any:
    return train_tokenizer(OLD, vocab_size=V)


def with_added_tokens() -> Any:
    """Return a tokenizer whose added tokens are numbered after its vocabulary, as in the Qwen and NeoX families."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<unused>", normalized=False)])
    return tokenizer


def whole_words_first() -> Any:
    """Return a tokenizer in the manner of Llama 3: what is a token as a word is not merged, and some only so."""
    described = json.loads(byte_level().backend_tokenizer.to_str())
    described["model"]["ignore_merges"] = True
    described["model"]["vocab"] |= {"Ġqatl": V, "osh": V + 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="<|endoftext|>"
    )


def sentencepiece(*, split: bool) -> Any:
    """Return a tokenizer in the manner of Llama 2: unknown characters in bytes; `split` cuts words before merging."""
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Metaspace()
    draft.train_from_iterator(OLD, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    learned = json.loads(draft.to_str())["model"]
    tokens = [*SPECIAL, *BYTES, *learned["vocab"]]
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    if split:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def with_unknowns() -> Any:
    """Return a tokenizer of characters, with a mark at the end of words, to which unknown characters are one token."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator([*OLD, "q h w k m l t o s i"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


MAKES: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "added_tokens": with_added_tokens,
    "whole_words_first": whole_words_first,
    "sentencepiece": lambda: sentencepiece(split=True),
    "sentencepiece_unsplit": lambda: sentencepiece(split=False),
    "unknowns": with_unknowns,
}
SOME_TEXT = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["qatlo", "qatl", "osh", " ", "\n", "ᏣᎳᎩ", "Ꮳ", "the", "mat", "<unused>", "▁", "é"])).map(
        "".join
    ),
)


@pytest.fixture(scope="module", params=MAKES)
def made(request: pytest.FixtureRequest) -> tuple[Any, Extension]:
    """A tokenizer and its extension, whose ids begin after some rows that no token has."""
    tokenizer = MAKES[request.param]()
    return tokenizer, extend_tokenizer(tokenizer, NEW, 16, vocab_size=len(tokenizer) + 7)


@settings(max_examples=80, deadline=None)
@given(text=SOME_TEXT)
def test_the_new_tokenisation_is_the_old_one_with_pieces_merged(made: tuple[Any, Extension], text: str) -> None:
    old, extension = made
    ids = extension.tokenizer(text)["input_ids"]
    assert extension.base_ids(ids) == old(text)["input_ids"]
    assert extension.tokenizer.decode(ids) == old.decode(old(text)["input_ids"])


def test_the_new_language_becomes_shorter(made: tuple[Any, Extension]) -> None:
    old, extension = made
    assert len(extension.tokens) == 16
    assert extension.shortfall is None
    new_length = sum(map(len, tokenize_with(extension.tokenizer)(NEW)))
    assert new_length < 0.7 * sum(map(len, tokenize_with(old)(NEW)))
    used = {number for ids in tokenize_with(extension.tokenizer)(NEW) for number in ids}
    assert max(used) >= extension.vocab_size


def test_every_new_token_stands_for_old_ones(made: tuple[Any, Extension]) -> None:
    old, extension = made
    assert len(extension.pieces) == len(extension.tokens) == len(set(extension.tokens))
    assert not set(extension.tokens) & set(old.get_vocab())
    for number, pieces in enumerate(extension.pieces, start=extension.vocab_size):
        assert len(pieces) > 1
        assert max(pieces) < extension.vocab_size
        assert extension.tokenizer.decode([number]) == old.decode(list(pieces))


def test_old_tokens_keep_their_ids_and_settings(made: tuple[Any, Extension]) -> None:
    old, extension = made
    vocabulary = extension.tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in old.get_vocab()} == old.get_vocab()
    assert extension.tokenizer.special_tokens_map == old.special_tokens_map
    assert extension.tokenizer.eos_token_id == old.eos_token_id
    assert extension.tokenizer.padding_side == old.padding_side
    assert extension.tokenizer.get_added_vocab() == old.get_added_vocab()


def test_saved_and_loaded_it_is_the_same(made: tuple[Any, Extension], tmp_path: Path) -> None:
    _, extension = made
    extension.save(tmp_path)
    loaded = load_extension(tmp_path)
    assert (loaded.vocab_size, loaded.asked, loaded.tokens) == (extension.vocab_size, 16, extension.tokens)
    assert (loaded.merges, loaded.pieces) == (extension.merges, extension.pieces)
    expected = tokenize_with(extension.tokenizer)(NEW)
    assert tokenize_with(loaded.tokenizer)(NEW) == expected
    assert tokenize_with(AutoTokenizer.from_pretrained(tmp_path))(NEW) == expected


@pytest.mark.parametrize("make", [byte_level, with_added_tokens, lambda: sentencepiece(split=True)])
@pytest.mark.parametrize("free_rows", [0, 50])
def test_new_ids_begin_where_the_embedding_ends(make: Callable[[], Any], free_rows: int) -> None:
    tokenizer = make()
    extension = extend_tokenizer(tokenizer, NEW, 8, vocab_size=len(tokenizer) + free_rows)
    ids = extension.tokenizer.convert_tokens_to_ids(extension.tokens)
    assert ids == list(range(len(tokenizer) + free_rows, len(tokenizer) + free_rows + 8))
    empty = list(range(len(tokenizer), len(tokenizer) + free_rows))
    assert extension.tokenizer.decode(empty) == tokenizer.decode(empty) == ""


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_without_merges_it_is_the_old_tokenizer(make: Callable[[], Any]) -> None:
    tokenizer = make()
    extension = extend_tokenizer(tokenizer, NEW, 0, vocab_size=len(tokenizer))
    assert (extension.tokens, extension.pieces, extension.shortfall) == ([], [], None)
    assert extension.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert tokenize_with(extension.tokenizer)(NEW + OLD) == tokenize_with(tokenizer)(NEW + OLD)


def test_the_old_tokenizer_is_not_touched() -> None:
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    tokenizer.backend_tokenizer.enable_truncation(3)
    extend_tokenizer(tokenizer, NEW, 8, vocab_size=V)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3
    tokenizer.backend_tokenizer.no_truncation()
    assert tokenizer.backend_tokenizer.to_str() == before


def test_truncation_does_not_shorten_what_is_learned_from() -> None:
    tokenizer = byte_level()
    whole = extend_tokenizer(tokenizer, NEW, 8, vocab_size=V)
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert extend_tokenizer(tokenizer, NEW, 8, vocab_size=V).tokens == whole.tokens


def test_an_unknown_script_becomes_characters_and_then_words() -> None:
    tokenizer = sentencepiece(split=True)
    extension = extend_tokenizer(tokenizer, ["ᏣᎳᎩ ᏣᎳ ᎩᏣᎳ"] * 3, 4, vocab_size=len(tokenizer))
    assert extension.tokens[:3] == ["Ꮃ", "Ꮳ", "Ꭹ"]  # the first two are equally frequent, and ordered
    assert {len(pieces) for pieces in extension.pieces[:3]} == {3}
    assert extension.tokens[3] == "ᏣᎳ"
    assert extension.tokenizer.tokenize("ᏣᎳ") == ["▁", "ᏣᎳ"]


def test_merges_do_not_cross_words_where_the_tokenizer_takes_the_text_for_one() -> None:
    tokenizer = sentencepiece(split=False)
    extension = extend_tokenizer(tokenizer, ["qa lo qa lo qa lo"], 50, vocab_size=len(tokenizer))
    assert extension.tokens
    assert not [token for token in extension.tokens if "▁" in token[1:]]


def test_unknown_characters_are_part_of_no_token() -> None:
    tokenizer = with_unknowns()
    assert tokenizer.tokenize("ᏣᎳᎩ") == ["<unk>"] * 3
    extension = extend_tokenizer(tokenizer, NEW, 50, vocab_size=len(tokenizer))
    assert tokenizer.unk_token_id not in {old for pieces in extension.pieces for old in pieces}


def test_an_exhausted_text_gives_what_it_has() -> None:
    tokenizer = byte_level()
    extension = extend_tokenizer(tokenizer, ["qx qx"], 10, vocab_size=V)
    assert extension.tokens == ["qx"]
    assert extension.shortfall == (
        "the text gave 1 of the 10 new tokens that were asked for: nothing else that could be a token occurs "
        "twice in it"
    )


def test_a_long_text_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sprachbund.adaptation.vocabulary.BYTES_TO_LEARN_FROM", 100)
    texts = ["qx qx qx"] * 2000 + ["zk zk zk"] * 2000
    extension = extend_tokenizer(byte_level(), texts, 10, vocab_size=V)
    assert set(extension.tokens) == {"qx", "Ġqx", "zk", "Ġzk"}


@pytest.mark.parametrize(
    ("model", "kind"),
    [(models.Unigram([("a", -1.0)], 0, False), "Unigram"), (models.WordPiece({"a": 0}, unk_token="a"), "WordPiece")],
)
def test_other_tokenizers_are_refused(model: Any, kind: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="a")
    with pytest.raises(InputError, match=f"adds merges to BPE tokenizers, and this one is of type {kind}"):
        extend_tokenizer(tokenizer, NEW, 8, vocab_size=V)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="needs a fast tokenizer"):
        extend_tokenizer(Slow(), NEW, 8, vocab_size=V)


def test_a_tokenizer_beyond_the_rows_and_a_negative_number_are_refused() -> None:
    with pytest.raises(InputError, match="ids up to 284 and the model's embedding 284 rows"):
        extend_tokenizer(byte_level(), NEW, 8, vocab_size=V - 1)
    with pytest.raises(InputError, match="--extend-vocab -1: give the number of new tokens, 0 or more"):
        extend_tokenizer(byte_level(), NEW, -1, vocab_size=V)


@pytest.mark.parametrize("damage", [{"pieces": []}, {"vocab_size": V + 1}, {"merges": [[9999, 1]]}, {"format": 2}])
def test_damaged_files_are_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    extend_tokenizer(byte_level(), NEW, 8, vocab_size=V).save(tmp_path)
    facts = json.loads((tmp_path / "extension.json").read_text(encoding="utf-8"))
    (tmp_path / "extension.json").write_text(json.dumps(facts | damage), encoding="utf-8")
    with pytest.raises(InputError, match=r"extension\.json does not fit the tokenizer beside it"):
        load_extension(tmp_path)


def test_a_folder_without_extension_is_refused(tmp_path: Path) -> None:
    byte_level().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"extension\.json: cannot be read"):
        load_extension(tmp_path)
