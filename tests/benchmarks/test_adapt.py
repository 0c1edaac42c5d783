"""benchmarks/adapt.py at toy size: every way to train is trained, and all that a bar or a table needs is measured."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from modules import benchmark

LETTERS = {"spa_Latn": "aeiourlnsdcmñ", "por_Latn": "aeioursnmdvçã"}
TRAINED = ("dense", "full", "paper", "dense-replay", "dense-lora", "several", "dense-merges", "full-merges")
WHERE = {"date": "2026-01-01", "commit": "abc", "hardware": "2 cores", "packages": {"torch": "2"}}


@pytest.fixture(scope="module")
def parts() -> Any:
    """The modules of the benchmark."""
    names = ("adapt", "adapt_systems", "adapt_jobs", "adapt_material", "adapt_trials", "adapt_bars", "adapt_tables")
    return SimpleNamespace(**{name: benchmark(name) for name in (*names, "grouping_tables")})


def write_texts(folder: Path) -> None:
    """Write two languages of made-up words."""
    for tag, letters in LETTERS.items():
        draw = random.Random(tag)
        words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(60)]
        lines = [json.dumps({"text": " ".join(draw.choices(words, k=12))}, ensure_ascii=False) for _ in range(80)]
        (folder / f"{tag}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def setting(finished: Path, parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("adapt")
    write_texts(folder)
    return parts.adapt_systems.Setting(
        run=finished,
        out=folder / "out",
        corpus=str(folder / "{tag}.jsonl"),
        languages=tuple(LETTERS),
        domain=("ron_Latn", "spa_Latn"),
        switch_with="ita_Latn",
        seeds=(0,),
        tokens=128,
        tokens_per_step=64,
        merges=8,
        old_tokens=128,
    )


@pytest.fixture(scope="module")
def result(setting: Any, parts: Any) -> Any:
    """What is measured, of fewer systems and rates."""
    systems = {
        name: replace(system, rates=system.rates[-2:] if name == "full" else system.rates[-1:])
        for name, system in parts.adapt_systems.SYSTEMS.items()
        if name in TRAINED
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(parts.adapt, "SYSTEMS", systems)
        first = parts.adapt.measure(setting, 1)
        patched.setattr(parts.adapt_jobs, "trained", None)  # it would fail where a job were done again
        assert parts.adapt.measure(setting, 1) == first
        with pytest.raises(SystemExit, match="results of another setting"):
            parts.adapt.measure(replace(setting, tokens=256), 1)
    return json.loads(json.dumps(first))


def measured(result: Any, system: str) -> list[Any]:
    return [entry["runs"][0]["test"] for entry in result["systems"][system].values()]


def trial(parts: Any, setting: Any, system: str, **changes: Any) -> Any:
    """Return a trial of a system before its training."""
    setting = replace(setting, **changes)
    job = parts.adapt_systems.Job(setting, parts.adapt_systems.SYSTEMS[system], "spa_Latn", 0.01, 0)
    return parts.adapt_trials.make_trial(job, parts.adapt_material.material(setting))


def test_every_system_is_trained_for_its_languages_at_the_rate_of_its_course(result: Any) -> None:
    assert set(result["systems"]) == set(TRAINED)
    assert {name for name, entries in result["systems"].items() if len(entries) == 1} == {"several"}
    rates = {(name, tag): e["learning_rate"] for name, tags in result["systems"].items() for tag, e in tags.items()}
    for tag in LETTERS:
        assert rates["full-merges", tag] == rates["full", tag]
        assert rates["paper", tag] == rates["paper", "spa_Latn"]
        grid = result["systems"]["full"][tag]["grid"]
        assert len(grid) >= 2
        assert float(min(grid, key=grid.get)) == rates["full", tag]


def test_dense_training_learns_and_forgets_and_a_path_leaves_the_old_languages_alone(result: Any, parts: Any) -> None:
    before = result["before"]
    for tag, test in zip(LETTERS, measured(result, "dense"), strict=True):
        assert test["new"]["dense"]["bits_per_byte"] < before["new"][tag]["dense"]["bits_per_byte"]
        assert max(parts.adapt_bars.old_changes(result, test, "dense").values()) > 5
    for tag, test in zip(LETTERS, measured(result, "full"), strict=True):
        assert test["new"]["group"]["bits_per_byte"] < before["new"][tag]["group"]["bits_per_byte"]
        assert test["identical"] == dict.fromkeys(("ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"), True)
        for mode in ("prefix", "counts", "top_k"):
            assert set(test["old"][mode]["ron_Latn"]) == {"perplexity", "share"}
    several = result["systems"]["several"]["spa_Latn"]["runs"][0]["test"]
    assert several["2"]["unchanged"]
    assert all(several["2"]["identical"].values())
    alone = measured(result, "full")[0]["new"]["group"]["bits_per_byte"]
    assert several["2"]["new"]["group"]["bits_per_byte"] == pytest.approx(alone, rel=1e-3)


def test_what_is_trained_is_counted(result: Any) -> None:
    runs = {name: entry["spa_Latn"]["runs"][0] for name, entry in result["systems"].items() if name != "several"}
    shares = {name: run["share_of_dense"] for name, run in runs.items()}
    assert shares["dense"] == shares["dense-replay"] == 1
    assert shares["dense-merges"] > 1
    assert 0 < shares["paper"] < shares["full"] < 1
    assert 0 < shares["dense-lora"] < 1


def test_text_of_another_kind_and_of_two_languages_is_measured(result: Any) -> None:
    for tag, test in zip(LETTERS, measured(result, "full"), strict=True):
        assert set(test["domain"]["counts"]) == {"ron_Latn", "spa_Latn"} - (
            {"spa_Latn"} if tag == "por_Latn" else set()
        )
        switching = test["switching"]
        assert set(switching) == {"given", "mixture", "counts", "off"}
        assert switching["given"]["bits_per_byte"] < switching["off"]["bits_per_byte"]
        assert 0 <= switching["counts"]["right_new"] <= 1


def test_the_page_and_the_bars_are_made_of_it(
    result: Any, parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = parts.adapt_bars.adapt_bars(result)
    assert sum("spa_Latn" in one["bar"] for one in bars) == 11, "the larger vocabulary at equal text was not trained"
    assert not any("por_Latn" in one["bar"] for one in bars), "the last language has nothing to reach"
    (tmp_path / "adapt.json").write_text(json.dumps({**WHERE, "bars": bars, "result": result}))
    for module in (parts.adapt_tables, parts.grouping_tables):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    page = parts.adapt_tables.page()
    assert page.count("\n## ") == 8
    assert "| yes | yes |" in page


def test_replay_has_as_much_old_text_as_new_in_every_step(setting: Any, parts: Any) -> None:
    blocks, plan = trial(parts, setting, "dense-replay", tokens=640)._dense_blocks()
    assert (plan.num_steps, plan.batch_size) == (10, 4)
    new_SB = blocks.languages.reshape(10, 4) == 0
    assert new_SB.sum(axis=1).tolist() == [2] * 10
    assert set(blocks.languages) == set(range(5))


def test_the_same_text_takes_fewer_tokens_with_a_larger_vocabulary(setting: Any, parts: Any) -> None:
    plain, larger, less = (
        trial(parts, setting, name, tokens=64 * 200).facts()
        for name in ("dense", "dense-merges", "dense-merges-same-text")
    )
    assert plain["tokens"] == larger["tokens"] > less["tokens"]
    assert larger["bytes"] > 1.05 * plain["bytes"]
    assert less["bytes"] == pytest.approx(plain["bytes"], rel=0.01)


def test_a_larger_vocabulary_reads_the_same_text_and_starts_with_the_old_rows(setting: Any, parts: Any) -> None:
    material = parts.adapt_material.material(setting)
    own, extension = material.extended("spa_Latn")
    plain = material.new("spa_Latn")
    for ours, theirs in ((own.test, plain.test), (own.dev, plain.dev)):
        assert ours.num_bytes == theirs.num_bytes
        assert extension.base_ids(ours.tokens) == theirs.tokens.tolist()
    model = material.load("dense")
    before = model(torch.arange(20).unsqueeze(0)).logits
    parts.adapt_trials.extend_rows(model, extension)
    assert torch.allclose(model(torch.arange(20).unsqueeze(0)).logits[..., : before.shape[-1]], before, atol=1e-6)
    weight = model.get_input_embeddings().weight
    assert torch.allclose(weight[extension.vocab_size], weight[list(extension.pieces[0])].mean(0))


def test_sentences_of_two_languages_take_turns(setting: Any, parts: Any) -> None:
    material = parts.adapt_material.material(setting)
    text, is_new = material.switching("spa_Latn")
    assert len(is_new) == len(text.tokens)
    said = material.tokenizer.decode(text.tokens)
    assert len(said.encode()) == text.num_bytes
    first = material.new("spa_Latn").documents.test[0]
    assert said.startswith(f"{first} ")
    turns = np.flatnonzero(np.diff(is_new.astype(int)))
    assert is_new[0]
    assert material.tokenizer.decode(text.tokens[: turns[0] + 1]) == first


def test_a_training_that_diverged_is_no_best_rate_and_ends_a_measurement(setting: Any, parts: Any) -> None:
    plan = parts.adapt.Plan(setting)
    system = parts.adapt_systems.SYSTEMS["dense"]
    jobs = [job for job, split in plan.ready() if job.system is system and job.language == "spa_Latn"]
    assert [job.learning_rate for job in jobs] == list(system.rates)
    for job, score in zip(jobs, (30.0, 20.0, None), strict=True):
        found = {"diverged": "so"} if score is None else {"dev": {"dense": {"perplexity_after_burn_in": score}}}
        plan.take(job, "dev", found)
    ready = [job for job, split in plan.ready() if split == "test"]
    assert {job.learning_rate for job in ready} == {system.rates[1]}
    assert {job.system.name for job in ready} == {
        n
        for n in parts.adapt_systems.SYSTEMS
        if n in ("dense", "dense-2x", "dense-4x", "dense-merges", "dense-merges-same-text")
    }
    with pytest.raises(SystemExit, match="dense spa_Latn: so"):
        plan.take(jobs[0], "test", {"diverged": "so"})


def test_the_number_of_trainings(setting: Any, parts: Any) -> None:
    wanted = replace(setting, languages=("mam_Latn", "est_Latn", "chr_Cher"), seeds=(0, 1))
    count, units = parts.adapt.Plan(wanted).num_trainings()
    assert units > count, "some have several times the tokens"
    twice, _ = parts.adapt.Plan(replace(wanted, seeds=(0, 1, 2, 3))).num_trainings()
    grids = 2 * count - twice
    assert grids == 2 * (3 + 3 + 1 + 1 + 1), "two rates more than the best, of every grid"
