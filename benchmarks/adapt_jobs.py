"""One job of benchmarks/adapt.py: trained once, scored on dev, and where its rate is chosen on test; a file each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from adapt_material import BEFORE, Material, material
from adapt_measures import measure_before, measure_dev, measure_test, windows_of
from adapt_systems import SEVERAL, Job, Setting
from adapt_trials import Trial, add_to, trained, weights_of
from transformers import set_seed

from sprachbund.errors import DivergedError
from sprachbund.files import write_text
from sprachbund.modeling.base import quiet
from sprachbund.run.directory import read_json

RESULT = "result.json"


def run_before(setting: Setting) -> dict[str, Any]:
    """Measure both models before anything is trained, once, into OUT/before.json."""
    file = setting.out / BEFORE
    if not file.exists():
        setting.out.mkdir(parents=True, exist_ok=True)
        with (setting.out / "before.log").open("a", encoding="utf-8") as log, redirect_stderr(log):
            quiet()
            write_result(file, measure_before(material(setting)))
    return read_json(file)


def run_job(job: Job, split: str) -> dict[str, Any]:
    """Do what is missing of a job up to its scores on a split, and return its result; FOLDER.log tells the story.

    The result has the facts of the training, and under `dev` and `test` what was measured. A training that diverged
    has `diverged` instead.
    """
    result = read_json(job.folder / RESULT)
    if split in result or "diverged" in result:
        return result
    job.folder.mkdir(parents=True, exist_ok=True)
    with job.folder.with_suffix(".log").open("a", encoding="utf-8") as log, redirect_stderr(log):
        quiet()
        set_seed(job.seed)
        work: Callable[..., dict[str, Any]] = _several if job.system.method == SEVERAL else _work
        try:
            result |= {"seed": job.seed, **work(job, split, material(job.setting))}
        except DivergedError as error:
            result = {"seed": job.seed, "diverged": str(error)}
        write_result(job.folder / RESULT, result)
    if split == "test":
        weights_of(job).unlink(missing_ok=True)
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    return result


def write_result(file: Path, content: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _work(job: Job, split: str, shared: Material) -> dict[str, Any]:
    trial, facts = trained(job, shared)
    return {**facts, split: measure_dev(trial) if split == "dev" else measure_test(trial)}


def _several(job: Job, split: str, shared: Material) -> dict[str, Any]:
    """Give one model all new languages, one after the other; measure the first and the old ones after each further one.

    `unchanged` says whether the first language's logits, its group given, are to the bit those before the others came.
    """
    model, stages = shared.load("model"), {}
    first, alone = None, torch.empty(0)
    for number, tag in enumerate(job.setting.languages, start=1):
        trial = add_to(model, job, shared, shared.new(tag))
        trial.train()
        model.eval()
        if first is None:
            first, alone = trial, _logits(trial)
        else:
            stages[str(number)] = {**measure_test(first), "unchanged": torch.equal(_logits(first), alone)}
    return {split: stages}


@torch.inference_mode()
def _logits(trial: Trial) -> torch.Tensor:
    """Return a model's logits of the new language's test text, its group given."""
    ids_BT, _ = windows_of(trial.text.test, trial.material.settings.block_size)
    given = torch.full((len(ids_BT),), trial.group or 0)
    logits: torch.Tensor = trial.model(input_ids=ids_BT, routing="group", group_ids=given, use_cache=False).logits
    return logits
