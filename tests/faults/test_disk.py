"""A disk that is full, that may only be read, and files that are gone: one sentence, nothing half written, go on."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from killing import Commands, Whole, content, left_over

from sprachbund.errors import InputError
from sprachbund.files import remove_left, temporary_for
from sprachbund.run.directory import open_run, read_run
from sprachbund.run.trouble import disk_error, trouble

FULL = "; free some and run the same command again"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that gives a small disk of its own a size and a mode, and returns where it is."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no disk of its own can be mounted: {error}")
    if made.returncode:
        pytest.skip(f"no disk of its own can be mounted: {made.stderr.strip()}")

    def change(options: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
        return place

    yield change
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def one_sentence(said: str) -> str:
    """Return the last line, the command's sentence; there is no traceback."""
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("sprachbund: ")]
    assert line == said.splitlines()[-1]
    return line


def test_a_run_on_a_disk_that_is_always_too_small_goes_on_whenever_it_is_larger(
    disk: Callable[[str], Path], commands: Commands, whole: Whole
) -> None:
    """The disk grows by little: the run is stopped in tokenizer, base, probe, trainings and the rest."""
    stopped, run = 0, disk("size=16k") / "run"
    for size in (*range(24, 240, 24), *range(240, 2000, 80)):
        disk(f"size={size}k")
        ended = commands("run", whole.recipe, "--out", run)
        if ended.status == 0:
            break
        stopped += 1
        assert one_sentence(ended.said) == f"sprachbund: no space left on the disk of {run}{FULL}"
        assert ended.status == 1
        assert [name for name in left_over(run) if name.endswith(".tmp")] == []
    assert ended.status == 0
    assert stopped > 8
    assert content(run) == whole.content
    assert left_over(run) == []


def test_a_full_cache_is_named_as_such(
    disk: Callable[[str], Path], commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    cache = disk("size=8k")
    commands.environment["SPRACHBUND_CACHE"] = str(cache)
    try:
        ended = commands("run", whole.recipe, "--out", tmp_path / "run")
        assert (ended.status, one_sentence(ended.said)) == (
            1,
            f"sprachbund: no space left on the disk of {cache}; free some, or set SPRACHBUND_CACHE to a folder on "
            "another disk, and run the same command again",
        )
        assert [path.name for path in cache.iterdir() if path.name.endswith(".tmp")] == []
        disk("ro")
        ended = commands("run", whole.recipe, "--out", tmp_path / "run")
        assert ended.status == 2
        assert one_sentence(ended.said).endswith(
            "cannot be written (Read-only file system); set SPRACHBUND_CACHE to a folder that can be"
        )
    finally:
        del commands.environment["SPRACHBUND_CACHE"]
    assert commands("probe", whole.recipe, "--out", tmp_path / "run").status == 0


def test_a_full_disk_leaves_no_part_of_a_changed_model(
    disk: Callable[[str], Path], commands: Commands, whole: Whole
) -> None:
    place = disk("size=64k")
    for verb, given in (("merge", ("--groups", "0,1")), ("compress", ("--width", 8)), ("export", ("--to", "native"))):
        ended = commands(verb, whole.folder, *given, "--out", place / "out")
        assert ended.status == 1, ended.said
        assert one_sentence(ended.said).startswith("sprachbund: no space left on the disk of ")
        assert list(place.iterdir()) == []


def test_a_disk_that_may_only_be_read(disk: Callable[[str], Path], commands: Commands, whole: Whole) -> None:
    place = disk("size=16m")
    shutil.copytree(whole.folder, place / "run")
    before = content(place / "run")
    disk("ro")
    for target in (place / "run", place / "new"):
        ended = commands("run", whole.recipe, "--out", target)
        assert ended.status == 2
        assert one_sentence(ended.said).endswith(" cannot be written (Read-only file system); give another --out")
    assert content(place / "run") == before
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), f"no space left on the disk of /run{FULL}"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the disk of /run" + FULL),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
            "no space left on the disk of /run",
        ),
        (RuntimeError("basic_ios::clear: iostream error"), "no space left on the disk"),
        (OSError(errno.EDQUOT, "Quota exceeded", "/run/a"), "no space left on the disk of /run" + FULL),
        (OSError(errno.EIO, "Input/output error", "/run/a"), "/run/a: Input/output error"),
        (OSError("it broke"), "/run: it broke"),
    ],
)
def test_whatever_says_that_the_disk_is_full(error: Exception, message: str) -> None:
    assert str(trouble(error, Path("/run"))).startswith(message)


def test_a_folder_that_cannot_be_written_names_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRACHBUND_CACHE", "/cache")
    said = disk_error(PermissionError(errno.EACCES, "Permission denied", "/cache/x.npy"), Path("/run"))
    assert isinstance(said, InputError)
    assert str(said) == (
        "/cache/x.npy cannot be written (Permission denied); set SPRACHBUND_CACHE to a folder that can be"
    )


# --- what is gone


def test_a_corpus_that_vanishes_between_stages_is_named_and_the_run_goes_on_with_it(
    tiny: Path, cli: CommandLine, finished: Path
) -> None:
    run, corpus = tiny.parent / "run", tiny.parent / "corpora/ita.jsonl"
    assert cli("probe", tiny, "--out", run).status == 0
    corpus.rename(tiny.parent / "elsewhere")
    said = cli("run", tiny, "--out", run)
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: languages.ita_Latn: {corpus} does not exist, did you mean '")
    (tiny.parent / "elsewhere").rename(corpus)
    said = cli("run", tiny, "--out", run)
    assert said.status == 0, said.err
    assert {"base", "probe"} <= set(said.skipped)
    assert content(run) == content(finished)


def test_a_cache_that_is_emptied_between_stages_is_filled_again(
    tiny: Path, cli: CommandLine, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.parent / "run"
    monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path / "cache"))
    assert cli("probe", tiny, "--out", run).status == 0
    shutil.rmtree(tmp_path / "cache")
    said = cli("run", tiny, "--out", run)
    assert said.status == 0, said.err
    assert {"corpora", "base", "probe"} <= set(said.skipped)
    assert content(run) == content(finished)


def temporary_of(process: int, name: str, suffix: str = "") -> str:
    """Return the temporary name that a process gives."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "getpid", lambda: process)
        return temporary_for(Path(name), suffix).name


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    mine, of_dead, living = (
        [temporary_of(pid, "a"), temporary_of(pid, "a", "-1f2e"), f".a.{pid}.tmp"]
        for pid in (os.getpid(), dead.pid, os.getppid())
    )
    elsewhere = f".a.{'0' * 6}-{dead.pid}.tmp"  # of another machine
    stay = [*living, elsewhere, f".b.{dead.pid}.tmp", "a"]
    for name in (*mine, *of_dead, *stay):  # of this process's number: of the one before it in a container
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    remove_left(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_a_model_that_is_being_changed_beside_the_one_of_a_run_stays(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    living = run / temporary_of(os.getppid(), "model-merge0-1")
    for path in (living, run / ".model.tmp"):
        path.mkdir()
    (run / ".metrics.json.99999999.tmp").touch()
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"time": "2026-')
    opened = open_run(read_run(run), run)
    opened.log("train", "after")
    opened.close()
    assert left_over(run) == [living.name]
    assert [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()][-1] == "after"


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_where_no_stage_is_done(
    finished: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.run.derived.write_text", refuse)
    said = cli("merge", finished, "--groups", "0,1", "--out", tmp_path / "out", "--no-evaluate")
    assert said.status == 1
    assert one_sentence(said.err).endswith(FULL)
    assert list(tmp_path.iterdir()) == []
