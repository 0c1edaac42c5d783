"""The deviation: fine-tune a model a few steps on one language, read how its parameters moved, put them back.

DMoE (Li et al., Findings of ACL 2025): the deviation of language l is the difference of the parameters after and
before; the cosine of two languages' FFN deviations is their similarity, its norm per layer says how language-specific
the layer is.
Nothing is written but norms and sketches; the authors' code writes two full checkpoints per language.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity.matrices import attention_matrices, ffn_matrices
from sprachbund.similarity.signal import LanguageProbe, Signal, Sketches, norm_of


@dataclass(frozen=True)
class FineTuning:
    """How the probe fine-tunes: plain SGD or AdamW without weight decay, with a rate that falls linearly to zero.

    AdamW with the authors' schedule is DMoE's; after one step of SGD the deviation is the gradient, negated and scaled.
    """

    num_steps: int
    learning_rate: float
    optimizer: Literal["adamw", "sgd"] = "adamw"

    def start(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Return a fresh optimizer."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(weights, lr=self.learning_rate, fused=True)
        return torch.optim.AdamW(weights, lr=self.learning_rate, weight_decay=0.0, fused=True)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.learning_rate * (1 - step / self.num_steps)


def probe_language(
    model: Any,
    repeats: Sequence[Iterable[Sequence[Tensor]]],
    *,
    tag: str,
    ffn: str,
    tuning: FineTuning,
    layers: Sequence[int],
    sketches: Sketches,
    base: Mapping[str, Tensor],
) -> LanguageProbe:
    """Fine-tune `model` from `base` on each of `repeats`, and return what that did to it.

    A repeat is a sequence of steps, a step one of micro-batches (B, T) of token ids, equally large. The signal's total
    is the sum of the repeats' deviations, its parts are the steps' updates; norms are means over repeats. `base` holds
    a copy of the parameters; the model holds exactly these again afterwards, also after an error.

    Raises:
        SprachbundError: the loss or the deviation is not finite.
    """
    deviations = _Deviations(base, ffn=ffn, layers=layers, sketches=sketches)
    losses = []
    for steps in repeats:
        with _restoring(model, base):
            # A step of 8e-6 is below what a bfloat16 weight resolves: the optimizer works on float32 twins of such.
            weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
            optimizer = tuning.start(weights.values())
            model.train()
            for step, micro_batches in enumerate(steps):
                optimizer.param_groups[0]["lr"] = tuning.rate(step)
                loss = _backward(model, micro_batches)
                if not np.isfinite(loss):
                    raise SprachbundError(f"the probe of {tag} diverged at step {step + 1}; lower probe.learning_rate")
                _step(model, optimizer, weights)
                deviations.add_step(weights)
                losses.append(loss)
            del optimizer  # twice the model's size, not needed for reading
            deviations.add_repeat(weights)
    ffn_norms, attention_norms = deviations.norms("ffn"), deviations.norms("attention")
    if not np.isfinite([*ffn_norms, *attention_norms]).all():
        raise SprachbundError(f"the probe of {tag} diverged at its last step; lower probe.learning_rate")
    return LanguageProbe(tag, {"deviation": deviations.signal()}, ffn_norms, attention_norms, losses)


@contextmanager
def _restoring(model: Any, base: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the parameters back at the end, however it ends."""
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name])
        model.zero_grad(set_to_none=True)
        model.eval()


def _backward(model: Any, micro_batches: Sequence[Tensor]) -> float:
    """Add the gradients of a step's mean loss to the parameters' and return the loss."""
    total = 0.0
    for input_ids in micro_batches:
        ids = input_ids.to(model.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss / len(micro_batches)
        loss.backward()
        total += float(loss.detach())
    return total


@torch.no_grad()
def _step(model: Any, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor]) -> None:
    """Move the float32 weights by the model's gradients, and the model's parameters with them."""
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        gradient = parameters[name].grad
        weight.grad = None if gradient is None else gradient.float()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.zero_grad(set_to_none=True)
    for name, weight in weights.items():
        if parameters[name].dtype != weight.dtype:  # a float32 parameter is its own twin
            parameters[name].copy_(weight)


class _Deviations:
    """Collects how far one language moves the base."""

    def __init__(self, base: Mapping[str, Tensor], *, ffn: str, layers: Sequence[int], sketches: Sketches) -> None:
        self._base, self._sketches, self._layers = base, sketches, tuple(layers)
        self._ffn = ffn_matrices(base, ffn)
        self._names = {"ffn": self._ffn, "attention": attention_matrices(base, ffn)}
        self._norms: dict[str, list[list[float]]] = {module: [] for module in self._names}  # of each repeat
        self._sums: dict[int, list[Tensor]] = {}
        self._before: dict[int, Tensor] = {}
        self._parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    @torch.no_grad()
    def add_step(self, weights: Mapping[str, Tensor]) -> None:
        """Read what a step did: the sketch after it less the one before, which saves a copy of the weights."""
        for layer in self._layers:
            after = self._sketches.part(self._deltas(weights, self._ffn[layer]))
            self._parts[layer].append(after - self._before[layer] if layer in self._before else after)
            self._before[layer] = after

    @torch.no_grad()
    def add_repeat(self, weights: Mapping[str, Tensor]) -> None:
        """Read what all steps of a repeat did together."""
        self._before.clear()
        for module, by_layer in self._names.items():
            self._norms[module].append([norm_of(self._deltas(weights, names)) for names in by_layer])
        for layer in self._layers:
            deltas = self._deltas(weights, self._ffn[layer])
            if layer in self._sums:
                torch._foreach_add_(self._sums[layer], deltas)
            else:
                self._sums[layer] = deltas

    def norms(self, module: str) -> list[float]:
        """Return each layer's norm, the mean over repeats."""
        return [float(norm) for norm in np.mean(self._norms[module], axis=0)]

    def signal(self) -> Signal:
        """Return the signal of all that was added."""
        return Signal(
            totals={layer: self._sketches.total(sums) for layer, sums in self._sums.items()},
            parts={layer: self._sketches.stacked(parts, self._sums[layer]) for layer, parts in self._parts.items()},
            norms={layer: norm_of(sums) for layer, sums in self._sums.items()},
            compared=self._layers,
            repeats=len(next(iter(self._norms.values()))),
        )

    def _deltas(self, weights: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        return [weights[name] - self._base[name].float() for name in names]
