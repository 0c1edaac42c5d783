"""Who shares an expert: the two greedy algorithms of DMoE (Li et al., Findings of ACL 2025).

The paper measures a group by its *largest* pairwise distance, distance = 1 - similarity. We compare the *smallest*
similarity instead: the same order, without the rounding of the subtraction, which could make ties of near-ties.
Shapes: L languages, C combinations, S languages in a group.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, combinations, islice
from math import comb
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError, nearest
from sprachbund.files import describe, read_json_object, write_text
from sprachbund.grouping.similarity_csv import Matrix, Similarity
from sprachbund.languages import canonical

MOST_COMBINATIONS = 3_000_000

# Bounds the memory of the enumeration: 2**20 indices of 8 bytes are 8 MiB at a time.
CHUNK_INDICES = 2**20


@dataclass(frozen=True)
class Grouping:
    """A partition of the languages; the position of a group is the number of its expert."""

    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        tags = list(chain.from_iterable(self.groups))
        assert all(self.groups), "an empty group"
        assert len(set(tags)) == len(tags), "a language occurs twice"

    @classmethod
    def from_dict(cls, group_of: Mapping[str, int]) -> "Grouping":
        """Return the grouping with these group numbers.

        Raises:
            InputError: the numbers are not 0..K-1 without a gap. They number experts, so none is changed here.
        """
        numbers = sorted(set(group_of.values()))
        if numbers != list(range(len(numbers))):
            raise InputError(f"The group numbers are {numbers}; number the groups from 0 without a gap.")
        return cls(tuple(tuple(tag for tag, group in group_of.items() if group == number) for number in numbers))

    def as_dict(self) -> dict[str, int]:
        """Return the group number of every language, in the order of the groups."""
        return {tag: number for number, group in enumerate(self.groups) for tag in group}

    def group_of(self, tag: str) -> int:
        """Return the number of the group of one language.

        Raises:
            InputError: no group has this language.
        """
        numbers = self.as_dict()
        if tag not in numbers:
            raise InputError(f"No group has the language {tag!r}{nearest(tag, numbers) or '.'}")
        return numbers[tag]

    def mean_similarity(self, similarity: Similarity) -> float | None:
        """Return the mean similarity over all pairs that share a group; None where no two languages do.

        Raises:
            InputError: the matrix lacks one of the languages; likewise for `min_similarity`.
        """
        pairs = self._pair_similarities(similarity)
        return float(pairs.mean()) if len(pairs) else None

    def min_similarity(self, similarity: Similarity) -> float | None:
        """Return the similarity of the least alike pair that shares a group; None where no two languages do."""
        pairs = self._pair_similarities(similarity)
        return float(pairs.min()) if len(pairs) else None

    def _pair_similarities(self, similarity: Similarity) -> Matrix:
        row = {tag: index for index, tag in enumerate(similarity.tags)}
        for tag in self.as_dict():
            if tag not in row:
                raise InputError(f"The similarity matrix has no language {tag!r}{nearest(tag, row) or '.'}")
        pairs = [(row[a], row[b]) for group in self.groups for a, b in combinations(group, 2)]
        return similarity.values_LL[[a for a, _ in pairs], [b for _, b in pairs]]


def group_greedy_exhaustive(similarity: Similarity, *, num_groups: int) -> Grouping:
    """Group as the paper does for 18 languages: complete search for one group at a time.

    While languages remain, take the group whose least alike pair is most alike, of all groups of the required size;
    the first in the order of the input where several are equal. Inside a group the order of the input is kept.

    The paper's number of groups divides the number of languages. Ours need not: sizes differ by at most one, and the
    larger groups are formed first, while there is most to choose from.

    Raises:
        InputError: `num_groups` outside 1..L, or more than three million combinations to look at.
    """
    sizes = _sizes(len(similarity.tags), num_groups=num_groups)
    remaining = list(range(len(similarity.tags)))
    looked_at = num_combinations(len(remaining), num_groups=num_groups)
    if looked_at > MOST_COMBINATIONS:
        raise InputError(
            f"greedy-exhaustive would look at {Decimal(looked_at):.1e} combinations for {len(remaining)} "
            f"languages in {num_groups} groups, and its limit is {MOST_COMBINATIONS:,}; use the method greedy-seeded."
        )
    groups = []
    for size in sizes:
        chosen = _tightest(similarity.values_LL, remaining, size=size)
        groups.append(tuple(similarity.tags[i] for i in chosen))
        remaining = [i for i in remaining if i not in chosen]
    return Grouping(tuple(groups))


def num_combinations(num_languages: int, *, num_groups: int) -> int:
    """Return how many groups the exhaustive algorithm looks at.

    Raises:
        InputError: `num_groups` outside 1..L.
    """
    sizes = _sizes(num_languages, num_groups=num_groups)
    return sum(comb(sum(sizes[done:]), size) for done, size in enumerate(sizes))


def group_greedy_seeded(similarity: Similarity, *, num_groups: int) -> Grouping:
    """Group as the paper does for 128 languages: grow one group at a time from its most alike pair.

    Start a group with the most alike pair of the remaining languages, then add the language whose similarity to the
    least alike member is largest until the group is full; the first in the order of the input where several are
    equal. Inside a group the order of the input is restored. Sizes differ by at most one, larger groups first; a
    group of one takes the first remaining language.

    Raises:
        InputError: `num_groups` outside 1..L.
    """
    values_LL = similarity.values_LL
    free_L = np.ones(len(similarity.tags), dtype=bool)
    groups = []
    for size in _sizes(len(similarity.tags), num_groups=num_groups):
        members = _seed(values_LL, np.flatnonzero(free_L), size=size)
        to_group_L = values_LL[members].min(axis=0)
        free_L[members] = False
        while len(members) < size:
            new = int(np.where(free_L, to_group_L, -np.inf).argmax())
            members.append(new)
            np.minimum(to_group_L, values_LL[new], out=to_group_L)
            free_L[new] = False
        groups.append(tuple(similarity.tags[i] for i in sorted(members)))
    return Grouping(tuple(groups))


METHODS: dict[str, Callable[..., Grouping]] = {
    "greedy-exhaustive": group_greedy_exhaustive,
    "greedy-seeded": group_greedy_seeded,
}


def group(similarity: Similarity, *, num_groups: int, method: str = "greedy-seeded") -> Grouping:
    """Group languages by the method of this name.

    Raises:
        InputError: an unknown method, or what the method itself refuses.
    """
    if method not in METHODS:
        raise InputError(f"Unknown grouping method: {method!r}. Available: {', '.join(METHODS)}.")
    return METHODS[method](similarity, num_groups=num_groups)


def write_groups(path: Path | str, grouping: Grouping) -> None:
    """Write {"tag": group number}, in the order of the groups: the form of the authors' files."""
    write_text(Path(path), json.dumps(grouping.as_dict(), ensure_ascii=False, indent=2) + "\n")


def read_groups(path: Path | str, *, tags: Sequence[str] | None = None) -> Grouping:
    """Read a grouping: {"tag": group}, where a group is a number or a name.

    Numbers 0..K-1 without a gap are kept: they number experts. Names, and numbers with gaps, become 0..K-1 in the order
    in which they first appear.

    Args:
        path: the JSON file.
        tags: where given, exactly these languages must be there, in any notation.

    Raises:
        InputError: malformed JSON (with its line), a language twice, groups that are neither all whole numbers nor
            all names, or a language too few or too many.
    """
    path = Path(path)
    content = read_json_object(path)
    kind = str if isinstance(next(iter(content.values())), str) else int
    numbers: dict[str | int, int] = {}
    assignment: dict[str, int] = {}
    for tag, value in content.items():
        valid = isinstance(value, kind) and not isinstance(value, bool) and value != ""
        if not valid or (isinstance(value, int) and value < 0):
            raise InputError(
                f"{path}: the group of {tag!r} is {describe(value)}; "
                "give a whole number from 0 for every language, or a name for every language."
            )
        known = tag if tags is None else _known(tag, tags)
        if known in assignment:
            raise InputError(f"{path}: {tag!r} is {known}, which is there already; name every language once.")
        assignment[known] = numbers.setdefault(value, len(numbers))
    if set(numbers) == set(range(len(numbers))):
        old = {new: value for value, new in numbers.items()}
        assignment = {tag: int(old[group]) for tag, group in assignment.items()}
    if tags is not None:
        _check_tags(assignment, tags=tags, path=path)
    return Grouping.from_dict(assignment)


def _known(tag: str, tags: Sequence[str]) -> str:
    """Return the recipe's name of a language that a file may call otherwise; unknown ones stay as they are."""
    if tag not in tags:
        with suppress(InputError):
            return canonical(tag)
    return tag


def _check_tags(assignment: Mapping[str, int], *, tags: Sequence[str], path: Path) -> None:
    """Every language of the recipe must be there and no other: a typing error is both, so name the unknown first."""
    for tag in assignment:
        if tag not in tags:
            hint = nearest(tag, tags) or "; remove it or add it to the recipe."
            raise InputError(f"{path}: the recipe has no language {tag!r}{hint}")
    missing = [tag for tag in tags if tag not in assignment]
    if missing:
        raise InputError(
            f"{path}: no group for {', '.join(map(repr, missing))}; give every language of the recipe one."
        )


def _sizes(num_languages: int, *, num_groups: int) -> list[int]:
    if not 1 <= num_groups <= num_languages:
        raise InputError(
            f"{num_groups} groups asked for {num_languages} languages; ask for 1 to {num_languages}: no group is empty."
        )
    smaller, num_larger = divmod(num_languages, num_groups)
    return [smaller + 1] * num_larger + [smaller] * (num_groups - num_larger)


def _tightest(values_LL: Matrix, remaining: Sequence[int], *, size: int) -> tuple[int, ...]:
    """Return the first combination of `remaining` with the largest smallest pairwise similarity."""
    if size in (1, len(remaining)):
        return tuple(remaining[:size])
    best, best_similarity = tuple(remaining[:size]), -np.inf
    for members_SC in _combinations_in_chunks(remaining, size=size):
        smallest_C = np.full(members_SC.shape[1], np.inf)
        for a, b in combinations(range(size), 2):
            np.minimum(smallest_C, values_LL[members_SC[a], members_SC[b]], out=smallest_C)
        # argmax finds the first of equals inside a chunk, and "greater than" keeps the first of equals across chunks.
        winner = int(smallest_C.argmax())
        if smallest_C[winner] > best_similarity:
            best, best_similarity = tuple(members_SC[:, winner].tolist()), float(smallest_C[winner])
    return best


def _combinations_in_chunks(items: Sequence[int], *, size: int) -> Iterator[NDArray[np.intp]]:
    """Yield the combinations in lexicographic order as arrays (S, C), a bounded number at a time."""
    every = combinations(items, size)
    while chunk := list(islice(every, max(1, CHUNK_INDICES // size))):
        flat = np.fromiter(chain.from_iterable(chunk), dtype=np.intp, count=len(chunk) * size)
        yield np.ascontiguousarray(flat.reshape(len(chunk), size).T)


def _seed(values_LL: Matrix, free: NDArray[np.intp], *, size: int) -> list[int]:
    """Return the first most alike pair of the free languages, or the first language where the group has one only."""
    if size == 1:
        return [int(free[0])]
    rows, columns = np.triu_indices(len(free), k=1)
    first = int(values_LL[free[rows], free[columns]].argmax())
    return [int(free[rows[first]]), int(free[columns[first]])]
