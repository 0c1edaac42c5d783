"""CountSketch (Charikar, Chen, Farach-Colton 2002): a long vector as a short one that keeps inner products.

Each coordinate goes with a hashed sign to a hashed bucket; the inner product of two sketches is an unbiased estimate of
that of the vectors, and a cosine's error is about 1/sqrt(size). Linear: the sketch of a difference is the difference of
the sketches, so languages can be centred afterwards.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

CHUNK = 1 << 20  # coordinates hashed at once: about 50 MB of working memory
KEPT = 1 << 22  # coordinates whose buckets are kept, 32 MB: hashing takes ten times as long as adding up


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: torch's >> on int64 drags the highest bit along."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def _mix(numbers: Tensor) -> Tensor:
    """Hash int64 numbers by the finaliser of SplitMix64 (Steele, Lea, Flood 2014), in wrapping 64-bit arithmetic."""
    numbers = (numbers ^ _shifted(numbers, 30)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ _shifted(numbers, 27)) * -0x6B2FB644ECCEEE15
    return numbers ^ _shifted(numbers, 31)


class CountSketch:
    """Sketches vectors to `size` floats; two sketches compare only under the same size and seed (any integer)."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed
        # 64 bits of any seed, so that the coordinates of two seeds never fall on the same hashes
        self._salt = int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "little", signed=True)
        self._kept: dict[tuple[int, int, torch.device], Tensor] = {}

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the float32 sketch, (size,), of the concatenation of `parts`, on the CPU.

        A vector of at most `size` coordinates is returned as it is.
        """
        if sum(part.numel() for part in parts) <= self.size:
            return torch.cat([part.detach().reshape(-1).float() for part in parts]).cpu()
        # float64: the order of summation, which accelerators do not fix, then hardly ever shows in the float32 result
        sums = torch.zeros(2 * self.size, dtype=torch.float64, device=parts[0].device)
        offset = 0
        for part in parts:
            flat = part.detach().reshape(-1)
            for start in range(0, flat.numel(), CHUNK):
                values = flat[start : start + CHUNK].double()
                sums.index_add_(0, self._cells(offset + start, values.numel(), values.device), values)
            offset += flat.numel()
        return (sums[0::2] - sums[1::2]).float().cpu()

    def _cells(self, start: int, length: int, device: torch.device) -> Tensor:
        """Return where the coordinates from `start` on go, (length,): twice the bucket, and one more to be negated."""
        key = (start, length, device)
        if key in self._kept:
            return self._kept[key]
        hashed = _mix(torch.arange(start, start + length, device=device) ^ self._salt)
        cells = 2 * (_shifted(hashed, 1) % self.size) + (hashed & 1)
        if sum(kept.numel() for kept in self._kept.values()) + length <= KEPT:
            self._kept[key] = cells
        return cells
