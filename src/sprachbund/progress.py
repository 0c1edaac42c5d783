"""Progress that is seen on a terminal (a bar with the time left) and in a log file (a line now and then)."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0

Advance = Callable[..., None]


def say(text: str) -> None:
    """Tell the user one line about the work, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


@contextmanager
def track(description: str, total: int, *, start: int = 0) -> Iterator[Advance]:
    """Yield `advance(steps=1, note="")`, which moves a progress display of `total` steps on stderr."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total, completed=start, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                progress.update(task, advance=steps, note=note)

            yield advance
        return
    begun = last = time.monotonic()
    done = start

    def advance_line(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            speed = (done - start) / max(now - begun, 1e-9)
            left = f"{(total - done) / speed:.0f} s left" if speed else "just begun"
            say(f"{description}: {done}/{total}, {now - begun:.0f} s, {left} {note}".rstrip())

    yield advance_line


@contextmanager
def silent() -> Iterator[Advance]:
    """Yield an `advance` that shows nothing: another process shows the progress of all."""
    yield lambda steps=1, note="": None
