"""The rows of a data set on the Hub, streamed: nothing is stored, and what breaks off is taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from time import sleep
from typing import Any

from sprachbund.errors import InputError, SprachbundError, brief
from sprachbund.progress import say
from sprachbund.recipe import Source

WAITS = (1.0, 5.0, 20.0)  # seconds before a broken stream is taken up again; the library has retried every request

Row = Mapping[str, Any]


def hub_name(source: Source) -> str:
    """Return what errors call a data set."""
    return f"the Hub data set {source.hub}" + (f" ({source.name})" if source.name else "")


def hub_rows(source: Source) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a data set with their numbers, from 1; every library exception becomes one sentence.

    A stream that breaks off after some rows is opened again and continued behind the last one: the order of rows is
    fixed. One that ends before the number of rows that the data set gives for the split has lost some.

    Raises:
        InputError: no such data set, configuration or split, or no access to it.
        SprachbundError: the Hub cannot be reached, or the stream ended too early.
    """
    number, waits = 0, list(WAITS)
    while True:
        known: int | None = None
        try:
            dataset = _guarded(source, _open, source)
            known = _known_rows(dataset, source.split)
            rows = _guarded(source, _behind, dataset, number)
            while (row := _guarded(source, next, rows, None)) is not None:
                number += 1
                yield number, row
                waits = list(WAITS)
        except InputError:
            raise
        except SprachbundError as error:
            if not number or not waits:  # nothing came: the Hub cannot be reached, and waiting would only look busy
                raise
            wait = waits.pop(0)
            said = str(error).removesuffix("; try again later.")
            say(f"{said}; trying again behind row {number:,} in {wait:.0f} s")
            sleep(wait)
            continue
        break
    if known is not None and number < known:
        raise SprachbundError(
            f"{hub_name(source)} ended after {number:,} of the {known:,} rows that it gives for the split "
            f"{source.split}; try again later, or set max_documents where these are all there are."
        )


def _open(source: Source) -> Any:
    import datasets

    return datasets.load_dataset(source.hub, source.name, split=source.split, revision=source.revision, streaming=True)


def _behind(dataset: Any, number: int) -> Iterator[Row]:
    """Return the rows behind the first `number`."""
    if not number:
        return iter(dataset)
    return iter(dataset.skip(number)) if hasattr(dataset, "skip") else islice(iter(dataset), number, None)


def _known_rows(dataset: Any, split: str) -> int | None:
    """Return how many rows the data set says that it has, None where it does not say."""
    splits = getattr(getattr(dataset, "info", None), "splits", None) or {}
    found = splits.get(split)
    return int(getattr(found, "num_examples", 0) or 0) or None


def _guarded(source: Source, function: Any, *arguments: Any) -> Any:
    """Call the library.

    It raises a dozen unrelated kinds (its own, ValueError, httpx's, pyarrow's), so the kind is not filtered.
    """
    try:
        return function(*arguments)
    except Exception as error:
        raise _hub_error(error, hub_name(source), source) from error


def _hub_error(error: Exception, name: str, source: Source) -> SprachbundError:
    from datasets.exceptions import FileNotFoundDatasetsError

    said = " ".join(str(error).split())
    if isinstance(error, FileNotFoundDatasetsError):
        return InputError(
            f"{name} at revision {source.revision} cannot be read ({_first_line(error)}); check its id and revision, "
            "and log in where access is restricted."
        )
    if isinstance(error, ValueError) and ("BuilderConfig" in said or "Config name is missing" in said):
        return InputError(f"{name} needs one of its configurations in the source's name: {brief(said)}")
    if isinstance(error, ValueError) and "Bad split" in said:
        return InputError(f"{name} has no split {source.split!r}; set the source's split: {brief(said)}")
    if isinstance(error, RuntimeError) and "scripts are no longer supported" in said:
        return InputError(f"{name} is a loading script, which is never run here; use a copy stored as Parquet or JSON.")
    return SprachbundError(f"{name} could not be read: {type(error).__name__}: {brief(said)}; try again later.")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
