"""The last stages: every model scored on the test split, and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprachbund import __version__
from sprachbund.evaluation import LanguageScores, TestText, build_metrics, score_language
from sprachbund.evaluation.metrics import ROUTINGS
from sprachbund.export.card import write_card
from sprachbund.files import write_text
from sprachbund.grouping.greedy import Grouping
from sprachbund.memory import peak_memory_mb
from sprachbund.modeling import count_parameters
from sprachbund.modeling.base import device, load_model
from sprachbund.progress import track
from sprachbund.recipe_file import dump_recipe
from sprachbund.report import write_report
from sprachbund.run.data import Corpora, read_test_text
from sprachbund.run.directory import Run, read_json
from sprachbund.run.learning import by_group
from sprachbund.run.probing import DenseBase


def evaluate(
    run: Run,
    base: DenseBase,
    corpora: Corpora,
    tokenizer: Any,
    grouping: Grouping,
    *,
    retrain_dense: Callable[[], Any],
) -> dict[str, Any]:
    """Score base, dense control and mixture (under the three routings) and write metrics.json.

    `retrain_dense` is called where a control that was not kept is needed again.
    """
    recipe = run.recipe
    after = ["base", "train", *(["dense"] if recipe.dense.train else [])]

    def work() -> Mapping[str, Any]:
        texts = {tag: read_test_text(corpora, tag, tokenizer) for tag in recipe.languages}
        if recipe.dense.train and not run.path("dense").exists():
            retrain_dense()
        systems: list[tuple[str, Any]] = [("base", base.load)]
        if recipe.dense.train:
            systems.append(("dense", lambda: _load(run.path("dense"), recipe.train.dtype)))
        systems.append(("moe", lambda: _load(run.path("model"), recipe.train.dtype)))
        scores: dict[str, dict[str, LanguageScores]] = {}
        counts: dict[str, int] = {}
        num_layers = 0
        with track("evaluate", len(texts) * (len(systems) - 1 + len(ROUTINGS))) as advance:
            for system, load in systems:
                model = load()
                size = count_parameters(model)
                counts |= {"dense": size.total} if system == "base" else {}
                counts |= {"moe": size.total, "active": size.active} if system == "moe" else {}
                num_layers = model.config.num_hidden_layers
                for routing in ROUTINGS if system == "moe" else (None,):
                    scores[routing or system] = _score_all(run, model, texts, routing, grouping, advance)
                del model
        metrics = build_metrics(
            scores, texts, grouping.as_dict(), facts={**_facts(run), "parameters": counts, "num_layers": num_layers}
        )
        write_text(run.path("metrics.json"), json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
        for name in ("model", "dense"):
            if run.path(name).is_dir():
                write_card(run.path(name), run=run.folder)
        return {"average": metrics["average"]}

    inputs: list[Any] = [
        recipe.evaluate.model_dump(exclude={"batch_tokens"}),
        recipe.dense.model_dump(),
        corpora.states,
    ]
    inputs += [recipe.splits.model_dump(), recipe.seed, recipe.name, recipe.preset]
    run.stage("evaluate", inputs, ["metrics.json"], work, after=after)
    if recipe.dense.train and not recipe.dense.keep:
        shutil.rmtree(run.path("dense"), ignore_errors=True)
    return read_json(run.path("metrics.json"))


def _load(folder: Path, dtype: str) -> Any:
    return load_model(folder, dtype=dtype).to(device()).eval()


def _score_all(
    run: Run, model: Any, texts: Mapping[str, TestText], routing: str | None, grouping: Grouping, advance: Any
) -> dict[str, LanguageScores]:
    settings, assignment = run.recipe.evaluate, grouping.as_dict()
    own = getattr(model.config, "groups", None) or assignment
    scores = {}
    for tag, text in texts.items():
        found = score_language(
            model,
            text,
            window=settings.window or run.recipe.train.block_size,
            burn_in=settings.burn_in,
            batch_tokens=settings.batch_tokens,
            routing=routing,
            group=own[tag],
        )
        if found.routed:
            found.routed = by_group(found.routed, own, assignment)
            # right is the group of the grouping, also where the model's groups are languages
            found.right = found.routed[assignment[tag]] * found.positions
        scores[tag] = found
        advance(1, f"{routing or 'dense'} {tag}")
    return scores


def _facts(run: Run) -> dict[str, Any]:
    """Return everything in metrics.json that is not a score."""
    recipe = run.recipe
    results = {name: record["result"] for name, record in run.records().items()}
    tokens = {"base": "base", "probe": "probe", "dense": "dense", "moe": "train"}
    speed = {"dense": "dense", "moe": "train"}

    def of(names: Mapping[str, str], key: str) -> dict[str, float]:
        return {name: results[stage][key] for name, stage in names.items() if key in results.get(stage, {})}

    return {
        "package": __version__,
        "name": recipe.name,
        "preset": recipe.preset,
        "seed": recipe.seed,
        "tokens": of(tokens, "tokens"),
        "tokens_per_second": of(speed, "tokens_per_second"),
        "seconds": run.seconds(),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "split": recipe.evaluate.split,
        "burn_in": recipe.evaluate.burn_in,
        "window": recipe.evaluate.window or recipe.train.block_size,
        "device": str(device()),
        "experts": recipe.experts.model_dump(include={"kind", "by", "rows"}),
        "moe_layers": results.get("layers", {}).get("layers", []),
    }


def report(run: Run, *, after: Sequence[str] = ("evaluate",)) -> Path:
    """Write report.html."""

    def work() -> Mapping[str, Any]:
        return {"bytes": write_report(run.folder).stat().st_size}

    run.stage("report", [dump_recipe(run.recipe)], ["report.html"], work, after=after)
    return run.path("report.html")
