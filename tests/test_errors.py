"""What libraries say, in sentences of ours."""

from sprachbund.errors import brief


def test_what_a_library_says_is_one_line_and_cut_between_words_where_one_sees_it() -> None:
    assert brief(ValueError("no\n  such  thing")) == "no such thing"
    said = brief("word " * 100)
    assert said.endswith("word word ...")
    assert len(said) <= 240
    assert brief("x" * 300) == "x" * 236 + " ...", "a word that fills the line is cut"
