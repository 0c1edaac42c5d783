"""The peak memory of one job in a process that does many."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from sprachbund.memory import peak_memory_mb, return_freed_memory


def reset_peak() -> None:
    """Start to measure anew; where the system cannot (it is Linux's to), the peak stays that of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return_freed_memory()  # of earlier jobs, kept for speed
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """Return the peak since `reset_peak` in MB (10^6 bytes): of the accelerator where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6
    return peak_memory_mb()
