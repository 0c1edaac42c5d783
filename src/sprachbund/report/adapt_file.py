"""Read adapt.json, what an adaptation wrote of itself, before any of it is shown."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sprachbund.errors import InputError
from sprachbund.report.reading import read_json


class _Part(BaseModel):
    """What the page does not show is ignored."""

    model_config = ConfigDict(extra="ignore")


class Parent(_Part):
    """A group of the old model and its languages."""

    group: int
    languages: list[str] = []


class UnderGroup(Parent):
    """How well the old model predicts the new text under one of its groups."""

    perplexity: float
    bits_per_byte: float | None = None


class NewLanguage(_Part):
    """What was built for one new language, and from what; None is what does not apply or was not written.

    `joined` is the group id whose own part was trained further, where nothing was built; `shares_with` are the
    languages that have the same path.
    """

    group_id: int
    parent: Parent | None = None
    start: str | None = None
    joined: int | None = None
    shares_with: list[str] = []
    train_tokens: int | None = None
    train_bytes: int | None = None
    bytes_per_token: float | None = None
    warnings: list[str] = []
    under_groups: list[UnderGroup] = []
    parameters: int | None = None
    share_of_dense: float | None = None
    extension: int = 0


class Score(_Part):
    """One language under one mode."""

    perplexity: float
    perplexity_after_burn_in: float | None = None
    bits_per_byte: float
    bits_per_byte_after_burn_in: float | None = None


class LanguageScores(_Part):
    """One language before and after, by mode, and the share of its positions that went to others' paths."""

    new: bool
    before: dict[str, Score] = {}
    after: dict[str, Score]
    routed: dict[str, float] = {}


class Worst(_Part):
    """The old language that lost most."""

    language: str
    mode: str
    change: float


class Forgetting(_Part):
    """The verdict on what was lost."""

    limit: float
    worst: Worst | None = None
    holds: bool


class AdaptResult(_Part):
    """`adapt.json`, schema 1."""

    package: str = ""
    source: str = ""
    path: str
    gate: str | None = None
    seed: int = 0
    tokens: int | None = None
    learning_rate: float | None = None
    base_parameters: int | None = None
    languages: dict[str, NewLanguage] = Field(min_length=1)
    scores: dict[str, LanguageScores] = {}
    forgetting: Forgetting
    seconds: dict[str, float] = {}


def read_adapt_file(path: Path) -> AdaptResult:
    """Read and check an adapt.json.

    Raises:
        InputError: there is none, or it is not what this version writes.
    """
    if not path.is_file():
        raise InputError(f"{path.parent}: there is no adapt.json; give a folder that `sprachbund adapt` wrote.")
    found = read_json(path)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != 1:
        raise InputError(f"{path}: found schema {schema!r}, and this version reads schema 1; adapt again.")
    try:
        return AdaptResult.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: at {where}: {first['msg'].lower()}; adapt again.") from error
