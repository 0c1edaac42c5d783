import math
from collections.abc import Callable
from hashlib import blake2b

import pytest
import torch
from torch import Tensor

from sprachbund.similarity import CountSketch, sketch

WORD = (1 << 64) - 1


def split_mix(number: int) -> int:
    """SplitMix64's finaliser, from its paper, on Python's unbounded integers."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & WORD
    return number ^ (number >> 31)


def slow_sketch(vector: list[float], size: int, seed: int) -> list[float]:
    salt = int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    buckets = [0.0] * size
    for place, value in enumerate(vector):
        hashed = split_mix(place ^ salt)
        buckets[(hashed >> 1) % size] += -value if hashed % 2 else value
    return buckets


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(*shape: int, seed: int) -> Tensor:
    """Student's t with two degrees of freedom: no finite variance."""
    top, bottom = numbers(*shape, seed=seed), numbers(2, *shape, seed=seed + 1)
    return top / bottom.square().mean(0).sqrt()


def cosines(rows: Tensor) -> Tensor:
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    return torch.mm(unit, unit.T)


def test_the_hash_is_split_mix() -> None:
    assert split_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # the generator's published first output for seed 0
    signed = torch.tensor([0, 1, -1, 1 << 62, -(1 << 63), 0x1E3779B97F4A7C15])
    assert [int(value) & WORD for value in sketch._mix(signed)] == [split_mix(int(value) & WORD) for value in signed]


@pytest.mark.parametrize("seed", [0, 7, 1 << 15, 1 << 63, 10**30])
def test_it_is_what_a_slow_reference_computes_for_any_seed(seed: int) -> None:
    vector = numbers(300)
    torch.testing.assert_close(
        CountSketch(16, seed=seed)([vector]), torch.tensor(slow_sketch(vector.tolist(), 16, seed))
    )


def test_it_is_the_same_in_every_process() -> None:
    vector = torch.arange(1.0, 21.0)
    assert CountSketch(4, seed=3)([vector]).tolist() == [
        -33,
        19,
        3,
        3,
    ]  # the hash of a text differs per process, ours must not


def test_seeds_differ_and_the_same_seed_does_not() -> None:
    vector = [numbers(1000)]
    first = CountSketch(64, seed=5)(vector)
    assert torch.equal(first, CountSketch(64, seed=5)(vector))
    for other in (6, 5 + (1 << 16), 5 + (1 << 48)):
        again = CountSketch(64, seed=other)(vector)
        assert abs(float(cosines(torch.stack([first, again]))[0, 1])) < 4 / math.sqrt(64)


def test_it_is_linear() -> None:
    make = CountSketch(128, seed=1)
    x, y = numbers(5000, seed=1), numbers(5000, seed=2)
    torch.testing.assert_close(make([2 * x - 3 * y]), 2 * make([x]) - 3 * make([y]), rtol=1e-4, atol=1e-4)


def test_a_vector_that_fits_is_kept_as_it_is() -> None:
    make = CountSketch(10, seed=0)
    parts = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0])]
    assert make(parts).tolist() == [1, 2, 3, 4, 5]
    whole = numbers(10)
    assert torch.equal(make([whole]), whole)
    assert make([numbers(11)]).shape == (10,)


def test_parts_and_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = numbers(1000)
    whole = CountSketch(64, seed=2)([vector])
    parts = [vector[:1].view(1, 1), vector[1:301].view(30, 10), vector[301:]]
    assert torch.equal(CountSketch(64, seed=2)(parts), whole)
    monkeypatch.setattr(sketch, "CHUNK", 7)
    assert torch.equal(CountSketch(64, seed=2)(parts), whole)
    transposed = [vector.view(10, 100).T]  # not contiguous: read in the order of its rows
    assert torch.equal(CountSketch(64, seed=2)(transposed), CountSketch(64, seed=2)([transposed[0].contiguous()]))


def test_hashes_that_are_kept_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = [numbers(300), numbers(700, seed=1)]
    make = CountSketch(64, seed=2)
    first = make(vector)
    assert torch.equal(make(vector), first)
    monkeypatch.setattr(sketch, "KEPT", 500)  # the first piece's hashes are kept, the second's are made again
    assert torch.equal(CountSketch(64, seed=2)(vector), first)
    monkeypatch.setattr(sketch, "KEPT", 0)
    assert torch.equal(CountSketch(64, seed=2)(vector), first)
    whole = CountSketch(64, seed=2)([torch.cat(vector)])
    torch.testing.assert_close(make([torch.cat(vector)]), whole, rtol=0, atol=0)  # other pieces, other keys


def test_half_precision_is_read_as_what_it_holds() -> None:
    half = numbers(500).bfloat16()
    assert torch.equal(CountSketch(32, seed=0)([half]), CountSketch(32, seed=0)([half.float()]))


def test_each_coordinate_has_one_bucket_and_one_sign_and_both_are_balanced() -> None:
    length, size = 4000, 16
    make, unit = CountSketch(size, seed=0), torch.zeros(length)
    sketches = []
    for place in range(length):
        unit[place] = 1
        sketches.append(make([unit]))
        unit[place] = 0
    table = torch.stack(sketches)
    assert torch.equal(table.abs().sum(1), torch.ones(length))
    assert torch.equal(table.abs().amax(1), torch.ones(length))
    counts = table.abs().sum(0)
    expected = length / size
    assert float(((counts - expected).square() / expected).sum()) < 37.7  # chi square, 15 degrees of freedom, 0.1 %
    signs = table.sum(1)
    assert abs(float(signs.sum())) < 3.3 * math.sqrt(length)
    assert abs(float((signs[1:] * signs[:-1]).sum())) < 3.3 * math.sqrt(length)  # neighbours are independent


def test_inner_products_are_unbiased() -> None:
    x, y = numbers(400, seed=1), numbers(400, seed=2) + 0.5 * numbers(400, seed=1)
    estimates = []
    for seed in range(400):
        make = CountSketch(32, seed=seed)
        estimates.append(float(make([x]) @ make([y])))
    found = torch.tensor(estimates, dtype=torch.float64)
    assert abs(float(found.mean() - x.double() @ y.double())) < 3.3 * float(found.std()) / math.sqrt(len(found))
    # and they scatter as Charikar et al. prove: variance at most (|x|^2 |y|^2 + <x, y>^2) / size
    bound = float((x @ x) * (y @ y) + (x @ y) ** 2) / 32
    assert 0.5 * bound < float(found.var()) < 1.2 * bound


@pytest.mark.parametrize("draw", [numbers, heavy_tailed])
def test_a_cosine_is_off_by_about_one_over_the_root_of_the_size(draw: Callable[..., Tensor]) -> None:
    size, num_vectors = 1024, 24
    vectors = draw(num_vectors, 20_000, seed=4) + 0.7 * draw(1, 20_000, seed=9)
    errors = []
    for seed in range(3):
        make = CountSketch(size, seed=seed)
        found = cosines(torch.stack([make([vector]) for vector in vectors]))
        errors.append((found - cosines(vectors))[*torch.triu_indices(num_vectors, num_vectors, 1)])
    error = torch.cat(errors)
    assert 0.5 < float(error.square().mean().sqrt()) * math.sqrt(size) < 1.2
    assert float(error.abs().max()) < 5 / math.sqrt(size)


@pytest.mark.parametrize("pattern", ["rows", "columns", "every size-th"])
def test_regular_matrices_do_not_collide(pattern: str) -> None:
    """Folding by position would add whole rows or columns of a weight matrix into one bucket."""
    size = 256
    first, second = torch.zeros(2, 512, 256)
    if pattern == "rows":
        first, second = (numbers(512, 1, seed=seed).expand(512, 256) for seed in (1, 2))
    elif pattern == "columns":
        first, second = (numbers(1, 256, seed=seed).expand(512, 256) for seed in (1, 2))
    else:
        first[:, 3], second[:, 4] = 1, 1
    make = CountSketch(size, seed=0)
    sketches = torch.stack([make([first]), make([second])])
    exact = torch.stack([first.flatten(), second.flatten()])
    assert abs(float(cosines(sketches)[0, 1] - cosines(exact)[0, 1])) < 4 / math.sqrt(size)
    ratio = sketches.square().sum(1) / exact.square().sum(1)
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / size)
