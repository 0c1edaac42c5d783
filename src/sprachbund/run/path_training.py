"""What a new language owns is made and trained: a path of its own, the paper's copied group, or a part of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sprachbund.adaptation.path import add_language, trainable, with_path_language
from sprachbund.corpora.mixture import schedule
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob
from sprachbund.modeling.generation import group_of_language
from sprachbund.modeling.language_path import num_group_ids, path_specs
from sprachbund.modeling.model import inner_model
from sprachbund.modeling.new_group import only_rows, with_copy, with_language
from sprachbund.modeling.pairs import pair_gains
from sprachbund.recipe import Adaptation
from sprachbund.training.batches import TrainingBlocks
from sprachbund.training.stages import StagePlan, TrainingPlan
from sprachbund.training.trainer import Log, TrainingResult, train

WARMUP = 0.1
ROUTER_LOSS = 1.28  # the paper's, for the new row of each router


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


def plan_of(settings: Adaptation, tokens: int) -> TrainingPlan:
    """Return the plan by which an adaptation trains what a language owns, on so many tokens."""
    return path_plan(
        tokens=tokens,
        tokens_per_step=settings.tokens_per_step,
        block_size=settings.block_size,
        learning_rate=settings.learning_rate,
        bfloat16=settings.dtype == "bfloat16",
        checkpoints=settings.checkpoints,
        seed=settings.seed,
        router_loss=ROUTER_LOSS if settings.path == "paper" and settings.join is None else 0.0,
    )


def train_path(
    model: Any,
    group_id: int,
    packed: Mapping[str, Packed],
    plan: TrainingPlan,
    *,
    folder: Path,
    log: Log,
    block_size: int,
) -> TrainingResult:
    """Train what a group id owns of a model, and nothing else, on the text of its languages, in equal parts; in place.

    A path trains whole; of a group its experts, with its rows of the routers where the plan has a router loss. Resumes
    from the last checkpoint in `folder`; `log(event, **values)` receives what is to be recorded. Raises DivergedError
    when the loss is not finite.
    """
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
    groups = [group_id] * len(tags)
    with _training(model, group_id, router=plan.stages[0].router_loss > 0):
        return train(model, blocks, plan, groups=groups, folder=folder, log=log, description=f"adapt {', '.join(tags)}")


@contextmanager
def _training(model: Any, group_id: int, *, router: bool) -> Iterator[None]:
    """Let what a group id owns train inside the block, and nothing else."""
    if group_id < model.config.num_groups:
        with only_rows(model, group_id, router=router):
            yield
        return
    trainable(model, group_id)
    try:
        yield
    finally:
        model.requires_grad_(True)


def trained_size(model: Any, group_id: int, *, router: bool) -> int:
    """Return how many parameters `train_path` trains."""
    with _training(model, group_id, router=router):
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Place:
    """Where new languages go: the group that their path stands on, the path that it starts from, or what they join."""

    parent: int
    start: int | None = None
    join: int | None = None


def place_of(config: Any, settings: Adaptation, under_groups: Sequence[Mapping[str, Any]]) -> Place:
    """Return where languages go by the settings, else to the group with the lowest perplexity on their text.

    `under_groups` is the table of the groups, the best first.
    """
    chosen = named_group(config, settings)
    if chosen is None:
        return Place(next(int(row["group"]) for row in under_groups if row["group"] < config.num_groups))
    is_path = chosen >= config.num_groups
    parent = path_specs(config)[chosen - config.num_groups].parent if is_path else chosen
    if settings.join is not None:
        return Place(parent, join=chosen)
    return Place(parent, start=chosen if is_path else None)


def named_group(config: Any, settings: Adaptation) -> int | None:
    """Return the group id that --join or --start names; raises InputError for one that there is not."""
    name = settings.join or settings.start
    if name is None:
        return None
    if name.isdecimal():
        if int(name) >= num_group_ids(config):
            raise InputError(f"--join {name}: the model has groups 0 to {num_group_ids(config) - 1}; give one of them")
        return int(name)
    return group_of_language(config, name)


def check_prior(config: Any, settings: Adaptation) -> None:
    """Raise InputError, before anything is trained, where the paths' priors leave the old model less than a half."""
    how_many = len(path_specs(config)) + len(settings.languages)
    if settings.gate == "mixture" and settings.prior * how_many > 0.5:
        raise InputError(
            f"--prior {settings.prior:g}: {how_many} paths would have {settings.prior * how_many:g} in all; give at "
            f"most {0.5 / how_many:.2g}"
        )


def make_place(
    model: Any,
    languages: Sequence[str],
    streams: Sequence[np.ndarray],
    place: Place,
    settings: Adaptation,
    *,
    pieces: Sequence[Sequence[int]] = (),
) -> tuple[Any, int]:
    """Return the model with a place for new languages, and its group id; a path's parts add nothing yet."""
    table_VM = count_log_prob(list(streams), vocab_size=model.config.vocab_size)
    gains: Sequence[torch.Tensor | None] = [None] * len(languages)
    if model.config.gate_pairs:
        gains = pair_gains(streams, table_VM, inner_model(model).language_gate.pair_keys).unbind(1)
    if place.join is not None:
        for tag, column_V, gain_P in zip(languages, table_VM.unbind(1), gains, strict=True):
            if place.join >= model.config.num_groups:
                model = with_path_language(model, place.join, tag, column_V)
            else:
                model = with_language(model, tag, place.join, column_V, gain_P)
        return model, place.join
    if settings.path == "paper":
        (tag,) = languages
        model = with_copy(model, tag, place.parent, torch.as_tensor(table_VM[:, 0]), gains[0], seed=settings.seed)
        return model, model.config.num_groups - 1
    group_id = add_language(
        model,
        languages,
        streams,
        kind=settings.path,
        parent=place.parent,
        start=place.start,
        width=settings.width,
        rank=settings.rank,
        pieces=pieces,
        seed=settings.seed,
    )
    return model, group_id
