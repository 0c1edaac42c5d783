"""Which groups a model is to have: split, merged or pruned ones, fewer languages, a language that moves.

Decided and checked by the configuration alone; regroup.py then makes the model. A group is here what people call one:
the languages that share what is kept by group. In most models that is what `config.groups` numbers. Where other things
are kept by language (a hierarchy, experts by language with rows by group, rows by language), `config.groups` numbers
languages, and the groups are those that share the rest, numbered in the order of their first languages, as in the
grouping that they were made from: what is kept by group then changes, and what is kept by language goes with its
language. Where everything is kept by language, each language is a group.

A *place* is a number of `config.groups` and of `group_ids`. Shapes: G groups, P places.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sprachbund.errors import InputError
from sprachbund.modeling.generation import known_tag
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.tables import layer_table


@dataclass(frozen=True)
class Part:
    """A group of the new model: its languages, and the old groups that it is made of, {group: weight}, which sum to 1.

    With a `copy` it has copies of what it is made of, told apart from others by this name; else it keeps or shares it.
    """

    languages: tuple[str, ...]
    sources: Mapping[int, float]
    copy: str = ""

    def is_group(self, group: int) -> bool:
        """Does it compute what an old group did? A source of no weight gives nothing."""
        return [source for source, weight in self.sources.items() if weight] == [group]


@dataclass(frozen=True)
class Plan:
    """What becomes of a model: its groups, {old path: languages that it keeps}, and the same in a sentence and a word.

    `word` names the folder that is written by default.
    """

    verb: str
    parts: Sequence[Part]
    paths: Mapping[int, tuple[str, ...]]
    sentence: str
    word: str


@dataclass(frozen=True)
class Groups:
    """The groups of a mixture: the languages of each, (G,), and the group of each place, (P,).

    `by_group` has what of a model is kept by group where other things are kept by language: of `experts` and `rows`;
    nothing where places are groups.
    """

    config: Any
    members: list[list[str]]
    of_place: list[int]
    by_group: frozenset[str]
    paths: list[tuple[str, ...]] = field(default_factory=list)

    def of(self, tag: str) -> int:
        """Return the group of a language, which is of no path."""
        return self.of_place[int(self.config.groups[tag])]

    def place(self, group: int) -> int:
        """Return the first place of a group: all of them share what is kept by group."""
        return self.of_place.index(group)

    def number(self, name: str) -> int:
        """Return the group of a number or of a language in it; the paths are numbered after the groups.

        Raises InputError for what is neither, and for a number that no group has.
        """
        if not name.strip().lstrip("+-").isdecimal():
            tag = known_tag(self.config, name.strip())
            if tag in self.config.groups:
                return self.of(tag)
            return len(self.members) + next(i for i, tags in enumerate(self.paths) if tag in tags)
        number, count = int(name), len(self.members) + len(self.paths)
        if not 0 <= number < count:
            few = ", ".join(f"{n}: {_few(tags) or 'no language'}" for n, tags in enumerate(self.members[:6]))
            rest = f"; its groups are {few}{', ...' if len(self.members) > 6 else ''}"
            raise InputError(f"group {number} is none of this model's: give 0 to {count - 1}, or a language{rest}")
        return number

    def own_group(self, name: str, *, purpose: str) -> int:
        """Return the group as `number` does; raises InputError for a path, for which the purpose is none."""
        number = self.number(name)
        if number >= len(self.members):
            path = self.paths[number - len(self.members)]
            raise InputError(
                f"{_few(path)} has a path of its own and no group, which cannot be {purpose}; give a group"
            )
        return number


def groups_of(config: Any) -> Groups:
    """Return the groups of a mixture's configuration."""
    places = range(config.num_groups)
    tables = [layer_table(config, layer) for layer in sorted(config.moe_layers)]
    labels: dict[str, list[Any]] = {"experts": [tuple(table[place] for table in tables) for place in places]}
    if config.language_width is not None:
        labels["language experts"] = list(places)
    if not rows_for_all(config) and config.row_of_group:
        labels["rows"] = list(config.row_of_group)
    coarse = {name for name, label in labels.items() if len(set(label)) < config.num_groups}
    one_language_each = sorted(config.groups.values()) == list(places)
    by_group = frozenset(coarse if one_language_each and len(coarse) < len(labels) else ())
    shared = [tuple(labels[name][place] for name in sorted(by_group)) if by_group else place for place in places]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(shared))}
    of_place = [numbers[label] for label in shared]
    members: list[list[str]] = [[] for _ in numbers]
    for tag in config.languages:
        members[of_place[config.groups[tag]]].append(tag)
    return Groups(config, members, of_place, by_group, [spec.languages for spec in path_specs(config)])


def rows_for_all(config: Any) -> bool:
    """Have all groups of a mixture one table of keyed rows between them?"""
    return bool(config.row_of_group) and config.num_groups > 1 and len(set(config.row_of_group)) == 1


def plan_split(config: Any, *, group: str, into: Sequence[Sequence[str]]) -> Plan:
    """Return the plan by which a group becomes several: the first set of its languages keeps its number and its parts,
    each other one gets copies of them and a new number, after those of the other groups.

    Raises InputError where the sets are not the group's languages, each once.
    """
    groups = groups_of(config)
    number = groups.own_group(group, purpose="split")
    members = groups.members[number]
    if len(members) < 2:
        raise InputError(f"group {number} has {_few(members) or 'no language'} alone: a split takes two languages")
    sides = [tuple(known_tag(config, name) for name in side) for side in into]
    named = [tag for side in sides for tag in side]
    whole = f"group {number} has {', '.join(members)}"
    if len(sides) < 2 or not all(sides):
        raise InputError(f"a side of the split is empty: {whole}; give each side of a | at least one of them")
    for problem, tags in (
        ("are not of the group", set(named) - set(members)),
        ("are named twice", {tag for tag in named if named.count(tag) > 1}),
        ("are on no side", set(members) - set(named)),
    ):
        if tags:
            raise InputError(f"{', '.join(sorted(tags))} {problem}: {whole}; name each of them once")
    parts = _unchanged(groups)
    parts[number] = Part(sides[0], {number: 1.0})
    parts += [Part(side, {number: 1.0}, copy=",".join(sorted(side))) for side in sides[1:]]
    new = range(len(groups.members), len(parts))
    said = "; ".join(f"{', '.join(side)} are group {n}" for side, n in zip(sides[1:], new, strict=True))
    sentence = f"group {number} is split: {', '.join(sides[0])} keep it; {said}, with copies of its parts"
    return _checked(groups, "split", parts, sentence, f"split{number}")


def plan_merge(config: Any, *, groups: Sequence[str], weights: Sequence[float] | None = None) -> Plan:
    """Return the plan by which groups become one, of the lowest number, with the weighted average of their parts.

    `weights` are by default the numbers of their languages, or equal where groups have none. Raises InputError for
    fewer than two groups, one named twice, and weights that are not one for each or no shares.
    """
    found = groups_of(config)
    numbers = [found.own_group(name, purpose="merged") for name in groups]
    if len(set(numbers)) < 2 or len(set(numbers)) < len(numbers):
        raise InputError(f"a merge takes two or more different groups; found {', '.join(map(str, numbers)) or 'none'}")
    sizes = [float(len(found.members[number])) for number in numbers]
    shares = list(weights) if weights is not None else sizes if any(sizes) else [1.0] * len(numbers)
    if len(shares) != len(numbers):
        raise InputError(f"{len(shares)} weights were given for {len(numbers)} groups; give one for each")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or not sum(shares):
        said = ", ".join(f"{share:g}" for share in shares)
        raise InputError(f"the weights {said} are no shares; give numbers from 0, not all of them 0")
    sources = {number: share / sum(shares) for number, share in zip(numbers, shares, strict=True)}
    kept = min(numbers)
    languages = tuple(tag for tag in config.languages if found.of(tag) in sources)
    parts = [
        Part(languages, sources) if number == kept else part
        for number, part in enumerate(_unchanged(found))
        if number == kept or number not in sources
    ]
    said = ", ".join(f"{number} (weight {share:.2f})" for number, share in sources.items())
    word = f"merge{'-'.join(map(str, numbers))}"
    return _checked(found, "merge", parts, f"the groups {said} are merged into group {kept}", word)


def plan_prune(config: Any, *, group: str) -> Plan:
    """Return the plan by which a group goes with its languages, or a path with its own.

    Raises InputError for the only group and for one that a path stands on.
    """
    groups = groups_of(config)
    number = groups.number(group)
    parts = _unchanged(groups)
    if number >= len(parts):
        path = number - len(parts)
        kept = {other: tags for other, tags in enumerate(groups.paths) if other != path}
        return _checked(groups, "prune", parts, f"the path of {_few(groups.paths[path])} goes", f"prune{number}", kept)
    if len(parts) == 1:
        raise InputError("the model has one group, which cannot go: a model needs one")
    members = _few(groups.members[number]) or "no language"
    sentence = f"group {number} goes, with {members}"
    return _checked(groups, "prune", [*parts[:number], *parts[number + 1 :]], sentence, f"prune{number}")


def plan_keep(config: Any, *, languages: Sequence[str]) -> Plan:
    """Return the plan by which a model keeps these languages alone, and the groups and paths that have any of them.

    Raises InputError for none, one named twice, all, and a path kept without the group that it stands on.
    """
    groups = groups_of(config)
    wanted = [known_tag(config, name) for name in languages]
    known = [*config.languages, *(tag for tags in groups.paths for tag in tags)]
    if not wanted or len(set(wanted)) < len(wanted):
        twice = next((tag for tag in wanted if wanted.count(tag) > 1), None)
        raise InputError(f"{twice} is named twice; name each once" if twice else "give the languages to keep")
    gone = [tag for tag in known if tag not in wanted]
    if not gone:
        raise InputError(f"these are all of the model's {len(known)} languages: there is nothing to leave out")
    parts = _left(groups, wanted)
    paths = {path: kept for path, tags in enumerate(groups.paths) if (kept := tuple(t for t in tags if t in wanted))}
    sentence = f"{len(wanted)} of {len(known)} languages stay; {_few(gone)} {'go' if len(gone) > 1 else 'goes'}"
    return _checked(groups, "keep", parts, sentence, f"keep{len(wanted)}", paths)


def plan_reassign(config: Any, *, language: str, to: str) -> Plan:
    """Return the plan by which a language moves to another group, whose parts it then uses; an empty group goes.

    Raises InputError for a language with a path, and for the group that it is in.
    """
    groups = groups_of(config)
    tag, target = known_tag(config, language), groups.own_group(to, purpose="moved to")
    if tag not in config.groups:
        raise InputError(f"{tag} has a path of its own, which moves to no group; prune it, or train another")
    source = groups.of(tag)
    if source == target:
        raise InputError(f"{tag} is in group {target} already; give another group")
    parts = _unchanged(groups)
    parts[target] = Part(tuple(t for t in config.languages if groups.of(t) == target or t == tag), {target: 1.0})
    parts[source] = Part(tuple(t for t in groups.members[source] if t != tag), {source: 1.0})
    sentence = f"{tag} moves from group {source} to group {target}"
    if not parts[source].languages:
        del parts[source]
        sentence += f"; group {source} goes, having no other language"
    return _checked(groups, "reassign", parts, sentence, f"{tag}-to-{target}")


def _unchanged(groups: Groups) -> list[Part]:
    return [Part(tuple(members), {number: 1.0}) for number, members in enumerate(groups.members)]


def _left(groups: Groups, wanted: Collection[str]) -> list[Part]:
    """Return the groups that keep a language."""
    kept = [Part(tuple(tag for tag in part.languages if tag in wanted), part.sources) for part in _unchanged(groups)]
    return [part for part in kept if part.languages]


def _checked(
    groups: Groups,
    verb: str,
    parts: Sequence[Part],
    sentence: str,
    word: str,
    paths: Mapping[int, tuple[str, ...]] | None = None,
) -> Plan:
    """Return the plan; raises InputError where a path would be left without what it stands on."""
    paths = dict(enumerate(groups.paths)) if paths is None else paths
    specs = path_specs(groups.config)
    for path in paths:
        parent = specs[path].parent
        owner = [tag for tag in groups.config.languages if groups.config.groups[tag] == parent]
        if not _stays(groups, parts, parent):
            what = (
                _few(owner) if groups.by_group else f"group {groups.of_place[parent]} ({_few(owner) or 'no language'})"
            )
            raise InputError(
                f"the path of {_few(specs[path].languages)} stands on {what}, which would go; keep that, or prune the "
                "path first"
            )
    return Plan(verb, parts, paths, sentence, word)


def _stays(groups: Groups, parts: Sequence[Part], place: int) -> bool:
    """Is a place of the old model in the new one? By its language where places are languages."""
    if not groups.by_group:
        return any(groups.of_place[place] in part.sources for part in parts)
    return any(groups.config.groups[tag] == place for part in parts for tag in part.languages)


def _few(tags: Sequence[str], most: int = 8) -> str:
    """Return tags in a sentence, the first of many."""
    return ", ".join(tags[:most]) + (f" and {len(tags) - most} more" if len(tags) > most else "")
