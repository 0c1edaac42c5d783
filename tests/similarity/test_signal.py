"""What is kept of a signal: its file, and what shortening and rounding cost."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sprachbund.similarity import CountSketch, LanguageProbe, Signal, Sketches, load_probe, save_probe

MakeSignals = Callable[..., dict[str, Signal]]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosines(rows: Tensor) -> Tensor:
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    return unit @ unit.T


def test_a_probe_survives_the_disk(tmp_path: Path, make_signals: MakeSignals) -> None:
    signals = {
        "deviation": make_signals(numbers(1, 6, 2, 50), size=24, repeats=2, compared=1)["deu_Latn"],
        "lexical": make_signals(numbers(1, 8, 1, 400).clamp_min(2.5).sub(2.5).mul(1000).round())["deu_Latn"],
    }
    probe = LanguageProbe("deu_Latn", signals, [1.5, 2.5], [0.1, 0.2], [4.0, 3.0])
    path = tmp_path / "deu_Latn.safetensors"
    save_probe(path, probe)
    save_probe(path, probe)  # replaces what is there
    found = load_probe(path)
    assert (found.tag, found.losses) == (probe.tag, probe.losses)
    assert (found.ffn_norms, found.attention_norms) == (probe.ffn_norms, probe.attention_norms)
    assert list(found.signals) == ["deviation", "lexical"]
    for source, signal in signals.items():
        back = found.signals[source]
        assert (back.norms, back.compared, back.repeats) == (signal.norms, signal.compared, signal.repeats)
        for kind in ("totals", "parts"):
            ours, theirs = getattr(signal, kind), getattr(back, kind)
            assert list(theirs) == list(ours)
            assert all(torch.equal(theirs[layer], ours[layer]) for layer in ours)
            assert {theirs[layer].dtype for layer in theirs} == {torch.float32}
    with pytest.raises(KeyError):
        found.signals["lexical"].totals[7]
    assert [file.name for file in tmp_path.iterdir()] == ["deu_Latn.safetensors"]


def test_sketches_take_two_bytes_a_number_and_zeros_none(tmp_path: Path, make_signals: MakeSignals) -> None:
    long, rare = numbers(1, 4, 1, 5000), torch.zeros(1, 8, 1, 50_000)
    rare[..., :10] = torch.arange(1000.0, 1080.0).view(1, 8, 1, 10)
    signals = {
        "deviation": make_signals(long, size=1024)["deu_Latn"],  # a total of 1024 numbers, four parts of 256
        "lexical": make_signals(rare)["deu_Latn"],  # ten tokens: places, a total and eight parts of four bytes each
    }
    path = tmp_path / "probe.safetensors"
    save_probe(path, LanguageProbe("deu_Latn", signals))
    with safe_open(str(path), framework="pt") as file:
        assert file.get_tensor("deviation/totals/0").dtype == torch.bfloat16
    most = 2 * (1024 + 4 * 256) + 4 * (2 * 10 + 10 + 8 * 10)
    assert path.stat().st_size < most + 1500


def test_exact_vectors_are_not_rounded() -> None:
    sketches, matrices = Sketches(100, num_parts=2, seed=0), [numbers(10, 4), numbers(10, seed=1)]
    whole = torch.cat([matrix.flatten() for matrix in matrices])
    assert torch.equal(sketches.total(matrices), whole)
    part = sketches.part(matrices)
    assert torch.equal(part, whole)  # fifty numbers just fit a part
    assert torch.equal(sketches.stacked([part, part], matrices), torch.stack([whole, whole]))


def test_parts_are_sketched_to_as_many_numbers_as_the_total_in_all() -> None:
    sketches, vector = Sketches(1000, num_parts=4, seed=5), numbers(3000)
    assert torch.equal(sketches.part([vector]), CountSketch(250, seed=5)([vector]))
    stacked = sketches.stacked([sketches.part([vector])] * 4, [vector])
    assert stacked.shape == (4, 250)
    assert torch.equal(stacked, stacked.bfloat16().float())
    assert Sketches(3, num_parts=10, seed=0).part([vector]).shape == (1,)


def test_rounding_costs_a_hundredth_of_what_sketching_costs() -> None:
    size = 1024
    vectors = numbers(24, 20_000, seed=4) + 0.7 * numbers(1, 20_000, seed=9)
    plain, rounded = CountSketch(size, seed=0), Sketches(size, num_parts=1, seed=0)
    sketched = cosines(torch.stack([plain([vector]) for vector in vectors]))
    stored = cosines(torch.stack([rounded.total([vector]) for vector in vectors]))
    by_sketch, by_rounding = (sketched - cosines(vectors)).abs().max(), (stored - sketched).abs().max()
    assert 0 < float(by_rounding) < 0.01 / math.sqrt(size)
    assert float(by_rounding) < 0.01 * float(by_sketch)
