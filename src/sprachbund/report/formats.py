"""How the page writes numbers and text: the Jinja filters, and what no page may hold."""

import math
from collections.abc import Callable
from typing import Any

EQUAL = 0.0005
"""A change of perplexity below 0.05 % is called equal: it would be shown as 0.0 %."""


def clean(text: str) -> str:
    """Return `text` without the characters that no HTML or XML page may hold (JSON may: control, lone surrogate)."""
    kept = (character if _is_printable(ord(character)) else "\ufffd" for character in text)
    return "".join(kept)


def _is_printable(code: int) -> bool:
    """Say whether XML 1.0 section 2.2 allows the character."""
    return code in (0x9, 0xA, 0xD) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def clean_all(value: Any) -> Any:
    """Apply `clean` to every string of a JSON value, keys too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean_all(item) for key, item in value.items()}
    return value


def plural(number: int, word: str) -> str:
    """Return "1 group" or "6 groups"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def is_worse(change: float | None) -> bool:
    """Say whether a change of perplexity is a loss that the page can show."""
    return change is not None and change > EQUAL


def count(value: float | None) -> str:
    """Format a count with thousands separators."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.0f}"


def fixed(value: float | None, digits: int = 3) -> str:
    """Format a number with a fixed number of digits."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(change: float | None) -> str:
    """Format a fraction as a signed number of per cent, with a real minus sign."""
    if change is None or not math.isfinite(change):
        return "n/a"
    return "0.0" if abs(change) <= EQUAL else f"{change * 100:+.1f}".replace("-", "−")


def percent(share: float | None, digits: int = 0) -> str:
    """Format a share as per cent."""
    return "n/a" if share is None or not math.isfinite(share) else f"{share * 100:.{digits}f}\xa0%"


def p_value(value: float | None) -> str:
    """Format a p-value with its sign of relation: "= 0.031", "< 0.0001"."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return "< 0.0001" if value < 0.0001 else f"= {value:.2g}" if value < 0.01 else f"= {value:.3f}"


def duration(seconds: float | None) -> str:
    """Format seconds as people say them."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(megabytes: float | None) -> str:
    """Format megabytes."""
    if megabytes is None or not math.isfinite(megabytes):
        return "n/a"
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 10240 else f"{megabytes:,.0f} MB"


FILTERS: dict[str, Callable[..., Any]] = {
    "count": count,
    "duration": duration,
    "fixed": fixed,
    "memory": memory,
    "p_value": p_value,
    "percent": percent,
    "signed": signed,
    "worse": is_worse,
}
