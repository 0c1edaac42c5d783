"""Lines of a corpus that give no document: why, what becomes of them, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sprachbund.errors import InputError

MAX_LINE_BYTES = 16 << 20  # three Bibles: a longer line is a file without line ends, and would have to fit in memory
EMPTY = "empty"

Reason = Literal[
    "not UTF-8", "NUL character", "too long", "no JSON object", "no such field", "no text", "half a surrogate pair"
]


class BadLine(InputError):
    """A line or row that gives no document.

    `reason` is the kind of mistake, under which `on_bad_line: skip` counts it; the message is the sentence for
    `on_bad_line: error`: where, what was found, what to do.
    """

    def __init__(self, reason: Reason, found: str, advice: str) -> None:
        super().__init__(f"{found}; {advice}, or leave such lines out with on_bad_line: skip.")
        self.reason = reason


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return the counts in words, the most frequent first: "3 not UTF-8, 1 too long"."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def skipped_warning(skipped: Mapping[str, int], documents: int) -> str | None:
    """Return a sentence on the bad lines among those read, None where there were none.

    `documents` is the number that was kept. Empty documents are counted, but nothing is wrong with them.
    """
    bad = {reason: count for reason, count in skipped.items() if reason != EMPTY}
    if not bad:
        return None
    number = sum(bad.values())
    return (
        f"{number:,} of {number + documents:,} lines were skipped as on_bad_line says ({describe_skipped(bad)}); "
        "repair them."
    )
