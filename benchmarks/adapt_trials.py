"""How the systems of benchmarks/adapt.py are made and trained.

A trial is a model that is ready to be trained, its text, and how to train it; what was trained is kept as a file, so
that a job which is scored again later is not trained again.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from adapt_material import Material
from adapt_systems import DENSE, FULL, Job
from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors

from sprachbund.adaptation.vocabulary import Extension
from sprachbund.corpora.mixture import schedule
from sprachbund.recipe import Adaptation
from sprachbund.recipe.adapt import PathChoice
from sprachbund.run.newcomers import NewText
from sprachbund.run.path_training import Place, make_place, plan_of, train_path, trained_size
from sprachbund.training import TrainingBlocks, TrainingPlan, train

LORA_RANK = 16
REPLAY = 0.5  # of the sequences are of old languages


@dataclass
class Trial:
    """A model to train on a text; `group` is the new language's group id, None in a dense model."""

    job: Job
    material: Material
    model: Any
    text: NewText
    group: int | None = None

    @property
    def plan(self) -> TrainingPlan:
        """The plan that all systems have, of their own rate and budget."""
        setting, system = self.job.setting, self.job.system
        share = self.text.packed.num_tokens / self.material.new(self.text.tag).packed.num_tokens
        tokens = setting.tokens * system.times * (share if system.same_text else 1)
        plan = plan_of(settings_of(self.job, self.material), round(tokens))
        return plan if self.group is not None else plan.dense()

    def train(self) -> None:
        """Train the model in place."""
        folder, block_size = self.job.folder / "checkpoints", self.material.settings.block_size
        if self.group is None:
            blocks, plan = self._dense_blocks()
            groups, name = [0] * len(blocks.tags), self.job.system.name
            train(self.model, blocks, plan, groups=groups, folder=folder, log=_no_log, description=name)
        else:
            packed = {self.text.tag: self.text.packed}
            train_path(self.model, self.group, packed, self.plan, folder=folder, log=_no_log, block_size=block_size)

    def _dense_blocks(self) -> tuple[TrainingBlocks, TrainingPlan]:
        """Return a dense model's training sequences; replay has old ones beside as many new ones as the others have."""
        tag, plan = self.text.tag, self.plan
        packed, shares = {tag: self.text.packed}, {tag: 1.0}
        if self.job.system.method == "replay":
            old = self.material.old_train
            packed |= old
            shares = {tag: 1 - REPLAY} | {other: REPLAY / len(old) for other in old}
            batch_size = round(plan.batch_size / (1 - REPLAY))
            plan = replace(plan, batch_size=batch_size, micro_batch_size=batch_size)
        rows_SB = schedule(shares, num_steps=plan.num_steps, batch_size=plan.batch_size, seed=plan.seed)
        sizes = {"block_size": self.material.settings.block_size, "micro_batch_size": plan.micro_batch_size}
        return TrainingBlocks(list(packed.values()), list(packed), rows_SB, seed=plan.seed, **sizes), plan

    def facts(self) -> dict[str, Any]:
        """Return what is trained, in numbers: new tokens, the bytes that they hold, and parameters."""
        tokens = self.plan.num_steps * self.job.setting.tokens_per_step
        if self.group is None:
            size = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        else:
            size = trained_size(self.model, self.group, router=self.plan.stages[0].router_loss > 0)
        share = size / self.material.before["parameters"][DENSE]
        num_bytes = round(tokens * self.text.bytes_per_token)
        return {"tokens": tokens, "bytes": num_bytes, "parameters": size, "share_of_dense": share}


def _no_log(event: str, **values: Any) -> None:
    """Record nothing: a benchmark keeps results."""


def settings_of(job: Job, material: Material) -> Adaptation:
    """Return the settings by which `sprachbund adapt` would do a job."""
    kind = job.system.method if job.system.method in get_args(PathChoice) else FULL
    given = {"path": kind, "seed": job.seed, "learning_rate": job.learning_rate, "checkpoints": 0}
    return material.settings.model_copy(update=given)


def make_trial(job: Job, material: Material) -> Trial:
    """Return a job's model as it is before training."""
    text, extension = material.new(job.language), None
    if job.system.merges:
        text, extension = material.extended(job.language)
    if not job.system.is_dense:
        return add_to(material.load("model"), job, material, text, extension)
    model = material.load(DENSE)
    if extension is not None:
        extend_rows(model, extension)
    if job.system.method == "lora":
        model = with_lora(model)
    return Trial(job, material, model, text)


def add_to(model: Any, job: Job, material: Material, text: NewText, extension: Extension | None = None) -> Trial:
    """Return a mixture with what a job's system gives a language, on the group that is nearest to it."""
    place = Place(int(material.before["parents"][text.tag]["group"]))
    streams = [material.new(text.tag).stream]
    pieces = () if extension is None else extension.pieces
    made, group = make_place(model, [text.tag], streams, place, settings_of(job, material), pieces=pieces)
    return Trial(job, material, made, text, group)


@torch.no_grad()
def extend_rows(model: Any, extension: Extension) -> None:
    """Give a dense model rows for new tokens, which start as the mean of those of the pieces."""
    model.resize_token_embeddings(extension.vocab_size + len(extension.pieces), mean_resizing=False)
    tables = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in tables.values():
        for number, ids in enumerate(extension.pieces):
            weight[extension.vocab_size + number] = weight[list(ids)].mean(0)


def with_lora(model: Any) -> Any:
    """Return a dense model in which only low-rank changes of every linear map but the output are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def trained(job: Job, material: Material) -> tuple[Trial, dict[str, Any]]:
    """Return a job's trial with its model trained, and its facts; `seconds` are of the training, if it was now."""
    trial = make_trial(job, material)
    facts, file = trial.facts(), weights_of(job)
    if file.exists():
        load_tensors(trial.model, file)
    else:
        begun = time.monotonic()
        trial.train()
        facts["seconds"] = round(time.monotonic() - begun, 1)
        temporary = file.with_suffix(".tmp")
        save_tensors(trial.model, str(temporary))
        os.replace(temporary, file)
    if job.system.method == "lora":
        trial.model = trial.model.merge_and_unload()
    trial.model.eval()
    return trial, facts


def weights_of(job: Job) -> Path:
    """Return the file that a job's trained model is kept in until it is scored for good."""
    return job.folder / "model.safetensors"
