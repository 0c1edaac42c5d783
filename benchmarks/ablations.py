"""One choice of the default changed at a time, on the runs that bible.py left: what defaults marked [measured] rest on.

python benchmarks/ablations.py [WORK_FOLDER]; run bible.py first, with the same folder. Writes
benchmarks/results/ablations.json. Scored on the dev split: choices are not made on test. About 8 minutes on
2 idle cores.
"""

import csv
import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

from bible import ROOT
from runs import RESULTS, machine, run

from sprachbund.similarity import deviation_similarity, load_probe

SEEDS = (0,)
VARIANTS = {
    "experts.kind: copy (default: shared)": ("default", "experts.kind=copy"),
    "layers: {epsilon: 0.6} (default: all)": ("default", "layers={epsilon: 0.6}"),
    "experts.router_gradient: through (default: detach)": ("default", "experts.router_gradient=through"),
    "native, experts.router_rate_factor: 1 (default: 4)": ("native", "experts.router_rate_factor=1"),
}
ROUTINGS = ("group", "prefix", "top_k")


def change(metrics: dict[str, Any], reference: dict[str, Any], routing: str) -> float:
    """Return the relative change of perplexity after burn-in against the preset as it is."""
    kind = "perplexity_after_burn_in"
    return float(metrics["average"][kind][routing] / reference["average"][kind][routing] - 1)


def family_auc(folder: Path, *, center: bool) -> float:
    """Return the chance that a pair of one family is more similar than a pair of two (0.5: no signal)."""
    with (ROOT / "../shared/corpora/bible-nt/languages.csv").open(encoding="utf-8") as file:
        family = {row["tag"]: row["family"] for row in csv.DictReader(file)}
    similarity = deviation_similarity(
        [load_probe(p) for p in sorted((folder / "probe").glob("*.safetensors"))], center=center
    )
    pairs = list(combinations(range(len(similarity.tags)), 2))
    same = {pair: family[similarity.tags[pair[0]]] == family[similarity.tags[pair[1]]] for pair in pairs}
    inside = [similarity.values_LL[pair] for pair in pairs if same[pair]]
    across = [similarity.values_LL[pair] for pair in pairs if not same[pair]]
    return float(sum((a > b) + 0.5 * (a == b) for a in inside for b in across) / (len(inside) * len(across)))


def main() -> None:
    """Run every variant on a copy of its preset's run, print and write."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench-bible")

    def scored(preset: str, seed: int, *overrides: str) -> dict[str, Any]:
        """Return the metrics on the dev split of a preset's run with something changed."""
        first, folder = work / f"seed{seed}-{preset}", work / "ablation"
        if not (first / "metrics.json").exists():
            raise SystemExit(f"{first} is no finished run; run benchmarks/bible.py {work} first")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(first, folder)
        sets = [part for value in (f"preset={preset}", "evaluate.split=dev", *overrides) for part in ("--set", value)]
        command = ["run", str(ROOT / "examples/bible-18.yaml"), "--seed", str(seed), "--update", *sets]
        return dict(run(command, folder)["metrics"])

    references = {(p, seed): scored(p, seed) for p in ("default", "native") for seed in SEEDS}
    rows = []
    for name, (preset, override) in VARIANTS.items():
        changed = {seed: scored(preset, seed, override) for seed in SEEDS}
        changes = {
            routing: [round(change(changed[seed], references[preset, seed], routing), 4) for seed in SEEDS]
            for routing in ROUTINGS
        }
        rows.append({"variant": name, "changes": changes})
        print(f"{name}: " + ", ".join(f"{r} {' '.join(f'{v:+.1%}' for v in changes[r])}" for r in ROUTINGS), flush=True)
    centring = {
        name: [round(family_auc(work / f"seed{seed}-default", center=center), 3) for seed in SEEDS]
        for name, center in (("probe.center: true", True), ("probe.center: false", False))
    }
    print(f"family AUC of the deviations: {centring}")
    content = {**machine(), "seeds": list(SEEDS), "variants": rows, "family_auc": centring}
    (RESULTS / "ablations.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
