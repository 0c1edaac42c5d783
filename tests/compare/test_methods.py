"""Methods: a few lines over the recipe of the comparison, and every mistake named by its place."""

from pathlib import Path

import pytest

from sprachbund.compare.methods import BaseSizes, Method, methods_of, packaged_methods, rebased
from sprachbund.errors import InputError
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import build_recipe, dump_recipe

SIZES = BaseSizes(num_layers=8, hidden=64, ffn=256)
RECIPE = """\
name: small
base: {scratch: {num_layers: 8}}
languages: {%s}
groups: {count: 4}
train: {tokens: 40_960, tokens_per_step: 1024, block_size: 64}
"""
TAGS = ["ron", "ita", "fra", "spa", "por", "cat", "deu", "nld", "swe", "dan"]


def recipe_of(compare: str = "", *, num_languages: int = 10, preset: str = "default") -> Recipe:
    languages = ", ".join(f"{tag}: {{cldr: {tag}, family: {tag[0]}}}" for tag in TAGS[:num_languages])
    text = RECIPE % languages + f"preset: {preset}\n" + (f"compare: {compare}\n" if compare else "")
    return build_recipe(text, name="small.yaml", folder=Path.cwd())


def method(name: str, compare: str = "", *, preset: str = "default") -> Method:
    (found,) = methods_of(recipe_of(compare, preset=preset), SIZES, [name])
    return found


@pytest.mark.parametrize("name", list(packaged_methods()))
def test_every_packaged_method_is_a_valid_recipe_on_the_same_tokens(name: str) -> None:
    ours, found = recipe_of(), method(name).recipe
    for same in ("languages", "base", "splits", "mixture", "evaluate", "seed"):
        assert getattr(found, same) == getattr(ours, same)
    for size in ("tokens", "tokens_per_step", "block_size", "learning_rate"):
        assert getattr(found.train, size) == getattr(ours.train, size)


def test_the_methods_of_the_recipe_in_its_order() -> None:
    recipe = recipe_of("{methods: [upcycling, {mine: {experts: {width: 7}}}, dense, {half: {seeds: 1}}]}")
    found = methods_of(recipe, SIZES)
    assert [one.name for one in found] == ["upcycling", "mine", "dense", "half"]
    assert found[1].recipe.experts.width == 7
    assert (found[3].recipe.experts.width, found[3].keys.seeds) == (128, 1)  # the packaged one, changed
    assert [one.name for one in methods_of(recipe, SIZES, ["half", "mine"])] == ["half", "mine"]


def test_words_are_shares_of_the_base() -> None:
    assert method("quarter").recipe.experts.width == 64
    assert method("low-rank").recipe.experts.rank == 16
    assert method("layers-top").recipe.layers.top == 4
    assert method("per-language").recipe.groups.count == 10
    assert method("hierarchy").recipe.experts.language_width == 28


def test_what_the_important_methods_are() -> None:
    upcycling = method("upcycling").recipe
    assert (upcycling.experts.kind, upcycling.experts.router_gradient, upcycling.experts.router_rate_factor) == (
        "copy",
        "through",
        1.0,
    )
    (stage,) = upcycling.train.stages
    assert (stage.routing, stage.balance_loss, stage.router_loss) == ("top_k", 0.02, 0.0)
    assert method("dense-active").recipe.groups.count == 1
    assert method("native-random").recipe.groups.source == "random"
    assert [stage.routing for stage in method("native-random").recipe.train.stages] == ["group", "top_k"]
    assert method("dense-tag").tag
    assert method("btx").branch_share == 0.7


def test_a_preset_gives_what_the_recipe_does_not_choose_itself() -> None:
    paper = method("paper").recipe
    assert (paper.preset, paper.layers.epsilon, paper.layers.all, paper.experts.kind) == ("paper", 0.6, None, "copy")
    assert (paper.train.max_grad_norm, paper.train.beta2, paper.groups.objective) == (0.3, 0.999, "greedy")
    assert paper.groups.count == 4  # the recipe's own
    default = method("default", preset="paper").recipe
    assert (default.layers.all, default.experts.kind, default.train.max_grad_norm) == (True, "shared", 1.0)


def test_a_recipe_rebased_twice_is_itself() -> None:
    recipe = recipe_of()
    there = Recipe.model_validate(rebased(recipe, "native"))
    assert there.train.stages != recipe.train.stages
    assert Recipe.model_validate(rebased(there, "default")) == recipe


def test_a_choice_of_the_recipe_stays_under_another_preset() -> None:
    recipe = recipe_of()
    recipe = recipe.model_copy(update={"experts": recipe.experts.model_copy(update={"num_experts_per_tok": 3})})
    assert Recipe.model_validate(rebased(recipe, "paper")).experts.num_experts_per_tok == 3


def test_more_groups_than_languages_leave_a_packaged_method_out(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of("{methods: [groups-3, groups-9]}", num_languages=4)
    assert [one.name for one in methods_of(recipe, SIZES)] == ["groups-3"]
    assert "groups-9: left out, 9 groups are more than the 4 languages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("{methods: [dence]}", "'dence' does not come with the package, did you mean 'dense'"),
        ("{methods: [base]}", "the untouched base is always scored"),
        ("{methods: [{m: {like: densee}}]}", "compare.methods.m.like: there is no method 'densee', did you mean"),
        ("{methods: [{m: {expert: {width: 3}}}]}", "compare.methods.m.expert is no key of a method, did you mean"),
        ("{methods: [{m: {experts: {widht: 3}}}]}", "compare.methods.m.experts.widht is no key of a recipe, did you"),
        ("{methods: [{m: {experts: {width: -3}}}]}", "compare.methods.m.experts.width: found -3; "),
        ("{methods: [{m: {experts: {width: wide}}}]}", "compare.methods.m.experts.width: found 'wide'; give a number"),
        ("{methods: [{m: {groups: {count: 11}}}]}", "compare.methods.m: groups.count = 11 for 10 languages"),
        ("{methods: [{m: {train: {tokens: 99}}}]}", "compare.methods.m.train.tokens is the same for every method"),
        ("{methods: [{m: {probe: {steps: 3}}}]}", "compare.methods.m.probe.steps is the same for every method"),
        ("{methods: [{m: {system: moe}}]}", "compare.methods.m.system: found 'moe'; "),
        ("{methods: [{m: {size: total}}]}", "compare.methods.m: size_of, a method, and size"),
        ("{methods: [{m: {tag: true}}]}", "tag belongs to system: dense"),
        ("{methods: [{m: {preset: papr}}]}", "compare.methods.m.preset: found 'papr'"),
    ],
)
def test_a_mistake_names_its_place(compare: str, message: str) -> None:
    recipe = recipe_of(compare)
    with pytest.raises(InputError) as error:
        methods_of(recipe, SIZES)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("{methods: dense}", "compare.methods: found 'dense'; give a list of names"),
        ("{methods: [dense, dense]}", "compare.methods: 'dense' is given twice"),
        ("{methods: [{a: {}, b: {}}]}", "give the name of a method, or {name: {...}}"),
        ("{methods: [../x]}", "give the name of a method"),
        ("{methods: [{a: 3}]}", "a: found 3; give a mapping of what the method changes"),
        ("{seeds: []}", "compare.seeds: found []"),
        ("{seeds: [1, 1]}", "compare.seeds: 1 is given twice"),
        ("{learning_rates: [-1.0]}", "compare.learning_rates.0: found -1.0"),
        ("{method: [dense]}", "compare.method is no key of a recipe, did you mean 'methods'"),
    ],
)
def test_a_wrong_compare_part_is_no_recipe(compare: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_of(compare)
    assert message in str(error.value)


def test_a_recipe_with_methods_is_written_and_read_back() -> None:
    recipe = recipe_of("{methods: [dense, {m: {experts: {width: '1/2'}}}], seeds: [0, 1], learning_rates: [1.0e-2]}")
    assert build_recipe(dump_recipe(recipe), name="again", folder=Path.cwd()) == recipe
