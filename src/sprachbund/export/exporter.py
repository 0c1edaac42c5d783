"""The export of a mixture's folder: written beside its place, proven in a fresh process, then moved there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError
from sprachbund.export.card import write_card
from sprachbund.export.dense import specialist_config, specialist_tensors
from sprachbund.export.foldable import stored_otherwise
from sprachbund.export.native import native_config, native_tensors
from sprachbund.export.source import Source, read_mixture_config, take_along
from sprachbund.export.targets import find_target
from sprachbund.export.verify import expected_of, verify
from sprachbund.files import write_text
from sprachbund.modeling.checkpoint import LazyTensor, new_folder, write_checkpoint
from sprachbund.modeling.generation import group_of_language

Measure = Callable[[], Mapping[str, float] | None]


def export_native(
    folder: Path,
    out: Path,
    *,
    to: str = "native",
    densify: bool = False,
    measure: Measure | None = None,
    run: Path | None = None,
) -> dict[str, Any]:
    """Export the mixture in `folder` to `out` as a native architecture; `to` names one, or `native` finds one.

    `measure` returns the perplexity of each routing on development text, once the export is proven; `run` is the run
    that the mixture belongs to, for the model card. Returns what export.json says: target, difference of the logits
    (as a share of the largest), dev, caveats, groups.

    Raises InputError where no target is exact, where `out` exists and where `folder` holds no whole mixture;
    SprachbundError where the proof fails. Then nothing is left in `out`.
    """
    config = read_mixture_config(folder)
    target, verdict = find_target(config, to, densify=densify)
    source = Source(folder, config)
    return _export(
        source,
        out,
        config=native_config(target, config, densify=densify),
        tensors=lambda: native_tensors(target, source, densify=densify),
        # keyed rows that all groups share: whichever group is given, none need be guessed
        proof={"routing": "top_k", "group": 0 if config.row_of_group else None},
        facts={"target": target.name, "densified": densify, "caveats": list(verdict.caveats)},
        measure=measure,
        run=run,
    )


def export_dense(
    folder: Path,
    out: Path,
    *,
    group: int | None = None,
    language: str | None = None,
    run: Path | None = None,
) -> dict[str, Any]:
    """Export one group of the mixture in `folder`, or the group of a language, to `out` as a plain dense model.

    Returns and raises as `export_native`, and raises InputError for a group or language that the mixture has not.
    """
    config = read_mixture_config(folder)
    number = _group(config, group, language)
    source = Source(folder, config)
    dense = specialist_config(source)
    members = [tag for tag in config.languages if config.groups[tag] == number]
    return _export(
        source,
        out,
        config=dense,
        tensors=lambda: specialist_tensors(source, dense, group=number),
        proof={"routing": "group", "group": number},
        facts={"target": "dense", "group": number, "languages": members, "caveats": _dense_caveats(config, number)},
        run=run,
    )


def _group(config: Any, group: int | None, language: str | None) -> int:
    if (group is None) == (language is None):
        given = "both were given" if group is not None else "neither was given"
        raise InputError(f"a dense model is of one group: give --group or --language ({given})")
    if language is not None:
        number = group_of_language(config, language)
        if number >= config.num_groups:
            raise InputError(
                f"--language {language}: it came later and has a path of its own, whose changes of the attention and "
                "of every FFN no dense model of one group holds; use the mixture for it, or export another language"
            )
        return number
    assert group is not None
    if not 0 <= group < config.num_groups:
        raise InputError(f"--group {group}: the mixture has groups 0 to {config.num_groups - 1}")
    return group


def _dense_caveats(config: Any, group: int) -> list[str]:
    found = []
    if config.num_groups > 1:
        found.append(
            f"this is group {group} of {config.num_groups}: languages of the others are served by their own models"
        )
    if config.expert_kind == "shared":
        own = ", the relatives' and the language's own expert" if config.language_width else " and the group's expert"
        found.append(f"wider than the base: the FFN for all tokens{own} are one")
    return [*found, *stored_otherwise(config)]


def _export(
    source: Source,
    out: Path,
    *,
    config: Any,
    tensors: Callable[[], Sequence[LazyTensor]],
    proof: Mapping[str, Any],
    facts: Mapping[str, Any],
    measure: Measure | None = None,
    run: Path | None = None,
) -> dict[str, Any]:
    with new_folder(out) as temporary:
        expected = expected_of(source.folder, **proof)
        write_checkpoint(temporary, tensors())
        config.save_pretrained(temporary)
        take_along(source.folder, temporary)
        difference = verify(temporary, expected)
        said = {
            **facts,
            "architecture": config.architectures[0],
            "difference": difference,
            "dev": dict(found) if measure is not None and (found := measure()) is not None else None,
            "groups": dict(source.config.groups),
        }
        write_text(temporary / "export.json", json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        write_card(temporary, run=run, place=out)
    return said
