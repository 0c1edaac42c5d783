"""CountSketch (Charikar, Chen, Farach-Colton 2002): a long vector as a short one that keeps inner products.

Each coordinate goes with a hashed sign to a hashed bucket; the inner product of two sketches is an unbiased estimate of
that of the vectors, and a cosine's error is about 1/sqrt(size). Linear: the sketch of a difference is the difference of
the sketches, so languages can be centred afterwards.
"""

import torch
from torch import Tensor

CHUNK = 1 << 22
_MASK = (1 << 63) - 1


def _mix(numbers: Tensor) -> Tensor:
    """Hash int64 numbers (a multiply-xorshift mix, in wrapping 64-bit arithmetic)."""
    for multiplier in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):
        numbers = (numbers ^ ((numbers & _MASK) >> 30)) * multiplier
    return numbers ^ ((numbers & _MASK) >> 31)


class CountSketch:
    """Sketches vectors to `size` floats; two sketches compare only under the same size and seed."""

    def __init__(self, size: int, *, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __call__(self, parts: list[Tensor]) -> Tensor:
        """Return the float32 sketch, (size,), of the concatenation of `parts`.

        A vector of at most `size` coordinates is kept exactly, padded with zeros.
        """
        length = sum(part.numel() for part in parts)
        if length <= self.size:
            flat = torch.cat([part.detach().reshape(-1).float() for part in parts])
            return torch.nn.functional.pad(flat, (0, self.size - length)).cpu()
        sketch = torch.zeros(self.size, dtype=torch.float32, device=parts[0].device)
        offset = 0
        for part in parts:
            flat = part.detach().reshape(-1)
            for start in range(0, flat.numel(), CHUNK):
                values = flat[start : start + CHUNK].float()
                places = torch.arange(offset + start, offset + start + values.numel(), device=values.device)
                hashed = _mix(places * 2 + 1 + self.seed * 0x1000000000000)
                sign = 1.0 - 2.0 * (hashed & 1).float()
                sketch.index_add_(0, ((hashed & _MASK) >> 1) % self.size, values * sign)
            offset += flat.numel()
        return sketch.cpu()
