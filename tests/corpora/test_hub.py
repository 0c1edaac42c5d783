"""Streams from the Hub that break off or end too early; a local folder and a fake stand for the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from sprachbund.corpora import hub
from sprachbund.corpora.sources import read_documents
from sprachbund.errors import InputError, SprachbundError
from sprachbund.recipe import Source

TEXTS = [f"text {i}" for i in range(10)]


class Stream:
    """A data set of TEXTS that breaks off after some rows, each time it is opened."""

    def __init__(self, breaks: list[int | None], rows: int = 10, known: int | None = None, skipped: int = 0) -> None:
        self.breaks, self.rows, self.skipped = breaks, rows, skipped
        self.info = SimpleNamespace(splits={"train": SimpleNamespace(num_examples=known)} if known else None)

    def skip(self, number: int) -> "Stream":
        found = Stream(self.breaks, self.rows, skipped=self.skipped + number)
        found.info = self.info
        return found

    def __iter__(self) -> Iterator[dict[str, str]]:
        end = self.breaks.pop(0) if self.breaks else None
        for number, text in enumerate(TEXTS[: self.rows]):
            if number == end:
                raise OSError("connection reset")
            if number >= self.skipped:
                yield {"text": text}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(hub, "sleep", found.append)
    return found


def streamed(monkeypatch: pytest.MonkeyPatch, stream: Any, **more: Any) -> Iterator[str]:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    return read_documents(Source(hub="some/corpus", **more))


def test_a_stream_that_breaks_off_is_taken_up_behind_the_last_row(
    monkeypatch: pytest.MonkeyPatch, waited: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(streamed(monkeypatch, Stream([3, 7, 7]))) == TEXTS
    assert waited == [1.0, 1.0, 5.0]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "the Hub data set some/corpus could not be read: OSError: connection reset; trying again behind row 3 in 1 s"
    )


def test_one_that_stays_broken_is_an_error(monkeypatch: pytest.MonkeyPatch, waited: list[float]) -> None:
    documents = streamed(monkeypatch, Stream([3] * 9))
    assert [next(documents) for _ in range(3)] == TEXTS[:3]
    with pytest.raises(SprachbundError, match="OSError: connection reset; try again later"):
        next(documents)
    assert waited == list(hub.WAITS)


def test_one_that_never_began_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch, waited: list[float]) -> None:
    with pytest.raises(SprachbundError, match="connection reset"):
        list(streamed(monkeypatch, Stream([0])))
    assert waited == []


def test_an_end_before_the_known_number_of_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SprachbundError) as caught:
        list(streamed(monkeypatch, Stream([], known=1000)))
    assert not isinstance(caught.value, InputError)
    assert str(caught.value) == (
        "the Hub data set some/corpus ended after 10 of the 1,000 rows that it gives for the split train; try again "
        "later, or set max_documents where these are all there are."
    )
    assert list(streamed(monkeypatch, Stream([], known=1000), max_documents=10)) == TEXTS
    assert list(streamed(monkeypatch, Stream([], known=10))) == TEXTS
    assert list(streamed(monkeypatch, Stream([], known=9))) == TEXTS


def test_a_folder_as_the_library_streams_it(tmp_path: Path) -> None:
    for shard in range(2):
        rows = [json.dumps({"text": text}) for text in TEXTS[shard * 5 : shard * 5 + 5]]
        (tmp_path / f"train-{shard}.jsonl").write_text("\n".join(rows) + "\n")
    info = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  splits:\n  - name: train\n"
    info += "    num_examples: {}\n    num_bytes: 1\n  download_size: 1\n  dataset_size: 1\n---\n"
    (tmp_path / "README.md").write_text(info.format(10))
    assert list(read_documents(Source(hub=str(tmp_path)))) == TEXTS
    (tmp_path / "README.md").write_text(info.format(11))
    with pytest.raises(SprachbundError, match="ended after 10 of the 11 rows"):
        list(read_documents(Source(hub=str(tmp_path))))
