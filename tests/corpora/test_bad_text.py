"""What is wrong with text, and what becomes of it: one sentence, or a count; never a traceback or a silent drop."""

import json
import tracemalloc
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from sprachbund.corpora import sources
from sprachbund.corpora.audit import audit
from sprachbund.corpora.bad_lines import describe_skipped, skipped_warning
from sprachbund.corpora.overlap import shared_documents, shared_warning
from sprachbund.corpora.sources import read_documents
from sprachbund.corpora.splits import split_documents
from sprachbund.errors import InputError
from sprachbund.recipe import Recipe, Source, Splits
from sprachbund.recipe_file import load_recipe
from sprachbund.run.adapt_settings import parse_languages
from sprachbund.run.data import Corpora, make_tokenizer, pack_corpora, source_state
from sprachbund.run.directory import open_run

# A bad line of JSON, the reason it is counted under, and what is said of it.
BAD = [
    (b'{"text": "caf\xe9"}', "not UTF-8", "is not UTF-8 (byte 0xe9 at position 13); convert the file to UTF-8"),
    (b'{"text": "a\0b"}', "NUL character", "has a NUL character at character 11, as damaged and UTF-16 files do"),
    (b'{"text": "a\\u0000b"}', "NUL character", "field 'text' has a NUL character at character 1"),
    (b'{"text": "a\\ud83d"}', "half a surrogate pair", "has half a surrogate pair at character 1; repair the text"),
    (b'{"text": "\\udca9"}', "half a surrogate pair", "has half a surrogate pair at character 0"),
    (b'{"text": "cut', "no JSON object", "is not JSON: "),
    (b'{"text": "a"} {"text": "b"}', "no JSON object", "is not JSON: Extra data at column 15; give one object a line"),
    (b'{"text": ' + b"9" * 5000 + b"}", "no JSON object", "cannot be read as JSON (Exceeds the limit"),
    (b"[" * 100_000, "no JSON object", "is nested too deeply"),
    (b"null", "no JSON object", "holds a JSON NoneType"),
    (b'{"body": "x"}', "no such field", "has no field 'text'; it has 'body'; set the source's field"),
    (b'{"text": null}', "no text", "field 'text' is NoneType, not a string"),
    (b'{"text": "' + b"a" * 70 + b'"}', "too long", "is longer than 0 MiB; cut it into several documents"),
]


@pytest.fixture
def _short_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 64)


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(path: Path, *, skip: bool = False, **more: object) -> tuple[list[str], Counter[str]]:
    source = Source.model_validate({"file": str(path), "on_bad_line": "skip" if skip else "error", **more})
    skipped: Counter[str] = Counter()
    return list(read_documents(source, skipped=skipped)), skipped


def error(path: Path, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("line", "reason", "said"), BAD)
def test_a_bad_line_is_an_error_that_names_it_and_the_way_to_skip_it(
    tmp_path: Path, line: bytes, reason: str, said: str, request: pytest.FixtureRequest
) -> None:
    if reason == "too long":
        request.getfixturevalue("_short_lines")
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}', b"", line)
    message = error(path)
    assert message.startswith(f"{path}, line 3")
    assert said in message
    assert message.endswith(", or leave such lines out with on_bad_line: skip.")


@pytest.mark.usefixtures("_short_lines")
def test_skipped_lines_are_counted_by_reason_and_nothing_else_is_lost(tmp_path: Path) -> None:
    short = [(line, reason) for line, reason, _ in BAD if len(line) <= 64 or reason == "too long"]
    lines = [part for i, (line, _) in enumerate(short) for part in (line, b'{"text": "fine %d"}' % i)]
    texts, skipped = read(write(tmp_path / "a.jsonl", *lines, b'{"text": " "}'), skip=True)
    assert texts == [f"fine {i}" for i in range(len(short))]
    assert skipped == Counter([*(reason for _, reason in short), "empty"])


def test_empty_documents_are_no_mistake_but_counted_and_blank_lines_are_no_documents(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": ""}', b"", b'{"text": "one"}', b'{"text": " \\u2028\\n"}', b"  ")
    assert read(path) == (["one"], Counter({"empty": 2}))


@pytest.mark.parametrize("skip", [True, False])
def test_a_file_of_which_nothing_is_left_is_an_error_under_both_policies(tmp_path: Path, skip: bool) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": ""}', *([b"{", b"\xff"] if skip else []), b'{"text": "\\t"}', b"{")
    path = path if skip else write(path, b'{"text": ""}')
    found = "2 empty, 2 no JSON object, 1 not UTF-8" if skip else "1 empty"
    assert f"{path} holds no document with text (left out: {found}); give a source" in error(path, skip=skip)


def test_a_wrong_field_in_every_row_is_never_a_corpus_of_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[b'{"body": "x"}'] * 3)
    assert "(left out: 3 no such field)" in error(path, skip=True)


def test_damage_to_a_whole_file_is_an_error_under_skip_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"some text\n" * 999)[:-3])
    assert "is truncated" in error(path, skip=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "a.parquet")
    assert "the column 'text' holds int64, not text" in error(tmp_path / "a.parquet", skip=True)
    assert "does not exist" in error(tmp_path / "b.txt", skip=True)


# ---- what stands in text and in files without being wrong ----


@pytest.mark.parametrize("chunk", [1, 2, 3, 1 << 20])
def test_every_kind_of_line_end_and_marks_of_byte_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", chunk)
    mark = b"\xef\xbb\xbf"
    data = mark + b"unix\ndos\r\nold mac\r\r\nafter a blank line\n" + mark + "put\u2028to\u0085gether\r".encode()
    (tmp_path / "a.txt").write_bytes(data)
    expected = ["unix", "dos", "old mac", "after a blank line", "put\u2028to\u0085gether"]
    assert read(tmp_path / "a.txt") == (expected, Counter())
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in expected]
    (tmp_path / "a.jsonl").write_bytes(mark + lines[0] + b"\r" + lines[1] + b"\r\n" + mark + b"\n".join(lines[2:]))
    assert read(tmp_path / "a.jsonl")[0] == expected
    (tmp_path / "b.jsonl").write_bytes(b"\r\n\r".join([*lines, b"{"]))  # each pair is two line ends
    assert ", line 11 is not JSON" in error(tmp_path / "b.jsonl")


def test_marks_of_direction_joiners_and_line_ends_inside_a_document_are_text(tmp_path: Path) -> None:
    texts = ["\u200fשלום\u200e (abc)\u200f", "می\u200cخواهم", "\u2067עברית\u2069", "a\rb\r\nc\u2028d", "e\ufeffg"]
    path = write(tmp_path / "a.jsonl", *(json.dumps({"text": text}).encode() for text in texts))
    assert read(path) == (texts, Counter())


# ---- memory ----


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.zst"])
def test_a_line_of_200_mb_is_refused_or_skipped_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path, piece = tmp_path / name, b"a" * (1 << 20)
    with zstandard.open(path, "wb") if name.endswith(".zst") else path.open("wb") as file:
        for _ in range(200):
            file.write(piece)
        file.write(b'\n{"text": "after"}\n')
    tracemalloc.start()
    try:
        message = error(path)
        texts, skipped = read(path, skip=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.startswith(f"{path}, line 1 is longer than 16 MiB; cut it into several documents")
    assert texts == ["after" if name == "a.jsonl" else '{"text": "after"}']
    assert skipped == Counter({"too long": 1})
    assert peak < 120 << 20


# ---- Parquet and the Hub ----


def test_parquet_with_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"caf\xe9", None, b"nul\0", b"", b"last"], type=pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(len(raw), *raw.buffers()[1:], raw.buffers()[0])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert "row 2 is not UTF-8 (byte 0xe9 at position 3)" in error(tmp_path / "a.parquet")
    reasons = Counter(["not UTF-8", "no text", "NUL character", "empty"])
    assert read(tmp_path / "a.parquet", skip=True) == (["fine", "last"], reasons)


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_parquet_in_other_types_of_text(tmp_path: Path, kind: pyarrow.DataType) -> None:
    texts = ["Grüße", "می\u200cخواهم", "Grüße"]
    table = pyarrow.table({"text": pyarrow.array(texts).cast(kind)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == texts


@pytest.mark.usefixtures("_short_lines")
def test_long_values_in_rows(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["x" * 65, "x" * 64]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "row 1 is longer than" in error(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", skip=True) == (["x" * 64], Counter({"too long": 1}))


def test_bad_rows_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": "nul\0"}, {"text": "two"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter(rows))
    with pytest.raises(InputError, match=r"row 2: field 'text' is NoneType.*on_bad_line: skip"):
        list(read_documents(Source(hub="some/corpus")))
    skipped: Counter[str] = Counter()
    assert list(read_documents(Source(hub="some/corpus", on_bad_line="skip"), skipped=skipped)) == ["one", "two"]
    assert skipped == Counter(["no text", "NUL character"])


# ---- what the user is told ----


def test_the_counts_of_all_splits_are_added_up(tmp_path: Path) -> None:
    for split, bad in (("train", 1), ("dev", 2), ("test", 0)):
        write(tmp_path / f"{split}.jsonl", *[b"{"] * bad, b'{"text": "%s"}' % split.encode(), b'{"text": ""}')
    source = Source(file=str(tmp_path / "{split}.jsonl"), on_bad_line="skip")
    found = split_documents(source, Splits(), seed=0)
    assert (found.documents, found.skipped) == (3, {"no JSON object": 3, "empty": 3})
    assert list(found.all_documents()) == ["train", "dev", "test"]


def test_sentences_about_what_was_skipped() -> None:
    assert skipped_warning({}, 10) is skipped_warning({"empty": 9}, 10) is None
    assert skipped_warning({"not UTF-8": 1, "empty": 9, "too long": 1000}, 9000) == (
        "1,001 of 10,001 lines were skipped as on_bad_line says (1,000 too long, 1 not UTF-8); repair them."
    )
    assert describe_skipped({"b": 1, "a": 1}) == "1 a, 1 b"


def test_documents_under_several_languages() -> None:
    found = shared_documents({"a": ["x", "y", "x", "z"], "b": iter(["x", "z"]), "c": ["z"], "d": ["q"]})
    assert found == {"a": {"b": 2 / 3, "c": 1 / 3}, "b": {"a": 1.0, "c": 0.5}, "c": {"a": 1.0, "b": 1.0}, "d": {}}
    assert list(found["a"]) == ["b", "c"]
    assert shared_warning({"b": 0.01}) is None
    assert shared_warning(dict.fromkeys("bcde", 0.5)) == (
        "documents are shared with other languages (50% with b, 50% with c, 50% with d and 1 more); "
        "give every language its own text."
    )


def test_the_audit_tells_what_was_skipped_and_what_two_languages_share(tmp_path: Path) -> None:
    common = [f"habari ya asubuhi {i}" for i in range(100)]
    for tag, texts in {"swh_Latn": common, "zul_Latn": common[:30] + [f"sawubona {i}" for i in range(270)]}.items():
        lines = [json.dumps({"text": text}).encode() for text in texts]
        write(tmp_path / f"{tag}.jsonl", *lines, b"{", b'{"text": ""}')
    languages = {
        tag: {"file": str(tmp_path / f"{tag}.jsonl"), "on_bad_line": "skip"} for tag in ("swh_Latn", "zul_Latn")
    }
    train = {"tokens": 1000, "tokens_per_step": 64, "block_size": 64, "stages": [{"share": 1.0}]}
    given = {"name": "t", "base": "some/base", "languages": languages, "groups": {"count": 2}, "train": train}
    swahili, zulu = audit(Recipe.model_validate(given))
    assert swahili.skipped == zulu.skipped == {"no JSON object": 1, "empty": 1}
    assert swahili.shared == pytest.approx({"zul_Latn": 0.3})
    assert zulu.shared == pytest.approx({"swh_Latn": 0.1})
    assert swahili.warnings() == [
        "swh_Latn: 1 of 101 lines were skipped as on_bad_line says (1 no JSON object); repair them.",
        "swh_Latn: documents are shared with other languages (30% with zul_Latn); give every language its own text.",
    ]


def test_a_run_tells_it_too(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpora/ron.jsonl"
    corpus.write_bytes(corpus.read_bytes() + b'{"text": "caf\xe9"}\n')
    stopped = load_recipe(tiny)
    with pytest.raises(InputError, match=r"languages\.ron_Latn: .*ron\.jsonl, line 81 is not UTF-8"):
        _ = Corpora(stopped).documents
    skipping = tiny.read_text().replace("corpora/ron.jsonl", "{file: corpora/ron.jsonl, on_bad_line: skip}")
    tiny.write_text(skipping.replace("corpora/ukr.jsonl", "corpora/rus.jsonl"))
    recipe = load_recipe(tiny)
    run, corpora = open_run(recipe, tmp_path / "run"), Corpora(recipe)
    pack_corpora(run, corpora, make_tokenizer(run, corpora))
    run.close()
    facts = json.loads(run.path("corpora.json").read_text())
    said = capsys.readouterr().err
    assert "languages.ron_Latn: 1 of 81 lines were skipped as on_bad_line says (1 not UTF-8); repair them." in said
    assert "languages.ukr_Cyrl: documents are shared with other languages (100% with rus_Cyrl)" in said
    assert facts["ron_Latn"]["skipped"] == {"not UTF-8": 1}
    assert facts["rus_Cyrl"]["shared"] == {"ukr_Cyrl": 1.0}
    assert facts["ita_Latn"]["skipped"] == facts["ita_Latn"]["shared"] == {}


def test_the_policy_makes_a_corpus_another_one_only_where_it_skips() -> None:
    plain = source_state(Source(cldr="ro"))
    assert "on_bad_line" not in plain  # as in runs from before there was a choice
    assert source_state(Source(cldr="ro", on_bad_line="error")) == plain
    assert source_state(Source(cldr="ro", on_bad_line="skip")) != plain


def test_the_policy_of_new_languages_comes_from_the_command_line() -> None:
    words = ["mam_Latn=a.jsonl", "ron_Latn=cldr:ro"]
    found = parse_languages(words, option="--language", on_bad_line="skip")
    assert [source.on_bad_line for source in found.values()] == ["skip", "skip"]
    assert parse_languages(words[:1], option="--language")["mam_Latn"].on_bad_line == "error"
