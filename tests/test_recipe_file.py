import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from sprachbund.errors import InputError
from sprachbund.recipe import Base, Groups, Layers, Recipe, Scratch, Source, Stage
from sprachbund.recipe_file import PRESETS, build_recipe, dump_recipe, load_recipe, packaged, parse_yaml

TEXT = """\
name: small
base: org/model
languages:
  swh_Latn: sw.jsonl
  zul_Latn: zu.jsonl
groups: {count: 2}
train: {tokens: 16384, tokens_per_step: 1024, block_size: 128}
"""


def build(text: str = TEXT, *overrides: str, seed: int | None = None) -> Recipe:
    return build_recipe(text, name="r.yaml", folder=Path("/here"), overrides=overrides, seed=seed)


def fault(text: str = TEXT, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        build(text, *overrides)
    return str(error.value)


# --- YAML


def test_a_key_given_twice_is_named_with_its_line() -> None:
    assert fault("name: a\nbase: b\nname: c\n") == (
        "r.yaml, line 3, column 1: 'name' is given twice; give valid YAML with every key once"
    )
    assert fault("train:\n  tokens: 1\n  tokens: 2\n").startswith("r.yaml, line 3, column 3: 'tokens' is given twice")


def test_broken_yaml_is_named_with_its_line() -> None:
    assert fault("name: a\n\tbase: b\n").startswith("r.yaml, line 2, column 1: ")
    assert fault("name: [1, 2\n").startswith("r.yaml, line 2, column 1: ")


@pytest.mark.parametrize("text", ["? [a, b]\n: 1\n", "? {a: 1}\n: 1\n"])
def test_keys_are_plain_text(text: str) -> None:
    assert fault(text) == "r.yaml, line 1, column 3: a key is not plain text; give valid YAML with every key once"


@pytest.mark.parametrize("text", ["name: !!int x", "[" * 2000, "name: \x00", "a: !!python/object:os.system x"])
def test_what_is_no_yaml_is_one_sentence(text: str) -> None:
    message = fault(text)
    assert message.startswith("r.yaml")
    assert "\n" not in message


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("just text", "str"), ("- a\n- b", "list")])
def test_a_recipe_is_a_mapping(text: str, kind: str) -> None:
    assert fault(text) == f"r.yaml: a recipe is a mapping of keys; found {kind}"


def test_words_and_dates_stay_text_and_powers_of_ten_are_numbers() -> None:
    found = parse_yaml("{a: no, b: on, c: Yes, d: true, e: False, f: 5e-3, g: 1.5E3, h: 2024-01-31, i: 1_000}", "t")
    assert found == {
        "a": "no", "b": "on", "c": "Yes", "d": True, "e": False, "f": 0.005, "g": 1500.0, "h": "2024-01-31", "i": 1000
    }  # fmt: skip


def test_the_locale_no_is_norwegian() -> None:
    recipe = build(TEXT.replace("  zul_Latn: zu.jsonl", "  no: {cldr: no}"))
    assert recipe.tags() == ["swh_Latn", "nob_Latn"]
    assert recipe.languages["nob_Latn"].cldr == "no"


def test_anchors_and_merge_keys_work() -> None:
    text = TEXT.replace("sw.jsonl", "&common {hub: org/data, revision: abc}").replace(
        "zu.jsonl", "{<<: *common, name: zu}"
    )
    sources = build(text).languages
    assert (sources["swh_Latn"].hub, sources["swh_Latn"].name) == ("org/data", None)
    assert (sources["zul_Latn"].hub, sources["zul_Latn"].revision, sources["zul_Latn"].name) == (
        "org/data",
        "abc",
        "zu",
    )


# --- mistakes in the recipe


def test_a_misspelt_key_is_named_with_its_place_and_the_right_one() -> None:
    assert fault(TEXT + "probe: {learning_rat: 1}\n") == (
        "r.yaml: probe.learning_rat is no key of a recipe, did you mean 'learning_rate'? "
        "Allowed here: sources, steps, tokens_per_step, learning_rate, optimizer, repeats, layers, center, "
        "hidden_layer, sentences, num_sentences, ngram, sketch_size"
    )
    assert fault(TEXT.replace("groups:", "gruops:")).startswith(
        "r.yaml: gruops is no key of a recipe, did you mean 'groups'? Allowed here: name, preset, base, languages, "
    )
    assert fault(TEXT, "languages.zul_Latn={hubb: zu}").startswith(
        "r.yaml: languages.zul_Latn.hubb is no key of a recipe, did you mean 'hub'? Allowed here: file, "
    )
    stages = "train.stages=[{share: 1, router_los: 2}]"
    assert fault(TEXT, stages).startswith(
        "r.yaml: train.stages.0.router_los is no key of a recipe, did you mean 'router_l"
    )


def test_a_key_like_no_other_gets_the_list_only() -> None:
    assert fault(TEXT + "zzz: 1\n").startswith("r.yaml: zzz is no key of a recipe. Allowed here: name, preset, ")


def test_a_missing_key_and_how_many_mistakes_there_are() -> None:
    assert fault("name: small\n") == "r.yaml: base is missing; give it a value (docs/recipe.md) (and 2 more)"
    assert fault(TEXT.replace("tokens: 16384, ", "")) == (
        "r.yaml: train.tokens is missing; give it a value (docs/recipe.md)"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=a b", "name: found 'a b'; give the name of the run: letters, digits, '.', '_' and '-', "
         "first a letter or digit"),
        ("probe.layers=last", "probe.layers: found 'last'; give all, last:N, or a list of layers "
         "counted from 0, each once"),
        ("splits=", "splits: found None; give a mapping with the keys dev, test"),
        ("languages=3", "languages: found 3; give a mapping keyed by language tag, such as swh_Latn"),
        ("train.dtype=float16", "train.dtype: found 'float16'; input should be 'float32' or 'bfloat16'"),
        ("mixture.temperature=2", "mixture.temperature: found 2; input should be less than or equal to 1"),
        ("groups.count=3", "the recipe: groups.count = 3 for 2 languages; give 1 to 2, or auto"),
        ("preset=papre", "preset: 'papre' is unknown; one of default, paper, native"),
        ("preset=[paper]", "preset: ['paper'] is unknown; one of default, paper, native"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_with_a_place(override: str, message: str) -> None:
    assert fault(TEXT, override) == f"r.yaml: {message}"


def test_long_values_are_cut() -> None:
    message = fault(TEXT, f"seed={'x' * 500}")
    assert message.startswith("r.yaml: seed: found 'xxx")
    assert len(message) < 200


# --- files


def test_a_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(tmp_path / "nope.yaml")
    assert str(error.value) == f"there is no recipe {tmp_path}/nope.yaml; `sprachbund init` writes one"
    (tmp_path / "recipe.yaml").write_text(TEXT)
    with pytest.raises(InputError, match=r"recipes.yaml, did you mean 'recipe.yaml'\? `sprachbund init` writes one$"):
        load_recipe(tmp_path / "recipes.yaml")


def test_a_folder_and_bytes_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder; give a recipe file \(.yaml\)$"):
        load_recipe(tmp_path)
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(InputError, match=r"r.yaml: byte 6 is not UTF-8 text; save the file as UTF-8$"):
        load_recipe(tmp_path / "r.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load_recipe(tmp_path / "r.yaml").name == "small"


def test_relative_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "r.yaml").write_text(TEXT.replace("sw.jsonl", "../data/sw.jsonl"))
    recipe = load_recipe(tmp_path / "sub" / "r.yaml")
    assert recipe.languages["swh_Latn"].file == str(tmp_path / "data" / "sw.jsonl")


# --- --set


def test_overrides_change_values_of_every_kind() -> None:
    recipe = build(
        TEXT,
        "train.tokens=8192",
        "train.learning_rate=5e-3",
        "layers.top=2",
        "probe.center=false",
        "train.trackers=[tensorboard, wandb]",
        "evaluate.tokens=null",
        "languages.ro={cldr: ro, lines: 10}",
        "mixture={method: unimax, max_epochs: 2}",
        "base={path: other/model, revision: abc}",
        "splits.test = 0.2",
    )
    assert (recipe.train.tokens, recipe.train.learning_rate) == (8192, 0.005)
    assert (recipe.layers.top, recipe.layers.all) == (2, None)
    assert recipe.probe.center is False
    assert recipe.train.trackers == ["tensorboard", "wandb"]
    assert recipe.evaluate.tokens is None
    assert recipe.languages["ron_Latn"] == Source(cldr="ro", lines=10)
    assert (recipe.mixture.method, recipe.mixture.max_epochs) == ("unimax", 2)
    assert (recipe.base.path, recipe.base.revision) == ("other/model", "abc")
    assert (recipe.splits.dev, recipe.splits.test) == (0.05, 0.2)


def test_an_item_of_a_list_that_the_preset_gives_can_be_set() -> None:
    stages = build(TEXT, "train.stages.1.balance_loss=0.01").train.stages
    assert [(s.share, s.router_loss, s.balance_loss) for s in stages] == [(0.1, 1.28, 0.0), (0.9, 1.0, 0.01)]
    assert build(TEXT, "train.stages.0=1", "train.stages=[{share: 1}]").train.stages == [Stage(share=1)]


def test_a_preset_that_is_set_is_the_one_that_the_others_change() -> None:
    stages = build(TEXT, "train.stages.1.router_loss=3", "preset=native").train.stages
    assert [(s.routing, s.router_loss) for s in stages] == [("group", 1.28), ("top_k", 3.0)]


def test_the_seed_of_the_command_line_wins() -> None:
    assert build(TEXT + "seed: 1\n", "seed=2").seed == 2
    assert build(TEXT + "seed: 1\n", "seed=2", seed=3).seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.tokens", "give a.b=value, for example --set train.tokens=100000"),
        ("=3", "give a.b=value, for example --set train.tokens=100000"),
        ("train..tokens=3", "give a.b=value, for example --set train.tokens=100000"),
        ("name.first=3", "name holds 'small', which has no parts"),
        ("train.tokens.x=3", "train.tokens holds 16384, which has no parts"),
        ("train.stages.2.share=3", "2 is no item of a list of 2; they are counted from 0"),
        ("train.stages.-1.share=3", "-1 is no item of a list of 2; they are counted from 0"),
        ("train.stages.first=3", "first is no item of a list of 2; they are counted from 0"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, message: str) -> None:
    assert fault(TEXT, override) == f"--set {override}: {message}"


def test_an_override_that_is_no_yaml_is_named() -> None:
    assert fault(TEXT, "groups={count: 3").startswith("--set groups={count: 3, line 1, column ")


def test_an_unknown_key_that_is_set_is_named() -> None:
    assert fault(TEXT, "train.token=3").startswith("r.yaml: train.token is no key of a recipe, did you mean 'tokens'")


# --- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_recipe(preset: str) -> None:
    assert build(TEXT, f"preset={preset}").preset == preset


def test_a_preset_lies_under_the_recipe() -> None:
    recipe = build(TEXT + "preset: paper\nprobe: {steps: 3}\nexperts: {router_gradient: detach}\n")
    assert (recipe.probe.steps, recipe.probe.layers, recipe.probe.center) == (3, "last:3", False)
    assert (recipe.experts.kind, recipe.experts.router_gradient) == ("copy", "detach")
    assert recipe.layers.epsilon == 0.6
    assert recipe.groups == Groups(count=2, objective="greedy")
    assert [s.routing for s in recipe.train.stages] == ["group", "top_k"]


def test_a_recipes_choice_of_layers_replaces_the_presets() -> None:
    assert build(TEXT + "preset: paper\nlayers: {top: 1}\n").layers == Layers(top=1)
    assert build(TEXT + "preset: paper\nlayers: all\n").layers == Layers(all=True)


def test_given_groups_replace_the_presets_method() -> None:
    recipe = build(TEXT.replace("{count: 2}", "{given: g.json}") + "preset: paper\n")
    assert recipe.groups == Groups(given="/here/g.json")


def test_stages_of_a_recipe_replace_the_presets() -> None:
    recipe = build(TEXT, "train.stages=[{share: 1, routing: prefix}]")
    assert recipe.train.stages == [Stage(share=1, routing="prefix")]


# --- writing


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["preset=paper"],
        ["preset=native", "evaluate.tokens=null", "evaluate.window=64"],
        ["base={scratch: {family: llama, hidden_size: 32}}", "layers={given: [2, 0]}"],
        ["mixture={method: given, shares: {sw: 2, zu: 1.5}}", "train.learning_rate=1e-5"],
        ["languages.sw={hub: a/b, revision: 2024-01-31, name: 'no'}", "languages.zu={hub: '5e-3', name: 'on'}"],
        ["languages.sw=/straße/файл.jsonl", "languages.zu={file: 'a: b #c.txt'}", "experts.width=12", "seed=7"],
        ["groups={given: g.json}"],
    ],
)
def test_a_written_recipe_reads_back_the_same(overrides: list[str]) -> None:
    recipe = build(TEXT.replace("swh_Latn", "sw").replace("zul_Latn", "zu"), *overrides)
    text = dump_recipe(recipe)
    assert build_recipe(text, name="t", folder=Path("/elsewhere")) == recipe
    assert build_recipe(text, name="t", folder=Path("/elsewhere")).languages == recipe.languages


def test_a_written_recipe_has_every_default_and_nothing_private() -> None:
    values = yaml.safe_load(dump_recipe(build()))
    assert list(values) == [name for name in Recipe.model_fields if name != "compare"]  # there is none by default
    assert values["probe"]["sketch_size"] == 65_536
    assert values["base"] == {"path": "org/model", "revision": "main", "trust_remote_code": False}
    assert dump_recipe(build()).isascii()
    assert "!!python" not in dump_recipe(build())


# --- the recipe that `sprachbund init` writes

INIT = packaged("init")


def test_the_init_recipe_is_valid_and_needs_no_download() -> None:
    recipe = build_recipe(INIT, name="init", folder=Path("/here"))
    assert recipe.base.scratch is not None
    assert all(source.cldr for source in recipe.languages.values())
    assert max(map(len, INIT.splitlines())) <= 120


def test_the_init_recipe_shows_every_key() -> None:
    shown = set(re.findall(r"(?<![\w.])(\w+):(?= |$)", INIT, flags=re.M))
    kinds = [Recipe, Base, Scratch, Source, Stage, Layers]
    kinds += [f.annotation for f in Recipe.model_fields.values() if isinstance(f.annotation, type)]
    parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    assert len(parts) > 12
    missing = {name for part in parts for name in part.model_fields} - shown
    assert missing == {"all"}  # which is written as the word: `layers: all`


def test_the_init_recipe_says_the_default_where_it_has_another_value() -> None:
    """Every line `key: value` holds the default, or names it as "(default: ...)"."""
    recipe = build_recipe(INIT, name="init", folder=Path("/here"))
    parts = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    parts = {name: part for name, part in parts.items() if isinstance(part, BaseModel) and name != "layers"}
    checked = 0
    for name, part in [*parts.items(), ("scratch", recipe.base.scratch)]:
        section = INIT[re.search(rf"^ *{name}:", INIT, flags=re.M).end() :]
        for key, field in type(part).model_fields.items():
            line = re.search(rf"^ +{key}: +([^#\n]+)(#.*)?$", section, flags=re.M)
            line = line or re.search(rf"^ +# {key}: +([^#\n]+)(# \(preset\).*)$", section, flags=re.M)
            if line is None or field.is_required() or name == "base":
                continue
            said = re.search(r"\(default: ([^,;)]+)", line[2] or "")
            shown = parse_yaml(said[1] if said else line[1], "init")
            if "(preset)" not in (line[2] or ""):  # which has the preset's value instead: that of `part`
                assert shown == field.get_default(call_default_factory=True), line[0]
            assert getattr(part, key) == parse_yaml(line[1], "init"), line[0]
            checked += 1
    assert checked >= 45


def test_the_init_recipe_follows_another_preset() -> None:
    recipe = build_recipe(INIT, name="init", folder=Path("/here"), overrides=["preset=paper"])
    assert (recipe.experts.kind, recipe.layers.epsilon, recipe.train.beta2) == ("copy", 0.6, 0.999)
    assert [stage.routing for stage in recipe.train.stages] == ["group", "top_k"]


def test_a_preset_that_the_recipe_overrides_is_refused() -> None:
    text = TEXT + "experts: {kind: copy}\n"
    assert fault(text, "preset=native") == (
        "--set preset=native: r.yaml gives experts.kind itself, which the preset would set; remove that from the "
        "recipe, or write a recipe without it"
    )
    assert build(text, "preset=paper").experts.kind == "copy"  # says the same


def test_the_init_recipe_leaves_to_the_preset_what_the_preset_decides() -> None:
    recipe = build_recipe(INIT, name="init", folder=Path("/here"))
    for name, given in yaml.safe_load(packaged("default")).items():
        if isinstance(given, dict):
            part = getattr(recipe, name).model_dump()
            assert {key: part[key] for key in given if key != "stages"} == {
                key: value for key, value in given.items() if key != "stages"
            }
    written = yaml.safe_load(INIT)
    other = build_recipe(INIT.replace("preset: default", "preset: native"), name="init", folder=Path("/here"))
    for name, given in yaml.safe_load(packaged("native")).items():
        if isinstance(given, dict):
            assert not set(written.get(name) or {}) & set(given), name
    assert other.experts.by == "group"
