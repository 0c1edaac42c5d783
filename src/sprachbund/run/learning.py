"""The stages that train: the dense control and the mixture, on the same sequences in the same order."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sprachbund.export.card import write_card
from sprachbund.grouping.greedy import Grouping
from sprachbund.modeling import count_log_prob, expand, pair_table
from sprachbund.modeling.base import device
from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.sizing import widths_within
from sprachbund.modeling.skeleton import dense_ffn_shape
from sprachbund.parallel import world_size
from sprachbund.recipe import Experts
from sprachbund.run.data import PackedCorpora, batch_schedule
from sprachbund.run.directory import Run
from sprachbund.training import TrainingBlocks, TrainingPlan
from sprachbund.training.checkpoints import last_checkpoint, step_of
from sprachbund.training.stages import plan_training
from sprachbund.training.together import in_parts, train_together
from sprachbund.training.trainer import Log

if TYPE_CHECKING:
    from sprachbund.run.planning import LayerPlan


def run_training(
    run: Run,
    stage: str,
    model: Any,
    blocks: TrainingBlocks,
    plan: TrainingPlan,
    *,
    groups: Sequence[int],
    tokenizer: Any,
    keep: Path,
    grouping: Grouping | None = None,
) -> dict[str, Any]:
    """Train a model in place, from its last checkpoint if there is one, and save it to `keep`; returns its facts.

    `groups`, (L,), are the model's, which may be languages; what is logged of tokens is by group of the `grouping`.
    """
    folder = run.path(f"checkpoints/{stage}-{run.fingerprints[stage]}")
    for other in run.path("checkpoints").glob(f"{stage}-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    resume = last_checkpoint(folder)
    run.forget_events(stage, after_step=step_of(resume) if resume else 0)
    log: Log = partial(run.log, stage)
    if grouping is not None:
        log = _log_by_group(log, dict(zip(blocks.tags, groups, strict=True)), grouping.as_dict())
    result = train_together(model, blocks, plan, groups=groups, folder=folder, log=log, description=stage)
    save_model(model, tokenizer, keep, dtype=run.recipe.train.dtype, run=run.folder)
    return {
        "tokens": plan.num_steps * plan.batch_size * blocks.block_size,
        "tokens_per_second": round(result.tokens_per_second, 1),
    }


def by_group(of_own: Sequence[float], own: Mapping[str, int], assignment: Mapping[str, int]) -> list[float]:
    """Return sums per group of a grouping from numbers per group of a model, whose groups may be languages."""
    group_of = {number: assignment[tag] for tag, number in own.items()}
    sums = [0.0] * len(set(assignment.values()))
    for number, value in enumerate(of_own):
        sums[group_of[number]] += value
    return sums


def _log_by_group(log: Log, own: Mapping[str, int], assignment: Mapping[str, int]) -> Log:
    """Return `log`, with the tokens that are recorded per group of the model summed to those of the grouping."""

    def write(event: str, **values: Any) -> None:
        if event == "tokens":
            tokens = {tag: by_group(row, own, assignment) for tag, row in values["tokens"].items()}
            totals = [sum(column) for column in zip(*tokens.values(), strict=True)]
            dead = [group for group, total in enumerate(totals) if not total]
            values |= {"tokens": {tag: [round(n) for n in row] for tag, row in tokens.items()}, "dead_experts": dead}
        log(event, **values)

    return write


def drop_checkpoints(run: Run, stage: str) -> None:
    """Remove a stage's checkpoints; only once the stage is recorded as done, or a kill in between would lose them."""
    for folder in run.path("checkpoints").glob(f"{stage}-*"):
        shutil.rmtree(folder)


def save_model(model: Any, tokenizer: Any, folder: Path, *, dtype: str, run: Path | None = None) -> None:
    """Write a model as safetensors in a dtype, its tokenizer and its card: the folder holds all of it or is not there.

    The card tells of the `run` that trained the model, without its scores: those are of an earlier model, if any.
    """
    model.to(getattr(torch, dtype))
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if run is not None:
            write_card(temporary, run=run, evaluated=False)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def training_blocks(run: Run, packed: PackedCorpora, grouping: Grouping, plan: TrainingPlan) -> TrainingBlocks:
    """Return the training sequences, the same for the dense control and the mixture."""
    schedule_SB = batch_schedule(
        run, packed, num_steps=plan.num_steps, batch_size=plan.batch_size, groups=grouping.as_dict()
    )
    return TrainingBlocks(
        list(packed.train.values()),
        list(packed.train),
        schedule_SB,
        block_size=run.recipe.train.block_size,
        micro_batch_size=plan.micro_batch_size,
        seed=run.recipe.seed,
    )


def _inputs(run: Run, packed: PackedCorpora, grouping: Grouping) -> list[Any]:
    """Return what both trainings depend on: of the stages only their learning rates."""
    recipe = run.recipe
    unrelated = {"stages", "checkpoints", "log_every", "trackers", "gradient_checkpointing", "sharding"}
    train_part = recipe.train.model_dump(exclude=unrelated)
    own_rates = recipe.train.cosine == "stage" or any(s.learning_rate for s in recipe.train.stages)
    stages = [[s.share, s.learning_rate] for s in recipe.train.stages] if own_rates else []
    assignment = list(grouping.as_dict().items()) if recipe.mixture.balance_groups else []
    return [train_part, stages, recipe.mixture.model_dump(), packed.digest, assignment, recipe.seed]


def train_dense(run: Run, base: Any, packed: PackedCorpora, grouping: Grouping, tokenizer: Any) -> dict[str, Any]:
    """Train the dense control into RUN/dense."""
    plan = plan_training(run.recipe).dense().on_ranks(world_size())

    def work() -> Mapping[str, Any]:
        model = base.load(dtype="float32", on=_home(run))
        blocks = training_blocks(run, packed, grouping, plan)
        groups = [0] * len(packed.train)
        return run_training(
            run, "dense", model, blocks, plan, groups=groups, tokenizer=tokenizer, keep=run.path("dense")
        )

    # a control that is not kept may be gone after evaluation, and is still done
    outputs = ["dense"] if run.recipe.dense.keep else []
    inputs = _inputs(run, packed, grouping)
    facts = run.stage("dense", inputs, outputs, work, after=["base"], precious=True, also=["dense"])
    drop_checkpoints(run, "dense")
    return facts


def expert_arguments(experts: Experts, dense: Any, groups: Mapping[str, int], layers: LayerPlan) -> dict[str, Any]:
    """Return the arguments of `expand` and `mixture_config` for a recipe's experts; `dense` is the base's config.

    Raises InputError where the budget leaves no room for them.
    """
    hierarchy = experts.kind == "hierarchy"
    by = "group" if hierarchy or layers.experts is not None else experts.by
    num_routes = len(groups if hierarchy or by == "language" else set(groups.values()))
    arguments: dict[str, Any] = {
        "moe_layers": layers.layers,
        "expert_of_group": layers.experts,
        "groups": groups,
        "kind": experts.kind,
        "by": by,
        "width": experts.width,
        "rank": experts.rank,
        "rows": experts.rows,
        "num_experts_per_tok": min(experts.num_experts_per_tok, num_routes),
        "router_gradient": experts.router_gradient,
    }
    if experts.budget is not None and experts.width is None and experts.kind != "copy":

        def of_widths(width: int, language_width: int | None) -> Any:
            return mixture_config(dense, **arguments | {"width": width, "language_width": language_width})

        widths = widths_within(dense, of_widths, budget=experts.budget, hierarchy=hierarchy)
        arguments["width"], arguments["language_width"] = widths
    elif hierarchy:
        width = experts.width or dense_ffn_shape(dense).width
        arguments["language_width"] = experts.language_width or max(width // 6, 1)
    return arguments


def expand_base(run: Run, base: Any, packed: PackedCorpora, grouping: Grouping, layers: LayerPlan) -> Any:
    """Return the mixture at step 0: the base's function, in experts."""
    dense = base.load(dtype="float32", on=_home(run))
    assignment = grouping.as_dict()
    groups = {tag: assignment[tag] for tag in packed.train}
    experts, streams = run.recipe.experts, [p.tokens for p in packed.train.values()]
    log_prob = count_log_prob(streams, vocab_size=dense.config.vocab_size)
    return expand(
        dense,
        **expert_arguments(experts, dense.config, groups, layers),
        router_init=experts.router_init,
        log_prob=log_prob,
        pairs=pair_table(streams, log_prob, num_pairs=experts.gate_pairs) if experts.gate_pairs else None,
        seed=run.recipe.seed,
    ).to(_home(run))


def _home(run: Run) -> torch.device:
    """Return where a whole model lies before it trains: beside the GPUs where each of them holds a part."""
    return torch.device("cpu") if in_parts(plan_training(run.recipe).on_ranks(world_size())) else device()


def train_mixture(
    run: Run, base: Any, packed: PackedCorpora, grouping: Grouping, layers: LayerPlan, tokenizer: Any
) -> dict[str, Any]:
    """Expand the base and train the mixture into RUN/model."""
    plan = plan_training(run.recipe).on_ranks(world_size())

    def work() -> Mapping[str, Any]:
        model = expand_base(run, base, packed, grouping, layers)
        blocks = training_blocks(run, packed, grouping, plan)
        groups = [model.config.groups[tag] for tag in packed.train]
        return run_training(
            run,
            "train",
            model,
            blocks,
            plan,
            groups=groups,
            tokenizer=tokenizer,
            keep=run.path("model"),
            grouping=grouping,
        )

    stages = [s.model_dump() for s in run.recipe.train.stages]
    experts = run.recipe.experts.model_dump()
    inputs = [_inputs(run, packed, grouping), list(grouping.as_dict().items()), stages, experts]
    facts = run.stage("train", inputs, ["model"], work, after=["base", "groups", "layers"], precious=True)
    drop_checkpoints(run, "train")
    return facts
