import gzip
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from sprachbund.corpora import cldr, hub, sources
from sprachbund.corpora.sources import read_documents
from sprachbund.errors import InputError, SprachbundError
from sprachbund.recipe import Source

TEXTS = ["Habari ya dunia.", "Ein\nzweizeiliges Dokument", "สวัสดี\u2028ชาวโลก", "Cafe\u0301 and Caf\u00e9"]


def jsonl(texts: list[str], field: str = "text") -> bytes:
    return "".join(
        json.dumps({"id": i, field: text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts)
    ).encode()


def write(path: Path, data: bytes) -> str:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return str(path)


def read(file: str, **more: object) -> list[str]:
    return list(read_documents(Source.model_validate({"file": file, **more})))


def parquet(path: Path, columns: dict[str, list[object]]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path.read_bytes()


def error(file: str, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        read(file, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "sw.2024.JSONL.gz"])
def test_jsonl_gives_every_document_as_written(tmp_path: Path, name: str) -> None:
    assert read(write(tmp_path / name, jsonl(TEXTS))) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_txt_is_one_document_a_line_stripped_without_blank_ones(tmp_path: Path, name: str) -> None:
    data = "\ufeff first \r\n\n   \nsecond\u2028half\nlast".encode()
    assert read(write(tmp_path / name, data)) == ["first", "second\u2028half", "last"]


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz", "a.parquet.zst"])
def test_parquet_gives_the_column(tmp_path: Path, name: str) -> None:
    data = parquet(tmp_path / "made", {"n": [1, 2, 3, 4], "body": [*TEXTS]})
    assert read(write(tmp_path / name, data), field="body") == TEXTS


def test_lines_longer_than_a_chunk_and_frames_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 7)
    data = jsonl(TEXTS)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(data[:50]) + zstandard.compress(data[50:]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]))
    assert read(str(tmp_path / "a.jsonl.zst")) == TEXTS
    assert read(str(tmp_path / "a.jsonl.gz")) == TEXTS
    assert read(write(tmp_path / "a.jsonl", data)) == TEXTS


def test_empty_documents_are_skipped_and_max_documents_counts_the_others(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", jsonl(["", "one", "  ", "two"]) + b"not read")
    assert read(file, max_documents=2) == ["one", "two"]


def test_the_split_takes_its_place_in_the_path(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "a.txt", split.encode())
    source = Source.model_validate(str(tmp_path / "{split}" / "a.txt"))
    assert [next(read_documents(source, split=split)) for split in ("train", "dev", "test")] == ["train", "dev", "test"]
    for wrong in (None, "valid"):
        with pytest.raises(ValueError, match=r"split="):
            read_documents(source, split=wrong)


def test_a_split_for_a_path_without_one_is_refused_since_all_splits_would_be_one_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        read_documents(Source.model_validate("a.txt"), split="dev")


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "swh_Latn.jsonl", jsonl(TEXTS))
    assert error(str(tmp_path / "swa_Latn.jsonl")).endswith("does not exist, did you mean 'swh_Latn.jsonl'?")
    assert "relative to the recipe" in error(str(tmp_path / "qqq.parquet"))
    assert "nor does its folder" in error(str(tmp_path / "no" / "a.txt"))
    assert "is a folder" in error(str(tmp_path))


def test_unknown_formats_list_the_known(tmp_path: Path) -> None:
    for name in ("a.csv", "a", "a.json.gz", "a.txt.bz2", "a.gz"):
        message = error(write(tmp_path / name, b""))
        assert ".jsonl, .txt, .parquet" in message
        assert ".gz or .zst" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "cut', "line 2 is not JSON: "),
        (b"[" * 100_000, "line 2"),
        (b'["text"]', "line 2 holds a JSON list"),
        (b'{"id": 1, "body": "x"}', "line 2 has no field 'text'; it has 'id', 'body'"),
        (b"{}", "line 2 has no field 'text'; it has no field"),
        (b'{"text": null}', "line 2: field 'text' is NoneType, not a string"),
        (b'{"text": ["a"]}', "line 2: field 'text' is list, not a string"),
        (b'{"text": "a\\ud800"}', "line 2: field 'text' has half a surrogate pair at character 1"),
        (b'{"text": "caf\xe9"}', "line 2 is not UTF-8 (byte 0xe9 at position 13)"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    message = error(write(tmp_path / "a.jsonl", jsonl(["fine"]) + line + b"\n"))
    assert str(tmp_path / "a.jsonl") in message
    assert said in message


def test_txt_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    assert "line 1 is not UTF-8" in error(write(tmp_path / "a.txt", "Grüße".encode("utf-16")))


@pytest.mark.parametrize("keep", [0.5, 0.99])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_files_are_errors_not_shorter_corpora(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    data = Path(write(path, jsonl([f"{i} {i * 7919 % 1009}" for i in range(3000)]))).read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    assert "is truncated: its compressed stream ends too early" in error(str(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_files_that_are_not_what_their_suffix_says(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(b"plain text, not compressed")
    assert f"no sound {suffix} file" in error(str(path))


def test_bad_parquet(tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", {"body": ["x", "y", None]})
    assert "has no column 'text'; it has 'body'" in error(str(tmp_path / "a.parquet"))
    assert "row 3: field 'body' is NoneType" in error(str(tmp_path / "a.parquet"), field="body")
    assert "no sound Parquet file" in error(write(tmp_path / "b.parquet", data[:-10]))
    assert "no sound Parquet file" in error(write(tmp_path / "c.parquet.gz", b""))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.txt.zst"])
def test_a_corpus_without_text_is_an_error(tmp_path: Path, name: str) -> None:
    assert "holds no document with text" in error(write(tmp_path / name, b" \n\n"))


def test_the_hub_is_streamed_with_the_recipe_s_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load(path: str, name: str | None = None, **options: object) -> datasets.IterableDataset:
        asked.update(options, path=path, name=name)
        rows = [{"content": text, "url": "x"} for text in ["", *TEXTS]]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    given = {"hub": "some/corpus", "name": "swh_Latn", "split": "test", "revision": "v2", "field": "content"}
    documents = read_documents(Source.model_validate({**given, "max_documents": 3}))
    assert list(documents) == TEXTS[:3]
    assert asked == {
        "path": "some/corpus",
        "name": "swh_Latn",
        "split": "test",
        "revision": "v2",
        "streaming": True,
    }
    with pytest.raises(
        InputError, match=r"some/corpus, split train, row 1 has no field 'text'; it has 'content', 'url'"
    ):
        list(read_documents(Source(hub="some/corpus")))


@pytest.mark.parametrize(
    ("raised", "said", "kind"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'some/corpus' doesn't exist on the Hub.\nLog in."),
            "revision main cannot be read (Dataset 'some/corpus' doesn't exist on the Hub); check its id",
            InputError,
        ),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']"),
            "needs one of its configurations in the source's name: Config name is missing. Please pick one",
            InputError,
        ),
        (ValueError("BuilderConfig 'c' not found. Available: ['a', 'b']"), "Available: ['a', 'b']", InputError),
        (ValueError("Bad split: train. Available splits: ['test']"), "has no split 'train'", InputError),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "never run here", InputError),
        (ConnectionError("Couldn't reach the Hub"), "could not be read: ConnectionError", SprachbundError),
    ],
)
def test_the_library_s_exceptions_become_one_sentence(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str, kind: type[Exception]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(SprachbundError) as caught:
        list(read_documents(Source(hub="some/corpus")))
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_that_breaks_later_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WAITS", ())

    def broken() -> object:
        yield {"text": "one"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(broken))
    documents = read_documents(Source(hub="some/corpus"))
    assert next(documents) == "one"
    with pytest.raises(SprachbundError, match="could not be read: OSError: connection reset"):
        next(documents)


def test_cldr_renders_with_the_locale_lines_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cldr, "render", lambda locale, *, lines, seed: [f"{locale} {seed} {i}" for i in range(lines)])
    assert list(read_documents(Source(cldr="ro", lines=2), seed=5)) == ["ro 5 0", "ro 5 1"]


def test_no_torch_on_the_import_path() -> None:
    modules = ", ".join(f"sprachbund.corpora.{name}" for name in ("audit", "mixture", "packing", "sources", "splits"))
    code = f"import sys, {modules}; print(sorted({{'torch', 'datasets', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
