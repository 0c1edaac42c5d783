"""What a grouping must respect: the number of groups, links between languages, a window for each group's weight.

A `Problem` is checked: what can be seen to be impossible without a search is refused here, in one sentence that says
which constraint fails. Its languages are sorted by tag, so that no result depends on the order of the input.
Shapes: L languages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError, nearest
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Matrix, Similarity

Labels: TypeAlias = NDArray[np.intp]
"""(L) for each language the number of its group."""

# A window is a sum of floats compared with a sum of floats: equal totals must not fail by rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Constraints:
    """What a user asks of a grouping beside its objective.

    Attributes:
        must_link: each a set of languages that share a group.
        cannot_link: each a set of languages of which no two share a group.
        weights: for every language a positive number of which no group may have too much or too little, such as the
            bytes of its text; None leaves the groups' weights free.
        window: the total weight of every group lies within the mean over groups times 1 - window and 1 + window.
        strict: refuse a number of groups that does not divide the number of languages.
    """

    must_link: tuple[tuple[str, ...], ...] = ()
    cannot_link: tuple[tuple[str, ...], ...] = ()
    weights: Mapping[str, float] | None = None
    window: float = 0.25
    strict: bool = False

    @property
    def linked(self) -> bool:
        """Whether there is any link."""
        return bool(self.must_link or self.cannot_link)

    @property
    def given(self) -> bool:
        """Whether there is any constraint beside `strict`."""
        return self.linked or self.weights is not None


UNCONSTRAINED = Constraints()


@dataclass(frozen=True, eq=False)
class Problem:
    """A checked grouping problem over languages that are sorted by tag.

    Attributes:
        tags: (L) sorted.
        values_LL: (L, L) similarities in that order; the diagonal plays no part.
        num_groups: K; sizes differ by at most one.
        allowed_LL: (L, L) whether two languages may share a group; true on the diagonal.
        together: the languages, by index, that must share a group; sets of at least two, none overlapping.
        weights_L: (L) or None.
        lightest, heaviest: the limits of a group's total weight, with an allowance for rounding.
        least: the smallest similarity of a pair that shares a group, or None; pairs below it are not allowed.
    """

    tags: tuple[str, ...]
    values_LL: Matrix
    num_groups: int
    allowed_LL: NDArray[np.bool_]
    together: tuple[tuple[int, ...], ...] = ()
    weights_L: Matrix | None = None
    lightest: float = -math.inf
    heaviest: float = math.inf
    least: float | None = None
    _unlimited_LL: NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Every `with_least` starts from what is allowed without one, so that a lower one can follow a higher one.
        object.__setattr__(self, "_unlimited_LL", self.allowed_LL)
        if self.least is not None:
            above_LL = (self.values_LL >= self.least) | np.eye(len(self.tags), dtype=bool)
            object.__setattr__(self, "allowed_LL", self.allowed_LL & above_LL)

    @property
    def num_languages(self) -> int:
        """L."""
        return len(self.tags)

    @property
    def smallest(self) -> int:
        """The number of languages of a smaller group."""
        return self.num_languages // self.num_groups

    @property
    def num_larger(self) -> int:
        """How many groups have one language more than the smallest."""
        return self.num_languages % self.num_groups

    @property
    def largest(self) -> int:
        """The number of languages of a largest group."""
        return self.smallest + (self.num_larger > 0)

    @property
    def num_pairs(self) -> int:
        """How many pairs share a group: the same for every grouping of these sizes."""
        larger = self.num_larger * math.comb(self.smallest + 1, 2)
        return larger + (self.num_groups - self.num_larger) * math.comb(self.smallest, 2)

    @cached_property
    def levels(self) -> Matrix:
        """Ascending, the different similarities of pairs that may share a group."""
        upper_LL = np.triu(self.allowed_LL, k=1)
        return np.unique(self.values_LL[upper_LL])

    def with_least(self, least: float | None) -> "Problem":
        """Return the same problem where no pair less alike than `least` shares a group."""
        return replace(self, allowed_LL=self._unlimited_LL, least=least)

    def satisfied_by(self, labels_L: Labels) -> bool:
        """Return whether a grouping of the right sizes respects links, weights and `least`."""
        rows, columns = np.nonzero(np.triu(labels_L[:, None] == labels_L[None, :], k=1))
        if not self.allowed_LL[rows, columns].all():
            return False
        if any(len({int(labels_L[i]) for i in linked}) > 1 for linked in self.together):
            return False
        if self.weights_L is None:
            return True
        weights_G = np.bincount(labels_L, weights=self.weights_L, minlength=self.num_groups)
        return bool((weights_G >= self.lightest).all() and (weights_G <= self.heaviest).all())

    def grouping(self, labels_L: Labels) -> Grouping:
        """Return the grouping with tags sorted inside groups and groups ordered by their first tag."""
        members: dict[int, list[str]] = {}
        for tag, label in zip(self.tags, labels_L.tolist(), strict=True):
            members.setdefault(label, []).append(tag)
        return Grouping(tuple(tuple(tags) for tags in members.values()))

    def labels(self, grouping: Grouping) -> Labels:
        """Return the group of every language of a grouping of these languages."""
        number = grouping.as_dict()
        return np.array([number[tag] for tag in self.tags], dtype=np.intp)

    def similarity(self) -> Similarity:
        """Return the similarities in the order of this problem."""
        return Similarity(self.tags, self.values_LL)

    def total(self, labels_L: Labels) -> float:
        """Return the sum of similarities over the pairs that share a group."""
        return float(np.triu(np.where(labels_L[:, None] == labels_L[None, :], self.values_LL, 0.0), k=1).sum())

    def worst(self, labels_L: Labels) -> float:
        """Return the smallest similarity of a pair that shares a group; infinite where no two do."""
        upper_LL = np.triu(labels_L[:, None] == labels_L[None, :], k=1)
        return float(self.values_LL.min(where=upper_LL, initial=np.inf))


def build_problem(similarity: Similarity, *, num_groups: int, constraints: Constraints) -> Problem:
    """Check what is asked for and return it as a problem.

    Raises:
        InputError: `num_groups` outside 2..L or, under `strict`, not a divisor of L; links or weights of unknown or
            missing languages; or constraints that contradict each other or the sizes of the groups.
    """
    _check_number(similarity.tags, num_groups=num_groups, strict=constraints.strict)
    order = sorted(range(len(similarity.tags)), key=lambda i: similarity.tags[i])
    tags = tuple(similarity.tags[i] for i in order)
    values_LL = np.ascontiguousarray(similarity.values_LL[np.ix_(order, order)])
    largest = -(-len(tags) // num_groups)
    together = _merge(_indices(constraints.must_link, tags=tags, kind="must-link"))
    apart = _indices(constraints.cannot_link, tags=tags, kind="cannot-link")
    _check_links(together, apart, tags=tags, num_groups=num_groups, largest=largest)
    weights_L, lightest, heaviest = _weights(constraints, tags=tags, num_groups=num_groups)
    _check_heavy(together, weights_L, tags=tags, heaviest=heaviest, window=constraints.window)
    allowed_LL = _allowed(together, apart, weights_L, num_languages=len(tags), largest=largest, heaviest=heaviest)
    return Problem(tags, values_LL, num_groups, allowed_LL, together, weights_L, lightest, heaviest)


def _check_number(tags: Sequence[str], *, num_groups: int, strict: bool) -> None:
    if not 2 <= num_groups <= len(tags):
        raise InputError(
            f"{num_groups} group{'' if num_groups == 1 else 's'} asked for {len(tags)} languages; ask for 2 to "
            f"{len(tags)}: one group leaves nothing to decide, and no group is empty."
        )
    if strict and len(tags) % num_groups:
        divisors = [str(k) for k in range(2, len(tags) + 1) if len(tags) % k == 0]
        raise InputError(
            f"{num_groups} groups do not divide {len(tags)} languages, which strict sizes ask for; ask for "
            f"{' or '.join(divisors)} groups, or allow sizes that differ by one."
        )


def _indices(links: Sequence[Sequence[str]], *, tags: Sequence[str], kind: str) -> list[tuple[int, ...]]:
    known = {tag: index for index, tag in enumerate(tags)}
    for link in links:
        for tag in link:
            if tag not in known:
                hint = nearest(tag, known) or "; name languages of the similarity matrix."
                raise InputError(f"A {kind} names the unknown language {tag!r}{hint}")
        if len(link) < 2 or len(set(link)) < len(link):
            raise InputError(
                f"The {kind} {_listed(link)} names {len(set(link))} different language(s) in {len(link)} place(s); "
                "name at least two, each of them once."
            )
    return [tuple(sorted(known[tag] for tag in link)) for link in links]


def _merge(links: Iterable[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Return the sets that follow from the links: what overlaps becomes one."""
    merged: list[set[int]] = []
    for link in links:
        touching = [linked for linked in merged if linked & set(link)]
        merged = [linked for linked in merged if linked not in touching]
        merged.append(set(link).union(*touching))
    return tuple(sorted(tuple(sorted(linked)) for linked in merged))


def _check_links(
    together: Sequence[tuple[int, ...]],
    apart: Sequence[tuple[int, ...]],
    *,
    tags: Sequence[str],
    num_groups: int,
    largest: int,
) -> None:
    for linked in together:
        if len(linked) > largest:
            raise InputError(
                f"The must-links put {len(linked)} languages into one group ({_names(linked, tags)}), and the largest "
                f"of {num_groups} groups of {len(tags)} languages has {largest}; drop a link or ask for fewer groups."
            )
        for link in apart:
            both = sorted(set(linked) & set(link))
            if len(both) > 1:
                raise InputError(
                    f"{tags[both[0]]!r} and {tags[both[1]]!r} must share a group by the must-links and must not by "
                    f"the cannot-link {_listed([tags[i] for i in link])}; drop one of the two."
                )
    for clique in _mutually_apart(together, apart):
        if len(clique) > num_groups:
            raise InputError(
                f"The cannot-links keep {len(clique)} languages apart from each other ({_names(clique, tags)}), and "
                f"there are {num_groups} groups; drop a link or ask for more groups."
            )


def _mutually_apart(together: Sequence[tuple[int, ...]], apart: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return sets of languages of which no two share a group: the links as given, and what several add up to.

    The latter are grown greedily, as the largest such set is as hard to find as a grouping itself.
    """
    first = {i: linked[0] for linked in together for i in linked}
    enemies: dict[int, set[int]] = {}
    for link in apart:
        for a, b in combinations([first.get(i, i) for i in link], 2):
            enemies.setdefault(a, set()).add(b)
            enemies.setdefault(b, set()).add(a)
    cliques = [list(link) for link in apart]
    for start in sorted(enemies):
        clique, candidates = [start], set(enemies[start])
        while candidates:
            # The one with most enemies among the candidates; the first of equals.
            new = min(candidates, key=lambda i: (-len(enemies[i] & candidates), i))
            clique.append(new)
            candidates &= enemies[new]
        cliques.append(sorted(clique))
    return cliques


def _weights(constraints: Constraints, *, tags: Sequence[str], num_groups: int) -> tuple[Matrix | None, float, float]:
    """Return the weights and the limits of a group's total."""
    if constraints.weights is None:
        return None, -math.inf, math.inf
    if not 0 <= constraints.window < math.inf:
        raise InputError(f"The window for the groups' weights is {constraints.window}; give a number from 0, as 0.25.")
    for tag, weight in constraints.weights.items():
        if tag not in tags:
            hint = nearest(tag, tags) or "; name languages of the similarity matrix."
            raise InputError(f"The weights name the unknown language {tag!r}{hint}")
        if not 0 < weight < math.inf:
            raise InputError(f"The weight of {tag!r} is {weight}; give a positive finite number.")
    missing = [tag for tag in tags if tag not in constraints.weights]
    if missing:
        raise InputError(f"There is no weight for {', '.join(map(repr, missing))}; give one for every language.")
    weights_L = np.array([float(constraints.weights[tag]) for tag in tags])
    mean = float(weights_L.sum()) / num_groups
    lightest = mean * (1 - constraints.window - ROUNDING)
    return weights_L, lightest, mean * (1 + constraints.window + ROUNDING)


def _check_heavy(
    together: Sequence[tuple[int, ...]],
    weights_L: Matrix | None,
    *,
    tags: Sequence[str],
    heaviest: float,
    window: float,
) -> None:
    if weights_L is None:
        return
    for linked in [*((i,) for i in range(len(tags))), *together]:
        weight = float(weights_L[list(linked)].sum())
        if weight > heaviest:
            what = f"{tags[linked[0]]!r} weighs" if len(linked) == 1 else f"{_names(linked, tags)}, must-linked, weigh"
            raise InputError(
                f"{what} {weight:g}, and the window of {window:g} allows no group more than {heaviest:g}; widen the "
                f"window, lower the weight{'' if len(linked) == 1 else ', drop the link'} or ask for fewer groups."
            )


def _allowed(
    together: Sequence[tuple[int, ...]],
    apart: Sequence[tuple[int, ...]],
    weights_L: Matrix | None,
    *,
    num_languages: int,
    largest: int,
    heaviest: float,
) -> NDArray[np.bool_]:
    """Return which pairs may share a group, with what follows for languages that are must-linked to the pair."""
    block_L = np.arange(num_languages)
    for linked in together:
        block_L[list(linked)] = linked[0]
    size_L = np.bincount(block_L, minlength=num_languages)[block_L]
    allowed_LL = size_L[:, None] + size_L[None, :] <= largest
    if weights_L is not None:
        heavy_L = np.bincount(block_L, weights=weights_L, minlength=num_languages)[block_L]
        allowed_LL &= heavy_L[:, None] + heavy_L[None, :] <= heaviest
    for link in apart:
        members_L = np.isin(block_L, block_L[list(link)])
        allowed_LL &= ~(members_L[:, None] & members_L[None, :])
    # Last, as the rules above are about two blocks: a block may share a group with itself.
    return np.asarray(allowed_LL | (block_L[:, None] == block_L[None, :]))


def _names(indices: Iterable[int], tags: Sequence[str]) -> str:
    return ", ".join(repr(tags[i]) for i in indices)


def _listed(link: Sequence[str]) -> str:
    return f"({', '.join(map(repr, link))})"
