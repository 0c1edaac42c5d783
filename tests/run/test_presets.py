"""Whole runs with what the presets and the other kinds of experts make of the tiny recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from sprachbund.modeling.base import load_config
from sprachbund.recipe_file import build_recipe, dump_recipe

# What the preset "default" has of its own, and the tiny recipe turns off.
DEFAULT = ["experts.by=language", "experts.rows=group", "experts.budget=4.0"]


def finish(cli: CommandLine, recipe: Path, out: Path, *settings: str) -> dict[str, Any]:
    arguments = [word for setting in settings for word in ("--set", setting)]
    said = cli("run", recipe, "--out", out, *arguments)
    assert said.status == 0, said.err
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def test_the_default_gives_each_language_an_expert_and_each_group_rows(
    tiny: Path, tmp_path: Path, cli: CommandLine
) -> None:
    out = tmp_path / "out"
    metrics = finish(cli, tiny, out, *DEFAULT)
    config = load_config(out / "model")
    assert sorted(config.groups.values()) == [0, 1, 2, 3]
    assert sorted(set(config.row_of_group)) == [0, 1]
    assert metrics["parameters"]["moe"] <= 4 * metrics["parameters"]["dense"]
    assert len(metrics["groups"]) == 2
    for language in metrics["languages"].values():
        assert len(language["router_share"]["prefix"]) == 2
        assert sum(language["router_share"]["prefix"]) == pytest.approx(1)
        for routing, accuracy in language["router_accuracy"].items():  # of the group, though languages are told apart
            assert accuracy == pytest.approx(language["router_share"][routing][language["group"]])
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    tokens = [line["tokens"] for line in lines if line["event"] == "tokens"][-1]
    groups = json.loads((out / "groups.json").read_text(encoding="utf-8"))
    for tag, counts in tokens.items():  # every token went to the language's own group
        assert [group for group, count in enumerate(counts) if count] == [groups[tag]]
    said_on_page = "each language has its own expert in 2 of 2 layers; each group also has its own rows"
    assert said_on_page in (out / "report.html").read_text(encoding="utf-8")
    said = cli("export", out, "--to", "dense", "--language", "ron_Latn", "--out", tmp_path / "specialist")
    assert said.status == 0, said.err
    said = cli("export", out, "--to", "native", "--out", tmp_path / "native")
    assert said.status == 2
    assert "embedding" in said.err
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        (["experts.kind=hierarchy", "experts.width=8", "experts.language_width=2"], 4),
        (["experts.kind=adapter"], 2),
        (["experts.rank=3", "experts.rows=all", "experts.gate_pairs=64"], 2),
        (["experts.kind=copy", *DEFAULT], 4),
        (["groups.count=1", "experts.width=8"], 1),
    ],
    ids=["hierarchy", "adapter", "low rank and pairs", "copies by language", "one group"],
)
def test_every_kind_of_experts_runs_to_a_report(
    settings: list[str], groups: int, tiny: Path, tmp_path: Path, cli: CommandLine
) -> None:
    metrics = finish(cli, tiny, tmp_path / "out", *settings, "dense.train=false")
    config = load_config(tmp_path / "out/model")
    assert config.num_groups == groups
    assert config.gate_pairs == (64 if "experts.gate_pairs=64" in settings else 0)
    assert (tmp_path / "out/report.html").is_file()
    assert set(metrics["average"]["perplexity"]) == {"base", "group", "prefix", "top_k"}


def test_steps_may_alternate_between_groups_and_routers(tiny: Path, tmp_path: Path, cli: CommandLine) -> None:
    stages = "train.stages=[{share: 1.0, routing: alternate, router_loss: 0.5}]"
    finish(cli, tiny, tmp_path / "out", stages, "dense.train=false", "train.log_every=1")
    events = [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["stage"] == "train" and event["event"] == "step"]
    assert len(steps) == 10
    assert all(step["routing"] == "alternate" and step["router_loss"] > 0 for step in steps)


def test_what_the_preset_has_and_the_recipe_turns_off_stays_off(tiny: Path) -> None:
    recipe = build_recipe(tiny.read_text(encoding="utf-8"), name="tiny", folder=tiny.parent)
    assert (recipe.experts.budget, recipe.experts.rows) == (None, None)
    again = build_recipe(dump_recipe(recipe), name="tiny", folder=tiny.parent)
    assert again == recipe
