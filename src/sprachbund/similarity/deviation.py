"""The probe: fine-tune a model a few steps on one language, read how its parameters moved, put them back.

DMoE (Li et al., Findings of ACL 2025): the deviation of language l is the difference of the parameters after and
before; the cosine of two languages' FFN deviations is their similarity, its norm per layer says how language-specific
the layer is.
Nothing is written but norms and sketches; the authors' code writes two full checkpoints per language.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.similarity.sketch import CountSketch

ATTENTION = "self_attn"


@dataclass(frozen=True)
class LanguageProbe:
    """What the probe of one language found: exact norms per layer, and an FFN sketch, (size,), per compared layer."""

    tag: str
    ffn_norms: list[float]
    attention_norms: list[float]
    sketches: dict[int, Tensor]
    losses: list[float]


def probe_language(
    model: Any,
    steps: Iterable[Sequence[Tensor]],
    *,
    tag: str,
    ffn: str,
    num_steps: int,
    learning_rate: float,
    layers: Sequence[int],
    sketch: CountSketch,
    base: dict[str, Tensor],
) -> LanguageProbe:
    """Fine-tune `model` on `steps`, each a list of micro-batches (B, T) of token ids, and return its deviation.

    AdamW without weight decay, learning rate falling linearly to zero over `num_steps`, as in the authors' code. `base`
    holds a copy of the parameters; the model holds exactly these again afterwards, also after an error. Raises
    SprachbundError when the loss or the deviation is not finite.
    """
    # A step of 8e-6 is below what a bfloat16 weight resolves: the optimizer works on float32 twins of such weights.
    weights = {name: parameter.detach().float() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), lr=learning_rate, weight_decay=0.0, fused=True)
    losses = []
    try:
        model.train()
        for step, micro_batches in enumerate(steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / num_steps)
            total = 0.0
            for input_ids in micro_batches:
                ids = input_ids.to(model.device)
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss / len(micro_batches)
                loss.backward()
                total += float(loss.detach())
            if not np.isfinite(total):
                raise SprachbundError(f"the probe of {tag} diverged at step {step + 1}; lower probe.learning_rate")
            _step(model, optimizer, weights)
            losses.append(total)
        probe = _read(
            weights,
            base,
            tag=tag,
            ffn=ffn,
            num_layers=len(model.model.layers),
            layers=layers,
            sketch=sketch,
            losses=losses,
        )
        if not np.isfinite([*probe.ffn_norms, *probe.attention_norms]).all():
            raise SprachbundError(f"the probe of {tag} diverged at its last step; lower probe.learning_rate")
        return probe
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name])
        model.zero_grad(set_to_none=True)
        model.eval()


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


@torch.no_grad()
def _read(
    weights: dict[str, Tensor],
    base: dict[str, Tensor],
    *,
    tag: str,
    ffn: str,
    num_layers: int,
    layers: Sequence[int],
    sketch: CountSketch,
    losses: list[float],
) -> LanguageProbe:
    """Compare weight matrices (no biases, no norm gains) with the base."""
    norms: dict[str, list[float]] = {ffn: [], ATTENTION: []}
    sketches = {}
    for index in range(num_layers):
        for module, found in norms.items():
            prefix = f"model.layers.{index}.{module}."
            names = [name for name, weight in weights.items() if name.startswith(prefix) and weight.dim() > 1]
            deltas = [weights[name] - base[name].float() for name in names]
            squares = [torch.linalg.vector_norm(delta, dtype=torch.float64).square() for delta in deltas]
            found.append(float(torch.stack(squares).sum().sqrt()))
            if module == ffn and index in layers:
                sketches[index] = sketch(deltas)
    return LanguageProbe(tag, norms[ffn], norms[ATTENTION], sketches, losses)


def save_probe(path: Path, probe: LanguageProbe) -> None:
    """Write a probe's result as safetensors, atomically."""
    values = {"ffn": probe.ffn_norms, "attention": probe.attention_norms, "losses": probe.losses}
    metadata = {"tag": probe.tag, **{key: json.dumps(value) for key, value in values.items()}}
    temporary = path.with_suffix(".tmp")
    save_file({f"sketch.{layer}": s for layer, s in probe.sketches.items()}, temporary, metadata=metadata)
    temporary.replace(path)


def load_probe(path: Path) -> LanguageProbe:
    """Read a probe's result."""
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
        sketches = {int(key.removeprefix("sketch.")): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    ffn, attention, losses = (json.loads(metadata[key]) for key in ("ffn", "attention", "losses"))
    return LanguageProbe(metadata["tag"], ffn, attention, dict(sorted(sketches.items())), losses)


def deviation_similarity(probes: Sequence[LanguageProbe], *, center: bool) -> Similarity:
    """Return the cosines of the languages' FFN deviations over the probed layers (DMoE, as released).

    `center` first removes the mean deviation over languages, what every fine-tuning does whatever the language; not in
    the paper; the prototypes told families apart better with it. Raises SprachbundError where a deviation, centred
    or not, is zero and has no direction.
    """
    products_LL = torch.zeros(len(probes), len(probes), dtype=torch.float64)
    for layer in probes[0].sketches:  # one layer at a time: all of them for many languages would be gigabytes
        vectors_LP = torch.stack([probe.sketches[layer] for probe in probes]).double()
        if center:
            vectors_LP = vectors_LP - vectors_LP.mean(0)
        products_LL += vectors_LP @ vectors_LP.T
    exact_L = torch.tensor(
        [sum(probe.ffn_norms[layer] ** 2 for layer in probe.sketches) for probe in probes], dtype=torch.float64
    ).sqrt()
    if still := [probe.tag for probe, norm in zip(probes, exact_L, strict=True) if not norm > 0]:
        raise SprachbundError(
            f"the probe did not move the parameters for {', '.join(still)}; raise probe.learning_rate"
        )
    # exact norms where they are known, sketched inner products
    norms_L = products_LL.diagonal().sqrt() if center else exact_L
    if alike := [probe.tag for probe, norm in zip(probes, norms_L, strict=True) if not norm > 0]:
        raise SprachbundError(
            f"the probe of {', '.join(alike)} moved the parameters exactly as the mean of all languages did; "
            "give each language a text of its own, or set probe.center: false"
        )
    values_LL = (products_LL / torch.outer(norms_L, norms_L)).clamp(-1, 1)
    values_LL = (values_LL + values_LL.T) / 2
    values_LL.fill_diagonal_(1.0)
    return Similarity(tuple(probe.tag for probe in probes), values_LL.numpy())
