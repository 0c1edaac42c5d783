"""Checksums of what a run has written: a byte that changes later is named with its file, and not trained on.

A stage's record (RUN/stages/NAME.json) has the SHA-256 of its files under `sha256`, and a checksum of itself. What is
small is verified whenever a stage is found done before, a model when it is loaded: once in a process, at the speed of
the disk or of about 1 GB a second. Of a model's folder only weights and tokenizer count: its card and settings may be
edited.

No torch here: the command line reads runs without loading it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from sprachbund.errors import SprachbundError
from sprachbund.files import write_text

FIELD = "sha256"  # of a stage's record
_OWN = "checksum"  # of the record itself
_IN_FOLDERS = (".safetensors", ".index.json", "tokenizer.json", ".npy")
_EDITED = (".html", ".svg", ".md")  # made for people, read by no stage
_AT_ONCE = 4  # files: hashing leaves Python's lock, and a disk likes company

_hashed: dict[tuple[Path, int, int, int], str] = {}  # by this process: file, its number, size, time of change -> digest


class DamagedError(SprachbundError):
    """A file is not what was written: the message names it and says what makes it anew."""


def sha256_of(file: Path) -> str:
    """Return a file's SHA-256 in hexadecimal; a file that has not changed is read once in a process."""
    state = file.stat()
    key = (file.absolute(), state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _hashed:
        with file.open("rb") as stream:
            _hashed[key] = file_digest(stream, "sha256").hexdigest()
    return _hashed[key]


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return {path in `folder`: SHA-256} of files and of what counts in folders; what is not there is left out."""
    files = [file for name in names for file in _files(folder / name)]
    return {str(file.relative_to(folder)): sha for file, sha in _hash(files).items()}


def _hash(files: Sequence[Path]) -> dict[Path, str]:
    with ThreadPoolExecutor(_AT_ONCE) as workers:
        return dict(zip(files, workers.map(sha256_of, files), strict=True))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.name.endswith(_IN_FOLDERS))
    elif path.is_file() and path.suffix not in _EDITED:
        yield path


def damaged(folder: Path, known: Mapping[str, str]) -> list[Path]:
    """Return the files of `known`, {path in `folder`: SHA-256}, that have other bytes now; missing ones are none."""
    files = [folder / name for name in known if (folder / name).is_file()]
    found = _hash(files)
    return [file for file, sha in found.items() if sha != known[str(file.relative_to(folder))]]


def check(folder: Path, known: Mapping[str, str]) -> None:
    """Raise DamagedError where a file of a run's folder is not what is known of it."""
    for file in damaged(folder, known):
        raise DamagedError(
            f"{file} has other bytes than were written to it (its SHA-256 differs): the disk, a copy or an editor has "
            f"changed it; remove {_output(folder, file)} and {_command(folder)}, which makes it anew"
        )


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a stage's record, with a checksum of itself."""
    values = json.loads(json.dumps(record))
    text = json.dumps({**values, _OWN: _digest(values)}, indent=1, ensure_ascii=False)
    write_text(file, text + "\n")


def read_record(file: Path) -> dict[str, Any]:
    """Return a stage's record without its own checksum, {} where it is missing or torn.

    Raises DamagedError where it is a record and not what was written.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict):
        return {}
    own = values.pop(_OWN, None)  # runs from before there were checksums have none
    if own is not None and own != _digest(values):
        raise DamagedError(
            f"{file} has other bytes than were written to it (its own checksum differs): the disk, a copy or an editor "
            f"has changed it; remove it and {_command(file.parents[1])}, which does this stage anew"
        )
    return values


def _digest(record: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=12).hexdigest()


def check_model(model: Path) -> None:
    """Raise DamagedError where a file of a model's folder is not what the run wrote that the folder lies in, if any."""
    folder = model.absolute().parent
    for record in sorted((folder / "stages").glob("*.json")):
        known = read_record(record).get(FIELD, {})
        check(folder, {name: sha for name, sha in known.items() if name.startswith(f"{model.name}/")})


def _output(folder: Path, file: Path) -> Path:
    """Return what is to be removed: a model as a whole, else the file."""
    top = folder / file.relative_to(folder).parts[0]
    return top if (top / "config.json").is_file() else file


def _command(folder: Path) -> str:
    again = "give the command again that made it"
    of_comparison = (folder.parent / "plans").is_dir() or folder.parent.parent.name == "jobs"
    is_run = (folder / "recipe.yaml").is_file() and not of_comparison
    return f"{again} (`sprachbund run {folder}`)" if is_run else again
