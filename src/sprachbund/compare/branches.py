"""Dense models trained apart, one for each group, each on its own languages' part of the common sequences.

Shapes: S steps, B sequences of a step, T tokens of a block, P pieces (micro-batches of all steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from sprachbund.compare.systems import load_trained
from sprachbund.errors import InputError
from sprachbund.run.learning import drop_checkpoints, run_training
from sprachbund.training import TrainingBlocks, TrainingPlan

if TYPE_CHECKING:
    from sprachbund.compare.systems import Job


class StepBatches(TrainingBlocks):
    """Training sequences in their order, cut into steps of equal size, or of sizes that differ by one.

    Item i is a micro-batch as a whole: `input_ids` (B, T) and `language` (B,). Why: a group has not the same number of
    sequences in every step of the common schedule, and still every one of them is to be trained on, once. Where there
    are fewer sequences than steps, every step has one and there are fewer steps.
    """

    def __init__(self, blocks: TrainingBlocks, *, num_steps: int, micro_batch_size: int) -> None:
        self.whole = blocks
        self.tags = blocks.tags
        count = len(blocks)
        self.num_steps = min(num_steps, count)
        per_step = count / self.num_steps
        # no piece may be empty: where that needs it, a micro-batch is larger by a sequence
        self.num_micro = max(min(math.ceil(math.ceil(per_step) / micro_batch_size), int(per_step)), 1)
        self.ends_P = np.arange(1, self.num_steps * self.num_micro + 1) * count // (self.num_steps * self.num_micro)
        self.block_size = round(count * blocks.block_size / len(self))  # tokens of an item, on average: for the speed

    def __len__(self) -> int:
        return len(self.ends_P)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = self.ends_P[index - 1] if index else 0
        items = [self.whole[place] for place in range(start, self.ends_P[index])]
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def of_rank(self, rank: int, num_ranks: int, *, micro_batch_size: int) -> Self:
        """Return all micro-batches: a comparison trains in one process. Raises ValueError for several."""
        if num_ranks != 1:
            raise ValueError(f"{num_ranks} processes cannot share steps of different sizes")
        return self

    def plan(self, plan: TrainingPlan) -> TrainingPlan:
        """Return a plan with these steps instead of its own."""
        return replace(plan, num_steps=self.num_steps, batch_size=self.num_micro, micro_batch_size=1)


def digest_of(blocks: TrainingBlocks) -> str:
    """Return a digest of which sequences are trained on, in which order."""
    return blake2b(blocks.languages.tobytes() + blocks.blocks.tobytes(), digest_size=12).hexdigest()


def branch_names(job: Job) -> list[str]:
    """Return where the models of the groups are kept, in the order of the groups' numbers; each is a stage, too."""
    return [f"branch-{number}" for number in range(len(job.grouping.groups))]


def train_branches(job: Job, blocks: TrainingBlocks, plan: TrainingPlan) -> dict[str, Any]:
    """Train one model for each group from the base into RUN/branch-G; return `tokens` and `tokens_per_second`.

    A group's model sees the sequences of its languages among `blocks`, in their order and in as many steps as `plan`,
    a dense model's, has: its batches are the smaller, and all models together see what one would (Branch-Train-Merge,
    Li et al. 2022; c-BTM, Gururangan et al. 2023; X-ELM, Blevins et al. 2024). Each model is a stage, done once, inside
    the stage `train`. Raises InputError where training is too short for a group to have a sequence.
    """
    tokens, seconds = 0, 0.0
    for number, members in enumerate(job.grouping.groups):
        places = np.flatnonzero(np.isin(blocks.languages, [blocks.tags.index(tag) for tag in members]))
        if not len(places):
            raise InputError(
                f"train.tokens = {job.run.recipe.train.tokens} leave no sequence for the group of {', '.join(members)},"
                " which has a model of its own; give more tokens, or fewer groups"
            )
        facts = _train_branch(job, blocks.select(places), plan, number)
        own = len(places) * blocks.block_size
        tokens, seconds = tokens + own, seconds + seconds_of(own, facts)
    return {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}


def seconds_of(tokens: int, facts: Mapping[str, Any]) -> float:
    """Return how long training took by its facts; one resumed at its very end has no speed."""
    return tokens / max(float(facts["tokens_per_second"]), 0.1)


def _train_branch(job: Job, blocks: TrainingBlocks, plan: TrainingPlan, number: int) -> dict[str, Any]:
    """Train the model of one group, once."""
    run, stage = job.run, branch_names(job)[number]
    keep = run.path(stage)
    batches = StepBatches(blocks, num_steps=plan.num_steps, micro_batch_size=plan.micro_batch_size)
    own = replace(batches.plan(plan), run_name=f"{plan.run_name}-{stage}")

    def work() -> Mapping[str, Any]:
        model = job.base.load(dtype="float32")
        groups = [0] * len(blocks.tags)
        return run_training(run, stage, model, batches, own, groups=groups, tokenizer=job.tokenizer, keep=keep)

    inputs = [asdict(own), [corpus.digest for corpus in blocks.corpora], digest_of(blocks)]
    facts = run.stage(stage, inputs, [keep.name], work, after=["train"])
    drop_checkpoints(run, stage)
    return facts


def load_branches(job: Job, *, dtype: str) -> list[Any]:
    """Return the models of the groups, in the order of their numbers, on the device."""
    return [load_trained(job, name, dtype=dtype) for name in branch_names(job)]
