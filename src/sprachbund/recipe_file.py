"""Recipes from YAML: read safely, laid over a preset, changed by --set, validated, and every mistake named."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sprachbund.errors import InputError, brief, nearest
from sprachbund.recipe import Recipe

PRESETS = ("default", "paper", "native")
WHOLE = {"layers", "groups"}  # parts of a preset that a recipe replaces, not merges


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not silently the last."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # "<<: *shared", which repeats keys on purpose
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key_node.start_mark)
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_AS_TEXT = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {  # a language tag or locale such as "no" is text, never false; so is a date
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _AS_TEXT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))

_OF_VALUES = (ValueError, LookupError, AttributeError)  # "!!int x", "!!bool x", "!!timestamp x": PyYAML does not check


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML; raises InputError with file, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise InputError(f"{where}: {error.problem}; give valid YAML with every key once") from None
    except (yaml.YAMLError, *_OF_VALUES, RecursionError) as error:  # the last: brackets in thousands
        raise InputError(f"{name}: no valid YAML ({brief(error)}); correct it") from None


def packaged(name: str) -> str:
    """Return a recipe that comes with the package: default, paper, native, demo or init."""
    return (resources.files("sprachbund") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(path: Path, *, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read, complete and validate a recipe; relative paths in it are seen from its folder.

    `overrides` are "a.b=value" with a YAML value. Raises InputError, one sentence, for everything that is wrong.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a recipe file (.yaml)")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte-order mark
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(
            f"there is no recipe {path}{nearest(path.name, beside) or ';'} `sprachbund init` writes one"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a readable recipe file") from None
    return build_recipe(text, name=str(path), folder=path.parent, overrides=overrides, seed=seed)


def build_recipe(
    text: str, *, name: str, folder: Path, overrides: Sequence[str] = (), seed: int | None = None
) -> Recipe:
    """Return the validated recipe of a YAML text (see load_recipe)."""
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: a recipe is a mapping of keys; found {type(values).__name__}")
    changes = [_parse_override(override) for override in overrides]
    for change in changes:
        if change.keys == ["preset"]:  # first: the preset is what the others change
            values["preset"] = change.value
    preset = values.get("preset", "default")
    if preset not in PRESETS:
        raise InputError(f"{name}: preset: {preset!r} is unknown; one of {', '.join(PRESETS)}")
    below = parse_yaml(packaged(preset), preset)
    if any(change.keys == ["preset"] for change in changes) and (given := _conflicts(below, values)):
        raise InputError(
            f"--set preset={preset}: {name} gives {', '.join(given[:3])}{', ...' if len(given) > 3 else ''} itself, "
            "which the preset would set; remove that from the recipe, or write a recipe without it"
        )
    for change in changes:
        _set(values, change, below)
    if seed is not None:
        values["seed"] = seed
    merged = merge(below, values)
    try:
        return Recipe.model_validate(merged).resolved(folder.resolve())
    except ValidationError as error:
        raise InputError(explain(error, name)) from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every default filled in; build_recipe reads it back to the same recipe."""
    values = _values(recipe)
    for name, given in parse_yaml(packaged(recipe.preset), recipe.preset).items():
        part = getattr(recipe, name)
        if isinstance(given, dict):  # what is off here and on in the preset must be said
            values[name] |= {key: None for key in given if getattr(part, key) is None}
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """YAML that _Loader reads back to the same values: what that takes for a number or truth value is quoted."""


_Dumper.yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _values(part: Any) -> Any:
    """Return a part as plain values; null is left out where it is the default, and said where it is a choice."""
    if isinstance(part, BaseModel):
        fields = type(part).model_fields
        found = {name: getattr(part, name) for name in fields}
        return {k: _values(v) for k, v in found.items() if v is not None or fields[k].default is not None}
    if isinstance(part, dict):
        return {key: _values(value) for key, value in part.items()}
    return [_values(item) for item in part] if isinstance(part, list | tuple) else part


def _conflicts(below: Any, above: Any, place: str = "") -> list[str]:
    """Return the places where a recipe overrides a preset with another value."""
    if isinstance(below, dict) and isinstance(above, dict):
        common = [key for key in below if key in above]
        return [found for key in common for found in _conflicts(below[key], above[key], f"{place}.{key}".lstrip("."))]
    return [] if below == above else [place]


def merge(below: Mapping[str, Any], above: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return a recipe's values laid over others, such as a preset's: parts are merged, `layers` and lists replaced."""
    merged = dict(below)
    for key, value in above.items():
        place = f"{path}{key}"
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and place not in WHOLE:
            merged[key] = merge(merged[key], value, f"{place}.")
        elif place == "groups" and isinstance(value, dict) and "given" not in value:
            merged[key] = {**(merged.get(key) or {}), **value}
        else:
            merged[key] = value
    return merged


@dataclass(frozen=True)
class _Override:
    """One --set: the keys of a place in the recipe, and its new value."""

    text: str
    keys: list[str]
    value: Any

    def error(self, message: str) -> InputError:
        return InputError(f"--set {self.text}: {message}")


def _parse_override(text: str) -> _Override:
    place, sign, value = text.partition("=")
    keys = place.strip().split(".")
    if not sign or not all(keys):
        raise InputError(f"--set {text}: give a.b=value, for example --set train.tokens=100000")
    return _Override(text, keys, parse_yaml(value, f"--set {text}"))


def _set(values: dict[str, Any], change: _Override, below: Any) -> None:
    """Apply a change in place; numbers address list items. A list that only the preset has is copied up first."""
    here: Any = values
    for depth, key in enumerate(change.keys[:-1], start=1):
        below = below.get(key) if isinstance(below, dict) else None
        if isinstance(here, dict) and key not in here:
            here[key] = deepcopy(below) if isinstance(below, list) else {}
        here = here[_index(here, key, change) if isinstance(here, list) else key]
        if not isinstance(here, dict | list):
            raise change.error(f"{'.'.join(change.keys[:depth])} holds {here!r}, which has no parts")
    last = change.keys[-1]
    here[_index(here, last, change) if isinstance(here, list) else last] = change.value


def _index(items: list[Any], key: str, change: _Override) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise change.error(f"{key} is no item of a list of {len(items)}; they are counted from 0")
    return int(key)


def _part_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the part of a recipe that stands at a place, None where none does."""
    found: Any = Recipe
    for key in location:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(key))
            found = field.annotation if field else None
        else:  # dict[str, X], list[X]
            found = get_args(found)[-1] if get_args(found) else None
        found = next((kind for kind in get_args(found) if kind is not NoneType), found) if _optional(found) else found
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _optional(annotation: Any) -> bool:
    return NoneType in get_args(annotation)


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Return the keys that are allowed at a place in the recipe."""
    part = _part_at(location)
    return list(part.model_fields) if part else []


def _description(location: Sequence[int | str]) -> str:
    part = _part_at(location[:-1])
    return (part.model_fields[str(location[-1])].description or "") if part else ""


def explain(error: ValidationError, name: str, *, inside: str = "") -> str:
    """Return one sentence: the first mistake, where it is (the recipe itself may stand `inside` another's place, which
    ends in a dot), and how many more there are.
    """
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    location = list(first["loc"])
    place = (inside + ".".join(map(str, location))).rstrip(".") or "the recipe"
    known = _known_keys(location[:-1])
    found = repr(first["input"])
    found = found if len(found) < 80 else found[:77] + "..."
    if first["type"] == "extra_forbidden":
        hint = nearest(str(location[-1]), known) or "."
        message = f"{place} is no key of a recipe{hint} Allowed here: {', '.join(known)}"
    elif first["type"] == "missing":
        message = f"{place} is missing; give it a value (docs/recipe.md)"
    elif first["type"] == "value_error":
        message = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    elif first["type"] == "dict_type":  # the recipe's dictionaries are keyed by language
        message = f"{place}: found {found}; give a mapping keyed by language tag, such as swh_Latn"
    elif first["type"] == "model_type":
        message = f"{place}: found {found}; give a mapping with the keys {', '.join(_known_keys(location))}"
    elif first["type"] == "string_pattern_mismatch":
        message = f"{place}: found {found}; give the {_description(location)}"
    else:
        message = f"{place}: found {found}; {first['msg'][:1].lower()}{first['msg'][1:]}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{name}: {message}{more}"
