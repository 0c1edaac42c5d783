"""How sure are the groups: regroup what other data could have shown, and count how often the answer is the same.

Stability is not truth: a similarity that is wrong in the same way every time gives the same wrong groups every time.
Shapes: L languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Matrix, Similarity

Regroup = Callable[[Similarity], Grouping]


@dataclass(frozen=True, eq=False)
class Stability:
    """What regrouping says of a grouping.

    Attributes:
        reference: the grouping in question.
        groupings: the same languages (for `perturbed` some of them) grouped again, one for each matrix.
        tags: (L) the languages of the reference, in the order of its groups.
        co_assignment_LL: (L, L) in the order of `tags`: the share of groupings in which two languages share a group,
            of those that have both.
        mean_rand: adjusted Rand index of the groupings with the reference, on average.
        confidence: for each language the mean co-assignment with its group mates; for a language that is alone in
            its group the share of groupings in which it is alone.
    """

    reference: Grouping
    groupings: tuple[Grouping, ...]
    tags: tuple[str, ...]
    co_assignment_LL: Matrix
    mean_rand: float
    confidence: dict[str, float]


def stability(reference: Grouping, replicates: Sequence[Similarity], *, solve_one: Regroup) -> Stability:
    """Group every replicate as the reference was grouped, and compare.

    A replicate is the similarity of resampled or repeated probe data; `solve_one` must ask for as many groups as the
    reference has. Repeats of the probe are the cleanest evidence. A bootstrap scatters about the one matrix that was
    measured and so has its noise in all of them, and once more in each: where there is little noise it says less than
    repeats would, where there is much it says more.

    Raises:
        InputError: no replicate, or one over other languages than the reference.
    """
    if not replicates:
        raise InputError("Stability needs at least one resampled similarity; resample the probe or use `perturbed`.")
    languages = set(reference.as_dict())
    for number, replicate in enumerate(replicates, start=1):
        if set(replicate.tags) != languages:
            only = sorted(languages ^ set(replicate.tags))[0]
            raise InputError(f"Either the groups or resampled similarity {number} lack {only!r}; give both the same.")
    return _compare(reference, [solve_one(replicate) for replicate in replicates])


def perturbed(
    reference: Grouping, similarity: Similarity, *, solve_one: Regroup, folds: int = 5, rounds: int = 4, seed: int
) -> Stability:
    """Group without a part of the languages, again and again: all that a bare matrix allows.

    The languages are dealt into `folds` parts and one part is left out at a time, all of it `rounds` times over: any
    two languages are together in most groupings. It sees groups that hang on single languages or on the equal sizes
    that the method forces, and those are the misplaced ones more often than not. It does not see whether the
    similarities are right: noise stays where it is. Other languages being there at each turn, `solve_one` must do
    without constraints that name languages.

    Raises:
        InputError: fewer than 3 folds, or fewer languages left than groups.
    """
    tags = sorted(similarity.tags)
    if folds < 3:
        raise InputError(f"{folds} folds asked for; leave out at most a third of the languages: give 3 or more.")
    fewest = len(tags) - -(-len(tags) // folds)
    if fewest < max(len(reference.groups), 2):
        raise InputError(
            f"Without one part in {folds} only {fewest} of {len(tags)} languages are left for "
            f"{len(reference.groups)} groups; use more folds or fewer groups."
        )
    rng = np.random.default_rng(seed)
    groupings = []
    for _ in range(rounds):
        fold_L = rng.permutation(np.arange(len(tags)) % folds)
        for fold in range(folds):
            kept = [tag for tag, number in zip(tags, fold_L, strict=True) if number != fold]
            groupings.append(solve_one(_restricted(similarity, kept)))
    return _compare(reference, groupings)


def co_assignment(groupings: Sequence[Grouping], tags: Sequence[str]) -> Matrix:
    """Return (L, L) the share of groupings in which two languages share a group, of those that have both.

    The diagonal is 1. NaN where no grouping has both; languages that are not in `tags` are ignored.
    """
    together_LL = np.zeros((len(tags), len(tags)))
    present_LL = np.zeros((len(tags), len(tags)))
    for grouping in groupings:
        number_of = grouping.as_dict()
        group_L = np.array([number_of.get(tag, -1) for tag in tags])
        has_L = group_L >= 0
        present_LL += has_L[:, None] & has_L[None, :]
        together_LL += (group_L[:, None] == group_L[None, :]) & has_L[:, None]
    shares_LL: Matrix = np.divide(together_LL, present_LL, out=np.full_like(together_LL, np.nan), where=present_LL > 0)
    return shares_LL


def adjusted_rand(a: Grouping, b: Grouping) -> float:
    """Return the adjusted Rand index of two groupings of the same languages (Hubert & Arabie 1985).

    1 is the same partition, 0 what chance gives on average for groups of these sizes, below 0 less than that. Where
    both are all-singletons, or both one group, they are equal: 1. Where only one of the two is, it says nothing: 0.

    Raises:
        InputError: they are over different languages.
    """
    first, second = a.as_dict(), b.as_dict()
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())[0]
        raise InputError(f"Only one of the two groupings has the language {only!r}; compare groupings of the same.")
    return rand_of_labels(
        np.fromiter(first.values(), dtype=np.intp), np.array([second[tag] for tag in first], dtype=np.intp)
    )


def rand_of_labels(first_L: NDArray[np.intp], second_L: NDArray[np.intp]) -> float:
    """Return the adjusted Rand index of two numberings of the same languages; see `adjusted_rand`."""
    every = comb(len(first_L), 2)
    both = pairs_together(first_L, second_L)
    first, second = pairs_together(first_L, first_L), pairs_together(second_L, second_L)
    # In whole numbers, hence exact: first and second are both 0 or both `every`, and nothing is left to chance.
    if (first + second) * every == 2 * first * second:
        return 1.0
    expected = first * second / every
    return (both - expected) / ((first + second) / 2 - expected)


def pairs_together(first_L: NDArray[np.intp], second_L: NDArray[np.intp]) -> int:
    """Return the number of pairs of languages that have one number in the first and one in the second."""
    counts = np.bincount(first_L * (int(second_L.max()) + 1) + second_L)
    return int((counts * (counts - 1)).sum()) // 2


def _compare(reference: Grouping, groupings: Sequence[Grouping]) -> Stability:
    tags = tuple(tag for members in reference.groups for tag in members)
    shares_LL = co_assignment(groupings, tags)
    row = {tag: index for index, tag in enumerate(tags)}
    confidence = {}
    for members in reference.groups:
        for tag in members:
            mates = [row[mate] for mate in members if mate != tag]
            confidence[tag] = float(shares_LL[row[tag], mates].mean()) if mates else _alone(tag, groupings)
    rands = [adjusted_rand(_without_absent(reference, grouping), grouping) for grouping in groupings]
    return Stability(reference, tuple(groupings), tags, shares_LL, float(np.mean(rands)), confidence)


def _restricted(similarity: Similarity, tags: Sequence[str]) -> Similarity:
    rows = [similarity.tags.index(tag) for tag in tags]
    return Similarity(tuple(tags), similarity.values_LL[np.ix_(rows, rows)])


def _without_absent(grouping: Grouping, present: Grouping) -> Grouping:
    """Return the grouping of those languages only that `present` has."""
    tags = present.as_dict()
    kept = (tuple(tag for tag in members if tag in tags) for members in grouping.groups)
    return Grouping(tuple(members for members in kept if members))


def _alone(tag: str, groupings: Sequence[Grouping]) -> float:
    """Return the share of the groupings with this language in which nothing shares its group."""
    sizes = [len(members) for grouping in groupings for members in grouping.groups if tag in members]
    return sizes.count(1) / len(sizes)
