"""Tokenising in several processes: the same tokens in the same order as in one.

Why processes, where the tokenizer's library has threads of its own: only its search runs in them; making Python's
lists and arrays of the result does not (measured in benchmarks/corpora.py). Why our own: a worker is a small program
that imports neither torch nor the caller's script, and knows by its closed stdin that its parent has ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from sprachbund.corpora.worker import receive, send
from sprachbund.errors import InputError, SprachbundError

VARIABLE = "SPRACHBUND_WORKERS"
MOST_WORKERS = 8  # where nobody says how many: each needs about 100 MB, and a corpus is read by one process
AHEAD = 2  # batches for each worker that are read before their turn

Tokens = NDArray[np.uint32]


def num_workers() -> int:
    """Return how many processes tokenise: $SPRACHBUND_WORKERS, else one for each usable core and at most eight.

    Raises:
        InputError: the variable holds no whole number above 0.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, MOST_WORKERS)
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{VARIABLE} is {given!r}; give the number of processes that tokenise, 1 or more.")
    return int(given)


def tokenise_in_workers(
    batches: Iterable[list[str]], definition: str, *, separator: int, workers: int
) -> Iterator[tuple[list[str], Tokens]]:
    """Yield every batch with its tokens, each document followed by the separator, in the order of the batches.

    `definition` is the tokenizer as JSON. Whatever ends this early, an exception or Ctrl-C, ends the workers too.

    Raises:
        SprachbundError: a worker ended before its time, or could not tokenise.
    """
    crew: list[_Worker] = []
    free: SimpleQueue[_Worker] = SimpleQueue()

    def work(batch: list[str]) -> Tokens:
        worker = free.get()
        try:
            return worker.tokens(batch)
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(workers, thread_name_prefix="tokenise")
    pending: deque[tuple[list[str], Future[Tokens]]] = deque()
    try:
        for _ in range(workers):
            crew.append(_Worker(definition, separator))
            free.put(crew[-1])
        for batch in batches:
            pending.append((batch, threads.submit(work, batch)))
            if len(pending) >= AHEAD * workers:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        for worker in crew:
            worker.end()  # a thread that waits for its answer gets none, and ends
        threads.shutdown(cancel_futures=True)


class _Worker:
    """One process of `worker.py`, spoken to by one thread at a time."""

    def __init__(self, definition: str, separator: int) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "sprachbund.corpora.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.answers = self.process.stdin, self.process.stdout
        with suppress(BrokenPipeError):  # found, and said, with the first batch
            send(self.to, definition.encode("utf-8"))
            send(self.to, str(separator).encode())

    def tokens(self, batch: list[str]) -> Tokens:
        """Return the tokens of a batch."""
        data = [document.encode("utf-8") for document in batch]
        status = answer = None
        with suppress(BrokenPipeError):
            send(self.to, array("I", map(len, data)).tobytes())
            send(self.to, b"".join(data))
            status, answer = receive(self.answers), receive(self.answers)
        if status is None or answer is None:
            raise SprachbundError(self._why_ended())
        if status != b"ok":
            raise SprachbundError(f"text could not be tokenised ({status.decode()[:240]}); look at the tokenizer.")
        return np.frombuffer(answer, dtype=np.uint32)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for file in (self.to, self.answers, self.said):
            with suppress(OSError):
                file.close()

    def _why_ended(self) -> str:
        status = self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        why = f"signal {-status}" if status < 0 else f"status {status}" + (f": {lines[-1][:240]}" if lines else "")
        hint = "; it may have run out of memory" if status == -9 else ""
        return (
            f"a process that tokenises ended before its time ({why}){hint}; start again, with fewer of them by "
            f"{VARIABLE}=1 if memory is short."
        )
