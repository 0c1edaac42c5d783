"""Recipes from YAML: read safely, laid over a preset, changed by --set, validated, and every mistake named."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from sprachbund.errors import InputError, nearest
from sprachbund.recipe import Recipe

PRESETS = ("default", "paper", "native")
WHOLE = {"base", "layers", "languages", "groups", "mixture"}  # parts that a recipe replaces, not merges


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not silently the last."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
_Loader.yaml_implicit_resolvers = {  # a language tag or locale such as "no" is text, never false
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML; raises InputError with file, line and column."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        raise InputError(f"{where}: {error.problem}; give valid YAML with every key once") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: no valid YAML ({' '.join(str(error).split())})") from None


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
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(
            f"there is no recipe {path}{nearest(path.name, beside)}; `sprachbund init` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return build_recipe(text, name=str(path), folder=path.parent, overrides=overrides, seed=seed)


def build_recipe(
    text: str, *, name: str, folder: Path, overrides: Sequence[str] = (), seed: int | None = None
) -> Recipe:
    """Return the validated recipe of a YAML text (see load_recipe)."""
    values = parse_yaml(text, name)
    if not isinstance(values, dict):
        raise InputError(f"{name}: a recipe is a mapping of keys; found {type(values).__name__}")
    for override in overrides:
        _set(values, override)
    if seed is not None:
        values["seed"] = seed
    preset = values.get("preset", "default")
    if preset not in PRESETS:
        raise InputError(f"{name}: preset: {preset!r} is unknown; one of {', '.join(PRESETS)}")
    merged = _merge(parse_yaml(packaged(preset), preset), values)
    try:
        return Recipe.model_validate(merged).resolved(folder.resolve())
    except ValidationError as error:
        raise InputError(_explain(error, name)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every default filled in; build_recipe reads it back to the same recipe."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        place = f"{path}{key}"
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and place not in WHOLE:
            merged[key] = _merge(merged[key], value, f"{place}.")
        elif place == "groups" and isinstance(value, dict) and "given" not in value:
            merged[key] = {**(merged.get(key) or {}), **value}
        else:
            merged[key] = value
    return merged


def _set(values: dict[str, Any], override: str) -> None:
    """Apply one "a.b=value" in place; numbers address list items."""
    place, sign, text = override.partition("=")
    keys = place.strip().split(".")
    if not sign or not all(keys):
        raise InputError(f"--set {override}: give a.b=value, for example --set train.tokens=100000")
    value = parse_yaml(text, f"--set {override}")
    here: Any = values
    for i, key in enumerate(keys[:-1]):
        try:
            here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
        except (ValueError, IndexError):
            raise InputError(f"--set {override}: {'.'.join(keys[: i + 1])} is no item of a list") from None
        if not isinstance(here, dict | list):
            raise InputError(f"--set {override}: {'.'.join(keys[: i + 1])} holds {here!r}, which has no parts")
    if isinstance(here, list):
        if not keys[-1].isdigit() or int(keys[-1]) >= len(here):
            raise InputError(f"--set {override}: {keys[-1]} is no item of a list of {len(here)}")
        here[int(keys[-1])] = value
    else:
        here[keys[-1]] = value


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Return the keys that are allowed at a place in the recipe."""
    model: Any = Recipe
    for key in location:
        if isinstance(key, str) and isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(key)
            model = field.annotation if field else None
        models = [model, *get_args(model), *(a for arg in get_args(model) for a in get_args(arg))]
        model = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return list(model.model_fields) if model else []


def _explain(error: ValidationError, name: str) -> str:
    """Return one sentence: the first mistake, where it is, and how many more there are."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    first = (unknown or errors)[0]
    location = list(first["loc"])
    place = ".".join(map(str, location)) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        message = f"{place} is no key of a recipe{nearest(str(location[-1]), known)} Allowed here: {', '.join(known)}"
    elif first["type"] == "missing":
        message = f"{place} is missing; give it a value (docs/recipe.md)"
    elif first["type"] == "value_error":
        message = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    else:
        found = repr(first["input"])
        message = f"{place}: found {found if len(found) < 80 else found[:77] + '...'}; {first['msg'].lower()}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{name}: {message}{more}"
