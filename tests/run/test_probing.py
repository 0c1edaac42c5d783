"""The probe as a stage of a run: one pass, resumable, and no more of it than is asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny_config
from transformers import AutoModelForCausalLM

from sprachbund.corpora.packing import block_sequence
from sprachbund.errors import InputError
from sprachbund.recipe_file import build_recipe
from sprachbund.run import probing
from sprachbund.run.data import Corpora, PackedCorpora, make_tokenizer, pack_corpora
from sprachbund.run.directory import Run, open_run
from sprachbund.run.probing import DenseBase, Probes
from sprachbund.similarity import measure_gradient, similarity_of

ALL = ["deviation", "gradient", "representation", "lexical", "characters"]
TAGS = ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]
Probe = Callable[..., Probes]


def open_tiny(recipe: Path, folder: Path, *overrides: str) -> Run:
    text = recipe.read_text(encoding="utf-8")
    built = build_recipe(text, name=str(recipe), folder=recipe.parent, overrides=overrides)
    return open_run(built.resolved(recipe.parent), folder, update=True)


@pytest.fixture(scope="module")
def made(shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DenseBase, PackedCorpora, Corpora]:
    """The base and the corpora of the tiny recipe."""
    run = open_tiny(shared_tiny, tmp_path_factory.mktemp("made"))
    corpora = Corpora(run.recipe)
    tokenizer = make_tokenizer(run, corpora)
    packed = pack_corpora(run, corpora, tokenizer)
    dense = probing.make_base(run, packed, tokenizer)
    run.close()
    return dense, packed, corpora


@pytest.fixture
def probe(shared_tiny: Path, tmp_path: Path, made: tuple[DenseBase, PackedCorpora, Corpora]) -> Probe:
    """Return a function that probes into RUN under a changed recipe."""
    dense, packed, corpora = made

    def run_probe(*overrides: str, folder: str = "run", with_base: bool = True) -> Probes:
        run = open_tiny(shared_tiny, tmp_path / folder, *overrides)
        run.fingerprints["base"] = "always the same"
        try:
            return probing.probe(run, dense if with_base else None, packed, corpora)
        finally:
            run.close()

    return run_probe


def sources(*names: str) -> str:
    return f"probe.sources={json.dumps(names)}"


def totals(probes: Probes, source: str) -> list[torch.Tensor]:
    return [total for signal in probes.signals[source].values() for total in signal.totals.values()]


def test_one_pass_measures_every_source(probe: Probe, tmp_path: Path) -> None:
    probes = probe(sources(*ALL))
    assert list(probes.signals) == ALL
    assert all(list(signals) == TAGS for signals in probes.signals.values())
    for source in ALL:
        values = similarity_of(probes.signals[source], source=source, center=False).values_LL
        assert np.isfinite(values).all()
    compared = {source: probes.signals[source]["ita_Latn"].compared for source in ALL}
    assert compared["deviation"] == compared["gradient"] == (0, 1)
    assert compared["representation"] == (1,)
    assert list(probes.signals["representation"]["ita_Latn"].totals) == [0, 1, 2]
    assert json.loads((tmp_path / "run/probe/probe.json").read_text()) == probes.norms
    assert list(probes.norms) == list(probes.ffn_norms) == TAGS
    assert probes.norms["rus_Cyrl"] == {
        "delta_norm_ffn": probes.ffn_norms["rus_Cyrl"],
        "delta_norm_att": probes.attention_norms["rus_Cyrl"],
    }
    record = json.loads((tmp_path / "run/stages/probe.json").read_text())
    # two passes with a gradient, over two steps of four blocks of 32 tokens
    assert record["result"] == {"layers": [0, 1], "sources": ALL, "tokens": 2 * 4 * 2 * 128}


def test_a_source_measures_the_same_alone_or_with_others(probe: Probe) -> None:
    together = probe(sources(*ALL), folder="together")
    for source in ("deviation", "gradient", "representation"):
        alone = probe(sources(source), folder=source)
        pairs = zip(totals(together, source), totals(alone, source), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_blocks_of_one_repeat_are_as_they_always_were_and_the_next_are_others(
    probe: Probe, made: tuple[DenseBase, PackedCorpora, Corpora]
) -> None:
    dense, packed, _ = made
    corpus = packed.train["ita_Latn"]
    order = block_sequence(corpus.num_blocks(32), 16, seed=0, tag="probe/ita_Latn")
    assert len(set(order)) == 16
    blocks = [torch.from_numpy(corpus.block(int(i), 32)) for i in order]
    steps = [[torch.stack(blocks[i : i + 4])] for i in range(0, 16, 4)]
    found = probe(sources("gradient"), "probe.repeats=2").signals["gradient"]["ita_Latn"]
    assert found.repeats == 2
    sketches = probing.Sketches(512, num_parts=4, seed=0)
    settings: dict[str, Any] = {"tag": "ita_Latn", "ffn": "mlp", "layers": [0, 1], "sketches": sketches}
    expected = measure_gradient(dense.load(), [steps[:2], steps[2:]], **settings)
    assert all(torch.equal(found.totals[layer], expected.totals[layer]) for layer in (0, 1))
    assert all(torch.equal(found.parts[layer], expected.parts[layer]) for layer in (0, 1))


def test_a_language_that_is_done_is_not_measured_again(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probe(sources(*ALL), folder="whole")
    measure = probing.Measure.__call__

    def stopped(self: Any, text: probing.LanguageText) -> Any:
        if text.tag == "rus_Cyrl":
            raise KeyboardInterrupt
        return measure(self, text)

    with monkeypatch.context() as patched:
        patched.setattr(probing.Measure, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            probe(sources(*ALL))
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/probe").glob("*.safetensors")}
    assert sorted(done) == ["ita_Latn.safetensors", "ron_Latn.safetensors"]
    resumed = probe(sources(*ALL))
    for source in ALL:
        assert all(torch.equal(a, b) for a, b in zip(totals(resumed, source), totals(whole, source), strict=True))
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/probe").glob("*.safetensors")}
    assert len(again) == 4
    assert done.items() <= again.items()
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the process's memory map")
def test_the_base_is_kept_as_its_file_and_only_where_it_will_be_changed(
    made: tuple[DenseBase, PackedCorpora, Corpora], shared_tiny: Path, tmp_path: Path
) -> None:
    def mapped(tensor: torch.Tensor) -> bool:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("/base/model.safetensors"):
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                if start <= tensor.data_ptr() < end:
                    return True
        return False

    run = open_tiny(shared_tiny, tmp_path / "deviation")
    measure = probing.Measure(run.recipe, made[0])
    assert all(mapped(tensor) for tensor in measure.start.values())
    assert not any(mapped(parameter) for parameter in measure.model.parameters())
    run.close()
    run = open_tiny(shared_tiny, tmp_path / "representation", "groups.source=representation")
    measure = probing.Measure(run.recipe, made[0])
    assert not hasattr(measure, "start")
    assert all(mapped(parameter) for parameter in measure.model.parameters())
    run.close()


def test_dropout_is_the_same_whatever_was_measured_before(
    made: tuple[DenseBase, PackedCorpora, Corpora], shared_tiny: Path, tmp_path: Path
) -> None:
    config = tiny_config("gpt2")
    config.resid_pdrop, config.vocab_size = 0.5, 300
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = DenseBase(str(tmp_path / "base"), "main", False, "float32")
    run = open_tiny(shared_tiny, tmp_path / "run")
    texts = [probing.LanguageText(tag, made[1].train[tag]) for tag in TAGS[:2]]
    measure = probing.Measure(run.recipe, base)
    after_another = [measure(text).losses for text in texts][1]
    assert probing.Measure(run.recipe, base)(texts[1]).losses == after_another
    measure.model.transformer.h[1].mlp.dropout.p = 0.0
    assert measure(texts[1]).losses != after_another  # it is at work
    run.close()


def test_a_result_that_is_missing_is_made_again(probe: Probe, tmp_path: Path) -> None:
    whole = probe(sources("lexical"), "groups.source=lexical")
    before = totals(whole, "lexical")
    (tmp_path / "run/probe/rus_Cyrl.safetensors").unlink()
    again = totals(probe(sources("lexical"), "groups.source=lexical"), "lexical")
    assert all(torch.equal(a, b) for a, b in zip(again, before, strict=True))


def test_another_source_or_setting_is_another_probe(probe: Probe, tmp_path: Path) -> None:
    def times() -> set[int]:
        return {path.stat().st_mtime_ns for path in (tmp_path / "run/probe").glob("*.safetensors")}

    probe(sources("lexical"), "groups.source=lexical")
    first = times()
    probe(sources("lexical"), "groups.source=lexical", "probe.center=false")  # decided when comparing
    assert times() == first
    probe(sources("lexical", "characters"), "groups.source=lexical")
    assert not times() & first


def test_text_alone_needs_no_base(probe: Probe, tmp_path: Path) -> None:
    probes = probe(sources("characters"), "groups.source=lexical", "probe.ngram=2", with_base=False)
    assert list(probes.signals) == ["lexical", "characters"]
    assert probes.norms == probes.ffn_norms == {}
    assert json.loads((tmp_path / "run/stages/probe.json").read_text())["result"]["tokens"] == 0


def test_parallel_sentences_take_the_place_of_documents(probe: Probe, tmp_path: Path) -> None:
    for tag in TAGS:
        (tmp_path / f"{tag}.txt").write_text("Omnes homines\nliberi nascuntur\n", encoding="utf-8")
    settings = (sources("representation"), "groups.source=representation", f"probe.sentences={tmp_path}/{{tag}}.txt")
    probes = probe(*settings)
    values = similarity_of(probes.signals["representation"], source="representation", center=False).values_LL
    np.testing.assert_allclose(values, 1, atol=1e-6)  # the same sentences in every language
    for tag in TAGS[1:]:
        (tmp_path / f"{tag}.txt").write_text("Omnes homines\naequi sunt\n", encoding="utf-8")
    values = similarity_of(probe(*settings).signals["representation"], source="representation", center=False).values_LL
    assert values[0, 1] < 1 - 1e-4
    (tmp_path / "ukr_Cyrl.txt").write_text("Omnes homines\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"ron_Latn.txt has 2 lines and .*ukr_Cyrl.txt has 1; line n must be the same"):
        probe(*settings)


def test_layers_that_the_base_does_not_have_are_named() -> None:
    assert probing.probed_layers("all", 3) == [0, 1, 2]
    assert probing.probed_layers("last:2", 3) == [1, 2]
    assert probing.probed_layers("last:9", 3) == [0, 1, 2]
    assert probing.probed_layers([2, 0], 3) == [0, 2]
    with pytest.raises(InputError, match=r"probe.layers names layer 3; the base has layers 0 to 2"):
        probing.probed_layers([0, 3], 3)
    assert (probing.hidden_layer(None, 5), probing.hidden_layer(0, 5), probing.hidden_layer(5, 5)) == (2, 0, 5)
    with pytest.raises(InputError, match=r"probe.hidden_layer = 6 is more than the base's 5 layers"):
        probing.hidden_layer(6, 5)
