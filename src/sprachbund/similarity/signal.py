"""What one source says of one language, and its file.

A signal is a vector per layer together with the parts that it is the sum of: pieces of the probe's data that could have
been others, from which `similarity.compare` tells how sure a similarity is.
Shapes: M entries of a vector, P parts.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sprachbund.files import write_bytes
from sprachbund.similarity.sketch import CountSketch


@dataclass(frozen=True)
class Signal:
    """What one source says of one language.

    Attributes:
        totals: layer -> (M,) float32: the vector itself, or its CountSketch where it is long.
        parts: layer -> (P, M'): what the total is the sum of, in the order of the probe's repeats, equally many of
            each; sketched to fewer numbers than the total.
        norms: layer -> the exact L2 norm of the total, whether that is sketched or not.
        compared: the layers that make one similarity together.
        repeats: how often the probe was repeated on other data.
    """

    totals: Mapping[int, Tensor]
    parts: Mapping[int, Tensor]
    norms: Mapping[int, float]
    compared: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True)
class LanguageProbe:
    """What the probe of one language found: a signal per source, and of the fine-tuning the layers' exact norms.

    `ffn_norms` and `attention_norms` hold one number per layer of the base, `losses` one per step; all are empty where
    nothing was fine-tuned.
    """

    tag: str
    signals: Mapping[str, Signal]
    ffn_norms: list[float] = field(default_factory=list)
    attention_norms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class Sketches:
    """Shortens vectors to `size` numbers, and each of `num_parts` parts of them to as many all parts together.

    A cosine of two totals is off by about 1 / sqrt(size), one of two sums of parts by sqrt(num_parts / size); the
    layers of a similarity count together, as one longer sketch. What is not longer than its sketch is kept exactly.
    Sketches are rounded to bfloat16, by at most 2^-9 of each number, which moves a cosine by less than a hundredth of
    what the sketch itself does (tests/similarity/test_signal.py measures both).
    """

    def __init__(self, size: int, *, num_parts: int, seed: int) -> None:
        self._total = CountSketch(size, seed=seed)
        self._part = CountSketch(max(size // num_parts, 1), seed=seed)

    def total(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the concatenation of `matrices`, (M,)."""
        return _rounded(self._total(matrices), exact=_length(matrices) <= self._total.size)

    def part(self, matrices: Sequence[Tensor]) -> Tensor:
        """Return the concatenation of `matrices` as a part of a total, (M',), not yet rounded."""
        return self._part(matrices)

    def stacked(self, parts: Sequence[Tensor], matrices: Sequence[Tensor]) -> Tensor:
        """Return parts of totals of `matrices`' size as they are stored, (P, M')."""
        return _rounded(torch.stack(list(parts)), exact=_length(matrices) <= self._part.size)


def _length(matrices: Sequence[Tensor]) -> int:
    return sum(matrix.numel() for matrix in matrices)


def _rounded(numbers: Tensor, *, exact: bool) -> Tensor:
    """Return the numbers, of sketches to the precision of bfloat16, which halves their file."""
    return numbers if exact else numbers.bfloat16().float()


def norm_of(matrices: Sequence[Tensor]) -> float:
    """Return the L2 norm of all numbers of `matrices` together, summed in float64."""
    squares = [torch.linalg.vector_norm(matrix, dtype=torch.float64).square() for matrix in matrices]
    return float(torch.stack(squares).sum().sqrt())


class _Stored(Mapping[int, Tensor]):
    """Vectors of a file by layer, read when asked for: all layers of many languages would fill the memory."""

    def __init__(self, path: Path, prefix: str, lengths: Mapping[int, int]) -> None:
        self._path, self._prefix, self._lengths = path, prefix, lengths

    def __getitem__(self, layer: int) -> Tensor:
        length = self._lengths[layer]
        with safe_open(str(self._path), framework="pt") as file:
            numbers: Tensor = file.get_tensor(f"{self._prefix}/{layer}").float()
            if numbers.shape[-1] == length:
                return numbers
            places = file.get_tensor(f"{self._prefix}/{layer}/places").long()
        whole = torch.zeros(*numbers.shape[:-1], length)
        whole[..., places] = numbers
        return whole

    def __iter__(self) -> Iterator[int]:
        return iter(self._lengths)

    def __len__(self) -> int:
        return len(self._lengths)


def _packed(key: str, numbers: Tensor) -> dict[str, Tensor]:
    """Return what stands for (..., M') numbers in a file: no columns of zeros, bfloat16 where nothing is lost by it."""
    used = (numbers != 0).reshape(-1, numbers.shape[-1]).any(0)
    tensors = {}
    if 4 * int(used.sum()) < 3 * len(used):
        numbers = numbers[..., used]
        tensors[f"{key}/places"] = used.nonzero().flatten().int()
    half = numbers.bfloat16()
    return {**tensors, key: half if torch.equal(half.float(), numbers) else numbers.contiguous()}


def probe_bytes(probe: LanguageProbe) -> bytes:
    """Return a probe's result as the content of a safetensors file."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for source, signal in probe.signals.items():
        facts[source] = {"norms": dict(signal.norms), "compared": signal.compared, "repeats": signal.repeats}
        for kind, vectors in (("totals", signal.totals), ("parts", signal.parts)):
            facts[source][kind] = {layer: numbers.shape[-1] for layer, numbers in vectors.items()}
            for layer, numbers in vectors.items():
                tensors.update(_packed(f"{source}/{kind}/{layer}", numbers))
    values = {"ffn": probe.ffn_norms, "attention": probe.attention_norms, "losses": probe.losses, "signals": facts}
    return bytes(save(tensors, {"tag": probe.tag, **{key: json.dumps(value) for key, value in values.items()}}))


def save_probe(path: Path, probe: LanguageProbe) -> None:
    """Write a probe's result as safetensors, atomically."""
    write_bytes(path, probe_bytes(probe))


def load_probe(path: Path) -> LanguageProbe:
    """Read a probe's result; its vectors stay on disk until they are asked for."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    signals = {}
    for source, facts in json.loads(metadata["signals"]).items():
        totals, parts, norms = ({int(k): v for k, v in facts[name].items()} for name in ("totals", "parts", "norms"))
        signals[source] = Signal(
            _Stored(path, f"{source}/totals", totals),
            _Stored(path, f"{source}/parts", parts),
            norms,
            compared=tuple(facts["compared"]),
            repeats=facts["repeats"],
        )
    ffn, attention, losses = (json.loads(metadata[key]) for key in ("ffn", "attention", "losses"))
    return LanguageProbe(metadata["tag"], signals, ffn, attention, losses)
