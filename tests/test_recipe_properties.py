"""Whatever is done to a recipe: it is a valid recipe, or one sentence says what is wrong; never a traceback."""

import math
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import PRESETS, build_recipe, dump_recipe, load_recipe, merge, packaged, parse_yaml

NAMES = [*PRESETS, "demo", "init"]
LANGUAGES = {"languages": {"ron_Latn": {"cldr": "ro"}, "spa_Latn": {"cldr": "es", "family": "Romance"}}}
SMALL = {
    "name": "small",
    "base": {"scratch": {"num_layers": 2}},
    **LANGUAGES,
    "groups": {"count": 2, "must_link": [], "weights": {"ron_Latn": 1, "spa_Latn": 2}},
    "train": {"tokens": 4096, "tokens_per_step": 512, "block_size": 64},
    "compare": {"methods": ["dense", {"mine": {"system": "dense"}}], "seeds": [0]},
    "evaluate": {"burn_in": 8},
}
KEYS = sorted({key for name in NAMES for key in parse_yaml(packaged(name), name)} | set(Recipe.model_fields))
# What a person or a program may put where something else belongs.
VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 0.5, 1e-9, 1e300, math.inf, -math.inf, math.nan, 10**30, "", " ", "0",
     "auto", "all", "last:0", "last:3", "null", "none", "no", "ron_Latn", "romanian", "../x", "~", "\0", "\ud800",
     "{split}", "x" * 500, "é\u202eא", [], [0], [1, 1], ["ron_Latn"], [["ron_Latn", "spa_Latn"]], [[]], [None], {},
     {"": 1}, {"count": 2}, {"ron_Latn": 1}, {0: 0}, {None: None}, {"file": "a.txt"}, {"file": ""}]
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested values, the outermost too."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in places(item, (*at, key)))]


def change(values: Any, data: st.DataObject) -> Any:
    """Return values with one place replaced, removed, renamed, copied elsewhere, or joined by another."""
    values = deepcopy(values)
    place = data.draw(st.sampled_from(places(values)), label="place")
    kind = data.draw(st.sampled_from(["replace", "replace", "remove", "rename", "add", "copy"]), label="kind")
    new = data.draw(VALUES, label="value")
    if not place:
        return new if kind == "replace" and data.draw(st.integers(0, 9)) == 0 else values
    parent = values
    for key in place[:-1]:
        parent = parent[key]
    here = parent[place[-1]]
    if kind == "remove":
        del parent[place[-1]]
    elif kind == "rename" and isinstance(parent, dict):
        parent[data.draw(st.sampled_from(KEYS))] = parent.pop(place[-1])
    elif kind == "add" and isinstance(here, dict):
        here[data.draw(st.sampled_from(KEYS) | st.just("ron_Latn") | st.text(max_size=4))] = new
    elif kind == "add" and isinstance(here, list):
        here.append(new)
    elif kind == "copy":
        other = values
        for key in data.draw(st.sampled_from(places(values)), label="copied"):
            other = other[key]
        parent[place[-1]] = deepcopy(other)
    else:
        parent[place[-1]] = new
    return values


def check(text: str, **more: Any) -> Recipe | None:
    """The recipe of a text, None where one sentence refuses it; every other error fails the test."""
    try:
        recipe = build_recipe(text, name="r.yaml", folder=Path("/nowhere"), **more)
    except InputError as error:
        said = str(error)
        assert said.startswith(("r.yaml", "--set"))
        assert "\n" not in said
        assert len(said) < 2000
        said.encode("utf-8")
        return None
    written = dump_recipe(recipe)
    again = build_recipe(written, name="again.yaml", folder=Path("/nowhere"))
    assert again == recipe
    assert dump_recipe(again) == written
    return recipe


def starting_values(name: str) -> dict[str, Any]:
    if name == "small":
        return SMALL
    common = {"name": "r", "base": "some/base", **LANGUAGES, "groups": {"count": 2}, "train": SMALL["train"]}
    return merge(common, parse_yaml(packaged(name), name))


@pytest.mark.parametrize("name", ["small", *NAMES])
def test_what_the_changes_start_from_is_valid(name: str) -> None:
    assert check(yaml.safe_dump(starting_values(name))) is not None


@settings(max_examples=120, deadline=None)
@given(name=st.sampled_from(["small", "small", *NAMES]), number=st.integers(1, 3), data=st.data())
def test_any_change_of_the_values_is_a_recipe_or_one_sentence(name: str, number: int, data: st.DataObject) -> None:
    values: Any = starting_values(name)
    for _ in range(number):
        values = change(values, data)
    check(yaml.safe_dump(values, allow_unicode=True))


PIECES = [
    "\n",
    "  ",
    "!!bool ",
    "!!float ",
    "!!timestamp ",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!int x",
    "!!python/none",
    "|",
    ">",
]
PIECES += ["'", '"', "#", "%", "\t", "\0", "\ufeff", "\u2028", "? ", "---\n", "...", "~", "1e5", "2026-01-01", "0x1f"]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["small", "demo", "init"]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES) | st.text(max_size=3))),
)
def test_any_change_of_the_text_is_a_recipe_or_one_sentence(name: str, edits: list[tuple[float, int, str]]) -> None:
    text = yaml.safe_dump(SMALL) if name == "small" else packaged(name)
    for share, length, piece in edits[:3]:
        place = int(share * len(text))
        text = text[:place] + piece + text[place + length :]
    check(text)


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,
        "!!int x",
        "[" * 2000,
        "&a [*a]",
        "&a {b: *a}",
        "!!float ''",
        "!!bool x",
        "!!timestamp x",
        "!!binary é",
        "!!int 0x",
    ],
)
def test_values_that_python_s_own_readers_refuse(value: str) -> None:
    assert check(yaml.safe_dump(SMALL).replace("4096", value)) is None


@pytest.mark.parametrize("path", ["a\0b.txt", "~nobody-of-this-name/x", "x" * 5000])
@pytest.mark.parametrize("place", ["languages.ron_Latn.file", "base", "groups.families", "base.scratch.tokenizer"])
def test_paths_that_cannot_be(place: str, path: str) -> None:
    values = deepcopy(SMALL)
    here, key = values, place.split(".")
    for part in key[:-1]:
        here = here[part]
    here[key[-1]] = path
    if place.endswith("file"):
        del here["cldr"]
    recipe = check(yaml.safe_dump(values))
    assert (recipe is None) == ("\0" in path and place != "base")  # there it may also be the name of a model


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_set_is_a_recipe_or_one_sentence(data: st.DataObject) -> None:
    values = SMALL
    place = data.draw(st.sampled_from(places(values)[1:]))
    key = data.draw(st.sampled_from([".".join(map(str, place)), *KEYS, "train.stages.0.share", "a.b", "groups.", "."]))
    value = data.draw(VALUES.map(repr) | st.sampled_from(["[", "{a: ", "", "=", "&a [*a]", "null", "[1, 2]"]))
    check(yaml.safe_dump(values), overrides=[data.draw(st.sampled_from([f"{key}={value}", key, f"{key}.x={value}"]))])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
@example(b"\xff\xfename: x")
@example(b"&a [*a, *a]")
def test_any_bytes_in_the_file_are_refused_in_one_sentence(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
