"""The directory of a run, without torch: stages here are small functions."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sprachbund.errors import InputError, SprachbundError
from sprachbund.files import write_text
from sprachbund.recipe import Recipe
from sprachbund.run.directory import Run, fingerprint, open_run, read_run

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "base": {"path": "org/model"},
        "languages": {"sw": "/data/sw.jsonl", "zu": "/data/zu.jsonl"},
        "groups": {"count": 2},
        "train": {"tokens": 4096, "tokens_per_step": 1024, "block_size": 128, "stages": [{"share": 1}]},
    }
    return Recipe.model_validate({**values, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    opened = open_run(recipe(), tmp_path / "run")
    yield opened
    opened.close()


class Work:
    """A stage's work that counts its calls and writes one file."""

    def __init__(self, run: Run, result: dict[str, Any] | None = None) -> None:
        self.run, self.result, self.calls = run, result or {"answer": 42}, 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        write_text(self.run.path("out.txt"), "done\n")
        return self.result


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes and time of change."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# --- stages


def test_a_stage_is_computed_once_and_its_result_comes_back(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    work = Work(run, {"answer": [1, "zwölf", None]})
    first = run.stage("count", {"a": 1}, ["out.txt"], work)
    second = run.stage("count", {"a": 1}, ["out.txt"], work)
    assert first == second == {"answer": [1, "zwölf", None]}
    assert work.calls == 1
    assert capsys.readouterr().err == "count: done before, unchanged, skipped\n"


def test_a_stage_is_computed_again_when_an_input_changed(run: Run) -> None:
    work = Work(run)
    for inputs in ({"a": 1}, {"a": 2}, {"a": 2, "b": None}, ["a"]):
        run.stage("count", inputs, ["out.txt"], work)
    assert work.calls == 4


def test_a_stage_is_computed_again_when_its_output_is_gone(run: Run) -> None:
    work = Work(run)
    run.stage("count", 1, ["out.txt"], work)
    run.path("out.txt").unlink()
    run.stage("count", 1, ["out.txt"], work)
    assert work.calls == 2


def test_a_change_reaches_the_stages_after_it_and_no_other(run: Run) -> None:
    last, other = Work(run), Work(run)
    for inputs in (1, 1, 2):
        run.stage("first", inputs, ["out.txt"], Work(run))
        run.stage("middle", 0, ["out.txt"], Work(run), after=["first"])
        run.stage("last", 0, ["out.txt"], last, after=["middle"])
        run.stage("other", 0, ["out.txt"], other)
    assert (last.calls, other.calls) == (2, 1)


def test_another_version_of_the_package_computes_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint([1])
    monkeypatch.setattr("sprachbund.run.directory.__version__", "99.0")
    assert fingerprint([1]) != before


def test_a_torn_record_of_a_stage_is_no_record(run: Run) -> None:
    work = Work(run)
    run.stage("count", 1, ["out.txt"], work)
    file = run.path("stages/count.json")
    file.write_text(file.read_text()[:20])
    run.stage("count", 1, ["out.txt"], work)
    assert work.calls == 2


def test_a_stage_that_failed_is_not_done_and_its_seconds_count(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 15.0, 100.0, 107.0])
    monkeypatch.setattr("sprachbund.run.directory.time.monotonic", lambda: next(clock))

    def fail() -> dict[str, Any]:
        raise SprachbundError("it broke")

    with pytest.raises(SprachbundError, match="it broke"):
        run.stage("count", 1, [], fail)
    assert run.seconds() == {}
    run.stage("count", 1, [], Work(run))
    assert run.seconds() == {"count": 12.0}


def test_a_stage_killed_under_other_inputs_is_not_taken_for_the_one_before(run: Run) -> None:
    def killed() -> dict[str, Any]:
        write_text(run.path("out.txt"), "half of another")
        raise KeyboardInterrupt

    run.stage("count", 1, ["out.txt"], Work(run))
    record = run.path("stages/count.json").read_text()
    with pytest.raises(KeyboardInterrupt):
        run.stage("count", 2, ["out.txt"], killed)
    write_text(run.path("stages/count.json"), record)  # which SIGKILL leaves no time to replace
    with pytest.raises(SprachbundError, match=r"out\.txt has other bytes than were written to it"):
        run.stage("count", 1, ["out.txt"], Work(run))
    run.path("out.txt").unlink()
    run.stage("count", 1, ["out.txt"], Work(run))
    assert run.path("out.txt").read_text() == "done\n"


# --- one directory, one recipe


def test_a_run_keeps_its_recipe_and_opens_again(tmp_path: Path) -> None:
    open_run(recipe(), tmp_path / "run").close()
    assert read_run(tmp_path / "run") == recipe()
    open_run(recipe(), tmp_path / "run").close()


def done_run(folder: Path) -> Path:
    """A run in which one stage is done."""
    run = open_run(recipe(), folder)
    run.stage("count", 1, ["out.txt"], Work(run))
    run.close()
    return folder


def test_another_recipe_is_refused_with_what_differs_and_nothing_changes(tmp_path: Path) -> None:
    folder = done_run(tmp_path / "run")
    before = snapshot(folder)
    with pytest.raises(InputError) as error:
        open_run(recipe(seed=3, groups={"count": 2, "floor": 0.5}, probe={"steps": 4}), folder)
    assert str(error.value) == (
        f"{folder} holds a run of another recipe (differing: probe.steps, groups.floor, seed); "
        "give another --out, or --update to recompute what changed"
    )
    assert snapshot(folder) == before
    open_run(recipe(), folder).close()  # the refusal has released the directory


def test_many_differences_are_cut(tmp_path: Path) -> None:
    languages = {tag: f"/data/{tag}.txt" for tag in ("sw", "zu", "xh", "sn")}
    with pytest.raises(InputError) as error:
        open_run(recipe(languages=languages, seed=1), done_run(tmp_path / "run"))
    first_four = "languages.swh_Latn.file, languages.zul_Latn.file, languages.xho_Latn, languages.sna_Latn"
    assert f"(differing: {first_four}, ...);" in str(error.value)


def test_update_takes_the_new_recipe(tmp_path: Path) -> None:
    folder = done_run(tmp_path / "run")
    open_run(recipe(seed=3), folder, update=True).close()
    assert read_run(folder).seed == 3
    assert (folder / "out.txt").exists()


def test_a_run_with_nothing_done_takes_the_corrected_recipe(tmp_path: Path) -> None:
    open_run(recipe(), tmp_path / "run").close()
    open_run(recipe(seed=3), tmp_path / "run").close()
    assert read_run(tmp_path / "run").seed == 3


def test_other_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"exists and is no run \(it has no recipe.yaml\); give another --out$"):
        open_run(recipe(), tmp_path)
    with pytest.raises(InputError, match=r"thesis.tex is a file; give --out a folder$"):
        open_run(recipe(), tmp_path / "thesis.tex")
    with pytest.raises(InputError, match=r"is no run: it has no recipe\.yaml"):
        read_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_left_by_a_kill_before_the_recipe_is_taken(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".recipe.yaml.4711.tmp").write_text("name: sm")
    open_run(recipe(), tmp_path).close()


# --- one process at a time


def test_a_run_of_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    folder = done_run(tmp_path / "run")
    before = snapshot(folder)
    command = [sys.executable, "-c", HOLD, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SprachbundError) as error:
            open_run(recipe(seed=3), folder, update=True)
        other.kill()
    assert str(error.value) == f"another process works in {folder}; wait for it or give another --out"
    assert not isinstance(error.value, InputError)
    assert snapshot(folder) == before
    open_run(recipe(), folder).close()


def test_a_second_opening_in_the_same_process_is_refused(run: Run) -> None:
    with pytest.raises(SprachbundError, match="another process works in"):
        open_run(recipe(), run.folder)


# --- events


def test_events_are_lines_of_json(run: Run) -> None:
    run.log("train", "step", step=1, loss=2.5)
    (line,) = run.path("events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert event.pop("time").endswith("+00:00")
    assert event == {"stage": "train", "event": "step", "step": 1, "loss": 2.5}


def test_events_past_a_step_are_forgotten_and_a_torn_line_too(run: Run) -> None:
    for stage, step in (("dense", 7), ("train", 1), ("train", 2), ("train", 3)):
        run.log(stage, "step", step=step)
    with run.path("events.jsonl").open("a") as file:
        file.write('{"time": "2025-01-01", "stage": "tr')
    run.forget_events("train", after_step=2)
    events = [json.loads(line) for line in run.path("events.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in events] == [("dense", 7), ("train", 1), ("train", 2)]


def test_no_events_are_nothing_to_forget(run: Run) -> None:
    run.forget_events("train", after_step=0)
    assert not run.path("events.jsonl").exists()


# --- the disk


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond a size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_with_python(path: Path) -> None:
    write_text(path, "x" * 1_000_000)


def write_with_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(250_000)}, path)


def write_with_torch(path: Path) -> None:
    import torch

    torch.save(torch.zeros(250_000), path)


def write_with_tokenizers(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word{i}": i for i in range(50_000)}, unk_token="word0")).save(str(path))


@pytest.mark.parametrize("write", [write_with_python, write_with_safetensors, write_with_torch, write_with_tokenizers])
def test_whatever_library_writes_a_full_disk_is_one_sentence(write: Callable[[Path], None], run: Run) -> None:
    write(run.path("before"))  # what the library opens on first use is open now

    def work() -> dict[str, Any]:
        with largest_file(100_000):
            write(run.path("out"))
        return {}

    with pytest.raises(SprachbundError) as error:
        run.stage("write", 1, ["out"], work)
    assert str(error.value) in (
        f"{run.folder}: File too large",
        f"no space left on the disk of {run.folder}; free some and run the same command again",
    )
    record = json.loads(run.path("stages/write.json").read_text())
    assert record["done"] is False
    assert run.stage("write", 1, [], lambda: {"again": True}) == {"again": True}


def refuse(number: int) -> Callable[..., Any]:
    def refused(*arguments: Any, **_: Any) -> Any:
        path = next((str(a) for a in arguments if isinstance(a, str | Path)), None)
        raise OSError(number, os.strerror(number), path)

    return refused


def test_no_space_for_a_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(run.path("out.txt"), "old\n")
    monkeypatch.setattr(Path, "write_bytes", refuse(errno.ENOSPC))
    with pytest.raises(SprachbundError) as error:
        run.stage("count", 1, ["out.txt"], Work(run))
    monkeypatch.undo()
    assert str(error.value) == f"no space left on the disk of {run.folder}; free some and run the same command again"
    assert not isinstance(error.value, InputError)
    assert sorted(path.name for path in run.folder.rglob("*") if path.is_file()) == ["lock", "out.txt", "recipe.yaml"]
    assert run.path("out.txt").read_text() == "old\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", refuse(number))  # root may write anywhere, so that permissions test nothing
    with pytest.raises(InputError) as error:
        open_run(recipe(), tmp_path / "run")
    assert str(error.value) == f"{tmp_path}/run cannot be written ({os.strerror(number)}); give another --out"
    assert list(tmp_path.iterdir()) == []


def test_no_space_for_the_recipe_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    with pytest.raises(SprachbundError, match=r"no space left on the disk of .*/run; free some"):
        open_run(recipe(), tmp_path / "run")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    open_run(recipe(), tmp_path / "run").close()


def test_an_error_that_is_not_the_disks_stays_what_it_is(run: Run) -> None:
    def wrong() -> dict[str, Any]:
        raise RuntimeError("shapes (2, 3) and (4, 5) do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        run.stage("count", 1, [], wrong)
