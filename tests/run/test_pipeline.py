"""Whole runs of the tiny recipe, through the command line."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from safetensors.numpy import load_file

from sprachbund.grouping import read_similarity
from sprachbund.run.directory import read_run

TAGS = ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]
STAGES = ["tokenizer", "corpora", "base", "probe", "similarity", "groups"]
STAGES += ["dense", "layers", "train", "evaluate", "report"]
SYSTEMS = ["base", "dense", "group", "prefix", "top_k"]
MEASURED = ("seconds", "tokens_per_second", "peak_memory_mb")  # of the machine, not of the models


def metrics_of(folder: Path) -> dict[str, Any]:
    """metrics.json without what is measured with a clock."""
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {key: value for key, value in found.items() if key not in MEASURED}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run; it works in any place."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


# --- what a run leaves


def test_every_file_of_a_run_is_there(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    model = {"config.json", "generation_config.json", "model.safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    expected = {"recipe.yaml", "events.jsonl", "corpora.json", "similarity.csv", "layers.csv", "groups.json"}
    expected |= {"metrics.json", "report.html", "probe/probe.json", *(f"probe/{tag}.safetensors" for tag in TAGS)}
    expected |= {f"dense/{name}" for name in model} | {f"tokenizer/{name}" for name in tokenizer}
    expected |= {f"{folder}/{name}" for folder in ("base", "model") for name in model | tokenizer}
    expected |= {f"stages/{stage}.json" for stage in STAGES}
    assert expected <= files
    assert not [name for name in files if name.endswith(".tmp") or name.startswith("checkpoints/")]


def test_metrics_have_the_schema(finished: Path, shared_tiny: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    assert (found["schema"], found["name"], found["preset"], found["seed"]) == (1, "tiny", "default", 0)
    assert found["tokens"] == {"base": 1536, "probe": 4 * 2 * 128, "dense": 2560, "moe": 2560}
    assert found["moe_layers"] == [0, 1]
    assert sorted(tag for group in found["groups"] for tag in group) == sorted(TAGS)
    assert len(found["groups"]) == 2
    assert found["parameters"]["dense"] < found["parameters"]["active"] < found["parameters"]["moe"]
    assert set(STAGES[:-2]) == set(found["seconds"])
    for tag, language in found["languages"].items():
        assert tag in found["groups"][language["group"]]
        assert language["tokens"] >= 255
        for kind in ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in"):
            assert list(language[kind]) == SYSTEMS
            assert all(0 < value < 400 for value in language[kind].values())
        assert all(0 <= value <= 1 for value in language["router_accuracy"].values())
        for share in language["router_share"].values():
            assert sum(share) == pytest.approx(1)
        bits = language["bits_per_byte"]["dense"] * language["bytes"]
        assert 2 ** (bits / language["tokens"]) == pytest.approx(language["perplexity"]["dense"])
    perplexities = [language["perplexity"]["prefix"] for language in found["languages"].values()]
    assert found["average"]["perplexity"]["prefix"] == pytest.approx(math.prod(perplexities) ** 0.25)


def test_training_helped_and_the_groups_follow_the_alphabets(finished: Path) -> None:
    found = metrics_of(finished)
    assert found["average"]["perplexity"]["dense"] < found["average"]["perplexity"]["base"]
    assert found["average"]["perplexity"]["group"] < found["average"]["perplexity"]["base"]
    assert {frozenset(group) for group in found["groups"]} == {frozenset(TAGS[:2]), frozenset(TAGS[2:])}
    assert found["average"]["router_accuracy"]["prefix"] > 0.9


def test_the_small_files_say_the_same_as_the_metrics(finished: Path) -> None:
    found = metrics_of(finished)
    groups = json.loads((finished / "groups.json").read_text())
    assert groups == {tag: number for number, members in enumerate(found["groups"]) for tag in members}
    rows = list(csv.DictReader((finished / "layers.csv").open()))
    assert [int(row["layer"]) for row in rows if row["chosen"] == "1"] == found["moe_layers"]
    similarity = read_similarity(finished / "similarity.csv")
    assert list(similarity.tags) == TAGS
    assert np.allclose(np.diag(similarity.values_LL), 1)
    corpora = json.loads((finished / "corpora.json").read_text())
    assert all(corpora[tag]["tokens"] > 32 and corpora[tag]["test_documents"] for tag in TAGS)


def test_events_have_one_line_per_step_and_every_loss(finished: Path) -> None:
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    for stage, steps in (("base", 6), ("dense", 10), ("train", 10)):
        mine = [event for event in events if event["stage"] == stage and event["event"] == "step"]
        assert [event["step"] for event in mine] == list(range(1, steps + 1))
        assert all(math.isfinite(event["loss"]) and event["tokens_per_second"] > 0 for event in mine)
    mixture = [event for event in events if event["stage"] == "train" and event["event"] == "step"]
    for event, weight in zip(mixture, [1.28, *[1.0] * 9], strict=True):
        assert event["loss"] == pytest.approx(event["language_model_loss"] + weight * event["router_loss"], rel=1e-5)


def test_the_recipe_is_kept_with_every_default(finished: Path) -> None:
    assert read_run(finished).experts.router_rate_factor == 4.0
    assert "router_rate_factor: 4.0" in (finished / "recipe.yaml").read_text()


def test_the_report_is_one_page_about_this_run(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert all(name in page for name in ("Romanian", "Italian", "Russian", "Ukrainian"))


# --- again


def test_a_second_call_skips_everything(copied: Path, shared_tiny: Path, cli: CommandLine) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    said = cli("run", shared_tiny, "--out", copied)
    assert said.status == 0
    assert sorted(said.skipped) == sorted(STAGES)
    assert said.out.splitlines()[-1] == f"report: {copied}/report.html"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")} == before


def test_one_seed_gives_one_result(finished: Path, shared_tiny: Path, tmp_path: Path, cli: CommandLine) -> None:
    assert cli("run", shared_tiny, "--out", tmp_path / "twin").status == 0
    assert metrics_of(tmp_path / "twin") == metrics_of(finished)
    for folder in ("base", "dense", "model"):
        assert_same_weights(tmp_path / "twin" / folder, finished / folder)


def test_another_seed_gives_another_result(finished: Path, shared_tiny: Path, tmp_path: Path, cli: CommandLine) -> None:
    said = cli("train", shared_tiny, "--out", tmp_path / "other", "--seed", 1)
    assert (said.status, said.out) == (0, f"model: {tmp_path}/other/model\n")
    ours, theirs = (load_file(folder / "base/model.safetensors") for folder in (finished, tmp_path / "other"))
    assert not np.array_equal(ours["model.norm.weight"], theirs["model.norm.weight"])


def test_a_changed_evaluation_trains_nothing(copied: Path, shared_tiny: Path, cli: CommandLine) -> None:
    said = cli("evaluate", shared_tiny, "--out", copied, "--set", "evaluate.tokens=128", "--update", "--json")
    assert said.status == 0
    assert said.skipped == STAGES[:-2]
    assert json.loads(said.out)["languages"]["ita_Latn"]["tokens"] < 255


def test_a_changed_number_of_groups_keeps_base_and_probe(copied: Path, cli: CommandLine) -> None:
    said = cli("group", copied, "--groups", 3, "--update", "--json")
    assert said.skipped == ["tokenizer", "corpora", "base", "probe", "similarity"]
    assert sorted(len(group) for group in json.loads(said.out)["groups"]) == [1, 1, 2]


@pytest.mark.parametrize("preset", ["native", "paper"])
def test_another_preset_keeps_what_it_shares(
    preset: str, copied: Path, shared_tiny: Path, cli: CommandLine, finished: Path
) -> None:
    said = cli("run", shared_tiny, "--out", copied, "--set", f"preset={preset}", "--update")
    assert said.status == 0, said.err
    kept = ["tokenizer", "corpora", "base", *(STAGES[3:7] if preset == "native" else [])]
    assert said.skipped[: len(kept)] == kept
    assert not {"train", "evaluate", "report"} & set(said.skipped)
    config = json.loads((copied / "model/config.json").read_text())
    assert config["expert_kind"] == ("copy" if preset == "paper" else "shared")
    assert config["router_gradient"] == ("through" if preset == "paper" else "detach")
    assert metrics_of(copied)["preset"] == preset
    events = [json.loads(line) for line in (copied / "events.jsonl").read_text().splitlines()]
    routings = [e["routing"] for e in events if e["stage"] == "train" and e["event"] == "step"]
    assert routings == ["group"] + ["top_k"] * 9
    assert metrics_of(copied)["average"] != metrics_of(finished)["average"]


def test_a_changed_corpus_is_seen(tiny: Path, cli: CommandLine) -> None:
    arguments = ("probe", tiny, "--out", tiny.parent / "run")
    assert cli(*arguments).skipped == []
    with (tiny.parent / "corpora" / "ita.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "parole del tutto nuove, mai viste prima di oggi " * 3}) + "\n")
    said = cli(*arguments)
    assert (said.status, said.skipped) == (2, [])
    assert said.last == (
        f"sprachbund: {tiny.parent / 'run'}: the stage base is done, but its inputs have changed since (recipe, "
        "corpora, base or package); give --update to compute it anew, or another --out"
    )
    said = cli(*arguments, "--update")
    assert (said.status, said.skipped) == (0, ["tokenizer", "corpora"])  # these were made anew before the refusal


def test_a_run_may_move_with_its_corpora(tiny: Path, cli: CommandLine) -> None:
    assert cli("probe", tiny, "--out", tiny.parent / "run").status == 0
    moved = tiny.parent / "moved"
    shutil.copytree(tiny.parent / "corpora", moved / "corpora")
    shutil.copy(tiny, moved)
    shutil.copytree(tiny.parent / "run", moved / "run")
    said = cli("probe", moved / tiny.name, "--out", moved / "run", "--update")
    assert (said.status, said.skipped) == (0, ["tokenizer", "corpora", "base", "probe", "similarity"])


def test_a_control_that_was_not_kept_comes_back_when_it_is_needed(tiny: Path, cli: CommandLine) -> None:
    arguments = ("run", tiny, "--out", tiny.parent / "run", "--set", "dense.keep=false")
    assert cli(*arguments).status == 0
    assert not (tiny.parent / "run/dense").exists()
    before = metrics_of(tiny.parent / "run")
    assert cli(*arguments).skipped[-2:] == ["evaluate", "report"]
    said = cli(*arguments, "--set", "evaluate.tokens=300", "--update")
    assert said.status == 0, said.err
    after = metrics_of(tiny.parent / "run")
    assert after["average"]["perplexity"].keys() == before["average"]["perplexity"].keys()
    assert not (tiny.parent / "run/dense").exists()


def test_a_finished_run_reads_no_corpus(finished: Path, tmp_path: Path, cli: CommandLine) -> None:
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sprachbund.run.data.split_documents", None)  # would fail
        said = cli("report", copied)
    assert said.status == 0, said.err
    assert {"corpora", "train", "evaluate", "report"} <= set(said.skipped)


# --- other runs


def test_given_groups_and_no_control(tiny: Path, cli: CommandLine) -> None:
    groups = {"ron_Latn": "a", "rus_Cyrl": "a", "ita_Latn": "b", "ukr_Cyrl": "b"}
    (tiny.parent / "groups.json").write_text(json.dumps(groups))
    out = tiny.parent / "run"
    sets = ("--set", "groups={given: groups.json}", "--set", "dense.train=false", "--set", "layers={given: [1]}")
    said = cli("group", tiny, "--out", out, *sets)
    assert said.status == 0
    assert said.out.splitlines()[1:] == [
        "    0     2       -       -  ron_Latn rus_Cyrl",
        "    1     2       -       -  ita_Latn ukr_Cyrl",
        "  all     4       -       -  (given)",
    ]
    assert cli("layers", tiny, "--out", out, *sets).out == "layers: 1\n"
    assert not (out / "probe").exists()  # given groups and layers need no probe
    assert not (out / "similarity.csv").exists()
    said = cli("run", out)
    assert said.status == 0, said.err
    found = metrics_of(out)
    assert found["groups"] == [["ron_Latn", "rus_Cyrl"], ["ita_Latn", "ukr_Cyrl"]]
    assert found["moe_layers"] == [1]
    assert list(found["average"]["perplexity"]) == ["base", "group", "prefix", "top_k"]
    assert "change_vs_dense" not in found
    assert not (out / "dense").exists()
    assert (out / "report.html").exists()


def test_a_control_that_is_not_kept_is_trained_and_scored(copied: Path, cli: CommandLine, finished: Path) -> None:
    said = cli("run", copied, "--set", "dense.keep=false", "--update")
    assert said.status == 0, said.err
    assert not (copied / "dense").exists()
    assert metrics_of(copied) == metrics_of(finished)
    assert sorted(cli("run", copied).skipped) == sorted(STAGES)


def test_a_local_base_is_used_where_it_lies(tiny: Path, finished: Path, cli: CommandLine) -> None:
    base = Path(shutil.copytree(finished / "base", tiny.parent / "my-base"))
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    out = tiny.parent / "run"
    said = cli("run", tiny, "--set", "base=my-base", "--out", out)
    assert said.status == 0, said.err
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert not (out / "base").exists()
    found, made = metrics_of(out), metrics_of(finished)
    assert found["languages"]["ita_Latn"]["perplexity"] == made["languages"]["ita_Latn"]["perplexity"]
    assert found["tokens"] == {"probe": 1024, "dense": 2560, "moe": 2560}
    assert read_run(out).base.path == str(base)


def test_expand_writes_a_mixture_that_computes_what_the_base_does(copied: Path, cli: CommandLine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    import sprachbund.modeling  # noqa: F401  (the mixture's classes)

    said = cli("expand", copied)
    assert (said.status, said.out) == (0, f"expanded: {copied}/expanded\n")
    base, mixture = (AutoModelForCausalLM.from_pretrained(copied / name) for name in ("base", "expanded"))
    ids = torch.arange(20).unsqueeze(0)
    assert torch.allclose(mixture(ids).logits, base(ids).logits, atol=1e-6)
