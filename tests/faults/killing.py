"""Commands that are killed, and the comparison of what they leave in the end with what an undisturbed one leaves."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

CLOCKS = ("seconds", "cpu_seconds", "tokens_per_second", "peak_memory_mb")
EXACT = ("*.csv", "tokenizer.json", "config.json", "layers.svg")
RESULTS = ("metrics", "adapt", "compare", "groups", "grouping", "regroup", "compress", "export")
LOSSES = ("stage", "step", "loss", "learning_rate", "grad_norm", "language_model_loss", "router_loss")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (negative: by a signal), what it said, and its operations by stage."""

    status: int
    said: str
    counts: Mapping[str, int]

    @property
    def killed(self) -> bool:
        """Did it die as it was told to?"""
        return self.status == -signal.SIGKILL


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: its recipe, its folder, how it ended, and what its results are."""

    recipe: Path
    folder: Path
    ended: Ended
    content: Mapping[str, Any]


class Commands:
    """Runs commands in children of a process that has loaded everything (zygote.py)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, str(Path(__file__).with_name("zygote.py"))]
        self.zygote = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.number = 0
        self.environment: dict[str, str] = {}

    def __call__(
        self,
        *arguments: object,
        stage: str | None = None,
        at: int = 0,
        after: float | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Ended:
        """Run `sprachbund ARGUMENTS`, killed before the at-th operation of a stage or after so many seconds, if any."""
        self.number += 1
        said, counts = (self.folder / f"{self.number}.{kind}" for kind in ("said", "counts"))
        counts.unlink(missing_ok=True)
        request = {
            "arguments": list(map(str, arguments)), "within": str(self.folder.parent), "said": str(said),
            "counts": str(counts), "stage": stage, "at": at, "after": after, "limits": dict(limits or {}),
            "environment": self.environment,
        }  # fmt: skip
        assert self.zygote.stdin is not None
        assert self.zygote.stdout is not None
        print(json.dumps(request), file=self.zygote.stdin, flush=True)
        status = json.loads(self.zygote.stdout.readline())
        told = json.loads(counts.read_text(encoding="utf-8")) if counts.exists() else {}
        return Ended(status, said.read_text(encoding="utf-8"), told)

    def address_space(self) -> int:
        """Return the bytes of address space that the process has, and each child begins with."""
        pages = Path(f"/proc/{self.zygote.pid}/statm").read_text(encoding="utf-8").split()[0]
        return int(pages) * resource.getpagesize()

    def close(self) -> None:
        """End the process."""
        assert self.zygote.stdin is not None
        self.zygote.stdin.close()
        self.zygote.wait()


def without_clocks(value: Any) -> Any:
    """Return a JSON value without what a clock has measured."""
    if isinstance(value, dict):
        return {key: without_clocks(inner) for key, inner in value.items() if key not in CLOCKS}
    return [without_clocks(inner) for inner in value] if isinstance(value, list) else value


def _tensors(path: Path) -> dict[str, Any]:
    """Return the digest of each tensor of a file, and its metadata, whose order is never the same."""
    with safe_open(str(path), framework="pt") as file:
        digests = {name: sha256(file.get_tensor(name).view(torch.uint8).numpy()).hexdigest() for name in file.keys()}  # noqa: SIM118
        return {"metadata": file.metadata(), **digests}


def _losses(path: Path) -> list[dict[str, Any]]:
    """Return the steps that were logged, each once."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: event.get(key) for key in LOSSES} for event in events if event["event"] == "step"]


def content(folder: Path) -> dict[str, Any]:
    """Return what the results in a folder are: every tensor, every exact file, and JSON without clocks."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if {"stages", "checkpoints"} & set(path.relative_to(folder).parts):
            continue
        if path.suffix == ".safetensors":
            found[name] = _tensors(path)
        elif any(path.match(pattern) for pattern in EXACT):
            found[name] = sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".json" and path.stem in RESULTS:
            found[name] = without_clocks(json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "events.jsonl":
            found[name] = _losses(path)
    return found


def left_over(folder: Path) -> list[str]:
    """Return what no finished command leaves: temporary files, checkpoints, steps."""
    names = [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    names += [path for pattern in ("checkpoints/*", "steps-*") for path in folder.rglob(pattern)]
    return sorted(str(path.relative_to(folder)) for path in names)
