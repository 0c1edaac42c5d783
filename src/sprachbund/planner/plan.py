"""The plan of a recipe on a cluster: what every stage needs, whether it fits, how long it takes, what to change."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from sprachbund.planner.cluster import GB, HEADROOM, Cluster
from sprachbund.planner.models import models_of
from sprachbund.planner.needs import Need, dense_training_flops, needs_of
from sprachbund.recipe import Recipe


@dataclass(frozen=True)
class StagePlan:
    """A stage on a cluster: its need, the largest micro-batch that fits (tokens; None where not one sequence does),
    hours, and one sentence where the recipe's micro-batch does not fit.
    """

    need: Need
    largest: int | None
    hours: float
    advice: str | None

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs of the stage together, at work or waiting."""
        return self.hours * self.need.num_gpus


@dataclass(frozen=True)
class Plan:
    """All stages, and what was assumed about the models."""

    recipe: Recipe
    cluster: Cluster
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Does every stage fit as the recipe has it?"""
        return all(stage.advice is None for stage in self.stages)


def plan_resources(recipe: Recipe, cluster: Cluster) -> Plan:
    """Return the plan of a recipe on a cluster, from the recipe and the base's configuration alone.

    Raises InputError for a base that cannot be used, groups that only the probe knows, or steps that the GPUs cannot
    share evenly.
    """
    models = models_of(recipe)
    rate = cluster.flops_per_second(dense_training_flops(recipe, models.base))
    train = recipe.train.model_copy(update={"gradient_checkpointing": True})
    checkpointed = recipe.model_copy(update={"train": train})
    both = zip(needs_of(recipe, models, cluster), needs_of(checkpointed, models, cluster), strict=True)
    stages = tuple(_planned(need, relieved, cluster, rate) for need, relieved in both)
    notes = list(models.notes)
    if recipe.evaluate.tokens is None:
        notes.append("evaluate.tokens: null is all text, which only a run reads; planned with the default's tokens")
    return Plan(recipe, cluster, stages, tuple(notes))


def _planned(need: Need, relieved: Need, cluster: Cluster, rate: float) -> StagePlan:
    """Return the plan of one stage; `relieved` is its need with gradient checkpointing."""
    largest = largest_micro_batch(need, cluster.usable)
    hours = need.flops / (rate * need.parallel) / 3600
    advice = None if need.total <= cluster.usable else _advice(need, relieved, cluster, largest)
    return StagePlan(need, largest, hours, advice)


def largest_micro_batch(need: Need, usable: float) -> int | None:
    """Return the most tokens that fit into `usable` bytes and divide a GPU's step; None where no sequence fits."""
    share = need.step_tokens // need.block_size
    free = usable - sum(need.fixed.values())
    most = int(free // (sum(need.per_token.values()) * need.block_size)) if free > 0 else 0
    fitting = next((n for n in range(min(most, share), 0, -1) if share % n == 0), None)
    return None if fitting is None else fitting * need.block_size


def _advice(need: Need, relieved: Need, cluster: Cluster, largest: int | None) -> str:
    """Return one sentence: what does not fit, and what to lower."""
    fixed, usable = sum(need.fixed.values()), cluster.usable
    size = f"{need.name} needs {need.total / GB:.1f} GB of each GPU, and {usable / GB:.1f} may be filled: "
    if need.name == "evaluate":
        return size + "one GPU scores a whole model, so lower evaluate.batch_tokens, or experts.budget or width"
    if fixed > usable:
        if need.name == "probe":
            return size + (
                "each GPU holds a whole model, so take probe.optimizer: sgd, or group by something that moves no "
                "weights (groups.source: representation, lexical, characters or given)"
            )
        if not need.shared:
            return size + "each GPU holds a whole model, so set train.sharding: fsdp, or make experts smaller"
        alone = fixed - need.shared
        if alone >= usable:
            return size + (
                "layers in full leave no room however many GPUs there are, so make experts smaller (experts.width, "
                "experts.budget) or leave out keyed rows (experts.rows: null)"
            )
        enough = ceil(need.shared * need.num_gpus / (usable - alone)) + 1
        more = f"give more GPUs (about {enough}) under train.sharding: fsdp, or smaller experts"
        return f"{size}before a single token, so {more}"
    ways = ["set train.gradient_checkpointing: true"] if relieved.total <= usable else []
    if largest is not None:
        ways.append(f"lower train.micro_batch_tokens to {largest} or less")
    elif not ways:
        best = largest_micro_batch(relieved, usable)
        if best is None or need.name == "probe":
            ways.append(f"shorten train.block_size, of which one sequence ({need.block_size} tokens) is too long")
        else:
            ways.append(f"set train.gradient_checkpointing: true and train.micro_batch_tokens to {best} or less")
    return size + ", or ".join(ways)


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan for machines: bytes of one GPU at the recipe's micro-batch, tokens, operations, hours."""
    cluster = plan.cluster
    return {
        "name": plan.recipe.name,
        "gpus": cluster.num_gpus,
        "gpu_memory_gb": cluster.memory_gb,
        "usable_bytes": round(cluster.usable),
        "fits": plan.fits,
        "notes": list(plan.notes),
        "stages": {
            stage.need.name: {
                "gpus": stage.need.num_gpus,
                "parameters": {"total": stage.need.num_parameters, "active": stage.need.num_active},
                "bytes": {name: round(n) for name, n in stage.need.memory(stage.need.micro_tokens).items()},
                "bytes_per_token": {name: round(n) for name, n in stage.need.per_token.items()},
                "total_bytes": round(stage.need.total),
                "micro_batch_tokens": stage.need.micro_tokens,
                "largest_micro_batch_tokens": stage.largest,
                "steps": stage.need.num_steps,
                "tokens": stage.need.tokens,
                "flops": stage.need.flops,
                "hours": stage.hours,
                "gpu_hours": stage.gpu_hours,
                "advice": stage.advice,
            }
            for stage in plan.stages
        },
    }


def _amount(value: float) -> str:
    """Return a number for people: three digits, more where they are whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(plan: Plan) -> list[str]:
    """Return the lines of a plan for people: a column for each stage."""
    stages, cluster = plan.stages, plan.cluster
    speed = (
        f"{cluster.tokens_per_second:,.0f} tokens a second of the dense base"
        if cluster.tokens_per_second is not None
        else f"{cluster.peak_tflops:g} TFLOP/s at {cluster.mfu:.0%}"
    )
    gpus = f"{cluster.num_gpus} GPU{'s' if cluster.num_gpus > 1 else ''}"
    names = list(dict.fromkeys(name for stage in stages for name in stage.need.memory(0)))
    per_token = [name for name in names if name in stages[-1].need.per_token]
    used = [stage.need.memory(stage.need.micro_tokens) for stage in stages]

    def row(label: str, values: list[str]) -> str:
        return f"{label:<24}" + "".join(f"{value:>16}" for value in values)

    lines = [f"{plan.recipe.name} on {gpus} of {cluster.memory_gb:g} GB, each {speed}", ""]
    lines.append(row("", [stage.need.name for stage in stages]))
    lines.append(row("GPUs", [str(stage.need.num_gpus) for stage in stages]))
    lines.append(row("parameters", [f"{stage.need.num_parameters:,}" for stage in stages]))
    lines.append(row("  active a token", [f"{stage.need.num_active:,}" for stage in stages]))
    lines.append(row("tokens at once, a GPU", [f"{stage.need.micro_tokens:,}" for stage in stages]))
    lines.append("GB of each GPU")
    for name in [name for name in names if name not in per_token] + per_token:
        if any(memory.get(name) for memory in used):
            cells = [_amount(memory[name] / GB) if memory.get(name) else "" for memory in used]
            lines.append(row(f"  {name}", cells))
    lines.append(row("  together", [_amount(stage.need.total / GB) for stage in stages]))
    verdict = ["yes" if stage.advice is None else "NO" for stage in stages]
    lines.append(row(f"  within {cluster.usable / GB:.1f} ({1 - HEADROOM:.0%})", verdict))
    lines.append(row("most tokens that fit", [f"{stage.largest:,}" if stage.largest else "none" for stage in stages]))
    lines.append(row("steps", [f"{stage.need.num_steps:,}" if stage.need.num_steps else "" for stage in stages]))
    lines.append(row("tokens", [f"{stage.need.tokens:,}" for stage in stages]))
    lines.append(row("operations", [f"{stage.need.flops:.3g}" for stage in stages]))
    lines.append(row("hours", [_amount(stage.hours) for stage in stages]))
    lines.append(row("GPU-hours", [_amount(stage.gpu_hours) for stage in stages]))
    together = sum(stage.gpu_hours for stage in stages)
    lines += ["", f"{_amount(sum(stage.hours for stage in stages))} hours, {_amount(together)} GPU-hours"]
    lines += [f"does not fit: {stage.advice}" for stage in stages if stage.advice is not None]
    return lines + [f"note: {note}" for note in plan.notes]
