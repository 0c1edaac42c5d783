"""The hardware that a plan is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sprachbund.errors import InputError

GB = 1e9  # bytes
HEADROOM = 0.1  # of a GPU's memory: for the context, the kernels' own memory and fragmentation


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind: how many, their memory in GB (10^9 bytes), and their speed.

    The speed is the share `mfu` of `peak_tflops` (10^12 operations a second; the default is the bfloat16 peak of a
    current data-centre GPU), recomputation counted as work; or it is what was measured: `tokens_per_second` of a GPU
    in the training of the dense base. What GPUs say to each other is not modelled: it is part of the share.

    Raises InputError for numbers that no hardware has.
    """

    num_gpus: int
    memory_gb: float
    peak_tflops: float = 989.0
    mfu: float = 0.4
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise InputError(f"--gpus {self.num_gpus}: give a whole number from 1")
        for option, value in (
            ("--gpu-memory", self.memory_gb),
            ("--peak-tflops", self.peak_tflops),
            ("--tokens-per-second", self.tokens_per_second),
        ):
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{option} {value:g}: give a number above 0")
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu {self.mfu:g}: give the share of the peak that is reached, above 0 and at most 1")

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a plan may fill."""
        return GB * self.memory_gb * (1 - HEADROOM)

    def flops_per_second(self, dense_training_flops: float) -> float:
        """Return the operations of a GPU a second; `dense_training_flops` are those of one token of the dense base."""
        if self.tokens_per_second is not None:
            return self.tokens_per_second * dense_training_flops
        return self.peak_tflops * 1e12 * self.mfu
