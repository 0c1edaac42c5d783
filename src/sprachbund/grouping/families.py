"""What linguistics says of the languages: families as a source of similarity, and to judge a grouping by.

Agreement with the families is evidence that a similarity sees something real; it is not the aim. Languages also
become alike by contact (a sprachbund), and a grouping may rightly follow that.
Shapes: L languages.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from sprachbund.errors import InputError, nearest
from sprachbund.files import read_text
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.stability import pairs_together, rand_of_labels
from sprachbund.languages import canonical

LEVELS = ("family", "genus")

Label = TypeVar("Label", str, tuple[str, ...])


@dataclass(frozen=True)
class FamilyAgreement:
    """How well a grouping follows the families.

    Attributes:
        rand: adjusted Rand index of groups and families: 1 is the same partition, 0 is what chance gives on average.
        p_value: share of the permutations with an index at least as high, the grouping itself counted as one.
        permutations: how often the families were dealt out anew.
    """

    rand: float
    p_value: float
    permutations: int


def read_families(path: Path | str, *, tags: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the families of these languages from a CSV: for each the levels, coarse to fine.

    The first column names the language, in any notation. Of the others those headed `family` and `genus` count;
    where neither is there, all do, from left to right, coarse to fine. Other languages of the table are ignored.

    Raises:
        InputError: with file and line: no column of families, a language twice, an empty cell; or, with the file, a
            language of `tags` that the table does not have.
    """
    path = Path(path)
    (header_line, header), *rows = _rows(path)
    columns = _columns(header)
    if not columns:
        raise InputError(
            f"{path}, line {header_line}: found the single column {header[0].strip()!r}; the first line must name the "
            "columns, the language first: give for example 'language,family,genus'."
        )
    # A table and a matrix may write a language differently ("arb_Arab" and "ar"); equal names win.
    tag_of = {_canonical(tag): tag for tag in tags} | {tag: tag for tag in tags}
    families: dict[str, tuple[str, ...]] = {}
    for line, cells in rows:
        name = cells[0].strip()
        tag = tag_of.get(name) or tag_of.get(_canonical(name))
        if tag in families:
            raise InputError(f"{path}, line {line}: {name!r} is {tag!r}, which has a line already; keep one.")
        if tag:
            families[tag] = tuple(_cell(cells, column, header=header, path=path, line=line) for column in columns)
    for tag in tags:
        if tag not in families:
            hint = nearest(tag, [cells[0].strip() for _, cells in rows]) or "; add its line."
            raise InputError(f"{path}: no line for the language {tag!r}{hint}")
    return {tag: families[tag] for tag in tags}


def family_similarity(families: Mapping[str, tuple[str, ...]], tags: Sequence[str]) -> Similarity:
    """Return how much of their descent languages share: the share of levels, from the coarse end, that are equal.

    With family and genus: 1 within a genus, 0.5 within a family, else 0. A genus of the same name in another family
    does not count.

    Raises:
        InputError: one of `tags` has no family.
    """
    levels = [_family(families, tag) for tag in tags]
    depth = len(levels[0])
    assert all(len(found) == depth > 0 for found in levels), "every language has the same levels"
    alike_LL = np.zeros((len(tags), len(tags)))
    for end in range(1, depth + 1):
        numbers_L = _numbered([found[:end] for found in levels])
        alike_LL += numbers_L[:, None] == numbers_L[None, :]
    return Similarity(tuple(tags), alike_LL / depth)


def random_similarity(tags: Sequence[str], *, seed: int) -> Similarity:
    """Return a matrix that knows nothing of the languages: uniform in 0..1, the control of every other source.

    The same languages and seed give every pair the same number, in whatever order the languages come.
    """
    order = sorted(range(len(tags)), key=lambda index: tags[index])
    upper_LL = np.triu(np.random.default_rng(seed).random((len(tags), len(tags))), k=1)
    values_LL = np.empty_like(upper_LL)
    values_LL[np.ix_(order, order)] = upper_LL + upper_LL.T + np.eye(len(tags))
    return Similarity(tuple(tags), values_LL)


def family_agreement(
    grouping: Grouping, family: Mapping[str, str], *, permutations: int = 10_000, seed: int
) -> FamilyAgreement:
    """Return how well a grouping follows the families, and how often chance would do as well.

    The chance is a permutation test: the families are dealt out anew over the languages, so that the sizes of groups
    and families stay what they are. p = (1 + number at least as high) / (1 + permutations), never 0 (Phipson &
    Smyth 2010).

    Raises:
        InputError: a language of the grouping has no family, or fewer than one permutation.
    """
    if permutations < 1:
        raise InputError(f"{permutations} permutations asked for; give 1 or more (10,000 resolve a p-value of 0.0001).")
    group_of = grouping.as_dict()
    groups_L = np.fromiter(group_of.values(), dtype=np.intp)
    families_L = _numbered([_family(family, tag) for tag in group_of])
    found = pairs_together(groups_L, families_L)
    rng = np.random.default_rng(seed)
    higher = sum(pairs_together(groups_L, rng.permutation(families_L)) >= found for _ in range(permutations))
    return FamilyAgreement(rand_of_labels(groups_L, families_L), (1 + higher) / (1 + permutations), permutations)


def family_auc(similarity: Similarity, family: Mapping[str, str]) -> float | None:
    """Return the probability that a pair of one family is more alike than a pair of two; a tie counts half.

    0.5 is chance. It judges the similarity alone, whatever the number of groups. None where all pairs are of one
    kind.

    Raises:
        InputError: a language of the matrix has no family.
    """
    families_L = _numbered([_family(family, tag) for tag in similarity.tags])
    rows, columns = np.triu_indices(len(families_L), k=1)
    same = families_L[rows] == families_L[columns]
    num_same, num_other = int(same.sum()), int((~same).sum())
    if not num_same or not num_other:
        return None
    # The Mann-Whitney statistic: what the ranks of one kind sum to, above the least they could.
    above = rankdata(similarity.values_LL[rows, columns])[same].sum() - num_same * (num_same + 1) / 2
    return float(above / (num_same * num_other))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line number, cells) of every line that is not blank, the header first."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not valid CSV ({error}); correct the line.") from error
    if not rows:
        raise InputError(f"{path}, line 1: the file is empty; its first line must name the columns: language,family.")
    return rows


def _columns(header: Sequence[str]) -> list[int]:
    """Return the positions of the levels, coarse to fine, whatever their order in the file."""
    names = [name.strip().lower() for name in header]
    return [names.index(level, 1) for level in LEVELS if level in names[1:]] or list(range(1, len(names)))


def _cell(cells: Sequence[str], column: int, *, header: Sequence[str], path: Path, line: int) -> str:
    cell = cells[column].strip() if column < len(cells) else ""
    if not cell:
        raise InputError(f"{path}, line {line}: {cells[0].strip()!r} has no {header[column].strip()!r}; fill the cell.")
    return cell


def _canonical(name: str) -> str:
    """Return the canonical tag of a language; a name that is none, such as a made-up one, stays as it is."""
    with suppress(InputError):
        return canonical(name)
    return name


def _numbered(labels: Sequence[object]) -> NDArray[np.intp]:
    """Return (L) the number of each language's label, equal labels equal numbers."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.intp)


def _family(families: Mapping[str, Label], tag: str) -> Label:
    if tag not in families:
        raise InputError(f"The language {tag!r} has no family{nearest(tag, families) or '; give every language one.'}")
    return families[tag]
