"""What the tests of the solver share: small similarities, and every grouping of a few languages by plain recursion."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from sprachbund.grouping import Grouping, Similarity
from sprachbund.grouping.problem import Constraints


def from_rows(num_languages: int, *, seed: int, width: int = 6) -> Similarity:
    """Cosines of random rows: similarities as a model's are, without a planted structure."""
    rows = np.random.default_rng(seed).normal(size=(num_languages, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Similarity(tuple(f"l{i:02d}" for i in range(num_languages)), rows @ rows.T)


def planted(num_groups: int, size: int, *, seed: int, noise: float = 0.05) -> tuple[Similarity, Grouping]:
    """Families of one size, far more alike inside than between, in a random order; and these families."""
    rng = np.random.default_rng(seed)
    family = rng.permutation(np.repeat(np.arange(num_groups), size))
    values_LL = np.where(family[:, None] == family, 0.5, 0.1) + rng.normal(size=(len(family),) * 2) * noise
    values_LL = (values_LL + values_LL.T) / 2
    np.fill_diagonal(values_LL, 1.0)
    tags = tuple(f"l{i:02d}" for i in range(len(family)))
    groups = sorted(tuple(tags[i] for i in np.flatnonzero(family == number)) for number in range(num_groups))
    return Similarity(tags, values_LL), Grouping(tuple(groups))


def all_groupings(tags: Sequence[str], num_groups: int) -> Iterator[Grouping]:
    """Every partition into groups whose sizes differ by at most one."""
    smaller, num_larger = divmod(len(tags), num_groups)

    def grow(rest: tuple[str, ...], larger: int, smaller_left: int) -> Iterator[tuple[tuple[str, ...], ...]]:
        if not rest:
            yield ()
            return
        for size, left in ((smaller + 1, larger), (smaller, smaller_left)):
            if left == 0:
                continue
            for others in combinations(rest[1:], size - 1):
                group = (rest[0], *others)
                after = tuple(tag for tag in rest if tag not in group)
                fewer = (larger - 1, smaller_left) if size > smaller else (larger, smaller_left - 1)
                yield from ((group, *more) for more in grow(after, *fewer))

    yield from map(Grouping, grow(tuple(sorted(tags)), num_larger, num_groups - num_larger))


def respects(grouping: Grouping, constraints: Constraints) -> bool:
    """Whether a grouping satisfies links and weights."""
    number = grouping.as_dict()
    if any(len({number[tag] for tag in link}) > 1 for link in constraints.must_link):
        return False
    if any(len({number[tag] for tag in link}) < len(link) for link in constraints.cannot_link):
        return False
    if constraints.weights is None:
        return True
    totals = [sum(constraints.weights[tag] for tag in group) for group in grouping.groups]
    mean = sum(totals) / len(totals)
    return all(abs(total - mean) <= mean * (constraints.window + 1e-9) for total in totals)


def shuffled(similarity: Similarity, *, seed: int) -> Similarity:
    """The same languages in another order."""
    order = np.random.default_rng(seed).permutation(len(similarity.tags))
    return Similarity(tuple(similarity.tags[i] for i in order), similarity.values_LL[np.ix_(order, order)])
