"""docs/speed.md, generated from benchmarks/results/pipeline.json: no number is typed by hand.

python benchmarks/pipeline_tables.py writes it; a test compares it with the JSON.
"""

from pathlib import Path
from typing import Any

from grouping_tables import read, table
from quality_tables import bars, measured

HEAD = """# Speed

Where the time of a run goes, and how fast mixtures train and are scored beside the dense model. `python
benchmarks/pipeline.py` measures, and this page is generated from what it wrote (`benchmarks/pipeline_tables.py`).
"""
SPEED = """The sizes of `examples/bible-18.yaml` (width 64, 4 layers, a vocabulary of 2048, 18 languages in 6 groups),
one thread, random text, every case in turns with dense; medians of the ratios, in seconds of the processor. *By
operations* is what the floating-point operations alone would give: experts beside the FFN are more to compute. `copy`
is the preset `paper` in all layers."""
ORDER = [
    "corpora",
    "tokenizer",
    "base",
    "probe",
    "similarity",
    "groups",
    "layers",
    "dense",
    "train",
    "evaluate",
    "report",
]
STAGES = """As a user runs them, from nothing. The seconds are by the clock."""


def speed_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of each case."""
    cells = []
    for row in rows:
        shares = (f"{row[of]:.2f}" for of in ("of_dense", "of_dense_by_flops"))
        cells.append([row["case"], f"{row['tokens_per_second']:,.0f}", *shares])
    return cells


def missed(content: dict[str, Any]) -> list[str]:
    """Return why bars were missed: by the operations themselves, or by what the machine does with them."""
    by_flops = {
        f"{what}, {row['case']}": row["of_dense_by_flops"]
        for what in ("training", "evaluation")
        for row in content[what]
    }
    reasons: dict[str, list[str]] = {
        "Missed, and by operations alone it would be (as wide an expert beside the FFN, or two for each token)": [],
        "Missed above the operations (positions sorted by expert, and multiplied in small products)": [],
    }
    computed, overhead = reasons.values()
    for one in content["bars"]:
        case = one["bar"].split(":")[0]
        if not one["holds"]:
            (computed if by_flops[case] < 1 / one["at_most"] else overhead).append(f"{case} ({by_flops[case]:.2f})")
    return [line for reason, cases in reasons.items() if cases for line in (f"{reason}: {'; '.join(cases)}.", "")]


def speed(content: dict[str, Any]) -> list[str]:
    """Return the section on training and scoring."""
    return [
        "## Mixtures beside the dense model",
        "",
        SPEED,
        "",
        measured(content),
        "",
        *table(["training", "tokens/s", "of dense", "by operations"], speed_rows(content["training"])),
        "",
        *table(["scoring", "tokens/s", "of dense", "by operations"], speed_rows(content["evaluation"])),
        "",
        *bars(content, of="time over that of dense"),
        *missed(content),
    ]


def stages(content: dict[str, Any]) -> list[str]:
    """Return the section on the stages of whole runs."""
    lines = ["## Stages", "", STAGES, "", measured(content), ""]
    runs = {name: found for name, found in content.items() if isinstance(found, dict) and "stages" in found}
    every = sorted({stage for found in runs.values() for stage in found["stages"]}, key=ORDER.index)
    rows = [[stage, *(f"{found['stages'].get(stage, 0):.1f}" for found in runs.values())] for stage in every]
    rows.append(["all", *(f"{found['seconds']:.0f}" for found in runs.values())])
    rows.append(["peak memory, MB", *(f"{found['peak_memory_mb']:,.0f}" for found in runs.values())])
    return [*lines, *table(["seconds", *(f"`{name}`" for name in runs)], rows), ""]


def helped(content: dict[str, Any]) -> list[str]:
    """Return the section on the command line."""
    return ["## The command line", "", measured(content), "", *bars(content, of="seconds"), ""]


def page() -> str:
    """Return docs/speed.md; what has not been measured has no section."""
    content = read("pipeline")
    lines = [HEAD]
    for name, section in (("speed", speed), ("stages", stages), ("help", helped)):
        if name in content:
            lines += section(content[name])
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs/speed.md").write_text(page())
