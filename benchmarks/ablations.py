"""One choice of the default changed at a time, on the runs that bible.py left: what defaults marked [measured] rest on.

python benchmarks/ablations.py [WORK_FOLDER]; run bible.py first, with the same folder. Writes
benchmarks/results/ablations.json. About 15 minutes on 2 idle cores.
"""

import csv
import json
import shutil
import sys
from itertools import combinations
from pathlib import Path

from bible import ROOT
from runs import RESULTS, machine, run

from sprachbund.similarity import deviation_similarity, load_probe

SEEDS = (0, 1)
VARIANTS = {
    "experts.kind: copy (default: shared)": ("default", "experts.kind=copy"),
    "layers: {epsilon: 0.6} (default: all)": ("default", "layers={epsilon: 0.6}"),
    "experts.router_gradient: through (default: detach)": ("default", "experts.router_gradient=through"),
    "native, experts.router_rate_factor: 1 (default: 4)": ("native", "experts.router_rate_factor=1"),
}
ROUTINGS = ("group", "prefix", "top_k")


def change(metrics: dict, reference: dict, routing: str) -> float:  # type: ignore[type-arg]
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
    rows = []
    for name, (preset, override) in VARIANTS.items():
        changes: dict[str, list[float]] = {routing: [] for routing in ROUTINGS}
        for seed in SEEDS:
            first = work / f"seed{seed}-{preset}"
            if not (first / "metrics.json").exists():
                raise SystemExit(f"{first} is no finished run; run benchmarks/bible.py {work} first")
            reference = json.loads((first / "metrics.json").read_text())
            folder = work / "ablation"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(first, folder)
            command = ["run", str(ROOT / "examples/bible-18.yaml"), "--seed", str(seed), "--update"]
            metrics = run([*command, "--set", f"preset={preset}", "--set", override], folder)["metrics"]
            for routing in ROUTINGS:
                changes[routing].append(round(change(metrics, reference, routing), 4))
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
