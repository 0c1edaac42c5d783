"""The whole recipe: its parts together, and what must hold between them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sprachbund.errors import InputError, brief, nearest
from sprachbund.languages import canonical
from sprachbund.recipe.compare import Compare
from sprachbund.recipe.part import Part
from sprachbund.recipe.plan import Groups, Layers, Probe, ProbeSource
from sprachbund.recipe.text import Base, Mixture, Source, Splits
from sprachbund.recipe.training import Dense, Evaluate, Experts, Train


def _by_tag(values: dict[Any, Any]) -> dict[str, Any]:
    """Return the values under canonical language tags; raises ValueError, as validators must."""
    names: dict[str, Any] = {}
    for given in values:
        try:
            tag = canonical(str(given))
        except InputError as error:
            raise ValueError(str(error)) from None
        if tag in names:
            raise ValueError(f"{names[tag]!r} and {given!r} are both {tag}; every language may be given once")
        names[tag] = given
    return {tag: values[given] for tag, given in names.items()}


def _check_known(names: Iterable[str], tags: Sequence[str], place: str) -> None:
    """Raise ValueError for a language that the recipe does not have."""
    for tag in names:
        if tag not in tags:
            raise ValueError(f"{place} names {tag}, which is no language of the recipe{nearest(tag, tags) or '.'}")


class Recipe(Part):
    """A whole run."""

    name: str = Field(
        ...,
        pattern=r"^\w[\w.-]*$",
        description="name of the run: letters, digits, '.', '_' and '-', first a letter or digit",
    )
    preset: Literal["default", "paper", "native"] = Field(
        "default",
        description="starting values of probe, groups, layers, experts and train (sprachbund init --preset shows them)",
    )
    base: Base = Field(..., description="the dense multilingual decoder to start from")
    languages: dict[str, Source] = Field(..., min_length=2, description="language tag: source of its text")
    splits: Splits = Field(Splits(), description="held-out shares")
    mixture: Mixture = Field(Mixture(), description="tokens per language")
    probe: Probe = Field(Probe(), description="the probe")
    groups: Groups = Field(Groups(), description="the grouping")
    layers: Layers = Field(Layers(all=True), description="the mixture layers")
    experts: Experts = Field(Experts(), description="the experts and their router")
    train: Train = Field(..., description="training")
    dense: Dense = Field(Dense(), description="the dense control")
    evaluate: Evaluate = Field(Evaluate(), description="evaluation")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything that is drawn at random")
    compare: Compare | None = Field(None, description="methods side by side; a run does not read it")

    @field_validator("languages", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return _by_tag(value)

    @field_validator("groups")
    @classmethod
    def _known_languages(cls, groups: Groups, info: ValidationInfo) -> Groups:
        """Bring the language names of links and weights to canonical tags; each must be one of the recipe's."""
        if "languages" not in info.data:
            return groups
        tags = list(info.data["languages"])
        update: dict[str, Any] = {}
        for name in ("must_link", "cannot_link"):
            update[name] = [list(_by_tag(dict.fromkeys(link))) for link in getattr(groups, name)]
            for link in update[name]:
                _check_known(link, tags, name)
                if len(link) < 2:
                    raise ValueError(f"{name} has the link {link}; a link names at least two languages")
        if isinstance(groups.weights, dict):
            update["weights"] = _by_tag(groups.weights)
            _check_known(update["weights"], tags, "weights")
            if missing := [tag for tag in tags if tag not in update["weights"]]:
                raise ValueError(f"weights has no number for {', '.join(missing)}; give every language one")
        if groups.source == "family" and groups.families is None:
            sources = info.data["languages"].values()
            if missing := [tag for tag, source in zip(tags, sources, strict=True) if source.family is None]:
                raise ValueError(
                    f"source: family knows no family of {', '.join(missing)}; give languages.{missing[0]}.family, "
                    "or groups.families, a CSV"
                )
        return groups.model_copy(update=update)

    @field_validator("mixture")
    @classmethod
    def _shares(cls, mixture: Mixture, info: ValidationInfo) -> Mixture:
        if mixture.shares is None or "languages" not in info.data:
            return mixture
        shares = _by_tag(mixture.shares)
        if set(shares) != set(info.data["languages"]):
            odd = sorted(set(shares) ^ set(info.data["languages"]))
            raise ValueError(f"shares must name every language of the recipe and no other; differing: {', '.join(odd)}")
        return mixture.model_copy(update={"shares": shares})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count, num_languages = self.groups.count, len(self.languages)
        if self.groups.given is None and count != "auto" and count > num_languages:
            raise ValueError(
                f"groups.count = {count} for {num_languages} languages; give 1 to {num_languages}, or auto"
            )
        if self.base.scratch is not None:
            self.check_layers(self.base.scratch.num_layers)
        self._check_experts()
        if (self.evaluate.window or self.train.block_size) <= self.evaluate.burn_in:
            raise ValueError(
                f"evaluate.burn_in = {self.evaluate.burn_in} leaves nothing of a window of "
                f"{self.evaluate.window or self.train.block_size} tokens"
            )
        return self

    def _check_experts(self) -> None:
        """Raise ValueError for sizes that experts of a kind do not have."""
        experts = self.experts
        if experts.kind == "copy" and experts.width is not None:
            raise ValueError("experts.width does not belong to experts.kind: copy; a copy has the dense FFN's width")
        if experts.language_width is not None and experts.kind != "hierarchy":
            raise ValueError(f"experts.language_width belongs to experts.kind: hierarchy, not {experts.kind}")
        if experts.rank is not None and experts.kind not in ("shared", "hierarchy"):
            raise ValueError(f"experts.rank belongs to experts.kind: shared or hierarchy, not {experts.kind}")
        alternate = any(stage.routing == "alternate" for stage in self.train.stages)
        if alternate and self.groups.count == 1:
            raise ValueError("train.stages: routing alternate needs several groups, and groups.count is 1")

    def check_layers(self, num_layers: int) -> None:
        """Raise ValueError for layers that a base of `num_layers` does not have: now, not after hours."""
        if isinstance(self.probe.layers, list) and max(self.probe.layers) >= num_layers:
            raise ValueError(
                f"probe.layers names layer {max(self.probe.layers)}; the base has layers 0 to {num_layers - 1}"
            )
        if (self.probe.hidden_layer or 0) > num_layers:
            raise ValueError(
                f"probe.hidden_layer = {self.probe.hidden_layer} is more than the base's {num_layers} layers"
            )
        total, count = self.layers.layerwise, self.groups.count
        if total is not None and count != "auto" and self.groups.given is None and total > count * num_layers:
            raise ValueError(
                f"layers.layerwise = {total} experts in all; {count} groups in {num_layers} layers can have 2 to "
                f"{count * num_layers}"
            )
        if self.layers.top is not None and self.layers.top > num_layers:
            raise ValueError(f"layers.top = {self.layers.top} is more than the base's {num_layers} layers")
        if self.layers.given is not None and max(self.layers.given) >= num_layers:
            raise ValueError(
                f"layers.given names layer {max(self.layers.given)}; the base has layers 0 to {num_layers - 1}"
            )

    @property
    def groups_by_similarity(self) -> bool:
        """Are the groups made by how alike languages are? They may be given, and one group leaves nothing to decide."""
        return self.groups.given is None and self.groups.count != 1

    def tags(self) -> list[str]:
        """Return the canonical language tags in the order of the recipe."""
        return list(self.languages)

    def probe_sources(self) -> list[ProbeSource]:
        """Return what the probe measures: what is asked for, and what groups and layers are decided by."""
        wanted: list[str] = list(self.probe.sources)
        if self.groups_by_similarity:
            wanted.append(self.groups.source.removesuffix("-stepwise"))
        if self.layers.source is not None:
            wanted.append(self.layers.source)
        return [source for source in get_args(ProbeSource) if source in wanted]

    def families(self) -> dict[str, str] | None:
        """Return the family that the recipe gives for every language; None where one has none."""
        found = {tag: source.family for tag, source in self.languages.items()}
        return None if None in found.values() else {tag: str(family) for tag, family in found.items()}

    def resolved(self, folder: Path) -> Recipe:
        """Return the recipe with every relative path made absolute, seen from `folder`.

        Raises InputError for a path that there cannot be, such as one with a NUL character.
        """

        def absolute(path: str | None) -> str | None:
            if path is None:
                return None
            try:
                return str((folder / os.path.expanduser(path)).resolve())
            except (OSError, RuntimeError, ValueError) as error:
                raise InputError(f"{path!r} cannot be a path ({brief(error)}); correct it") from None

        def located(source: Source) -> Source:
            if isinstance(source.file, list):
                return source.model_copy(update={"file": [absolute(path) for path in source.file]})
            return source.model_copy(update={"file": absolute(source.file)})

        languages = {tag: located(source) for tag, source in self.languages.items()}
        local = self.base.path is not None and os.path.isdir(folder / os.path.expanduser(self.base.path))
        base = self.base.model_copy(update={"path": absolute(self.base.path)}) if local else self.base
        if (scratch := base.scratch) is not None:
            scratch = scratch.model_copy(update={"tokenizer": absolute(scratch.tokenizer)})
            base = base.model_copy(update={"scratch": scratch})
        paths = ("given", "similarity", "families")
        groups = self.groups.model_copy(update={name: absolute(getattr(self.groups, name)) for name in paths})
        probe = self.probe.model_copy(update={"sentences": absolute(self.probe.sentences)})
        return self.model_copy(update={"languages": languages, "base": base, "groups": groups, "probe": probe})
