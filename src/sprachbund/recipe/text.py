"""The parts of a recipe about the base and the text: base, languages, splits, mixture."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sprachbund.recipe.part import Part, Positive, Rate, Share

BadLinePolicy = Literal["error", "skip"]


class Scratch(Part):
    """A base made on the spot: a byte-level BPE tokenizer and a small decoder trained on the mixture."""

    family: Literal["llama", "qwen3"] = Field("qwen3", description="architecture of the base")
    hidden_size: Positive = Field(64, description="model width D")
    num_layers: Positive = Field(4, description="decoder layers")
    ffn_size: Positive = Field(256, description="FFN width F")
    num_heads: Positive = Field(2, description="attention heads; must divide hidden_size")
    vocab_size: int = Field(2048, ge=260, description="entries of the byte-level BPE vocabulary that is trained")
    tokenizer: str | None = Field(None, description="folder of a tokenizer to use; null: one is trained")
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

    path: str | None = Field(None, description="Hub id or local folder of a dense decoder (families: models.md)")
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

    file: str | list[str] | None = Field(
        None,
        description=".jsonl, .txt or .parquet, each also .gz or .zst; {split} stands for train, dev, test; a pattern "
        "such as data/swh/*.jsonl.zst, or a list, for several (corpora.md)",
    )
    field: str = Field("text", description="name of the text field in .jsonl and .parquet files and on the Hub")
    hub: str | None = Field(None, description="Hub data set id, streamed")
    name: str | None = Field(None, description="configuration of the Hub data set")
    split: str = Field("train", description="split of the Hub data set; ours are cut from it")
    revision: str = Field("main", description="revision of the Hub data set")
    cldr: str | None = Field(None, description="locale of the embedded CLDR corpus, for example ro or sr_Cyrl")
    lines: Positive = Field(3000, description="lines to render from CLDR")
    max_documents: Positive | None = Field(None, description="read at most so many documents")
    keep: Share | None = Field(
        None, description="share of the train split that is kept, in stretches spread evenly over it; null: all"
    )
    on_bad_line: BadLinePolicy = Field(
        "error",
        description="a line that gives no document (not UTF-8, NUL, over 16 MiB, no JSON object, no text in the "
        "field): stop and name it, or leave it out and count it in audit and report",
    )
    family: str | None = Field(
        None, min_length=1, description="language family, for groups.source: family and to judge groups by"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | list) else value

    @field_validator("file", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        paths = value if isinstance(value, list) else [value]
        if value is not None and (not paths or not all(isinstance(path, str) and path for path in paths)):
            raise ValueError(f"found {value!r}; give a path, or a list of paths")
        return value

    def patterns(self) -> list[str]:
        """Return the paths of `file`, in which there may be wildcards and {split}; none where it is not given."""
        return [self.file] if isinstance(self.file, str) else list(self.file or [])

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
