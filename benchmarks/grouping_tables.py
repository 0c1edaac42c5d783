"""The tables of docs/grouping.md, made from the JSON under benchmarks/results; benchmarks/tables.py writes them."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def table(columns: list[str], rows: list[list[str]], *, left: int = 1) -> list[str]:
    """Return a table in Markdown; the first `left` columns hold text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def measured(content: dict[str, Any], script: str) -> str:
    return f"`python benchmarks/{script}.py`, {content['date']}, {content['hardware']}."


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def sources() -> list[str]:
    """Return how well every similarity agrees with the families."""
    content = read("similarity_sources")
    rows = []
    for row in content["rows"]:
        name = f"`{row['source']}`" + (f" ({row['data']})" if row["data"] else "")
        cells = [number(row[key]) for key in ("family_auc", "family_rand", "rand_to_replicates")]
        rows.append([name, "yes" if row["center"] else "no", *cells, number(row["seconds"], 1)])
    columns = ["source", "centred", "AUC", "Rand", "Rand to resampled", "seconds"]
    return [*table(columns, rows, left=2), "", measured(content, "similarity_sources")]


def probe() -> list[str]:
    """Return what the probe costs beside the authors' procedure."""
    content = read("probe")
    rows = []
    for name, side in content["sides"].items():
        cells = [number(side["seconds"], 1), number(side["cpu_seconds"], 1)]
        cells += [f"{side['peak_memory_mb']:.0f}", number(side["bytes_on_disk"] / 1e6)]
        ratios = [f"{side[key]:.1f}x" if name != "ours" else "" for key in ("times_seconds", "times_cpu_seconds")]
        rows.append([name, *cells, *ratios])
    alike = content["similarity"]
    return [
        *table(["", "seconds", "CPU seconds", "peak memory, MB", "disk, MB", "times ours", "of CPU"], rows),
        "",
        f"Spearman correlation of our similarities with theirs: {alike['spearman_sketched']:.4f} with sketches; "
        f"without, the largest difference is {alike['largest_difference_exact']:.1e}. {measured(content, 'probe')}",
    ]


def auto() -> list[str]:
    """Return how often each rule finds the planted number of groups, and what it chooses on real languages."""
    content = read("groups_auto")
    rules = list(content["hit_rates"][0]["hit_rate"])
    rows = [
        [row["part"], str(row["cases"]), *(number(row["hit_rate"][rule]) for rule in rules)]
        for row in content["hit_rates"]
    ]
    lines = table(["solvable cases", "number", *rules], rows)
    chosen = [[one["name"], str(one["count"]), number(one.get("rand"))] for one in content["real"]]
    lines += ["", "Real languages:", "", *table(["", "groups chosen", "Rand to families"], chosen)]
    return [*lines, "", measured(content, "groups_auto")]


def solver() -> list[str]:
    """Return the solver's values beside the best of the rivals'."""
    content = read("grouping")
    rows = []
    for row in content["rows"]:
        if row["seed"]:
            continue
        cells = []
        for key in ("mean", "min"):
            ours, theirs = row[key], row["rivals"]
            best = max(theirs, key=lambda name: theirs[name][key])
            bound = "optimal" if ours["proven"] else number(ours["bound"], 4)
            greedy = max(theirs[name][key] for name in theirs if name.startswith("greedy"))
            cells += [number(ours["value"], 4), bound, number(greedy, 4), f"{number(theirs[best][key], 4)} ({best})"]
            cells.append(number(ours["seconds"], 1))
        rows.append([row["matrix"], str(row["languages"]), str(row["groups"]), *cells])
    columns = ["matrix", "n", "K"]
    for key in ("mean", "min"):
        columns += [f"our {key}", "at most", "greedy", "best rival", "seconds"]
    (lead,) = [bar["value"] for bar in content["bars"] if "rival" in bar["bar"]]
    said = f"Seed 0; both seeds are in the JSON. Largest lead of a rival over ours on any of them: {lead:g}. "
    return [*table(columns, rows), "", said + measured(content, "grouping")]


BLOCKS = {"sources": sources, "probe": probe, "solver": solver, "auto": auto}


def page(text: str) -> str:
    """Return docs/grouping.md with the tables between its marks made anew."""
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}: written by benchmarks/tables.py -->\n", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}" + "\n".join(make()) + f"\n{end}{rest.split(end)[1]}"
    return text
