"""The comparisons: every method from one base on the same tokens, with the bars that they must reach.

python benchmarks/quality.py [bible-18] [unequal] [curse] [survey] [--out FOLDER] [--workers N]: `sprachbund compare`
on the examples (none: the first two), resumable: what is done is not done again. `survey` is what else was tried with
the 18 languages, under one seed. Writes benchmarks/results/quality-NAME.json, from which
benchmarks/quality_tables.py makes docs/comparison.md. Needs the corpus in ../shared/corpora/bible-nt beside the
clone.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quality_bars import bible_bars, unequal_bars
from runs import RESULTS, machine

from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = {"bible-18": "bible-18", "unequal": "bible-18-unequal", "curse": "curse", "survey": "bible-18-survey"}
MAIN = ("bible-18", "unequal")


def tiers(recipe: Recipe) -> dict[str, list[str]]:
    """Return the languages by how much of their text they keep, most first."""
    shares = sorted({source.keep or 1.0 for source in recipe.languages.values()}, reverse=True)
    return {
        "all" if share == 1 else f"1/{1 / share:.0f}": [
            tag for tag, source in recipe.languages.items() if (source.keep or 1.0) == share
        ]
        for share in shares
    }


def compare(recipe: Path, folder: Path, arguments: list[str]) -> float:
    """Run the comparison as a user does; return its seconds, which are few where it was done before."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "sprachbund", "compare", str(recipe), "--out", str(folder), *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(f"sprachbund compare {recipe.name} failed; the same command continues")
    return time.monotonic() - begun


def evaluated(name: str, recipe: Recipe, result: dict[str, Any]) -> dict[str, Any]:
    """Return what is committed of a comparison: where it was measured, its bars, and all that it found."""
    content = {**machine(), "command": f"python benchmarks/quality.py {name}", "bars": [], "result": result}
    if name == "unequal":
        content["tiers"] = tiers(recipe)
        content["bars"] = unequal_bars(result, content["tiers"])
    elif name == "bible-18":
        content["bars"] = bible_bars(result)
    return content


def write(name: str, content: dict[str, Any]) -> None:
    """Write benchmarks/results/quality-NAME.json, and say which bars hold."""
    for one in content["bars"]:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['values']} (at most {one['at_most']})")
    path = RESULTS / f"quality-{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {path}")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(EXAMPLES)}; none: {' and '.join(MAIN)}")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/quality", help="folder of the comparisons")
    parser.add_argument("--workers", type=int, help="trainings at a time; none: as the command decides")
    given = parser.parse_args()
    if odd := [name for name in given.names if name not in EXAMPLES]:
        parser.error(f"no comparison {odd[0]}; there are {', '.join(EXAMPLES)}")
    if not (ROOT / "../shared/corpora/bible-nt").is_dir():
        raise SystemExit("skipped: ../shared/corpora/bible-nt is not beside this clone")
    arguments = [] if given.workers is None else ["--workers", str(given.workers)]
    for name in given.names or MAIN:
        path, folder = ROOT / f"examples/{EXAMPLES[name]}.yaml", given.out / name
        seconds = compare(path, folder, arguments)
        result = json.loads((folder / f"{'curse' if name == 'curse' else 'compare'}.json").read_text())
        print(f"{name}: {seconds:.0f} s")
        write(name, evaluated(name, load_recipe(path), result))


if __name__ == "__main__":
    main()
