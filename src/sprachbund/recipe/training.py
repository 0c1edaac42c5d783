"""The parts of a recipe about experts, training and evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from sprachbund.recipe.part import Part, Positive, Rate, Share

Routing = Literal["group", "prefix", "top_k", "alternate"]


class Experts(Part):
    """What a group owns in a mixture layer."""

    kind: Literal["shared", "copy", "adapter", "hierarchy"] = Field(
        "shared",
        description="shared: the dense FFN stays, each group adds an expert that starts at zero [ours]; "
        "copy: each group owns a copy of the dense FFN [paper]; adapter: a bottleneck on the FFN's output (X-MOD, "
        "Pfeiffer et al. 2022); hierarchy: shared, and a small expert for each language beside its group's [ours]",
    )
    by: Literal["group", "language"] = Field(
        "group",
        description="whose an expert is: its group's, or one for each language, whatever the groups; a hierarchy has "
        "both, and layers.layerwise shares experts between groups",
    )
    width: Positive | None = Field(
        None, description="units of an expert; null: as many as the dense FFN has (adapter: half the model's width)"
    )
    language_width: Positive | None = Field(
        None, description="hierarchy: units of a language's own expert; null: a sixth of the group's"
    )
    budget: float | None = Field(
        None,
        gt=1,
        description="where width is null: as wide as all parameters within this multiple of the base's allow, at most "
        "as the dense FFN; copies have its width",
    )
    rank: Positive | None = Field(None, description="experts in low-rank factors of so many columns; null: full rank")
    rows: Literal["group", "language", "all"] | None = Field(
        None,
        description="what each group, or each language, adds to the embedding and output rows, starting at zero; "
        "all: one such table for everybody (a control)",
    )
    rate_factor: float = Field(
        1.0, gt=0, description="learning rate of experts and keyed rows as a multiple of the model's"
    )
    num_experts_per_tok: Positive = Field(2, description="experts per token under top_k routing [paper: 2]")
    gate_pairs: int = Field(
        0,
        ge=0,
        description="prefix routing: the count gate also knows so many pairs of neighbouring tokens, which tell a "
        "text's language sooner; each takes a number for every language [ours]",
    )
    router_gradient: Literal["detach", "through"] = Field(
        "detach", description="does the router's loss reach the language model? [paper: through] [ours: detach]"
    )
    router_rate_factor: float = Field(
        4.0, gt=0, description="the router's learning rate as a multiple of the model's [ours: 4] [paper: 1]"
    )
    router_init: Literal["zero", "normal"] = Field("normal", description="normal: standard deviation 0.02 [paper]")


class Stage(Part):
    """One stage of training."""

    share: Share = Field(..., description="share of the training tokens")
    routing: Routing = Field(
        "group",
        description="group: given ids; prefix: count-based; top_k: learned router; alternate: group and top_k in turns",
    )
    router_loss: float = Field(0.0, ge=0, description="weight of the router's cross-entropy to the group [paper: 1.28]")
    balance_loss: float = Field(0.0, ge=0, description="weight of the Switch balance loss (Fedus et al. 2022)")
    learning_rate: Rate | None = Field(None, description="peak rate of this stage; null: train.learning_rate")


class Train(Part):
    """Continued training of the mixture, and of the dense control on the same tokens in the same order."""

    tokens: Positive = Field(..., description="training tokens, all stages together")
    tokens_per_step: Positive = Field(524_288, description="tokens of one optimizer step [paper: 1,966,080]")
    micro_batch_tokens: Positive | None = Field(None, description="tokens on the device at once; null: the whole step")
    block_size: int = Field(2048, ge=8, description="tokens of one training sequence [paper: 2048]")
    learning_rate: Rate = Field(1e-4, description="peak learning rate, cosine to zero [paper: 1e-4]")
    cosine: Literal["run", "stage"] = Field(
        "run", description="one cosine over the whole run, or one per stage [paper: stage]"
    )
    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the steps with rising learning rate [ours: 0.1] [paper: 0.03]"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay [paper: 0 in effect]")
    beta2: float = Field(0.95, gt=0, lt=1, description="second AdamW coefficient [paper: 0.999]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping [paper: 0.3]")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of training and of the saved model; the weights that train stay float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="several processes (torchrun): none: each holds the whole model; fsdp: each holds a part of its "
        "weights, gradients and optimizer states (FSDP2)",
    )
    checkpoints: int = Field(
        4, ge=0, description="checkpoints written for resuming, evenly spaced; the last two are kept; 0: none"
    )
    log_every: Positive | None = Field(None, description="optimizer steps between log lines; null: 100 lines in all")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="also log through the Trainer's integrations"
    )
    stages: list[Stage] = Field(..., min_length=1, description="the stages, in order; shares sum to 1")

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.tokens_per_step % self.block_size:
            raise ValueError(f"tokens_per_step = {self.tokens_per_step} is no multiple of block_size {self.block_size}")
        micro = self.micro_batch_tokens or self.tokens_per_step
        if micro % self.block_size or self.tokens_per_step % micro:
            raise ValueError(
                f"micro_batch_tokens = {micro} must be a multiple of block_size {self.block_size} "
                f"and divide tokens_per_step {self.tokens_per_step}"
            )
        if self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens = {self.tokens} is less than one step of {self.tokens_per_step}")
        if abs(sum(stage.share for stage in self.stages) - 1) > 1e-6:
            raise ValueError(f"the stages' shares sum to {sum(s.share for s in self.stages):g}; they must sum to 1")
        ends = self.stage_ends()
        if empty := [i for i, end in enumerate(ends) if end <= (ends[i - 1] if i else 0)]:
            raise ValueError(
                f"stages.{empty[0]} gets none of the {self.num_steps} steps; give it a larger share, or more tokens"
            )
        return self

    @property
    def num_steps(self) -> int:
        """Optimizer steps, all stages together."""
        return self.tokens // self.tokens_per_step

    @property
    def batch_size(self) -> int:
        """Sequences of one optimizer step."""
        return self.tokens_per_step // self.block_size

    def stage_ends(self) -> list[int]:
        """Return the first step after each stage."""
        shares = [sum(stage.share for stage in self.stages[: i + 1]) for i in range(len(self.stages))]
        return [round(share * self.num_steps) for share in shares[:-1]] + [self.num_steps]


class Dense(Part):
    """The dense control: the base trained on the same tokens in the same order."""

    train: bool = Field(True, description="train it; a result without it is not a result")
    keep: bool = Field(True, description="keep its checkpoint in RUN/dense")


class Evaluate(Part):
    """Perplexity and bits per byte on held-out text."""

    split: Literal["test", "dev"] = Field("test", description="score dev while you choose among settings, test once")
    burn_in: int = Field(32, ge=1, description="tokens of context that a position needs for the after-burn-in scores")
    window: int | None = Field(None, ge=8, description="tokens of one window; null: train.block_size")
    tokens: Positive | None = Field(
        65_536, description="score about so many tokens per language, whole documents; null: all"
    )
    batch_tokens: Positive = Field(
        8192, description="tokens on the device at once; fewer where the vocabulary is large"
    )
