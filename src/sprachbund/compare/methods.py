"""What is compared: each method is a few lines over the recipe of the comparison (recipes/methods.yaml).

Only whole recipes come out of here: the words of methods.yaml are resolved, all but `size_of`, whose width needs the
number of groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from sprachbund.errors import InputError, nearest
from sprachbund.progress import say
from sprachbund.recipe import Experts, Groups, Layers, Probe, Recipe, Train
from sprachbund.recipe.compare import Compare
from sprachbund.recipe.part import Part, Positive, Rate
from sprachbund.recipe_file import explain, merge, packaged, parse_yaml

# What a method may change. All else, tokens and their order above all, is the same for every method.
PARTS = ("preset", "probe", "groups", "layers", "experts", "train")
COMMON = {"train": {"tokens", "tokens_per_step", "block_size", "learning_rate", "dtype"}}
BASE = "base"
PLANNING = {"center", "layers"}  # of the probe, which is measured once for all methods, what only reads it
_OF_PRESETS: dict[str, type[Part]] = {"probe": Probe, "groups": Groups, "layers": Layers, "experts": Experts}


class Keys(Part):
    """The keys of a method beside the parts of a recipe."""

    system: Literal["mixture", "dense", "ensemble", "btx", "base"] = "mixture"
    routing: Literal["group", "prefix", "top_k"] | None = None
    seeds: Positive | None = None
    learning_rates: Annotated[list[Rate], Field(min_length=1)] | None = None
    tag: bool = False
    branch_share: float = Field(0.7, gt=0, lt=1)
    size_of: str | None = None
    size: Literal["total", "active"] | None = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.size_of is None) != (self.size is None):
            raise ValueError("size_of, a method, and size, total or active, belong together")
        if self.size_of is not None and self.system != "mixture":
            raise ValueError("size_of sets the width of experts, which only system: mixture has")
        if self.tag and self.system != "dense":
            raise ValueError("tag belongs to system: dense")
        return self


@dataclass(frozen=True)
class Method:
    """One method: its keys, and the comparison's recipe as the method changes it."""

    name: str
    keys: Keys
    recipe: Recipe

    @property
    def system(self) -> str:
        """What is trained: mixture, dense, ensemble, btx; base for the untouched base."""
        return self.keys.system

    @property
    def tag(self) -> bool:
        """Does a language tag stand in front of every text?"""
        return self.keys.tag

    @property
    def branch_share(self) -> float:
        """btx: the share of the tokens until the branches are merged."""
        return self.keys.branch_share

    @property
    def has_groups(self) -> bool:
        """Do groups make a difference to it?"""
        return self.system not in ("dense", "base")


@dataclass(frozen=True)
class BaseSizes:
    """Of the base: layers M, width D, FFN width F."""

    num_layers: int
    hidden: int
    ffn: int


@cache
def packaged_methods() -> dict[str, dict[str, Any]]:
    """Return the methods that come with the package, as they are written."""
    found: dict[str, dict[str, Any]] = parse_yaml(packaged("methods"), "methods")
    return found


def base_method(recipe: Recipe) -> Method:
    """Return the base as it is, which is scored like a method."""
    return Method(BASE, Keys(system="base"), recipe.model_copy(update={"compare": None}))


def methods_of(recipe: Recipe, sizes: BaseSizes, only: Sequence[str] | None = None) -> list[Method]:
    """Return the methods of a recipe's comparison, in its order, or those named.

    A method that comes with the package and asks for more groups than there are languages is left out, with a word.
    Raises InputError, naming the place in the recipe, for what is wrong with a method.
    """
    chosen = _chosen(recipe, only)
    return [method for name, values in chosen.items() if (method := _method(recipe, sizes, name, values))]


def _chosen(recipe: Recipe, only: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Return what each method changes, by name."""
    own: dict[str, dict[str, Any]] = {}
    for item in (recipe.compare or Compare()).methods:
        own.update(item if isinstance(item, dict) else {item: {}})
    for name in only or ():
        if name not in own:
            own[name] = {}
    found = {name: _unfolded(name, values) for name, values in own.items()}
    return {name: found[name] for name in only or found}


def _unfolded(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's lines over those of the method that it is like, or of the packaged one of its name."""
    known = packaged_methods()
    if name == BASE:
        raise InputError("compare.methods: the untouched base is always scored, under the name base; give another name")
    below = values.get("like", name if name in known else None)
    if below is None and not values:
        raise InputError(
            f"compare.methods: {name!r} does not come with the package{nearest(name, known) or ';'} "
            f"there are {', '.join(known)}; or give {name}: {{...}}, what it changes"
        )
    if below is not None and below not in known:
        hint = nearest(str(below), known) or f"; there are {', '.join(known)}"
        raise InputError(f"compare.methods.{name}.like: there is no method {below!r}{hint}")
    return merge(_lines(below) if below else {}, {key: value for key, value in values.items() if key != "like"})


def _lines(name: str) -> dict[str, Any]:
    """Return all lines of a packaged method, with those of the one that it is like."""
    values = dict(packaged_methods()[name])
    like = values.pop("like", None)
    return merge(_lines(like), values) if like else values


def _method(recipe: Recipe, sizes: BaseSizes, name: str, values: Mapping[str, Any]) -> Method | None:
    place = f"compare.methods.{name}."
    own = {key: value for key, value in values.items() if key not in PARTS}
    try:
        keys = Keys.model_validate(own)
    except ValidationError as error:
        raise InputError(_said(error, recipe.name, place)) from None
    _check_common(values, place)
    changes = _resolved({key: values[key] for key in PARTS if key in values}, recipe, sizes, place)
    count = (changes.get("groups") or {}).get("count")
    if name in packaged_methods() and isinstance(count, int) and count > len(recipe.languages):
        say(f"{name}: left out, {count} groups are more than the {len(recipe.languages)} languages")
        return None
    preset = changes.get("preset", recipe.preset)
    below = rebased(recipe, preset) if preset in ("default", "paper", "native") else recipe.model_dump(mode="json")
    if (groups := changes.get("groups")) and groups.get("given") is None:
        below["groups"] = {**below["groups"], "given": None}
        if "source" in groups and groups["source"] != "given":
            below["groups"]["similarity"] = None
    merged = merge(below, {**changes, "compare": None})
    try:
        return Method(name, keys, Recipe.model_validate(merged))
    except ValidationError as error:
        raise InputError(explain(error, recipe.name, inside=place)) from None


def _said(error: ValidationError, name: str, place: str) -> str:
    """Return one sentence for a wrong key of a method."""
    first = error.errors()[0]
    where = ".".join([place.rstrip("."), *map(str, first["loc"])])
    if first["type"] == "extra_forbidden":
        known = ["like", *Keys.model_fields, *PARTS]
        hint = nearest(str(first["loc"][-1]), known) or "."
        return f"{name}: {where} is no key of a method{hint} Allowed here: {', '.join(known)}"
    if first["type"] == "value_error":
        return f"{name}: {where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{name}: {where}: found {first['input']!r}; {first['msg'][:1].lower()}{first['msg'][1:]}"


def _check_common(values: Mapping[str, Any], place: str) -> None:
    """Raise InputError where a method changes what must be the same for all."""
    for part in PARTS[1:]:
        changed = values.get(part)
        if part in ("layers",) or not isinstance(changed, Mapping):
            continue
        wrong = set(changed) & COMMON.get(part, set()) | (set(changed) - PLANNING if part == "probe" else set())
        if wrong:
            allowed = f"a method may change {' and '.join(sorted(PLANNING))}" if part == "probe" else "remove it"
            raise InputError(f"{place}{part}.{min(wrong)} is the same for every method of a comparison; {allowed}")


def _resolved(changes: Mapping[str, Any], recipe: Recipe, sizes: BaseSizes, place: str) -> dict[str, Any]:
    """Return changes with numbers in the place of words: fractions of the base's sizes, and `languages`."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in changes.items()}
    whole = {("experts", "width"): sizes.ffn, ("experts", "language_width"): sizes.ffn}
    whole |= {("experts", "rank"): sizes.hidden, ("layers", "top"): sizes.num_layers}
    for (part, key), size in whole.items():
        inside = found.get(part)
        if not isinstance(inside, dict) or not isinstance(word := inside.get(key), str):
            continue
        try:
            inside[key] = max(int(Fraction(word) * size), 1)
        except (ValueError, ZeroDivisionError):
            raise InputError(f'{place}{part}.{key}: found {word!r}; give a number, or a share such as "1/2"') from None
    groups = found.get("groups")
    if isinstance(groups, dict) and groups.get("count") == "languages":
        # as many groups as languages, and one group, are there without a similarity
        groups["count"] = len(recipe.languages)
    return found


def rebased(recipe: Recipe, preset: str) -> dict[str, Any]:
    """Return a recipe's values as if it had been written over another preset: its own choices stay.

    What the recipe has as its present preset, or the default, gives it is no choice of its own.
    """
    values = recipe.model_dump(mode="json")
    if preset == recipe.preset:
        return values
    old, new = _of_preset(recipe, recipe.preset), _of_preset(recipe, preset)
    return {**values, **{part: _moved(values[part], old[part], new[part]) for part in old}, "preset": preset}


def _moved(value: Any, old: Any, new: Any) -> Any:
    """Return `new` where a value is the old one, key by key in mappings."""
    if value == old:
        return new
    if isinstance(value, dict) and isinstance(old, dict) and isinstance(new, dict) and value.keys() == old.keys():
        return {key: _moved(value[key], old[key], new[key]) for key in value}
    return value


def _of_preset(recipe: Recipe, preset: str) -> dict[str, Any]:
    """Return the parts that presets fill, with this recipe's sizes of training."""
    given: dict[str, Any] = parse_yaml(packaged(preset), preset)
    parts = {name: part.model_validate(given.get(name, {})) for name, part in _OF_PRESETS.items()}
    found = {name: part.model_dump(mode="json") for name, part in parts.items()}
    sizes = recipe.train.model_dump(include={"tokens", "tokens_per_step", "block_size", "micro_batch_tokens"})
    return {**found, "train": Train.model_validate({**sizes, **given["train"]}).model_dump(mode="json")}


def with_recipe(method: Method, **parts: Any) -> Method:
    """Return a method with other parts of its recipe."""
    return replace(method, recipe=method.recipe.model_copy(update=parts))
