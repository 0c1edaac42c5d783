"""Reading and writing the small text files of a run: one-sentence errors, and never half a file."""

import glob
import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError

ADAPTATION = "adapt.yaml"  # the settings in a folder of `sprachbund adapt`
EXTENSIONS = "extensions"  # in a model's folder, and an adaptation's: a tokenizer for each path with tokens of its own

_HOST = blake2b(platform.node().encode(), digest_size=3).hexdigest()  # whose processes the numbers are
_TEMPORARY = re.compile(r"\.(?:([0-9a-f]{6})-)?(\d+)(?:-\w+)?\.tmp$")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file (a byte-order mark is dropped: spreadsheets add one).

    Raises:
        InputError: the file cannot be opened or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file.") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, keys in the order of the file.

    Raises:
        InputError: no JSON, no object at the top, no entry, or a key that occurs twice (which Python's own reader
            would hide by keeping the last).
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        collected = dict(pairs)
        if len(collected) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in collected if keys.count(key) > 1)
        return collected

    try:
        content = json.loads(read_text(path), object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); correct the file.") from error
    except (RecursionError, ValueError) as error:
        # Python's reader gives up on brackets nested a thousand deep and on whole numbers of thousands of digits.
        raise InputError(f"{path}: not readable as JSON ({error}); give an object keyed by language.") from error
    if repeated:
        raise InputError(f"{path}: {repeated[0]!r} occurs twice in one object; keep one of the two.")
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: expected a JSON object with an entry for each language, found {describe(content)}.")
    return dict(content)


def model_of(target: Path) -> Path:
    """Return the folder of a run's model, or of an adaptation's, or `target` itself where it is neither.

    Raises:
        InputError: the run has no model yet.
    """
    if (target / ADAPTATION).is_file():
        if not (target / "model/config.json").is_file():
            raise InputError(f"{target} has no model yet; finish it with the `sprachbund adapt` that began it")
        return target / "model"
    if not (target / "recipe.yaml").is_file():
        return target
    if not (target / "model/config.json").is_file():
        raise InputError(f"the run {target} has no model yet; finish it with `sprachbund run {target}`")
    return target / "model"


def describe(value: object) -> str:
    """Name a JSON value for an error message, cut so that a large one does not flood the terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old file or the whole new one, whenever the writer is killed."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old file or the whole new one, whenever the writer is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def temporary_for(path: Path, suffix: str = "") -> Path:
    """Return the name under which this process writes what becomes `path`: .NAME.HOST-PROCESS.tmp beside it."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}{suffix}.tmp")


def is_left(path: Path) -> bool:
    """Is this temporary file or folder one of a process that has ended? Of other machines nothing is known: False.

    One of this process's own number is left: in a container, every process may have the same.
    """
    found = _TEMPORARY.search(path.name)
    if found is None:
        return True  # of no process in particular: of whoever holds the folder's lock
    return found[1] in (None, _HOST) and (int(found[2]) == os.getpid() or not _alive(int(found[2])))


def remove_left(path: Path) -> None:
    """Remove what killed processes have left of writing `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if is_left(left):
            remove(left)


def _alive(process: int) -> bool:
    """Is there a process of this number on this machine?"""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # somebody else's, or no number of a process here
    return True
