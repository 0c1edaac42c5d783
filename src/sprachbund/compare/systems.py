"""What a method trains and how it is scored: the protocol, and the two systems that a run has too.

A system that is not here has a module of its own (`ensemble`, `btx`, `tagged`); `system_of` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sprachbund.checksums import check_model
from sprachbund.evaluation import LanguageScores, TestText, score_language
from sprachbund.evaluation.metrics import ROUTINGS
from sprachbund.modeling import ParameterCounts, is_dmoe
from sprachbund.modeling.base import device, load_model
from sprachbund.run import learning
from sprachbund.training.stages import TrainingPlan, plan_training

if TYPE_CHECKING:
    from sprachbund.compare.methods import Method
    from sprachbund.grouping.greedy import Grouping
    from sprachbund.run.data import Corpora, PackedCorpora
    from sprachbund.run.directory import Run
    from sprachbund.run.planning import LayerPlan
    from sprachbund.run.probing import DenseBase
    from sprachbund.training import TrainingBlocks

DENSE = "dense"  # the routing of a model that has none
MODEL = "model"  # a job's folder of what it trained


@dataclass
class Job:
    """One training: a method at one learning rate and seed, which are those of `run.recipe`.

    `grouping` and `layers` are the method's. `stream` is the grouping of the comparison's own recipe, by which the
    sequences of every step are drawn: with the groups of each method, methods would train on other texts.
    """

    method: Method
    run: Run
    base: DenseBase
    packed: PackedCorpora
    corpora: Corpora
    tokenizer: Any
    grouping: Grouping
    layers: LayerPlan
    stream: Grouping

    def plan(self) -> TrainingPlan:
        """Return what each training step does, for a mixture; `.dense()` is that of a dense model."""
        return plan_training(self.run.recipe)

    def blocks(self, plan: TrainingPlan) -> TrainingBlocks:
        """Return the training sequences in their order: the same for every method of a comparison under one seed."""
        return learning.training_blocks(self.run, self.packed, self.stream, plan)


class Scorer(Protocol):
    """A trained system, loaded: how well it predicts a language.

    Attributes:
        parameters: all, and those that one token uses: under `top_k` where that is the headline, else its group known.
        routings: what `score` can be asked for, e.g. ("group", "prefix", "top_k"); of a dense model ("dense",).
        flops_per_token: floating-point operations to predict one token, likewise.
    """

    parameters: ParameterCounts
    routings: tuple[str, ...]
    flops_per_token: float

    def score(self, routing: str, tag: str, text: TestText) -> LanguageScores:
        """Return the scores of one language under one of `routings`."""
        ...


class System(Protocol):
    """A way of training."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train into `job.run.folder`; return at least `tokens`, `tokens_per_second` and `flops` (of training).

        It runs as the stage `train` of `job.run`, which has its fingerprint and adds up the seconds of interrupted
        attempts. A system of several trainings makes stages of its own inside it, so that what is done stays done.
        """
        ...

    def outputs(self, job: Job) -> list[str]:
        """Return the folders of the models that `train` leaves: their bytes are checked when they are loaded."""
        ...

    def scorer(self, job: Job) -> Scorer:
        """Load what `train` left in `job.run.folder`."""
        ...


class ModelScorer:
    """Scores one model, dense or mixture."""

    def __init__(self, model: Any, job: Job) -> None:
        from sprachbund.compare.cost import flops_per_token, parameters_used

        self.model, self.job = model, job
        used = "top_k" if is_dmoe(model) and job.method.keys.routing == "top_k" else "group"
        self.parameters = parameters_used(model, routing=used)
        self.routings: tuple[str, ...] = (DENSE,)
        if is_dmoe(model):  # with one group there is nothing to route
            self.routings = ROUTINGS if model.config.num_groups > 1 else ("group",)
        self.flops_per_token = flops_per_token(model, routing=used, context=job.run.recipe.train.block_size)

    def score(self, routing: str, tag: str, text: TestText) -> LanguageScores:
        """Return the scores of one language."""
        return score_language(self.model, text, **self.settings(routing, tag))

    def settings(self, routing: str, tag: str) -> dict[str, Any]:
        """Return the arguments of `score_language` for one language."""
        recipe = self.job.run.recipe
        return {
            "window": recipe.evaluate.window or recipe.train.block_size,
            "burn_in": recipe.evaluate.burn_in,
            "batch_tokens": recipe.evaluate.batch_tokens,
            "routing": None if routing == DENSE else routing,
            "group": self.model.config.groups[tag] if is_dmoe(self.model) else None,
        }


def load_trained(job: Job, name: str = MODEL, *, dtype: str | None = None) -> Any:
    """Return the model that a job has saved under a name, on the device.

    Raises DamagedError where a file of it is not what was written.
    """
    check_model(job.run.path(name))
    return load_model(job.run.path(name), dtype=dtype or job.run.recipe.train.dtype).to(device()).eval()


class DenseSystem:
    """The base trained on, as it is."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train a copy of the base."""
        return train_model(job, job.base.load(dtype="float32"), job.plan().dense())

    def outputs(self, job: Job) -> list[str]:
        """Return where the trained model is."""
        return [MODEL]

    def scorer(self, job: Job) -> ModelScorer:
        """Load the trained model."""
        return ModelScorer(load_trained(job), job)


class BaseSystem:
    """The base as it is: nothing is trained."""

    def train(self, job: Job) -> dict[str, Any]:
        """Do nothing."""
        return {"tokens": 0, "tokens_per_second": 0.0, "flops": 0.0}

    def outputs(self, job: Job) -> list[str]:
        """Return nothing."""
        return []

    def scorer(self, job: Job) -> ModelScorer:
        """Load the base."""
        return ModelScorer(job.base.load(), job)


class MixtureSystem:
    """The base expanded by the job's recipe, groups and layers, and trained."""

    def train(self, job: Job) -> dict[str, Any]:
        """Expand the base and train the mixture."""
        model = learning.expand_base(job.run, job.base, job.packed, job.grouping, job.layers)
        return train_model(job, model, job.plan())

    def outputs(self, job: Job) -> list[str]:
        """Return where the trained model is."""
        return [MODEL]

    def scorer(self, job: Job) -> ModelScorer:
        """Load the trained mixture."""
        return ModelScorer(load_trained(job), job)


def train_model(job: Job, model: Any, plan: TrainingPlan) -> dict[str, Any]:
    """Train one model on all of the job's sequences into RUN/model, as the stage `train`; return the facts."""
    from sprachbund.compare.cost import training_flops

    paths: Mapping[str, int] = model.config.groups if is_dmoe(model) else {}
    blocks = job.blocks(plan)
    flops = training_flops(model, plan, context=blocks.block_size)
    facts = learning.run_training(
        job.run,
        "train",
        model,
        blocks,
        plan,
        groups=[paths.get(tag, 0) for tag in job.packed.train],
        tokenizer=job.tokenizer,
        keep=job.run.path(MODEL),
    )
    return {**facts, "flops": flops}


def system_of(method: Method) -> System:
    """Return the system that a method trains; what is not needed is not imported."""
    if method.system == "ensemble":
        from sprachbund.compare.ensemble import EnsembleSystem

        return EnsembleSystem()
    if method.system == "btx":
        from sprachbund.compare.btx import BtxSystem

        return BtxSystem()
    if method.tag:
        from sprachbund.compare.tagged import TaggedSystem

        return TaggedSystem()
    systems: dict[str, System] = {"mixture": MixtureSystem(), "dense": DenseSystem(), "base": BaseSystem()}
    return systems[method.system]
