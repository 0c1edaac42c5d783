"""What `group` and `layers` do with a bare file, or with what a run has decided; the text is made in show.py."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sprachbund.cli.show import front_text, group_text, layers_text
from sprachbund.errors import InputError
from sprachbund.files import read_json_object, write_text
from sprachbund.grouping.decide import Evidence, as_dict, constraints_of, decide
from sprachbund.grouping.families import read_families
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.layers import (
    bitmask,
    choose_by_budget,
    choose_by_epsilon,
    choose_top,
    mean_norms,
    noise_warning,
    normalised,
    outlier_warning,
    read_norms,
)
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.grouping.solve import front
from sprachbund.recipe.plan import Groups
from sprachbund.run.directory import Run, read_json

if TYPE_CHECKING:
    from sprachbund.run.planning import LayerPlan


def read_weights(wish: str | None) -> dict[str, Any] | str | None:
    """Return the capacity weights of a JSON file {language: number}, or the word `bytes`.

    Raises:
        InputError: a file that is none, or a weight that is no number.
    """
    if wish is None or wish == "bytes":
        return wish
    return read_json_object(Path(wish))


def group_file(
    path: Path, wishes: Mapping[str, Any], *, show_front: bool, svg: Path | None, seed: int, as_json: bool
) -> str:
    """Return the groups of a similarity CSV as text, or as JSON for a machine.

    Raises:
        InputError: the file or a wish is not valid.
    """
    if "count" not in wishes:
        raise InputError("--groups is missing: give the number of groups, for example --groups 6, or --groups auto")
    if wishes.get("weights") == "bytes":
        raise InputError("--weights bytes: a CSV knows no corpora; give a JSON file {language: number}")
    settings = _settings({**wishes, "source": "given", "similarity": str(path)})
    similarity = read_similarity(path)
    if show_front:
        return _front(similarity, settings, seed=seed, as_json=as_json)
    families = None
    if settings.families is not None:
        families = {tag: levels[0] for tag, levels in read_families(settings.families, tags=similarity.tags).items()}
    weights = settings.weights if isinstance(settings.weights, dict) else None
    decision = decide(similarity, settings, Evidence(weights=weights, families=families), seed=seed)
    if svg is not None:
        _draw(svg, similarity, decision.solution.grouping)
    return _groups(decision.solution.grouping, similarity, as_dict(decision), as_json=as_json)


def group_run(run: Run, grouping: Grouping, *, show_front: bool, svg: Path | None, as_json: bool) -> str:
    """Return the groups of a run as text, or as JSON for a machine."""
    file = run.path("similarity.csv")
    similarity = read_similarity(file) if file.exists() else None
    if similarity is None and (show_front or svg):
        raise InputError(f"{run.folder}: its groups were given, so there is no similarity to draw or to trade off")
    if similarity is not None and show_front:
        return _front(similarity, run.recipe.groups, seed=run.recipe.seed, as_json=as_json)
    if similarity is not None and svg is not None:
        _draw(svg, similarity, grouping)
    return _groups(grouping, similarity, read_json(run.path("grouping.json")), as_json=as_json)


def _settings(wishes: Mapping[str, Any]) -> Groups:
    """Return the wishes as the recipe's `groups`, every mistake named by its option."""
    try:
        return Groups.model_validate(dict(wishes))
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            said = f"found {first['input']!r}; {said[:1].lower()}{said[1:]}"
        option = "-".join(str(first["loc"][0]).split("_")) if first["loc"] else ""
        option = {"": "", "count": "--groups: "}.get(option, f"--{option}: ")
        raise InputError(f"{option}{said}") from None


def _groups(grouping: Grouping, similarity: Similarity | None, facts: Mapping[str, Any], *, as_json: bool) -> str:
    if not as_json:
        return group_text(grouping, similarity, facts)
    groups = [list(members) for members in grouping.groups]
    return json.dumps({"groups": groups, "sizes": list(map(len, groups)), **facts}, ensure_ascii=False)


def _front(similarity: Similarity, settings: Groups, *, seed: int, as_json: bool) -> str:
    if settings.count == "auto":
        raise InputError("--front shows the trade-off for one number of groups; give --groups a number, not auto")
    weights = settings.weights if isinstance(settings.weights, dict) else None
    found = front(similarity, num_groups=settings.count, constraints=constraints_of(settings, weights), seed=seed)
    if not as_json:
        return front_text(found)
    points = [
        {"min": s.min, "mean": s.mean, "proven": s.proven, "groups": [list(members) for members in s.grouping.groups]}
        for s in found
    ]
    return json.dumps({"front": points}, ensure_ascii=False)


def _draw(path: Path, similarity: Similarity, grouping: Grouping) -> None:
    from sprachbund.report import write_similarity_svg

    write_similarity_svg(path, similarity, grouping)


def layers_file(path: Path, wish: Mapping[str, Any], *, cost: int | None, svg: Path | None, as_json: bool) -> str:
    """Return the layers chosen from a file of norms as text, or as JSON for a machine.

    Raises:
        InputError: the file or the wish is not valid.
    """
    norms_L = mean_norms(read_norms(path))
    if not wish:
        raise InputError("--epsilon is missing: give a threshold between 0 and 1, for example --epsilon 0.6; or --top")
    ((rule, value),) = wish.items()
    if rule == "layerwise":
        raise InputError("--layerwise compares languages layer by layer, which norms cannot tell; give a recipe or run")
    if (rule == "budget") != (cost is not None):
        raise InputError("--budget and --cost belong together: the parameters to spend, and those of one mixture layer")
    if rule == "epsilon":
        layers = choose_by_epsilon(norms_L, epsilon=value)
    elif rule == "top":
        layers = choose_top(norms_L, num_layers=value)
    else:
        layers = choose_by_budget(norms_L, budget=value, cost_L=[cost or 0] * len(norms_L))
    if svg is not None:
        _draw_layers(svg, norms_L, layers)
    said = []
    if rule == "epsilon":
        said = [w for w in (noise_warning(norms_L), outlier_warning(norms_L, epsilon=value)) if w]
    if not as_json:
        return layers_text(norms_L, layers, rule=f"{rule} {value:g}", said=said)
    content = {
        "layers": layers,
        "bitmask": bitmask(layers),
        rule: value,
        "norms": norms_L,
        "normalised": normalised(norms_L),
        "warnings": said,
    }
    return json.dumps(content, ensure_ascii=False)


def _draw_layers(path: Path, norms_L: list[float], layers: list[int]) -> None:
    from sprachbund.report import Layer, write_layers_svg

    scaled_L = normalised(norms_L)
    write_layers_svg(
        path, [Layer(i, norm, math.nan, scaled_L[i], chosen=i in layers) for i, norm in enumerate(norms_L)]
    )


def layers_run(run: Run, plan: LayerPlan, *, svg: Path | None, as_json: bool) -> str:
    """Return the mixture layers of a run as text, or as JSON for a machine."""
    if svg is not None:
        picture = run.path("layers.svg")
        if not picture.exists():
            raise InputError(f"{run.folder}: no deviation was measured (there is no layers.svg), so none can be drawn")
        write_text(svg, picture.read_text(encoding="utf-8"))
    if as_json:
        return json.dumps({"layers": plan.layers, "bitmask": bitmask(plan.layers), "experts": plan.experts})
    if plan.experts is None:
        return f"layers: {' '.join(map(str, plan.layers))}"
    return "\n".join(
        f"layer {layer}: {len(set(table))} experts, by group {' '.join(map(str, table))}"
        for layer, table in plan.experts.items()
    )
