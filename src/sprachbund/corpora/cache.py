"""Where what was computed from text is kept, and a place for what a process writes and nobody needs after it."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

WORKING = "working-"  # folders of processes; the cache itself has none of this name
LOCK = "lock"

_own: tuple[int, Path, IO[bytes]] | None = None  # of this process: its id, its folder, and the lock on it
_count = 0


def cache_folder() -> Path:
    """Return where texts and tokens are kept: $SPRACHBUND_CACHE, else sprachbund/ in the user's cache folder (XDG)."""
    if own := os.environ.get("SPRACHBUND_CACHE"):
        return Path(own).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "sprachbund"


def working_folder() -> Path:
    """Return a fresh folder in the cache that goes when this process ends.

    Why there and not in /tmp, which is memory on many machines. A killed process cannot clean up, so every process
    holds a lock on its folder, and the first thing the next one does is to remove those that nobody holds.
    """
    global _own, _count
    if _own is None or _own[0] != os.getpid() or _own[1].parent != cache_folder() or not _own[1].is_dir():
        _own = _begin(cache_folder())
    _count += 1
    folder = _own[1] / str(_count)
    folder.mkdir()
    return folder


def _begin(cache: Path) -> tuple[int, Path, IO[bytes]]:
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{WORKING}*"):
        _remove_unheld(left)
    folder = cache / f"{WORKING}{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    lock = (folder / f"new-{LOCK}").open("wb")
    _try_lock(lock)
    (folder / f"new-{LOCK}").rename(folder / LOCK)  # nobody finds it before it is held
    atexit.register(_remove, os.getpid(), folder)
    return os.getpid(), folder, lock


def _remove(owner: int, folder: Path) -> None:
    if os.getpid() == owner:  # not in a fork of the process
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unheld(folder: Path) -> None:
    with suppress(OSError), (folder / LOCK).open("rb") as lock:
        if _try_lock(lock):
            shutil.rmtree(folder, ignore_errors=True)


def _try_lock(file: IO[bytes]) -> bool:
    """Lock a file for this process; False where another holds it, or there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
