"""What `sprachbund adapt` does: the settings of an adaptation, kept in RUN2/adapt.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sprachbund.recipe.part import Part, Positive, Rate
from sprachbund.recipe.text import Source, Splits
from sprachbund.recipe.training import Evaluate

PathChoice = Literal["full", "lean", "small", "rows", "expert", "paper"]
Gate = Literal["mixture", "counts"]


class Adaptation(Part):
    """New languages for a model that exists, and how they are trained; `protect` are the languages that it has."""

    source: str = Field(..., description="the run, folder or Hub id of the model")
    languages: dict[str, Source] = Field(..., min_length=1, description="the new languages and their corpora")
    protect: dict[str, Source] = Field({}, description="corpora of the languages that the model has, to measure them")
    path: PathChoice = Field("full", description="what a new language owns")
    together: Positive | None = Field(
        None, description="number of paths that the new languages share, similar ones by their tokens; null: one each"
    )
    start: str | None = Field(None, description="a language of the model whose path or group the new ones start from")
    join: str | None = Field(None, description="train what a group, by its number or a language of it, owns further")
    gate: Gate = Field("mixture", description="how text that nothing is said about finds it")
    prior: float = Field(1e-3, gt=1e-6, le=0.5, description="mixture: the probability of each path before any token")
    advantage: float = Field(5.0, ge=0, description="counts: by how many nats a path must be ahead of all others")
    width: Positive | None = Field(None, description="width of the path's experts; null: as the kind of path says")
    rank: Positive | None = Field(None, description="rank of the path's changes of the attention; null: as it says")
    extend_vocab: Positive | None = Field(None, description="tokens that each path has beyond the vocabulary")
    tokens: Positive | None = Field(None, description="training tokens per path; null: two passes over its text")
    tokens_per_step: Positive = Field(..., description="tokens of one optimizer step")
    block_size: int = Field(..., ge=8, description="tokens of one training sequence")
    learning_rate: Rate = Field(..., description="peak learning rate; a tenth of the steps warms up, cosine to zero")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of the training")
    checkpoints: int = Field(4, ge=0, description="checkpoints per path, to resume from")
    splits: Splits = Splits()
    evaluate: Evaluate = Evaluate()
    max_forgetting: float = Field(0.001, ge=0, description="what a language may lose, as a share of its perplexity")
    force: bool = Field(False, description="train also where the text seems to be of another language or script")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.tokens_per_step % self.block_size:
            raise ValueError(f"tokens_per_step = {self.tokens_per_step} is no multiple of block_size {self.block_size}")
        if self.tokens is not None and self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens = {self.tokens} is less than one step of {self.tokens_per_step}")
        if (self.evaluate.window or self.block_size) <= self.evaluate.burn_in:
            raise ValueError(
                f"a burn-in of {self.evaluate.burn_in} tokens leaves nothing of a window of "
                f"{self.evaluate.window or self.block_size}"
            )
        if self.join is not None and (self.start is not None or self.extend_vocab is not None or self.together):
            raise ValueError("join trains what is there: give it without start, extend_vocab and together")
        if self.path == "paper" and (self.extend_vocab or self.start or self.together or self.width or self.rank):
            raise ValueError("path: paper copies an expert and nothing else; give no other parts with it")
        return self


def corpus(text: str) -> Source:
    """Return the source that a word on the command line names: `cldr:ro`, `hub:owner/name`, `hub:owner/name:config`, or
    a file, in whose path {split} may stand.
    """
    kind, _, rest = text.partition(":")
    if kind == "cldr" and rest:
        return Source(cldr=rest)
    if kind == "hub" and rest:
        dataset, _, name = rest.partition(":")
        return Source(hub=dataset, name=name or None)
    return Source(file=str(Path(text).expanduser().absolute()))
