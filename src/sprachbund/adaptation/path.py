"""A new language's path: which parts it has, how large they are, and what they start from.

What a path should hold was measured (docs/adapt.md): a new language lacks rows of the embedding and the output before
it lacks an expert, and the copied expert that the DMoE paper gives it lacks all that is not an FFN.

Shapes: V vocabulary, R rows of the path, M languages of a path.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob, count_parameters, dense_config
from sprachbund.modeling.language_path import LanguagePath, PathSpec, path_specs
from sprachbund.modeling.model import add_path, inner_model
from sprachbund.modeling.rebuild import rebuilt
from sprachbund.modeling.skeleton import dense_ffn_shape, skeleton

SEEN = 20  # times that a token occurs in the new text before its rows become the path's own


@dataclass(frozen=True)
class PathKind:
    """What a kind of path holds: an expert in each layer, as wide as the FFN or as a budget allows (a share of the
    dense model's parameters); changes of the attention, of a rank, in small models of a share of their width at most;
    rows with an output bias and norm gains.
    """

    expert: bool
    budget: float | None = None
    rank: int | None = 16
    rank_share: float = 0.25
    rows: bool = True


PATHS = {
    "full": PathKind(expert=True, rank=64, rank_share=1.0),
    "lean": PathKind(expert=True, budget=0.40),
    "small": PathKind(expert=True, budget=0.25, rank=8),
    "rows": PathKind(expert=False),
    "expert": PathKind(expert=True, rank=None, rows=False),
}


def token_counts(streams: Sequence[np.ndarray], vocab_size: int) -> np.ndarray:
    """Return how often each token occurs in some token streams, (V,); ids beyond the vocabulary are not counted."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for stream in streams:
        counts += np.bincount(stream, minlength=vocab_size)[:vocab_size]
    return counts


def path_spec(
    model: Any,
    kind: str,
    *,
    languages: Sequence[str],
    parent: int,
    num_rows: int,
    width: int | None = None,
    rank: int | None = None,
    extension: int = 0,
) -> PathSpec:
    """Return the parts of a path of a kind, for `num_rows` tokens that it changes; `width` and `rank` take the place of
    the kind's own.

    Raises InputError for a kind that there is not, a width of a path without experts, and a budget that leaves no room
    for them.
    """
    if kind not in PATHS:
        raise InputError(f"--path {kind} is none of {', '.join([*PATHS, 'paper'])}")
    parts = PATHS[kind]
    dense = dense_config(model.config)
    if width is not None and not parts.expert:
        raise InputError(f"--width {width}: a path of kind {kind} has no experts; leave --width out, or take another")
    if rank is not None and parts.rank is None:
        raise InputError(f"--rank {rank}: a path of kind {kind} does not change the attention; leave --rank out")
    spec = PathSpec(
        tuple(languages),
        parent,
        width=None,
        rank=None if parts.rank is None else rank or min(parts.rank, max(int(parts.rank_share * dense.hidden_size), 1)),
        rows=num_rows if parts.rows else 0,
        bias=parts.rows,
        norms=parts.rows,
        extension=extension,
    )
    if not parts.expert:
        return spec
    if width is None:
        width = dense_ffn_shape(dense).width
        if parts.budget is not None:
            width = min(width, _width_within(model.config, spec, parts.budget, kind))
    return replace(spec, width=width)


def path_size(config: Any, spec: PathSpec) -> int:
    """Return how many parameters a path has in a model of this configuration."""
    inner = inner_model(skeleton(config))
    with torch.device("meta"):
        path = LanguagePath(spec, config, inner)
    return sum(parameter.numel() for parameter in path.parameters())


def dense_size(config: Any) -> int:
    """Return how many parameters the dense model has that a mixture was made from."""
    return count_parameters(skeleton(dense_config(config))).total


def _width_within(config: Any, spec: PathSpec, budget: float, kind: str) -> int:
    """Return the widest experts that keep a path within a share of the dense parameters: its size is linear in it."""
    allowed = budget * dense_size(config)
    one, two = (path_size(config, replace(spec, width=width)) for width in (1, 2))
    width = 1 + int((allowed - one) // (two - one))
    if width < 1:
        raise InputError(
            f"--path {kind}: a path within {budget:.0%} of the dense model's parameters has no room for an expert, its "
            f"rows and the rest take {one / dense_size(config):.0%}; take --path rows, or give --width"
        )
    return width


def add_language(
    model: Any,
    languages: Sequence[str],
    streams: Sequence[np.ndarray],
    *,
    kind: str,
    parent: int,
    start: int | None = None,
    width: int | None = None,
    rank: int | None = None,
    pieces: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> int:
    """Give a model a path for new languages, in place, which adds nothing to its parent yet; return its group id.

    `streams` are the training tokens of each language, of the model's own vocabulary: they decide whose rows the path
    has, and fill its gate's table. `pieces` are the tokens that each of its own tokens, beyond the vocabulary, stands
    for: their rows start as the mean of theirs. `start` is another path, by its group id: the parts that both have
    start from its weights. Raises InputError as `path_spec` does, and for a `start` that is no path.
    """
    vocab_size = model.config.vocab_size
    tokens = np.flatnonzero(token_counts(streams, vocab_size) >= SEEN)
    spec = path_spec(
        model,
        kind,
        languages=languages,
        parent=parent,
        num_rows=len(tokens),
        width=width,
        rank=rank,
        extension=len(pieces),
    )
    older = None
    if start is not None:
        number = start - model.config.num_groups
        if not 0 <= number < len(path_specs(model.config)):
            raise InputError(f"group {start} has no path to start from; name a language that was added before")
        older = inner_model(model).language_paths[number]
    path = add_path(model, spec, seed=seed)
    path.tokens.copy_(torch.from_numpy(tokens[: spec.rows]))
    path.language_gate.log_prob.copy_(count_log_prob(list(streams), vocab_size=vocab_size))
    if older is not None:
        _take_over(path, older)
    if pieces:
        _start_extension(model, path, pieces)
    return int(model.config.num_groups) + len(model.config.language_paths) - 1


@torch.no_grad()
def _take_over(path: LanguagePath, older: LanguagePath) -> None:
    """Start a path's parts from another's where they have the same shape, and its rows where both have the token."""
    theirs = dict(older.named_parameters())
    for name, parameter in path.named_parameters():
        other = theirs.get(name)
        if other is None or name.endswith("_extension"):
            continue
        if name.endswith("_rows"):
            common, mine, its = np.intersect1d(path.tokens.cpu(), older.tokens.cpu(), return_indices=True)
            if len(common):
                parameter[torch.from_numpy(mine)] = other[torch.from_numpy(its)].to(parameter.dtype)
        elif name == "output_bias":
            shared = min(len(parameter), len(other), path.language_gate.log_prob.shape[0])
            parameter[:shared] = other[:shared]
        elif other.shape == parameter.shape:
            parameter.copy_(other)


@torch.no_grad()
def _start_extension(model: Any, path: LanguagePath, pieces: Sequence[Sequence[int]]) -> None:
    """Start the rows of the path's own tokens as the mean of those of the tokens that they stand for."""
    for output in (False, True):
        table = path.table("extension", output=output)
        module = model.get_output_embeddings() if output else model.get_input_embeddings()
        if table is not None:
            for number, ids in enumerate(pieces):
                table[number] = module.weight[list(ids)].float().mean(0).to(table.dtype)


def trainable(model: Any, group_id: int) -> LanguagePath:
    """Let one path of a model train, and nothing else; return it."""
    model.requires_grad_(False)
    path: LanguagePath = inner_model(model).language_paths[group_id - model.config.num_groups]
    path.requires_grad_(True)
    return path


def with_path_language(model: Any, group_id: int, tag: str, log_prob_V: Tensor) -> Any:
    """Return the mixture with a language more on one of its paths; `log_prob_V` is its column of the path's gate."""
    config, state = copy.deepcopy(model.config), model.state_dict()
    number = group_id - config.num_groups
    entry = config.language_paths[number]
    entries = list(config.language_paths)
    entries[number] = {**entry, "languages": [*entry["languages"], tag]}
    config.language_paths = entries
    name = f"{model.base_model_prefix}.language_paths.{number}.language_gate.log_prob"
    state[name] = torch.cat([state[name], log_prob_V.to(state[name]).unsqueeze(1)], dim=1)
    return rebuilt(model, config, state)
