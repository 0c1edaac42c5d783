"""A Ray cluster to work on: an own one on this machine, or one that runs already; and what it has to offer.

Ray is the optional extra `ray`, imported when it is asked for.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError, SprachbundError, brief

CONNECT_SECONDS = 10.0
STARTS = 3  # of an own cluster: Ray gives its parts 30 seconds, which a machine with much to do may not keep
LOCAL, AUTO = "local", "auto"
HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:/\s]+):(\d{1,5})")
LONGEST_FOLDER = 24  # of Ray's files: the sockets in it have names of at most 107 characters


def check_ray(address: str | None) -> None:
    """Check, without importing Ray, that it is installed and that its cluster answers: now, and not after hours.

    Raises:
        InputError: it is not, or does not.
    """
    if find_spec("ray") is None:
        raise InputError('--engine ray needs Ray: pip install "sprachbund[ray]" (on every machine of the cluster)')
    address = _address(address)
    if address in (LOCAL, AUTO):
        return
    if (parts := HOST_AND_PORT.fullmatch(address)) is None:
        raise InputError(
            f"--address {address}: give HOST:PORT of the cluster's head (Ray's own port is 6379), {AUTO} for a cluster "
            f"that was started on this machine, or {LOCAL} for an own one"
        )
    try:
        socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _address(address: str | None) -> str:
    """Return what is asked for on the command line, else by Ray's own variable, else an own cluster."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def _unreachable(address: str, error: object) -> InputError:
    return InputError(
        f"--address {address}: no Ray cluster can be reached there ({brief(error)}); start one with `ray start "
        f"--head`, or give --address {LOCAL} for an own one on this machine"
    )


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected; what this starts is stopped at the end, however that comes.

    A process that is connected already stays so. An own cluster reports no usage, has no dashboard, listens to nobody
    who does not know its token, and keeps its files in a temporary folder.

    Raises:
        InputError: there is no cluster at the address, or not of this version of Ray and Python.
        SprachbundError: an own cluster cannot be started.
    """
    check_ray(address)
    address = _address(address)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield sys.modules["ray"]
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as later versions do; silences a warning
    own: AbstractContextManager[dict[str, Any]] = _own_cluster() if address == LOCAL else nullcontext({})
    with own as settings:
        import ray  # now: it reads the variables that are set for an own cluster

        before = signal.getsignal(signal.SIGTERM)
        try:
            _connect(ray, address, settings)
            _on_termination(_end)  # Ray's own answer is a stack trace and an abort
            yield ray
        finally:
            ray.shutdown()
            _on_termination(before)


def _on_termination(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # Python lets no other thread do it
        signal.signal(signal.SIGTERM, handler)


def _end(number: int, frame: object) -> None:
    """End in order, so that Ray is ended too."""
    sys.exit(128 + number)


def _connect(ray: Any, address: str, settings: dict[str, Any]) -> None:
    """Start or join a cluster; raises SprachbundError in one sentence where that fails."""
    for attempt in range(STARTS):
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **settings)
            return
        except SystemExit as error:  # how Ray ends where something else than Ray listens
            if address == LOCAL:
                raise
            raise _unreachable(address, "what listens there is not Ray") from error
        except Exception as error:  # Ray has no class of its own for what can go wrong here
            if address != LOCAL:
                raise _unreachable(address, error) from error
            ray.shutdown()
            if attempt + 1 == STARTS:
                raise SprachbundError(
                    f"Ray cannot be started on this machine ({brief(error)}); --engine local needs none"
                ) from error


@contextmanager
def _own_cluster() -> Iterator[dict[str, Any]]:
    """Yield the settings of ray.init for a cluster of this machine alone, and clear away what it leaves.

    Ray listens on every network interface and runs what it is sent: without a token any neighbour could use it. Its
    own default is a token in the user's home folder; ours is forgotten at the end.
    """
    given = set(os.environ)
    if "RAY_AUTH_MODE" not in given:
        os.environ["RAY_AUTH_TOKEN"] = _token()
        if "ray" not in sys.modules:  # else too late, and Ray does it itself where it finds a token
            os.environ["RAY_AUTH_MODE"] = "token"
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir=parent if len(parent) <= LONGEST_FOLDER else "/tmp"))
    try:
        yield {"include_dashboard": False, "_temp_dir": str(folder)}
    finally:
        for name in {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} - given:
            os.environ.pop(name, None)
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _token() -> str:
    """Return this process's token; Ray reads it only once."""
    return secrets.token_hex(32)


def machines(ray: Any) -> list[Mapping[str, float]]:
    """Return the resources of every machine of the cluster that is alive, taken or not: CPU, GPU, ..."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def num_places(resources: list[Mapping[str, float]], *, cpus: int, gpus: float) -> int:
    """Return how many workers of so many CPUs and GPUs the machines hold at once.

    Raises:
        InputError: none of them holds even one.
    """
    most_cpus = int(max((machine.get("CPU", 0.0) for machine in resources), default=0.0))
    num_gpus = int(sum(machine.get("GPU", 0.0) for machine in resources))
    if gpus and not num_gpus:
        raise InputError(
            f"--gpus-per-probe {gpus:g}: the Ray cluster has no GPU; give --gpus-per-probe 0 to probe on CPUs, or "
            "start Ray on machines that have some"
        )
    if most_cpus < cpus:
        raise InputError(
            f"a probe takes {cpus} CPUs, and the largest machine of the Ray cluster has {most_cpus}; give "
            f"--cpus-per-probe {max(most_cpus, 1)}"
        )
    places = 0
    for machine in resources:
        by_cpu = int(machine.get("CPU", 0.0)) // cpus
        by_gpu = int(machine.get("GPU", 0.0)) * int(1 / gpus + 1e-9) if gpus else by_cpu
        places += min(by_cpu, by_gpu)
    if not places:
        raise InputError(
            f"no machine of the Ray cluster has the {cpus} CPUs and {gpus:g} GPUs of a probe together; lower "
            "--cpus-per-probe"
        )
    return places
