"""A training that rank 0 calls the other processes of the run to (`sprachbund.parallel`)."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed import DistError
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund import parallel
from sprachbund.corpora.packing import Packed, load_packed
from sprachbund.errors import InputError, SprachbundError, brief
from sprachbund.modeling.base import device, quiet
from sprachbund.modeling.skeleton import skeleton
from sprachbund.training.batches import TrainingBlocks
from sprachbund.training.sharding import fill_from_leader, gather_to_leader, into_shards
from sprachbund.training.stages import TrainingPlan
from sprachbund.training.trainer import Log, TrainingResult, train
from sprachbund.training.zero import gather_partitions, mark_leaf_modules

# What gloo and NCCL say of a process that is gone, where torch gives it no type of its own.
_LOST = ("by peer", "Broken pipe", "Connection refused", "Socket closed", "gloo", "NCCL")


@dataclass(frozen=True)
class Training:
    """A training as the followers are told of it: what the model is, without weights, and which tokens come when."""

    config: dict[str, Any]
    implementations: tuple[Any, Any]
    tensors: list[tuple[str, tuple[int, ...]]]
    frozen: frozenset[str]
    streams: list[tuple[str, Path, str]]
    tags: list[str]
    languages: np.ndarray
    blocks: np.ndarray
    block_size: int
    plan: TrainingPlan
    groups: list[int]
    folder: Path
    description: str


def train_together(
    model: Any,
    blocks: TrainingBlocks,
    plan: TrainingPlan,
    *,
    groups: Sequence[int],
    folder: Path,
    log: Log,
    description: str,
) -> TrainingResult:
    """Train a model in place as `train` does, on all processes of the run where there are several.

    Raises InputError, beside what `train` raises, where a process cannot read the token streams or build the model, and
    SprachbundError where one has ended.
    """
    team = parallel.team()
    if team is None:
        return train(model, blocks, plan, groups=groups, folder=folder, log=log, description=description)
    if type(model).__module__.startswith("transformers_modules."):
        raise InputError(
            f"{type(model).__name__} comes with code of its own (trust_remote_code), which trains in one process only; "
            "start it without torchrun or accelerate launch"
        )
    training = _describe(model, blocks, plan, groups=groups, folder=folder, description=description)
    try:
        team.call(training)
        parallel.agree(None)
        whole = model.to("cpu") if in_parts(plan) else None
        twin = model.to(device()) if whole is None else _freeze(_twin(model.config, plan), training.frozen)
        return _train(twin, whole, blocks, plan, groups=groups, folder=folder, log=log, description=description)
    except RuntimeError as error:
        if isinstance(error, DistError) or any(words in str(error) for words in _LOST):
            raise SprachbundError(
                "another process of the run has ended, and says why or was killed, or cannot be reached "
                f"({brief(error)}); the same command continues from the last checkpoint"
            ) from error
        raise


def follow(training: Training) -> None:
    """Take part in a training (all ranks but the first). Raises what `train` raises, and InputError on all ranks."""
    quiet()
    problem, model, blocks = None, None, None
    try:
        blocks = _blocks(training)
        model = _model(training)
    except SprachbundError as error:
        problem = error
    parallel.agree(problem)
    _train(
        model,
        None,
        blocks,
        training.plan,
        groups=training.groups,
        folder=training.folder,
        log=_no_log,
        description=training.description,
    )


def _no_log(event: str, **values: Any) -> None:
    """Record nothing: rank 0 does."""


def _train(twin: Any, whole: Any, blocks: Any, plan: TrainingPlan, **details: Any) -> TrainingResult:
    """Train a rank's twin of the model; where no rank holds all of it, rank 0 has the model `whole` beside it."""
    if plan.sharded:
        twin = into_shards(twin)
    fill_from_leader(twin, whole)
    if parallel.uses_deepspeed():
        mark_leaf_modules(twin)
    result = train(twin, blocks, plan, sharded=plan.sharded, whole=whole, **details)
    if plan.sharded:
        gather_to_leader(twin, whole)
    elif parallel.uses_deepspeed():
        gather_partitions(twin, whole)
    return result


def in_parts(plan: TrainingPlan) -> bool:
    """Does no process hold all of the model while it trains?"""
    return plan.sharded or parallel.uses_deepspeed()


def _twin(config: Any, plan: TrainingPlan) -> Any:
    """Return the model of a configuration, its weights to be filled in: on the meta device where it will be sharded."""
    return skeleton(config) if plan.sharded else AutoModelForCausalLM.from_config(config).to(device())


def _describe(
    model: Any,
    blocks: TrainingBlocks,
    plan: TrainingPlan,
    *,
    groups: Sequence[int],
    folder: Path,
    description: str,
) -> Training:
    config = model.config
    return Training(
        config=config.to_dict(),
        implementations=(config._attn_implementation, config._experts_implementation),
        tensors=_shapes(model),
        frozen=frozenset(name for name, p in model.named_parameters() if not p.requires_grad),
        streams=[(corpus.name, Path(corpus.path or "").absolute(), corpus.digest) for corpus in blocks.corpora],
        tags=blocks.tags,
        languages=blocks.languages,
        blocks=blocks.blocks,
        block_size=blocks.block_size,
        plan=plan,
        groups=list(groups),
        folder=folder.absolute(),
        description=description,
    )


def _shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in (*model.named_parameters(), *model.named_buffers())]


def _blocks(training: Training) -> TrainingBlocks:
    """Return the training sequences, read from the streams that rank 0 has packed."""
    return TrainingBlocks.of_places(
        [_stream(*stream) for stream in training.streams],
        training.tags,
        training.languages,
        training.blocks,
        block_size=training.block_size,
    )


def _stream(name: str, path: Path, digest: str) -> Packed:
    try:
        packed = load_packed(path, name=name)
    except InputError:
        packed = None
    if packed is None or packed.digest != digest:
        raise InputError(
            f"rank {parallel.rank()} on {socket.gethostname()} cannot read the tokens of {name} that rank 0 has packed "
            f"({path}); set SPRACHBUND_CACHE to a folder that all machines share"
        )
    return packed


def _model(training: Training) -> Any:
    """Return the model that rank 0 trains, with weights to be filled in."""
    values = dict(training.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation, config._experts_implementation = training.implementations
    model = _twin(config, training.plan)
    if _shapes(model) != training.tensors:
        raise InputError(
            f"rank {parallel.rank()} on {socket.gethostname()} builds another model than rank 0; give all machines the "
            "same versions of sprachbund, transformers and torch"
        )
    return _freeze(model, training.frozen)


def _freeze(model: Any, frozen: frozenset[str]) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model
