"""Branch-Train-Mix (Sukhbaatar et al. 2024, arXiv 2403.07816) over groups of languages.

A dense model for each group is trained apart; their FFNs then become the experts of a mixture, whose other weights are
the models' mean, and the mixture is trained on, all of it, under `top_k` with a balance loss.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sprachbund.compare.branches import load_branches, seconds_of, train_branches
from sprachbund.compare.cost import training_flops
from sprachbund.compare.systems import MODEL, ModelScorer, load_trained
from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob
from sprachbund.modeling.average import branch_train_mix
from sprachbund.modeling.base import device
from sprachbund.run.learning import run_training
from sprachbund.training.stages import StagePlan, TrainingPlan

if TYPE_CHECKING:
    from sprachbund.compare.systems import Job

BALANCE_LOSS = 0.01  # the paper's


def split_plan(plan: TrainingPlan, *, branch_share: float) -> tuple[TrainingPlan, TrainingPlan]:
    """Return the plan of the branches' training, over the first share of the steps, and that of the mixture's.

    Each has warm-up and cosine of its own; router and experts learn at the model's rate, and of the recipe's stages
    nothing counts. Raises InputError where one of the two has no step.
    """
    first = round(branch_share * plan.num_steps)
    rest = plan.num_steps - first
    if not (first and rest):
        raise InputError(
            f"branch_share = {branch_share:g} of {plan.num_steps} training steps leaves none for "
            f"{'the mixture' if first else 'the branches'}; give another share between 0 and 1, or more train.tokens"
        )
    one = replace(plan, router_learning_rate=None, expert_rate_factor=1.0)
    branches = replace(one, num_steps=first, stages=(StagePlan(first, None),))
    mixture = replace(one, num_steps=rest, stages=(StagePlan(rest, "top_k", balance_loss=BALANCE_LOSS),))
    return branches, mixture


class BtxSystem:
    """Branch-Train-Mix: the same tokens in all, in the same order, as every other method."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train the branches, mix them, and train the mixture into RUN/model."""
        plan = job.plan()
        blocks = job.blocks(plan)
        first, rest = split_plan(plan, branch_share=job.method.branch_share)
        begin = first.num_steps * plan.batch_size  # in sequences
        apart = train_branches(job, blocks.select(slice(0, begin)), first)
        model = mix(job)
        flops = training_flops(job.base.load(), first, context=blocks.block_size)
        flops += training_flops(model, rest, context=blocks.block_size)
        together = run_training(
            job.run,
            "train",
            model,
            blocks.select(slice(begin, None)),
            rest,
            groups=[model.config.groups[tag] for tag in job.packed.train],
            tokenizer=job.tokenizer,
            keep=job.run.path(MODEL),
        )
        tokens = apart["tokens"] + together["tokens"]
        seconds = sum(seconds_of(facts["tokens"], facts) for facts in (apart, together))
        return {"tokens": tokens, "tokens_per_second": round(tokens / seconds, 1), "flops": flops}

    def outputs(self, job: Job) -> list[str]:
        """Return where the trained model is."""
        return [MODEL]

    def scorer(self, job: Job) -> ModelScorer:
        """Load the mixture."""
        return ModelScorer(load_trained(job), job)


def mix(job: Job) -> Any:
    """Return the mixture of a job's trained branches, before its own training."""
    models = load_branches(job, dtype="float32")
    assignment = job.grouping.as_dict()
    streams = [packed.tokens for packed in job.packed.train.values()]
    return branch_train_mix(
        models,
        groups={tag: assignment[tag] for tag in job.packed.train},
        log_prob=count_log_prob(streams, vocab_size=models[0].config.vocab_size),
        num_experts_per_tok=job.run.recipe.experts.num_experts_per_tok,
        seed=job.run.recipe.seed,
    ).to(device())
