"""`sprachbund split`, `merge`, `prune`, `keep` and `reassign`: what they print and refuse."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import CommandLine

from sprachbund.cli.regroup import report
from sprachbund.modeling.base import load_config
from sprachbund.modeling.regroup_plan import groups_of


def test_a_merge_prints_what_it_costs(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    said = cli("merge", finished, "--groups", "1, 0", "--weights", "1,3", "--out", out)
    assert said.status == 0, said.err
    facts = json.loads((out / "regroup.json").read_text(encoding="utf-8"))
    assert facts["sources"] == [{"1": 0.25, "0": 0.75}]
    lines = said.out.splitlines()
    assert lines == list(report({"folder": str(out), **facts}, asked=True))
    assert lines[0] == f"{out}: the groups 1 (weight 0.25), 0 (weight 0.75) are merged into group 0"
    assert sorted(line.split()[1] for line in lines if line.startswith("group, ")) == [
        *("ita_Latn", "mean", "ron_Latn", "rus_Cyrl", "ukr_Cyrl")
    ]
    again = cli("merge", finished, "--groups", "0,1", "--out", out)
    assert (again.status, again.last) == (
        2,
        f"sprachbund: {out} exists already; give another --out, or remove it first",
    )


def test_the_report_is_a_table() -> None:
    scores = {"a": (10.0, 10.5), "b": (20.0, 20.2), "c": (30.0, 30.0)}
    facts = {
        **{"folder": "out", "done": ["before", "the groups 0, 1 are merged into group 0"], "paths": [["d"]]},
        **{"groups": {"before": [["a"], ["b"], ["c"]], "after": [["a", "b"], ["c"]]}, "changed": ["b", "a"]},
        **{"sources": [{"0": 0.5, "1": 0.5}, {"2": 1.0}], "gone": []},
        "parameters": {"before": {"total": 20_000}, "after": {"total": 15_000}},
        "dev": {
            "mean": {"prefix": {"before": 20.0, "after": 21.0}},
            "languages": {tag: {"group": {"before": old, "after": new}} for tag, (old, new) in scores.items()},
        },
    }
    lines = list(report(facts, asked=True))
    assert lines == [
        "out: the groups 0, 1 are merged into group 0",
        "group   was         languages",
        "0       0+1         a, b",
        "1       2           c",
        "path                d",
        "parameters 20,000, now 15,000 (-25.0%)",
        "with the group given all other languages compute what they did, to the bit; not so b, a",
        "perplexity on the dev text        before       after   change",
        "prefix, mean                       20.00       21.00    +5.0%",
        "group, a                           10.00       10.50    +5.0%",
        "group, b                           20.00       20.20    +1.0%",
    ]
    unmeasured = list(report({**facts, "dev": None, "changed": []}, asked=True))
    assert unmeasured[6:] == [
        "with the group given all languages compute what they did, to the bit",
        "note: what this costs was not measured, which takes the run that the model belongs to and its development "
        "text",
    ]
    assert list(report({**facts, "dev": None, "changed": []}, asked=False)) == unmeasured[:-1]


def test_json_for_machines_and_folders_beside_the_model(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished / "model", copy)  # belongs to no run
    members = groups_of(load_config(copy)).members
    group, several = max(enumerate(members), key=lambda item: len(item[1]))
    first, rest = several[0], several[1:]
    commands = {
        f"split{group}": ("split", copy, "--group", group, "--into", f"{first} | {', '.join(rest)}", "--seed", 2),
        "merge1-0": ("merge", copy, "--groups", "1,0"),
        "prune1": ("prune", copy, "--group", "1"),
        "keep2": ("keep", copy, "--languages", f"{first},{rest[0]}"),
        f"{first}-to-{1 - group}": ("reassign", copy, first.split("_")[0], "--to", 1 - group),
    }
    for word, arguments in commands.items():
        said = cli(*arguments, "--json")
        assert said.status == 0, said.err
        facts = json.loads(said.out)
        assert (facts["folder"], facts["verb"], facts["dev"]) == (str(tmp_path / f"copy-{word}"), arguments[0], None)
        assert (tmp_path / f"copy-{word}/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("merge", "--groups", "1"), "a merge takes two or more different groups; found 1"),
        (("merge", "--groups", ""), "a merge takes two or more different groups; found none"),
        (
            ("merge", "--groups", "0,1", "--weights", "1,x"),
            "--weights 1,x: give numbers with commas between them",
        ),
        (("merge", "--groups", "0,1", "--weights", "nan,1"), "the weights nan, 1 are no shares; give numbers from 0, "),
        (("split", "--group", "ron", "--into", "ron"), "a side of the split is empty: group "),
        (
            ("prune", "--group", "-1"),
            "group -1 is none of this model's: give 0 to 1, or a language; its groups are",
        ),
        (("keep", "--languages", "ron,rus,ukr,ita"), "these are all of the model's 4 languages: there is nothing to "),
        (("keep", "--languages", "uk,ukr"), "ukr_Cyrl is named twice; name each once"),
        (("reassign", "uk", "--to", "ukr"), "ukr_Cyrl is in group "),
        (("reassign", "swh", "--to", "0"), "language = 'swh' is none of this model's; it knows "),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: tuple[str, ...],
    sentence: str,
    finished: Path,
    cli: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli(arguments[0], finished, *arguments[1:], "--out", "new")
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: {sentence}"), said.last
    assert list(tmp_path.iterdir()) == []
