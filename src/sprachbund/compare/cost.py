"""What a model costs to train and to run, in floating-point operations, by the usual count.

Forward, one token takes 2 operations for each parameter that it is multiplied with, and 4 * M * H * T for attention
over T tokens (M layers, H numbers per token over all heads): the scores and the weighted sum, not halved for
causality. Training takes three times as much: 6 N + 12 M H T (Kaplan et al. 2020; Chowdhery et al. 2022, appendix B).
The product with the output embeddings counts, whether they are tied or not; looking up the input ones costs nothing.
"""

from __future__ import annotations

from typing import Any

from sprachbund.modeling import ParameterCounts, count_parameters, is_dmoe
from sprachbund.modeling.model import mixture_layers
from sprachbund.training.stages import TrainingPlan


def matmul_parameters(model: Any, *, routing: str | None = "group") -> int:
    """Return how many parameters one token is multiplied with.

    Not among them: norms and biases (vectors), input embeddings that are not the output ones as well, and in a mixture
    the experts that the token does not use. Keyed output rows are added to the shared ones before the one product with
    both (keyed_product.py). Under `top_k` it uses `num_experts_per_tok` of them and the router, else
    one; `alternate` is the mean of the two.
    """
    if routing == "alternate":
        return sum(matmul_parameters(model, routing=either) for either in ("group", "top_k")) // 2
    used = count_parameters(model).active
    used -= sum(parameter.numel() for parameter in model.parameters() if parameter.dim() < 2)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {
        id(rows): rows.numel() // len(rows)
        for end in (inputs, outputs)
        if (rows := getattr(end, "delta", None)) is not None
    }
    used -= sum(tables.values())  # of keyed rows a token's path reads one table
    if inputs.weight is not outputs.weight:
        used -= inputs.weight.numel()
    if routing == "top_k" and is_dmoe(model):
        for moe in mixture_layers(model):
            num_experts = moe.experts.num_experts
            bank = sum(parameter.numel() for parameter in moe.experts.parameters(recurse=False))
            further = min(model.config.num_experts_per_tok, num_experts) - 1
            used += further * (bank // num_experts) + moe.gate.weight.numel()
    return int(used)


def parameters_used(model: Any, *, routing: str | None) -> ParameterCounts:
    """Return a model's parameters, all and those that one token uses under a routing: `top_k` uses several experts."""
    counts = count_parameters(model)
    further = matmul_parameters(model, routing=routing) - matmul_parameters(model)
    return ParameterCounts(counts.total, counts.active + further)


def flops_per_token(model: Any, *, routing: str | None, context: int) -> float:
    """Return the operations of one forward pass, per token, at `context` tokens per sequence."""
    config = model.config
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * heads * context
    return float(2 * matmul_parameters(model, routing=routing) + attention)


def training_flops(model: Any, plan: TrainingPlan, *, context: int) -> float:
    """Return the operations of a whole training by a plan: each stage by its routing. Counted once per token, so what
    a step recomputes (gradient checkpointing) is left out.
    """
    total, begun = 0.0, 0
    for stage in plan.stages:
        tokens = (stage.end - begun) * plan.batch_size * context
        total += 3 * tokens * flops_per_token(model, routing=stage.routing, context=context)
        begun = stage.end
    return total
