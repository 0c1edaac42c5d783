"""SIGKILL at any moment of any stage, then the same command again: what is there in the end is what would have been.

A command is killed again and again in one folder, in every stage: before a random operation on its files or weights
(the file that it is about to write is half written then), or after a random time.
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from killing import Commands, Whole, content, left_over

STAGES = ("tokenizer", "corpora", "base", "probe", "similarity", "groups", "layers", "dense", "train", "evaluate")
BEGIN = 7  # operations before the first stage


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of results that are not the same."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def kill_in(
    commands: Commands, arguments: tuple[object, ...], counts: Mapping[str, int], *, seed: int, times: int
) -> int:
    """Kill a command so many times in each of the stages of `counts`, in their order; return how often it died.

    Each time, the command comes so much farther that all of a stage's operations are within reach.
    """
    draw, killed = random.Random(seed), 0
    for stage, count in counts.items():
        for _ in range(times):
            ended = commands(*arguments, stage=stage, at=draw.randint(1, max(count // times, 1)))
            assert ended.killed or ended.status == 0, ended.said
            killed += ended.killed
    return killed


@pytest.fixture
def own_cache(commands: Commands, tmp_path: Path) -> Iterator[Path]:
    """Let commands pack their texts into an empty cache: that can be killed as well."""
    commands.environment["SPRACHBUND_CACHE"] = str(tmp_path / "cache")
    yield tmp_path / "cache"
    del commands.environment["SPRACHBUND_CACHE"]


@pytest.mark.parametrize(
    ("seed", "times", "at_least"), [(0, 1, 12), pytest.param(1, 4, 44, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_a_run_killed_in_every_stage_ends_as_if_undisturbed(
    seed: int, times: int, at_least: int, commands: Commands, whole: Whole, own_cache: Path, tmp_path: Path
) -> None:
    counts = {"": BEGIN, **{stage: whole.ended.counts[stage] for stage in (*STAGES, "report")}}
    arguments = ("run", whole.recipe, "--out", tmp_path / "run")
    killed = kill_in(commands, arguments, counts, seed=seed, times=times)
    ended = commands(*arguments)
    assert killed >= at_least
    assert ended.status == 0, ended.said
    assert differences(content(tmp_path / "run"), whole.content) == []
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("times", [3, pytest.param(12, marks=pytest.mark.long)])
def test_a_run_killed_at_random_times_ends_as_if_undisturbed(
    times: int, commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    draw = random.Random(times)
    arguments = ("run", whole.recipe, "--out", tmp_path / "run")
    killed = sum(commands(*arguments, after=draw.uniform(0.2, 2.0)).killed for _ in range(times))
    assert killed  # perhaps not each: the last ones may find nothing left to do
    ended = commands(*arguments)
    assert ended.status == 0, ended.said
    assert differences(content(tmp_path / "run"), whole.content) == []
    assert left_over(tmp_path / "run") == []


def write_corpus(path: Path) -> Path:
    """Write a language that the run does not have."""
    draw = random.Random(path.name)
    words = ["".join(draw.choices("aeioukqxtz'chjwy", k=draw.randint(2, 6))) for _ in range(60)]
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=12))}) for _ in range(80)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("seed", "times", "at_least"), [(0, 1, 4), pytest.param(1, 5, 20, marks=pytest.mark.long)], ids=["few", "many"]
)
def test_an_adaptation_killed_in_every_stage_ends_as_if_undisturbed(
    seed: int, times: int, at_least: int, commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    texts = {tag: write_corpus(tmp_path / f"{tag}.jsonl") for tag in ("mam_Latn", "jac_Latn")}
    given = [part for tag, text in texts.items() for part in ("--language", f"{tag}={text}")]
    given += ["--tokens", "2048", "--learning-rate", "2e-2", "--extend-vocab", "8"]
    undisturbed = commands("adapt", whole.folder, *given, "--out", tmp_path / "whole")
    assert undisturbed.status == 0, undisturbed.said
    arguments = ("adapt", whole.folder, *given, "--out", tmp_path / "out")
    counts = {"": BEGIN, **{stage: undisturbed.counts[stage] for stage in ("nearest", "train", "evaluate")}}
    killed = kill_in(commands, arguments, counts, seed=seed, times=times)
    ended = commands(*arguments)
    assert killed >= at_least
    assert ended.status == 0, ended.said
    assert differences(content(tmp_path / "out"), content(tmp_path / "whole")) == []
    assert left_over(tmp_path / "out") == []


def test_an_adaptation_killed_when_its_model_is_in_its_place_trains_nothing_again(
    commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    given = ("--language", f"mam_Latn={write_corpus(tmp_path / 'mam.jsonl')}", "--tokens", 1024)
    arguments = ("adapt", whole.folder, *given, "--out", tmp_path / "out")
    ended = commands(*arguments, stage="train", at=10**9)  # before the first operation after the stage
    assert ended.killed
    record = json.loads((tmp_path / "out/stages/train.json").read_text(encoding="utf-8"))
    assert record["done"]
    (tmp_path / "out/stages/train.json").unlink()  # as if killed a moment earlier
    trained = (tmp_path / "out/model/model.safetensors").stat()
    steps = (tmp_path / "out/events.jsonl").read_bytes()
    assert commands(*arguments).status == 0
    assert (tmp_path / "out/model/model.safetensors").stat() == trained
    assert (tmp_path / "out/events.jsonl").read_bytes() == steps
    assert left_over(tmp_path / "out") == []


@pytest.mark.long
def test_a_comparison_killed_anywhere_ends_as_if_undisturbed(commands: Commands, whole: Whole, tmp_path: Path) -> None:
    given = ("--workers", 1, "--set", "compare={methods: [dense, btx], seeds: [0]}", "--set", "train.tokens=2048")
    undisturbed = commands("compare", whole.recipe, *given, "--out", tmp_path / "whole")
    assert undisturbed.status == 0, undisturbed.said
    arguments = ("compare", whole.recipe, *given, "--out", tmp_path / "out")
    counts = {stage: undisturbed.counts[stage] for stage in ("train", "branch-1", "")}
    killed = kill_in(commands, arguments, counts, seed=1, times=4)
    ended = commands(*arguments)
    assert killed >= 8
    assert ended.status == 0, ended.said
    assert differences(content(tmp_path / "out"), content(tmp_path / "whole")) == []
    assert left_over(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("merge", ("--groups", "1,0")),
        ("compress", ("--width", 8)),
        ("expand", ("--layers", "0-1", "--groups", 2)),
        pytest.param("export", ("--to", "dense", "--group", 0), marks=pytest.mark.long),
    ],
)
def test_a_model_made_from_another_is_there_whole_or_not_at_all(
    verb: str, given: tuple[object, ...], commands: Commands, whole: Whole, tmp_path: Path
) -> None:
    source = whole.folder / ("base" if verb == "expand" else "")
    undisturbed = commands(verb, source, *given, "--out", tmp_path / "whole")
    assert undisturbed.status == 0, undisturbed.said
    arguments = (verb, source, *given, "--out", tmp_path / "out")
    draw, count = random.Random(verb), undisturbed.counts[""]
    for at in sorted({1, count, *(draw.randint(1, count) for _ in range(2))}):
        assert commands(*arguments, stage="", at=at).killed
        if (tmp_path / "out").exists():  # killed at the very end: then all of it is there
            break
    else:
        ended = commands(*arguments)
        assert ended.status == 0, ended.said
    assert differences(content(tmp_path / "out"), content(tmp_path / "whole")) == []
    assert (tmp_path / "out/README.md").is_file()
    assert left_over(tmp_path) == []
