"""`sprachbund export`: what it writes, says and refuses. Two exports go through the fresh process, end to end."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.cli import export as verb
from sprachbund.run.exporting import measure_routings


def test_a_run_becomes_a_native_checkpoint(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "native"
    said = cli("export", finished, "--to", "native", "--out", out)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == f"{out}: Qwen2MoeForCausalLM"
    assert re.fullmatch(
        r"loaded in plain transformers in a fresh process: the same greedy generation; logits differ by at most "
        r"\d\.\de[-+]\d\d of the largest",
        lines[1],
    )
    assert lines[2].startswith("note: llama.cpp: not exact")
    facts = json.loads((out / "export.json").read_text(encoding="utf-8"))
    dev = measure_routings(finished / "model", finished)
    assert facts["dev"] == dev
    assert dev is not None
    assert lines[3] == (
        f"perplexity on the dev text: group {dev['group']:.2f}, prefix {dev['prefix']:.2f}, top_k {dev['top_k']:.2f}"
    )
    assert any(line.startswith("warning: ") for line in lines) == (dev["top_k"] / dev["prefix"] > 1.01)
    assert facts["difference"] <= 2e-6
    assert AutoConfig.from_pretrained(out).model_type == "qwen2_moe"
    assert {"tokenizer.json", "README.md", "model.safetensors"} <= {path.name for path in out.iterdir()}
    again = cli("export", finished, "--to", "native", "--out", out)
    assert (again.status, again.last) == (
        2,
        f"sprachbund: {out} exists already; give another --out, or remove it first",
    )


def test_a_language_becomes_a_dense_model(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    out, copy = tmp_path / "dense", tmp_path / "copy"
    shutil.copytree(finished / "model", copy)  # belongs to no run
    said = cli("export", copy, "--to", "dense", "--language", "it", "--out", out, "--json")
    assert said.status == 0, said.err
    facts = json.loads(said.out)
    config = AutoConfig.from_pretrained(copy)
    group = config.groups["ita_Latn"]
    members = [tag for tag in config.languages if config.groups[tag] == group]
    assert (facts["folder"], facts["target"], facts["group"]) == (str(out), "dense", group)
    assert facts["languages"] == members
    assert facts["difference"] <= 1e-6
    model = AutoModelForCausalLM.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.intermediate_size == 64
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_table_is_printed(finished: Path, cli: CommandLine) -> None:
    said = cli("export", "--list", finished)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0] == "target        exact  why not, and what to know"
    verdicts = {line.split()[0]: line.split()[1] for line in lines[1:-1] if not line.startswith(" ")}
    assert verdicts == {
        **{"qwen3_moe": "no", "mixtral": "yes", "qwen2_moe": "yes", "flex_olmo": "no"},
        **{"granitemoe": "no", "ernie4_5_moe": "no", "dense": "yes"},
    }
    assert "qwen3_moe     no     takes qwen3 models; this one is llama" in lines
    assert lines[-1] == verb.ROUTES
    found = json.loads(cli("export", "--list", finished / "model", "--json").out)
    assert [verdict["target"] for verdict in found if verdict["exact"]] == ["mixtral", "qwen2_moe", "dense"]
    assert found[1]["caveats"][0].startswith("the FFN for all tokens is stored in each of the 2 experts of a layer")


def test_without_a_run_the_routings_are_not_compared() -> None:
    facts: dict[str, Any] = {
        **{"target": "mixtral", "architecture": "MixtralForCausalLM", "difference": 1.25e-7, "caveats": ["a"]},
        **{"dev": None},
    }
    assert verb._report(Path("out"), facts).splitlines() == [
        "out: MixtralForCausalLM",
        "loaded in plain transformers in a fresh process: the same greedy generation; logits differ by at most 1.2e-07 "
        "of the largest",
        "note: a",
        "note: this engine's routing is top_k; what that costs against prefix was not measured, which takes the run "
        "that the model belongs to and its development text",
    ]
    measured = {**facts, "dev": {"group": 9.0, "prefix": 10.0, "top_k": 11.0}}
    assert verb._report(Path("out"), measured).splitlines()[3:] == [
        "perplexity on the dev text: group 9.00, prefix 10.00, top_k 11.00",
        "warning: this engine's routing, top_k, is +10.0% in perplexity against prefix on the dev text; serve the "
        "mixture with this package, or dense models of its groups, where that matters",
    ]
    dense = {**facts, "target": "dense", "architecture": "LlamaForCausalLM", "group": 1, "languages": ["a", "b"]}
    assert verb._report(Path("out"), dense).splitlines()[0] == "out: LlamaForCausalLM, group 1 (a b)"
    assert len(verb._report(Path("out"), dense).splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--to is missing: give --to native --out FOLDER, or --list to see what is possible"),
        (("--to", "native"), "--out is missing: give --to native --out FOLDER, or --list to see what is possible"),
        (
            ("--to", "native", "--out", "new", "--group", "1"),
            "--group and --language belong to --to dense; native holds all groups",
        ),
        (
            ("--to", "dense", "--out", "new", "--densify"),
            "--densify belongs to a native architecture; --to dense has no experts",
        ),
        (
            ("--to", "dense", "--out", "new"),
            "a dense model is of one group: give --group or --language (neither was given)",
        ),
        (
            ("--to", "dense", "--out", "new", "--group", "0", "--language", "it"),
            "a dense model is of one group: give --group or --language (both were given)",
        ),
        (("--to", "dense", "--out", "new", "--group", "2"), "--group 2: the mixture has groups 0 to 1"),
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
    said = cli("export", finished, *arguments)
    assert (said.status, said.last) == (2, f"sprachbund: {sentence}")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_language_is_told_the_nearest(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    said = cli("export", finished, "--to", "dense", "--out", tmp_path / "new", "--language", "itx_Latn")
    assert said.status == 2
    assert said.last.startswith("sprachbund: language = 'itx_Latn' is none of this model's, did you mean 'ita_Latn'")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_mixture_is_one_sentence(finished: Path, cli: CommandLine, tmp_path: Path) -> None:
    said = cli("export", finished / "dense", "--to", "native", "--out", tmp_path / "new")
    assert said.status == 2
    assert said.last == (
        f"sprachbund: {finished / 'dense'} is a 'llama' model and no mixture of this package, so there is nothing to "
        "export; give a run, or the folder of a mixture"
    )
    (tmp_path / "empty").mkdir()
    said = cli("export", tmp_path / "empty", "--list")
    assert said.status == 2
    assert "has no config.json" in said.last
