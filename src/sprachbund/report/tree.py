"""The tree beside the similarity matrix: which languages, and which groups, are alike.

Average linkage (UPGMA) inside each group first, then between the groups, so that the leaves of a group always
follow each other. Clustering distances `c - similarity` gives the same tree for every constant c; c is the largest
similarity of a pair here, so that no distance is negative whatever the values are.
Shapes: L languages, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from sprachbund.grouping.similarity_csv import Similarity

INSIDE, BETWEEN, LIFTED = "inside", "between", "lifted"


@dataclass(frozen=True)
class Fork:
    """One fork of the tree.

    Attributes:
        rows: the rows of its two branches, counted in the order of the leaves.
        ends: the similarity at which each branch ends; None where it ends in a leaf.
        similarity: where the fork stands.
        kind: `INSIDE` a group, `BETWEEN` groups, or `LIFTED`: between groups that are more alike than the parts of
            one of them. Such a fork would stand nearer to the leaves than what it joins, so it stands level with it.
    """

    rows: tuple[float, float]
    ends: tuple[float | None, float | None]
    similarity: float
    kind: str


@dataclass(frozen=True)
class Tree:
    """The order of the leaves (indices of languages), and the forks; `closest` is the largest similarity of a pair."""

    order: tuple[int, ...]
    forks: tuple[Fork, ...]
    closest: float


@dataclass(frozen=True, eq=False)
class Arrangement:
    """A similarity in the order of its tree; `values_LL`, `tags` and `groups` are all in the order of the leaves."""

    tags: tuple[str, ...]
    groups: tuple[int, ...]
    values_LL: NDArray[np.float64]
    tree: Tree


def arrange(similarity: Similarity, group_of: Mapping[str, int], names: Mapping[str, str] | None = None) -> Arrangement:
    """Return the similarity ordered by group and, inside a group and between groups, by the tree.

    The result does not depend on the order of the input: where the tree leaves a choice, the number of the group,
    the name and the tag decide.

    Args:
        similarity: of at least two languages.
        group_of: the group of each of them.
        names: what the languages are called, where that is known.
    """
    names = names or {}
    tags = sorted(similarity.tags, key=lambda tag: (group_of[tag], names.get(tag, ""), tag))
    values_LL = reordered(similarity, tags)
    tree = grow_tree(values_LL, [group_of[tag] for tag in tags])
    order = list(tree.order)
    leaves = tuple(tags[i] for i in order)
    return Arrangement(leaves, tuple(group_of[tag] for tag in leaves), values_LL[np.ix_(order, order)], tree)


def reordered(similarity: Similarity, tags: Sequence[str]) -> NDArray[np.float64]:
    """Return (L, L) similarities in another order of the languages."""
    index = {tag: i for i, tag in enumerate(similarity.tags)}
    order = [index[tag] for tag in tags]
    values_LL: NDArray[np.float64] = similarity.values_LL[np.ix_(order, order)]
    return values_LL


class _Growing:
    """The linkage matrix of scipy, row by row: two parts, their distance, the number of their languages."""

    def __init__(self, distances_LL: NDArray[np.float64]) -> None:
        self.distances_LL = distances_LL
        self.members = [[leaf] for leaf in range(len(distances_LL))]
        self.heights = [0.0] * len(distances_LL)
        self.rows: list[tuple[int, int, float, int]] = []
        self.kinds: list[str] = []

    def join(self, a: int, b: int, kind: str) -> int:
        """Join two parts at their mean distance, or at the height of a part where that is above it; return the new."""
        mean = float(self.distances_LL[np.ix_(self.members[a], self.members[b])].mean())
        height = max(mean, self.heights[a], self.heights[b])
        members = self.members[a] + self.members[b]
        self.rows.append((a, b, height, len(members)))
        # Inside a group average linkage cannot fall below a part's height; rounding can, by a hair.
        lifted = kind == BETWEEN and height > mean + 1e-9 * max(1.0, abs(height))
        self.kinds.append(LIFTED if lifted else kind)
        self.members.append(members)
        self.heights.append(height)
        return len(self.members) - 1

    def join_all(self, parts: Sequence[int], distances_PP: NDArray[np.float64], kind: str) -> int:
        """Join parts by average linkage on their distances; return the part that holds all."""
        numbers = list(parts)
        if len(numbers) > 1:
            for a, b, *_ in linkage(squareform(distances_PP, checks=False), "average"):
                numbers.append(self.join(numbers[int(a)], numbers[int(b)], kind))
        return numbers[-1]


def grow_tree(values_LL: NDArray[np.float64], groups: Sequence[int]) -> Tree:
    """Return the tree over at least two languages, branches turned so that alike leaves are neighbours.

    Between groups, average linkage counts every group once; a fork stands at the mean over all pairs of languages
    that it joins.

    Args:
        values_LL: symmetric finite similarities; the diagonal is not read.
        groups: the group of each language.
    """
    num_languages = len(groups)
    upper = np.triu_indices(num_languages, k=1)
    closest = float(values_LL[upper].max())
    distances_LL = closest - values_LL
    np.fill_diagonal(distances_LL, 0.0)
    growing = _Growing(distances_LL)
    blocks = [[leaf for leaf in range(num_languages) if groups[leaf] == group] for group in sorted(set(groups))]
    parts = [growing.join_all(block, distances_LL[np.ix_(block, block)], INSIDE) for block in blocks]
    between_GG = np.array([[distances_LL[np.ix_(a, b)].mean() for b in blocks] for a in blocks])
    np.fill_diagonal(between_GG, 0.0)
    growing.join_all(parts, between_GG, BETWEEN)
    return _laid_out(growing, closest)


def _laid_out(growing: _Growing, closest: float) -> Tree:
    """Turn the branches and find where every fork stands."""
    num_languages = len(growing.distances_LL)
    condensed = squareform(growing.distances_LL, checks=False)
    turned = optimal_leaf_ordering(np.array(growing.rows, dtype=np.float64), condensed)
    order = leaves_list(turned).tolist()
    # Of every part: its row, and the similarity at which it ends (a leaf has none).
    rows: list[float] = np.argsort(order).tolist()
    ends: list[float | None] = [None] * num_languages
    forks = []
    for (first, second), height, kind in zip(
        turned[:, :2].astype(int), growing.heights[num_languages:], growing.kinds, strict=True
    ):
        fork = Fork((rows[first], rows[second]), (ends[first], ends[second]), closest - height, kind)
        forks.append(fork)
        rows.append(sum(fork.rows) / 2)
        ends.append(fork.similarity)
    return Tree(tuple(order), tuple(forks), closest)


def stretches(values: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, end) of every stretch of equal neighbours."""
    starts = [0, *(i for i, (a, b) in enumerate(pairwise(values), start=1) if a != b)] if values else []
    return list(zip(starts, [*starts[1:], len(values)], strict=True))
