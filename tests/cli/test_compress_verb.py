"""`sprachbund compress`: what it prints and refuses."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine

from sprachbund.cli.compress import _report


def test_sizes_and_routings_are_printed(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "smaller"
    said = cli("compress", finished, "--width", 8, "--out", out)
    assert said.status == 0, said.err
    facts = json.loads((out / "compress.json").read_text(encoding="utf-8"))
    assert said.out.splitlines() == _report({"folder": str(out), **facts}, asked=True)
    again = cli("compress", finished, "--width", 8, "--out", out)
    assert (again.status, again.last) == (
        2,
        f"sprachbund: {out} exists already; give another --out, or remove it first",
    )


def test_the_report_is_a_table() -> None:
    counts = {"before": {"total": 20_000, "active": 12_000}, "after": {"total": 15_000, "active": 11_000}}
    facts = {
        **{"folder": "out", "method": "svd", "rank": 4, "width": None, "parameters": counts},
        **{"experts": {"before": 10_000, "after": 5_000}, "dev": {"prefix": {"before": 20.0, "after": 21.0}}},
    }
    lines = _report(facts, asked=True)
    assert lines == [
        "out: experts factored at rank 4",
        "                        before           after   change",
        "parameters              20,000          15,000   -25.0%",
        "active a token          12,000          11,000    -8.3%",
        "of the experts          10,000           5,000   -50.0%",
        "perplexity on the dev text",
        "prefix                   20.00           21.00    +5.0%",
    ]
    unmeasured = {**facts, "dev": None, "method": "prune", "width": 16}
    assert _report(unmeasured, asked=False) == ["out: experts pruned to 16 units", *lines[1:5]]
    assert _report(unmeasured, asked=True)[5:] == [
        "note: what this costs was not measured, which takes the run that the model belongs to and its development text"
    ]


def test_json_for_machines(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished / "model", copy)  # belongs to no run
    said = cli("compress", copy, "--rank", 3, "--json")
    assert said.status == 0, said.err
    facts = json.loads(said.out)
    assert (facts["folder"], facts["method"], facts["dev"]) == (str(tmp_path / "copy-rank3"), "svd", None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "experts are made smaller in one way: give --width or --rank (neither was given)"),
        (("--width", 4, "--rank", 2), "experts are made smaller in one way: give --width or --rank (both were given)"),
        (("--width", 32), "width = 32: the experts have 32 units now; give one from 1 to 31"),
        (("--width", 0), "width = 0: the experts have 32 units now; give one from 1 to 31"),
        (("--rank", 0), "rank = 0: these experts can be brought to the ranks 1 to 16"),
        (("--rank", 12), "--rank 12: factors of it have no fewer parameters than the experts now; give at most 11"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: tuple[object, ...],
    sentence: str,
    finished: Path,
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli("compress", finished, "--out", "new", *arguments)
    assert (said.status, said.last) == (2, f"sprachbund: {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_mixture_is_one_sentence(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    said = cli("compress", finished / "dense", "--width", 4, "--out", tmp_path / "new")
    assert said.status == 2
    assert said.last == (
        f"sprachbund: {finished / 'dense'} is a 'llama' model and no mixture of this package, so there is nothing to "
        "compress; give a run, or the folder of a mixture"
    )
    assert list(tmp_path.iterdir()) == []
