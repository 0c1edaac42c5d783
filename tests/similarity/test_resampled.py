"""Similarities of resampled data and of repeats, from parts that were made by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.similarity import STEPWISE, Signal, by_repeat, resampled, similarity_of

MakeSignals = Callable[..., dict[str, Signal]]
SOURCES = ["deviation", "gradient", STEPWISE, "representation", "lexical", "characters"]


def parts(noise: float = 1.0, *, num_parts: int = 12, length: int = 60, seed: int = 0) -> Tensor:
    """Return (4, P, 1 layer, M) positive whole numbers: two families, and noise in every part."""
    generator = torch.Generator().manual_seed(seed)
    family = torch.rand(2, 1, 1, length, generator=generator).mul(9).round().repeat_interleave(2, 0)
    own = torch.rand(4, num_parts, 1, length, generator=generator).mul(9 * noise).round()
    return family + own + 1


def spread(found: list[np.ndarray]) -> float:
    return float(np.std(np.stack(found), axis=0)[np.triu_indices(4, 1)].mean())


def values(signals: dict[str, Signal], source: str, center: bool, *, num: int = 20, seed: int = 0) -> list[np.ndarray]:
    return [s.values_LL for s in resampled(signals, source=source, center=center, num=num, seed=seed)]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_the_seed_decides_and_the_order_of_languages_does_not(
    source: str, center: bool, make_signals: MakeSignals
) -> None:
    signals = make_signals(parts())
    found = values(signals, source, center)
    assert all(np.array_equal(a, b) for a, b in zip(found, values(signals, source, center), strict=True))
    assert not np.allclose(found[0], values(signals, source, center, seed=1)[0])
    assert not np.allclose(found[0], found[1])
    order = [3, 1, 0, 2]
    permuted = {tag: signals[tag] for tag in (list(signals)[i] for i in order)}
    for before, after in zip(found, values(permuted, source, center), strict=True):
        np.testing.assert_allclose(after, before[order][:, order], atol=1e-12)
    assert np.array_equal(values(signals, source, center, num=3)[2], found[2])
    assert values(signals, source, center, num=0) == []


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("source", ["deviation", "gradient", "lexical"])
def test_a_replicate_is_the_similarity_of_the_parts_that_were_drawn(
    source: str, center: bool, make_signals: MakeSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = {"deu_Latn": [0, 0, 2], "nld_Latn": [1, 1, 1], "rus_Cyrl": [0, 1, 2], "ukr_Cyrl": [2, 2, 0], "": [1, 1, 0]}
    if source == "deviation":
        draws = dict.fromkeys(draws, draws[""])
    monkeypatch.setattr("sprachbund.similarity.compare._draws", lambda tag, **_: np.array([draws[tag]]))
    numbers = parts(num_parts=3)
    drawn = torch.stack([numbers[i, draws[tag]] for i, tag in enumerate(make_signals(numbers))])
    expected = similarity_of(make_signals(drawn), source=source, center=center).values_LL
    found = values(make_signals(numbers), source, center, num=1)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("source", ["deviation", "representation"])
def test_parts_that_go_together_are_drawn_together(source: str, make_signals: MakeSignals) -> None:
    same = parts()[:1].expand(4, 12, 1, 60)
    for found in values(make_signals(same), source, False):
        np.testing.assert_allclose(found, 1)
    assert max(found.min() for found in values(make_signals(same), "gradient", False)) < 1


def test_large_first_steps_do_not_set_languages_apart(make_signals: MakeSignals) -> None:
    """What all deviations share is in the early steps: drawn unevenly, no mean would remove it."""
    rates = torch.linspace(3, 0.1, 12).view(1, 12, 1, 1)
    signals = make_signals(parts(0.5) + 50 * rates)
    assert spread(values(signals, "deviation", True)) < spread(values(signals, "gradient", True)) / 2


@pytest.mark.parametrize("source", SOURCES)
def test_the_spread_grows_with_the_noise_of_the_parts(source: str, make_signals: MakeSignals) -> None:
    quiet, loud = (values(make_signals(parts(noise)), source, False, num=60) for noise in (0.2, 2.0))
    assert 0 < spread(quiet) < spread(loud) / 2
    sure = make_signals(parts(0.0))
    assert spread(values(sure, source, False)) < 1e-9


def test_the_spread_is_that_of_new_data(make_signals: MakeSignals) -> None:
    fresh = [
        similarity_of(make_signals(numbers), source="gradient", center=False).values_LL
        for numbers in _same_families_new_noise(40)
    ]
    (numbers,) = _same_families_new_noise(1)
    one = make_signals(numbers)
    assert spread(values(one, "gradient", False, num=100)) == pytest.approx(spread(fresh), rel=0.35)


def _same_families_new_noise(num: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    family = torch.randn(2, 1, 1, 60, generator=generator).repeat_interleave(2, 0)
    return [family + 2 * torch.randn(4, 30, 1, 60, generator=generator) for _ in range(num)]


def test_the_total_steadies_what_small_sketches_of_parts_blur(make_signals: MakeSignals) -> None:
    generator = torch.Generator().manual_seed(1)
    family = torch.randn(2, 1, 1, 4000, generator=generator).repeat_interleave(2, 0)
    numbers = family + torch.randn(4, 10, 1, 4000, generator=generator)
    exact = np.mean(values(make_signals(numbers), "gradient", False), axis=0)
    signals = make_signals(numbers, size=2000)  # of each part 200 numbers: off by 0.07
    found = np.mean(values(signals, "gradient", False), axis=0)
    assert np.abs(found - exact).max() < 2 / np.sqrt(2000)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("source", ["deviation", "gradient", STEPWISE])
def test_each_repeat_gives_its_own_similarity(source: str, center: bool, make_signals: MakeSignals) -> None:
    numbers = parts()
    found = by_repeat(make_signals(numbers, repeats=3), source=source, center=center)
    assert len(found) == 3
    for own, similarity in zip(numbers.chunk(3, dim=1), found, strict=True):
        alone = similarity_of(make_signals(own), source=source, center=center)
        assert similarity.tags == alone.tags
        np.testing.assert_allclose(similarity.values_LL, alone.values_LL, atol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_one_repeat_has_nothing_to_compare_with(source: str, make_signals: MakeSignals) -> None:
    assert by_repeat(make_signals(parts()), source=source, center=False) == []
