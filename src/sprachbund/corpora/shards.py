"""The files of a source: one, several, or those that a pattern finds; and whether they are still what they were."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError, nearest
from sprachbund.recipe import Source

SPLITS = ("train", "dev", "test")
REMEMBERED_BYTES = 1 << 24  # smaller files are hashed again, so that no change hides in one tick of a clock

Mark = tuple[int, int, int]  # size in bytes, time of the last change in nanoseconds, number of the file
Marks = Mapping[Path, Mark]


def has_splits(source: Source) -> bool:
    """Return whether the user brings train, dev and test files, that is, {split} stands in the path.

    Raises:
        InputError: {split} stands in some of several paths only.
    """
    patterns = source.patterns()
    with_split = [pattern for pattern in patterns if "{split}" in pattern]
    if with_split and len(with_split) < len(patterns):
        without = next(pattern for pattern in patterns if "{split}" not in pattern)
        raise InputError(f"{with_split[0]} has {{split}} and {without} has not; write it in all paths or in none.")
    return bool(with_split)


def files_of(source: Source, split: str | None = None) -> list[Path]:
    """Return the files of a source in the order in which they are read: as listed, those of a pattern by name.

    A file that is found twice is read once. Whether a path without a wildcard exists is not looked at here.

    Raises:
        InputError: a pattern that finds nothing.
    """
    found: list[Path] = []
    for pattern in source.patterns():
        path = pattern.replace("{split}", split or "")
        if not glob.has_magic(path) or os.path.exists(path):
            found.append(Path(path))
            continue
        matches = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
        if not matches:
            raise InputError(f"{path} finds no file; correct the pattern (paths are relative to the recipe).")
        found += map(Path, matches)
    return list(dict.fromkeys(found))


def check_exists(path: Path) -> None:
    """Raise InputError where a file is not there."""
    if path.is_dir():
        raise InputError(
            f"{path} is a folder; name one file, with {{split}} in its path where there are three, or the folder's "
            f"files with a pattern such as {path / '*.jsonl'}."
        )
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise InputError(f"{path} does not exist, nor does its folder; paths are relative to the recipe.")
    hint = nearest(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    raise InputError(f"{path} does not exist{hint or '; paths are relative to the recipe.'}")


def mark_of(path: Path) -> Mark:
    """Return what a file's size, time and number are now; raises InputError where it is gone."""
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def check_unchanged(path: Path, before: Mark) -> None:
    """Raise InputError where a file is not what it was: what was read of it may be neither the old nor the new text."""
    now = mark_of(path)
    if now != before:
        sizes = f"from {before[0]:,} to {now[0]:,} bytes" if now[0] != before[0] else f"but not its {now[0]:,} bytes"
        raise InputError(f"{path} changed while it was in use ({sizes}); start again once nothing writes to it.")


def marks_of(source: Source) -> dict[Path, Mark]:
    """Return the marks of all files of a source that are there; none for the Hub and CLDR."""
    paths = [path for split in SPLITS if source.file is not None for path in files_of(source, split)]
    return {path: mark_of(path) for path in dict.fromkeys(paths) if path.is_file()}


def check_same_files(before: Marks, source: Source) -> None:
    """Raise InputError where a file of a source changed, came or went since its marks were taken."""
    now = marks_of(source)
    for path in now.keys() - before.keys():
        raise InputError(f"{path} appeared while the corpus was in use; start again when all its files are there.")
    for path, mark in before.items():
        check_unchanged(path, mark)


def file_state(source: Source) -> list[Any]:
    """Return what tells whether the text of a source's files has changed: endings and content, wherever they lie."""
    parts = [[path for path in files_of(source, split) if path.is_file()] for split in SPLITS]
    single = all(len(paths) <= 1 for paths in parts)
    if single:  # as in runs from before a source could have several files
        paths = dict.fromkeys(path for part in parts for path in part)
        return [[path.suffixes, content_of(path)] for path in paths]
    if not has_splits(source):
        parts = parts[:1]
    return [[[path.suffixes, content_of(path)] for path in part] for part in parts]


def content_of(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large one is remembered while its mark stays."""
    mark = mark_of(path)
    return _remembered(path, mark) if mark[0] >= REMEMBERED_BYTES else _hashed(path)


def _hashed(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4096)
def _remembered(path: Path, mark: Mark) -> str:
    found = _hashed(path)
    check_unchanged(path, mark)
    return found
