"""The verb expand: the mixture at step 0, of a run, or of any dense model on disk or on the Hub."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from sprachbund.cli.options import SeedOption, SetOption, UpdateOption, pipeline
from sprachbund.errors import InputError, nearest

if TYPE_CHECKING:
    from sprachbund.modeling.expand_files import Expanded

Kind = Literal["shared", "copy", "adapter", "hierarchy"]
Rows = Literal["group", "language", "all"]
Router = Literal["zero", "normal"]


BaseArgument = Annotated[
    str,
    typer.Argument(
        help="A recipe (.yaml) or a run; or, with --layers and --groups, a dense model: a folder or a Hub id.",
        show_default=False,
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option("--layers", help="Model: its mixture layers, such as 0-3,20-23, or all.", show_default=False),
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        "--groups",
        help="Model: the number of groups, or a JSON file {language: group}, such as a run's groups.json.",
        show_default=False,
    ),
]
ExpandOutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Model: the new folder (required). Run: its folder; default runs/NAME.", show_default=False
    ),
]
KindOption = Annotated[
    str | None,
    typer.Option(
        "--kind",
        help="Model: shared, experts that add to the FFN (default); copy, copies that replace it; adapter, bottlenecks "
        "on its output; hierarchy, shared and a small expert for each language.",
        show_default=False,
    ),
]
WidthOption = Annotated[
    int | None,
    typer.Option(
        "--width", help="Model: units of an expert; default the FFN's, adapters: half the model's.", show_default=False
    ),
]
LanguageWidthOption = Annotated[
    int | None,
    typer.Option("--language-width", help="Model: hierarchy: units of a language's expert.", show_default=False),
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", help="Model: shared or hierarchy: experts in factors of this rank.", show_default=False),
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        "--rows",
        help="Model: deltas on the embedding and output rows, by group, by language, or all sharing them.",
        show_default=False,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option("--top-k", help="Model: experts a token under top_k routing (default 2).", show_default=False),
]
RouterOption = Annotated[
    str | None,
    typer.Option("--router", help="Model: the routers start at zero (default) or normal.", show_default=False),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Hub id: branch, tag or commit (default main).", show_default=False)
]


def expand(
    target: BaseArgument,
    layers: LayersOption = None,
    groups: GroupsOption = None,
    out: ExpandOutOption = None,
    kind: KindOption = None,
    width: WidthOption = None,
    language_width: LanguageWidthOption = None,
    rank: RankOption = None,
    rows: RowsOption = None,
    top_k: TopKOption = None,
    router: RouterOption = None,
    revision: RevisionOption = None,
    sets: SetOption = None,
    seed: SeedOption = None,
    update: UpdateOption = False,
) -> None:
    """Write the mixture at step 0, which computes what the base does: a run's, or that of any dense model.

    A recipe's or run's mixture is written to RUN/expanded. With --layers and --groups the target is a dense model, a
    folder of safetensors or a Hub id, which is expanded to --out tensor by tensor, never the whole of it in memory.

    Example: `sprachbund expand bigscience/bloom-560m --layers 0-4,20-23 --groups 6 --out bloom-moe`
    """
    options = {
        "kind": _one_of("--kind", kind, get_args(Kind)),
        "width": width,
        "language_width": language_width,
        "rank": rank,
        "rows": _one_of("--rows", rows, get_args(Rows)),
        "num_experts_per_tok": top_k,
        "router_init": _one_of("--router", router, get_args(Router)),
        "revision": revision,
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if layers is None and groups is None and not given:
        _check_run(target)
        with pipeline(Path(target), out, sets, seed, update) as stages:
            typer.echo(f"expanded: {stages.expanded()}")
        return
    _check_model(target, revision)
    if sets or update:
        raise InputError(f"{'--set' if sets else '--update'} is for a recipe or a run, not for a model; leave it out")
    if layers is None:
        raise InputError(_missing("--layers", "--layers 0-3,20-23", target))
    if groups is None:
        raise InputError(_missing("--groups", "--groups 6", target))
    if out is None:
        raise InputError(_missing("--out", "--out expanded", target))
    given |= {"moe_layers": parse_layers(layers), **read_group_choice(groups), "seed": seed or 0}
    from sprachbund.export.card import write_card
    from sprachbund.modeling.expand_files import expand_files

    expanded = expand_files(target, out, **given, finish=partial(write_card, base=target, place=out))
    typer.echo(_summary(expanded, out))


def _missing(option: str, example: str, target: str) -> str:
    return f"{option} is missing, without which the model {target} cannot be expanded; give it, for example {example}"


def _check_run(target: str) -> None:
    """Raise InputError, with what is missing, for a model that was given without its layers and groups."""
    path = Path(target)
    model = path.is_dir() and (path / "config.json").is_file() and not (path / "recipe.yaml").exists()
    if model or (not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", target) and path.suffix != ".yaml"):
        what = "is a model" if model else "is neither a recipe nor a run"
        raise InputError(f"{target} {what}; to expand a model give --layers, --groups and --out as well")


def _check_model(target: str, revision: str | None) -> None:
    """Raise InputError for a recipe or a run, whose layers and groups are its own."""
    path = Path(target)
    if (path / "recipe.yaml").is_file() or (path.is_file() and path.suffix in (".yaml", ".yml")):
        raise InputError(
            f"{target} is a {'run' if path.is_dir() else 'recipe'}, which has its own layers and groups; leave out "
            "--layers, --groups and their like, or give a dense model"
        )
    if revision is not None and path.is_dir():
        raise InputError(f"--revision {revision} is for a Hub id, and {target} is a folder; leave it out")


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> str | None:
    if value is not None and value not in allowed:
        listed = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise InputError(f"{option} {value} is unknown; give {listed}{nearest(value, allowed)}")
    return value


def parse_layers(text: str) -> list[int] | Literal["all"]:
    """Return layer numbers from "0-3,20-23", in the order given; "all" stays what it is.

    Raises InputError for what is no number or range, a range that falls, and a layer that is given twice.
    """
    if text.strip() == "all":
        return "all"
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part, re.ASCII)
        if match is None:
            raise InputError(
                f"--layers {text}: {part.strip()!r} is no layer; give numbers from 0 and ranges of them, such as "
                "0-3,20-23, or all"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"--layers {text}: the range {part.strip()} falls; give {last}-{first}")
        for layer in range(first, last + 1):
            if layer in chosen:
                raise InputError(f"--layers {text}: layer {layer} is chosen twice; give every layer once")
            chosen.append(layer)
    return chosen


def read_group_choice(text: str) -> dict[str, Any]:
    """Return the arguments of `expand` for --groups: {"num_groups": 6}, or {"groups": {tag: group}} of a file.

    Languages get their canonical tags. Raises InputError for a number that is not positive, and for a file that cannot
    be read, with a language that is unknown or there twice.
    """
    if re.fullmatch(r"[+-]?\d+", text.strip(), re.ASCII):
        if int(text) < 1:
            raise InputError(f"--groups {text}: at least one group is needed, for example --groups 6")
        return {"num_groups": int(text)}
    path = Path(text)
    if not path.is_file():
        raise InputError(f"--groups {text} is neither a number nor a file; give for example 6, or a run's groups.json")
    from sprachbund.grouping.greedy import read_groups

    return {"groups": _canonical(read_groups(path).as_dict(), path)}


def _canonical(group_of: Mapping[str, int], path: Path) -> dict[str, int]:
    from sprachbund.languages import canonical

    found: dict[str, int] = {}
    for tag, group in group_of.items():
        try:
            known = canonical(tag)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if known in found:
            raise InputError(f"{path}: {tag!r} is {known}, which is there already; name every language once")
        found[known] = group
    return found


def _summary(done: "Expanded", out: Path) -> str:
    config, counts = done.config, done.parameters
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    size = f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.2f} MB"
    return (
        f"expanded: {out} (layers {format_layers(config.moe_layers)} of {config.num_hidden_layers}, "
        f"{_kind(config)}; {counts.total:,} parameters, {counts.active:,} active a "
        f"token; {size})"
    )


def _kind(config: Any) -> str:
    """Return how many groups a mixture has and of what kind its experts are; groups may be single languages."""
    from sprachbund.modeling.description import rows_by

    rows, hierarchy = rows_by(config), config.language_width is not None
    what = "language" if hierarchy or rows == "language" else "group"
    plural = "" if config.num_groups == 1 else "s"
    kind = "hierarchy" if hierarchy else config.expert_kind
    rank = "" if config.expert_rank is None else f" of rank {config.expert_rank}"
    keyed = "" if rows is None else f", rows {'for all' if rows == 'all' else f'by {rows}'}"
    return f"{config.num_groups} {what}{plural}, {kind}{rank}{keyed}"


def format_layers(layers: list[int]) -> str:
    """Return layer numbers as ranges, as --layers takes them: "0-3,20-23"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
