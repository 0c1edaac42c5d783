"""The grouping solver against the paper's greedies and balanced clusterings, each on the solver's own objectives.

python benchmarks/grouping.py; writes benchmarks/results/grouping.json. Some minutes on 2 idle cores. Needs scikit-learn
(pip install "sprachbund[benchmarks]"); the authors' matrix in ../shared/reference/dmoe is left out where it is absent.

Matrices, two seeds each:
- "families": languages in groups of 8 (of 3 at n = 18) in 4 areas; a pair of a group has 0.5, of an area 0.2, plus
  noise of standard deviation 0.15: what similar languages look like.
- "noise": a random symmetric matrix, the hardest to bound.
- "BLOOM-560M": the authors' own (n = 18).
Ours: `mean` with no floor, and `bottleneck`. Rivals are judged by both values: greedy-exhaustive where its enumeration
is feasible, greedy-seeded, and k-means, spectral and agglomerative clustering, each balanced: languages are dealt to
the clusters' places by the mean similarity to their members (linear assignment), again until nothing changes.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from runs import RESULTS, machine
from scipy.optimize import linear_sum_assignment

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping, group_greedy_exhaustive, group_greedy_seeded
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.grouping.solve import Solution, solve

try:
    from sklearn.cluster import AgglomerativeClustering, KMeans, SpectralClustering
except ImportError:
    raise SystemExit('scikit-learn is missing: pip install "sprachbund[benchmarks]"') from None

BLOOM = Path(__file__).parents[2] / "shared/reference/dmoe/bloom-560m_last3_sim_fine.csv"
SIZES = {18: 6, 64: 8, 128: 16, 256: 32, 512: 64}
SEEDS = (0, 1)
MOST_SECONDS = {18: 5.0, 512: 90.0}
# Rounding of a mean over thousands of pairs.
SLACK = 1e-9

Labels = NDArray[np.intp]


def families(size: int, num_groups: int, seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    group_L = rng.permutation(np.arange(size) % num_groups)
    values = 0.5 * (group_L[:, None] == group_L) + 0.2 * (group_L[:, None] % 4 == group_L % 4)
    return symmetric(values + 0.15 * rng.normal(size=(size, size)))


def noise(size: int, _: int, seed: int) -> Similarity:
    return symmetric(np.random.default_rng(seed).normal(size=(size, size)))


def symmetric(values: NDArray[np.float64]) -> Similarity:
    upper = np.triu(values, k=1)
    return Similarity(tuple(f"l{i:03}" for i in range(len(values))), upper + upper.T + np.eye(len(values)))


def cluster(name: str, values_LL: NDArray[np.float64], num_groups: int, seed: int) -> Labels:
    """Return scikit-learn's clusters, of whatever sizes."""
    above = values_LL - values_LL.min()
    if name == "k-means":
        found = KMeans(num_groups, n_init=10, random_state=seed).fit_predict(values_LL)
    elif name == "spectral":
        found = SpectralClustering(num_groups, affinity="precomputed", random_state=seed).fit_predict(above)
    else:
        distances = above.max() - above
        np.fill_diagonal(distances, 0)
        found = AgglomerativeClustering(num_groups, metric="precomputed", linkage="average").fit_predict(distances)
    return np.asarray(found, dtype=np.intp)


def balanced(values_LL: NDArray[np.float64], labels_L: Labels, num_groups: int) -> Labels:
    """Return groups of sizes that differ by one at most, by what their members are most alike to."""
    size = len(labels_L)
    places = np.repeat(np.arange(num_groups), [size // num_groups + (g < size % num_groups) for g in range(num_groups)])
    off_LL = values_LL - np.diag(values_LL.diagonal())
    for _ in range(20):
        member_LG = (labels_L[:, None] == np.arange(num_groups)).astype(float)
        worth_LG = off_LL @ member_LG / np.maximum(member_LG.sum(axis=0), 1)
        languages, chosen = linear_sum_assignment(-worth_LG[:, places])
        dealt_L = np.empty_like(labels_L)
        dealt_L[languages] = places[chosen]
        if (dealt_L == labels_L).all():
            break
        labels_L = dealt_L
    return labels_L


def rivals(one: Similarity, num_groups: int, seed: int) -> dict[str, tuple[Grouping, float]]:
    """Return every rival's groups and seconds; greedy-exhaustive only where it runs."""

    def clustered(name: str) -> Callable[[], Grouping]:
        def make() -> Grouping:
            labels_L = balanced(one.values_LL, cluster(name, one.values_LL, num_groups, seed), num_groups)
            return Grouping.from_dict(dict(zip(one.tags, labels_L.tolist(), strict=True)))

        return make

    makers: dict[str, Callable[[], Grouping]] = {
        "greedy-exhaustive": lambda: group_greedy_exhaustive(one, num_groups=num_groups),
        "greedy-seeded": lambda: group_greedy_seeded(one, num_groups=num_groups),
        **{name: clustered(name) for name in ("k-means", "spectral", "agglomerative")},
    }
    found = {}
    for name, make in makers.items():
        begun = time.monotonic()
        try:
            found[name] = (make(), time.monotonic() - begun)
        except InputError:  # more combinations than it looks at
            continue
    return found


def timed(one: Similarity, num_groups: int, **wishes: Any) -> tuple[Solution, float]:
    begun = time.monotonic()
    return solve(one, num_groups=num_groups, **wishes), time.monotonic() - begun


def answer(found: Solution, seconds: float) -> dict[str, Any]:
    assert found.value is not None
    assert found.bound is not None
    return {
        "value": float(found.value),
        "bound": float(found.bound),
        "proven": bool(found.proven),
        "seconds": round(seconds, 2),
    }


def judge(name: str, one: Similarity, num_groups: int, seed: int) -> dict[str, Any]:
    """Return all values of one matrix."""
    mean, mean_seconds = timed(one, num_groups, floor=0.0, seed=seed)
    least, least_seconds = timed(one, num_groups, objective="bottleneck", seed=seed)
    theirs = {
        rival: {
            "mean": grouping.mean_similarity(one),
            "min": grouping.min_similarity(one),
            "seconds": round(seconds, 3),
        }
        for rival, (grouping, seconds) in rivals(one, num_groups, seed).items()
    }
    row: dict[str, Any] = {
        "matrix": name,
        "languages": len(one.tags),
        "groups": num_groups,
        "seed": seed,
        "method": mean.method,
        "mean": answer(mean, mean_seconds),
        "min": answer(least, least_seconds),
        "rivals": theirs,
    }
    line = f"{name:12}{len(one.tags):5}{num_groups:4}{seed:3}"
    for key in ("mean", "min"):
        ours, best = row[key], max(rival[key] for rival in theirs.values())
        line += f"  {key} {ours['value']:8.4f} (at most {ours['bound']:8.4f}, best rival {best:8.4f}, "
        line += f"{ours['seconds']:6.1f} s)"
    print(line, flush=True)
    return row


def bars_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what must hold."""
    behind = [
        rival[key] - row[key]["value"] for row in rows for rival in row["rivals"].values() for key in ("mean", "min")
    ]
    bars = [at_most("a rival better than ours on its own objective, by", max(behind), SLACK)]
    above = [row[key]["value"] - row[key]["bound"] for row in rows for key in ("mean", "min")]
    bars.append(at_most("a value above its bound, by", max(above), SLACK))
    for size, limit in MOST_SECONDS.items():
        seconds = [row[key]["seconds"] for row in rows if row["languages"] == size for key in ("mean", "min")]
        bars.append(at_most(f"seconds of one answer at {size} languages", max(seconds), limit))
    unproven = sum(not row[key]["proven"] for row in rows if row["languages"] == 18 for key in ("mean", "min"))
    return [*bars, at_most("unproven answers at 18 languages", unproven, 0)]


def at_most(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"bar": name, "value": round(float(value), 6), "at_most": limit, "holds": bool(value <= limit)}


def main() -> None:
    """Judge every matrix, compare with the bars, write."""
    rows = []
    if BLOOM.exists():
        bloom = read_similarity(BLOOM)
        rows += [judge("BLOOM-560M", bloom, num_groups, 0) for num_groups in (2, 3, 6, 9)]
    else:
        print("left out: ../shared/reference/dmoe is not beside this clone")
    for size, num_groups in SIZES.items():
        for make in (families, noise):
            rows += [judge(make.__name__, make(size, num_groups, seed), num_groups, seed) for seed in SEEDS]
    bars = bars_of(rows)
    for one in bars:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['value']} (at most {one['at_most']})")
    RESULTS.mkdir(exist_ok=True)
    content = {**machine(), "bars": bars, "rows": rows}
    (RESULTS / "grouping.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {RESULTS / 'grouping.json'}")
    sys.exit(not all(one["holds"] for one in bars))


if __name__ == "__main__":
    main()
