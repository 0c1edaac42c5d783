"""The gradient: what the base's loss on one language asks of the base's FFNs, without changing them.

GradSim (Wang et al. 2023): languages whose losses have like gradients at the same weights help each other in training.
Only parameters that all languages share can be compared; the FFN matrices are, and are what experts are made from.
After one step of plain SGD the deviation is this gradient, negated and scaled, and the two similarities are equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity.matrices import ffn_matrices
from sprachbund.similarity.signal import Signal, Sketches, norm_of


def measure_gradient(
    model: Any,
    repeats: Sequence[Iterable[Sequence[Tensor]]],
    *,
    tag: str,
    ffn: str,
    layers: Sequence[int],
    sketches: Sketches,
) -> Signal:
    """Return the sum of the steps' gradients, its parts the gradients of the steps' mean losses.

    `repeats` as of the deviation: sequences of steps, each of micro-batches (B, T) of token ids, equally large. Dropout
    is off; nothing but the gradients of the compared layers is computed, and the model does not change.

    Raises:
        SprachbundError: a gradient is not finite.
    """
    model.eval()
    parameters = dict(model.named_parameters())
    names = dict(enumerate(ffn_matrices(parameters, ffn)))
    watched = {name: parameters[name] for layer in layers for name in names[layer]}
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in watched.items()}
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for steps in repeats:
        for step, micro_batches in enumerate(steps):
            gradients = _gradients(model, micro_batches, watched)
            for name, gradient in gradients.items():
                sums[name] += gradient
            for layer in layers:
                parts[layer].append(sketches.part([gradients[name] for name in names[layer]]))
                if not parts[layer][-1].isfinite().all():
                    raise SprachbundError(
                        f"the gradient of {tag} is not finite at step {step + 1}; the base's loss on its text is no "
                        "number: check the base, or set train.dtype: float32"
                    )
    of_layer = {layer: [sums[name] for name in names[layer]] for layer in layers}
    return Signal(
        totals={layer: sketches.total(matrices) for layer, matrices in of_layer.items()},
        parts={layer: sketches.stacked(parts[layer], of_layer[layer]) for layer in layers},
        norms={layer: norm_of(matrices) for layer, matrices in of_layer.items()},
        compared=tuple(layers),
        repeats=len(repeats),
    )


def _gradients(model: Any, micro_batches: Sequence[Tensor], watched: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 gradients of a step's mean loss by name."""
    sums: dict[str, Tensor] = {}
    for input_ids in micro_batches:
        ids = input_ids.to(model.device)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss / len(micro_batches)
        for name, gradient in zip(watched, torch.autograd.grad(loss, list(watched.values())), strict=True):
            sums[name] = sums[name] + gradient if name in sums else gradient.float()
    return sums
