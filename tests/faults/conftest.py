"""The process whose children are killed, and an undisturbed run to compare with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import Commands, Whole, content


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Return what runs commands that may be killed."""
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def whole(commands: Commands, shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return an undisturbed run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = commands("run", shared_tiny, "--out", folder)
    assert ended.status == 0, ended.said
    return Whole(shared_tiny, folder, ended, content(folder))
