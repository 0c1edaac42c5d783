"""What the groups of a model are: groups of languages, or, where something is keyed by language, single languages.

A model knows one number per position, its group (`group_ids`), and every keyed part has a table from that number to its
own: the experts of a layer (`expert_of_group`), the tables of keyed rows (`row_of_group`). In a hierarchy, or with rows
by language, every language is a group, and the languages that were grouped share what is keyed by group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sprachbund.errors import InputError


@dataclass(frozen=True)
class Paths:
    """The groups of a model, `count` of them: of each language, and each group's expert by layer and its rows."""

    count: int
    groups: dict[str, int]
    expert_of_group: dict[str, list[int]]
    row_of_group: list[int]


def paths_of(
    groups: Mapping[str, int] | None,
    num_groups: int,
    layers: Sequence[int],
    tables: Mapping[int, Sequence[int]],
    *,
    hierarchy: bool,
    by: Literal["group", "language"],
    rows: Literal["group", "language", "all"] | None,
) -> Paths:
    """Return a model's groups from the groups of its languages; `tables` has the expert of each group by layer.

    `by` says what an expert belongs to; in a `hierarchy` those of groups are beside those of languages. Languages are
    numbered by group, so that those that share something are neighbours. Raises InputError where languages are needed
    and groups have none.
    """
    if not hierarchy and by == "group" and rows != "language":
        group_of = list(range(num_groups))
        assignment = dict(groups or {})
    else:
        if not groups:
            raise InputError("something is keyed by language and the groups have none; give groups, {tag: group}")
        tags = sorted(groups, key=lambda tag: groups[tag])  # stable: in their own order within a group
        assignment = {tag: tags.index(tag) for tag in groups}
        group_of = [groups[tag] for tag in tags]
        tables = {layer: tables.get(layer, range(num_groups)) for layer in layers} if by == "group" else {}
    expert_of = {str(layer): [table[group] for group in group_of] for layer, table in sorted(tables.items())}
    slots = {None: [], "all": [0] * len(group_of), "group": group_of, "language": list(range(len(group_of)))}
    return Paths(len(group_of), assignment, expert_of, slots[rows])
