import json
from pathlib import Path
from typing import Any

import pytest

from sprachbund.corpora.sentences import evenly_spaced, read_parallel
from sprachbund.errors import InputError


def write(folder: Path, suffix: str, **texts: Any) -> str:
    """Write a file per language and return their pattern."""
    for tag, lines in texts.items():
        content = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (folder / f"{tag}{suffix}").write_text("\n".join(content) + "\n", encoding="utf-8")
    return str(folder / f"{{tag}}{suffix}")


def read(pattern: str, *, most: int = 100) -> dict[str, list[str]]:
    return read_parallel(pattern, ["deu", "rus"], most=most)


def test_line_n_is_the_same_sentence(tmp_path: Path) -> None:
    pattern = write(tmp_path, ".txt", deu=["eins", " zwei ", "drei"], rus=["один", "два", "три\u2028четыре"])
    assert read(pattern) == {"deu": ["eins", "zwei", "drei"], "rus": ["один", "два", "три\u2028четыре"]}


def test_a_sentence_that_one_language_lacks_is_left_out_of_all(tmp_path: Path) -> None:
    pattern = write(tmp_path, ".txt", deu=["eins", "", "drei", "vier"], rus=["один", "два", "три", "  "])
    assert read(pattern) == {"deu": ["eins", "drei"], "rus": ["один", "три"]}


def test_at_most_so_many_are_taken_evenly_spaced(tmp_path: Path) -> None:
    lines = [str(n) for n in range(10)]
    found = read(write(tmp_path, ".txt", deu=lines, rus=lines), most=4)
    assert found["deu"] == found["rus"] == ["0", "2", "5", "7"]
    assert evenly_spaced(3, most=512) == [0, 1, 2]
    assert evenly_spaced(1000, most=3) == [0, 333, 666]


def test_ids_match_sentences_in_any_order(tmp_path: Path) -> None:
    deu = [{"id": "a", "text": "eins"}, {"id": 2, "text": "zwei"}, {"id": "c", "text": "drei"}]
    rus = [{"id": "c", "text": "три"}, {"id": "x", "text": "?"}, {"id": "a", "text": "один"}, {"id": 2, "text": ""}]
    assert read(write(tmp_path, ".jsonl", deu=deu, rus=rus)) == {"deu": ["eins", "drei"], "rus": ["один", "три"]}


def test_without_ids_lines_match(tmp_path: Path) -> None:
    pattern = write(tmp_path, ".jsonl", deu=[{"text": "eins"}, {"text": "zwei"}], rus=[{"text": "один"}, {"text": "2"}])
    assert read(pattern) == {"deu": ["eins", "zwei"], "rus": ["один", "2"]}


@pytest.mark.parametrize(
    ("suffix", "deu", "rus", "message"),
    [
        (".txt", ["eins", "zwei"], ["один"], r"/deu.txt has 2 lines and .*/rus.txt has 1; line n must be the same"),
        (".jsonl", [{"text": "a"}, {"text": "b"}], [{"text": "c"}], r"deu.jsonl has 2 lines and .*rus.jsonl has 1;"),
        (".txt", ["eins", ""], ["", "два"], "no line of .*deu.txt has text in every language"),
        (".jsonl", [{"id": 1, "text": "a"}], [{"id": 2, "text": "b"}], "no id of .*deu.jsonl has text in every"),
        (
            ".jsonl",
            [{"id": 1, "text": "a"}] * 2,
            [{"id": 1, "text": "b"}],
            "deu.jsonl, line 2: the id '1' occurs twice",
        ),
        (".jsonl", [{"text": "a"}], ["{"], r"rus.jsonl, line 1 is not JSON: .* at column 2; give one object a line"),
        (".jsonl", [{"text": "a"}], ["[" * 100_000], r"rus.jsonl, line 1 is not JSON"),
        (".jsonl", [{"text": "a"}], ["[1]"], 'rus.jsonl, line 1 has no text in the field "text"'),
        (".jsonl", [{"text": "a"}], [{"text": "a"}, {"text": 3}], 'rus.jsonl, line 2 has no text in the field "text"'),
        (".csv", ["a"], ["b"], "is of no known format; its name must end in .txt or .jsonl"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    suffix: str, deu: list[Any], rus: list[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(write(tmp_path, suffix, deu=deu, rus=rus))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rus.txt: cannot be read"):
        read(write(tmp_path, ".txt", deu=["eins"]))
