"""The verb compare: its table, its JSON, and what is wrong with an argument."""

import json
from pathlib import Path

import pytest
from command_line import CommandLine

METHODS = "compare={methods: [dense, {small: {experts: {width: 4}}}], seeds: [0]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare") / "out"


def test_it_compares_and_prints_the_table(folder: Path, shared_tiny: Path, cli: CommandLine) -> None:
    said = cli("compare", shared_tiny, "--out", folder, "--workers", 1, "--set", METHODS, "--keep")
    assert said.status == 0, said.err
    assert "tiny: 4 languages, test split, best first" in said.out
    lines = [line.split("│")[1:3] for line in said.out.splitlines() if line.count("│") > 5]
    assert sorted(name.strip() for name, _ in lines[-3:]) == ["base", "dense", "small"]
    assert said.out.splitlines()[-1] == f"{folder}/compare.json, {folder}/compare.md, {folder}/compare.svg"
    assert "small, learning rate 0.01, seed 0: perplexity after burn-in on dev" in said.err
    assert (folder / "jobs/small/lr0.01-seed0/model/model.safetensors").is_file()


def test_the_same_again_prints_json_and_trains_nothing(folder: Path, shared_tiny: Path, cli: CommandLine) -> None:
    before = (folder / "jobs/small/lr0.01-seed0/model/model.safetensors").stat().st_mtime_ns
    said = cli("compare", shared_tiny, "--out", folder, "--workers", 1, "--set", METHODS, "--keep", "--json")
    assert json.loads(said.out) == json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert list(json.loads(said.out)["methods"]) == ["dense", "small"]
    assert (folder / "jobs/small/lr0.01-seed0/model/model.safetensors").stat().st_mtime_ns == before


def test_some_methods_only(folder: Path, shared_tiny: Path, cli: CommandLine) -> None:
    said = cli(
        "compare", shared_tiny, "--out", folder, "--workers", 1, "--set", METHODS, "--json", "--methods", "dense"
    )
    assert list(json.loads(said.out)["methods"]) == ["dense"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "densse"], "compare.methods: 'densse' does not come with the package, did you mean 'dense'"),
        (["--methods", ","], "--methods , names no method; give names separated by commas"),
        (["--set", "compare.seed=[0]"], "compare.seed is no key of a recipe, did you mean 'seeds'"),
        (["--set", "compare={methods: [{m: {experts: {width: 0}}}]}"], "compare.methods.m.experts.width: found 0; "),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, shared_tiny: Path, cli: CommandLine
) -> None:
    said = cli("compare", shared_tiny, "--out", tmp_path / "out", *arguments)
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_depend_on_its_compare_part(tmp_path: Path, shared_tiny: Path, cli: CommandLine) -> None:
    folder = tmp_path / "run"
    small = ["--set", "probe.steps=1"]
    assert cli("group", shared_tiny, "--out", folder, *small).status == 0
    said = cli("group", shared_tiny, "--out", folder, *small, "--set", METHODS)
    assert said.status == 0, said.err
    assert "groups" in said.skipped
    assert "compare" not in (folder / "recipe.yaml").read_text(encoding="utf-8")
