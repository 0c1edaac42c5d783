"""One job of a comparison: trained once, scored on dev, and in the end on test; its result is a file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from sprachbund.compare.memory import peak_mb, reset_peak
from sprachbund.compare.methods import Method
from sprachbund.compare.plans import Plan
from sprachbund.compare.shared import Materials, Shared, materials
from sprachbund.compare.systems import Job, Scorer, system_of
from sprachbund.errors import DivergedError
from sprachbund.evaluation import TestText, build_metrics
from sprachbund.evaluation.metrics import KINDS
from sprachbund.files import write_text
from sprachbund.modeling.base import check_arithmetic, quiet
from sprachbund.recipe import Base, Recipe
from sprachbund.run.directory import Run, fingerprint, open_run, read_json
from sprachbund.run.learning import drop_checkpoints

RESULT = "result.json"
# What changes no result: where things are written, and how much is on the device at once.
_UNRELATED = {"checkpoints", "log_every", "trackers", "gradient_checkpointing", "sharding"}


@dataclass(frozen=True)
class JobSpec:
    """A method at one learning rate and seed, and all that a process needs to know to do it."""

    shared: Shared
    method: Method
    plan: Plan
    learning_rate: float
    seed: int
    folder: Path

    @property
    def recipe(self) -> Recipe:
        """The recipe of the job's own run: the base as it is, the groups given."""
        recipe, base = self.method.recipe, self.shared.base
        path = Base(path=base.path, revision=base.revision, trust_remote_code=base.trust_remote_code)
        groups = recipe.groups.model_copy(update={"given": str(self.plan.file)})
        train = recipe.train.model_copy(update={"learning_rate": self.learning_rate})
        name = f"{recipe.name}-{self.method.name}"
        return recipe.model_copy(
            update={"name": name, "base": path, "groups": groups, "train": train, "seed": self.seed, "compare": None}
        )

    @property
    def mark(self) -> str:
        """A digest of all that the result depends on."""
        recipe, plan = self.recipe, self.plan
        parts = [recipe.experts, recipe.mixture, recipe.splits]
        method = self.method.keys.model_dump(include={"system", "tag", "branch_share"})
        return fingerprint(
            [
                [part.model_dump(mode="json") for part in parts],
                recipe.train.model_dump(mode="json", exclude=_UNRELATED),
                recipe.evaluate.model_dump(mode="json", exclude={"batch_tokens", "split"}),
                [method, self.seed, self.shared.base_mark, self.shared.digest],
                [plan.grouping.groups, plan.layers.layers, plan.layers.experts, self.shared.stream.groups],
            ]
        )

    def result(self) -> dict[str, Any]:
        """Return what is done of it, empty where that was another job."""
        found = read_json(self.folder / RESULT)
        return found if found.get("fingerprint") == self.mark else {}


def run_job(spec: JobSpec, split: str) -> dict[str, Any]:
    """Do what is missing of a job, up to its scores on a split, and return its result; FOLDER.log tells the story.

    The result has `parameters`, `flops`, `seconds` and the like, and under each split that is scored the scores by
    routing. A training that diverged has `diverged` instead. Raises SprachbundError for whatever else went wrong.
    """
    result = spec.result()
    if split in result or "diverged" in result:
        return result
    spec.folder.parent.mkdir(parents=True, exist_ok=True)
    with spec.folder.with_name(f"{spec.folder.name}.log").open("a", encoding="utf-8") as log, redirect_stderr(log):
        quiet()
        set_seed(spec.seed)
        check_arithmetic(spec.recipe.train.dtype)
        run = open_run(spec.recipe, spec.folder, update=True)
        try:
            found = {**result, **_work(spec, split, run, materials(spec.shared))}
        except DivergedError as error:
            found = {"fingerprint": spec.mark, "diverged": str(error)}
        finally:
            run.close()
        write_text(spec.folder / RESULT, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return found


def _work(spec: JobSpec, split: str, run: Run, shared: Materials) -> dict[str, Any]:
    marks = {"base": spec.shared.base_mark, "groups": spec.mark, "layers": spec.mark}
    run.fingerprints.update(marks)
    plan = spec.plan
    job = Job(
        method=spec.method,
        run=run,
        base=spec.shared.base,
        packed=shared.packed,
        corpora=shared.corpora,
        tokenizer=shared.tokenizer,
        grouping=plan.grouping,
        layers=plan.layers,
        stream=spec.shared.stream,
    )
    system = system_of(spec.method)

    def train() -> Mapping[str, Any]:
        reset_peak()
        begun = time.process_time()
        facts = system.train(job)
        used = time.process_time() - begun  # of this process: beside other work, seconds by the clock say little
        return {**facts, "cpu_seconds": round(used, 1), "peak_memory_mb": round(peak_mb(), 1)}

    facts = run.stage("train", spec.mark, system.outputs(job), train)
    drop_checkpoints(run, "train")
    scorer = system.scorer(job)
    return {
        "fingerprint": spec.mark,
        "seed": spec.seed,
        "learning_rate": spec.learning_rate,
        "seconds": run.seconds()["train"],
        **facts,
        "parameters": {"total": scorer.parameters.total, "active": scorer.parameters.active},
        "flops_per_token_active": scorer.flops_per_token,
        split: _scores(scorer, _asked(scorer, split, spec), shared.texts(split), spec),
    }


def _asked(scorer: Scorer, split: str, spec: JobSpec) -> tuple[str, ...]:
    """Return the routings to score: on dev, which only chooses the learning rate, the headline alone."""
    headline = spec.method.keys.routing
    if split == "test":
        return scorer.routings
    return (headline if headline in scorer.routings and headline else scorer.routings[0],)


def _scores(scorer: Scorer, routings: Sequence[str], texts: Mapping[str, TestText], spec: JobSpec) -> dict[str, Any]:
    """Return the four scores under each routing: averages over languages, and of each language."""
    scores = {routing: {tag: scorer.score(routing, tag, text) for tag, text in texts.items()} for routing in routings}
    metrics = build_metrics(scores, texts, spec.plan.grouping.as_dict(), facts={})
    return {
        routing: {
            **{kind: metrics["average"][kind][routing] for kind in KINDS},
            "languages": {
                tag: {kind: language[kind][routing] for kind in KINDS} for tag, language in metrics["languages"].items()
            },
        }
        for routing in routings
    }


def remove_models(folder: Path) -> None:
    """Remove what a job has trained: its result stays. Where its models are needed, it is trained again."""
    if not folder.is_dir():
        return
    (folder / "stages/train.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
