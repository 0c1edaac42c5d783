"""Which layers get experts: those whose FFN moves most when the model learns one language (DMoE, Li et al. 2025).

Facts of the paper's method as the authors' released code has it: the norms of the FFN change are averaged over
languages, scaled to 0..1 over layers, and a layer is chosen where the result reaches epsilon (0.6). It is a threshold,
not "the top epsilon layers". Attention norms are recorded in the authors' files and play no part.
Shapes: L layers.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sprachbund.errors import InputError
from sprachbund.files import describe, read_json_object

LayerNorms: TypeAlias = dict[str, list[float]]
"""For each language the L2 norm of the change of each layer's FFN weights, first layer first."""

FFN_KEY = "delta_norm_ffn"

# Below this the differences between layers were noise of the optimiser in our own measurements (1-4%).
SMALLEST_TELLING_SPREAD = 0.05

# A modified z-score above this marks an outlier (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers).
OUTLIER_SCORE = 3.5


def read_norms(path: Path | str) -> LayerNorms:
    """Read the FFN norms of a file of the authors' form: {tag: {"delta_norm_ffn": [...], "delta_norm_att": [...]}}.

    Raises:
        InputError: malformed JSON (with its line), a language without FFN norms, a norm that is no finite
            non-negative number, or languages with different numbers of layers.
    """
    path = Path(path)
    norms: LayerNorms = {}
    for tag, entry in read_json_object(path).items():
        if not isinstance(entry, dict) or not isinstance(entry.get(FFN_KEY), list) or not entry[FFN_KEY]:
            raise InputError(
                f'{path}: {tag!r} has no list {FFN_KEY!r} of norms; give {{"{FFN_KEY}": [one number for each layer]}}.'
            )
        norms[tag] = [_norm(value, tag=tag, layer=layer, path=path) for layer, value in enumerate(entry[FFN_KEY])]
    first = next(iter(norms))
    for tag, norms_L in norms.items():
        if len(norms_L) != len(norms[first]):
            raise InputError(
                f"{path}: {tag!r} has norms of {len(norms_L)} layers and {first!r} of {len(norms[first])}; "
                "every language must have one for each layer of the same model."
            )
    return norms


def _norm(value: object, *, tag: str, layer: int, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise InputError(
            f"{path}: {FFN_KEY!r} of {tag!r}, layer {layer}, is {describe(value)}; "
            "a norm is a finite number, zero or more."
        )
    return float(value)


def mean_norms(norms: LayerNorms) -> list[float]:
    """Return (L) norms averaged over languages, each language with the same weight."""
    assert norms, "no language"
    averaged: list[float] = np.mean(np.array(list(norms.values()), dtype=np.float64), axis=0).tolist()
    return averaged


def normalised(norms_L: Sequence[float]) -> list[float]:
    """Return (L) norms scaled so that the smallest is 0 and the largest is 1.

    Where all are equal, zero among them, all become 1: no layer stands out, so none is left out. (The authors' code
    divides by zero.)

    Raises:
        InputError: no norm at all, or one that is no finite number, zero or more; likewise for every choice below.
    """
    _check(norms_L)
    lowest, highest = min(norms_L), max(norms_L)
    if highest == lowest:
        return [1.0] * len(norms_L)
    return [(norm - lowest) / (highest - lowest) for norm in norms_L]


def choose_by_epsilon(norms_L: Sequence[float], *, epsilon: float) -> list[int]:
    """Return, ascending, the layers whose normalised norm is at least epsilon: the paper's rule, with epsilon 0.6.

    At least one layer is always chosen; the rule is blind to how much the layers differ (`noise_warning`), and a
    single layer can suppress all others (`outlier_warning`).

    Raises:
        InputError: epsilon is not in 0..1.
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon is {epsilon}; it is compared with norms scaled to 0..1: give a number in 0..1.")
    return [layer for layer, norm in enumerate(normalised(norms_L)) if norm >= epsilon]


def choose_top(norms_L: Sequence[float], *, num_layers: int) -> list[int]:
    """Return, ascending, the `num_layers` layers with the largest norms; of equal ones the lower layer goes first.

    Raises:
        InputError: the model does not have that many layers, or fewer than one is asked for.
    """
    _check(norms_L)
    if not 1 <= num_layers <= len(norms_L):
        raise InputError(f"{num_layers} layers asked for, the model has {len(norms_L)}; ask for 1 to {len(norms_L)}.")
    return sorted(_by_norm(norms_L)[:num_layers])


def choose_by_budget(norms_L: Sequence[float], *, budget: int, cost_L: Sequence[int]) -> list[int]:
    """Return, ascending, as many layers as `budget` added parameters allow, those with the largest norms first.

    `cost_L` is what each layer adds when it becomes a mixture (`sprachbund.modeling.layer_cost`). Layers are taken in
    the order of their norms; one that no longer fits is passed over, and cheaper ones after it may still fit. Where
    all cost the same, as in the supported families, this is the top floor(budget / cost) layers.

    Raises:
        InputError: not even the cheapest layer fits.
    """
    _check(norms_L)
    assert len(cost_L) == len(norms_L), "one cost for each layer"
    assert min(cost_L) > 0, "a layer that costs nothing"
    chosen: list[int] = []
    left = budget
    for layer in _by_norm(norms_L):
        if cost_L[layer] <= left:
            chosen.append(layer)
            left -= cost_L[layer]
    if not chosen:
        raise InputError(
            f"a budget of {budget:,} added parameters does not allow a single mixture layer, which costs "
            f"{min(cost_L):,}; give at least that, or smaller experts (experts.kind: shared with a smaller width)."
        )
    return sorted(chosen)


def _by_norm(norms_L: Sequence[float]) -> list[int]:
    """Return the layers, largest norm first; of equal ones the lower layer goes first."""
    return sorted(range(len(norms_L)), key=lambda layer: (-norms_L[layer], layer))


def bitmask(layers: Iterable[int]) -> int:
    """Return the authors' `moe_layer_index`: bit i, the lowest being bit 0, is set where layer i has experts.

    Their BLOOM-560M value 15728671 says layers 0-4 and 20-23.
    """
    mask = 0
    for layer in layers:
        mask |= 1 << layer
    return mask


def relative_spread(norms_L: Sequence[float]) -> float:
    """Return (largest - smallest) / mean: how much the layers differ at all; 0 where every norm is 0."""
    _check(norms_L)
    mean = sum(norms_L) / len(norms_L)
    return (max(norms_L) - min(norms_L)) / mean if mean else 0.0


def noise_warning(norms_L: Sequence[float]) -> str | None:
    """Return one sentence where the norms differ so little that epsilon reads noise, else None.

    Scaling to 0..1 blows up differences of any size. After a few Adam steps, which move every weight alike, norms
    can differ by 1-4% only; the layers chosen then change from one base model to the next.
    """
    spread = relative_spread(norms_L)
    if spread >= SMALLEST_TELLING_SPREAD:
        return None
    if not max(norms_L):
        return "The norm of every layer is 0: nothing moved, so they say nothing about layers; check the probe."
    return (
        f"The norms of the layers differ by {spread:.1%} of their mean only (below {SMALLEST_TELLING_SPREAD:.0%}): "
        "epsilon reads noise here, so give experts to all layers or choose the number of layers."
    )


def outlier_warning(norms_L: Sequence[float], *, epsilon: float) -> str | None:
    """Return one sentence where one layer alone keeps others below epsilon, else None.

    The largest norm stretches the scale of all. The rule: its modified z-score, 0.6745 (norm - median) / median
    absolute deviation, is above 3.5 (Iglewicz and Hoaglin 1993), and without it other layers would reach epsilon.
    """
    chosen = choose_by_epsilon(norms_L, epsilon=epsilon)
    top = _by_norm(norms_L)[0]
    median = float(np.median(norms_L))
    deviation = float(np.median(np.abs(np.asarray(norms_L, dtype=np.float64) - median)))
    if len(norms_L) < 3 or 0.6745 * (norms_L[top] - median) <= OUTLIER_SCORE * deviation:
        return None
    rest = [layer for layer in range(len(norms_L)) if layer != top]
    without = choose_by_epsilon([norms_L[layer] for layer in rest], epsilon=epsilon)
    suppressed = [rest[place] for place in without if rest[place] not in chosen]
    if not suppressed:
        return None
    return (
        f"Layer {top} stands out (norm {norms_L[top]:.4g}, median {median:.4g}) and suppresses "
        f"{', '.join(map(str, suppressed))}, which would reach epsilon = {epsilon:g} without it: "
        "look at the norms, and lower epsilon or choose the number of layers."
    )


def _check(norms_L: Sequence[float]) -> None:
    if not norms_L:
        raise InputError("No layer norms were given; give one for each layer of the model.")
    for layer, norm in enumerate(norms_L):
        if not 0 <= norm <= sys.float_info.max:
            raise InputError(f"The norm of layer {layer} is {norm}; a norm is a finite number, zero or more.")
