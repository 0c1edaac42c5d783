"""`sprachbund compress`: a trained mixture with smaller experts, and what that costs on the run's development text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.errors import InputError
from sprachbund.export.source import read_mixture_config
from sprachbund.modeling import count_parameters
from sprachbund.modeling.checkpoint import fetch
from sprachbund.modeling.compress import (
    check_rank,
    check_width,
    expert_banks,
    factor_experts,
    prune_experts,
    saving_rank,
)
from sprachbund.modeling.skeleton import skeleton
from sprachbund.run.derived import beside, write_changed
from sprachbund.run.exporting import measure_routings, model_and_run


def compress(
    target: str,
    *,
    width: int | None = None,
    rank: int | None = None,
    out: Path | None = None,
    evaluate: bool = True,
) -> dict[str, Any]:
    """Write the mixture of a run, a folder or a Hub id with smaller experts to a new folder; return what was done.

    Give one of `width`, to which experts are pruned, and `rank`, in which their weights are factored. `out` is by
    default beside the model, named after it: `model-width16`, `model-rank8`. With `evaluate`, a run's model is measured
    before and after on its development text, under every routing; the test split is left for the evaluation.

    Returns what the folder's compress.json says: method (`prune` or `svd`), width, rank, parameters and those of the
    experts before and after, and `dev`, {routing: {"before", "after": perplexity over all positions}}, None where
    nothing was measured.

    Raises InputError, before anything is loaded, for a model that is no mixture or has copies for experts, a width or
    rank that does not make them smaller, neither or both of these, and for a folder that exists.
    """
    if (width is None) == (rank is None):
        given = "both were given" if width is not None else "neither was given"
        raise InputError(f"experts are made smaller in one way: give --width or --rank ({given})")
    folder, run = model_and_run(fetch(target))
    config = read_mixture_config(folder, purpose="compress")
    before = skeleton(config)
    _check(before, width, rank)
    out = out or beside(target, folder, f"width{width}" if width is not None else f"rank{rank}")

    def change(model: Any) -> Any:
        return prune_experts(model, width) if width is not None else factor_experts(model, rank or 0)

    def facts(smaller: Any) -> dict[str, Any]:
        return {
            "method": "prune" if width is not None else "svd",
            "width": width,
            "rank": rank,
            "parameters": {"before": asdict(count_parameters(before)), "after": asdict(count_parameters(smaller))},
            "experts": {"before": _expert_parameters(before), "after": _expert_parameters(smaller)},
        }

    measure = partial(_compare, folder, run=run) if evaluate and run is not None else None
    return write_changed(
        folder, out, config=config, change=change, facts=facts, measure=measure, file="compress.json", run=run
    )


def _check(model: Any, width: int | None, rank: int | None) -> None:
    """Raise InputError, by a model without weights, for a width or a rank that would not make its experts smaller."""
    if width is not None:
        check_width(model, width)
    if rank is not None:
        check_rank(model, rank)
        if rank > (most := saving_rank(model)):
            advice = f"give at most {most}" if most else "prune their units instead, with --width"
            raise InputError(f"--rank {rank}: factors of it have no fewer parameters than the experts now; {advice}")


def _expert_parameters(model: Any) -> int:
    return sum(tensor.numel() for _, bank in expert_banks(model) for tensor in bank.parameters(recurse=False))


def _compare(before: Path, after: Path, *, run: Path) -> Mapping[str, Mapping[str, float]] | None:
    """Return the perplexity of each routing before and after, from the files as they lie; None without text."""
    scores = measure_routings(before, run)
    if scores is None:
        return None
    now = measure_routings(after, run)
    assert now is not None  # the text was there
    return {routing: {"before": score, "after": now[routing]} for routing, score in scores.items()}
