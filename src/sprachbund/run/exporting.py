"""What an exported model is worth: its routing, measured on the development text of the run that it comes from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from sprachbund.errors import InputError
from sprachbund.evaluation import score_language
from sprachbund.evaluation.metrics import ROUTINGS
from sprachbund.files import model_of
from sprachbund.modeling.base import device, load_model, load_tokenizer
from sprachbund.progress import say, track
from sprachbund.run.data import Corpora, read_test_text
from sprachbund.run.directory import read_run

WORSE = 0.01  # by so much more than prefix, top_k is worth a warning


def model_and_run(target: Path) -> tuple[Path, Path | None]:
    """Return the folder of a model and the run it belongs to: from a run, RUN/model, or any other model's folder.

    A model that was adapted to new languages belongs to no run: its recipe is another model's.

    Raises InputError for a run that has no model yet.
    """
    model = model_of(target)
    if model != target:
        return model, target if (target / "recipe.yaml").is_file() else None
    run = target.resolve().parent
    return target, run if target.resolve().name == "model" and (run / "recipe.yaml").is_file() else None


def measure_routings(model_folder: Path, run: Path) -> dict[str, float] | None:
    """Return the perplexity under each routing on the run's dev split: the geometric mean over languages.

    See `score_routings`. None, with a word why, where the corpora are gone or too short.
    """
    scores = score_routings(model_folder, run)
    return None if scores is None else {routing: mean_perplexity(of.values()) for routing, of in scores.items()}


def mean_perplexity(perplexities: Iterable[float]) -> float:
    """Return the geometric mean of perplexities."""
    return math.exp(fmean(map(math.log, perplexities)))


def score_routings(
    model_folder: Path, run: Path, *, languages: Collection[str] | None = None
) -> dict[str, dict[str, float]] | None:
    """Return {routing: {language: perplexity}} on the run's dev split, for all of its languages or for some.

    Over all positions, each window without context before it, as a native engine meets a prompt. The test split is left
    for the evaluation. None, with a word why, where the corpora are gone or too short.
    """
    recipe = read_run(run)
    recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"split": "dev"})})
    tokenizer, corpora = load_tokenizer(model_folder), Corpora(recipe)
    tags = [tag for tag in recipe.languages if languages is None or tag in languages]
    try:
        texts = {tag: read_test_text(corpora, tag, tokenizer) for tag in tags}
    except InputError as error:
        say(f"the routings cannot be compared on development text: {error}")
        return None
    model = load_model(model_folder, dtype=recipe.train.dtype).to(device()).eval()
    found: dict[str, dict[str, float]] = {}
    with track("compare routings", len(texts) * len(ROUTINGS)) as advance:
        for routing in ROUTINGS:
            found[routing] = {}
            for tag, text in texts.items():
                scores = score_language(
                    model,
                    text,
                    window=recipe.evaluate.window or recipe.train.block_size,
                    burn_in=recipe.evaluate.burn_in,
                    batch_tokens=recipe.evaluate.batch_tokens,
                    routing=routing,
                    group=model.config.groups[tag],
                )
                found[routing][tag] = scores.perplexity
                advance(1, f"{routing} {tag}")
    return found


def warning(dev: Mapping[str, Any]) -> str | None:
    """Return what to tell somebody who is about to serve the learned router; None where it costs little."""
    change = dev["top_k"] / dev["prefix"] - 1
    if change <= WORSE:
        return None
    return (
        f"warning: this engine's routing, top_k, is {change:+.1%} in perplexity against prefix on the dev text; serve "
        "the mixture with this package, or dense models of its groups, where that matters"
    )
