"""Memory that is too small: one sentence with the stage and what to lower, and the run goes on afterwards."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine
from killing import Commands
from transformers import AutoModelForCausalLM

from sprachbund.compare import engine
from sprachbund.errors import InputError, out_of_memory
from sprachbund.modeling.base import load_model
from sprachbund.run import probing, scoring
from sprachbund.run.trouble import trouble
from sprachbund.training.trainer import GroupTrainer

TRAINING = "lower train.micro_batch_tokens or set train.gradient_checkpointing: true"


def cuda(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


def cpu(*_: Any, **__: Any) -> Any:
    return torch.empty(1 << 60)


def python(*_: Any, **__: Any) -> Any:
    return bytearray(1 << 60)


@pytest.mark.parametrize(
    ("stage", "place", "name", "advice"),
    [
        ("base", GroupTrainer, "compute_loss", TRAINING),
        ("probe", probing, "probe_language", "lower train.micro_batch_tokens, probe.layers or probe.sketch_size"),
        ("evaluate", scoring, "score_language", "lower evaluate.batch_tokens"),
    ],
)
@pytest.mark.parametrize("allocate", [cuda, cpu, python])
def test_a_stage_without_memory_says_what_to_lower(
    stage: str,
    place: Any,
    name: str,
    advice: str,
    allocate: Callable[..., Any],
    finished: Path,
    shared_tiny: Path,
    tmp_path: Path,
    cli: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    if stage == "evaluate":
        shutil.copytree(finished, run)
        (run / "metrics.json").unlink()
    elif stage == "probe":
        shutil.copytree(finished, run)
        (run / "probe/ita_Latn.safetensors").unlink()
    monkeypatch.setattr(place, name, allocate)
    said = cli("run", shared_tiny, "--out", run)
    assert said.status == 1
    assert said.last.startswith(f"sprachbund: out of memory in the stage {stage}")
    assert said.last.endswith(f"; {advice}, and run the command again with --update")
    assert "Traceback" not in said.err
    monkeypatch.undo()
    if stage != "base":
        assert cli("run", shared_tiny, "--out", run).status == 0


def test_an_adaptation_and_other_commands_say_it_in_their_words(tmp_path: Path) -> None:
    error = MemoryError()
    assert str(trouble(error, tmp_path, "train")) == (
        "out of memory in the stage train; lower --tokens-per-step, or give a smaller --path, and run the command "
        "again with --update"
    )
    assert str(trouble(error, None)) == (
        "out of memory; give it a smaller model or batch, or a machine with more memory"
    )
    assert trouble(RuntimeError("shapes (2, 3) and (4, 5) do not fit"), tmp_path, "train") is None
    assert trouble(InputError("out of memory of mine"), tmp_path, "train") is None


def test_a_model_that_does_not_fit_is_not_called_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", cuda)
    with pytest.raises(torch.OutOfMemoryError) as error:
        load_model("some/model", dtype="float32")
    assert out_of_memory(error.value)


def test_a_process_that_may_have_no_more_memory(commands: Commands, tiny: Path) -> None:
    said = commands(
        *("run", tiny, "--out", tiny.parent / "run", "--set", "base.scratch.ffn_size=8388608"),
        limits={"RLIMIT_AS": commands.address_space() + (3 << 30)},
    )
    assert said.status == 1
    assert "Traceback" not in said.said
    assert said.said.splitlines()[-1].startswith("sprachbund: out of memory in the stage base (")
    assert commands("run", tiny, "--out", tiny.parent / "run", "--update").status == 0


def test_a_worker_of_a_comparison_that_is_killed_is_one_sentence(
    shared_tiny: Path, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def killed(_: int) -> Iterator[Callable[..., Future[Any]]]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool())
        yield lambda *_: future

    monkeypatch.setattr(engine, "pool", killed)
    given = ("--set", "compare={methods: [dense], seeds: [0]}", "--set", "base.scratch.tokens=256")
    said = cli("compare", shared_tiny, "--out", tmp_path / "out", *given)
    assert said.status == 1
    assert said.last.startswith("sprachbund: a worker was killed, at or beside ")
    assert said.last.endswith(", perhaps for want of memory; run the same command again with fewer --workers")
