"""The short table at the end of a run."""

from typing import Any

from rich.console import Console
from rich.table import Table

MEANING = {
    "base": "before training",
    "dense": "same tokens, no experts",
    "group": "language given",
    "prefix": "told nothing",
    "top_k": "learned router",
}


def print_summary(metrics: dict[str, Any]) -> None:
    """Print averages over languages of every system, and the worst language against the dense control."""
    average, changes = metrics["average"], metrics.get("change_vs_dense", {})
    table = Table(
        title=f"{metrics['name']}: average over {len(metrics['languages'])} languages, {metrics['split']} split"
    )
    for column in ("system", "", "perplexity", "vs dense", "after burn-in", "vs dense", "bits/byte", "worst language"):
        left = column in ("system", "", "worst language")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for system, perplexity in average["perplexity"].items():
        change = changes.get(system)
        worst = f"{change['worst'][0]} {change['worst'][1]:+.1%}" if change else ""
        table.add_row(
            system,
            MEANING[system],
            f"{perplexity:.2f}",
            f"{change['average_all_positions']:+.1%}" if change else "",
            f"{average['perplexity_after_burn_in'][system]:.2f}",
            f"{change['average']:+.1%}" if change else "",
            f"{average['bits_per_byte'][system]:.3f}",
            worst,
        )
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table at its full width: one cut to fit a narrow pipe loses its numbers."""
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
