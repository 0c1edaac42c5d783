"""Read a run's folder `similarity`: the matrices of the other sources, and one matrix per layer.

The page can do without any of them, so a file that cannot be read is a remark on the page and no error.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sprachbund.errors import InputError
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.report.formats import clean

BY_LAYER = "-by-layer"


@dataclass
class OtherSimilarities:
    """What the folder holds.

    Attributes:
        matrices: per source its similarity, over all languages of the run.
        within: per layer the mean similarity, in the source that the groups were made from, of pairs that share a
            group.
        between: likewise of pairs that do not.
        problems: what could not be read, one clause each.
    """

    matrices: dict[str, Similarity] = field(default_factory=dict)
    within: dict[int, float] = field(default_factory=dict)
    between: dict[int, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_other_similarities(folder: Path, groups: Mapping[str, int], *, used: str | None) -> OtherSimilarities:
    """Read the folder, if there is one.

    Args:
        folder: the folder of `SOURCE.csv` and `SOURCE-by-layer.csv`.
        groups: the group of each language of the run.
        used: the source that the groups were made from.
    """
    others = OtherSimilarities()
    for path in sorted(folder.glob("*.csv")):
        name = path.stem
        try:
            if not name.endswith(BY_LAYER):
                others.matrices[clean(name)] = _read_matrix(path, groups)
            elif name == f"{used}{BY_LAYER}":
                others.within, others.between = _read_layer_means(path, groups)
        except InputError as error:
            # The message starts with the path, which is this machine's; the page names the file only.
            others.problems.append(clean(str(error).replace(str(path), f"similarity/{path.name}")))
    return others


def _read_matrix(path: Path, groups: Mapping[str, int]) -> Similarity:
    """Read one source's matrix; it must be over the languages of the run."""
    similarity = read_similarity(path)
    odd = sorted(set(similarity.tags) ^ set(groups))
    if odd:
        raise InputError(f"{path}: {odd[0]!r} is in this matrix or in the groups of the run, and not in both.")
    return similarity


def _read_layer_means(path: Path, groups: Mapping[str, int]) -> tuple[dict[int, float], dict[int, float]]:
    """Return per layer the mean similarity within and between groups; rows are layer, a, b, similarity."""
    sums: dict[bool, dict[int, tuple[float, int]]] = {True: {}, False: {}}
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                a, b, layer, value = row["a"], row["b"], int(row["layer"]), float(row["similarity"])
                if not math.isfinite(value):
                    raise ValueError(f"{value} is no similarity")
                if a != b:
                    total, num = sums[groups[a] == groups[b]].get(layer, (0.0, 0))
                    sums[groups[a] == groups[b]][layer] = (total + value, num + 1)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise InputError(
                f"{path}:{reader.line_num}: a row must hold layer, a, b and similarity of languages of the run "
                f"({type(error).__name__}: {error})."
            ) from error
    within, between = (
        {layer: total / num for layer, (total, num) in sorted(sums[same].items())} for same in (True, False)
    )
    return within, between
