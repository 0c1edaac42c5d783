"""A dense model that is told the language: a tag token in front of every window, of training and of scoring.

The fair rival of a mixture whose group is given: the tag is an oracle, which no user's text comes with.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sprachbund.compare.systems import MODEL, ModelScorer, load_trained, train_model
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.modeling.start import drawn
from sprachbund.run.data import PackedCorpora

if TYPE_CHECKING:
    from sprachbund.compare.systems import Job

NOISE = 0.1  # of the deviation of a matrix's entries: enough to tell the tags apart


@dataclass(frozen=True)
class TaggedStream(Packed):
    """A corpus whose blocks have the language's tag in front: (block_size + 1,) instead of (block_size,).

    The first token of a sequence is never predicted, so neither is the tag.
    """

    tag: int = 0

    def block(self, i: int, block_size: int) -> NDArray[np.int64]:
        """Return block `i` with the tag in front; raises IndexError where there is no such block."""
        return np.concatenate([np.array([self.tag], dtype=np.int64), super().block(i, block_size)])


def tagged(packed: PackedCorpora, *, vocab_size: int) -> PackedCorpora:
    """Return the same streams, that of the n-th language with tag token `vocab_size` + n in front of its blocks."""
    streams: dict[str, Packed] = {}
    for number, (language, stream) in enumerate(packed.train.items()):
        of = {field.name: getattr(stream, field.name) for field in fields(Packed)}
        streams[language] = TaggedStream(**of, tag=vocab_size + number)
    return PackedCorpora(streams)


@torch.no_grad()
def add_tags(model: Any, num_tags: int, *, seed: int) -> None:
    """Give a dense model's vocabulary `num_tags` tokens more, in place.

    Their rows, in the input embeddings and, where those are not tied, in the output ones, are the mean of the old rows
    and a little noise, decided by `seed`; an output bias is the mean of the old ones.
    """
    old = model.config.vocab_size
    tensors = _of_vocabulary(model)
    means = {name: tensor[:old].float().mean(0) for name, tensor in tensors.items()}
    stds = {name: float(tensor[:old].float().std()) for name, tensor in tensors.items()}
    model.resize_token_embeddings(old + num_tags, mean_resizing=False)
    for name, tensor in _of_vocabulary(model).items():
        rows = means[name].expand_as(tensor[old:])
        if tensor.dim() > 1:
            noise = drawn(f"tags {name}", tuple(rows.shape), std=NOISE * stds[name], seed=seed)
            rows = rows + noise.to(rows.device)
        tensor[old:] = rows.to(tensor.dtype)


def _of_vocabulary(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors with a row for each token, a tied one once."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    found = {"input": inputs.weight}
    if outputs.weight is not inputs.weight:
        found["output"] = outputs.weight
    if getattr(outputs, "bias", None) is not None:
        found["bias"] = outputs.bias
    return found


def check_positions(config: Any, *, block_size: int, window: int) -> None:
    """Raise InputError where the model has no position left for the tag."""
    positions = getattr(config, "max_position_embeddings", None)
    longest = max(block_size, window)
    if positions is not None and longest + 1 > positions:
        name = "train.block_size" if longest == block_size else "evaluate.window"
        raise InputError(
            f"the base reads at most {positions} tokens, and a language tag in front of {name} = {longest} makes "
            f"{longest + 1}; lower {name}, or leave the method with the tag out"
        )


class TaggedScorer(ModelScorer):
    """Scores the model with the tag of each text's language in front of every window, on the same positions."""

    def settings(self, routing: str, tag: str) -> dict[str, Any]:
        """Return the arguments of `score_language` for one language."""
        languages = list(self.job.packed.train)
        first = self.model.config.vocab_size - len(languages)
        return {**super().settings(routing, tag), "prefix": first + languages.index(tag)}


class TaggedSystem:
    """The base trained on, with the language's tag in front of every sequence; tokens are those of text alone."""

    def train(self, job: Job) -> dict[str, Any]:
        """Add the tags to a copy of the base and train it."""
        recipe = job.run.recipe
        model = job.base.load(dtype="float32")
        block_size = recipe.train.block_size
        check_positions(model.config, block_size=block_size, window=recipe.evaluate.window or block_size)
        text = tagged(job.packed, vocab_size=model.config.vocab_size)
        add_tags(model, len(text.train), seed=recipe.seed)
        facts = train_model(replace(job, packed=text), model, job.plan().dense())
        return {**facts, "flops": facts["flops"] * (block_size + 1) / block_size}

    def outputs(self, job: Job) -> list[str]:
        """Return where the trained model is."""
        return [MODEL]

    def scorer(self, job: Job) -> TaggedScorer:
        """Load the trained model."""
        return TaggedScorer(load_trained(job), job)
