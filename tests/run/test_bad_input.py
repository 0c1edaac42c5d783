"""What a user can get wrong, through the command line: one sentence, the right exit status, nothing left behind."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Said

Fail = Callable[..., Said]


@pytest.fixture
def fail(tiny: Path, cli: CommandLine) -> Fail:
    """Run the tiny recipe with changes, and return what was said."""

    def run(*sets: str) -> Said:
        changes = [part for change in sets for part in ("--set", change)]
        said = cli("run", tiny, "--out", tiny.parent / "run", *changes)
        assert "Traceback" not in said.err
        assert said.out == ""
        return said

    return run


def edit(tiny: Path, old: str, new: str) -> None:
    text = tiny.read_text(encoding="utf-8")
    assert old in text
    tiny.write_text(text.replace(old, new), encoding="utf-8")


# --- found before anything is written


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "languages.xqz={cldr: ro}",
            "languages: unknown language 'xqz': no ISO 639 code, BCP-47 tag or English name; "
            "give for example swh_Latn, sw or Swahili\n",
        ),
        (
            "languages.ro={cldr: ro}",
            "languages: 'ron_Latn' and 'ro' are both ron_Latn; every language may be given once\n",
        ),
        ("groups.count=5", "the recipe: groups.count = 5 for 4 languages; give 1 to 4, or auto\n"),
        ("layers={given: [2]}", "the recipe: layers.given names layer 2; the base has layers 0 to 1\n"),
        ("train.token=10", "train.token is no key of a recipe, did you mean 'tokens'"),
        ("splits={dev: 0.9, test: 0.1}", "splits: dev = 0.9 and test = 0.1 leave nothing to train on; sum below 1\n"),
    ],
)
def test_mistakes_in_the_recipe(override: str, message: str, fail: Fail, tiny: Path) -> None:
    said = fail(override)
    assert said.status == 2
    assert said.err.startswith(f"sprachbund: {tiny}: {message}")
    assert said.err.count("\n") == 1
    assert not (tiny.parent / "run").exists()


def test_a_language_given_twice_under_two_names(fail: Fail, tiny: Path) -> None:
    edit(tiny, "ron_Latn:", "sw:")
    edit(tiny, "ita_Latn:", "swh_Latn:")
    assert fail().err == (
        f"sprachbund: {tiny}: languages: 'sw' and 'swh_Latn' are both swh_Latn; every language may be given once\n"
    )


def test_a_key_given_twice(fail: Fail, tiny: Path) -> None:
    tiny.write_text(tiny.read_text(encoding="utf-8") + "name: again\n", encoding="utf-8")
    said = fail()
    line = len(tiny.read_text(encoding="utf-8").splitlines())
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {tiny}, line {line}, column 1: 'name' is given twice; give valid YAML with every key once\n",
    )


def test_a_recipe_that_is_not_there(cli: CommandLine, tmp_path: Path) -> None:
    said = cli("run", tmp_path / "recipe.yaml")
    assert (said.status, said.err) == (
        2,
        f"sprachbund: there is no recipe {tmp_path}/recipe.yaml; `sprachbund init` writes one\n",
    )


def test_a_folder_that_is_no_run(cli: CommandLine, tmp_path: Path) -> None:
    said = cli("report", tmp_path)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {tmp_path} is no run: it has no recipe.yaml; give a recipe file or the folder of a run\n",
    )
    assert list(tmp_path.iterdir()) == []


# --- the base


def write_base(tiny: Path, **config: Any) -> str:
    folder = tiny.parent / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return "base=base"


def test_a_base_of_another_family(fail: Fail, tiny: Path) -> None:
    said = fail(write_base(tiny, model_type="xglm"))
    assert said.status == 2
    assert said.err.startswith("sprachbund: the base is a 'xglm' model, which cannot be expanded: its decoder layer")
    assert "; give a dense decoder of one of apertus, arcee, bloom, " in said.err
    assert said.err.count("\n") == 1
    assert not (tiny.parent / "run").exists()


def test_a_quantised_base(fail: Fail, tiny: Path) -> None:
    said = fail(write_base(tiny, model_type="llama", quantization_config={"quant_method": "gptq", "bits": 4}))
    assert (said.status, said.err) == (
        2,
        f"sprachbund: the base {tiny.parent}/base is quantised, which cannot be trained; "
        "give the unquantised checkpoint\n",
    )
    assert not (tiny.parent / "run").exists()


@pytest.mark.parametrize("base", ["./not/there", "org/model", "no-such-model"])
def test_a_base_that_is_not_there_or_a_hub_that_is_not(base: str, fail: Fail, tiny: Path) -> None:
    said = fail(f"base={base}")
    assert said.status == 2
    assert said.err.startswith(f"sprachbund: base: the model of '{base}' cannot be loaded (")
    assert said.err.endswith("a folder with config.json, safetensors and a tokenizer, or base: {scratch: {...}}\n")
    assert said.err.count("\n") == 1
    assert not (tiny.parent / "run").exists()


def test_a_base_without_a_tokenizer(fail: Fail, tiny: Path, finished: Path) -> None:
    (tiny.parent / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(finished / "base" / name, tiny.parent / "base" / name)
    said = fail("base=base")
    assert said.status == 2
    assert said.last.startswith(f"sprachbund: base: the tokenizer of '{tiny.parent}/base' cannot be loaded (")


# --- the corpora


def test_a_missing_corpus(fail: Fail, tiny: Path) -> None:
    said = fail("languages.ita_Latn=corpora/vocabolario.txt")
    assert (said.status, said.err) == (
        2,
        f"sprachbund: languages.ita_Latn: {tiny.parent}/corpora/vocabolario.txt does not exist; "
        "paths are relative to the recipe.\n",
    )
    assert not (tiny.parent / "run" / "tokenizer").exists()


def test_a_corrected_path_needs_no_other_folder(fail: Fail, tiny: Path, cli: CommandLine) -> None:
    fail("languages.ita_Latn=corpora/vocabolario.txt")
    assert cli("probe", tiny, "--out", tiny.parent / "run").status == 0


def test_a_corpus_without_the_field(fail: Fail, tiny: Path) -> None:
    said = fail("languages.ita_Latn={file: corpora/ita.jsonl, field: content}")
    assert (said.status, said.err) == (
        2,
        f"sprachbund: languages.ita_Latn: {tiny.parent}/corpora/ita.jsonl, line 1 has no field 'content'; "
        "it has 'text'; set the source's field, or leave such lines out with on_bad_line: skip.\n",
    )


def test_an_empty_corpus(fail: Fail, tiny: Path) -> None:
    (tiny.parent / "corpora" / "ita.jsonl").write_text("\n\n")
    said = fail()
    assert (said.status, said.err) == (
        2,
        f"sprachbund: languages.ita_Latn: {tiny.parent}/corpora/ita.jsonl holds no document with text; "
        "give a source that does, or remove the language.\n",
    )


def test_a_corpus_with_a_broken_line(fail: Fail, tiny: Path) -> None:
    with (tiny.parent / "corpora" / "ita.jsonl").open("a") as file:
        file.write('{"text": "mezza ri')
    said = fail()
    assert said.status == 2
    assert said.err.startswith(
        f"sprachbund: languages.ita_Latn: {tiny.parent}/corpora/ita.jsonl, line 81 is not JSON: "
    )


def test_a_corpus_shorter_than_a_block(fail: Fail, tiny: Path) -> None:
    path = tiny.parent / "corpora" / "ita.jsonl"
    path.write_text("".join(json.dumps({"text": f"{'abcdefghi'[i % 9]}{i}"}) + "\n" for i in range(60)))
    said = fail("train.block_size=256", "train.tokens=2560", "evaluate.burn_in=2")
    assert said.status == 2
    assert said.last.startswith("sprachbund: ita_Latn (train) has ")
    assert said.last.endswith(" tokens, less than one block of 256; give it more text or set a smaller block_size.")


def test_a_test_split_too_short_to_score(fail: Fail, tiny: Path) -> None:
    said = fail("evaluate={burn_in: 1000, window: 1024, tokens: 64}")
    assert said.status == 2
    assert said.last.startswith("sprachbund: languages.ron_Latn: the test split has ")
    assert said.last.endswith(" tokens, too few for evaluate.burn_in = 1000; give it more text or a larger splits.test")


def test_groups_that_leave_a_language_out(fail: Fail, tiny: Path) -> None:
    (tiny.parent / "groups.json").write_text('{"ron_Latn": 0, "ita_Latn": 0, "rus_Cyrl": 1}')
    said = fail("groups={given: groups.json}")
    assert said.status == 2
    assert said.last == (
        f"sprachbund: {tiny.parent}/groups.json: no group for 'ukr_Cyrl'; give every language of the recipe one."
    )


def test_layers_that_the_base_does_not_have(fail: Fail, tiny: Path, finished: Path) -> None:
    shutil.copytree(finished / "base", tiny.parent / "base")
    said = fail("base=base", "layers={given: [2]}")
    assert (said.status, said.last) == (2, "sprachbund: layers.given names layer 2; the base has layers 0 to 1")
    said = fail("base=base", "layers={top: 3}")
    assert (said.status, said.last) == (2, "sprachbund: layers.top = 3 is more than the base's 2 layers")
    assert not (tiny.parent / "run").exists()


# --- the folder


def test_a_run_of_another_recipe(finished: Path, shared_tiny: Path, cli: CommandLine) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    said = cli("run", shared_tiny, "--out", finished, "--set", "train.learning_rate=1e-3", "--seed", 7)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {finished} holds a run of another recipe (differing: train.learning_rate, seed); "
        "give another --out, or --update to recompute what changed\n",
    )
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_folder_of_other_things(tiny: Path, cli: CommandLine) -> None:
    said = cli("run", tiny, "--out", tiny.parent)
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {tiny.parent} exists and is no run (it has no recipe.yaml); give another --out\n",
    )


def test_a_disk_that_fills_up_in_training(fail: Fail, tiny: Path, cli: CommandLine, finished: Path) -> None:
    """The system refuses files beyond 64 KB: the first that is larger is a checkpoint's optimizer state."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        said = fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = tiny.parent / "run"
    assert (said.status, said.last) == (
        1,
        f"sprachbund: no space left on the disk of {run}; free some and run the same command again",
    )
    assert not (run / "base").exists()
    assert cli("probe", tiny, "--out", run).status == 0
    assert (run / "base" / "model.safetensors").read_bytes() == (finished / "base/model.safetensors").read_bytes()


def test_a_tracker_that_is_not_installed(tiny: Path, cli: CommandLine) -> None:
    said = cli("run", tiny, "--out", tiny.parent / "run", "--set", "train.trackers=[trackio]")
    assert said.status == 2
    assert said.err == "sprachbund: train.trackers names trackio, which is not installed; pip install trackio\n"
    assert not (tiny.parent / "run").exists()
