"""The recipe: everything a run needs, validated before anything is loaded.

Every default names its source: [paper] is DMoE (Li et al., Findings of ACL 2025, and its released code),
[ours] is where we differ from it; docs/results.md measures the two as a whole. Unknown keys are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from sprachbund.errors import InputError
from sprachbund.languages import canonical

Routing = Literal["group", "prefix", "top_k"]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=10)]
Share = Annotated[float, Field(gt=0, le=1)]


class Part(BaseModel):
    """A part of a recipe: unknown keys are errors, values do not change once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Scratch(Part):
    """A base made on the spot: a byte-level BPE tokenizer and a small decoder trained on the mixture."""

    family: Literal["llama", "qwen3"] = Field("qwen3", description="architecture of the base")
    hidden_size: Positive = Field(64, description="model width D")
    num_layers: Positive = Field(4, description="decoder layers")
    ffn_size: Positive = Field(256, description="FFN width F")
    num_heads: Positive = Field(2, description="attention heads; must divide hidden_size")
    vocab_size: int = Field(2048, ge=260, description="entries of the byte-level BPE vocabulary")
    tokens: Positive = Field(2_300_000, description="tokens to train the base on")
    tokens_per_step: Positive = Field(9216, description="tokens of one optimizer step of the base")
    learning_rate: Rate = Field(5e-3, description="peak learning rate of the base")

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide hidden_size = {self.hidden_size} into even heads"
            )
        return self


class Base(Part):
    """The dense decoder to start from: a Hub id, a local folder, or `scratch`."""

    path: str | None = Field(None, description="Hub id or local folder of a dense decoder (llama or qwen3 family)")
    revision: str = Field("main", description="Hub revision (branch, tag or commit)")
    trust_remote_code: bool = Field(False, description="run Python code shipped with the checkpoint; off for safety")
    scratch: Scratch | None = Field(None, description="make a small base on the spot instead; no download")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of: path (a Hub id or folder) and scratch")
        return self


class Source(Part):
    """Where the text of one language comes from: a file, the Hub, or the embedded CLDR corpus."""

    file: str | None = Field(
        None, description=".jsonl, .txt or .parquet, each also .gz or .zst; {split} stands for train, dev, test"
    )
    field: str = Field("text", description="name of the text field in .jsonl and .parquet files and on the Hub")
    hub: str | None = Field(None, description="Hub data set id, streamed")
    name: str | None = Field(None, description="configuration of the Hub data set")
    split: str = Field("train", description="split of the Hub data set; ours are cut from it")
    revision: str = Field("main", description="revision of the Hub data set")
    cldr: str | None = Field(None, description="locale of the embedded CLDR corpus, for example ro or sr_Cyrl")
    lines: Positive = Field(3000, description="lines to render from CLDR")
    max_documents: Positive | None = Field(None, description="read at most so many documents")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.file, self.hub, self.cldr)) != 1:
            raise ValueError("give exactly one of: file, hub, cldr")
        return self


class Splits(Part):
    """Shares of documents held out where the source has no splits of its own."""

    dev: Share = Field(0.05, description="share of documents to choose settings on (evaluate.split: dev)")
    test: Share = Field(0.05, description="share of documents for the final numbers")

    @model_validator(mode="after")
    def _leaves_train(self) -> Self:
        if self.dev + self.test >= 1:
            raise ValueError(f"dev = {self.dev:g} and test = {self.test:g} leave nothing to train on; sum below 1")
        return self


class Mixture(Part):
    """How many tokens each language gives to training."""

    method: Literal["temperature", "unimax", "given"] = Field(
        "temperature", description="share ~ bytes^temperature [paper]; unimax (Chung et al. 2023); or given shares"
    )
    temperature: float = Field(0.3, ge=0, le=1, description="exponent on the number of bytes [paper: 0.3]")
    max_epochs: float = Field(4.0, gt=0, description="unimax: most passes over one language's text")
    shares: dict[str, float] | None = Field(None, description="given: a share per language; normalised to sum 1")
    balance_groups: bool = Field(
        True, description="every group gets the same number of tokens, the method shares them out inside it [paper]"
    )

    @model_validator(mode="after")
    def _given(self) -> Self:
        if (self.method == "given") != (self.shares is not None):
            raise ValueError("shares belong to method: given, and only to it")
        if self.shares is not None and not all(share > 0 for share in self.shares.values()):
            raise ValueError("every given share must be above 0")
        return self


class Probe(Part):
    """Fine-tune the base a few steps on each language alone and read the parameter deviations [paper]."""

    steps: Positive = Field(10, description="optimizer steps per language [paper: 10]")
    tokens_per_step: Positive = Field(1_048_576, description="tokens of one probe step [paper: 2048 x 512]")
    learning_rate: Rate = Field(8e-6, description="learning rate, falling linearly to zero [paper: 8e-6]")
    layers: str = Field(
        "all",
        pattern=r"^(all|last:[1-9]\d*)$",
        description="layers whose FFN deviations are compared: all, or the last N as last:N [paper: last:3]",
    )
    center: bool = Field(True, description="remove the mean deviation over languages before comparing [ours]")
    sketch_size: Positive = Field(65_536, description="floats kept per layer and language (CountSketch)")


class Groups(Part):
    """Which languages share an expert."""

    count: Positive = Field(6, description="number of groups K, at most the number of languages")
    method: Literal["greedy-exhaustive", "greedy-seeded"] = Field(
        "greedy-seeded", description="the paper's two algorithms: for 18 languages, and for 128 [paper]"
    )
    given: str | None = Field(None, description="a JSON file {tag: group}; nothing is computed then")


class Layers(Part):
    """Which layers become mixtures of experts: give one key, or the word `all`."""

    all: bool | None = Field(None, description="every layer [ours]")
    epsilon: float | None = Field(None, ge=0, le=1, description="normalised FFN deviation at least this [paper: 0.6]")
    top: Positive | None = Field(None, description="so many layers, largest deviation first")
    given: list[Annotated[int, Field(ge=0)]] | None = Field(None, description="layer numbers, counted from 0")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"all": True} if value == "all" else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.all, self.epsilon, self.top, self.given)) != 1 or self.all is False:
            raise ValueError("give exactly one of: all, epsilon, top, given")
        if self.given is not None and (not self.given or len(set(self.given)) != len(self.given)):
            raise ValueError(f"given must name at least one layer, each once; found {self.given}")
        return self


class Experts(Part):
    """What a group owns in a mixture layer."""

    kind: Literal["shared", "copy"] = Field(
        "shared",
        description="shared: the dense FFN stays, each group adds an expert that starts at zero [ours]; "
        "copy: each group owns a copy of the dense FFN [paper]",
    )
    width: Positive | None = Field(None, description="FFN width of a shared-kind expert; null: that of the dense FFN")
    num_experts_per_tok: Positive = Field(2, description="experts per token under top_k routing [paper: 2]")
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
    routing: Routing = Field("group", description="group: given ids; prefix: count-based; top_k: learned router")
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
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps with rising learning rate [paper: 0.03]")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay [paper: 0 in effect]")
    beta2: float = Field(0.95, gt=0, lt=1, description="second AdamW coefficient [paper: 0.999]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping [paper: 0.3]")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="arithmetic of training and of the saved model; the weights that train stay float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third slower")
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


def _by_tag(values: dict[Any, Any]) -> dict[str, Any]:
    """Return the values under canonical language tags; raises ValueError, as validators must."""
    names: dict[str, Any] = {}
    for given in values:
        try:
            tag = canonical(str(given))
        except InputError as error:
            raise ValueError(str(error)) from None
        if tag in names:
            raise ValueError(f"{names[tag]!r} and {given!r} are both {tag}; every language may be given once")
        names[tag] = given
    return {tag: values[given] for tag, given in names.items()}


class Recipe(Part):
    """A whole run."""

    name: str = Field(
        ...,
        pattern=r"^\w[\w.-]*$",
        description="name of the run: letters, digits, '.', '_' and '-', first a letter or digit",
    )
    preset: Literal["default", "paper", "native"] = Field(
        "default",
        description="starting values of probe, groups, layers, experts and train (sprachbund init --preset shows them)",
    )
    base: Base = Field(..., description="the dense multilingual decoder to start from")
    languages: dict[str, Source] = Field(..., min_length=2, description="language tag: source of its text")
    splits: Splits = Field(Splits(), description="held-out shares")
    mixture: Mixture = Field(Mixture(), description="tokens per language")
    probe: Probe = Field(Probe(), description="the probe")
    groups: Groups = Field(Groups(), description="the grouping")
    layers: Layers = Field(Layers(all=True), description="the mixture layers")
    experts: Experts = Field(Experts(), description="the experts and their router")
    train: Train = Field(..., description="training")
    dense: Dense = Field(Dense(), description="the dense control")
    evaluate: Evaluate = Field(Evaluate(), description="evaluation")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything that is drawn at random")

    @field_validator("languages", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return _by_tag(value)

    @field_validator("mixture")
    @classmethod
    def _shares(cls, mixture: Mixture, info: ValidationInfo) -> Mixture:
        if mixture.shares is None or "languages" not in info.data:
            return mixture
        shares = _by_tag(mixture.shares)
        if set(shares) != set(info.data["languages"]):
            odd = sorted(set(shares) ^ set(info.data["languages"]))
            raise ValueError(f"shares must name every language of the recipe and no other; differing: {', '.join(odd)}")
        return mixture.model_copy(update={"shares": shares})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.groups.given is None and self.groups.count > len(self.languages):
            raise ValueError(
                f"groups.count = {self.groups.count} is more than the {len(self.languages)} languages; "
                f"give at most {len(self.languages)}"
            )
        if self.base.scratch is not None:
            self._check_layers(self.base.scratch.num_layers)
        if self.experts.kind == "copy" and self.experts.width is not None:
            raise ValueError("experts.width belongs to experts.kind: shared; a copy has the dense FFN's width")
        if (self.evaluate.window or self.train.block_size) <= self.evaluate.burn_in:
            raise ValueError(
                f"evaluate.burn_in = {self.evaluate.burn_in} leaves nothing of a window of "
                f"{self.evaluate.window or self.train.block_size} tokens"
            )
        return self

    def _check_layers(self, num_layers: int) -> None:
        """Find layers that a base does not have now, not after it was trained."""
        if self.layers.top is not None and self.layers.top > num_layers:
            raise ValueError(f"layers.top = {self.layers.top} is more than the base's {num_layers} layers")
        if self.layers.given is not None and max(self.layers.given) >= num_layers:
            raise ValueError(
                f"layers.given names layer {max(self.layers.given)}; the base has layers 0 to {num_layers - 1}"
            )

    def tags(self) -> list[str]:
        """Return the canonical language tags in the order of the recipe."""
        return list(self.languages)

    def resolved(self, folder: Path) -> Recipe:
        """Return the recipe with every relative path made absolute, seen from `folder`."""

        def absolute(path: str | None) -> str | None:
            return path if path is None else str((folder / Path(path).expanduser()).resolve())

        languages = {
            tag: source.model_copy(update={"file": absolute(source.file)}) for tag, source in self.languages.items()
        }
        local = self.base.path is not None and (folder / Path(self.base.path).expanduser()).is_dir()
        base = self.base.model_copy(update={"path": absolute(self.base.path)}) if local else self.base
        groups = self.groups.model_copy(update={"given": absolute(self.groups.given)})
        return self.model_copy(update={"languages": languages, "base": base, "groups": groups})
