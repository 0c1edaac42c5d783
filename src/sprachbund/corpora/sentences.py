"""Sentences that say the same in every language, to compare languages by and not topics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sprachbund.errors import InputError
from sprachbund.files import read_text

FORMATS = (".txt", ".jsonl")
FIELD = "text"


def read_parallel(pattern: str, tags: Sequence[str], *, most: int) -> dict[str, list[str]]:
    """Read at most `most` parallel sentences, evenly spaced; `pattern` is a path where {tag} stands for the language.

    Line n of a .txt file is the same sentence in every language; a sentence that is empty in one of them is left out of
    all. A .jsonl file has one object a line with the sentence in "text"; where every line of every file has an "id",
    sentences are matched by it and those of all languages are read, else by line.

    Raises:
        InputError: a file that is missing or malformed (with its line), files of different numbers of lines, or no
            sentence that all languages have.
    """
    if Path(pattern).suffix not in FORMATS:
        raise InputError(
            f"probe.sentences: {pattern} is of no known format; its name must end in {' or '.join(FORMATS)}."
        )
    paths = {tag: Path(pattern.replace("{tag}", tag)) for tag in tags}
    if Path(pattern).suffix == ".txt":
        return _matched({tag: _lines(path) for tag, path in paths.items()}, paths, most=most)
    records = {tag: _records(path) for tag, path in paths.items()}
    if all(name is not None for lines in records.values() for name, _ in lines):
        return _by_id(records, paths, most=most)
    return _matched({tag: [text for _, text in lines] for tag, lines in records.items()}, paths, most=most)


def evenly_spaced(num: int, *, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to `num` - 1, number i of n at the share i / n of them."""
    wanted = min(num, most)
    return [i * num // wanted for i in range(wanted)]


def _lines(path: Path) -> list[str]:
    """Return the lines of a file, stripped; only the line feed ends a line, and the last may lack it."""
    return [line.strip() for line in read_text(path).removesuffix("\n").split("\n")]


def _matched(lines: Mapping[str, Sequence[str]], paths: Mapping[str, Path], *, most: int) -> dict[str, list[str]]:
    """Match sentences by line number."""
    first, *others = lines
    for other in others:
        if len(lines[other]) != len(lines[first]):
            raise InputError(
                f"probe.sentences: {paths[first]} has {len(lines[first])} lines and {paths[other]} has "
                f"{len(lines[other])}; line n must be the same sentence in both."
            )
    usable = [n for n in range(len(lines[first])) if all(texts[n] for texts in lines.values())]
    if not usable:
        raise InputError(f"probe.sentences: no line of {paths[first]} has text in every language; give parallel files.")
    chosen = [usable[i] for i in evenly_spaced(len(usable), most=most)]
    return {tag: [texts[n] for n in chosen] for tag, texts in lines.items()}


def _by_id(
    records: Mapping[str, Sequence[tuple[str | None, str]]], paths: Mapping[str, Path], *, most: int
) -> dict[str, list[str]]:
    """Match sentences by id, in the order of the first language's file."""
    texts: dict[str, dict[str, str]] = {}
    for tag, lines in records.items():
        texts[tag] = {}
        for number, (name, text) in enumerate(lines, start=1):
            assert name is not None
            if name in texts[tag]:
                raise InputError(f"{paths[tag]}, line {number}: the id {name!r} occurs twice; keep one of the two.")
            texts[tag][name] = text
    first = next(iter(records))
    usable = [name for name in texts[first] if all(known.get(name) for known in texts.values())]
    if not usable:
        raise InputError(
            f"probe.sentences: no id of {paths[first]} has text in every language; give files whose ids match."
        )
    chosen = [usable[i] for i in evenly_spaced(len(usable), most=most)]
    return {tag: [known[name] for name in chosen] for tag, known in texts.items()}


def _records(path: Path) -> list[tuple[str | None, str]]:
    """Return (id or None, text) of every line."""
    found: list[tuple[str | None, str]] = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
            raise InputError(f"{path}, line {number} is not JSON: {why}; give one object a line.") from None
        if not isinstance(record, dict) or not isinstance(record.get(FIELD), str):
            raise InputError(f'{path}, line {number} has no text in the field "{FIELD}"; give {{"{FIELD}": "..."}}.')
        name = record.get("id")
        found.append((None if name is None else str(name), record[FIELD].strip()))
    return found
