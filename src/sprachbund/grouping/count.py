"""How many groups: as many as the similarity shows, and no more.

The mean similarity inside groups cannot tell: smaller groups are always more alike, down to one language each. What
has a peak is how well *sharing a group* predicts similarity over all pairs: too few groups put strangers together,
too many part the alike. That is the point-biserial correlation, one of the better of Milligan & Cooper's thirty
stopping rules (1985). Three changes make it fit here:

- Each language's own level is taken out first (a least-squares additive effect of both languages of a pair), from
  the similarities and from the 0/1 of sharing a group: a script of its own makes a language unlike all others, which
  says nothing of groups. Networks call this degree-corrected (Karrer & Newman 2011, there multiplicative).
- Any search finds groups in noise too, the more of them the better. The correlation that the same search reaches
  when the similarities are dealt out anew over the pairs is taken off, as in the gap statistic (Tibshirani, Walther &
  Hastie 2001).
- Where there is resampled probe data, the rest is multiplied by the stability of the groups under it.

benchmarks/groups_auto.py compares this with the gap statistic, held-out similarity and stability alone.
Shapes: L languages, P pairs of languages, B shuffled matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Matrix, Similarity
from sprachbund.grouping.stability import adjusted_rand

GroupInto = Callable[[Similarity, int], Grouping]

MOST_GROUPS = 24

# With 20 shuffled matrices the smallest p-value is 1/21, just below the level.
SHUFFLES = 20
LEVEL = 0.05

# The stability of every candidate is an average, and a dozen regroupings settle it; each candidate pays for its own.
MOST_REPLICATES = 12


@dataclass(frozen=True)
class CountRow:
    """One number of groups on the curve.

    Attributes:
        count: the number of groups.
        mean: mean similarity over the pairs that share a group; None where no two languages do.
        min: that of the least alike such pair.
        correlation: of sharing a group with similarity over all pairs, each language's own level taken out.
        chance: the mean correlation that grouping the shuffled matrices reaches.
        stability: mean adjusted Rand index with the groups of the resampled matrices; None without any.
        score: (correlation - chance) times stability.
    """

    count: int
    mean: float | None
    min: float | None
    correlation: float
    chance: float
    stability: float | None
    score: float


@dataclass(frozen=True)
class CountChoice:
    """The number of groups, and the curve that it was chosen from.

    Attributes:
        count: the number with the highest score; the smallest candidate where nothing stands out from chance.
        rows: the curve, smallest number first.
        p_value: the share of the matrices, the shuffled and the real one, whose highest correlation above chance is
            at least the real one's: permutation test of "there are no groups", over all candidates at once.
        warning: one sentence where there are no groups to be seen, else None.
    """

    count: int
    rows: tuple[CountRow, ...]
    p_value: float
    warning: str | None


def choose_count(
    similarity: Similarity,
    *,
    replicates: Sequence[Similarity] = (),
    counts: Sequence[int] | None = None,
    solve_one: GroupInto,
    seed: int,
) -> CountChoice:
    """Choose the number of groups; the smaller of two that score the same.

    Args:
        similarity: what is to be grouped.
        replicates: the same from resampled probe data, of which the first twelve are used; without any the score has
            no stability.
        counts: the candidates; 2 to half the languages, at most 24, if not given.
        solve_one: the grouping of a matrix into so many groups. It is called once for every candidate and each of
            the matrix, its shuffled copies and the replicates, so it should be quick. Candidates that it refuses (an
            `InputError`: a constraint cannot be met) are left out.
        seed: of the shuffles. The order of the languages does not matter if it does not to `solve_one`.

    Raises:
        InputError: a candidate outside 2..L, no candidate, or none that `solve_one` accepts.
    """
    candidates = _candidates(counts, num_languages=len(similarity.tags))
    tags = tuple(sorted(similarity.tags))
    order = [similarity.tags.index(tag) for tag in tags]
    similarity = Similarity(tags, similarity.values_LL[np.ix_(order, order)])
    shuffled = _shuffled(similarity, np.random.default_rng(seed))
    resampled = replicates[:MOST_REPLICATES]
    rows, chances_B = [], []
    refusal: InputError | None = None
    for count in candidates:
        try:
            row, chance_B = _row(similarity, count, shuffled=shuffled, replicates=resampled, solve_one=solve_one)
        except InputError as error:
            refusal = error
            continue
        rows.append(row)
        chances_B.append(chance_B)
    if not rows:
        assert refusal is not None, "no candidate, and none refused"
        raise refusal
    p_value = _p_value([row.correlation for row in rows], np.array(chances_B))
    if p_value > LEVEL:
        return CountChoice(rows[0].count, tuple(rows), p_value, _no_groups(rows[0].count, p_value))
    return CountChoice(max(rows, key=lambda row: row.score).count, tuple(rows), p_value, None)


def _candidates(counts: Sequence[int] | None, *, num_languages: int) -> list[int]:
    if num_languages < 2:
        raise InputError(f"The matrix has {num_languages} language; there is nothing to group.")
    if counts is None:
        return list(range(2, max(2, min(MOST_GROUPS, num_languages // 2)) + 1))
    if not counts:
        raise InputError(f"No number of groups to choose from; give at least one of 2 to {num_languages}.")
    for count in counts:
        if not 2 <= count <= num_languages:
            raise InputError(
                f"{count} groups are a candidate for {num_languages} languages; give 2 to {num_languages}."
            )
    return sorted(set(counts))


def _row(
    similarity: Similarity,
    count: int,
    *,
    shuffled: Sequence[Similarity],
    replicates: Sequence[Similarity],
    solve_one: GroupInto,
) -> tuple[CountRow, NDArray[np.float64]]:
    """Return one point of the curve, and (B) the correlations of the shuffled matrices."""
    grouping = solve_one(similarity, count)
    correlation = shared_group_correlation(grouping, similarity)
    chance_B = np.array([shared_group_correlation(solve_one(matrix, count), matrix) for matrix in shuffled])
    chance = float(chance_B.mean())
    steady = None
    if replicates:
        steady = float(np.mean([adjusted_rand(grouping, solve_one(matrix, count)) for matrix in replicates]))
    row = CountRow(
        count=count,
        mean=grouping.mean_similarity(similarity),
        min=grouping.min_similarity(similarity),
        correlation=correlation,
        chance=chance,
        stability=steady,
        score=(correlation - chance) * (1.0 if steady is None else steady),
    )
    return row, chance_B


def shared_group_correlation(grouping: Grouping, similarity: Similarity) -> float:
    """Return the correlation, over pairs, of sharing a group with similarity, each language's own level taken out.

    0 where either is wholly explained by the levels: a constant matrix, one group, all-singletons.
    """
    number_of = grouping.as_dict()
    group_L = np.array([number_of[tag] for tag in similarity.tags])
    shares_P = _above_levels((group_L[:, None] == group_L[None, :]).astype(np.float64))[1]
    above_P = _above_levels(similarity.values_LL)[1]
    norm = float(np.linalg.norm(shares_P) * np.linalg.norm(above_P))
    return float(shares_P @ above_P) / norm if norm else 0.0


def _above_levels(values_LL: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (P) what the languages' own levels explain of each pair, and (P) the rest.

    Least squares of mean + level of one + level of the other over the pairs; the diagonal plays no part.
    """
    size = len(values_LL)
    rows, columns = np.triu_indices(size, k=1)
    pairs_P = values_LL[rows, columns]
    if size < 4:  # as many levels as pairs: they explain everything
        return pairs_P, np.zeros_like(pairs_P)
    mean = pairs_P.mean()
    level_L = (values_LL.sum(axis=1) - values_LL.diagonal() - (size - 1) * mean) / (size - 2)
    explained_P = mean + level_L[rows] + level_L[columns]
    rest_P = pairs_P - explained_P
    # Rounding leaves a little where nothing is left; noise of that kind must not look like groups.
    if np.linalg.norm(rest_P) <= 1e-12 * size * np.linalg.norm(pairs_P):
        rest_P = np.zeros_like(pairs_P)
    return explained_P, rest_P


def _shuffled(similarity: Similarity, rng: np.random.Generator) -> list[Similarity]:
    """Return matrices of the same levels and values, whose rest is dealt out anew over the pairs: no groups."""
    rows, columns = np.triu_indices(len(similarity.tags), k=1)
    explained_P, rest_P = _above_levels(similarity.values_LL)
    matrices = []
    for _ in range(SHUFFLES):
        values_LL = np.diag(similarity.values_LL.diagonal())
        values_LL[rows, columns] = values_LL[columns, rows] = explained_P + rng.permutation(rest_P)
        matrices.append(Similarity(similarity.tags, values_LL))
    return matrices


def _p_value(correlations: Sequence[float], chances_KB: NDArray[np.float64]) -> float:
    """Return the p-value of the highest correlation above chance, over all candidates K at once.

    What is chance is here the mean over all matrices, the real one too: under "no groups" they are then
    exchangeable, and the test is exact.
    """
    every = np.column_stack([correlations, chances_KB])
    highest = (every - every.mean(axis=1, keepdims=True)).max(axis=0)
    # Equal counts as "at least": a constant matrix has nothing but zeros.
    return float((highest >= highest[0] - 1e-12).mean())


def _no_groups(count: int, p_value: float) -> str:
    return (
        f"The similarities show no groups: dealt out at random they correlate as well (p = {p_value:.2f}). "
        f"{count} is the smallest number possible, not a finding; more probe data may show groups."
    )
