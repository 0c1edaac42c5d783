"""One run on several processes, as torchrun and accelerate start them: rank 0 leads, the others follow.

A run is mostly files: corpora, probes, groups, scores, a report. Rank 0 reads, decides, writes and speaks as if it were
alone; the others wait until it calls them to a training, which is the one thing that is done together. No stage can
therefore get out of step with its twins, and the directory of a run has one writer.

No torch at import: `--help` does not load it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sprachbund.errors import InputError, SprachbundError

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_WAIT = timedelta(hours=2)  # of one rank for another inside a training, such as while a checkpoint is written
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_LEAVE = 5.0  # a follower that the leader's end finds inside a training has no way out of it
LAUNCHER = "TORCHELASTIC_RUN_ID"  # set by torchrun, and by accelerate, which starts several processes through it
NEEDED = (LAUNCHER, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What libraries take for a sign of several processes. Job schedulers and containers set some of it for one.
SIGNS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
SETTINGS = ("ACCELERATE_", "FSDP_")  # of accelerate's launcher


def launched() -> bool:
    """Is this one of several processes that torchrun or accelerate has started?"""
    return all(os.environ.get(name) for name in NEEDED) and int(os.environ["WORLD_SIZE"]) > 1


def _joined() -> bool:
    """Has this process joined others (`torch.distributed`)?"""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Return the number of this process among those that it has joined; 0 where it is alone."""
    return int(sys.modules["torch.distributed"].get_rank()) if _joined() else 0


def world_size() -> int:
    """Return how many processes have joined; 1 where this one is alone."""
    return int(sys.modules["torch.distributed"].get_world_size()) if _joined() else 1


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hide from libraries, in a block, what launchers and schedulers say and the recipe decides, or nobody is to know.

    RANK or WORLD_SIZE in the environment of a job that runs one process would let accelerate wait for the others for
    ever; arithmetic, sharding and compilation, which accelerate's launcher passes on, are the recipe's.
    """
    kept = "DEEPSPEED" if _joined() else "\0"
    names = [name for name in os.environ if name.startswith(SETTINGS) and kept not in name]
    names += [] if _joined() else [name for name in SIGNS if name in os.environ]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _says(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def wants_shards() -> bool:
    """Does accelerate's launcher ask for FSDP (`--use_fsdp`, or its configuration)?"""
    return _says("ACCELERATE_USE_FSDP")


def uses_deepspeed() -> bool:
    """Do several processes train under DeepSpeed (`accelerate launch --use_deepspeed`)?"""
    return _joined() and _says("ACCELERATE_USE_DEEPSPEED")


def refuse_several(verb: str) -> None:
    """Raise InputError where a verb that trains in one process was started in several."""
    if world_size() > 1:
        raise InputError(f"sprachbund {verb} works in one process; start it without torchrun or accelerate launch")


@dataclass
class Team:
    """The processes of one run; `store` holds what the leader has to say while nobody waits for it in a collective."""

    store: Any
    num_calls: int = 0
    problem: SprachbundError | None = None

    def call(self, task: Any) -> None:
        """Call the followers to a task (leader)."""
        self.num_calls += 1
        self.store.set(f"call/{self.num_calls}", "")
        share(task)

    def end(self, status: int) -> None:
        """Let the followers end with an exit status (leader)."""
        self.store.set("end", str(status))

    def status(self) -> int | None:
        """Return the exit status that the leader ended with; None while it works."""
        return int(self.store.get("end")) if self.store.check(["end"]) else None

    def next_task(self) -> Any:
        """Wait for the leader's next call and return its task; None at the end (followers)."""
        while not self.store.check([f"call/{self.num_calls + 1}"]):
            if self.status() is not None:
                return None
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.num_calls += 1
        return share(None)


_team: Team | None = None


def team() -> Team | None:
    """Return the processes that this one works with; None where it is alone."""
    return _team


def _join() -> Team:
    """Join the other processes, each on a GPU of its own where there are any."""
    global _team
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, number, size = next(iter(rendezvous("env://")))
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=number, world_size=size, timeout=LONGEST_WAIT
    )
    _team = Team(PrefixStore("sprachbund", store.clone()))
    return _team


def lead_or_follow(lead: Callable[[], int], follow: Callable[[Any], None]) -> int:
    """Return the exit status of a run on several processes: rank 0 calls `lead`, the others `follow` for every task."""
    us = _join()
    us.problem = _first(_device_problem())
    status = _lead(us, lead) if rank() == 0 else _follow(us, follow)
    if status == 0:
        sys.modules["torch.distributed"].destroy_process_group()
    elif rank() != 0:
        time.sleep(1.0)  # a launcher reports the process that ends first: the leader, which has said why
    return status


def _lead(us: Team, lead: Callable[[], int]) -> int:
    status = 1
    try:
        status = lead()
        return status
    finally:
        us.end(status)


def _follow(us: Team, follow: Callable[[Any], None]) -> int:
    threading.Thread(target=_leave_with_leader, args=(us,), daemon=True).start()
    try:
        while (task := us.next_task()) is not None:
            with suppress(SprachbundError):  # which the leader has too, and says
                follow(task)
        return us.status() or 0
    except KeyboardInterrupt:
        return 1
    except Exception:
        for _ in range(round(SECONDS_TO_LEAVE / SECONDS_BETWEEN_LOOKS)):
            if (status := us.status()) is not None:  # the leader left in the middle, and said why
                return status or 1
            time.sleep(SECONDS_BETWEEN_LOOKS)
        raise


def _leave_with_leader(us: Team) -> None:
    """End this process some seconds after the leader has: it may wait for it in a collective, for hours."""
    with suppress(Exception):  # no store any more: whoever kept it ends us
        watch = Team(us.store.clone())
        while (status := watch.status()) is None:
            time.sleep(1.0)
        time.sleep(SECONDS_TO_LEAVE)
        os._exit(status)


def check_devices() -> None:
    """Raise InputError where a machine has more processes than GPUs (and has any)."""
    if _team is not None and _team.problem is not None:
        raise _team.problem


def _device_problem() -> SprachbundError | None:
    import torch

    num_gpus, num_local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available() or num_local <= num_gpus:
        return None
    return InputError(
        f"{num_local} processes on a machine with {num_gpus} GPU{'s' if num_gpus > 1 else ''}; start one for each GPU "
        f"(torchrun --nproc-per-node {num_gpus})"
    )


def share(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not _joined():
        return value
    values = [value]
    sys.modules["torch.distributed"].broadcast_object_list(values, src=0)
    return values[0]


def agree(problem: SprachbundError | None) -> None:
    """Raise on all ranks what is wrong on one of them: on the lowest that has a problem."""
    first = _first(problem)
    if first is not None:
        raise first


def _first(problem: SprachbundError | None) -> SprachbundError | None:
    """Return the problem of the lowest rank that has one, on all ranks."""
    if not _joined():
        return problem
    problems: list[SprachbundError | None] = [None] * world_size()
    sys.modules["torch.distributed"].all_gather_object(problems, problem)
    return next((one for one in problems if one is not None), None)


def add_up(tensor: Tensor) -> Tensor:
    """Add a tensor of every rank up, in place, and return it."""
    if _joined():
        sys.modules["torch.distributed"].all_reduce(tensor)
    return tensor
