"""Processes: what they compute, what they are told, and that they end."""

import math
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from sprachbund.compare.pool import default_workers, pool, usable_cores


def test_one_worker_is_this_process() -> None:
    with pool(1) as submit:
        assert submit(os.getpid).result() == os.getpid()
        failed = submit(math.sqrt, -1.0)
    with pytest.raises(ValueError, match="math domain error"):
        failed.result()


def test_several_share_the_cores_and_stay() -> None:
    with pool(2) as submit:
        found = {submit(os.getpid).result() for _ in range(4)}
        assert os.getpid() not in found
        assert submit(torch.get_num_threads).result() == max(usable_cores() // 2, 1)
        children = {child.pid for child in multiprocessing.active_children()}
        assert found <= children
    assert not found & {child.pid for child in multiprocessing.active_children()}


def test_what_they_do_is_broken_off_where_it_ends_by_an_error() -> None:
    children: set[int] = set()

    def fail() -> None:
        with pool(2) as submit:
            submit(os.getpid).result()
            submit(time.sleep, 600)
            children.update(child.pid for child in multiprocessing.active_children() if child.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert children
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_workers_by_default() -> None:
    assert default_workers() == (1 if torch.cuda.is_available() else usable_cores())
