"""The part of the page on what was left out of the corpora, and on text that two languages share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sprachbund.corpora.bad_lines import describe_skipped
from sprachbund.corpora.overlap import MOST_SHARED
from sprachbund.errors import InputError


class CorpusFacts(BaseModel):
    """What `corpora.json` says of one language; None where the run is from before this was counted."""

    model_config = ConfigDict(extra="ignore")

    skipped: dict[str, int] | None = None
    shared: dict[str, float] | None = None


@dataclass(frozen=True)
class TextRow:
    """One language of which something was left out, or whose documents another has too (the largest share)."""

    name: str
    skipped: str
    shared: float | None
    shared_with: str


def corpus_facts(content: Any, path: Path) -> dict[str, CorpusFacts]:
    """Return what the file's content says of every language.

    Raises:
        InputError: it is not what a run writes.
    """
    try:
        return TypeAdapter(dict[str, CorpusFacts]).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: at {where}: {first['msg'].lower()}; run the stage corpora again.") from error


def corpora_section(facts: Mapping[str, CorpusFacts], names: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows: a row for every language with something to tell, in the order of the run.

    `text_counted` is whether the run counted at all: no row must not be read as nothing left out where it did not.
    """
    rows = []
    for tag, corpus in facts.items():
        other, share = next(iter((corpus.shared or {}).items()), ("", None))
        if corpus.skipped or share is not None:
            skipped = describe_skipped(corpus.skipped or {})
            rows.append(TextRow(names.get(tag, tag), skipped, share, names.get(other, other)))
    counted = bool(facts) and all(corpus.skipped is not None for corpus in facts.values())
    return {"text_rows": rows, "text_counted": counted, "most_shared": MOST_SHARED}
