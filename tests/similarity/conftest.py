"""Signals made by hand."""

from collections.abc import Callable

import pytest
from torch import Tensor

from sprachbund.similarity import Signal, Sketches

TAGS = ["deu_Latn", "nld_Latn", "rus_Cyrl", "ukr_Cyrl"]
MakeSignals = Callable[..., dict[str, Signal]]


def signals_of(
    parts_LPNM: Tensor, *, size: int | None = None, repeats: int = 1, compared: int = 0
) -> dict[str, Signal]:
    """Return signals of languages from their parts, (L, P, layers N, M); null size: no sketches."""
    num_parts, num_layers, length = parts_LPNM.shape[1:]
    sketches = Sketches(size or num_parts * length, num_parts=num_parts, seed=0)
    signals = {}
    for tag, parts_PNM in zip(TAGS, parts_LPNM, strict=False):
        total_NM = parts_PNM.sum(0)
        signals[tag] = Signal(
            totals={layer: sketches.total([total_NM[layer]]) for layer in range(num_layers)},
            parts={
                layer: sketches.stacked([sketches.part([part[layer]]) for part in parts_PNM], [total_NM[layer]])
                for layer in range(num_layers)
            },
            norms={layer: float(total_NM[layer].norm()) for layer in range(num_layers)},
            compared=tuple(range(compared, num_layers)),
            repeats=repeats,
        )
    return signals


@pytest.fixture
def make_signals() -> MakeSignals:
    return signals_of
