"""What a training run does at each step: the stages, and the learning rate over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sprachbund.errors import InputError
from sprachbund.parallel import uses_deepspeed, wants_shards
from sprachbund.recipe import Recipe, Routing, Scratch, Train


@dataclass(frozen=True)
class StagePlan:
    """One stage: it ends before step `end`; `routing` is None for a dense model."""

    end: int
    routing: Routing | None
    router_loss: float = 0.0
    balance_loss: float = 0.0
    learning_rate: float | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a training run but its model and data. Sizes are in sequences of one block."""

    num_steps: int
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    stages: tuple[StagePlan, ...]
    router_learning_rate: float | None = None
    expert_rate_factor: float = 1.0
    cosine_per_stage: bool = False
    warmup: float = 0.03
    weight_decay: float = 0.0
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    bfloat16: bool = False
    gradient_checkpointing: bool = False
    checkpoints: int = 4
    log_every: int | None = None
    trackers: tuple[str, ...] = ()
    sharded: bool = False
    run_name: str = ""
    rate_name: str = "train.learning_rate"
    seed: int = 0

    def stage_at(self, step: int) -> StagePlan:
        """Return the stage of a step, counted from 0."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of `learning_rate`.

        Linear warm-up, then cosine to zero over the whole run, or over each stage.
        """
        start, end = 0, self.num_steps
        stage = self.stage_at(step)
        peak = stage.learning_rate or self.learning_rate
        if self.cosine_per_stage:
            position = self.stages.index(stage)
            start = self.stages[position - 1].end if position else 0
            end = stage.end
        length = max(end - start, 1)
        warm = max(round(self.warmup * length), 1)
        done = step - start
        shape = (
            (done + 1) / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / max(length - warm, 1)))
        )
        return shape * peak / self.learning_rate

    def on_ranks(self, num_ranks: int) -> TrainingPlan:
        """Return the plan of several processes, of which each takes an equal part of every step: the same result.

        The micro-batch is as large as the plan's, or the largest below that divides a process's part. The model is
        sharded where the recipe or the launcher asks for it.
        """
        sharded = num_ranks > 1 and (self.sharded or wants_shards()) and not uses_deepspeed()
        return replace(
            self, sharded=sharded, micro_batch_size=micro_batch(self.batch_size // num_ranks, self.micro_batch_size)
        )

    def skips_routers(self) -> bool:
        """Is there a step in which the routers of a mixture get no gradient?"""
        return any(
            stage.routing not in (None, "top_k") and not stage.router_loss and not stage.balance_loss
            for stage in self.stages
        )

    def dense(self) -> TrainingPlan:
        """Return the plan of the dense control: the same steps and rates, no routing."""
        stages = tuple(replace(s, routing=None, router_loss=0.0, balance_loss=0.0) for s in self.stages)
        name = self.run_name.removesuffix("-train")
        return replace(self, stages=stages, router_learning_rate=None, run_name=f"{name}-dense")


def micro_batch(share: int, most: int) -> int:
    """Return the largest micro-batch of at most `most` sequences that divides a process's share of a step."""
    return next(n for n in range(min(most, share), 0, -1) if share % n == 0)


def check_share(batch_size: int, num_ranks: int, *, key: str, block_size: int) -> None:
    """Raise InputError where processes cannot share the sequences of a step evenly; `key` says how many there are."""
    if batch_size % num_ranks:
        allowed = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        near = [max(n for n in allowed if n < num_ranks), *[n for n in allowed if n > num_ranks][:1]]
        raise InputError(
            f"{key}: a step is {batch_size} sequences of {block_size} tokens, which {num_ranks} processes cannot share "
            f"evenly; give a multiple of {num_ranks * block_size} tokens, or start {' or '.join(map(str, near))} "
            f"process{'' if near == [1] else 'es'}"
        )


def check_ranks(recipe: Recipe, num_ranks: int) -> None:
    """Raise InputError for a recipe of which a training's steps cannot be shared evenly by so many processes."""
    block_size = recipe.train.block_size
    if recipe.base.scratch is not None:
        batch_size = plan_base(recipe.base.scratch, recipe).batch_size
        check_share(batch_size, num_ranks, key="base.scratch.tokens_per_step", block_size=block_size)
    check_share(recipe.train.batch_size, num_ranks, key="train.tokens_per_step", block_size=block_size)


def plan_training(recipe: Recipe) -> TrainingPlan:
    """Return the plan of the mixture's training."""
    train: Train = recipe.train
    stages = tuple(
        StagePlan(end, s.routing, s.router_loss, s.balance_loss, s.learning_rate)
        for s, end in zip(train.stages, train.stage_ends(), strict=True)
    )
    return TrainingPlan(
        num_steps=train.num_steps,
        batch_size=train.batch_size,
        micro_batch_size=(train.micro_batch_tokens or train.tokens_per_step) // train.block_size,
        learning_rate=train.learning_rate,
        stages=stages,
        router_learning_rate=recipe.experts.router_rate_factor * train.learning_rate,
        expert_rate_factor=recipe.experts.rate_factor,
        cosine_per_stage=train.cosine == "stage",
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        beta2=train.beta2,
        max_grad_norm=train.max_grad_norm,
        bfloat16=train.dtype == "bfloat16",
        gradient_checkpointing=train.gradient_checkpointing,
        checkpoints=train.checkpoints,
        log_every=train.log_every,
        trackers=tuple(train.trackers),
        sharded=train.sharding == "fsdp",
        run_name=f"{recipe.name}-train",
        seed=recipe.seed,
    )


def plan_base(scratch: Scratch, recipe: Recipe) -> TrainingPlan:
    """Return the plan for training a base from scratch."""
    batch = max(scratch.tokens_per_step // recipe.train.block_size, 1)
    micro = (recipe.train.micro_batch_tokens or scratch.tokens_per_step) // recipe.train.block_size
    num_steps = max(scratch.tokens // (batch * recipe.train.block_size), 1)
    return TrainingPlan(
        num_steps=num_steps,
        batch_size=batch,
        micro_batch_size=micro_batch(batch, micro),
        learning_rate=scratch.learning_rate,
        stages=(StagePlan(num_steps, None),),
        bfloat16=recipe.train.dtype == "bfloat16",
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        run_name=f"{recipe.name}-base",
        rate_name="base.scratch.learning_rate",
        trackers=tuple(recipe.train.trackers),
        sharded=recipe.train.sharding == "fsdp",
        checkpoints=recipe.train.checkpoints,
        seed=recipe.seed,
    )
