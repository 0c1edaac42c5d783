"""docs/experiments.md, the log of what was tried, from benchmarks/results/experiments.json.

quality_tables.py writes it. An entry of the JSON has `date`, `question`, `setting`, `rows` (what was trained: learning
rate, warm-up, perplexities on dev, parameters) and `kept`, the decision in words. Where nothing was trained it has
`columns` of its own, name and digits of each, and rows of `what` and `values`, or null.
"""

from typing import Any

from grouping_tables import number, read, table

HEAD = """# Experiments

What was tried on the way to the present defaults, newest last, losers included: a change that gained nothing saves the
next person a day. An entry is written when the experiment is done and is not changed afterwards, except for a line that
says what later replaced it. The numbers were measured to choose by, often under one seed: differences of about 1%
between single runs are noise. The comparisons that the defaults rest on, over seeds and on the test split, are in
[comparison.md](comparison.md). This page is generated from `benchmarks/results/experiments.json`.
"""
COLUMNS = ["", "learning rate", "warm-up", "after burn-in", "all positions", "total", "active"]


def experiments() -> str:
    """Return the page."""
    lines = [HEAD]
    for entry in read("experiments")["entries"]:
        lines += [f"## {entry['date']}: {entry['question']}", "", f"Setting: {entry['setting']}.", ""]
        own = entry.get("columns")
        columns = ["", *(name for name, _ in own)] if own else COLUMNS
        rows = [_own_cells(row, own) if own else _cells(row) for row in entry["rows"]]
        lines += [*table(columns, rows), "", entry["kept"], ""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    scores = [number(row[key]) for key in ("after_burn_in", "all_positions")]
    sizes = [f"{row[key]:,}" for key in ("total", "active")]
    return [row["what"], f"{row['learning_rate']:g}", f"{row['warmup']:g}", *scores, *sizes]


def _own_cells(row: dict[str, Any], columns: list[list[Any]]) -> list[str]:
    pairs = zip(row["values"], columns, strict=True)
    values = ["-" if value is None else f"{value:,.{digits}f}" for value, (_, digits) in pairs]
    return [row["what"], *values]
