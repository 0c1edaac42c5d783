import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity import CountSketch, LanguageProbe, deviation_similarity

LENGTH = 50  # of one layer's deviation
TAGS = ["deu_Latn", "nld_Latn", "rus_Cyrl", "ukr_Cyrl"]


def deviations(num_languages: int = 4, seed: int = 0) -> Tensor:
    """Return (L, 2 layers, P): a part common to all, two families, and each language's own."""
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.randn(n, 2, LENGTH, generator=generator) for n in (1, num_languages))
    family = torch.randn(2, 2, LENGTH, generator=generator)
    return 2 * common + family[torch.arange(num_languages) // 2] + 0.5 * own


def probes_of(deltas_LNP: Tensor, *, size: int = LENGTH, layers: tuple[int, ...] = (0, 1)) -> list[LanguageProbe]:
    sketch = CountSketch(size, seed=0)
    return [
        LanguageProbe(
            tag=tag,
            ffn_norms=[float(layer.norm()) for layer in delta],
            attention_norms=[1.0, 1.0],
            sketches={layer: sketch([delta[layer]]) for layer in layers},
            losses=[1.0],
        )
        for tag, delta in zip(TAGS, deltas_LNP, strict=False)
    ]


def cosines(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1)
    products: np.ndarray = vectors @ vectors.T / np.outer(norms, norms)
    return products


@pytest.mark.parametrize("size", [LENGTH, 3 * LENGTH])
def test_cosines_are_exact_where_the_vectors_fit_the_sketch(size: int) -> None:
    deltas = deviations()
    similarity = deviation_similarity(probes_of(deltas, size=size), center=False)
    assert similarity.tags == tuple(TAGS)
    np.testing.assert_allclose(similarity.values_LL, cosines(deltas.flatten(1).double().numpy()), rtol=1e-6)


def test_centring_removes_the_mean_over_languages() -> None:
    deltas = deviations()
    vectors = deltas.flatten(1).double().numpy()
    plain = deviation_similarity(probes_of(deltas), center=False).values_LL
    centred = deviation_similarity(probes_of(deltas), center=True).values_LL
    np.testing.assert_allclose(centred, cosines(vectors - vectors.mean(0)), rtol=1e-5, atol=1e-7)
    assert plain.min() > 0.5  # everything looks alike ...
    assert centred[0, 2] < 0 < centred[0, 1]  # ... until what is common goes
    moved = deviation_similarity(probes_of(deltas + 10 * deviations(1, seed=5)), center=True).values_LL
    np.testing.assert_allclose(moved, centred, atol=1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_it_is_symmetric_with_ones_on_the_diagonal(center: bool) -> None:
    values = deviation_similarity(probes_of(deviations(), size=8), center=center).values_LL
    assert values.shape == (4, 4)
    assert np.array_equal(values, values.T)
    assert np.array_equal(np.diag(values), np.ones(4))
    assert np.abs(values).max() <= 1


def test_only_the_direction_counts() -> None:
    deltas = deviations()
    scaled = deltas * torch.tensor([1e-6, 1.0, 1e3, 5.0]).view(4, 1, 1)
    first, second = (deviation_similarity(probes_of(d), center=False).values_LL for d in (deltas, scaled))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_layers_that_were_not_compared_do_not_count() -> None:
    deltas = deviations()
    found = deviation_similarity(probes_of(deltas, layers=(1,)), center=False).values_LL
    np.testing.assert_allclose(found, cosines(deltas[:, 1].double().numpy()), rtol=1e-6)


def test_a_sketched_cosine_divides_by_the_exact_norms() -> None:
    probes = probes_of(deviations(), size=8)
    vectors = [np.concatenate([sketch.double().numpy() for sketch in probe.sketches.values()]) for probe in probes]
    norms = [math.hypot(*probe.ffn_norms) for probe in probes]
    expected = np.clip(vectors[0] @ vectors[2] / (norms[0] * norms[2]), -1, 1)
    assert deviation_similarity(probes, center=False).values_LL[0, 2] == pytest.approx(expected, rel=1e-6)


def test_the_sketch_keeps_the_cosines() -> None:
    generator = torch.Generator().manual_seed(3)
    deltas = torch.randn(4, 2, 30_000, generator=generator) + torch.randn(1, 2, 30_000, generator=generator)
    found = deviation_similarity(probes_of(deltas, size=4096), center=False).values_LL
    exact = cosines(deltas.flatten(1).double().numpy())
    assert np.abs(found - exact).max() < 5 / np.sqrt(2 * 4096)


@pytest.mark.parametrize("center", [False, True])
def test_a_language_that_did_not_move_is_named(center: bool) -> None:
    deltas = deviations()
    deltas[[1, 3]] = 0
    with pytest.raises(SprachbundError, match="did not move the parameters for nld_Latn, ukr_Cyrl; raise probe"):
        deviation_similarity(probes_of(deltas), center=center)


def test_languages_with_one_and_the_same_text_have_nothing_left_to_compare() -> None:
    probes = probes_of(torch.ones(2, 2, LENGTH))
    assert deviation_similarity(probes, center=False).values_LL == pytest.approx(np.ones((2, 2)))
    with pytest.raises(SprachbundError, match=r"of deu_Latn, nld_Latn moved .* exactly as the mean"):
        deviation_similarity(probes, center=True)
