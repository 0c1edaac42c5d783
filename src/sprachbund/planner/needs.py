"""What each stage of a recipe needs of every GPU, and how much there is to compute.

Under `train.sharding: fsdp` trainings are sharded by decoder layer: weights, gradients and AdamW states in equal
shares, beside them the layers at work in full (`footprint.at_work_bytes`); otherwise each GPU holds a whole model, and
several hold the gradients once more, to add them up. The probe has one language, and one whole model, on each GPU;
evaluation runs on one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sprachbund.compare.cost import flops_per_token, parameters_used, training_flops
from sprachbund.errors import InputError
from sprachbund.evaluation.metrics import ROUTINGS
from sprachbund.evaluation.perplexity import LOGITS_AT_ONCE
from sprachbund.modeling.ffn import family_of
from sprachbund.modeling.footprint import (
    Arithmetic,
    Kept,
    at_work_bytes,
    cast_bytes,
    kept_per_token,
    layers_of,
    training_state,
)
from sprachbund.modeling.likelihood import FLOATS_AT_ONCE
from sprachbund.modeling.parameters import count_parameters
from sprachbund.planner.cluster import Cluster
from sprachbund.planner.models import Models
from sprachbund.recipe import Evaluate, Recipe
from sprachbund.run.probing import MODEL_SOURCES, STATES_AT_ONCE, probe_batch, probe_micro_batch, probed_layers
from sprachbund.training.stages import TrainingPlan, micro_batch, plan_base, plan_training

RECOMPUTED = 4 / 3  # forward, forward again, backward (two forwards' worth), against three without checkpointing


@dataclass(frozen=True)
class Need:
    """One stage: bytes of a GPU by what they are for, `fixed` ones and those of each token of a micro-batch.

    `shared`, of the fixed bytes, are the GPU's share of what all of them hold together, 0 where each holds a whole
    model. `step_tokens` are a GPU's tokens of one step, `micro_tokens` what the recipe gives it at once (None: nothing
    to choose), both multiples of `block_size`. `parallel` GPUs work at the same time, on average; `flops` counts
    recomputation.
    """

    name: str
    num_gpus: int
    num_parameters: int
    num_active: int
    fixed: dict[str, float]
    shared: float
    per_token: dict[str, float]
    step_tokens: int
    micro_tokens: int
    block_size: int
    num_steps: int
    tokens: int
    flops: float
    parallel: float

    def memory(self, micro_tokens: int) -> dict[str, float]:
        """Return the bytes of a GPU by what they are for, at so many tokens at once."""
        return self.fixed | {name: size * micro_tokens for name, size in self.per_token.items()}

    @property
    def total(self) -> float:
        """Bytes of a GPU at the recipe's micro-batch."""
        return sum(self.memory(self.micro_tokens).values())


def needs_of(recipe: Recipe, models: Models, cluster: Cluster) -> list[Need]:
    """Return what the stages need, in their order.

    Raises InputError for a step whose sequences the GPUs cannot share evenly.
    """
    needs = []
    if recipe.base.scratch is not None:
        plan, key = plan_base(recipe.base.scratch, recipe), "base.scratch.tokens_per_step"
        needs.append(_training("base", models.base, plan, recipe, cluster, key))
    if set(recipe.probe_sources()) & set(MODEL_SOURCES):
        needs.append(_probe(recipe, models.base, cluster))
    plan, key = plan_training(recipe), "train.tokens_per_step"
    if recipe.dense.train:
        needs.append(_training("dense", models.base, plan.dense(), recipe, cluster, key))
    needs.append(_training("train", models.mixture, plan, recipe, cluster, key))
    needs.append(_evaluation(recipe, models))
    return needs


def dense_training_flops(recipe: Recipe, base: Any) -> float:
    """Return the operations of training the dense base on one token, with what gradient checkpointing recomputes."""
    again = RECOMPUTED if recipe.train.gradient_checkpointing else 1.0
    return 3 * again * flops_per_token(base, routing=None, context=recipe.train.block_size)


def _training(name: str, model: Any, plan: TrainingPlan, recipe: Recipe, cluster: Cluster, key: str) -> Need:
    block_size, num_gpus = recipe.train.block_size, cluster.num_gpus
    if plan.batch_size % num_gpus:
        raise InputError(
            f"{key}: a step is {plan.batch_size} sequences of {block_size} tokens, which {num_gpus} GPUs cannot share "
            f"evenly; give a multiple of {num_gpus * block_size} tokens, or other --gpus"
        )
    share = plan.batch_size // num_gpus
    micro = micro_batch(share, plan.micro_batch_size)
    arithmetic: Arithmetic = "autocast" if plan.bfloat16 else "float32"
    chosen = max((_experts_per_token(model, stage.routing) for stage in plan.stages), default=1)
    kept = kept_per_token(model, arithmetic=arithmetic, block_size=block_size, experts_per_token=chosen)
    state, counts = training_state(model), parameters_used(model, routing=plan.stages[-1].routing)
    parts = num_gpus if plan.sharded else 1
    held = {
        "weights": state.weights / parts,
        "gradients": state.gradients / parts,
        "AdamW states": state.optimizer / parts,
    }
    alike = {
        "weights at work": at_work_bytes(model, num_gpus=parts),
        "gradient buckets": state.gradients if num_gpus > parts else 0,
        "bfloat16 copies": cast_bytes(model) if plan.bfloat16 else 0,
    }
    again = RECOMPUTED if plan.gradient_checkpointing else 1.0
    return Need(
        name,
        num_gpus,
        counts.total,
        counts.active,
        fixed=held | alike,
        shared=sum(held.values()) if num_gpus == parts else 0,
        per_token=_per_token(kept, checkpointing=plan.gradient_checkpointing),
        step_tokens=share * block_size,
        micro_tokens=micro * block_size,
        block_size=block_size,
        num_steps=plan.num_steps,
        tokens=plan.num_steps * plan.batch_size * block_size,
        flops=again * training_flops(model, plan, context=block_size),
        parallel=num_gpus,
    )


def _experts_per_token(model: Any, routing: str | None) -> int:
    return int(model.config.num_experts_per_tok) if routing in ("top_k", "alternate") else 1


def _per_token(kept: Kept, *, checkpointing: bool) -> dict[str, float]:
    return {"activations": kept.activations(checkpointing=checkpointing), "logits": kept.logits}


def _probe(recipe: Recipe, model: Any, cluster: Cluster) -> Need:
    """Return what the probe needs: one language after the other on each GPU, all of the model on each."""
    settings, block_size, num_languages = recipe.probe, recipe.train.block_size, len(recipe.languages)
    sources, batch = recipe.probe_sources(), probe_batch(recipe)
    arithmetic: Arithmetic = "bfloat16" if recipe.train.dtype == "bfloat16" else "float32"
    kept = kept_per_token(model, arithmetic=arithmetic, block_size=block_size)
    passes = sum(source in sources for source in ("deviation", "gradient"))
    tokens = passes * settings.repeats * settings.steps * batch * block_size * num_languages
    forward = flops_per_token(model, routing=None, context=block_size)
    sentences = settings.num_sentences * block_size * num_languages if "representation" in sources else 0
    busy = min(cluster.num_gpus, num_languages)
    rounds = -(-num_languages // busy)
    counts, micro = count_parameters(model), probe_micro_batch(recipe) * block_size
    per_token = _per_token(kept, checkpointing=False)
    if not passes:  # hidden states are read, nothing is kept for a backward pass
        micro = max(min(micro, STATES_AT_ONCE) // block_size, 1) * block_size
        per_token = {"activations": max(kept.layers) + kept.inputs * (len(kept.layers) + 1)}
    return Need(
        "probe",
        busy,
        counts.total,
        counts.active,
        fixed=_probe_state(recipe, model),
        shared=0,
        per_token=per_token,
        step_tokens=batch * block_size,
        micro_tokens=micro,
        block_size=block_size,
        num_steps=passes * settings.repeats * settings.steps * num_languages,
        tokens=tokens or sentences,
        flops=forward * (3 * tokens + sentences),
        parallel=num_languages / rounds,
    )


def _probe_state(recipe: Recipe, model: Any) -> dict[str, float]:
    """Return the bytes that a language's probe holds; a bfloat16 model is moved through float32 twins."""
    size, settings = count_parameters(model).total, recipe.probe
    bfloat16 = recipe.train.dtype == "bfloat16"
    of_weight = 2 if bfloat16 else 4
    sources = recipe.probe_sources()
    family = family_of(model.config.model_type)
    layers = layers_of(model)
    compared = sum(
        parameter.numel()
        for layer in probed_layers(settings.layers, len(layers))
        for parameter in getattr(layers[layer], family.ffn).parameters()
        if parameter.dim() > 1
    )
    state: dict[str, float] = {"weights": of_weight * size, "copy to restore": of_weight * size}
    if "deviation" in sources:
        state["float32 twins"] = 4 * size if bfloat16 else 0
        state["gradients"] = (2 + 4) * size if bfloat16 else 4 * size
        state["AdamW states"] = 8 * size if settings.optimizer == "adamw" else 0
        state["sums of deviations"] = 4 * compared if settings.repeats > 1 else 0
    elif "gradient" in sources:
        state["gradients"] = ((2 + 4 if bfloat16 else 4) + 4) * compared
    return state


def _evaluation(recipe: Recipe, models: Models) -> Need:
    """Return what scoring needs: every model by itself on one GPU, in the recipe's arithmetic, forward only."""
    settings, base, mixture = recipe.evaluate, models.base, models.mixture
    window = settings.window or recipe.train.block_size
    of_number = 2 if recipe.train.dtype == "bfloat16" else 4
    texts = (settings.tokens or Evaluate.model_fields["tokens"].default) * len(recipe.languages)
    read = texts * (1 + window / (window - settings.burn_in))  # windows side by side, then overlapping
    num_dense = 1 + recipe.dense.train
    forward = num_dense * flops_per_token(base, routing=None, context=window)
    forward += sum(flops_per_token(mixture, routing=routing, context=window) for routing in ROUTINGS)
    vocab_size, counts = base.config.vocab_size, count_parameters(mixture)
    at_once = max(min(settings.batch_tokens, LOGITS_AT_ONCE // vocab_size) // window, 1) * window
    tables = 2 if hasattr(mixture.get_output_embeddings(), "delta") else 1  # by group, and in the order of the text
    arithmetic: Arithmetic = "bfloat16" if of_number == 2 else "float32"
    kept = kept_per_token(
        mixture, arithmetic=arithmetic, block_size=window, experts_per_token=mixture.config.num_experts_per_tok
    )
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in mixture.buffers())
    return Need(
        "evaluate",
        1,
        counts.total,
        counts.active,
        fixed={"weights": of_number * counts.total + buffers, "logits in float32": 3 * 4 * FLOATS_AT_ONCE},
        shared=0,
        per_token={"activations": max(kept.layers), "logits": tables * of_number * vocab_size},
        step_tokens=at_once,
        micro_tokens=at_once,
        block_size=window,
        num_steps=0,
        tokens=round(read * (num_dense + len(ROUTINGS))),
        flops=read * forward,
        parallel=1,
    )
