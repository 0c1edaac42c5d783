"""Cut corpora in the cache: a large one that has not changed is neither read nor cut a second time."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sprachbund.corpora.cache import cache_folder
from sprachbund.corpora.documents import SplitDocuments, Stored
from sprachbund.corpora.shards import SPLITS, file_state
from sprachbund.recipe import Source, Splits

VERSION = 1  # of how documents are read and cut, and of how that is stored
FACTS = "facts.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
NUMBERS = ("removed_lines", "duplicates", "documents", "skipped")


def source_state(source: Source) -> Any:
    """Return what tells whether a corpus has changed: the source, and the content of its files wherever they lie."""
    state: dict[str, Any] = source.model_dump(mode="json", exclude_none=True, exclude={"family"})
    if source.on_bad_line == "error":  # which changes no text, so that runs from before there was a choice stay valid
        del state["on_bad_line"]
    if source.file:
        state["file"] = file_state(source)
    if source.cldr:
        state["babel"] = version("babel")
    return state


def splits_key(source: Source, splits: Splits, seed: int) -> str | None:
    """Return the name under which the splits of a source are kept; None where its text is not fixed.

    Files are known by their content, and a data set on the Hub where its revision is a commit.
    """
    if source.file is None and not (source.hub is not None and COMMIT.fullmatch(source.revision)):
        return None
    if source.file is not None and not source_state(source)["file"]:
        return None  # not there: reading says so better
    made_of = [VERSION, version("sprachbund"), source_state(source), splits.model_dump(mode="json"), seed]
    return blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()


def load_splits(key: str | None) -> SplitDocuments | None:
    """Return what is kept under a key; None where there is nothing, or not all of it."""
    if key is None:
        return None
    folder = _folder(key)
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        parts: dict[str, Any] = {
            split: facts[split] if isinstance(facts[split], list) else Stored(folder / split, facts[split])
            for split in SPLITS
        }
        result = SplitDocuments(**parts, **{name: facts[name] for name in NUMBERS})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result if all(part.sound for part in parts.values() if isinstance(part, Stored)) else None


def keep_splits(found: SplitDocuments, folder: Path, key: str | None) -> SplitDocuments:
    """Keep what was cut in a working folder, where it has a key and does not fit in memory; return it.

    It appears whole or not at all. What is in memory is cut again each time, which is faster than to look it up.
    """
    parts: dict[str, Any] = {split: getattr(found, split) for split in SPLITS}
    stored = {split: part for split, part in parts.items() if isinstance(part, Stored)}
    if key is None or not stored:
        return found
    facts = {split: part.facts if split in stored else list(part) for split, part in parts.items()}
    facts |= {name: getattr(found, name) for name in NUMBERS}
    for split, part in stored.items():
        part.path.rename(folder / split)
    (folder / FACTS).write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
    with suppress(OSError):  # another process was faster, and theirs is as good
        if load_splits(key) is None:
            shutil.rmtree(_folder(key), ignore_errors=True)
        os.rename(folder, _folder(key))
    if (kept := load_splits(key)) is not None:
        return kept
    here = {split: Stored(folder / split, part.facts) for split, part in stored.items()}
    return SplitDocuments(**{**parts, **here}, **{name: getattr(found, name) for name in NUMBERS})


def _folder(key: str) -> Path:
    return cache_folder() / f"documents-{key}"
