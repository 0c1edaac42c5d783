"""Does `--groups auto` find the number of groups? On planted groups, on noise, and on real languages.

python benchmarks/groups_auto.py; writes benchmarks/results/groups_auto.json. A few minutes on one core.

Planted: every pair of one family has similarity 1, every other 0, with noise of a standard deviation of 0, 0.4 or 0.8
on each pair. Two kinds: "plain", with the matrices of twelve repeats (the planted truth with noise of its own each),
and "levels", where each language has besides a level of its own (standard deviation 0.5, added to all its pairs) and
the twelve are a bootstrap (the noisy matrix with the same noise once more). A case is solvable where grouping into
the planted number finds the planted groups (adjusted Rand index at least 0.85): only there can a rule be right.
Noise: the same without families; the share of warnings.

The rivals see the same groupings:
- gap: gap statistic of the mean similarity inside groups against 12 matrices with permuted entries, the smallest
  number within one standard error of the next (Tibshirani, Walther & Hastie 2001); "gap, highest" takes the highest;
- held-out: group the mean of six replicates, score the mean similarity inside groups on the other six, and the other
  way round; the smallest number within one standard error of the best (Breiman et al. 1984);
- stability: mean adjusted Rand index between the groupings of every two replicates, the highest;
- silhouette: mean silhouette at distances 1 - similarity (Rousseeuw 1987), the highest;
- ours without replicates, as for a bare CSV.
Real: the BLOOM matrix of the paper's authors, and character trigrams of the Bible corpus with a bootstrap over text,
where ../shared is there; the curve, and how the chosen groups agree with the families.
"""

import csv
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml
from runs import RESULTS, machine

from sprachbund.grouping.count import CountChoice, choose_count
from sprachbund.grouping.families import family_agreement, family_auc, read_families
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.grouping.solve import solve
from sprachbund.grouping.stability import adjusted_rand

SHARED = Path(__file__).parents[2] / "shared"
BIBLE = SHARED / "corpora/bible-nt"
BLOOM = SHARED / "reference/dmoe/bloom-560m_last3_sim_fine.csv"
EIGHTEEN = Path(__file__).parents[1] / "examples/bible-18.yaml"

LANGUAGES, PLANTED, NOISE, KINDS = (18, 24, 36), (2, 3, 4, 6, 9), (0.0, 0.4, 0.8), ("plain", "levels")
REPLICATES, PERMUTED, SOLVABLE = 12, 12, 0.85


# How long the solver searches, where 1 is for one grouping that counts: here are tens of thousands that do not.
EFFORT = 0.02

Solver = Callable[[Similarity, int], Grouping]


@dataclass(frozen=True)
class Case:
    """One matrix with planted groups; `family` has one number for all where there are none."""

    kind: str
    num_languages: int
    planted: int
    noise: float
    family: tuple[int, ...]
    similarity: Similarity
    replicates: list[Similarity]

    @property
    def truth(self) -> Grouping:
        """The planted groups."""
        tags = self.similarity.tags
        numbers = dict.fromkeys(self.family)
        return Grouping(
            tuple(tuple(t for t, own in zip(tags, self.family, strict=True) if own == number) for number in numbers)
        )


def plant(kind: str, num_languages: int, planted: int, noise: float, seed: int) -> Case:
    """Return a case as the module's docstring has it; `planted` 0 is noise alone."""
    rng = np.random.default_rng([seed, num_languages, planted, round(10 * noise), KINDS.index(kind)])
    family_L = rng.permutation(num_languages) % max(planted, 1)
    level_L = rng.normal(scale=0.5, size=num_languages) if kind == "levels" else np.zeros(num_languages)
    truth_LL = (family_L[:, None] == family_L[None, :]) * float(planted > 0) + level_L[:, None] + level_L[None, :]
    found_LL = truth_LL + noise_of(num_languages, noise, rng)
    centre_LL = found_LL if kind == "levels" else truth_LL
    replicates = [centre_LL + noise_of(num_languages, noise, rng) for _ in range(REPLICATES)]
    tags = tuple(f"l{index:02}" for index in range(num_languages))
    return Case(
        kind,
        num_languages,
        planted,
        noise,
        tuple(family_L.tolist()),
        Similarity(tags, found_LL),
        [Similarity(tags, values_LL) for values_LL in replicates],
    )


def noise_of(num_languages: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    upper_LL = np.triu(rng.normal(scale=scale, size=(num_languages, num_languages)), k=1)
    return upper_LL + upper_LL.T


def once(solver: Solver) -> Solver:
    """Return the solver with a memory, so that every rule sees the same groupings and none is made twice."""
    known: dict[tuple[bytes, int], Grouping] = {}

    def remember(similarity: Similarity, count: int) -> Grouping:
        key = (similarity.values_LL.tobytes(), count)
        if key not in known:
            known[key] = solver(similarity, count)
        return known[key]

    return remember


def quick(similarity: Similarity, count: int) -> Grouping:
    return solve(similarity, num_groups=count, floor=0.0, effort=EFFORT).grouping


def inside(grouping: Grouping, similarity: Similarity) -> float:
    mean = grouping.mean_similarity(similarity)
    assert mean is not None, "half the languages at most are groups"
    return mean


def gap_curve(case: Case, counts: list[int], solver: Solver) -> tuple[list[float], list[float]]:
    """Return the gap of every candidate, and its standard error."""
    rng = np.random.default_rng(0)
    rows, columns = np.triu_indices(case.num_languages, k=1)
    permuted = []
    for _ in range(PERMUTED):
        values_LL = np.zeros((case.num_languages, case.num_languages))
        values_LL[rows, columns] = rng.permutation(case.similarity.values_LL[rows, columns])
        permuted.append(Similarity(case.similarity.tags, values_LL + values_LL.T))
    gaps, errors = [], []
    for count in counts:
        chance = [inside(solver(matrix, count), matrix) for matrix in permuted]
        gaps.append(inside(solver(case.similarity, count), case.similarity) - fmean(chance))
        errors.append(float(np.std(chance)) * (1 + 1 / PERMUTED) ** 0.5)
    return gaps, errors


def gap(case: Case, counts: list[int], solver: Solver) -> int:
    gaps, errors = gap_curve(case, counts, solver)
    for index in range(len(counts) - 1):
        if gaps[index] >= gaps[index + 1] - errors[index + 1]:
            return counts[index]
    return counts[-1]


def highest_gap(case: Case, counts: list[int], solver: Solver) -> int:
    gaps, _ = gap_curve(case, counts, solver)
    return counts[gaps.index(max(gaps))]


def held_out(case: Case, counts: list[int], solver: Solver) -> int:
    half = REPLICATES // 2
    halves = [case.replicates[:half], case.replicates[half:]]
    means = [Similarity(part[0].tags, np.mean([one.values_LL for one in part], axis=0)) for part in halves]
    scores = []  # one for each candidate, of one value for each replicate
    for count in counts:
        groupings = [solver(mean, count) for mean in means]
        pairs = [(groupings[0], one) for one in halves[1]] + [(groupings[1], one) for one in halves[0]]
        scores.append(np.array([inside(grouping, one) for grouping, one in pairs]))
    best = max(scores, key=lambda found: float(found.mean()))
    limit = best.mean() - best.std(ddof=1) / len(best) ** 0.5
    return next(count for count, found in zip(counts, scores, strict=True) if found.mean() >= limit)


def stability_alone(case: Case, counts: list[int], solver: Solver) -> int:
    def steadiness(count: int) -> float:
        return fmean(adjusted_rand(a, b) for a, b in combinations([solver(r, count) for r in case.replicates], 2))

    return max(counts, key=steadiness)


def silhouette(case: Case, counts: list[int], solver: Solver) -> int:
    distances_LL = 1 - case.similarity.values_LL
    distances_LL = distances_LL - min(0.0, float(distances_LL.min()))  # levels and noise may take them below 0

    def width(count: int) -> float:
        number_of = solver(case.similarity, count).as_dict()
        group_L = np.array([number_of[tag] for tag in case.similarity.tags])
        shares_LG = (group_L[:, None] == np.arange(count)).astype(float)
        here_L = np.arange(len(group_L))
        sums_LG = (distances_LL - np.diag(distances_LL.diagonal())) @ shares_LG
        sizes_G = shares_LG.sum(axis=0)
        own_L = sums_LG[here_L, group_L] / np.maximum(sizes_G[group_L] - 1, 1)
        others_LG = sums_LG / sizes_G
        others_LG[here_L, group_L] = np.inf
        near_L = others_LG.min(axis=1)
        return float(np.mean((near_L - own_L) / np.maximum(np.maximum(own_L, near_L), 1e-12)))

    return max(counts, key=width)


RIVALS = {
    "gap": gap,
    "gap, highest": highest_gap,
    "held-out": held_out,
    "stability": stability_alone,
    "silhouette": silhouette,
}
OURS, BARE = "ours", "ours, no replicates"


def judge(case: Case) -> dict[str, Any]:
    """Return what each rule chooses for a case."""
    solver = once(quick)
    begun = time.monotonic()
    choice = choose_count(case.similarity, replicates=case.replicates, solve_one=solver, seed=0)
    seconds = time.monotonic() - begun
    counts = [row.count for row in choice.rows]
    chosen = {OURS: choice.count, BARE: without_replicates(choice)}
    chosen |= {name: rival(case, counts, solver) for name, rival in RIVALS.items()}
    found = solver(case.similarity, case.planted) if case.planted else None
    return {
        **{key: getattr(case, key) for key in ("kind", "num_languages", "planted", "noise")},
        "solvable": found is not None and adjusted_rand(found, case.truth) >= SOLVABLE,
        "p_value": round(choice.p_value, 4),
        "warned": choice.warning is not None,
        "chosen": chosen,
        "seconds": round(seconds, 2),
    }


def without_replicates(choice: CountChoice) -> int:
    if choice.warning:
        return choice.count
    return max(choice.rows, key=lambda row: row.correlation - row.chance).count


def hit_rates(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print and return how often each rule chose the planted number, by kind, number and noise."""
    rules = [OURS, BARE, *RIVALS]
    solvable = [r for r in results if r["solvable"]]
    parts = [("all", solvable)]
    parts += [(f"{kind}", [r for r in solvable if r["kind"] == kind]) for kind in KINDS]
    parts += [(f"K* = {number}", [r for r in solvable if r["planted"] == number]) for number in PLANTED]
    parts += [(f"noise {noise:g}", [r for r in solvable if r["noise"] == noise]) for noise in NOISE]
    rows = []
    print(f"\n{'solvable cases':16}{'cases':>6}" + "".join(f"{rule:>21}" for rule in rules))
    for name, part in parts:
        rates = {rule: round(fmean(r["chosen"][rule] == r["planted"] for r in part), 3) for rule in rules}
        rows.append({"part": name, "cases": len(part), "hit_rate": rates})
        print(f"{name:16}{len(part):6}" + "".join(f"{rates[rule]:21.2f}" for rule in rules))
    return rows


def trigrams(tags: list[str], *, parts: int = 24, characters: int = 12_000, buckets: int = 2**15) -> np.ndarray:
    """Return (L, parts, buckets) counts of hashed character trigrams; a part has every 24th verse."""
    counts = np.zeros((len(tags), parts, buckets), dtype=np.float32)
    for language, tag in enumerate(tags):
        lines = (BIBLE / f"train/{tag}.jsonl").read_text(encoding="utf-8").splitlines()
        verses = [json.loads(line)["text"] for line in lines]
        for part in range(parts):
            text = " ".join(" ".join(verses[part::parts]).lower().split())[:characters]
            for gram, number in Counter(map("".join, zip(text, text[1:], text[2:], strict=False))).items():
                counts[language, part, zlib.crc32(gram.encode()) % buckets] += number
    return counts


def cosine(counts: np.ndarray, tags: list[str]) -> Similarity:
    rows = np.sqrt(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Similarity(tuple(tags), rows @ rows.T)


def bible(tags: list[str]) -> dict[str, Any]:
    """Return the choice for these languages, and how it agrees with their families."""
    counts = trigrams(tags)
    rng = np.random.default_rng(0)
    replicates = []
    for _ in range(REPLICATES):
        drawn = rng.integers(counts.shape[1], size=(len(tags), counts.shape[1]))
        replicates.append(cosine(np.stack([counts[i, rows].sum(axis=0) for i, rows in enumerate(drawn)]), tags))
    similarity = cosine(counts.sum(axis=1), tags)
    begun = time.monotonic()
    choice = choose_count(similarity, replicates=replicates, solve_one=quick, seed=0)
    seconds = time.monotonic() - begun
    family = {tag: levels[0] for tag, levels in read_families(BIBLE / "languages.csv", tags=tags).items()}
    agreement = family_agreement(quick(similarity, choice.count), family, seed=0)
    extra = {
        "families": len(set(family.values())),
        "rand": agreement.rand,
        "family_p_value": agreement.p_value,
        "family_auc": family_auc(similarity, family),
    }
    return shown(f"Bible, {len(tags)} languages, character trigrams, centred", choice, seconds) | rounded(extra)


def shown(name: str, choice: CountChoice, seconds: float) -> dict[str, Any]:
    """Print a curve and return it."""
    print(f"\n{name}: {choice.count} groups (p = {choice.p_value:.3f}, {seconds:.1f} s)")
    print("".join(f"{column:>13}" for column in asdict(choice.rows[0])))
    for row in choice.rows:
        print("".join(f"{'-' if value is None else f'{value:.4g}':>13}" for value in asdict(row).values()))
    curve = [rounded(asdict(row)) for row in choice.rows]
    return {
        "name": name,
        "count": choice.count,
        "p_value": choice.p_value,
        "seconds": round(seconds, 1),
        "curve": curve,
    }


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


def real() -> list[dict[str, Any]]:
    """Return the choices for real languages, nothing where the shared data are absent."""
    found = []
    if BLOOM.exists():
        begun = time.monotonic()
        choice = choose_count(read_similarity(BLOOM), solve_one=quick, seed=0)
        found.append(shown("BLOOM-560M, 18 languages (Li et al.)", choice, time.monotonic() - begun))
    if BIBLE.is_dir():
        with open(BIBLE / "languages.csv", encoding="utf-8") as file:
            every = [row["tag"] for row in csv.DictReader(file)]
        found += [bible(list(yaml.safe_load(EIGHTEEN.read_text())["languages"])), bible(every)]
    for result in found:
        if "rand" in result:
            print(f"{result['name']}: adjusted Rand index with {result['families']} families {result['rand']:.2f}")
    return found


def main() -> None:
    """Judge every case, compare with the bars, write."""
    begun = time.monotonic()
    results = []
    for kind, size, planted, noise in product(KINDS, LANGUAGES, PLANTED, NOISE):
        results.append(judge(plant(kind, size, planted, noise, seed=0)))
    print(f"planted: {time.monotonic() - begun:.0f} s", flush=True)
    silent = [judge(plant(kind, size, 0, 1.0, seed)) for kind, size, seed in product(KINDS, LANGUAGES[:2], range(5))]
    table = hit_rates(results)
    rates = table[0]["hit_rate"]
    warned = fmean(r["warned"] for r in silent)
    seconds = fmean(r["seconds"] for r in results if r["num_languages"] == 24)
    print(f"\nnoise alone: {warned:.0%} of {len(silent)} warned; seconds a choice at 24 languages: {seconds:.1f}")
    bars = [
        at_least("hit rate on solvable cases", rates[OURS], 0.9),
        *(at_least(f"hit rate, that of {name}", rates[OURS], rates[name]) for name in RIVALS),
        at_least("share of noise that is called noise", warned, 0.8),
    ]
    for one in bars:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['values']} (at least {one['at_least']})")
    content = {
        **machine(),
        "seconds": round(time.monotonic() - begun, 1),
        "bars": bars,
        "hit_rates": table,
        "real": real(),
        "planted": results,
        "noise": silent,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "groups_auto.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {RESULTS / 'groups_auto.json'}")
    sys.exit(not all(one["holds"] for one in bars))


def at_least(name: str, value: float, limit: float) -> dict[str, Any]:
    return {"bar": name, "values": [round(value, 4)], "at_least": round(limit, 4), "holds": value >= limit}


if __name__ == "__main__":
    main()
