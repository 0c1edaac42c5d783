"""What a model makes of texts under every routing, before and after an adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprachbund.errors import InputError
from sprachbund.evaluation import LanguageScores, TestText, score_language
from sprachbund.evaluation.metrics import KINDS
from sprachbund.modeling.language_path import all_groups, num_group_ids, path_specs
from sprachbund.progress import track
from sprachbund.recipe import Adaptation
from sprachbund.run.newcomers import NewText

# mode -> routing and how text finds the paths of languages that came later
MODES: dict[str, tuple[str, str | None]] = {
    "group": ("group", None),
    "prefix": ("prefix", "mixture"),
    "counts": ("prefix", "counts"),
    "top_k": ("top_k", "mixture"),
}
Scores = dict[str, dict[str, float]]  # mode -> kind of score -> value


def as_numbers(scores: LanguageScores, text: TestText) -> dict[str, float]:
    """Return the four scores of a text."""
    bytes_per_token = text.num_bytes / scores.positions
    values = (
        scores.perplexity,
        scores.perplexity_after_burn_in,
        scores.bits_per_byte(bytes_per_token),
        scores.bits_per_byte_after_burn_in(bytes_per_token),
    )
    return dict(zip(KINDS, values, strict=True))


def score(model: Any, text: TestText, settings: Adaptation, *, mode: str, group: int) -> LanguageScores:
    """Score a mixture on a text in a mode; `group` is the text's own group id."""
    routing, gate = MODES[mode]
    gated = gate is not None and bool(path_specs(model.config))
    return score_language(
        model,
        text,
        window=settings.evaluate.window or settings.block_size,
        burn_in=settings.evaluate.burn_in,
        batch_tokens=settings.evaluate.batch_tokens,
        routing=routing,
        group=group,
        path_gate=gate if gated else None,
    )


def under_groups(model: Any, text: NewText, settings: Adaptation) -> list[dict[str, Any]]:
    """Return the scores of a new language's dev text under every group and path of a model, the best first."""
    by_group: dict[int, list[str]] = {}
    for tag, group in all_groups(model.config).items():
        by_group.setdefault(group, []).append(tag)
    rows = []
    how_many = num_group_ids(model.config)
    extended = {model.config.num_groups + i for i, spec in enumerate(path_specs(model.config)) if spec.extension}
    with track(f"{text.tag} under each group", how_many) as advance:
        for group in range(how_many):
            if group not in extended:  # it reads other tokens
                numbers = as_numbers(score(model, text.dev, settings, mode="group", group=group), text.dev)
                rows.append({"group": group, "languages": by_group.get(group, []), **_main(numbers)})
            advance(1)
    return sorted(rows, key=lambda row: float(row["perplexity"]))


def _main(numbers: Mapping[str, float]) -> dict[str, float]:
    return {kind: numbers[kind] for kind in ("perplexity", "bits_per_byte")}


def old_scores(
    model: Any, texts: Mapping[str, TestText], settings: Adaptation, *, label: str
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Return {language: scores by mode}, and {language: {mode: share of positions on paths, but the language's own}}.

    A model without paths has one way to read a text under `prefix`: `counts` repeats it. Raises InputError for a
    language that the model does not have.
    """
    groups, num_old = all_groups(model.config), model.config.num_groups
    scores: dict[str, Scores] = {tag: {} for tag in texts}
    shares: dict[str, dict[str, float]] = {tag: {} for tag in texts}
    with track(label, len(texts) * len(MODES)) as advance:
        for tag, text in texts.items():
            if tag not in groups:
                raise InputError(f"the protected language {tag} is none of the model's; remove it, or correct its tag")
            for mode in MODES:
                if mode == "counts" and not path_specs(model.config):
                    scores[tag][mode] = scores[tag]["prefix"]
                else:
                    found = score(model, text, settings, mode=mode, group=groups[tag])
                    scores[tag][mode] = as_numbers(found, text)
                    taken = [share for group, share in enumerate(found.routed) if group >= num_old]
                    own = groups[tag] - num_old
                    shares[tag][mode] = sum(share for path, share in enumerate(taken) if path != own)
                advance(1, f"{mode} {tag}")
    return scores, shares
