"""Bytes that change after they were written: the file is named, and what makes it anew gives the same end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine
from killing import Commands, Whole, content

from sprachbund.checksums import DamagedError, check, digests

SUMS = {
    "tokenizer": {"tokenizer/tokenizer.json"},
    "corpora": {"corpora.json"},
    "base": {"base/model.safetensors", "base/tokenizer.json"},
    "probe": {"probe/probe.json", *(f"probe/{tag}.safetensors" for tag in ("ron_Latn", "ukr_Cyrl"))},
    "similarity": {"similarity.csv", "similarity/deviation.csv"},
    "groups": {"groups.json", "grouping.json"},
    "layers": {"layers.csv"},
    "dense": {"dense/model.safetensors"},
    "train": {"model/model.safetensors", "model/tokenizer.json"},
    "evaluate": {"metrics.json"},
}


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_file_that_matters_has_a_checksum(finished: Path) -> None:
    for stage, files in SUMS.items():
        known = json.loads((finished / f"stages/{stage}.json").read_text(encoding="utf-8"))["sha256"]
        assert files <= set(known), stage
        assert known == digests(finished, known), stage


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer/tokenizer.json", "corpora.json", "probe/ita_Latn.safetensors", "probe/probe.json"),
        *("similarity/deviation.csv", "similarity.csv", "groups.json", "grouping.json", "layers.csv", "metrics.json"),
    ],
)
def test_a_changed_file_of_a_run_is_named_with_what_makes_it_anew(name: str, copy: Path, cli: CommandLine) -> None:
    flip(copy / name)
    said = cli("report", copy)
    assert (said.status, said.last) == (
        1,
        f"sprachbund: {copy / name} has other bytes than were written to it (its SHA-256 differs): the disk, a copy or "
        f"an editor has changed it; remove {copy / name} and give the command again that made it (`sprachbund run "
        f"{copy}`), which makes it anew",
    )


def test_a_changed_record_of_a_stage_is_named(copy: Path, finished: Path, cli: CommandLine) -> None:
    file = copy / "stages/layers.json"
    text = file.read_text(encoding="utf-8")
    record = json.loads(text)
    record["result"]["layers"] = [1]
    file.write_text(json.dumps(record), encoding="utf-8")
    said = cli("report", copy)
    assert (said.status, said.last) == (
        1,
        f"sprachbund: {file} has other bytes than were written to it (its own checksum differs): the disk, a copy or "
        f"an editor has changed it; remove it and give the command again that made it (`sprachbund run {copy}`), which "
        "does this stage anew",
    )
    file.unlink()
    assert cli("run", copy).status == 0
    assert content(copy) == content(finished)
    assert json.loads(file.read_text(encoding="utf-8"))["result"] == json.loads(text)["result"]


@pytest.mark.parametrize("name", ["groups.json", "similarity/deviation.csv", "metrics.json"])
def test_what_is_removed_as_told_is_made_anew_and_is_the_same(
    name: str, copy: Path, finished: Path, cli: CommandLine
) -> None:
    flip(copy / name)
    assert cli("run", copy).status == 1
    (copy / name).unlink()
    assert cli("run", copy).status == 0
    assert {**content(copy), "metrics.json": None} == {**content(finished), "metrics.json": None}


@pytest.mark.parametrize(
    ("model", "command"),
    [
        ("base", lambda run, out: ("train", run, "--update", "--set", "train.tokens=2048")),
        ("dense", lambda run, out: ("evaluate", run, "--update", "--set", "evaluate.tokens=128")),
        ("model", lambda run, out: ("evaluate", run, "--update", "--set", "evaluate.tokens=128")),
        ("model", lambda run, out: ("export", run, "--to", "dense", "--group", 0, "--out", out)),
        ("model", lambda run, out: ("compress", run, "--width", 8, "--out", out)),
        ("model", lambda run, out: ("merge", run, "--groups", "0,1", "--out", out)),
    ],
)
def test_a_changed_model_is_named_where_it_is_used(
    model: str, command: Callable[[Path, Path], tuple[object, ...]], copy: Path, tmp_path: Path, cli: CommandLine
) -> None:
    file = copy / model / "model.safetensors"
    flip(file)
    said = cli(*command(copy, tmp_path / "out"))
    assert said.status == 1
    assert said.last.startswith(f"sprachbund: {file} has other bytes than were written to it (its SHA-256 differs)")
    assert f"remove {copy / model} and give the command again that made it (`sprachbund run {copy}`)" in said.last
    assert not (tmp_path / "out").exists()


def test_a_changed_model_is_not_published(copy: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    flip(copy / "model/model.safetensors")
    said = cli("push", copy, "org/name")
    assert said.status == 1
    assert said.last.startswith(f"sprachbund: {copy}/model/model.safetensors has other bytes than were written to it")


def test_a_model_that_is_removed_as_told_is_trained_to_the_same(copy: Path, finished: Path, cli: CommandLine) -> None:
    shutil.rmtree(copy / "model")
    said = cli("run", copy)
    assert said.status == 0, said.err
    assert "train" not in said.skipped
    assert content(copy) == {**content(finished), "events.jsonl": content(copy)["events.jsonl"]}


def test_cards_pictures_and_pages_may_be_edited(copy: Path, cli: CommandLine) -> None:
    for name in ("model/README.md", "model/config.json", "report.html", "similarity.svg", "layers.svg"):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("\n")
    assert cli("run", copy).status == 0
    assert cli("inspect", copy).status == 0


def test_a_run_from_before_there_were_checksums_is_as_good(copy: Path, cli: CommandLine) -> None:
    for file in (copy / "stages").glob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record.pop("sha256", None)
        del record["checksum"]
        file.write_text(json.dumps(record), encoding="utf-8")
    assert cli("run", copy).status == 0


def test_files_that_are_gone_are_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1")
    known = digests(tmp_path, ["a.csv", "b.csv"])
    assert set(known) == {"a.csv"}
    (tmp_path / "a.csv").write_text("2")
    with pytest.raises(DamagedError, match=r"a\.csv has other bytes"):
        check(tmp_path, known)
    (tmp_path / "a.csv").unlink()
    check(tmp_path, known)


@pytest.mark.parametrize(
    ("names", "resumed"), [(["optimizer.pt"], 1), (["complete"], 1), (["model.safetensors", "optimizer.pt"], 0)]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    names: list[str], resumed: int, commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    """A file of the newest checkpoint is damaged, or one in each: then the training begins anew."""
    arguments = ("run", whole.recipe, "--out", tmp_path / "run")
    assert commands(*arguments, stage="train", at=int(0.9 * whole.ended.counts["train"])).killed
    found = sorted((tmp_path / "run/checkpoints").glob("train-*/checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert len(found) == 2
    for name, checkpoint in zip(names, reversed(found), strict=False):
        if name == "complete":
            (checkpoint / name).write_text("{")
        else:
            flip(checkpoint / name)
    ended = commands(*arguments)
    assert ended.status == 0, ended.said
    said = [line for line in ended.said.splitlines() if "has other bytes" in line or "complete" in line]
    assert [line.split(" has other bytes")[0] for line in said] == [
        str(checkpoint / name) for name, checkpoint in zip(names, reversed(found), strict=False)
    ]
    assert content(tmp_path / "run") == whole.content
    assert resumed == len(found) - len(names)
