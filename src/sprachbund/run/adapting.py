"""`sprachbund adapt`: new languages for a model that exists, each with a path of its own, and what that costs others.

A folder of stage results, as a run is: nearest groups -> paths trained -> before and after -> report. An adaptation
that was killed continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from sprachbund import __version__
from sprachbund.adaptation.path import add_language, dense_size, trainable
from sprachbund.corpora.mixture import schedule
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.evaluation import TestText
from sprachbund.evaluation.forgetting import forgetting
from sprachbund.export.card import write_card
from sprachbund.export.source import read_mixture_config
from sprachbund.files import model_of, write_text
from sprachbund.grouping.solve import solve
from sprachbund.modeling.base import check_arithmetic, device, load_model, load_tokenizer, quiet
from sprachbund.modeling.checkpoint import fetch
from sprachbund.modeling.generation import group_of_language
from sprachbund.modeling.language_path import all_groups, path_specs
from sprachbund.recipe import Adaptation
from sprachbund.report import write_adapt_report
from sprachbund.run.adapt_scores import MODES, as_numbers, old_scores, score, under_groups
from sprachbund.run.directory import Adapting, open_adaptation, read_json
from sprachbund.run.learning import save_model
from sprachbund.run.newcomers import NewText, read_new, read_protected, training_tokens
from sprachbund.similarity import similarity_of
from sprachbund.similarity.counts import count_tokens
from sprachbund.training.batches import TrainingBlocks
from sprachbund.training.stages import StagePlan, TrainingPlan
from sprachbund.training.trainer import TrainingResult, train

SCHEMA = 1
RESULT = "adapt.json"
WARMUP = 0.1


def path_plan(
    *,
    tokens: int,
    tokens_per_step: int,
    block_size: int,
    learning_rate: float,
    bfloat16: bool = False,
    checkpoints: int = 0,
    seed: int = 0,
    router_loss: float = 0.0,
) -> TrainingPlan:
    """Return the plan of a path's training: by group all the way, a tenth of warm-up, then cosine to zero."""
    num_steps = max(tokens // tokens_per_step, 1)
    batch_size = tokens_per_step // block_size
    return TrainingPlan(
        num_steps=num_steps,
        batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=learning_rate,
        stages=(StagePlan(num_steps, "group", router_loss),),
        warmup=WARMUP,
        bfloat16=bfloat16,
        checkpoints=checkpoints,
        rate_name="--learning-rate",
        seed=seed,
    )


def train_path(
    model: Any,
    group_id: int,
    packed: Mapping[str, Packed],
    plan: TrainingPlan,
    *,
    folder: Path,
    log: Any,
    block_size: int,
) -> TrainingResult:
    """Train one path of a model, and nothing else, on the text of its languages, in equal parts; in place.

    Resumes from the last checkpoint in `folder`; `log(event, **values)` receives what is to be recorded. Raises
    DivergedError when the loss is not finite.
    """
    path = trainable(model, group_id)
    tags = list(packed)
    rows_SB = schedule(
        {tag: 1 / len(tags) for tag in tags}, num_steps=plan.num_steps, batch_size=plan.batch_size, seed=plan.seed
    )
    blocks = TrainingBlocks(
        list(packed.values()),
        tags,
        rows_SB,
        block_size=block_size,
        micro_batch_size=plan.micro_batch_size,
        seed=plan.seed,
    )
    result = train(
        model,
        blocks,
        plan,
        groups=[group_id] * len(tags),
        folder=folder,
        log=log,
        description=f"adapt {', '.join(path.spec.languages)}",
    )
    model.requires_grad_(True)
    return result


@dataclass
class _Work:
    """One adaptation under way: what its stages share."""

    place: Adapting
    source: Path
    config: Any

    @property
    def settings(self) -> Adaptation:
        return self.place.settings

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.source)

    @cached_property
    def protected(self) -> tuple[dict[str, TestText], dict[str, float]]:
        return read_protected(self.settings, self.tokenizer)

    @cached_property
    def texts(self) -> dict[str, NewText]:
        found = {}
        for tag, source in self.settings.languages.items():
            found[tag] = read_new(tag, source, self.settings, self.tokenizer)
        return found

    def load(self, folder: Path | None = None) -> Any:
        """Load the source, or another model, ready to be scored."""
        return load_model(folder or self.source, dtype="float32").to(device()).eval()

    def marks(self) -> list[Any]:
        """Return what tells whether the model or a text has changed."""
        files = sorted([*self.source.glob("*.safetensors"), self.source / "config.json"])
        return [
            [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
            {tag: text.packed.digest for tag, text in self.texts.items()},
        ]


def adapt(settings: Adaptation, out: Path, *, update: bool = False) -> dict[str, Any]:
    """Give a model new languages and write it, with what that did to all languages, to a folder.

    OUT has model/ (the model, its tokenizer and card), adapt.json (what is returned), report.html, adapt.yaml (the
    settings), events.jsonl and stages/. The same call continues what was broken off; with `update` a folder takes other
    settings. No tensor of the old model changes.

    Raises InputError, before anything is trained, for a model that is no mixture of this package, a language that it
    has, texts that cannot be used, and a folder of other settings.
    """
    quiet()
    set_seed(settings.seed)
    check_arithmetic(settings.dtype)
    source = model_of(fetch(settings.source))
    config = read_mixture_config(source, purpose="adapt")
    for tag in settings.languages:
        if tag in all_groups(config):
            raise InputError(f"--language {tag}: the model has this language already; leave it out")
    if settings.join is None:
        _start_group(config, settings)
    place = open_adaptation(settings, out, update=update)
    try:
        work = _Work(place, source, config)
        nearest = _nearest(work)
        _train(work, nearest)
        _evaluate(work, nearest)
        return _report(work)
    finally:
        place.close()


def _start_group(config: Any, settings: Adaptation) -> int | None:
    """Return the group id of the language that new ones start from; raises InputError for an unknown one."""
    return None if settings.start is None else group_of_language(config, settings.start)


def _nearest(work: _Work) -> dict[str, list[dict[str, Any]]]:
    """Score the new texts under every group; return the table of each language, the best first."""

    def compute() -> Mapping[str, Any]:
        model = work.load()
        return {tag: under_groups(model, text, work.settings) for tag, text in work.texts.items()}

    scored = [work.settings.evaluate.model_dump(mode="json"), work.settings.block_size]
    return work.place.stage("nearest", [work.marks(), scored], [], compute)


def _members(work: _Work) -> list[list[str]]:
    """Return which new languages share a path: each has its own, or similar ones have one together."""
    tags, count = list(work.texts), work.settings.together
    if count is None or count >= len(tags):
        return [[tag] for tag in tags]
    if count == 1:
        return [tags]
    signals = {tag: count_tokens(np.asarray(work.texts[tag].stream)) for tag in tags}
    alike = similarity_of(signals, source="lexical", center=True)
    grouping = solve(alike, num_groups=count, objective="mean", seed=work.settings.seed).grouping
    return [list(members) for members in grouping.groups]


def _parent(work: _Work, members: Sequence[str], nearest: Mapping[str, list[dict[str, Any]]]) -> tuple[int, int | None]:
    """Return the group that a path stands on, and the path, by its group id, that it starts from, if any."""
    specs, num_groups = path_specs(work.config), work.config.num_groups
    chosen = _start_group(work.config, work.settings)
    if chosen is not None and chosen >= num_groups:
        return specs[chosen - num_groups].parent, chosen
    if chosen is None:
        old = [row for row in nearest[members[0]] if row["group"] < num_groups]
        chosen = int(old[0]["group"])
    return chosen, None


def _train(work: _Work, nearest: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Train a path for each language, one after the other, into OUT/model."""
    settings, place = work.settings, work.place

    def compute() -> Mapping[str, Any]:
        folder, facts = work.source, []
        for number, members in enumerate(_members(work)):
            step = place.path(f"steps/{number}")
            if not step.is_dir():
                facts_of_step = _train_one(work, folder, members, nearest, number)
                write_text(place.path(f"steps/{number}.json"), json.dumps(facts_of_step))
            facts.append(read_json(place.path(f"steps/{number}.json")))
            folder = step
        shutil.rmtree(place.path("model"), ignore_errors=True)
        folder.rename(place.path("model"))
        shutil.rmtree(place.path("steps"), ignore_errors=True)
        shutil.rmtree(place.path("checkpoints"), ignore_errors=True)
        return {"paths": facts}

    unrelated = {"source", "protect", "evaluate", "max_forgetting", "checkpoints"}
    inputs = settings.model_dump(mode="json", exclude=unrelated)
    return place.stage("train", inputs, ["model"], compute, after=["nearest"], precious=True)


def _train_one(
    work: _Work, folder: Path, members: Sequence[str], nearest: Mapping[str, list[dict[str, Any]]], number: int
) -> dict[str, Any]:
    """Add a path to the model of a folder, train it, and write the model to OUT/steps/NUMBER."""
    settings, place = work.settings, work.place
    texts = {tag: work.texts[tag] for tag in members}
    parent, start = _parent(work, members, nearest)
    model = work.load(folder)
    dtype = str(model.config.dtype or "float32").removeprefix("torch.")
    group_id = add_language(
        model,
        members,
        [np.asarray(text.stream) for text in texts.values()],
        kind=settings.path,
        parent=parent,
        start=start,
        width=settings.width,
        rank=settings.rank,
        seed=settings.seed,
    )
    model.config.path_gate = settings.gate
    tokens = training_tokens(settings, texts)
    plan = path_plan(
        tokens=tokens,
        tokens_per_step=settings.tokens_per_step,
        block_size=settings.block_size,
        learning_rate=settings.learning_rate,
        bfloat16=settings.dtype == "bfloat16",
        checkpoints=settings.checkpoints,
        seed=settings.seed,
    )
    begun = time.monotonic()
    result = train_path(
        model,
        group_id,
        {tag: text.packed for tag, text in texts.items()},
        plan,
        folder=place.path(f"checkpoints/{number}"),
        log=lambda event, **values: place.log(f"adapt-{number}", event, **values),
        block_size=settings.block_size,
    )
    path = model.get_decoder().language_paths[group_id - model.config.num_groups]
    size = sum(parameter.numel() for parameter in path.parameters())
    save_model(model, work.tokenizer, place.path(f"steps/{number}"), dtype=dtype)
    return {
        "languages": list(members),
        "group_id": group_id,
        "parent": parent,
        "start": settings.start,
        "tokens": plan.num_steps * settings.tokens_per_step,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "parameters": size,
        "share_of_dense": size / dense_size(model.config),
    }


def _evaluate(work: _Work, nearest: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Score old and new languages before and after, under every mode."""
    settings = work.settings

    def compute() -> Mapping[str, Any]:
        texts, _ = work.protected
        model = work.load()
        before, _ = old_scores(model, texts, settings, label="before")
        first: dict[str, Any] = {}
        for tag, text in work.texts.items():
            best = int(nearest[tag][0]["group"])
            modes = [mode for mode in MODES if mode != "counts" or path_specs(model.config)]
            first[tag] = {
                m: as_numbers(score(model, text.test, settings, mode=m, group=best), text.test) for m in modes
            }
        model = work.load(work.place.path("model"))
        new = {tag: text.test for tag, text in work.texts.items()}
        after, shares = old_scores(model, {**texts, **new}, settings, label="after")
        return {
            tag: {
                "new": tag in new,
                "before": first[tag] if tag in new else before[tag],
                "after": after[tag],
                "routed": shares[tag],
            }
            for tag in [*new, *texts]
        }

    inputs = [settings.evaluate.model_dump(mode="json"), sorted(settings.protect)]
    return work.place.stage("evaluate", inputs, ["model"], compute, after=["nearest", "train"])


def _report(work: _Work) -> dict[str, Any]:
    """Write adapt.json, the model's card and report.html from the stages' results; return what adapt.json holds."""
    place, settings = work.place, work.settings
    records = place.records()
    nearest, scores = (records[name]["result"] for name in ("nearest", "evaluate"))
    paths = records["train"]["result"]["paths"]
    of_groups = {row["group"]: row["languages"] for table in nearest.values() for row in table}
    languages = {}
    for path in paths:
        for tag in path["languages"]:
            text = work.texts[tag]
            languages[tag] = {
                "group_id": path["group_id"],
                "parent": {"group": path["parent"], "languages": of_groups.get(path["parent"], [])},
                "start": path["start"],
                "shares_with": [other for other in path["languages"] if other != tag],
                "train_tokens": text.packed.num_tokens,
                "train_bytes": text.packed.num_bytes,
                "bytes_per_token": text.bytes_per_token,
                "warnings": text.warnings,
                "under_groups": nearest[tag],
                "parameters": path["parameters"],
                "share_of_dense": path["share_of_dense"],
                "extension": path.get("extension", 0),
            }
    facts = {
        "schema": SCHEMA,
        "package": __version__,
        "source": settings.source,
        "path": settings.path,
        "gate": settings.gate,
        "seed": settings.seed,
        "tokens": sum(path["tokens"] for path in paths),
        "learning_rate": settings.learning_rate,
        "base_parameters": dense_size(work.config),
        "languages": languages,
        "scores": scores,
        "forgetting": forgetting(scores, limit=settings.max_forgetting),
        "seconds": place.seconds(),
    }
    write_text(place.path(RESULT), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_card(place.path("model"))
    write_adapt_report(place.folder)
    return facts
