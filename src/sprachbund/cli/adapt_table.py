"""The short tables at the end of an adaptation: what the new languages gained, and what the old ones lost."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table

from sprachbund.cli.summary import print_table
from sprachbund.evaluation.forgetting import fine_percent, forgetting_table, mean_change


def print_adaptation(facts: Mapping[str, Any]) -> None:
    """Print what adapt.json says: the new languages, the old ones under each mode, and warnings about the text."""
    print_table(_new(facts))
    old = forgetting_table(facts["scores"])
    if old:
        print_table(_old(facts, old))
    else:
        typer.echo("what the old languages lost was not measured: their corpora were not at hand")
    for language in facts["languages"].values():
        for text in language["warnings"]:
            typer.echo(f"warning: {text}")


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for column in (*left, *right):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _new(facts: Mapping[str, Any]) -> Table:
    table = _table(
        f"new languages, path {facts['path']}",
        ("language", "nearest group", "mode"),
        ("parameters", "of dense", "bits/byte before", "after", "perplexity before", "after", "to other paths"),
    )
    by_mode = forgetting_table(facts["scores"], new=True)
    for tag, language in facts["languages"].items():
        parent = language["parent"]
        named = [tag, f"{parent['group']}: {' '.join(parent['languages'][:3])}"]
        sized = [f"{language['parameters']:,}", f"{language['share_of_dense']:.1%}"]
        for row in (row for rows in by_mode.values() for row in rows if row.language == tag):
            table.add_row(
                *named,
                row.mode,
                *sized,
                _number(row.bits_per_byte_before, 3),
                _number(row.bits_per_byte, 3),
                # under a vocabulary of its own a token is something else than before
                "" if language.get("extension") else _number(row.perplexity_before, 2),
                _number(row.perplexity, 2),
                "" if row.taken is None else f"{row.taken:.1%}",
            )
            named, sized = ["", ""], ["", ""]  # said once, in the first row
    return table


def _old(facts: Mapping[str, Any], old: Mapping[str, list[Any]]) -> Table:
    table = _table(
        f"old languages: change of perplexity, limit {fine_percent(facts['forgetting']['limit']).lstrip('+')}",
        ("mode", "worst language"),
        ("mean", "worst", "largest share taken"),
    )
    for mode, rows in old.items():
        worst = rows[0]
        taken = [row.taken for row in rows if row.taken is not None]
        table.add_row(
            mode,
            worst.language if worst.change else "",
            fine_percent(mean_change(rows)),
            fine_percent(worst.change),
            f"{max(taken):.2%}" if taken else "",
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
