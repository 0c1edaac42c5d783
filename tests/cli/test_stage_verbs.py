"""The verbs of a run on a recipe and on a run, and of bare files."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine

SIMILARITY = "language,de,nl,ru,uk\nde,1,.5,.1,0\nnl,.5,1,.1,0\nru,.1,.1,1,.75\nuk,0,0,.75,1\n"
GROUPS = """\
group  size    mean     min  languages
    0     2  0.5000  0.5000  de nl
    1     2  0.7500  0.7500  ru uk
  all     4  0.6250  0.5000  (mean, exact, no pair below 0.3500, proven optimal)
"""
NORMS = {"a": {"delta_norm_ffn": [0.5, 0.875, 1.0]}}
LAYERS = """\
layer        norm  normalised  experts
    0         0.5       0.000       no
    1       0.875       0.750      yes
    2           1       1.000      yes
2 of 3 layers have experts at epsilon 0.6; bitmask 6
"""


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


# --- bare files


def test_groups_of_a_bare_file(tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "s.csv"
    path.write_text(SIMILARITY)
    said = cli("group", path, "--groups", 2, "--resamples", 0)
    assert (said.status, said.out, said.err) == (0, GROUPS, "")
    found = json.loads(cli("group", path, "--groups", 2, "--method", "greedy-seeded", "--json").out)
    assert (found["groups"], found["method"]) == ([["ru", "uk"], ["de", "nl"]], "greedy-seeded")
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--groups is missing: give the number of groups, for example --groups 6, or --groups auto"),
        (("--groups", 5), "5 groups"),
        (("--groups", 0), "--groups: found 0; give a whole number from 1, or auto"),
        (("--groups", 2, "--method", "best"), "'best'"),
    ],
)
def test_wrong_wishes_for_a_bare_file(
    arguments: tuple[object, ...], message: str, tmp_path: Path, cli: CommandLine
) -> None:
    (tmp_path / "s.csv").write_text(SIMILARITY)
    said = cli("group", tmp_path / "s.csv", *arguments)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("sprachbund: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_bare_file_that_is_wrong_or_missing(tmp_path: Path, cli: CommandLine) -> None:
    said = cli("group", tmp_path / "s.csv", "--groups", 2)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {tmp_path}/s.csv: cannot be read (No such file or directory); "
        "give the path of a readable file.\n",
    )
    (tmp_path / "s.csv").write_text(SIMILARITY.replace("ru,.1,.1,1,.75", "ru,.1,.1,1,x"))
    assert cli("group", tmp_path / "s.csv", "--groups", 2).err == (
        f"sprachbund: {tmp_path}/s.csv, line 4: found 'x' for 'ru' and 'uk'; "
        "give a finite number, with a point for decimals.\n"
    )


def test_layers_of_a_bare_file(tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "norms.json"
    path.write_text(json.dumps(NORMS))
    said = cli("layers", path, "--epsilon", 0.6)
    assert (said.status, said.out, said.err) == (0, LAYERS, "")
    assert json.loads(cli("layers", path, "--epsilon", 0.6, "--json").out)["layers"] == [1, 2]
    assert cli("layers", path).err == (
        "sprachbund: --epsilon is missing: give a threshold between 0 and 1, for example --epsilon 0.6; or --top\n"
    )
    assert cli("layers", path, "--epsilon", 2).status == 2


# --- a run, verb by verb


def test_every_stage_can_be_asked_for_alone(tiny: Path, cli: CommandLine) -> None:
    out = tiny.parent / "run"
    assert cli("probe", tiny, "--out", out).out == f"deviation: {out}/similarity/deviation.csv\n"
    assert not (out / "groups.json").exists()
    assert cli("layers", out).out == "layers: 0 1\n"
    assert json.loads(cli("layers", out, "--json").out) == {"layers": [0, 1], "bitmask": 3, "experts": None}
    groups = [line.split() for line in cli("group", out).out.splitlines()]
    assert [group[:2] for group in groups[1:4]] == [["0", "2"], ["1", "2"], ["all", "4"]]
    assert [group[4:] for group in groups[1:3]] == [["ita_Latn", "ron_Latn"], ["rus_Cyrl", "ukr_Cyrl"]]
    assert not (out / "model").exists()
    said = cli("train", out)
    assert said.out == f"model: {out}/model\n"
    assert sorted(said.skipped) == ["base", "corpora", "groups", "layers", "probe", "similarity", "tokenizer"]
    assert (out / "dense" / "model.safetensors").exists()
    assert not (out / "metrics.json").exists()


def test_a_run_is_opened_by_its_folder(copied: Path, cli: CommandLine) -> None:
    said = cli("report", copied)
    assert (said.status, said.out) == (0, f"report: {copied}/report.html\n")
    assert "report" in said.skipped


def test_evaluate_prints_a_whole_table_and_where_the_numbers_are(copied: Path, cli: CommandLine) -> None:
    lines = cli("evaluate", copied).out.splitlines()
    assert "tiny: average over 4 languages, test split" in lines[0]
    assert lines[-1] == f"metrics: {copied}/metrics.json"
    assert "…" not in "".join(lines)
    systems = [line.split()[1] for line in lines if line.startswith("│ ")]
    assert systems == ["base", "dense", "group", "prefix", "top_k"]


def test_json_is_the_metrics_file(copied: Path, cli: CommandLine) -> None:
    for verb in ("run", "evaluate"):
        assert json.loads(cli(verb, copied, "--json").out) == json.loads((copied / "metrics.json").read_text())


def test_a_change_to_a_run_needs_update(copied: Path, cli: CommandLine) -> None:
    said = cli("layers", copied, "--epsilon", 0.5)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {copied} holds a run of another recipe (differing: layers.all, layers.epsilon); "
        "give another --out, or --update to recompute what changed\n",
    )
    said = cli("layers", copied, "--epsilon", 1, "--update", "--json")
    assert said.status == 0
    assert len(json.loads(said.out)["layers"]) == 1


def test_a_run_in_another_folder_leaves_the_first_alone(copied: Path, tmp_path: Path, cli: CommandLine) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    said = cli("group", copied, "--out", tmp_path / "other", "--seed", 5)
    assert said.status == 0, said.err
    assert said.skipped == []
    assert (tmp_path / "other" / "groups.json").exists()
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_runs_are_named_after_their_recipe_and_seed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tiny.parent)
    sets = ("--set", "languages.ita_Latn=missing.txt")  # stops at the corpora, which is soon enough
    cli("run", "tiny.yaml", *sets)
    cli("run", "tiny.yaml", *sets, "--seed", 3)
    cli("demo", "--set", "name=show", "--set", "languages.spa_Latn={file: missing.txt}")
    assert sorted(path.name for path in (tiny.parent / "runs").iterdir()) == ["show", "tiny", "tiny-seed3"]


def test_the_demo_takes_changes(tmp_path: Path, cli: CommandLine) -> None:
    said = cli("demo", "--out", tmp_path / "demo", "--set", "languages.spa_Latn={file: missing.txt}")
    assert said.status == 2
    assert said.err.startswith("sprachbund: languages.spa_Latn: ")
