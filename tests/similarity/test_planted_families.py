"""Four languages of two planted families: every source finds them."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import LAYERS, WHOLE, state, tiny
from torch import Tensor

from sprachbund.similarity import (
    STEPWISE,
    FineTuning,
    Signal,
    count_characters,
    count_tokens,
    measure_gradient,
    measure_representation,
    probe_language,
    similarity_of,
)

LETTERS = {"a1": "aeioulnr", "a2": "aeioulnt", "b1": "гджзклмн", "b2": "гджзклмп"}
CENTERED = ("deviation", "representation")


@pytest.fixture(scope="module")
def documents() -> dict[str, list[str]]:
    """Words of two alphabets; within a family seven letters of eight are shared."""
    draw = random.Random(0)
    return {
        tag: [" ".join("".join(draw.choices(letters, k=draw.randint(2, 6))) for _ in range(12)) for _ in range(40)]
        for tag, letters in LETTERS.items()
    }


def stream(texts: list[str]) -> np.ndarray:
    return np.concatenate([[*text.encode(), 0] for text in texts]).astype(np.uint16)


def steps_of(texts: list[str]) -> list[list[Tensor]]:
    ids = torch.from_numpy(stream(texts).astype(np.int64))[: 6 * 128]
    return [[step] for step in ids.view(6, 4, 32)]


def signal(source: str, model: Any, texts: list[str]) -> Signal:
    if source == "lexical":
        return count_tokens(stream(texts))
    if source == "characters":
        return count_characters(texts, ngram=2)
    if source == "representation":
        sentences = [list(text.encode())[:32] for text in texts]
        return measure_representation(model, sentences, tag="x", hidden_layer=2, batch_tokens=1024)
    shared: dict[str, Any] = {"tag": "x", "ffn": "mlp", "layers": range(LAYERS), "sketches": WHOLE}
    if source == "deviation":
        tuning = FineTuning(6, 3e-3)
        return probe_language(model, [steps_of(texts)], tuning=tuning, base=state(model), **shared).signals[source]
    return measure_gradient(model, [steps_of(texts)], **shared)


@pytest.mark.parametrize("source", ["deviation", "gradient", STEPWISE, "representation", "lexical", "characters"])
def test_the_families_are_found(source: str, documents: dict[str, list[str]]) -> None:
    model = tiny()
    signals = {tag: signal(source.removesuffix("-stepwise"), model, texts) for tag, texts in documents.items()}
    values = similarity_of(signals, source=source, center=source in CENTERED).values_LL
    across = values[:2, 2:]
    assert min(values[0, 1], values[2, 3]) > across.max() + 0.1
