"""The parts of a recipe that plan the mixture: probe, groups, layers."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from sprachbund.recipe.part import Part, Positive, Rate

LAYERS = r"all|last:[1-9]\d*"
ProbeSource = Literal["deviation", "gradient", "representation", "lexical", "characters"]
GroupSource = Literal[
    "deviation",
    "gradient",
    "gradient-stepwise",
    "representation",
    "lexical",
    "characters",
    "given",
    "family",
    "random",
]


class Probe(Part):
    """Read from the base how alike the languages are, and how far each layer moves for them."""

    sources: list[ProbeSource] = Field(
        default_factory=list,
        description="similarities to compute, beside the one that groups.source names: deviation (DMoE), gradient "
        "(GradSim, Wang et al. 2023), representation (Fan et al. 2021), lexical (tokens), characters (n-grams)",
    )
    steps: Positive = Field(10, description="optimizer steps per language [paper: 10]; gradients are taken as often")
    tokens_per_step: Positive = Field(1_048_576, description="tokens of one probe step [paper: 2048 x 512]")
    learning_rate: Rate = Field(8e-6, description="learning rate, falling linearly to zero [paper: 8e-6]")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW without weight decay [paper], or plain SGD")
    repeats: Positive = Field(
        1, description="probe so often, on other blocks each time: shows and lowers the noise [ours] [paper: 1]"
    )
    layers: str | list[int] = Field(
        "all", description="layers whose FFNs are compared: all, the last N as last:N, or a list [paper: last:3]"
    )
    center: bool | list[ProbeSource] = Field(
        True,
        description="remove the mean over languages before comparing; true: of every source but gradient, which it did "
        "not help; or name the sources [ours]",
    )
    hidden_layer: Annotated[int, Field(ge=0)] | None = Field(
        None, description="representation: after this many layers (0: the embeddings); null: half of them"
    )
    sentences: str | None = Field(
        None,
        description="representation: parallel sentences, a .txt or .jsonl file per language with {tag} in its path; "
        "null: documents evenly spaced over the train split, which are parallel where the corpora are",
    )
    num_sentences: Positive = Field(512, description="representation: at most so many sentences or documents")
    ngram: Positive = Field(3, description="characters: length of the n-grams")
    sketch_size: Positive = Field(65_536, description="floats kept per layer and language (CountSketch)")

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and all(isinstance(i, int) and i >= 0 for i in value)
        if not (numbers and value and len(set(value)) == len(value)) and not re.fullmatch(LAYERS, str(value)):
            raise ValueError(f"found {value!r}; give all, last:N, or a list of layers counted from 0, each once")
        return value

    @field_validator("center", mode="before")
    @classmethod
    def _center(cls, value: Any) -> Any:
        sources = get_args(ProbeSource)
        if not isinstance(value, bool) and not (isinstance(value, list) and set(value) <= set(sources)):
            raise ValueError(f"found {value!r}; give true, false, or a list of {', '.join(sources)}")
        return value

    @model_validator(mode="after")
    def _sentences(self) -> Self:
        if self.sentences is not None and "{tag}" not in self.sentences:
            raise ValueError(f"sentences = {self.sentences!r} lacks {{tag}}, which stands for the language")
        return self

    def centers(self, source: str) -> bool:
        """Is the mean over languages removed from this source's vectors?"""
        if isinstance(self.center, bool):
            return self.center and source != "gradient"
        return source in self.center


class Groups(Part):
    """Which languages share an expert."""

    count: int | Literal["auto"] = Field(
        6,
        description="number of groups K, at most the number of languages; 1: all share one; auto: chosen "
        "(docs/grouping.md)",
    )
    source: GroupSource = Field(
        "deviation",
        description="the similarity to group by: one of the probe's; given: a CSV; family: 1 inside a family, else 0; "
        "random: seeded noise",
    )
    similarity: str | None = Field(None, description="source: given: the CSV file")
    families: str | None = Field(
        None, description="CSV (first column: language) whose other columns, coarse to fine, name families and genera"
    )
    objective: Literal["mean", "bottleneck", "lexicographic", "greedy"] = Field(
        "mean",
        description="maximise the mean similarity of pairs that share a group, its minimum, first the minimum then the "
        "mean; greedy: the paper's algorithms [paper]",
    )
    floor: float = Field(
        0.7, ge=0, le=1, description="mean: no pair below this share of the best attainable minimum [ours]"
    )
    method: Literal["greedy-exhaustive", "greedy-seeded"] | None = Field(
        None, description="greedy: force one; null: exhaustive (18 languages in the paper) where it is feasible"
    )
    strict: bool = Field(False, description="refuse a count that does not divide the number of languages")
    must_link: list[list[str]] = Field(default_factory=list, description="languages that share a group")
    cannot_link: list[list[str]] = Field(default_factory=list, description="languages of which no two share a group")
    weights: dict[str, float] | Literal["bytes"] | None = Field(
        None, description="capacity: a number per language, or bytes (of its corpus); limits each group's total"
    )
    window: float = Field(0.25, gt=0, description="weights: a group's total stays within this share of the mean")
    resamples: int = Field(100, ge=0, description="regroupings under resampled probe data, for the stability; 0: none")
    exact: bool = Field(False, description="above 18 languages: close the gap with CP-SAT (extra: exact)")
    given: str | None = Field(None, description="a JSON file {tag: group}; nothing is computed then")

    @field_validator("count", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if value != "auto" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise ValueError(f"found {value!r}; give a whole number from 1, or auto")
        return value

    @field_validator("weights", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        if value is not None and value != "bytes" and not (isinstance(value, dict) and value):
            raise ValueError(f"found {value!r}; give a number for every language, or bytes")
        for tag, weight in (value if isinstance(value, dict) else {}).items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"the weight of {tag} is {weight!r}; give a number above 0")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.source == "given") != (self.similarity is not None):
            raise ValueError("similarity belongs to source: given, and only to it")
        if self.method is not None and self.objective != "greedy":
            raise ValueError(f"method = {self.method} belongs to objective: greedy, and only to it")
        return self


class Layers(Part):
    """Which layers become mixtures of experts: give one key, or the word `all`."""

    all: bool | None = Field(None, description="every layer [ours]")
    epsilon: float | None = Field(None, ge=0, le=1, description="normalised FFN deviation at least this [paper: 0.6]")
    top: Positive | None = Field(None, description="so many layers, largest deviation first")
    budget: Positive | None = Field(
        None, description="as many layers, largest deviation first, as so many added parameters allow"
    )
    layerwise: Positive | None = Field(
        None,
        description="so many experts in all, more of them in layers where the languages differ more (after LayerMoE)",
    )
    given: list[Annotated[int, Field(ge=0)]] | None = Field(None, description="layer numbers, counted from 0")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"all": True} if value == "all" else value

    @model_validator(mode="after")
    def _one(self) -> Self:
        keys = ("all", "epsilon", "top", "budget", "layerwise", "given")
        if sum(getattr(self, key) is not None for key in keys) != 1 or self.all is False:
            raise ValueError(f"give exactly one of: {', '.join(keys)}")
        if self.given is not None and (not self.given or len(set(self.given)) != len(self.given)):
            raise ValueError(f"given must name at least one layer, each once; found {self.given}")
        return self

    @property
    def source(self) -> ProbeSource | None:
        """What of the probe the choice reads; None where it needs no probe.

        `layerwise` compares hidden states, as LayerMoE does: between layers, deviations hardly differ in similarity.
        """
        if self.layerwise is not None:
            return "representation"
        by_deviation = self.epsilon is not None or self.top is not None or self.budget is not None
        return "deviation" if by_deviation else None
