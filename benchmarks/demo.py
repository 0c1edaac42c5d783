"""The demo over three seeds, against the dense control on the same tokens, and the paper's preset beside the first.

python benchmarks/demo.py [WORK_FOLDER]; writes benchmarks/results/demo.json. About 17 minutes on 2 idle cores.
"""

import sys
from pathlib import Path

from runs import bar, change, finish, run_presets


def main() -> None:
    """Run, compare with the bars, write."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench-demo")
    results = run_presets(["demo"], ["default"], [2, 1], work) + run_presets(["demo"], ["default", "paper"], [0], work)
    results.sort(key=lambda result: (result["seed"], result["preset"]))
    ours = [r for r in results if r["preset"] == "default"]
    bars = [
        bar("group: perplexity after burn-in vs dense", change(results, "default", "group", "average"), -0.10),
        bar("prefix: perplexity after burn-in vs dense", change(results, "default", "prefix", "average"), -0.04),
        bar("group: worst language vs dense", change(results, "default", "group", "worst"), 0.02),
        bar("wall seconds of a run", [r["wall_seconds"] for r in ours], 480),
        bar("peak memory of a run, MB", [r["peak_memory_mb"] for r in ours], 3000),
    ]
    finish("demo", results, bars)


if __name__ == "__main__":
    main()
