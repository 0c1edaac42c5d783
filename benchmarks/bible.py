"""examples/bible-18.yaml over two seeds, against the dense control on the same tokens, under the three presets.

python benchmarks/bible.py [WORK_FOLDER]; writes benchmarks/results/bible-18.json. About 25 minutes on 2 idle cores.
Needs the corpus in ../shared/corpora/bible-nt beside the clone.
"""

import sys
from pathlib import Path

from runs import bar, change, finish, run_presets

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run, compare with the bars, write."""
    if not (ROOT / "../shared/corpora/bible-nt").is_dir():
        raise SystemExit("skipped: ../shared/corpora/bible-nt is not beside this clone")
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench-bible")
    command = ["run", str(ROOT / "examples/bible-18.yaml")]
    results = run_presets(command, ["default", "native", "paper"], [0, 1], work)
    ours = [r for r in results if r["preset"] == "default"]
    after, everywhere = "average", "average_all_positions"
    bars = [
        bar("default, group: perplexity after burn-in vs dense", change(results, "default", "group", after), -0.15),
        bar("default, prefix: perplexity after burn-in vs dense", change(results, "default", "prefix", after), -0.15),
        bar("default, prefix: all positions vs dense", change(results, "default", "prefix", everywhere), -0.13),
        bar("default, group: worst language vs dense", change(results, "default", "group", "worst"), 0.0),
        bar("default, prefix: worst language vs dense", change(results, "default", "prefix", "worst"), 0.0),
        bar("native, top_k: perplexity after burn-in vs dense", change(results, "native", "top_k", after), -0.10),
        bar("wall seconds of a run", [r["wall_seconds"] for r in ours], 600),
    ]
    finish("bible-18", results, bars)


if __name__ == "__main__":
    main()
