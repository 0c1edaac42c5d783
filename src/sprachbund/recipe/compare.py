"""The part of a recipe about methods side by side."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from sprachbund.recipe.part import Part, Rate

MethodChoice = str | dict[str, dict[str, Any]]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Compare(Part):
    """Methods side by side, `sprachbund compare`: trained from one base on the same tokens in the same order."""

    methods: list[MethodChoice] = Field(
        ["dense", "dense-tag", "dense-active", "upcycling", "paper", "ensemble", "default", "native"],
        min_length=1,
        description="methods that come with the package, or {name: {...}}: one's own, or one of these changed",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        [0], min_length=1, description="every method is trained under each at its best learning rate"
    )
    learning_rates: list[Rate] | None = Field(
        None,
        min_length=1,
        description="every method is trained at each under the first seed, and the dev split chooses; while the best "
        "is at an edge, the next beyond is tried, at most two on a side; null: train.learning_rate alone",
    )
    languages: list[Annotated[int, Field(ge=2)]] | None = Field(
        None, min_length=1, description="repeat all for the first so many languages, at equal tokens per language"
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError(f"found {value!r}; give a list of names, or of {{name: {{...}}}}")
        names = []
        for item in value:
            parts = list(item) if isinstance(item, dict) else [item]
            if len(parts) != 1 or not isinstance(parts[0], str) or not _NAME.fullmatch(parts[0]):
                raise ValueError(
                    f"found {item!r}; give the name of a method, or {{name: {{...}}}} (letters, digits, '.', '_', '-')"
                )
            if isinstance(item, dict) and not isinstance(item[parts[0]], dict):
                raise ValueError(f"{parts[0]}: found {item[parts[0]]!r}; give a mapping of what the method changes")
            names += parts
        return _once(value, names)

    @field_validator("seeds", "learning_rates", "languages")
    @classmethod
    def _different(cls, value: Any) -> Any:
        return value if value is None else _once(value, value)


def _once(value: Any, names: list[Any]) -> Any:
    """Return `value`; raises ValueError where one of `names` occurs twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is given twice; give each once")
    return value
