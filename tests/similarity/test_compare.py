"""Cosines of signals that were made by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.similarity import STEPWISE, Signal, similarity_by_layer, similarity_of

LENGTH = 50  # of one layer's vector
MakeSignals = Callable[..., dict[str, Signal]]


def vectors(num_languages: int = 4, seed: int = 0) -> Tensor:
    """Return (L, 1 part, 2 layers, M): what is common to all, two families, and each language's own."""
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.randn(n, 1, 2, LENGTH, generator=generator) for n in (1, num_languages))
    family = torch.randn(2, 1, 2, LENGTH, generator=generator)
    return 2 * common + family[torch.arange(num_languages) // 2] + 0.5 * own


def cosines(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    products: np.ndarray = rows @ rows.T / np.outer(norms, norms)
    return products


def values(signals: dict[str, Signal], *, center: bool = False, source: str = "deviation") -> np.ndarray:
    return similarity_of(signals, source=source, center=center).values_LL


@pytest.mark.parametrize("size", [LENGTH, 3 * LENGTH])
def test_cosines_are_exact_where_the_vectors_fit_the_sketch(size: int, make_signals: MakeSignals) -> None:
    numbers = vectors()
    signals = make_signals(numbers, size=size)
    assert similarity_of(signals, source="deviation", center=False).tags == tuple(signals)
    np.testing.assert_allclose(values(signals), cosines(numbers.flatten(1).double().numpy()), rtol=1e-6)


def test_centring_removes_the_mean_over_languages(make_signals: MakeSignals) -> None:
    numbers = vectors()
    rows = numbers.flatten(1).double().numpy()
    plain, centred = (values(make_signals(numbers), center=center) for center in (False, True))
    np.testing.assert_allclose(centred, cosines(rows - rows.mean(0)), rtol=1e-5, atol=1e-7)
    assert plain.min() > 0.5  # everything looks alike ...
    assert centred[0, 2] < 0 < centred[0, 1]  # ... until what is common goes
    moved = values(make_signals(numbers + 10 * vectors(1, seed=5)), center=True)
    np.testing.assert_allclose(moved, centred, atol=1e-5)


@pytest.mark.parametrize("center", [False, True])
def test_it_is_symmetric_with_ones_on_the_diagonal(center: bool, make_signals: MakeSignals) -> None:
    found = values(make_signals(vectors(), size=8), center=center)
    assert found.shape == (4, 4)
    assert np.array_equal(found, found.T)
    assert np.array_equal(np.diag(found), np.ones(4))
    assert np.abs(found).max() <= 1


def test_only_the_direction_counts(make_signals: MakeSignals) -> None:
    numbers = vectors()
    scaled = numbers * torch.tensor([1e-6, 1.0, 1e3, 5.0]).view(4, 1, 1, 1)
    np.testing.assert_allclose(values(make_signals(numbers)), values(make_signals(scaled)), atol=1e-6)


@pytest.mark.parametrize("source", ["deviation", STEPWISE, "lexical"])
@pytest.mark.parametrize("center", [False, True])
def test_another_order_of_languages_only_permutes_the_matrix(
    source: str, center: bool, make_signals: MakeSignals
) -> None:
    signals = make_signals(vectors().abs()[:, :, :1])
    order = [2, 0, 3, 1]
    permuted = {tag: signals[tag] for tag in (list(signals)[i] for i in order)}
    found = values(signals, source=source, center=center)
    np.testing.assert_allclose(values(permuted, source=source, center=center), found[order][:, order], atol=1e-12)


def test_layers_that_are_not_compared_do_not_count(make_signals: MakeSignals) -> None:
    numbers = vectors()
    found = values(make_signals(numbers, compared=1))
    np.testing.assert_allclose(found, cosines(numbers[:, 0, 1].double().numpy()), rtol=1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_every_layer_has_a_similarity_of_its_own(center: bool, make_signals: MakeSignals) -> None:
    numbers = vectors()
    by_layer = similarity_by_layer(make_signals(numbers, compared=1), source="deviation", center=center)
    assert list(by_layer) == [0, 1]
    for layer, similarity in by_layer.items():
        rows = numbers[:, 0, layer].double().numpy()
        expected = cosines(rows - rows.mean(0) if center else rows)
        np.testing.assert_allclose(similarity.values_LL, expected, rtol=1e-5, atol=1e-6)


def test_a_sketched_cosine_divides_by_the_exact_norms(make_signals: MakeSignals) -> None:
    signals = list(make_signals(vectors(), size=8).values())
    rows = [np.concatenate([signal.totals[layer].double().numpy() for layer in (0, 1)]) for signal in signals]
    norms = [np.hypot(signal.norms[0], signal.norms[1]) for signal in signals]
    expected = np.clip(rows[0] @ rows[2] / (norms[0] * norms[2]), -1, 1)
    assert values(make_signals(vectors(), size=8))[0, 2] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("center", [False, True])
def test_a_sketched_similarity_is_within_four_over_the_root_of_all_sketched_numbers(
    center: bool, make_signals: MakeSignals
) -> None:
    generator = torch.Generator().manual_seed(3)
    own, common = (torch.randn(n, 1, 2, 30_000, generator=generator) for n in (4, 1))
    rows = (own + common).flatten(1).double().numpy()
    exact = cosines(rows - rows.mean(0) if center else rows)
    found = values(make_signals(own + common, size=4096), center=center)
    assert 0 < np.abs(found - exact).max() < 4 / np.sqrt(2 * 4096)


def test_mean_of_cosines_and_cosine_of_means_by_hand(make_signals: MakeSignals) -> None:
    a = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    b = torch.tensor([[3.0, 4.0], [0.0, 9.0]])
    signals = make_signals(torch.stack([a, b]).unsqueeze(2))
    assert values(signals, source="gradient")[0, 1] == pytest.approx(64 / (np.sqrt(32) * np.sqrt(178)), rel=1e-6)
    assert values(signals, source=STEPWISE)[0, 1] == pytest.approx((1 + 0) / 2, rel=1e-6)
    # centred step by step, two languages are opposites wherever they differ and nothing where they do not
    assert values(signals, source=STEPWISE, center=True)[0, 1] == pytest.approx((0 - 1) / 2, rel=1e-6)


def test_negated_vectors_are_opposites(make_signals: MakeSignals) -> None:
    numbers = vectors()[:2]
    numbers[1] = -numbers[0]
    for source in ("gradient", STEPWISE):
        assert values(make_signals(numbers), source=source)[0, 1] == pytest.approx(-1)


def test_counts_are_compared_by_the_roots_of_their_shares(make_signals: MakeSignals) -> None:
    counts = torch.tensor([[4.0, 4.0, 0.0, 2.0], [8.0, 1.0, 1.0, 0.0], [40.0, 40.0, 0.0, 20.0]]).view(3, 1, 1, 4)
    found = values(make_signals(counts), source="lexical")
    assert found[0, 1] == pytest.approx(np.sqrt(0.4 * 0.8) + np.sqrt(0.4 * 0.1))  # the Bhattacharyya coefficient
    assert found[0, 2] == pytest.approx(1)  # ten times the text, the same shares


def test_vocabularies_of_different_lengths_are_one_vocabulary(make_signals: MakeSignals) -> None:
    short = make_signals(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2))["deu_Latn"]
    long = make_signals(torch.tensor([1.0, 0.0, 3.0]).view(1, 1, 1, 3))["deu_Latn"]
    assert values({"a": short, "b": long}, source="lexical")[0, 1] == pytest.approx(0.25)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("deviation", "the probe did not move the parameters for nld_Latn, ukr_Cyrl; raise probe.learning_rate"),
        ("gradient", "the base's gradient is zero for nld_Latn, ukr_Cyrl; "),
        (STEPWISE, "the base's gradient is zero for nld_Latn, ukr_Cyrl; "),
        ("representation", "the base's hidden states are zero for nld_Latn, ukr_Cyrl; take another probe.hidden_layer"),
        ("lexical", "the train split of nld_Latn, ukr_Cyrl has no token"),
        ("characters", "has no run of probe.ngram characters; lower probe.ngram"),
    ],
)
def test_a_language_without_a_signal_is_named(
    source: str, message: str, center: bool, make_signals: MakeSignals
) -> None:
    numbers = vectors().abs()
    numbers[[1, 3]] = 0
    with pytest.raises(SprachbundError, match=message):
        values(make_signals(numbers), source=source, center=center)


@pytest.mark.parametrize("source", ["deviation", STEPWISE, "representation", "lexical"])
def test_languages_with_one_and_the_same_text_have_nothing_left_to_compare(
    source: str, make_signals: MakeSignals
) -> None:
    signals = make_signals(vectors().abs()[:1].expand(2, 1, 2, LENGTH))
    assert values(signals, source=source) == pytest.approx(np.ones((2, 2)), abs=1e-6)
    kind = source.removesuffix("-stepwise")
    with pytest.raises(SprachbundError, match=f"the {kind} of deu_Latn, nld_Latn is exactly the mean over all"):
        values(signals, source=source, center=True)


def test_the_similarity_of_a_source_does_not_depend_on_its_parts(make_signals: MakeSignals) -> None:
    signals = make_signals(vectors())
    other = {tag: replace(signal, parts={}) for tag, signal in signals.items()}
    assert np.array_equal(values(signals), values(other))
