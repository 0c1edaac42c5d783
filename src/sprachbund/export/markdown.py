"""Markdown that holds what users wrote, and the numbers of a model card."""

import math
import re
from collections.abc import Sequence
from itertools import groupby


def markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line: names and paths are no markup."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", line)


def code(text: object) -> str:
    """Return text as inline code, also where it holds backticks, and in a table."""
    line = " ".join(str(text).split()).replace("|", r"\|")
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if longest else f"`{line}`"


def fixed(value: float | None, digits: int = 2) -> str:
    """Format a number with a fixed number of digits; nothing where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def signed(change: float | None) -> str:
    """Format a fraction as a signed number of per cent; nothing where there is none."""
    return "" if change is None or not math.isfinite(change) else f"{change:+.1%}"


def ranges(numbers: Sequence[int]) -> str:
    """Return "0-4, 20-23" for the numbers 0 to 4 and 20 to 23."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
