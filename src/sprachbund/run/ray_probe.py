"""The probe on a Ray cluster: a task for each language, on workers that load the base once.

A worker is given paths and not weights: on one machine all of them map the same files of the base into memory. Only
this process writes to the run.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sprachbund import __version__
from sprachbund.corpora.packing import load_packed
from sprachbund.errors import InputError, SprachbundError, brief
from sprachbund.progress import say
from sprachbund.recipe import Recipe
from sprachbund.run.probing import DenseBase, LanguageText, Measure, ProbeJob
from sprachbund.run.ray_cluster import connected, machines, num_places
from sprachbund.similarity import probe_bytes

RETRIES = 3  # of a language whose worker died, and of a worker that died before it had one
SECONDS_BETWEEN_LOOKS = 60.0
NOT_INSTALLED = re.compile(r"No module named '(sprachbund[^']*|torch|transformers)'")
PATIENCE_SECONDS = 600.0  # for a first worker: a busy cluster may let us wait, but not for ever


@dataclass(frozen=True)
class RayEngine:
    """Measures the languages of a probe on Ray, as many at once as there is room for.

    Attributes:
        address: HOST:PORT of a cluster's head, auto or local; null: $RAY_ADDRESS, else an own one on this machine.
        gpus_per_probe: 0 to 1; null: 1 where the cluster has GPUs and the probe a model, else 0.
        cpus_per_probe: also a probe's threads; null: as many as this process has, which gives the very bits of the
            local engine, or on a GPU one.
    """

    address: str | None = None
    gpus_per_probe: float | None = None
    cpus_per_probe: int | None = None

    def __post_init__(self) -> None:
        if self.gpus_per_probe is not None and not 0 <= self.gpus_per_probe <= 1:
            raise InputError(
                f"--gpus-per-probe {self.gpus_per_probe:g}: a probe runs on one GPU or a share of it; give a number "
                "from 0 (on CPUs) to 1"
            )

    def __call__(self, job: ProbeJob, tags: Sequence[str]) -> Generator[tuple[str, bytes], None, None]:
        """Yield each language's tag and the content of its file, in the order in which they are done."""
        with connected(self.address) as ray:
            resources = machines(ray)
            gpus = self.gpus_per_probe
            if gpus is None:
                gpus = float(job.base is not None and any(machine.get("GPU") for machine in resources))
            cpus = self.cpus_per_probe or (1 if gpus else torch.get_num_threads())
            places = min(num_places(resources, cpus=cpus, gpus=gpus), len(tags))
            say(f"probe: on Ray, {places} at once, each with {cpus} CPUs and {gpus:g} GPUs")
            yield from _Dispatch(ray, job, tags, cpus=cpus, gpus=gpus).results(places)


class _Dispatch:
    """Hands languages to workers; `pending` says which worker each awaited answer is of, and for which language."""

    def __init__(self, ray: Any, job: ProbeJob, tags: Sequence[str], *, cpus: int, gpus: float) -> None:
        self._ray, self._job, self._left = ray, job, deque(tags)
        self._base, self._is_folder = _portable(job.base)
        self._worker = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._threads, self._gpus = cpus, gpus
        self._pending: dict[Any, tuple[Any, str | None]] = {}  # None: the worker has yet to say that it is there
        self._deaths = Counter[str | None]()
        self._last_sign = time.monotonic()

    def results(self, num_workers: int) -> Generator[tuple[str, bytes], None, None]:
        """Yield what the workers find."""
        ray = self._ray
        try:
            for _ in range(num_workers):
                self._start_worker()
            while self._left or self._is_measuring():
                done, _ = ray.wait(list(self._pending), timeout=SECONDS_BETWEEN_LOOKS)
                if not done:
                    self._check_patience()
                    continue
                worker, tag = self._pending.pop(done[0])
                try:
                    found = ray.get(done[0])
                except ray.exceptions.RayTaskError as error:  # what our own code raised over there
                    raise error.cause or error from error
                except ray.exceptions.RayError as error:
                    self._lost(worker, tag, error)
                    continue
                self._last_sign = time.monotonic()
                self._next_for(worker)  # before the result is written, so that nobody waits for the disk
                if tag is not None:
                    yield tag, found
        finally:
            for worker, _ in self._pending.values():
                _kill(ray, worker)

    def _is_measuring(self) -> bool:
        return any(tag is not None for _, tag in self._pending.values())

    def _start_worker(self) -> None:
        worker = self._worker.remote(self._job.recipe, self._base, threads=self._threads, on_gpu=self._gpus > 0)
        self._pending[worker.ready.remote(_versions(), is_folder=self._is_folder)] = (worker, None)

    def _next_for(self, worker: Any) -> None:
        """Give a worker the next language; without one it is ended, and what it holds is free for others."""
        if not self._left:
            _kill(self._ray, worker)
            return
        text = self._job.text(self._left.popleft())
        assert text.stream.path is not None
        stream = str(text.stream.path.resolve())
        documents = list(text.documents)  # which may lie in a folder of this machine alone
        answer = worker.measure.remote(text.tag, stream, text.stream.name, text.sentences, documents)
        self._pending[answer] = (worker, text.tag)

    def _lost(self, worker: Any, tag: str | None, error: Exception) -> None:
        """Replace a worker that died, and try its language again; raises SprachbundError when that was tried enough."""
        _kill(self._ray, worker)  # it may live on where nobody can reach it
        if missing := NOT_INSTALLED.search(str(error)):
            raise InputError(
                f"a machine of the Ray cluster has no module {missing[1]}; install the same version of sprachbund "
                "and of Python on every machine"
            )
        self._deaths[tag] += 1
        self._last_sign = time.monotonic()
        what = f"the probe of {tag}" if tag is not None else "a worker that was to start"
        if self._deaths[tag] > RETRIES:
            if tag is None and self._pending:
                return  # those that did start can do it alone
            raise SprachbundError(
                f"{what} died {self._deaths[tag]} times on Ray ({brief(error)}); the languages that are done stay, and "
                "the same command goes on from there, also with --engine local"
            )
        say(f"probe: {what} died with its worker; tried again ({self._deaths[tag]} of {RETRIES})")
        if tag is not None:
            self._left.appendleft(tag)
        self._start_worker()

    def _check_patience(self) -> None:
        """Say what is waited for; raises SprachbundError where no worker has started for too long."""
        if self._is_measuring():
            return
        waited = time.monotonic() - self._last_sign
        free = self._ray.available_resources()
        state = (
            f"no worker has started in {waited:.0f} s; each takes {self._threads} CPUs and {self._gpus:g} GPUs, and "
            f"the cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free"
        )
        if waited > PATIENCE_SECONDS:
            raise SprachbundError(f"Ray: {state}; try later, or ask for less by --cpus-per-probe and --gpus-per-probe")
        say(f"probe: {state}")


def _kill(ray: Any, worker: Any) -> None:
    with suppress(Exception):  # gone already, or the connection is
        ray.kill(worker)


def _portable(base: DenseBase | None) -> tuple[DenseBase | None, bool]:
    """Return a base as other machines find it, and whether it is a folder."""
    if base is None or not Path(base.path).is_dir():
        return base, False
    return replace(base, path=str(Path(base.path).resolve())), True


def _versions() -> dict[str, str]:
    """Return the versions that must agree for the same result."""
    return {"sprachbund": __version__, **{name: version(name) for name in ("torch", "transformers")}}


class Worker:
    """One of Ray's worker processes: loads the base at its first language, and keeps it."""

    def __init__(self, recipe: Recipe, base: DenseBase | None, *, threads: int, on_gpu: bool) -> None:
        if not on_gpu:  # Ray leaves all GPUs of the machine visible to a worker that asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(threads)
        self._recipe, self._base, self._on_gpu = recipe, base, on_gpu
        self._measure: Measure | None = None

    def ready(self, versions: dict[str, str], *, is_folder: bool) -> str:
        """Return the machine's name; raises InputError where it cannot do what the local engine would."""
        machine, own = socket.gethostname(), _versions()
        if differing := [f"{name} {own[name]} for {versions[name]}" for name in own if own[name] != versions[name]]:
            raise InputError(
                f"{machine} of the Ray cluster has {', '.join(differing)}; install the same versions on every machine"
            )
        if self._base is not None and is_folder:
            _check_there(Path(self._base.path), "the base")
        if self._on_gpu and not torch.cuda.is_available():
            raise InputError(
                f"{machine} of the Ray cluster has a GPU that its torch cannot use; install torch with CUDA there, or "
                "give --gpus-per-probe 0"
            )
        return machine

    def measure(self, tag: str, stream: str, name: str, sentences: Sequence[str], documents: Sequence[str]) -> bytes:
        """Return the content of a language's file; `stream` is the path of its tokens, which do not travel."""
        _check_there(Path(stream), f"the tokens of {name}")
        if self._measure is None:
            self._measure = Measure(self._recipe, self._base)
        text = LanguageText(tag, load_packed(Path(stream), name=name), sentences, documents)
        return probe_bytes(self._measure(text))


def _check_there(path: Path, what: str) -> None:
    """Raise InputError for a path that only the machine that started the probe can read."""
    if not path.exists():
        raise InputError(
            f"{socket.gethostname()} of the Ray cluster cannot read {what} at {path}; every machine must find the "
            "base, the run and $SPRACHBUND_CACHE under the same path, on a shared file system"
        )
