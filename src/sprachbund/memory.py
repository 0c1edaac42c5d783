"""The memory of this process: how much it has used at most, and keeping what it frees."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's mallopt(3)
_LARGEST = 2**31 - 1


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def return_freed_memory() -> None:
    """Give what this process has freed back to the system, where there is a way to: what is then resident is in use."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for work on a CPU; False where the system has no such switch.

    Every step asks for the same large tensors again. glibc gives each back to the system when it is freed and gets it
    anew, page by page and zeroed; kept, steps of training and of scoring are shorter, by a fifth for small models
    (benchmarks/allocator.py).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # no glibc
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, _LARGEST), mallopt(_TOP_PAD, 64 << 20)])
