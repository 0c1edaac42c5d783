"""Processes that work on jobs, and end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
Submit = Callable[..., "Future[Any]"]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return one worker for the accelerator where there is one, else one per core: small matrices gain by no more."""
    return 1 if torch.cuda.is_available() else usable_cores()


def _begin(num_threads: int) -> None:
    """Prepare a worker: its share of the cores; Ctrl-C is the parent's to answer; without the parent it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


def _now(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Do it here and at once."""
    future: Future[T] = Future()
    try:
        future.set_result(function(*args, **kwargs))
    except Exception as error:
        future.set_exception(error)
    return future


@contextmanager
def pool(workers: int) -> Iterator[Submit]:
    """Yield `submit(function, *args)`, which returns a Future; one worker is this process itself.

    Workers are new processes (`spawn`: a forked one would inherit locks of torch's threads) and stay until the end.
    Where it ends by an exception, what they are doing is broken off.
    """
    if workers == 1:
        yield _now
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    num_threads = max(usable_cores() // workers, 1)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(num_threads,))
    try:
        yield executor.submit
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()
