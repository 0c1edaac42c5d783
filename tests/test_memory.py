"""Keeping freed memory: what is freed stays with the process until it is given back."""

import subprocess
import sys

import pytest

from sprachbund.memory import keep_freed_memory, peak_memory_mb, return_freed_memory

RESIDENT = """
from pathlib import Path
import torch
from sprachbund.memory import keep_freed_memory, return_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1000

assert keep_freed_memory()
before = resident()
torch.ones(50_000_000)
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not keep_freed_memory(), reason="needs Linux with glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    said = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True).stdout
    kept, left = map(float, said.split())
    assert kept > 190
    assert left < 20


def test_the_peak_is_in_megabytes_and_nothing_is_lost_by_giving_back() -> None:
    values = list(range(1000))
    return_freed_memory()
    assert values[-1] == 999
    assert 20 < peak_memory_mb() < 1_000_000
