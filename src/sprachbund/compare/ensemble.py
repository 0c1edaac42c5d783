"""One dense model for each group, and their ensemble: Branch-Train-Merge with groups of languages (X-ELM).

Sources: c-BTM (Gururangan et al. 2023, arXiv 2303.14177), X-ELM (Blevins et al. 2024, arXiv 2401.10440). They weigh the
models by how near the text so far is to each model's cluster, under TF-IDF; we by the posterior of the count table that
our mixtures' `prefix` routing reads, so that both know the same about the text.

Shapes: B sequences, T tokens, G groups (one model each), L languages, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sprachbund.compare.branches import branch_names, load_branches, train_branches
from sprachbund.compare.cost import flops_per_token, training_flops
from sprachbund.evaluation import LanguageScores, TestText, score_language
from sprachbund.modeling import ParameterCounts, count_log_prob, count_parameters
from sprachbund.modeling.gate import LanguageGate

if TYPE_CHECKING:
    from sprachbund.compare.systems import Job


class Ensemble:
    """Dense models as one: called like a model, it gives log-probabilities instead of logits.

    `routing`: `group` is the model of the given group alone; `prefix` mixes the probabilities of all models, weighted
    by the posterior of their groups given the tokens up to and including each position, which is what the next token is
    predicted from; `prefix-M` mixes the M likeliest only. A position costs as many forward passes as there are models.
    """

    def __init__(self, models: Sequence[Any], *, groups: Mapping[str, int], log_prob: Tensor) -> None:
        """Take a model for each group, {language tag: group} and the count table, (V, L), in the same order.

        Raises ValueError where models and groups differ in number.
        """
        if len(models) != len(set(groups.values())):
            raise ValueError(f"{len(models)} models for {len(set(groups.values()))} groups")
        self.models = list(models)
        self.device = models[0].device
        self.config = SimpleNamespace(vocab_size=models[0].config.vocab_size, num_groups=len(models))
        self.gate = LanguageGate(len(log_prob), list(groups.values()), len(models))
        self.gate.log_prob.copy_(log_prob)
        self.gate.to(self.device)

    def weights(self, input_ids: Tensor, *, top_m: int | None = None) -> Tensor:
        """Return the weight of every model at every position, (B, T, G), which sum to one.

        `top_m` keeps the likeliest so many and shares the rest's weight out among them in proportion (None: all).
        """
        scores_BTL = self.gate.language_scores(input_ids, None, None)
        log_weights_BTG = self.gate.group_log_posterior(scores_BTL)
        if top_m is not None and top_m < len(self.models):
            kept = log_weights_BTG.topk(top_m, dim=-1)
            log_weights_BTG = torch.full_like(log_weights_BTG, -torch.inf).scatter(-1, kept.indices, kept.values)
        return log_weights_BTG.softmax(-1)

    def __call__(
        self,
        input_ids: Tensor,
        *,
        routing: str = "prefix",
        group_ids: Tensor | None = None,
        use_cache: bool = False,
        output_router_logits: bool = False,
    ) -> Any:
        """Return `logits`, (B, T, V) log-probabilities, and `group_ids`, (B, T), the likeliest groups, as a mixture.

        `use_cache` and `output_router_logits` are what callers of a mixture say; there is nothing to cache or to give.
        Raises ValueError for `group` without group_ids or with several groups in one batch, and an unknown routing.
        """
        if routing == "group":
            if group_ids is None or bool((group_ids != group_ids[0]).any()):
                raise ValueError("routing = 'group' needs group_ids, the same for all sequences of a batch")
            logits_BTV = self.models[int(group_ids[0])](input_ids=input_ids, use_cache=False).logits
            return SimpleNamespace(logits=logits_BTV, group_ids=None)
        weights_BTG = self.weights(input_ids, top_m=_top_m(routing))
        return SimpleNamespace(logits=self._mixed(input_ids, weights_BTG), group_ids=weights_BTG.argmax(-1))

    def _mixed(self, input_ids: Tensor, weights_BTG: Tensor) -> Tensor:
        """Return log sum_g w_g p_g, (B, T, V); a model without weight in the whole batch is not run."""
        mixed_BTV: Tensor | None = None
        for model, weight_BT in zip(self.models, weights_BTG.unbind(-1), strict=True):
            if not bool((weight_BT > 0).any()):
                continue
            logits_BTV = model(input_ids=input_ids, use_cache=False).logits.float()
            logits_BTV = logits_BTV.log_softmax(-1) + weight_BT.log().unsqueeze(-1)
            mixed_BTV = logits_BTV if mixed_BTV is None else torch.logaddexp(mixed_BTV, logits_BTV)
        assert mixed_BTV is not None, "weights sum to one"
        return mixed_BTV


def _top_m(routing: str) -> int | None:
    """Return how many models `prefix` (None: all) or `prefix-M` mixes."""
    name, _, number = routing.partition("-")
    if name != "prefix" or (number and not (number.isdecimal() and int(number))) or routing.endswith("-"):
        raise ValueError(f"routing = {routing!r}; an ensemble has 'group', 'prefix' and 'prefix-M', M from 1")
    return int(number) if number else None


class EnsembleScorer:
    """Scores the models of the groups: each on its own languages (`group`), and as an ensemble that knows no language.

    `parameters.active` and `flops_per_token` are of one token whose group is known, hence of one model; under `prefix`
    a token costs as many times as much as there are models, which are `parameters.total`.
    """

    routings: tuple[str, ...] = ("group", "prefix", "prefix-1")

    def __init__(self, job: Job) -> None:
        models = load_branches(job, dtype=job.run.recipe.train.dtype)
        assignment = job.grouping.as_dict()
        self.groups = {tag: assignment[tag] for tag in job.packed.train}
        streams = [packed.tokens for packed in job.packed.train.values()]
        log_prob = count_log_prob(streams, vocab_size=models[0].config.vocab_size)
        self.ensemble = Ensemble(models, groups=self.groups, log_prob=log_prob)
        one = count_parameters(models[0]).total
        self.parameters = ParameterCounts(len(models) * one, one)
        self.settings = job.run.recipe.evaluate
        self.window = self.settings.window or job.run.recipe.train.block_size
        self.flops_per_token = flops_per_token(models[0], routing=None, context=job.run.recipe.train.block_size)

    def score(self, routing: str, tag: str, text: TestText) -> LanguageScores:
        """Return the scores of one language."""
        return score_language(
            self.ensemble,
            text,
            window=self.window,
            burn_in=self.settings.burn_in,
            batch_tokens=self.settings.batch_tokens,
            routing=routing,
            group=self.groups[tag],
        )


class EnsembleSystem:
    """One dense model for each group, trained apart; the same tokens and steps in all as one model's."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train the models of the groups."""
        plan = job.plan().dense()
        blocks = job.blocks(plan)
        flops = training_flops(job.base.load(), plan, context=blocks.block_size)
        return {**train_branches(job, blocks, plan), "flops": flops}

    def outputs(self, job: Job) -> list[str]:
        """Return where the models of the groups are."""
        return branch_names(job)

    def scorer(self, job: Job) -> EnsembleScorer:
        """Load the models."""
        return EnsembleScorer(job)
