"""Several files for one language, and files that are not what they were a moment ago."""

import gzip
import io
import json
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from sprachbund.corpora import shards, sources
from sprachbund.corpora.kept_splits import source_state
from sprachbund.corpora.sources import read_documents
from sprachbund.corpora.splits import split_documents
from sprachbund.errors import InputError
from sprachbund.recipe import Source, Splits
from sprachbund.recipe_file import build_recipe, dump_recipe, load_recipe
from sprachbund.run.data import Corpora


def write(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if ".txt" in path.suffixes:
        data = "".join(text + "\n" for text in texts).encode()
    if path.suffix == ".parquet":
        into = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), into)
        data = into.getvalue()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix)
    path.write_bytes(pack(data) if pack else data)
    return path


def read(given: Any, split: str | None = None) -> list[str]:
    return list(read_documents(Source.model_validate(given), split=split))


def refused(given: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- which files ----


def test_a_pattern_finds_its_files_by_name_whatever_they_are_compressed_with(tmp_path: Path) -> None:
    write(tmp_path / "swh/b.jsonl", "two")
    write(tmp_path / "swh/a.jsonl.zst", "one", "more")
    write(tmp_path / "swh/c/d.jsonl.gz", "three")
    write(tmp_path / "swh/e.txt.gz", "four")
    write(tmp_path / "swh/f.parquet", "five")
    (tmp_path / "swh/x.jsonl").mkdir()
    assert read(f"{tmp_path}/swh/*.jsonl*") == ["one", "more", "two"]
    assert read(f"{tmp_path}/swh/**/*.*") == ["one", "more", "two", "three", "four", "five"]
    assert read(f"{tmp_path}/swh/[ab].jsonl*") == ["one", "more", "two"]


def test_a_list_is_read_in_its_order_and_a_file_that_is_found_twice_once(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.txt", name)
    assert read([f"{tmp_path}/c.txt", f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"]) == ["c", "a", "b"]


def test_a_name_with_the_letters_of_a_pattern_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].txt", "this")
    write(tmp_path / "a1.txt", "that")
    assert read(f"{tmp_path}/a[1].txt") == ["this"]


def test_splits_may_have_several_files_each(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        for n in range(2):
            write(tmp_path / split / f"{n}.txt.zst", f"{split} {n}")
    source = Source(file=f"{tmp_path}/{{split}}/*.txt.zst")
    assert read(source, "dev") == ["dev 0", "dev 1"]
    assert split_documents(source, Splits(), seed=0).test == ["test 0", "test 1"]
    both = [f"{tmp_path}/{{split}}/0.txt.zst", f"{tmp_path}/train/1.txt.zst"]
    with pytest.raises(InputError, match=r"0\.txt\.zst has \{split\} and .*1\.txt\.zst has not; write it in all"):
        split_documents(Source(file=both), Splits(), seed=0)


def test_mistakes_name_the_shard_and_its_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", "one")
    write(tmp_path / "b.jsonl", "two").open("ab").write(b"{\n")
    assert f"{tmp_path}/b.jsonl, line 2 is not JSON" in refused(f"{tmp_path}/*.jsonl")
    assert refused(f"{tmp_path}/*.txt").startswith(f"{tmp_path}/*.txt finds no file; correct the pattern")
    assert "does not exist" in refused([f"{tmp_path}/a.jsonl", f"{tmp_path}/none.jsonl"])
    assert f"such as {tmp_path}/*.jsonl" in refused(str(tmp_path))
    write(tmp_path / "c.txt"), write(tmp_path / "d.txt")
    assert f"{tmp_path}/[cd].txt holds no document with text" in refused(f"{tmp_path}/[cd].txt")


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.parquet", "a.parquet.gz", "a.parquet.zst"]
)
def test_a_shard_that_is_cut_off_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "0.jsonl", "whole")
    path = tmp_path / name
    if name.startswith("a.parquet."):
        data = write(tmp_path / "a.parquet", *(f"text {i}" for i in range(500))).read_bytes()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else zstandard.compress(data))
    else:
        write(path, *(f"text {i}" for i in range(500)))
    path.write_bytes(path.read_bytes()[:-9])
    message = refused([f"{tmp_path}/0.jsonl", str(path)])
    assert message.startswith(str(path))
    assert message.endswith("fetch it again.")


@pytest.mark.parametrize("file", [5, [], ["a.txt", 5], [["a.txt"]], ""])
def test_what_is_no_path(tmp_path: Path, tiny: Path, file: object) -> None:
    with pytest.raises(InputError, match=r"languages\.ita_Latn\.file: found .*; give a path, or a list of paths"):
        load_recipe(tiny, overrides=[f"languages.ita_Latn={json.dumps({'file': file})}"])


def test_a_recipe_with_several_files_is_seen_from_its_folder_and_comes_back(tiny: Path) -> None:
    given = {"ita_Latn": ["corpora/it*.jsonl", "corpora/ita.jsonl"], "ron_Latn": {"file": "corpora/r*n.jsonl"}}
    recipe = load_recipe(tiny, overrides=[f"languages.{tag}={json.dumps(file)}" for tag, file in given.items()])
    folder = tiny.parent / "corpora"
    assert recipe.languages["ita_Latn"].file == [f"{folder}/it*.jsonl", f"{folder}/ita.jsonl"]
    assert build_recipe(dump_recipe(recipe), name="r", folder=Path("/elsewhere")) == recipe
    assert len(Corpora(recipe).documents["ita_Latn"].train) == len(
        Corpora(load_recipe(tiny)).documents["ita_Latn"].train
    )


# ---- what tells that they changed ----


def test_the_state_of_one_file_is_that_of_the_first_release_and_of_several_their_order(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.txt", "one"), write(tmp_path / "b.txt", "two")
    state = source_state(Source(file=str(one)))
    assert state["file"] == [[[".txt"], sha256(b"one\n").hexdigest()]]
    assert source_state(Source(file=f"{tmp_path}/a*.txt")) == state
    forth, back = (source_state(Source(file=[str(path) for path in paths])) for paths in ((one, two), (two, one)))
    assert forth["file"] == [back["file"][0][::-1]] != back["file"]


def test_the_content_of_a_large_file_is_known_while_nothing_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "REMEMBERED_BYTES", 1)
    path = write(tmp_path / "a.txt", "one")
    first = shards.content_of(path)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_hashed", lambda _: pytest.fail("hashed again"))
        assert shards.content_of(path) == first
    os.utime(path, ns=(1, 1))
    path.write_text("two\n")
    assert shards.content_of(path) != first


def growing(path: Path) -> Any:
    """Return a reader of files that writes to the file once its first line was read."""
    real = sources._file

    def read(of: Path, field: str) -> Iterator[Any]:
        for number, item in enumerate(real(of, field)):
            if number == 0:
                path.write_bytes(path.read_bytes() + b'{"text": "half')
            yield item

    return read


def test_a_file_that_grows_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", "one", "two", "three")
    monkeypatch.setattr(sources, "_file", growing(path))
    size = path.stat().st_size
    assert refused(str(path)) == (
        f"{path} changed while it was in use (from {size:,} to {size + 14:,} bytes); start again once nothing writes "
        "to it."
    )


@pytest.mark.parametrize("how", ["longer", "same size", "gone", "one more"])
def test_a_corpus_that_changes_between_the_fingerprint_and_the_reading_is_noticed(
    tmp_path: Path, tiny: Path, how: str
) -> None:
    folder = tiny.parent / "corpora"
    recipe = load_recipe(tiny, overrides=["languages.ita_Latn=corpora/it*.jsonl"])
    corpora = Corpora(recipe)
    assert "ita_Latn" in corpora.states
    path = folder / "ita.jsonl"
    data = path.read_bytes()
    if how == "one more":
        write(folder / "it2.jsonl", "more")
    elif how == "gone":
        path.rename(folder / "it2.jsonl")
    else:
        path.write_bytes(data + b"\n" if how == "longer" else data.replace(b"a", b"e"))
        os.utime(path, ns=(5, 5))
    said = "it2.jsonl appeared while" if how in ("one more", "gone") else "ita.jsonl changed while it was in use"
    with pytest.raises(InputError, match=rf"^languages\.ita_Latn: .*{said}"):
        _ = corpora.documents
    assert "ita_Latn" in Corpora(recipe).documents, "another start takes what is there"


def test_and_between_the_reading_and_the_fingerprint(tiny: Path) -> None:
    corpora = Corpora(load_recipe(tiny))
    assert "ron_Latn" in corpora.documents
    path = tiny.parent / "corpora/ron.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"^languages\.ron_Latn: .*ron\.jsonl changed .* once nothing writes to it\.$"):
        _ = corpora.states
