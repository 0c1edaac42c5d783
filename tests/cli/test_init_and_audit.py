import errno
import json
import os
from pathlib import Path

import pytest
from command_line import CommandLine

from sprachbund.recipe_file import PRESETS, load_recipe, packaged


def test_init_writes_a_recipe_that_loads(tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "new" / "mine.yaml"
    said = cli("init", path)
    assert (said.status, said.err) == (0, "")
    assert said.out == f"{path} written; edit it, then: sprachbund audit {path} && sprachbund run {path}\n"
    assert path.read_text(encoding="utf-8") == packaged("init")
    assert load_recipe(path).name == "my-run"


def test_init_overwrites_nothing(tmp_path: Path, cli: CommandLine) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    said = cli("init", path)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {path} exists and is left as it is; give another name\n",
    )
    assert path.read_text() == "precious"


@pytest.mark.parametrize("preset", PRESETS)
def test_init_prints_a_preset(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("init", "--preset", preset)
    assert (said.status, said.out) == (0, packaged(preset))
    assert list(tmp_path.iterdir()) == []


def test_init_names_the_nearest_preset(cli: CommandLine) -> None:
    said = cli("init", "--preset", "papr")
    assert (said.status, said.err) == (
        2,
        "sprachbund: --preset papr is unknown, did you mean 'paper'? One of: default, paper, native.\n",
    )
    assert cli("init", "--preset", "x").err == ("sprachbund: --preset x is unknown. One of: default, paper, native.\n")


def test_init_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    said = cli("init", tmp_path / "mine.yaml")
    assert said.status == 2
    assert said.err.startswith(f"sprachbund: {tmp_path}/.mine.yaml.")
    assert said.err.endswith(".tmp cannot be written (Read-only file system); give another --out\n")
    assert list(tmp_path.iterdir()) == []


def test_audit_shows_every_language_uncut(shared_tiny: Path, cli: CommandLine) -> None:
    said = cli("audit", shared_tiny)
    assert said.status == 0
    assert "…" not in said.out
    rows = [line.split() for line in said.out.splitlines() if "_" in line and line.startswith("│")]
    assert [row[1] for row in rows] == ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]
    assert all(row[5] == "80" for row in rows)


def test_audit_as_json(shared_tiny: Path, cli: CommandLine) -> None:
    rows = json.loads(cli("audit", shared_tiny, "--json").out)
    assert all(1 < row["bytes_per_token"] == row["bytes"] / row["tokens"] < 5 for row in rows)
    assert [row["tag"] for row in rows] == ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]
    assert [(row["documents"], row["warnings"]) for row in rows] == [(80, [])] * 4
    assert sum(row["share"] for row in rows) == pytest.approx(1)


@pytest.mark.parametrize("loaded", [True, False])
def test_audit_counts_the_tokens_of_a_base(loaded: bool, shared_tiny: Path, finished: Path, cli: CommandLine) -> None:
    base = ["--set", f"base={finished}/base"] if loaded else []
    rows = json.loads(cli("audit", shared_tiny, "--json", *base).out)
    packed = json.loads((finished / "corpora.json").read_text())
    for row in rows:  # packed streams hold one separator after each document
        assert row["tokens"] + row["train_documents"] == packed[row["tag"]]["tokens"]


def test_audit_warns_once_and_still_succeeds(tiny: Path, cli: CommandLine) -> None:
    said = cli("audit", tiny, "--set", "languages.ita_Latn=corpora/rus.jsonl")
    assert said.status == 0
    assert said.out.replace("\n", " ").count("ita_Latn: only 0% of the letters are in the script Latn") == 1


def test_audit_of_a_wrong_recipe(tiny: Path, cli: CommandLine) -> None:
    said = cli("audit", tiny, "--set", "languages.ita_Latn=corpora/vocabolario.txt")
    assert said.status == 2
    assert "corpora/vocabolario.txt does not exist" in said.err
    assert said.err.count("\n") == 1
