"""A run that is interrupted anywhere ends, by the same command, as if it had never been."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from safetensors.numpy import load_file

# Runs the command line and kills its own process by a signal, at the given point of the given stage's training.
KILLED = """
import os, sys
from pathlib import Path
from sprachbund.training import trainer

name, at, stage, step = sys.argv[1:5]
sys.argv[1:5] = []
before = getattr(trainer._Callback, at)

def killed(self, args, state, control, **rest):
    if f"{stage}-" in args.output_dir and state.global_step == int(step):
        os.kill(os.getpid(), int(name))
    return before(self, args, state, control, **rest)

setattr(trainer._Callback, at, killed)
from sprachbund.cli import main
main()
"""
CLOCK = ("seconds", "tokens_per_second", "peak_memory_mb")
LOSSES = (
    "stage",
    "event",
    "step",
    "loss",
    "learning_rate",
    "grad_norm",
    "language_model_loss",
    "router_loss",
    "tokens",
)


def metrics_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in CLOCK}


def losses_of(folder: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [{key: event[key] for key in LOSSES if key in event} for event in events]


@pytest.fixture(scope="module")
def interrupted(shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, int]]:
    """Two runs side by side, stopped by a signal: their folders, standard errors and exit statuses."""
    points = {
        "Ctrl-C in a step of the control": (signal.SIGINT, "on_step_end", "dense", 5),
        "a kill in a checkpoint of the mixture": (signal.SIGKILL, "on_save", "train", 6),
    }
    started = {}
    for name, point in points.items():
        folder = tmp_path_factory.mktemp("stopped") / "run"
        arguments = [*map(str, (int(point[0]), *point[1:])), "run", str(shared_tiny), "--out", str(folder)]
        command = [sys.executable, "-c", KILLED, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started[name] = (folder, process)
    return {name: (folder, process.communicate()[1], process.returncode) for name, (folder, process) in started.items()}


@pytest.mark.parametrize(
    ("name", "status", "stage", "resumed"),
    [
        ("Ctrl-C in a step of the control", 1, "dense", 4),
        ("a kill in a checkpoint of the mixture", -signal.SIGKILL, "train", 4),
    ],
)
def test_the_same_command_continues_to_the_same_end(
    name: str,
    status: int,
    stage: str,
    resumed: int,
    interrupted: dict[str, tuple[Path, str, int]],
    finished: Path,
    shared_tiny: Path,
    cli: CommandLine,
) -> None:
    folder, err, returned = interrupted[name]
    assert returned == status, err
    assert "Traceback" not in err
    assert not (folder / "metrics.json").exists()
    checkpoints = list((folder / "checkpoints").glob(f"{stage}-*/checkpoint-*"))
    assert max(int(path.name.split("-")[1]) for path in checkpoints if (path / "complete").exists()) == resumed

    said = cli("run", shared_tiny, "--out", folder)
    assert said.status == 0, said.err
    assert {"tokenizer", "corpora", "base", "probe", "groups"} <= set(said.skipped)
    assert stage not in said.skipped
    assert metrics_of(folder) == metrics_of(finished)
    assert losses_of(folder) == losses_of(finished)
    for model in ("dense", "model"):
        ours, theirs = (load_file(run / model / "model.safetensors") for run in (folder, finished))
        assert [key for key in theirs if not np.array_equal(ours[key], theirs[key])] == []
    assert list((folder / "checkpoints").iterdir()) == []
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]


def test_ctrl_c_ends_with_one_sentence(interrupted: dict[str, tuple[Path, str, int]]) -> None:
    err = interrupted["Ctrl-C in a step of the control"][1]
    assert err.splitlines()[-1] == "sprachbund: interrupted; the same command continues where it stopped"
