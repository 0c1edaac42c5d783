"""The verb expand on a dense model: layers and groups from the command line, one line about what was written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from sprachbund.cli.expand import format_layers, parse_layers, read_group_choice
from sprachbund.errors import InputError


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of six layers. Do not change it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "dense"
    config = AutoConfig.for_model(
        "llama",
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_a_model_is_expanded_with_one_line(dense: Path, tmp_path: Path, cli: CommandLine) -> None:
    out = tmp_path / "out"
    said = cli("expand", dense, "--layers", "0-2,5", "--groups", 3, "--out", out, "--kind", "copy")
    dense_total = 2 * 50 * 16 + 6 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    total = dense_total + 4 * (2 * 3 * 16 * 24 + 3 * 16)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    assert (said.status, said.err) == (0, "")
    assert said.out == (
        f"expanded: {out} (layers 0-2,5 of 6, 3 groups, copy; {total:,} parameters, {dense_total:,} active a token; "
        f"{size:.2f} MB)\n"
    )
    config = config_of(out)
    assert (config["moe_layers"], config["num_groups"], config["languages"]) == ([0, 1, 2, 5], 3, [])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_groups_of_a_file_have_canonical_tags(dense: Path, tmp_path: Path, cli: CommandLine) -> None:
    from transformers import AutoModelForCausalLM

    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"sw": 1, "deu_Latn": 0, "French": 1}))
    options = ("--width", 6, "--top-k", 1, "--router", "normal", "--seed", 7)
    for name in ("one", "two"):
        said = cli("expand", dense, "--layers", "all", "--groups", groups, "--out", tmp_path / name, *options)
        assert said.status == 0, said.err
    config = config_of(tmp_path / "one")
    assert config["groups"] == {"swh_Latn": 1, "fra_Latn": 1, "deu_Latn": 0}
    assert config["moe_layers"] == [0, 1, 2, 3, 4, 5]
    assert (config["expert_kind"], config["expert_width"], config["num_experts_per_tok"]) == ("shared", 6, 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert model.model.layers[5].mlp.gate.weight.std() > 0.01
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


KINDS = [
    (("--kind", "adapter", "--width", 5), "2 groups, adapter"),
    (("--kind", "hierarchy", "--width", 5, "--language-width", 2), "3 languages, hierarchy"),
    (("--rank", 2, "--rows", "group"), "2 groups, shared of rank 2, rows by group"),
    (("--rows", "language"), "3 languages, shared, rows by language"),
    (("--kind", "copy", "--rows", "all"), "2 groups, copy, rows for all"),
]


@pytest.mark.parametrize(("options", "said"), KINDS)
def test_every_kind_is_expanded(
    options: tuple[Any, ...], said: str, dense: Path, tmp_path: Path, cli: CommandLine
) -> None:
    from transformers import AutoModelForCausalLM

    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"swh_Latn": 1, "deu_Latn": 0, "fra_Latn": 1}))
    out = tmp_path / "out"
    done = cli("expand", dense, "--layers", "1-2", "--groups", groups, "--out", out, *options)
    assert done.status == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(out)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert done.out.startswith(f"expanded: {out} (layers 1-2 of 6, {said}; {total:,} parameters, ")
    assert cli("inspect", out).status == 0


def test_one_group_widens_the_ffn(dense: Path, tmp_path: Path, cli: CommandLine) -> None:
    done = cli("expand", dense, "--layers", "all", "--groups", 1, "--width", 8, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "(layers 0-5 of 6, 1 group, shared; " in done.out


def test_the_groups_of_a_run_expand_any_model(dense: Path, finished: Path, tmp_path: Path, cli: CommandLine) -> None:
    said = cli("expand", dense, "--layers", "1", "--groups", finished / "groups.json", "--out", tmp_path / "out")
    assert said.status == 0, said.err
    assert config_of(tmp_path / "out")["groups"] == json.loads((finished / "groups.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "1"), "--groups is missing, without which the model {dense} cannot be expanded; give it, for ex"),
        (("--groups", "2"), "--layers is missing, without which the model {dense} cannot be expanded; give it, for ex"),
        (("--layers", "1", "--groups", "2"), "--out is missing, without which the model {dense} cannot be expanded"),
        (("--kind", "copy"), "--layers is missing, without which the model {dense} cannot be expanded"),
        ((), "{dense} is a model; to expand a model give --layers, --groups and --out as well"),
        (("--layers", "1", "--groups", "2", "--set", "a=b"), "--set is for a recipe or a run, not for a model; leave"),
        (("--layers", "1", "--groups", "2", "--update"), "--update is for a recipe or a run, not for a model; leave"),
        (
            ("--layers", "1", "--groups", "2", "--revision", "v1"),
            "--revision v1 is for a Hub id, and {dense} is a",
        ),
        (
            ("--layers", "1", "--groups", "2", "--kind", "shard"),
            "--kind shard is unknown; give shared, copy, adapter or hierarchy, did you",
        ),
        (("--layers", "1", "--groups", "2", "--router", "x"), "--router x is unknown; give zero or normal\n"),
        (("--layers", "0-6", "--groups", "2", "--out", "{out}"), "layer 6 does not exist; the base has layers 0 to 5"),
        (("--layers", "0-3,2", "--groups", "2", "--out", "{out}"), "--layers 0-3,2: layer 2 is chosen twice; give "),
        (("--layers", "3-0", "--groups", "2", "--out", "{out}"), "--layers 3-0: the range 3-0 falls; give 0-3\n"),
        (("--layers", "-1", "--groups", "2", "--out", "{out}"), "--layers -1: '-1' is no layer; give numbers from 0"),
        (("--layers", "0", "--groups", "0", "--out", "{out}"), "--groups 0: at least one group is needed, for example"),
        (("--layers", "0", "--groups", "-2", "--out", "{out}"), "--groups -2: at least one group is needed"),
        (("--layers", "0", "--groups", "six", "--out", "{out}"), "--groups six is neither a number nor a file; give"),
        (
            ("--layers", "0", "--groups", "2", "--top-k", "3", "--out", "{out}"),
            "num_experts_per_tok = 3 must lie in 1..2, the groups' number",
        ),
        (("--layers", "0", "--groups", "2", "--width", "0", "--out", "{out}"), "width = 0: "),
        (
            ("--layers", "0", "--groups", "2", "--rows", "groups", "--out", "{out}"),
            "--rows groups is unknown; give group, language or all, did you mean 'group'",
        ),
        (
            ("--layers", "0", "--groups", "2", "--kind", "hierarchy", "--out", "{out}"),
            "language_width = None with kind = 'hierarchy': a hierarchy has it, and no other kind does",
        ),
        (
            ("--layers", "0", "--groups", "2", "--kind", "hierarchy", "--language-width", "2", "--out", "{out}"),
            "something is keyed by language and the groups have none; give groups, {{tag: group}}",
        ),
        (
            ("--layers", "0", "--groups", "2", "--kind", "adapter", "--rank", "2", "--out", "{out}"),
            "rank = 2 with kind = 'adapter': experts of kind shared or hierarchy may have one, from 1",
        ),
        (("--layers", "0", "--groups", "2", "--out", "{dense}"), "{dense} exists already; give another --out, or rem"),
    ],
)
def test_wrong_wishes_are_one_sentence(
    arguments: tuple[str, ...], message: str, dense: Path, tmp_path: Path, cli: CommandLine
) -> None:
    before = {path: path.stat().st_mtime_ns for path in dense.rglob("*")}
    said = cli("expand", dense, *(argument.format(dense=dense, out=tmp_path / "out") for argument in arguments))
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"sprachbund: {message.format(dense=dense)}")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in dense.rglob("*")} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"deu_Latn": 0, "xx_Yyyy": 1}', "{file}: unknown language 'xx_Yyyy': no ISO 639 code, BCP-47 tag or English"),
        ('{"deu_Latn": 0, "Grmeian": 1}', "{file}: unknown language 'Grmeian': "),
        ('{"deu_Latn": 0, "de": 1}', "{file}: 'de' is deu_Latn, which is there already; name every language once"),
        ('{"deu_Latn": 0, "deu_Latn": 1}', "{file}: 'deu_Latn' occurs twice in one object; keep one of the two."),
        ('{"deu_Latn": 0,', "{file}, line 1: not valid JSON ("),
        ("{}", "{file}: expected a JSON object with an entry for each language, found "),
        ('{"deu_Latn": -1}', "{file}: the group of 'deu_Latn' is -1; give a whole number from 0"),
    ],
)
def test_a_grouping_file_that_is_wrong(
    content: str, message: str, dense: Path, tmp_path: Path, cli: CommandLine
) -> None:
    file = tmp_path / "groups.json"
    file.write_text(content)
    said = cli("expand", dense, "--layers", "1", "--groups", file, "--out", tmp_path / "out")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"sprachbund: {message.format(file=file)}")
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_model_is_one_sentence(dense: Path, tmp_path: Path, cli: CommandLine) -> None:
    options = ("--layers", "1", "--groups", "2", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "broken" / name).write_bytes((dense / name).read_bytes()[: None if name == "config.json" else -9])
    (tmp_path / "recipe.yaml").touch()
    said = {
        name: cli("expand", tmp_path / name, *options) for name in ("empty", "broken", "missing", "recipe.yaml")
    } | {"": cli("expand", "nobody/nothing", *options)}
    assert {one.status for one in said.values()} == {2}
    assert said["empty"].err.startswith(f"sprachbund: the configuration of {tmp_path}/empty cannot be read (")
    assert said["broken"].err.startswith(f"sprachbund: {tmp_path}/broken/model.safetensors is truncated: it has ")
    assert said["missing"].err == (
        f"sprachbund: {tmp_path}/missing is no folder; give the folder of a model, or its id on the Hub\n"
    )
    assert said["recipe.yaml"].err == (
        f"sprachbund: {tmp_path}/recipe.yaml is a recipe, which has its own layers and groups; leave out --layers, "
        "--groups and their like, or give a dense model\n"
    )
    assert said[""].err.startswith("sprachbund: the model 'nobody/nothing' (revision main) is no folder and cannot be")
    assert all(one.err.count("\n") == 1 for one in said.values())
    assert not (tmp_path / "out").exists()


def test_a_run_has_layers_and_groups_of_its_own(finished: Path, tmp_path: Path, cli: CommandLine) -> None:
    said = cli("expand", finished, "--layers", "1", "--groups", "2", "--out", tmp_path / "out")
    assert (said.status, said.err) == (
        2,
        f"sprachbund: {finished} is a run, which has its own layers and groups; leave out --layers, --groups and their "
        "like, or give a dense model\n",
    )
    said = cli("expand", "runs/nothing")
    assert (said.status, said.err) == (
        2,
        "sprachbund: runs/nothing is neither a recipe nor a run; to expand a model give --layers, --groups and --out "
        "as well\n",
    )


def test_layers_are_written_as_ranges() -> None:
    assert parse_layers("0-3, 20 - 22,7") == [0, 1, 2, 3, 20, 21, 22, 7]
    assert parse_layers(" all ") == "all"
    assert parse_layers("5") == [5]
    assert format_layers([0, 1, 2, 3, 20, 21, 22, 7]) == "0-3,7,20-22"
    assert format_layers([4]) == "4"
    for wrong in ("", "1,", "a", "1-", "-1-3", "1.5", "1--2", "99999", "0-99999", "٣", "all,1"):
        with pytest.raises(InputError, match=r"^--layers .*is no layer; give numbers from 0 and ranges of them"):
            parse_layers(wrong)


def test_groups_are_a_number_or_a_file(tmp_path: Path) -> None:
    assert read_group_choice("6") == {"num_groups": 6}
    (tmp_path / "6").write_text('{"deu_Latn": "north", "nld_Latn": "north", "ita_Latn": "south"}')
    assert read_group_choice(str(tmp_path / "6")) == {"groups": {"deu_Latn": 0, "nld_Latn": 0, "ita_Latn": 1}}


def test_the_help_says_which_options_are_for_a_model(cli: CommandLine) -> None:
    text = " ".join(re.sub(r"[─│╭╮╰╯]", " ", cli("expand", "--help").out).split())
    new = ("--language-width", "--rank", "--rows")
    for option in ("--layers", "--groups", "--kind", "--width", "--top-k", "--router", *new):
        assert re.search(rf"{option} <\w+> Model: ", text), option
    assert "shared, experts that add to the FFN (default)" in text
