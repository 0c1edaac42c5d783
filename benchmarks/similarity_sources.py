"""Every similarity source on examples/bible-18.yaml, judged by language families; and how sure each is of itself.

python benchmarks/similarity_sources.py [WORK_FOLDER]; writes benchmarks/results/similarity_sources.json. About 15
minutes on 2 idle cores. Needs the corpus in ../shared/corpora/bible-nt beside the clone.

The base is the recipe's, trained on these 18 languages. For each source, with the mean over languages removed and with
it: the adjusted Rand index of the solver's six groups against families (three of the recipe's six groups of three are
of one area, not of one family, so that 1 cannot be reached), and the probability that a pair of one family is more
alike than another pair. Seconds are of one repeat, the loading of the base included.

Deviation and gradient are measured in three repeats on other blocks each; judged is the first, as a run without repeats
would find it. The spread of a similarity, the standard deviation of an entry, is that over repeats, and that over
bootstrap replicates of the first repeat, which is what a run with one repeat has.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from runs import RESULTS, machine

from sprachbund.grouping.families import family_auc
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.solve import solve
from sprachbund.grouping.stability import adjusted_rand
from sprachbund.modeling.base import quiet
from sprachbund.recipe_file import load_recipe
from sprachbund.run import probing
from sprachbund.run.data import Corpora, PackedCorpora, make_tokenizer, pack_corpora
from sprachbund.run.directory import Run, open_run
from sprachbund.similarity import STEPWISE, Signal, by_repeat, resampled, similarity_of

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "../shared/corpora/bible-nt"
PARALLEL = "representation, verses matched by id"
SOURCES = ("deviation", "gradient", "representation", PARALLEL, "lexical", "characters")
GROUPS, REPEATS, REPLICATES, SEED = 6, 3, 100, 0
WHOLE = 1 << 22  # floats of a sketch that is none: every step's update is kept exactly


def open_example(folder: Path, *overrides: str) -> Run:
    """Open a run of the example."""
    return open_run(load_recipe(ROOT / "examples/bible-18.yaml", overrides=list(overrides)), folder, update=True)


def measure(
    work: Path, name: str, base: probing.DenseBase, packed: PackedCorpora, corpora: Corpora
) -> tuple[dict[str, Signal], float]:
    """Probe by one source; return its signals and the seconds of one repeat."""
    source = name.split(",")[0]
    repeats = REPEATS if source in ("deviation", "gradient") else 1
    settings = [f"groups.source={source}", f"probe.repeats={repeats}", f"probe.sketch_size={WHOLE}"]
    if name == PARALLEL:
        settings.append(f"probe.sentences={CORPUS}/train/{{tag}}.jsonl")
    run = open_example(work / name.replace(", ", "-").replace(" ", "-"), *settings)
    run.fingerprints["base"] = "given"
    signals = probing.probe(run, base, packed, corpora).signals[source]
    return signals, run.seconds()["probe"] / repeats  # as recorded: a folder that is used again is not measured again


def first_repeat(signals: Mapping[str, Signal]) -> dict[str, Signal]:
    """Return the signals that a probe without repeats would have found; parts are exact here."""
    found = {}
    for tag, signal in signals.items():
        parts = {layer: numbers[: len(numbers) // signal.repeats] for layer, numbers in signal.parts.items()}
        totals = {layer: numbers.sum(0) for layer, numbers in parts.items()}
        norms = {layer: float(total.norm()) for layer, total in totals.items()}
        found[tag] = replace(signal, totals=totals, parts=parts, norms=norms, repeats=1)
    return found


def spread(found: Sequence[Similarity]) -> float:
    """Return the standard deviation of an entry, the mean over pairs of different languages."""
    values = np.stack([similarity.values_LL for similarity in found])
    return float(values.std(axis=0, ddof=1)[np.triu_indices(values.shape[1], 1)].mean())


def judge(signals: Mapping[str, Signal], *, source: str, center: bool, family: Mapping[str, str]) -> dict[str, Any]:
    """Return how well one similarity knows the families, and its spread."""
    first = first_repeat(signals)
    similarity = similarity_of(first, source=source, center=center)
    off = similarity.values_LL[np.triu_indices(len(similarity.tags), 1)]
    grouping = solve(similarity, num_groups=GROUPS, seed=SEED).grouping
    families = Grouping.from_dict({tag: sorted(set(family.values())).index(family[tag]) for tag in similarity.tags})
    replicates = resampled(first, source=source, center=center, num=REPLICATES, seed=SEED)
    again = [solve(one, num_groups=GROUPS, seed=SEED, effort=0.1).grouping for one in replicates]
    repeats = by_repeat(signals, source=source, center=center)
    return {
        "source": source,
        "center": center,
        "family_auc": family_auc(similarity, family),
        "family_rand": adjusted_rand(grouping, families),
        "lowest": float(off.min()),
        "highest": float(off.max()),
        "deviation_of_entries": float(off.std()),
        "spread_of_replicates": spread(replicates),
        "rand_to_replicates": fmean(adjusted_rand(grouping, one) for one in again),
        "spread_of_repeats": spread(repeats) if repeats else None,
        "groups": [list(group) for group in grouping.groups],
    }


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def measure_all(work: Path) -> list[dict[str, Any]]:
    """Train the base, measure and judge every source."""
    run = open_example(work / "base")
    family = {row["tag"]: row["family"] for row in csv.DictReader((CORPUS / "languages.csv").open(encoding="utf-8"))}
    corpora = Corpora(run.recipe)
    tokenizer = make_tokenizer(run, corpora)
    packed = pack_corpora(run, corpora, tokenizer)
    base = probing.make_base(run, packed, tokenizer)
    own = {tag: family[tag] for tag in run.recipe.tags()}
    rows = []
    for name in SOURCES:
        signals, seconds = measure(work, name, base, packed, corpora)
        kinds = [name.split(",")[0], *([STEPWISE] if name == "gradient" else [])]
        for source in kinds:
            for center in (False, True):
                row = judge(signals, source=source, center=center, family=own)
                rows.append(rounded({**row, "data": name.partition(", ")[2] or None, "seconds": seconds}))
                show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    repeats = "" if row["spread_of_repeats"] is None else f"{row['spread_of_repeats']:.4f}"
    name = f"{row['source']}{', ' + row['data'] if row['data'] else ''}{', centred' if row['center'] else ''}"
    print(
        f"{name:48}{row['family_auc']:6.2f}{row['family_rand']:6.2f}{row['deviation_of_entries']:10.4f}"
        f"{row['spread_of_replicates']:10.4f}{repeats:>9}{row['rand_to_replicates']:8.2f}{row['seconds']:9.1f}",
        flush=True,
    )


def main() -> None:
    """Measure in a folder of the user's or a temporary one, print and write."""
    if not CORPUS.is_dir():
        raise SystemExit("skipped: ../shared/corpora/bible-nt is not beside this clone")
    quiet()
    print(f"{'':48}{'AUC':>6}{'Rand':>6}{'entries':>10}{'boot':>10}{'repeats':>9}{'again':>8}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure_all(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
    settings = {"groups": GROUPS, "repeats": REPEATS, "replicates": REPLICATES, "seed": SEED}
    RESULTS.mkdir(exist_ok=True)
    content = {**machine(), "settings": settings, "rows": rows}
    (RESULTS / "similarity_sources.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {RESULTS / 'similarity_sources.json'}")


if __name__ == "__main__":
    main()
