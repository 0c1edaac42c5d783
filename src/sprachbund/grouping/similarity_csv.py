"""A similarity matrix and its file: a CSV that a spreadsheet opens and a person can write by hand.

The first line is `language,<tags>`, every other line `tag,<values>` in the same order of languages.
Shapes: L languages.
"""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError
from sprachbund.files import read_text, write_text

Matrix: TypeAlias = NDArray[np.float64]

# Files written by other programs may round the two halves of the matrix apart in the last digit, not more.
SYMMETRY_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Similarity:
    """How alike every two languages are to one model; larger is more alike.

    Attributes:
        tags: (L) labels of the languages, kept as they were given, none twice.
        values_LL: (L, L) float64, symmetric and finite; a cosine in the paper, but the grouping only compares values.
    """

    tags: tuple[str, ...]
    values_LL: Matrix

    def __post_init__(self) -> None:
        assert self.values_LL.shape == (len(self.tags), len(self.tags)), "one row and one column for each language"
        assert len(set(self.tags)) == len(self.tags), "a language occurs twice"


def read_similarity(path: Path | str) -> Similarity:
    """Read and check a similarity matrix.

    The label in the corner may be any. Halves that differ by less than 1e-6 are averaged, so that no later
    result depends on which half an algorithm happens to read.

    Raises:
        InputError: with the file and line, for anything but a square, finite, symmetric matrix over at least two
            different languages with equal labels on rows and columns; or where three or more languages are all
            equally alike, which leaves nothing to group by.
    """
    path = Path(path)
    rows = _read_rows(path)
    header_line, header = rows[0]
    tags = tuple(label.strip() for label in header[1:])
    _check_labels(tags, path=path, line=header_line)
    body = rows[1:]
    for index, (line, cells) in enumerate(body):
        _check_row(cells, tags=tags, index=index, path=path, line=line)
    if len(body) < len(tags):
        raise InputError(
            f"{path}, line {rows[-1][0]}: the file ends after {len(body)} of {len(tags)} rows; "
            f"add the row of {tags[len(body)]!r}: a similarity matrix is square."
        )
    values_LL = np.array([_numbers(cells, tags=tags, path=path, line=line) for line, cells in body], dtype=np.float64)
    _check_symmetry(values_LL, tags=tags, path=path, lines=[line for line, _ in body])
    _check_constant(values_LL, path=path, lines=[line for line, _ in body])
    return Similarity(tags, (values_LL + values_LL.T) / 2)


def write_similarity(path: Path | str, similarity: Similarity) -> None:
    """Write a similarity matrix; reading it back gives the same numbers, bit for bit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["language", *similarity.tags])
    for tag, row in zip(similarity.tags, similarity.values_LL.tolist(), strict=True):
        writer.writerow([tag, *map(repr, row)])
    write_text(Path(path), text.getvalue())


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of every line that is not blank."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the line.") from error
    if not rows:
        raise InputError(f"{path}, line 1: the file is empty; its first line must be 'language,' and the languages.")
    return rows


def _check_labels(tags: tuple[str, ...], *, path: Path, line: int) -> None:
    if len(tags) < 2:
        raise InputError(
            f"{path}, line {line}: found {len(tags)} language(s) in the header; "
            "a similarity matrix needs at least 2, separated by commas."
        )
    for position, tag in enumerate(tags):
        if not tag:
            raise InputError(f"{path}, line {line}: column {position + 2} has no label; name its language.")
        if tag in tags[:position]:
            raise InputError(f"{path}, line {line}: the language {tag!r} occurs twice; keep one of the two.")


def _check_row(cells: list[str], *, tags: tuple[str, ...], index: int, path: Path, line: int) -> None:
    label = cells[0].strip()
    if index >= len(tags):
        raise InputError(
            f"{path}, line {line}: row {label!r} is one more than the {len(tags)} columns; "
            "a similarity matrix is square: remove the row or add its column."
        )
    if label != tags[index]:
        raise InputError(
            f"{path}, line {line}: row {label!r} stands where the header says {tags[index]!r}; "
            "use the same labels in the same order for both."
        )
    if len(cells) != len(tags) + 1:
        raise InputError(
            f"{path}, line {line}: row {label!r} has {len(cells) - 1} values for {len(tags)} languages; "
            "give one for each column."
        )


def _numbers(cells: list[str], *, tags: tuple[str, ...], path: Path, line: int) -> list[float]:
    numbers = []
    for tag, cell in zip(tags, cells[1:], strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{path}, line {line}: found {cell.strip()!r} for {cells[0].strip()!r} and {tag!r}; "
                "give a finite number, with a point for decimals."
            )
        numbers.append(number)
    return numbers


def _check_symmetry(values_LL: Matrix, *, tags: tuple[str, ...], path: Path, lines: list[int]) -> None:
    apart = np.argwhere(np.abs(values_LL - values_LL.T) > SYMMETRY_TOLERANCE)
    if len(apart):
        # The first hit lies in the upper half; its mirror image is the second of the two lines to look at.
        column, row = (int(i) for i in apart[0])
        raise InputError(
            f"{path}, line {lines[row]}: {tags[row]!r} and {tags[column]!r} have {values_LL[row, column]:g} here but "
            f"{values_LL[column, row]:g} in line {lines[column]}; the matrix must be symmetric, make the two equal."
        )


def _check_constant(values_LL: Matrix, *, path: Path, lines: list[int]) -> None:
    between = values_LL[~np.eye(len(values_LL), dtype=bool)]
    if len(values_LL) > 2 and (between == between[0]).all():
        raise InputError(
            f"{path}, lines {lines[0]} to {lines[-1]}: every two languages have the similarity {between[0]:g}, which "
            "leaves nothing to group by; check how it was measured."
        )
