"""Two processes and one folder: the second is refused, and a dead one holds nothing, whatever it has started."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killing import Commands, Whole, content

from sprachbund.errors import SprachbundError
from sprachbund.run.directory import open_folder

HOLDER = """
import os, sys, time
from pathlib import Path
from sprachbund.run.directory import open_folder

lock = open_folder(Path(sys.argv[1]), "recipe.yaml", "name: x", lambda: None, update=False)
child = os.fork()  # as a worker of a data loader is made
if child:
    print(os.getpid(), child, flush=True)
time.sleep(600)
"""


def opened(folder: Path) -> None:
    """Open and release a folder."""
    open_folder(folder, "recipe.yaml", "name: x", lambda: None, update=False).close()


@contextmanager
def held(folder: Path) -> Iterator[tuple[int, int]]:
    """Let a process hold a folder that has forked another one; yields the numbers of both."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        parent, child = map(int, process.stdout.readline().split())
        try:
            yield parent, child
        finally:
            for number in (parent, child):
                os.kill(number, signal.SIGKILL)


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_folder(tmp_path: Path) -> None:
    with held(tmp_path / "run") as (parent, child):
        with pytest.raises(SprachbundError, match="another process works in"):
            opened(tmp_path / "run")
        os.kill(parent, signal.SIGKILL)
        while Path(f"/proc/{parent}/fd").exists() and os.listdir(f"/proc/{parent}/fd"):
            time.sleep(0.01)
        assert Path(f"/proc/{child}").exists()
        opened(tmp_path / "run")


def test_a_worker_that_ends_does_not_release_the_folder_of_its_parent(tmp_path: Path) -> None:
    with held(tmp_path / "run") as (_, child):
        os.kill(child, signal.SIGKILL)
        with pytest.raises(SprachbundError, match="another process works in"):
            opened(tmp_path / "run")


def test_the_second_command_on_a_run_says_so_and_changes_nothing(whole: Whole, commands: Commands) -> None:
    with (whole.folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for verb in ("run", "train", "report"):
            ended = commands(verb, whole.folder)
            assert (ended.status, ended.said) == (
                1,
                f"sprachbund: another process works in {whole.folder}; wait for it or give another --out\n",
            )
    assert content(whole.folder) == whole.content
