"""Trainings on two processes, started as a user starts them, beside the same on one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import BLOCK, CASES, GROUPS, MORE, SHARDED, STEPS, blocks_of, corpora, plan_of, train_case
from safetensors.torch import load_file
from torch import Tensor

from sprachbund import parallel
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.recipe_file import load_recipe
from sprachbund.training.sharding import shard_dimension
from sprachbund.training.stages import check_ranks, micro_batch

TIMES = ("tokens_per_second", "memory_mb")
RESUMED = ("resumed", "resumed sharded")
LABELS = [*CASES, *(f"{name} sharded" for name in SHARDED if name in CASES)]
Trained = tuple[dict[str, Tensor], list[dict[str, Any]], Path]


def launched(*arguments: object) -> list[str]:
    """Return the command that runs a script, or `-m` and a module, on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*command, *map(str, arguments)]


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(launched(*arguments), capture_output=True, text=True, env=settings, check=False)


def steps_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k not in TIMES} for e in events if e["event"] == "step"]


def tokens_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "tokens"]


def assert_alike(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """Compare what two trainings logged: steps within float error, tokens exactly."""
    for first, second in zip(steps_of(one), steps_of(two), strict=True):
        assert first.keys() == second.keys()
        for part in ("loss", "language_model_loss", "router_loss", "balance_loss", "grad_norm"):
            assert second.get(part, 0.0) == pytest.approx(first.get(part, 0.0), rel=1e-4), (first["step"], part)
    assert tokens_of(one) == tokens_of(two)


def assert_close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Compare trained weights: AdamW's first steps are of the learning rate's size, 0.01, whatever the gradient."""
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().max() < 2e-3, name
        assert (tensor - two[name]).abs().mean() < 2e-5, name


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[Packed]:
    return corpora(tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, streams: list[Packed]) -> Callable[[str], Trained]:
    """Return a function that trains a case on this one process, once."""
    folder, found = tmp_path_factory.mktemp("alone"), {}

    def of(name: str) -> Trained:
        if name not in found:
            case = (CASES | MORE)[name]
            model, events = train_case(case, streams, folder / name, plan_of(case))
            found[name] = (model.state_dict(), events, folder / name)
        return found[name]

    return of


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, alone: Callable[[str], Trained]) -> Path:
    """Return the folder of all cases on two processes, and of one process's checkpoint gone on with there."""
    folder = tmp_path_factory.mktemp("pair")
    for label in RESUMED:
        shutil.copytree(alone("default")[2] / "checkpoint-2", folder / label / "checkpoint-2")
    said = launch(Path(__file__).with_name("rank_cases.py"), folder)
    assert said.returncode == 0, said.stderr
    return folder


@pytest.mark.parametrize("label", LABELS)
def test_two_processes_train_what_one_does_with_twice_the_accumulation(
    label: str, pair: Path, alone: Callable[[str], Trained]
) -> None:
    weights, events, _ = alone(label.removesuffix(" sharded"))
    assert_alike(events, json.loads((pair / f"{label}.json").read_text()))
    assert_close(load_file(pair / f"{label}.safetensors"), weights)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of further cases on two processes."""
    folder = tmp_path_factory.mktemp("more")
    said = launch(Path(__file__).with_name("rank_cases.py"), folder, "more")
    assert said.returncode == 0, said.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("label", [*MORE, *(f"{name} sharded" for name in MORE)])
def test_every_kind_of_expert_trains_on_two_processes_as_on_one(
    label: str, more: Path, alone: Callable[[str], Trained]
) -> None:
    weights, events, _ = alone(label.removesuffix(" sharded"))
    assert_alike(events, json.loads((more / f"{label}.json").read_text()))
    assert_close(load_file(more / f"{label}.safetensors"), weights)


@pytest.mark.parametrize("label", RESUMED)
def test_two_processes_go_on_with_a_checkpoint_of_one(label: str, pair: Path, alone: Callable[[str], Trained]) -> None:
    weights, events, _ = alone("default")
    later = [event for event in events if event["step"] > 2]
    assert_alike(later, json.loads((pair / f"{label}.json").read_text()))
    assert_close(load_file(pair / f"{label}.safetensors"), weights)


@pytest.mark.parametrize("label", ["default", "default sharded"])
def test_one_process_goes_on_with_a_checkpoint_of_two(
    label: str, pair: Path, alone: Callable[[str], Trained], streams: list[Packed], tmp_path: Path
) -> None:
    weights, events, folder = alone("default")
    shutil.copytree(pair / label / "checkpoint-2", tmp_path / "checkpoint-2")
    names, theirs = (
        {path.name for path in place.iterdir()} for place in (tmp_path / "checkpoint-2", folder / "checkpoint-2")
    )
    assert names | {"training_args.bin"} == theirs  # which nothing reads
    case = replace(CASES["default"], seed=99)
    model, found = train_case(case, streams, tmp_path, plan_of(case))
    assert_alike([event for event in events if event["step"] > 2], found)
    assert_close(model.state_dict(), weights)


def test_a_loss_that_is_not_finite_on_one_process_stops_all_before_the_update(pair: Path) -> None:
    assert (pair / "broken.txt").read_text().startswith("the loss became nan at step 3; the model was not updated")


def test_a_users_error_is_said_once_and_ends_every_process(tiny: Path, tmp_path: Path) -> None:
    logs = ["--log-dir", tmp_path / "logs", "--redirects", "3"]
    run = ["-m", "sprachbund", "train", tiny, "--out", tmp_path / "run", "--set", "train.tokens_per_step=224"]
    said = launch(*logs, *run, "--set", "train.tokens=2240")
    assert said.returncode == 1
    assert "exitcode  : 2" in said.stderr
    spoken = {path.parent.name: path.read_text() for path in (tmp_path / "logs").rglob("std*.log")}
    errors = {path.parent.name: path.read_text() for path in (tmp_path / "logs").rglob("stderr.log")}
    assert errors == {
        "0": "sprachbund: train.tokens_per_step: a step is 7 sequences of 32 tokens, which 2 processes cannot share "
        "evenly; give a multiple of 64 tokens, or start 1 or 7 processes\n",
        "1": "",
    }
    assert len(spoken) == 2
    assert not (tmp_path / "run").exists()


def train_steps(run: Path) -> dict[int, str]:
    """Return the steps of the mixture's training that were logged, and when."""
    path = run / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {event["step"]: event["time"] for event in events if (event["stage"], event["event"]) == ("train", "step")}


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_others_and_the_same_command_continues(tiny: Path, tmp_path: Path) -> None:
    logs, run = tmp_path / "logs", tmp_path / "run"
    command = [
        "-m",
        "sprachbund",
        "run",
        tiny,
        "--out",
        run,
        "--set",
        "train.tokens=102400",
        "--set",
        "train.log_every=1",
    ]
    launcher = subprocess.Popen(
        launched("--log-dir", logs, "--redirects", "3", *command), env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while len(train_steps(run)) < 150:  # of 400: after the first of four checkpoints
        assert launcher.poll() is None
        time.sleep(0.05)
    children = map(int, subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True).split())
    (follower,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(follower, signal.SIGKILL)
    assert launcher.wait() == 1
    (said,) = logs.rglob("0/stderr.log")
    assert "Traceback" not in said.read_text()
    before = train_steps(run)
    again = launch(*command)
    assert again.returncode == 0, again.stderr
    steps = train_steps(run)
    assert list(steps) == list(range(1, 401))
    assert steps[50] == before[50]  # gone on with, not begun anew
    assert steps[399] > max(before.values())
    assert (run / "metrics.json").exists()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_ranks_and_accumulation_steps_together_have_the_steps_row(
    micro_batch_size: int, num_ranks: int, streams: list[Packed]
) -> None:
    whole = blocks_of(streams, micro_batch_size=micro_batch_size)
    of_step = [sorted(zip(*rows, strict=True)) for rows in by_step(whole)]
    ranks = [whole.of_rank(rank, num_ranks, micro_batch_size=micro_batch_size) for rank in range(num_ranks)]
    assert {len(rank) for rank in ranks} == {len(whole) // num_ranks}
    parts = [list(by_step(rank)) for rank in ranks]
    for step in range(STEPS):
        together = [pair for part in parts for pair in zip(*part[step], strict=True)]
        assert sorted(together) == of_step[step]
    items = [whole[number]["input_ids"].tolist() for number in range(micro_batch_size * num_ranks)]
    first = [rank[number]["input_ids"].tolist() for rank in ranks for number in range(micro_batch_size)]
    assert first == items  # the first micro-batches of all ranks are the first ones of the step, side by side
    assert len(items[0]) == BLOCK


def by_step(blocks: Any) -> Any:
    """Yield (languages, blocks) of each step."""
    size = len(blocks) // STEPS
    for step in range(STEPS):
        rows = slice(step * size, (step + 1) * size)
        yield blocks.languages[rows].tolist(), blocks.blocks[rows].tolist()


def test_every_rank_has_every_group_in_every_step(streams: list[Packed]) -> None:
    rows = [[1, 1, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0]] * STEPS  # four of each group
    whole = blocks_of(streams, micro_batch_size=3, rows=rows)
    for rank in range(4):
        own = whole.of_rank(rank, 4, micro_batch_size=3)
        groups = [GROUPS[language] for language in own.languages]
        assert all(len(set(groups[start : start + 3])) == 3 for start in range(0, len(groups), 3))


def test_the_micro_batch_is_the_largest_that_divides_a_ranks_part() -> None:
    assert [micro_batch(share, most) for share, most in [(8, 4), (6, 4), (2, 8), (7, 3)]] == [4, 3, 2, 1]
    plan = replace(plan_of(CASES["dense"]), batch_size=12, micro_batch_size=6)
    assert plan.on_ranks(1) == plan
    assert plan.on_ranks(3).micro_batch_size == 4
    assert plan.on_ranks(12).micro_batch_size == 1


def test_steps_that_processes_cannot_share_are_refused_with_what_is_allowed(tiny: Path) -> None:
    recipe = load_recipe(tiny)
    check_ranks(recipe, 8)
    with pytest.raises(
        InputError, match=r"^base\.scratch\.tokens_per_step: a step is 8 .* 96 tokens, or start 2 or 4 pro"
    ):
        check_ranks(recipe, 3)
    recipe = load_recipe(tiny, overrides=["base.scratch.tokens_per_step=480"])  # 15 sequences
    with pytest.raises(InputError, match=r"^train\.tokens_per_step: .* multiple of 480 tokens, or start 8 processes$"):
        check_ranks(recipe, 15)


@pytest.mark.parametrize(
    ("shape", "num_ranks", "dimension"),
    [
        ((16, 64, 24), 8, 0),  # two experts for each
        ((4, 64, 24), 8, 1),  # more ranks than experts
        ((6, 64, 24), 4, 1),  # two ranks would hold two experts, one none
        ((3, 9, 24), 8, 2),
        ((3, 9, 7), 8, 0),  # nothing divides: as FSDP2 does it
        ((300, 16), 7, 0),
        ((16,), 32, 0),
    ],
)
def test_experts_are_cut_where_ranks_can_share_them_evenly(
    shape: tuple[int, ...], num_ranks: int, dimension: int
) -> None:
    assert shard_dimension(torch.Size(shape), num_ranks) == dimension


def test_signs_of_other_processes_do_not_disturb_one(
    monkeypatch: pytest.MonkeyPatch, streams: list[Packed], tmp_path: Path
) -> None:
    """A job's scheduler sets RANK and WORLD_SIZE; accelerate would wait for seven others for ever."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere.invalid"}.items():
        monkeypatch.setenv(name, value)
    assert not parallel.launched()
    _, events = train_case(CASES["dense"], streams, tmp_path, plan_of(CASES["dense"]))
    assert len(steps_of(events)) == STEPS
    assert os.environ["WORLD_SIZE"] == "8"
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert parallel.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not parallel.launched()


def test_of_what_accelerate_passes_on_only_the_wish_for_shards_counts(
    monkeypatch: pytest.MonkeyPatch, streams: list[Packed], tmp_path: Path
) -> None:
    plan = plan_of(CASES["dense"])
    assert not plan.on_ranks(2).sharded
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert plan.on_ranks(2).sharded
    assert not plan.on_ranks(1).sharded
    _, events = train_case(CASES["dense"], streams, tmp_path / "asked", plan)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert steps_of(events) == steps_of(train_case(CASES["dense"], streams, tmp_path / "plain", plan)[1])


def test_what_trains_in_one_process_says_so(monkeypatch: pytest.MonkeyPatch, cli: Any, tiny: Path) -> None:
    monkeypatch.setattr(parallel, "world_size", lambda: 2)  # what `refuse_several` asks
    said = cli("compare", tiny)
    assert said.status == 2
    assert said.err == (
        "sprachbund: sprachbund compare works in one process; start it without torchrun or accelerate launch\n"
    )
