"""`sprachbund adapt`: what it prints, its exit statuses, and what it refuses."""

import json
import random
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A corpus of made-up words."""
    draw = random.Random("mam")
    words = ["".join(draw.choices("aeioukqxtzlnm", k=draw.randint(2, 6))) for _ in range(60)]
    lines = [json.dumps({"text": " ".join(draw.choices(words, k=12))}) for _ in range(80)]
    (tmp_path / "mam.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "mam.jsonl"


def test_a_language_is_added(cli: CommandLine, finished: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["adapt", finished, "--language", f"mam_Latn={text}", "--tokens", 1024, "--path", "rows"]
    said = cli(*arguments, "--out", tmp_path / "out", "--max-forgetting", 9)
    assert said.status == 0, said.err
    assert "mam_Latn" in said.out
    assert "report.html" in said.out
    again = cli(*arguments, "--out", tmp_path / "out", "--max-forgetting", 9, "--json")
    facts = json.loads(again.out)
    assert facts["languages"]["mam_Latn"]["group_id"] == 2
    assert cli("inspect", tmp_path / "out").out.count("path 2") == 1


def test_a_language_that_loses_too_much_is_exit_status_3(
    cli: CommandLine, finished: Path, text: Path, tmp_path: Path
) -> None:
    said = cli(
        *("adapt", finished, "--language", f"mam_Latn={text}", "--join", "ita_Latn", "--tokens", 2048),
        *("--learning-rate", 0.05, "--max-forgetting", 0, "--out", tmp_path / "out"),
    )
    assert said.status == 3
    assert "the model has forgotten" in said.err
    assert (tmp_path / "out/model/config.json").is_file()


def test_what_is_refused_in_one_sentence(cli: CommandLine, finished: Path, text: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "base", tmp_path / "dense")
    for arguments, words in [
        ([finished, "--language", f"ron_Latn={text}"], "the model has this language already"),
        ([finished, "--language", "mam_Latn=gone.jsonl"], "gone.jsonl"),
        ([tmp_path / "dense", "--language", f"mam_Latn={text}"], "no mixture of this package"),
        ([tmp_path / "nothing", "--language", f"mam_Latn={text}"], "nothing"),
    ]:
        said = cli("adapt", *arguments, "--out", tmp_path / "out")
        assert said.status == 2, said
        assert words in said.err
        assert len(said.err.strip().splitlines()) == 1
        assert not (tmp_path / "out/model").exists()
