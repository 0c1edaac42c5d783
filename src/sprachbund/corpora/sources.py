"""Read the documents of one language from a file, the Hub or the embedded CLDR corpus.

All of it is lazy: a corpus is never held in memory here, and a mistake in line n is reported when line n is reached.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError, SprachbundError, nearest
from sprachbund.recipe import Source

SPLITS = ("train", "dev", "test")
FORMATS = (".jsonl", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_documents(source: Source, *, split: str | None = None, seed: int = 0) -> Iterator[str]:
    """Yield the documents of `source` one by one, stripped of outer white space, empty ones left out.

    Why nothing more is done to the text: a model sees what its users write, so neither case nor Unicode form changes.
    A .txt file holds one document per line; a .jsonl or .parquet file one per row, in `source.field`. `split` (train,
    dev or test) takes the place of {split} in the path and is given for such paths only; `seed` matters to CLDR only.

    Raises:
        InputError: a file or data set that is missing, damaged, without the field, or without any text.
        SprachbundError: the Hub could not be reached.
        ValueError: `split` does not fit the path (a caller's mistake).
    """
    if (split is not None) != has_splits(source):
        raise ValueError(f"split={split!r} does not fit {source.file or source.hub or source.cldr}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r} is none of {', '.join(SPLITS)}")
    if source.file is not None:
        path = Path(source.file.replace("{split}", split or ""))
        documents, name = _file(path, source.field), str(path)
    elif source.hub is not None:
        documents, name = _hub(source), f"the Hub data set {source.hub}"
    else:
        documents, name = _cldr(source, seed), f"the CLDR corpus {source.cldr}"
    return _clean(documents, name=name, most=source.max_documents)


def has_splits(source: Source) -> bool:
    """Return whether the user brings train, dev and test files, that is, {split} stands in the path."""
    return source.file is not None and "{split}" in source.file


def _clean(documents: Iterator[str], *, name: str, most: int | None) -> Iterator[str]:
    count = 0
    for document in documents:
        if text := document.strip():
            yield text
            count += 1
            if count == most:
                return
    if count == 0:
        raise InputError(f"{name} holds no document with text; give a source that does, or remove the language.")


def _file(path: Path, field: str) -> Iterator[str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    kind = suffixes[-1] if suffixes else ""
    _check_exists(path)
    if kind not in FORMATS:
        raise InputError(
            f"{path} is of no known format; its name must end in {', '.join(FORMATS)}, or in one of these followed by "
            f"{' or '.join(COMPRESSIONS)}."
        )
    if kind == ".parquet":
        yield from _parquet(path, field, compression)
        return
    number = 0
    for number, line in enumerate(_lines(path, compression), start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start}); "
                "convert the file to UTF-8."
            ) from None
        if not text.strip():
            continue
        yield _text(_record(text, where), field, where) if kind == ".jsonl" else text


def _check_exists(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; name one file, with {{split}} in its path where there are three.")
    if path.is_file():
        return
    if not path.parent.is_dir():
        raise InputError(f"{path} does not exist, nor does its folder; paths are relative to the recipe.")
    hint = nearest(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    raise InputError(f"{path} does not exist{hint or '; paths are relative to the recipe.'}")


def _lines(path: Path, compression: str | None) -> Iterator[bytes]:
    """Yield the lines of a file without their line feeds.

    Only the line feed ends a line: U+2028 and its like may stand inside a JSON string.
    """
    rest: list[bytes] = []
    mark = True
    for chunk in _chunks(path, compression):
        head, *tails = chunk.split(b"\n")
        rest.append(head)
        for tail in tails:
            line = b"".join(rest)
            yield line.removeprefix(BYTE_ORDER_MARK) if mark else line
            mark, rest = False, [tail]
    if last := b"".join(rest):
        yield last.removeprefix(BYTE_ORDER_MARK) if mark else last


def _chunks(path: Path, compression: str | None) -> Iterator[bytes]:
    """Yield the decompressed content; a damaged or truncated file is an error, never a shorter corpus."""
    import zstandard

    try:
        with path.open("rb") as raw:
            if compression == ".zst":
                yield from _zst_chunks(raw)
                return
            stream: Any = gzip.GzipFile(fileobj=raw) if compression == ".gz" else raw
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except EOFError:
        raise InputError(f"{path} is truncated: its compressed stream ends too early; fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is no sound {compression} file ({_first_line(error)}); fetch it again.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _zst_chunks(raw: io.BufferedReader) -> Iterator[bytes]:
    """Decompress frame after frame; zstandard's own reader takes a truncated frame for the end of the file."""
    import zstandard

    pending = raw.read(CHUNK_BYTES)
    while pending:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not pending:
                raise EOFError
            yield frame.decompress(pending)
            pending = b"" if frame.eof else raw.read(CHUNK_BYTES)
        pending = frame.unused_data or raw.read(CHUNK_BYTES)


def _parquet(path: Path, field: str, compression: str | None) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        content = io.BytesIO(b"".join(_chunks(path, compression))) if compression else str(path)
        file = pyarrow.parquet.ParquetFile(content)
        columns = file.schema_arrow.names
        if field not in columns:
            raise InputError(f"{path} has no column {field!r}; it has {_listed(columns)}; set the source's field.")
        row = 0
        for batch in file.iter_batches(columns=[field]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield _string(value, field, f"{path}, row {row}")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no sound Parquet file ({_first_line(error)}); fetch it again.") from None


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}; give one object a line.") from None
    except RecursionError:
        raise InputError(f"{where} is nested too deeply to be read as JSON; give one flat object a line.") from None
    if not isinstance(record, dict):
        raise InputError(f"{where} holds a JSON {type(record).__name__}; give one object with a text field a line.")
    return record


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f"{where} has no field {field!r}; it has {_listed(list(record))}; set the source's field.")
    return _string(record[field], field, where)


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r} is {type(value).__name__}, not a string; name a field with text.")
    try:
        value.encode("utf-8")  # JSON can spell half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: field {field!r} has half a surrogate pair at character {error.start}; repair the text."
        ) from None
    return value


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "") if names else "no field"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _hub(source: Source) -> Iterator[str]:
    """Stream a Hub data set; every library exception becomes one sentence.

    The library raises a dozen unrelated kinds (its own, ValueError, httpx's, pyarrow's), so the kind is not filtered:
    only calls into the library stand inside the try.
    """
    import datasets

    name = f"the Hub data set {source.hub}" + (f" ({source.name})" if source.name else "")
    rows: Iterator[Mapping[str, Any]] | None = None
    number = 0
    while True:
        try:
            if rows is None:
                rows = iter(
                    datasets.load_dataset(
                        source.hub, source.name, split=source.split, revision=source.revision, streaming=True
                    )
                )
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _hub_error(error, name, source) from error
        number += 1
        yield _text(row, source.field, f"{name}, split {source.split}, row {number}")


def _hub_error(error: Exception, name: str, source: Source) -> SprachbundError:
    from datasets.exceptions import FileNotFoundDatasetsError

    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundDatasetsError):
        return InputError(
            f"{name} at revision {source.revision} cannot be read ({_first_line(error)}); check its id and revision, "
            "and log in where access is restricted."
        )
    if isinstance(error, ValueError) and ("BuilderConfig" in said or "Config name is missing" in said):
        return InputError(f"{name} needs one of its configurations in the source's name: {said[:300]}")
    if isinstance(error, ValueError) and "Bad split" in said:
        return InputError(f"{name} has no split {source.split!r}; set the source's split: {said[:300]}")
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in said:
        return InputError(f"{name} is a loading script, which is never run here; use a copy stored as Parquet or JSON.")
    return SprachbundError(f"{name} could not be read: {type(error).__name__}: {said[:300]}; try again later.")


def _cldr(source: Source, seed: int) -> Iterator[str]:
    from sprachbund.corpora.cldr import render

    assert source.cldr is not None
    yield from render(source.cldr, lines=source.lines, seed=seed)
