"""Corpora that are cut on disk and tokenised by several processes: the same as those in memory, and as by 0.1."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.corpora import cache, documents, packing, splits, workers
from sprachbund.corpora.audit import audit, num_tokens, sample_text
from sprachbund.corpora.documents import SplitDocuments, Stored
from sprachbund.corpora.overlap import shared_documents
from sprachbund.corpora.packing import pack_cached
from sprachbund.corpora.splits import split_documents, thinned
from sprachbund.errors import InputError, SprachbundError
from sprachbund.modeling.base import load_tokenizer, tokenize_with, tokenizer_fingerprint, train_tokenizer
from sprachbund.recipe import Recipe, Source, Splits
from sprachbund.recipe_file import load_recipe
from sprachbund.run.data import Corpora, make_tokenizer, pack_corpora
from sprachbund.run.directory import open_run
from sprachbund.similarity import count_characters

SHARES = Splits(dev=0.2, test=0.2)


@pytest.fixture
def _on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep nothing in memory, in blocks of a few documents, in a cache of its own."""
    monkeypatch.setattr(documents, "IN_MEMORY_BYTES", -1)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 200)
    monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path / "own-cache"))


def jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def as_lists(found: SplitDocuments) -> dict[str, Any]:
    return {**vars(found), **{split: list(getattr(found, split)) for split in ("train", "dev", "test")}}


# ---- cutting ----


def cut_by_0_1(texts: list[str], *, seed: int, share: float | None) -> dict[str, list[str]]:
    """Cut as the first release did, with every line in memory."""

    def lines_of(of: list[str]) -> set[str]:
        return {line.strip() for text in of for line in text.splitlines()} - {""}

    def without(of: list[str], seen: set[str]) -> list[str]:
        kept = {}
        for text in of:
            lines = text.splitlines()
            own = [line for line in lines if line.strip() not in seen]
            kept[text if len(own) == len(lines) else "\n".join(own).strip()] = None
        return [text for text in kept if text]

    cut: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for text in texts:
        digest = blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(16, "little")).digest()
        point = int.from_bytes(digest, "little") / 2**64
        cut["test" if point < SHARES.test else "dev" if point < SHARES.test + SHARES.dev else "train"].append(text)
    seen = lines_of(cut["train"])
    return {
        "train": thinned(cut["train"], share),
        "dev": without(cut["dev"], seen),
        "test": without(cut["test"], seen | lines_of(cut["dev"])),
    }


lines = st.text(alphabet="abc \u2028é", max_size=3)
texts_of_lines = st.lists(lines, min_size=1, max_size=4).map(lambda found: "\n".join(found).strip()).filter(bool)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(texts_of_lines, min_size=20, max_size=60),
    seed=st.integers(0, 3),
    share=st.sampled_from([None, 0.5, 0.1]),
)
def test_splits_are_those_of_the_first_release_in_memory_and_on_disk(
    texts: list[str], seed: int, share: float | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "read_documents", lambda *_, **__: iter(texts))
        patch.setattr(splits, "_check", lambda *_: None)
        source = Source(file="a.txt", keep=share)
        few = split_documents(source, SHARES, seed=seed)
        patch.setattr(documents, "IN_MEMORY_BYTES", -1)
        patch.setattr(documents, "BLOCK_BYTES", 12)
        many = split_documents(source, SHARES, seed=seed)
    assert isinstance(few.train, list)
    assert as_lists(many) == as_lists(few)
    expected = cut_by_0_1(texts, seed=seed, share=share)
    assert {split: list(getattr(few, split)) for split in expected} == expected
    assert few.duplicates == len(texts) - len(set(texts))


@pytest.mark.usefixtures("_on_disk")
def test_what_asks_for_documents_gets_the_same_from_disk(tmp_path: Path) -> None:
    texts = [f"document {i}\nwith a word {i % 7}" for i in range(300)]
    found = split_documents(Source(file=str(jsonl(tmp_path / "a.jsonl", texts))), SHARES, seed=0)
    train = list(found.train)
    assert isinstance(found.train, Stored)
    assert sample_text(found.train) == sample_text(train)
    assert thinned(found.train, 0.1) == thinned(train, 0.1)
    assert num_tokens(found.train, lambda batch: [text.split() for text in batch]) == sum(
        len(text.split()) for text in train
    )
    one, other = count_characters(found.train, ngram=3), count_characters(train, ngram=3)
    assert (one.totals[0] == other.totals[0]).all()
    assert shared_documents({"a": found.train, "b": train}) == {"a": {"b": 1.0}, "b": {"a": 1.0}}


# ---- the cache of cut corpora ----


def read_again(*_: object, **__: object) -> Iterator[str]:
    raise AssertionError("read again")


@pytest.mark.usefixtures("_on_disk")
def test_a_corpus_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])
    source = Source(file=str(path))
    first = as_lists(split_documents(source, SHARES, seed=0))
    moved = Source(file=str(path.rename(tmp_path / "b.jsonl")))
    with monkeypatch.context() as patch:
        patch.setattr(splits, "read_documents", read_again)
        assert as_lists(split_documents(moved, SHARES, seed=0)) == first
        for other, shares, seed in (
            (moved, SHARES, 1),
            (moved, Splits(dev=0.2, test=0.1), 0),
            (moved.model_copy(update={"keep": 0.5}), SHARES, 0),
            (moved.model_copy(update={"max_documents": 90}), SHARES, 0),
        ):
            with pytest.raises(AssertionError, match="read again"):
                split_documents(other, shares, seed=seed)
        jsonl(tmp_path / "b.jsonl", [f"document {i}" for i in range(101)])
        with pytest.raises(AssertionError, match="read again"):
            split_documents(moved, SHARES, seed=0)
    (folder,) = (tmp_path / "own-cache").glob("documents-*")
    jsonl(tmp_path / "b.jsonl", [f"document {i}" for i in range(100)])
    (folder / "train").write_bytes((folder / "train").read_bytes()[:-1])  # cut off: it is made anew
    assert as_lists(split_documents(moved, SHARES, seed=0)) == first
    assert as_lists(split_documents(moved, SHARES, seed=0)) == first


@pytest.mark.usefixtures("_on_disk")
def test_text_that_may_be_another_tomorrow_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "read_documents", lambda *_, **__: iter([f"document {i}" for i in range(100)]))
    for revision, kept in (("main", 0), ("0123456789" * 4, 1)):
        found = split_documents(Source(hub="some/corpus", revision=revision), SHARES, seed=0)
        assert len(list((tmp_path / "own-cache").glob("documents-*"))) == kept
        assert len(list(found.all_documents())) == 100


@pytest.mark.usefixtures("_on_disk")
def test_a_corpus_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(100)])
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(InputError, match="line 101 is not JSON"):
        split_documents(Source(file=str(path)), SHARES, seed=0)
    assert [
        entry.name for entry in (tmp_path / "own-cache").iterdir() if not entry.name.startswith(cache.WORKING)
    ] == []


# ---- worker processes ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([f"document {i} with words" for i in range(200)], vocab_size=300).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture
def stored(_on_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """Return documents that worker processes tokenise, in many batches."""
    monkeypatch.setattr(packing, "LEAST_FOR_WORKERS", 0)
    monkeypatch.setattr(packing, "DOCUMENTS_AT_ONCE", 7)
    monkeypatch.setenv(workers.VARIABLE, "2")
    collector = documents.Collector(tmp_path / "stored")
    for i in range(100):
        collector.add(f"document {i} with <|endoftext|> wörds \u2028 สวัสดี" + " more" * (i % 9))
    found = collector.finish()
    assert isinstance(found, Stored)
    return found


def packed(texts: Any, tokenizer: Any, folder: Path, tokenize: Any = None) -> packing.Packed:
    tokenize, mark = tokenize or tokenize_with(tokenizer), tokenizer_fingerprint(tokenizer)
    return pack_cached(texts, mark, tokenize, tokenizer.eos_token_id, folder)


def test_workers_make_the_stream_that_one_process_makes(
    stored: Stored, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    real = packing.tokenise_in_workers

    def counted(*arguments: Any, **options: Any) -> Any:
        used.append(options["workers"])
        return real(*arguments, **options)

    monkeypatch.setattr(packing, "tokenise_in_workers", counted)
    alone = packed(list(stored), tokenizer, tmp_path / "alone")
    assert used == [], "a list is tokenised in this process"
    together = packed(stored, tokenizer, tmp_path / "together")
    assert used == [1, 2], "one worker is compared with this process first"
    assert (together.digest, together.num_documents, together.num_bytes) == (
        alone.digest,
        alone.num_documents,
        alone.num_bytes,
    )
    assert (together.tokens == alone.tokens).all()
    assert together.path is not None
    assert alone.path is not None
    assert together.path.name == alone.path.name, "and it has the same place in the cache"
    monkeypatch.setenv(workers.VARIABLE, "1")
    packed(stored, tokenizer, tmp_path / "one")
    assert used == [1, 2]


def test_a_tokenizer_that_python_changes_is_not_left_to_workers(stored: Stored, tokenizer: Any, tmp_path: Path) -> None:
    class Odd(type(tokenize_with(tokenizer))):  # type: ignore[misc]
        def __call__(self, texts: list[str]) -> list[list[int]]:
            return [ids[::-1] for ids in super().__call__(texts)]

    odd = Odd(tokenizer)
    assert (
        packed(stored, tokenizer, tmp_path / "a", odd).digest
        == packed(list(stored), tokenizer, tmp_path / "b", odd).digest
    )


def test_where_no_worker_can_start_the_work_is_done_without_and_said(
    stored: Stored, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = packed(list(stored), tokenizer, tmp_path / "alone")
    monkeypatch.setattr(type(tokenize_with(tokenizer)), "definition", lambda self: "{}")
    assert packed(stored, tokenizer, tmp_path / "cache").digest == alone.digest
    said = capsys.readouterr().err
    assert said.startswith("tokenising in one process: a process that tokenises ended before its time (status 1: ")


@pytest.mark.parametrize("how", ["killed", "no tokenizer"])
def test_a_worker_that_ends_is_one_sentence_and_leaves_no_half_stream(
    stored: Stored, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(packing, "_workers_agree", lambda *_: True)
    real = workers._Worker.tokens
    asked = 0

    def dying(self: Any, batch: list[str]) -> Any:
        nonlocal asked
        asked += 1
        if how == "killed" and asked == 5:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        return real(self, batch)

    monkeypatch.setattr(workers._Worker, "tokens", dying)
    tokenize = tokenize_with(tokenizer)
    if how == "no tokenizer":
        monkeypatch.setattr(type(tokenize), "definition", lambda self: "{}")
    with pytest.raises(SprachbundError, match="a process that tokenises ended before its time") as caught:
        packed(stored, tokenizer, tmp_path / "cache", tokenize)
    assert "\n" not in str(caught.value)
    assert ("signal 9); it may have run out of memory" if how == "killed" else "status 1: ") in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_ctrl_c_ends_the_workers_and_leaves_no_half_stream(tmp_path: Path) -> None:
    """In a process of its own: the signal reaches it in the middle, and it must end, and its workers with it."""
    code = """
import os, signal, sys
from pathlib import Path
from tokenizers import Tokenizer, models
from sprachbund.corpora import documents, packing, workers
from sprachbund.corpora.documents import Collector
documents.IN_MEMORY_BYTES = packing.LEAST_FOR_WORKERS = -1
packing.DOCUMENTS_AT_ONCE = 2
class Tokenize:
    tokenizer = Tokenizer(models.WordLevel({"?": 1}, unk_token="?"))
    def __call__(self, texts):
        return [self.tokenizer.encode(text).ids for text in texts]
    def definition(self):
        return self.tokenizer.to_str()
collector = Collector(Path(sys.argv[1]) / "stored")
for i in range(200):
    collector.add(f"document {i}")
started = []
real = workers._Worker.__init__
def begin(self, *arguments):
    real(self, *arguments)
    started.append(self.process.pid)
workers._Worker.__init__ = begin
def note(num_bytes, seen=[]):
    seen.append(num_bytes)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGINT)
try:
    packing.pack_cached(collector.finish(), "t", Tokenize(), 0, Path(sys.argv[1]) / "cache", note=note)
except KeyboardInterrupt:
    alive = [pid for pid in started if os.path.exists(f"/proc/{pid}")]
    print("interrupted", len(started), alive, os.listdir(Path(sys.argv[1]) / "cache"))
"""
    environment = {**os.environ, workers.VARIABLE: "2"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "interrupted 3 [] []"


@pytest.mark.parametrize("given", ["none", "0", "-1", "1.5"])
def test_how_many_workers(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(workers.VARIABLE, given)
    with pytest.raises(InputError, match=f"SPRACHBUND_WORKERS is '{given}'; give the number"):
        workers.num_workers()
    monkeypatch.setenv(workers.VARIABLE, " 12 ")
    assert workers.num_workers() == 12
    monkeypatch.delenv(workers.VARIABLE)
    assert 1 <= workers.num_workers() <= workers.MOST_WORKERS


# ---- whole stages ----


def test_a_run_from_disk_is_the_run_from_memory(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(tiny)
    facts, digests = [], []
    for name in ("memory", "disk"):
        monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path / f"cache-{name}"))
        if name == "disk":
            monkeypatch.setattr(documents, "IN_MEMORY_BYTES", -1)
            monkeypatch.setattr(documents, "BLOCK_BYTES", 500)
        run, corpora = open_run(recipe, tmp_path / name), Corpora(recipe)
        digests.append(pack_corpora(run, corpora, make_tokenizer(run, corpora)).digest)
        run.close()
        assert isinstance(corpora.documents["ron_Latn"].train, Stored if name == "disk" else list)
        found = json.loads(run.path("corpora.json").read_text())
        facts.append({tag: {k: v for k, v in of_one.items() if k != "file"} for tag, of_one in found.items()})
    assert digests[0] == digests[1]
    assert facts[0] == facts[1]


def test_what_the_audit_tokenised_the_run_need_not(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path / "cache"))
    first = cli("audit", str(tiny), "--json")
    assert first.status == 0
    rows = {row["tag"]: row for row in json.loads(first.out)}
    monkeypatch.setattr(packing, "pack", lambda *_, **__: pytest.fail("tokenised again"))
    assert cli("audit", str(tiny), "--json").out == first.out
    recipe = load_recipe(tiny)
    run, corpora = open_run(recipe, tmp_path / "run"), Corpora(recipe)
    streams = pack_corpora(run, corpora, make_tokenizer(run, corpora)).train
    run.close()
    for tag, stream in streams.items():  # the audit counts no separators
        assert rows[tag]["tokens"] == stream.num_tokens - stream.num_documents
        assert rows[tag]["bytes"] == stream.num_bytes


def test_the_audit_counts_known_tokens(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [f"habari {i}" for i in range(200)])
    languages = {"swh_Latn": str(path), "zul_Latn": {"cldr": "zu", "lines": 300}}
    train = {"tokens": 1000, "tokens_per_step": 64, "block_size": 64, "stages": [{"share": 1.0}]}
    given = {"name": "t", "base": "some/base", "languages": languages, "groups": {"count": 2}, "train": train}
    rows = audit(Recipe.model_validate(given), tokens={"swh_Latn": 77, "zul_Latn": 88})
    assert [row.tokens for row in rows] == [77, 88]


@pytest.mark.long
def test_memory_stays_bounded_where_the_corpus_does_not(tmp_path: Path) -> None:
    """A corpus of 200 MB needs at most 60 MB more than one of 20 MB; held in memory it would need 180 MB and more."""
    code = """
import resource, sys
from sprachbund.corpora.packing import pack_cached
from sprachbund.corpora.splits import split_documents
from sprachbund.recipe import Source, Splits
found = split_documents(Source(file=sys.argv[1]), Splits(), seed=0)
packed = pack_cached(found.train, "t", lambda batch: [list(text.encode()[:64]) for text in batch], 256)
print(found.documents, packed.num_documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for megabytes in (20, 200):
        path, number = tmp_path / f"{megabytes}.txt", 0
        with path.open("w") as file:
            while file.tell() < megabytes << 20:
                file.writelines(f"{number + i} " + "some words of a line " * 20 + "\n" for i in range(1000))
                number += 1000
        environment = {**os.environ, "SPRACHBUND_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
        )
        num_documents, num_packed, peak = map(int, done.stdout.split())
        assert num_documents == number
        assert num_packed > 0.8 * number
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 60  # MB
