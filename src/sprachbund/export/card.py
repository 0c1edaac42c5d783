"""The model card: README.md of a saved model, from what its own files and its run say."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

from sprachbund import __version__
from sprachbund.export.card_facts import Facts, gather, hub_language, language_name
from sprachbund.export.card_text import (
    changes,
    export_part,
    grouping_text,
    kind_in_words,
    later_part,
    limits,
    results_part,
    summary,
    training,
)
from sprachbund.export.markdown import code, fixed, markdown, ranges, signed
from sprachbund.files import write_text


def write_card(
    folder: Path,
    *,
    run: Path | None = None,
    base: str | None = None,
    evaluated: bool = True,
    place: Path | None = None,
) -> None:
    """Write README.md into a saved model's folder: what it is, how it is used, what it was worth, and its limits.

    Everything is read from files: the model's config.json and, where it is an export, export.json; of its `run`
    recipe.yaml, grouping.json and metrics.json. Say `evaluated=False` as long as the metrics of the run are those of
    an earlier model. `base` is the Hub id or folder of the base where no run's recipe says it; `place` where the folder
    will lie, while it is still being written elsewhere: an untitled card is called after it.

    Raises InputError for a folder without a model, and for files that cannot be read.
    """
    facts = gather(folder, run=run, base=base, evaluated=evaluated, place=place)
    write_text(folder / "README.md", render_card(facts, parameters=_parameters(folder)))


def render_card(facts: Facts, *, parameters: str) -> str:
    """Return the card as Markdown, with its metadata for the Hub in front."""
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=False,  # Markdown: what users wrote goes through `md` and `code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        md=markdown, code=code, fixed=fixed, signed=signed, name=language_name, string_literal=json.dumps
    )
    config = {"architectures": None, "auto_map": None, **facts.config}
    layers = config.get("moe_layers") or []
    return environment.get_template("card.md.j2").render(
        facts=facts,
        config=config,
        front=front_matter(facts),
        summary=summary(facts),
        parameters=parameters,
        layers=f"{ranges(layers)} of {_num_layers(config)}",
        experts=_experts(config),
        kind=kind_in_words(config),
        export=export_part(facts),
        changes=changes(facts),
        grouping=grouping_text(facts),
        later=later_part(facts),
        training=training(facts),
        results=results_part(facts) if facts.metrics else None,
        limits=limits(facts),
        version=__version__,
    )


def front_matter(facts: Facts) -> str:
    """Return the metadata as YAML: what the Hub finds and lists a model by."""
    languages = dict.fromkeys(code for tag in [*facts.tags, *facts.later] if (code := hub_language(tag)))
    kind = ["mixture-of-experts"] if facts.is_mixture or facts.config.get("num_experts_per_tok") else []
    metadata: dict[str, Any] = {
        "language": list(languages) or None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": facts.base_model,
        "tags": [*kind, *(["multilingual"] if len(languages) > 1 else []), "sprachbund"],
    }
    present = {key: value for key, value in metadata.items() if value is not None}
    return yaml.safe_dump(present, sort_keys=False, allow_unicode=True)


def _asset(name: str) -> str:
    text = files("sprachbund.export").joinpath(name).read_text(encoding="utf-8")
    return re.sub(r"\r\n?", "\n", text)


def _num_layers(config: dict[str, Any]) -> Any:
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    return next((config[name] for name in names if name in config), "its")


def _experts(config: dict[str, Any]) -> str:
    width, rank = config.get("expert_width"), config.get("expert_rank")
    units = f", {width:,} units wide" if width else ""
    if own := config.get("language_width"):
        tables = (config.get("expert_of_group") or {}).values()
        counts = sorted({max(table) + 1 for table in tables})
        many = " or ".join(map(str, counts))
        text = f"{many} of groups of languages{units}, and {config.get('num_groups')} of languages, {own:,} units wide"
    else:
        text = f"{config.get('num_groups')} groups, kind `{config.get('expert_kind')}`{units}"
    return f"{text}{f', of rank {rank}' if rank else ''}"


def _parameters(folder: Path) -> str:
    """Return the counts, from the configuration alone."""
    from sprachbund.modeling.description import describe

    counts = describe(folder).parameters
    active = "" if counts.active == counts.total else f", {counts.active:,} of them active per token"
    return f"{counts.total:,}{active}"
