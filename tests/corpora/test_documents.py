"""Documents on disk behave like the list of them."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.corpora import documents as module
from sprachbund.corpora.cache import cache_folder, working_folder
from sprachbund.corpora.documents import (
    Collector,
    Joined,
    Stored,
    batches,
    discard,
    total_bytes,
    total_characters,
)
from sprachbund.errors import SprachbundError

TEXTS = ["one", "zwei\u2028Zeilen", "", "สาม", "four " * 20]


def stored(path: Path, texts: list[str], *, block: int = 16) -> Stored:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IN_MEMORY_BYTES", -1)
        patch.setattr(module, "BLOCK_BYTES", block)
        collector = Collector(path)
        for text in texts:
            collector.add(text)
        found = collector.finish()
    assert isinstance(found, Stored)
    return found


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=30), block=st.integers(1, 40), data=st.data())
def test_stored_documents_are_those_of_the_list(texts: list[str], block: int, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        found = stored(Path(folder) / "a", texts, block=block)
        joined = Joined([found, texts[:3], []])
        assert list(found) == list(found) == texts
        assert list(joined) == texts + texts[:3]
        assert found.sound
        assert (len(found), found.num_bytes, found.num_characters) == (
            len(texts),
            total_bytes(texts),
            total_characters(texts),
        )
        limits = st.none() | st.integers(-40, 40)
        cut = slice(data.draw(limits), data.draw(limits), data.draw(limits.filter(lambda step: step != 0)))
        for same, wanted in ((found, texts), (joined, texts + texts[:3])):
            assert same[cut] == wanted[cut]
            for place in range(-len(wanted), len(wanted)):
                assert same[place] == wanted[place]
            for place in (len(wanted), -len(wanted) - 1):
                with pytest.raises(IndexError):
                    same[place]


def test_few_stay_in_memory_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 6)
    collector = Collector(tmp_path / "a")
    for text in ("abc", "def"):
        collector.add(text)
    assert collector.finish() == ["abc", "def"]
    assert list(tmp_path.iterdir()) == []
    collector.add("g")
    assert isinstance(collector.finish(), Stored)
    discard(["a list has no file"])
    discard(collector.finish())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_one_sentence_that_names_the_file(tmp_path: Path, damage: str) -> None:
    found = stored(tmp_path / "a", TEXTS, block=1000)
    data = found.path.read_bytes()
    changed = {"flip": data[:-6] + bytes([data[-6] ^ 1]) + data[-5:], "cut": data[:-5]}.get(damage)
    found.path.unlink()
    if changed is not None:
        found.path.write_bytes(changed)
    assert found.sound == (damage == "flip")
    with pytest.raises(SprachbundError, match="cannot be read any more") as caught:
        list(found)
    assert str(found.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batches_are_bounded_in_number_and_in_bytes() -> None:
    texts = ["a", "bb", "ccc", "dddddddd", "e"]
    assert list(batches(texts, most=2, most_bytes=100)) == [["a", "bb"], ["ccc", "dddddddd"], ["e"]]
    assert list(batches(texts, most=9, most_bytes=4)) == [["a", "bb", "ccc"], ["dddddddd"], ["e"]]
    assert list(batches([], most=9, most_bytes=4)) == []


def test_the_place_for_what_is_on_the_way_goes_with_the_process_even_if_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path))
    code = "import os, sys; from sprachbund.corpora.cache import working_folder; f = working_folder(); "
    code += "(f / 'text').write_text('x'); print(f, flush=True); sys.argv[1] == 'kill' and os.kill(os.getpid(), 9)"
    for how in ("end", "kill"):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=False)
        assert Path(done.stdout.strip()).exists() == (how == "kill")
    left = Path(done.stdout.strip()).parent
    mine = working_folder()
    assert not left.exists(), "the next process removes what a killed one left"
    subprocess.run([sys.executable, "-c", code, "end"], capture_output=True, check=True, env={**os.environ})
    assert mine.is_dir(), "and nothing of one that lives"
    assert mine.parent.parent == cache_folder() == tmp_path
