"""The probe: fine-tune a model a few steps on one language, read how its parameters moved, put them back.

DMoE section 3.1 (Li et al. 2025): the deviation of language l is the difference of the parameters after and before; the
cosine of two languages' FFN deviations is their similarity, its norm per layer says how language-specific the layer is.
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


def _weights(layer: Any, module: str) -> dict[str, Tensor]:
    """Return the weight matrices (no biases) of a layer's module by name."""
    named = getattr(layer, module).named_parameters()
    return {name: parameter for name, parameter in named if parameter.dim() > 1}


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

    AdamW without weight decay, learning rate falling linearly to zero, as in the authors' code. `base` holds a copy of
    the parameters; the model holds exactly these again afterwards, also after an error. Raises SprachbundError when the
    loss is not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
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
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
        return _read(model, tag=tag, ffn=ffn, layers=layers, sketch=sketch, base=base, losses=losses)
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name])
        model.zero_grad(set_to_none=True)
        model.eval()


@torch.no_grad()
def _read(
    model: Any,
    *,
    tag: str,
    ffn: str,
    layers: Sequence[int],
    sketch: CountSketch,
    base: dict[str, Tensor],
    losses: list[float],
) -> LanguageProbe:
    norms: dict[str, list[float]] = {ffn: [], ATTENTION: []}
    sketches = {}
    for index, layer in enumerate(model.model.layers):
        for module, found in norms.items():
            prefix = f"model.layers.{index}.{module}."
            deltas = [w.float() - base[prefix + name].float() for name, w in _weights(layer, module).items()]
            found.append(float(torch.stack([d.double().square().sum() for d in deltas]).sum().sqrt()))
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
    """Return the cosines of the languages' FFN deviations over the probed layers (DMoE section 3.1).

    `center` first removes the mean deviation over languages, what every fine-tuning does whatever the language; not in
    the paper, and better at telling families apart (docs/results.md).
    """
    vectors_LP = torch.stack([torch.cat(list(probe.sketches.values())) for probe in probes]).double()
    if center:
        vectors_LP = vectors_LP - vectors_LP.mean(0)
        norms_L = vectors_LP.norm(dim=1)
    else:  # exact norms where they are known, sketched inner products
        squares = [sum(probe.ffn_norms[layer] ** 2 for layer in probe.sketches) for probe in probes]
        norms_L = torch.tensor(squares, dtype=torch.float64).sqrt()
    if not bool((norms_L > 0).all()):
        still = [probe.tag for probe, norm in zip(probes, norms_L, strict=True) if not norm > 0]
        raise SprachbundError(
            f"the probe did not move the parameters for {', '.join(still)}; raise probe.learning_rate"
        )
    unit_LP = vectors_LP / norms_L.unsqueeze(1)
    values_LL = (unit_LP @ unit_LP.T).clamp(-1, 1)
    values_LL = (values_LL + values_LL.T) / 2
    values_LL.fill_diagonal_(1.0)
    return Similarity(tuple(probe.tag for probe in probes), values_LL.numpy())
