"""Read `grouping.json`: how a run's groups were made and how sure they are.

Every part of the file is optional. A part that is malformed is left out and named in `problems`, which the page
shows: the groups themselves are in other files, and a remark about them must not cost the report.
Shapes: L languages.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sprachbund.report.formats import clean_all


def _finite(value: object) -> object:
    """Return None for a number that is none: NaN and infinity say "not measured" as null does."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Share = Annotated[Annotated[float, Field(ge=0.0, le=1.0)] | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    """A part of the file; what the page does not show is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class How(_Part):
    """What the groups were made from, for what objective, and how good they are proven to be."""

    source: str | None = None
    objective: str | None = None
    method: str | None = None
    mean: Number = None
    min: Number = None
    bound: Number = None
    proven: bool = False
    least: Number = None
    floor: Number = None
    count_chosen: str | None = None


class Stability(_Part):
    """What regrouping on resampled probe data gave."""

    resamples: int = 0
    kind: str = ""
    co_assignment: list[list[Share]] = []
    tags: list[str] = []
    mean_rand: Number = None
    confidence: dict[str, Share] = {}
    between_repeats: Number = None

    def shares_LL(self, tags: Sequence[str]) -> NDArray[np.float64] | None:
        """Return (L, L) how often two languages shared a group, in the order of `tags`; None where some are unknown.

        NaN where two languages were never resampled together.
        """
        if not set(tags) <= set(self.tags):
            return None
        order = [self.tags.index(tag) for tag in tags]
        return np.array(self.co_assignment, dtype=np.float64)[np.ix_(order, order)]


class Families(_Part):
    """How well the groups agree with the languages' families."""

    rand: Number = None
    p_value: Number = None
    permutations: int = 0
    families: dict[str, str] = {}


class Source(_Part):
    """One of the similarities of the run, grouped under the same objective."""

    mean: Number = None
    min: Number = None
    rand_to_used: Number = None
    family_auc: Number = None
    family_rand: Number = None


@dataclass(frozen=True)
class CountRow:
    """One number of groups on the curve that it was chosen from; `values` has every numeric column of the file."""

    count: int
    values: dict[str, float | None]
    chosen: bool


@dataclass
class GroupingResult:
    """What the file says; None or empty where it says nothing, `problems` where a part could not be read."""

    how: How | None = None
    curve: list[CountRow] = field(default_factory=list)
    stability: Stability | None = None
    families: Families | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


_P = TypeVar("_P", bound=_Part)


def read_grouping_file(path: Path) -> GroupingResult:
    """Read the file as far as it can be read."""
    result = GroupingResult()
    try:
        found = clean_all(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (ValueError, RecursionError) as error:
        result.problems.append(f"not JSON ({error})")
        return result
    if not isinstance(found, dict):
        result.problems.append("no JSON object")
        return result
    result.how = _part(How, found, "", result)
    result.stability = _checked(_part(Stability, found.get("stability"), "stability", result), result)
    result.families = _part(Families, found.get("families"), "families", result)
    result.curve = _curve(found.get("curve"), result)
    result.sources = {
        name: source
        for name, value in _entries(found.get("sources"), result).items()
        if (source := _part(Source, value, f"sources.{name}", result)) is not None
    }
    return result


def columns_of(rows: Sequence[CountRow]) -> list[str]:
    """Return the columns of a curve in the order of the file, without those that have no number at all."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [name for name in names if any(row.values.get(name) is not None for row in rows)]


def points_of(rows: Sequence[CountRow], name: str) -> list[tuple[int, float]]:
    """Return the (number of groups, value) points that a column has."""
    return [(row.count, value) for row in rows if (value := row.values.get(name)) is not None]


def _part(kind: type[_P], value: object, name: str, result: GroupingResult) -> _P | None:
    """Return one part, None where it is absent or cannot be read."""
    if value is None:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (*filter(None, [name]), *first["loc"]))
        result.problems.append(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")
        return None


def _checked(stability: Stability | None, result: GroupingResult) -> Stability | None:
    """Return the stability without a co-assignment that is not one row and one column per language."""
    if stability is None:
        return None
    size = len(stability.tags)
    rows = stability.co_assignment
    if len(set(stability.tags)) == size and len(rows) == size and all(len(row) == size for row in rows):
        return stability
    result.problems.append("stability.co_assignment: it must have one row and one column for each of stability.tags")
    return stability.model_copy(update={"tags": [], "co_assignment": []})


def _entries(value: object, result: GroupingResult) -> Mapping[str, Any]:
    """Return the sources by name."""
    if value is None or isinstance(value, dict):
        return value or {}
    result.problems.append("sources: it must be an object")
    return {}


def _curve(value: object, result: GroupingResult) -> list[CountRow]:
    """Return the curve over the number of groups, smallest number first."""
    if value is None:
        return []
    rows = value if isinstance(value, list) else [value]
    curve = []
    for position, row in enumerate(rows):
        count = row.get("count") if isinstance(row, dict) else None
        if not isinstance(count, int) or isinstance(count, bool):
            result.problems.append(f"curve.{position}: a row must have a whole number `count`")
            return []
        numbers = {name: _number(cell) for name, cell in row.items() if name != "count" and not isinstance(cell, bool)}
        kept = {name: number for name, number in numbers.items() if number is not None or row[name] is None}
        curve.append(CountRow(count, kept, row.get("chosen") is True))
    return sorted(curve, key=lambda row: row.count)


def _number(cell: object) -> float | None:
    """Return a finite number, None for anything else."""
    return float(cell) if isinstance(cell, int | float) and abs(cell) <= sys.float_info.max else None
