"""Read the documents of one language from a file, the Hub or the embedded CLDR corpus.

All of it is lazy: a corpus is never held in memory here, and a mistake in line n is reported when line n is reached.
The readers of the formats yield documents and, for a line that gives none, what is wrong with it (`BadLine`);
`_clean` does with those what the source's `on_bad_line` says.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sprachbund.corpora.bad_lines import EMPTY, MAX_LINE_BYTES, BadLine, describe_skipped
from sprachbund.corpora.cache import working_folder
from sprachbund.corpora.hub import hub_name, hub_rows
from sprachbund.corpora.lines import split_lines
from sprachbund.corpora.shards import SPLITS, check_exists, check_unchanged, files_of, has_splits, mark_of
from sprachbund.errors import InputError, brief
from sprachbund.recipe import Source

FORMATS = (".jsonl", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20
ZST_BYTES = 1 << 10  # of compressed data at once: in the worst case one KiB of it holds 32 MiB
ROWS_AT_ONCE = 1024  # of a Parquet column

Found = Iterator[str | BadLine]


def read_documents(
    source: Source, *, split: str | None = None, seed: int = 0, skipped: Counter[str] | None = None
) -> Iterator[str]:
    """Yield the documents of `source` one by one, stripped of outer white space, empty ones left out.

    Why nothing more is done to the text: a model sees what its users write, so neither case nor Unicode form changes,
    and marks of the direction of writing stay. A .txt file holds one document per line; a .jsonl or .parquet file one
    per row, in `source.field`; several files follow each other. `split` (train, dev or test) takes the place of {split}
    in the path and is given for such paths only; `seed` matters to CLDR only. `skipped` is where what is left out is
    counted while it is read: empty documents, and under `on_bad_line: skip` bad lines by `BadLine.reason`.

    Raises:
        InputError: a file or data set that is missing, damaged, or without any text; a file that changes while it is
            read; a bad line, unless it is to be skipped (see `BadLine`).
        SprachbundError: the Hub could not be reached, or its stream ended too early.
        ValueError: `split` does not fit the path (a caller's mistake).
    """
    if (split is not None) != has_splits(source):
        raise ValueError(f"split={split!r} does not fit {source.file or source.hub or source.cldr}")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split={split!r} is none of {', '.join(SPLITS)}")
    if source.file is not None:
        found, name = _files(source, split), ", ".join(source.patterns()).replace("{split}", split or "")
    elif source.hub is not None:
        found, name = _hub(source), f"the Hub data set {source.hub}"
    else:
        found, name = _cldr(source, seed), f"the CLDR corpus {source.cldr}"
    return _clean(found, source, name=name, skipped=Counter() if skipped is None else skipped)


def _clean(found: Found, source: Source, *, name: str, skipped: Counter[str]) -> Iterator[str]:
    count, here = 0, Counter[str]()
    for item in found:
        if isinstance(item, BadLine) and source.on_bad_line == "error":
            raise item
        reason = item.reason if isinstance(item, BadLine) else EMPTY
        if not isinstance(item, BadLine) and (text := item.strip()):
            yield text
            count += 1
            if count == source.max_documents:
                return
        else:
            skipped[reason] += 1
            here[reason] += 1
    if count == 0:
        left_out = f" (left out: {describe_skipped(here)})" if here else ""
        raise InputError(
            f"{name} holds no document with text{left_out}; give a source that does, or remove the language."
        )


def _files(source: Source, split: str | None) -> Found:
    """Yield what the files of a source hold; all of them are looked for before the first is read."""
    paths = files_of(source, split)
    for path in paths:
        check_exists(path)
    for path in paths:
        before = mark_of(path)
        try:
            for item in _file(path, source.field):
                if isinstance(item, BadLine):
                    check_unchanged(path, before)
                yield item
        except InputError:  # what looks damaged is perhaps not finished yet
            check_unchanged(path, before)
            raise
        check_unchanged(path, before)


def _file(path: Path, field: str) -> Found:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    kind = suffixes[-1] if suffixes else ""
    if kind not in FORMATS:
        raise InputError(
            f"{path} is of no known format; its name must end in {', '.join(FORMATS)}, or in one of these followed by "
            f"{' or '.join(COMPRESSIONS)}."
        )
    if kind == ".parquet":
        yield from _parquet(path, field, compression)
        return
    for number, line in enumerate(split_lines(_chunks(path, compression), longest=MAX_LINE_BYTES), start=1):
        where = f"{path}, line {number}"
        try:
            if text := _decoded(line, where).strip():  # a blank line is no document, not an empty one
                yield _text(_record(text, where), field, where) if kind == ".jsonl" else text
        except BadLine as bad:
            yield bad


def _decoded(line: bytes | None, where: str) -> str:
    """Return a line, or a value of a Parquet column, as text; None stands for one that is too long."""
    if line is None or len(line) > MAX_LINE_BYTES:
        raise _too_long(where)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"{where} is not UTF-8 (byte {error.object[error.start]:#04x} at position {error.start})"
        raise BadLine("not UTF-8", found, "convert the file to UTF-8") from None
    _check_nul(text, where)
    return text


def _too_long(where: str) -> BadLine:
    found = f"{where} is longer than {MAX_LINE_BYTES >> 20} MiB"
    return BadLine("too long", found, "cut it into several documents")


def _check_nul(text: str, where: str) -> None:
    if (place := text.find("\0")) >= 0:
        found = f"{where} has a NUL character at character {place}, as damaged and UTF-16 files do"
        raise BadLine("NUL character", found, "repair the file")


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

    pending = raw.read(ZST_BYTES)
    while pending:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not pending:
                raise EOFError
            yield frame.decompress(pending)
            pending = b"" if frame.eof else raw.read(ZST_BYTES)
        pending = frame.unused_data or raw.read(ZST_BYTES)


def _parquet(path: Path, field: str, compression: str | None) -> Found:
    import pyarrow
    import pyarrow.parquet

    try:
        content = _whole(path, compression) if compression else str(path)
        file = pyarrow.parquet.ParquetFile(content, buffer_size=CHUNK_BYTES)  # by pages, not by whole columns
        columns = file.schema_arrow.names
        if field not in columns:
            raise InputError(f"{path} has no column {field!r}; it has {_listed(columns)}; set the source's field.")
        row = 0
        for batch in file.iter_batches(columns=[field], batch_size=ROWS_AT_ONCE):
            for value in _values(batch.column(0), f"{path}: the column {field!r}"):
                row += 1
                where = f"{path}, row {row}"
                try:
                    yield _decoded(value, where) if isinstance(value, bytes) else _string(value, field, where)
                except BadLine as bad:
                    yield bad
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no sound Parquet file ({_first_line(error)}); fetch it again.") from None


def _whole(path: Path, compression: str) -> IO[bytes]:
    """Return the decompressed content of a file as one that can be read from anywhere; it is gone once it is closed."""
    file = tempfile.TemporaryFile(dir=working_folder())  # noqa: SIM115
    file.writelines(_chunks(path, compression))
    file.seek(0)
    return file


def _values(column: Any, name: str) -> list[bytes | None]:
    """Return a text column's values undecoded: the format promises UTF-8, and not every writer keeps that."""
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise InputError(f"{name} holds {kind}, not text; set the source's field to a column with text.")
    values: list[bytes | None] = column.cast(kind).cast(pyarrow.large_binary()).to_pylist()
    return values


def _record(line: str, where: str) -> Mapping[str, Any]:
    advice = "give one object a line"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadLine("no JSON object", f"{where} is not JSON: {error.msg} at column {error.colno}", advice) from None
    except ValueError as error:  # a whole number of thousands of digits
        raise BadLine("no JSON object", f"{where} cannot be read as JSON ({brief(error)})", advice) from None
    except RecursionError:
        raise BadLine("no JSON object", f"{where} is nested too deeply to be read as JSON", advice) from None
    if not isinstance(record, dict):
        found = f"{where} holds a JSON {type(record).__name__}"
        raise BadLine("no JSON object", found, "give one object with a text field a line")
    return record


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        found = f"{where} has no field {field!r}; it has {_listed(list(record))}"
        raise BadLine("no such field", found, "set the source's field")
    return _string(record[field], field, where)


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        found = f"{where}: field {field!r} is {type(value).__name__}, not a string"
        raise BadLine("no text", found, "name a field with text")
    try:
        num_bytes = len(value.encode("utf-8"))  # JSON can spell half a surrogate pair, which no tokenizer takes
    except UnicodeEncodeError as error:
        found = f"{where}: field {field!r} has half a surrogate pair at character {error.start}"
        raise BadLine("half a surrogate pair", found, "repair the text") from None
    if num_bytes > MAX_LINE_BYTES:
        raise _too_long(where)
    _check_nul(value, f"{where}: field {field!r}")
    return value


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:12]) + (", ..." if len(names) > 12 else "") if names else "no field"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _hub(source: Source) -> Found:
    name = hub_name(source)
    for number, row in hub_rows(source):
        try:
            yield _text(row, source.field, f"{name}, split {source.split}, row {number}")
        except BadLine as bad:
            yield bad


def _cldr(source: Source, seed: int) -> Iterator[str]:
    from sprachbund.corpora.cldr import render

    assert source.cldr is not None
    yield from render(source.cldr, lines=source.lines, seed=seed)
