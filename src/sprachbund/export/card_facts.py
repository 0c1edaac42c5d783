"""What a model card says, gathered from the files of a model's folder and of its run. No torch here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sprachbund.errors import InputError, brief
from sprachbund.languages import canonical, display_name

ROUTINGS = ("group", "prefix", "top_k")
_SCORES = ("perplexity", "perplexity_after_burn_in", "bits_per_byte")
EQUAL = 0.0005  # a change below 0.05% would be shown as 0.0%


@dataclass(frozen=True)
class Row:
    """One system of the table of scores; changes are against the dense control, None where there is none."""

    system: str
    perplexity: float
    change: float | None
    after_burn_in: float
    change_after_burn_in: float | None
    bits_per_byte: float
    worst: tuple[str, float] | None


@dataclass(frozen=True)
class Facts:
    """All that a card is made of; empty or None where no file says it.

    `base` is what the base is called: its id on the Hub, which is then `base_model` as well, or the name of a folder,
    without the path, since that is nobody's business where a card is published.
    """

    title: str
    config: Mapping[str, Any]
    groups: list[list[str]]
    base: str | None = None
    base_model: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    grouping: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    compression: Mapping[str, Any] = field(default_factory=dict)
    regrouping: Mapping[str, Any] = field(default_factory=dict)
    adaptation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_mixture(self) -> bool:
        """Is it one of this package's own architectures?"""
        return _is_mixture(self.config)

    @property
    def export_routing(self) -> str | None:
        """Which routing of the mixture an export computes; None for a model that is no export."""
        target = self.export.get("target")
        return None if target is None else "group" if target == "dense" else "top_k"

    @property
    def tags(self) -> list[str]:
        """The languages, group by group."""
        return [tag for members in self.groups for tag in members]

    @property
    def paths(self) -> list[Mapping[str, Any]]:
        """The paths of languages that came later, as the configuration has them."""
        return list(self.config.get("language_paths") or [])

    @property
    def later(self) -> list[str]:
        """The languages that came later."""
        return [tag for path in self.paths for tag in path["languages"]]

    @property
    def rows(self) -> list[Row]:
        """The average scores of every system."""
        average, changes = self.metrics.get("average", {}), self.metrics.get("change_vs_dense", {})
        rows = []
        for system, perplexity in average.get("perplexity", {}).items():
            change = changes.get(system, {})
            worst = change.get("worst")
            rows.append(
                Row(
                    system,
                    perplexity,
                    change.get("average_all_positions"),
                    average["perplexity_after_burn_in"][system],
                    change.get("average"),
                    average["bits_per_byte"][system],
                    (worst[0], worst[1]) if worst else None,
                )
            )
        return rows

    @property
    def scored(self) -> Mapping[str, Any]:
        """The scores of each language; of a dense export of its own languages only."""
        languages: dict[str, Any] = self.metrics.get("languages", {})
        if self.export_routing != "group":
            return languages
        return {tag: scores for tag, scores in languages.items() if tag in self.tags}

    def change(self, routing: str, tag: str) -> float | None:
        """Return a language's change of perplexity after burn-in against the dense control."""
        scores = self.scored[tag]["perplexity_after_burn_in"]
        return scores[routing] / scores["dense"] - 1 if routing in scores and "dense" in scores else None

    def losers(self, routing: str) -> list[tuple[str, float]]:
        """Return the languages that are worse than under the dense control, worst first."""
        changes = [(tag, self.change(routing, tag)) for tag in self.scored]
        worse = [(tag, change) for tag, change in changes if change is not None and change > EQUAL]
        return sorted(worse, key=lambda loser: -loser[1])


def gather(folder: Path, *, run: Path | None, base: str | None, evaluated: bool, place: Path | None = None) -> Facts:
    """Read the facts; see `write_card`. Raises InputError for a file that is there and cannot be read."""
    config = _json(folder / "config.json")
    if not config:
        raise InputError(f"{folder} has no config.json; a model card is written for a saved model")
    export, compression, regrouping = (_json(folder / f"{made}.json") for made in ("export", "compress", "regroup"))
    recipe = _recipe(run) if run else {}
    metrics = _metrics(run / "metrics.json") if run and evaluated else {}
    place = place or folder
    default = place.parent.name if place.name == "model" else place.name
    base = base or export.get("base") or _base(recipe)
    base_model = base if base and is_hub_id(base) else None
    return Facts(
        title=_title(
            str(recipe.get("name") or default), config, export | compression | regrouping, control=bool(recipe)
        ),
        config=config,
        groups=_groups(config, export, run),
        base=base_model or (Path(base).name if base else None),
        base_model=base_model,
        recipe=recipe,
        metrics=metrics,
        grouping=_json(run / "grouping.json") if run else {},
        export=export,
        compression=compression,
        regrouping=regrouping,
        adaptation=_json(place.parent / "adapt.json") if place.name == "model" else {},
    )


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); write it again with what made it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object; write it again with what made it")
    return found


def _recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({brief(error)}); run the recipe again") from error
    return found if isinstance(found, dict) else {}


def _metrics(path: Path) -> dict[str, Any]:
    metrics = _json(path)
    if metrics and metrics.get("schema") != 1:
        raise InputError(f"{path}: found schema {metrics.get('schema')!r}, and this version reads 1; evaluate again")
    if metrics:
        average = metrics.get("average") or {}
        lacking = [kind for kind in _SCORES if not average.get(kind)] + ["languages"] * (not metrics.get("languages"))
        if lacking:
            raise InputError(f"{path}: there is nothing under {lacking[0]!r}; evaluate again")
    return metrics


def _title(name: str, config: Mapping[str, Any], made: Mapping[str, Any], *, control: bool) -> str:
    """Return the name of a run or folder, and what else the model was `made` than its mixture."""
    target = made.get("target")
    if target == "dense":
        return f"{name}, group {made.get('group')} as a dense model"
    if target:
        return f"{name} as {target}"
    if made.get("method"):
        return f"{name}, its experts made smaller"
    if made.get("verb"):
        return f"{name}, its groups changed"
    return f"{name}, dense control" if control and not _is_mixture(config) else name


def _is_mixture(config: Mapping[str, Any]) -> bool:
    return str(config.get("model_type", "")).startswith("dmoe_")


def _groups(config: Mapping[str, Any], export: Mapping[str, Any], run: Path | None) -> list[list[str]]:
    """Return the languages of each group, in the order of the model's languages; of a dense export its own only."""
    of_language = config.get("groups") or export.get("groups") or (_json(run / "groups.json") if run else {})
    order = export.get("languages") or config.get("languages") or list(of_language)
    groups: list[list[str]] = [[] for _ in range(1 + max(of_language.values(), default=-1))]
    for tag in order:
        groups[of_language[tag]].append(tag)
    return groups


def _base(recipe: Mapping[str, Any]) -> str | None:
    base = recipe.get("base")
    return base if isinstance(base, str) else base.get("path") if isinstance(base, dict) else None


def is_hub_id(base: str) -> bool:
    """Is this the id of a model on the Hub, and not a folder?"""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if base.startswith((".", "/", "~")) or Path(base).is_dir():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def hub_language(tag: str) -> str | None:
    """Return the Hub's code of a language: ISO 639-1 where it means this language, else ISO 639-3.

    "sw" for swh_Latn, since that is the individual language meant by it; "nhg" for nhg_Latn. None where the tag is no
    language's.
    """
    from langcodes import data_dicts, standardize_tag

    try:
        code = canonical(tag).partition("_")[0]
    except InputError:
        return None
    short = {alpha3: alpha2 for alpha2, alpha3 in data_dicts.LANGUAGE_ALPHA3.items() if len(alpha2) == 2}
    if code in short:
        return str(short[code])
    wider = standardize_tag(code, macro=True)
    return wider if len(wider) == 2 and canonical(wider).partition("_")[0] == code else code


def language_name(tag: str) -> str:
    """Return a language's English name, the tag itself where it is no language's."""
    try:
        return display_name(tag)
    except InputError:
        return tag
