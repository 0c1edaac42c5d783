"""How well a model predicts the text of one language.

Two scores, each counting every position once:
- over all positions: windows side by side, each starting cold, as after a fresh prompt. Here a label-free router pays
  for not knowing the language yet, and a given group is a gift.
- after burn-in: windows that overlap by the burn-in, counting the positions that have at least so many tokens of
  context.

Shapes: B windows, T tokens of a window, V vocabulary, G groups, E experts of a layer, M mixture layers.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sprachbund.errors import DivergedError
from sprachbund.memory import keep_freed_memory
from sprachbund.modeling.language_path import num_group_ids
from sprachbund.modeling.likelihood import token_nats
from sprachbund.modeling.tables import expert_tables, group_credit

LOGITS_AT_ONCE = 1 << 29  # logits of one forward pass, where one window has fewer: 2 GB in float32


@dataclass(frozen=True)
class TestText:
    """Tokens of whole documents, each followed by the separator, and the UTF-8 bytes of these documents."""

    tokens: np.ndarray
    num_bytes: int


def test_text(
    documents: Sequence[str],
    tokenize: Callable[[list[str]], list[list[int]]],
    *,
    separator: int,
    max_tokens: int | None,
) -> TestText:
    """Return the first whole documents that reach `max_tokens` tokens (all documents where None)."""
    ids = array("q")  # a list would need five times as much
    num_bytes = 0
    for document in documents:
        ids.extend([*tokenize([document])[0], separator])
        num_bytes += len(document.encode())
        if max_tokens is not None and len(ids) >= max_tokens:
            break
    return TestText(np.frombuffer(ids, dtype=np.int64), num_bytes)


def _exp(nats: float) -> float:
    """Return e^nats; a model that diverged far has the largest number instead of an overflow."""
    return math.exp(min(nats, 700.0))


@dataclass
class LanguageScores:
    """Sums over one language's positions, under one model and routing: nats of negative log-likelihood and counts."""

    nats: float = 0.0
    positions: int = 0
    nats_after_burn_in: float = 0.0
    positions_after_burn_in: int = 0
    right: float = 0.0  # positions routed to the expert of the language's own group, all positions
    routed: list[float] = field(default_factory=list)  # share of positions per group, as `group_credit` counts

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood per token, over all positions."""
        return _exp(self.nats / self.positions)

    @property
    def perplexity_after_burn_in(self) -> float:
        """The same over positions with enough context."""
        return _exp(self.nats_after_burn_in / self.positions_after_burn_in)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Bits to encode one byte of text; comparable across tokenizers."""
        return self.nats / math.log(2) / (self.positions * bytes_per_token)

    def bits_per_byte_after_burn_in(self, bytes_per_token: float) -> float:
        """The same over positions with enough context, at the text's bytes per token."""
        return self.nats_after_burn_in / math.log(2) / (self.positions_after_burn_in * bytes_per_token)


def windows(num_tokens: int, *, window: int, context: int) -> list[tuple[int, int]]:
    """Return (start, length) of windows over `num_tokens` inputs that overlap by `context`; the last may be shorter.

    Raises ValueError where `context` leaves nothing of a window.
    """
    if not 0 <= context < window:
        raise ValueError(f"a context of {context} leaves nothing of a window of {window}")
    starts = range(0, max(num_tokens - context, 1), window - context)
    return [(start, min(window, num_tokens - start)) for start in starts]


def _batches(places: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """Yield windows of equal length, at most `size` of them at a time."""
    batch: list[tuple[int, int]] = []
    for place in places:
        if batch and (len(batch) == size or batch[0][1] != place[1]):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.inference_mode()
def score_language(
    model: Any,
    text: TestText,
    *,
    window: int,
    burn_in: int,
    batch_tokens: int,
    routing: str | None = None,
    group: int | None = None,
    prefix: int | None = None,
    path_gate: str | None = None,
) -> LanguageScores:
    """Score a model on a language's text; `routing` None is a dense model, `group` the language's true group.

    `path_gate` says how text finds the path of a language that came later (`counts`, `mixture`, `off`; None: as the
    model's configuration says). `prefix` is a token that a dense model reads in front of every window; the positions
    that count stay the same.

    `batch_tokens` is the most that one forward pass reads; fewer where the vocabulary is large, at least one window.
    Raises ValueError where the text is shorter than burn_in + 2 tokens or burn_in is below 1 or fills the window,
    DivergedError where the model's probabilities are not finite.
    """
    if burn_in < 1:
        raise ValueError(f"burn_in = {burn_in} must be at least 1")
    if len(text.tokens) < burn_in + 2:
        raise ValueError(f"{len(text.tokens)} tokens are too few for a burn-in of {burn_in}")
    if model.device.type == "cpu":
        keep_freed_memory()
    scores = LanguageScores()
    inputs, targets = torch.from_numpy(text.tokens[:-1]), torch.from_numpy(text.tokens[1:])
    size = max(min(batch_tokens, LOGITS_AT_ONCE // model.config.vocab_size) // window, 1)
    for context in (0, burn_in):
        for batch in _batches(windows(len(inputs), window=window, context=context), size):
            ids_BT = torch.stack([inputs[s : s + n] for s, n in batch]).to(model.device)
            targets_BT = torch.stack([targets[s : s + n] for s, n in batch]).to(model.device)
            if prefix is not None:
                ids_BT = F.pad(ids_BT, (1, 0), value=prefix)
            outputs = _forward(model, ids_BT, routing=routing, group=group, path_gate=path_gate, count=context == 0)
            # a prefix's own prediction is of the window's first token, which is no target
            first = ids_BT.shape[1] - targets_BT.shape[1] + context
            nats_BT = token_nats(outputs.logits[:, first:], targets_BT[:, context:]).double()
            if context == 0:
                scores.nats += float(nats_BT.sum())
                scores.positions += nats_BT.numel()
                if group is not None and routing in ("prefix", "top_k"):
                    _count_routes(scores, outputs, group, model.config)
            else:
                scores.nats_after_burn_in += float(nats_BT.sum())
                scores.positions_after_burn_in += nats_BT.numel()
    if not math.isfinite(scores.nats + scores.nats_after_burn_in):
        raise DivergedError(
            "the model's probabilities are not finite: it diverged, or train.dtype is too coarse for it"
        )
    scores.routed = [count / scores.positions for count in scores.routed]
    return scores


def _forward(
    model: Any, ids_BT: Tensor, *, routing: str | None, group: int | None, path_gate: str | None, count: bool
) -> Any:
    if routing is None:
        return model(input_ids=ids_BT, use_cache=False)
    given = None
    if routing == "group" and group is not None:
        given = torch.full((len(ids_BT),), group, device=ids_BT.device)
    asked = {"routing": routing, "group_ids": given, "output_router_logits": count and routing == "top_k"}
    if path_gate is not None:
        asked["path_gate"] = path_gate
    return model(input_ids=ids_BT, use_cache=False, **asked)


def _count_routes(scores: LanguageScores, outputs: Any, group: int, config: Any) -> None:
    """Add the groups that positions went to; under top_k the mean over layers of each layer's first choice."""
    how_many = num_group_ids(config)
    if outputs.group_ids is not None:
        counts_MG = [torch.bincount(outputs.group_ids.flatten(), minlength=how_many).tolist()]
    else:
        counts_MG = _first_choices(outputs, group, config)
    if not scores.routed:
        scores.routed = [0.0] * how_many
    for counts_G in counts_MG:
        scores.routed = [old + new / len(counts_MG) for old, new in zip(scores.routed, counts_G, strict=True)]
        scores.right += counts_G[group] / len(counts_MG)


def _first_choices(outputs: Any, group: int, config: Any) -> list[list[float]]:
    """Return (M, G) numbers of positions per group; an expert is its group, or counts for those that share it.

    Positions on the path of a language count for the path, whichever experts the routers would have chosen there.
    """
    tables_MG = expert_tables(config)
    paths_BT = outputs.path_ids
    own = [0.0] * (num_group_ids(config) - config.num_groups)
    if paths_BT is not None:
        own = torch.bincount(paths_BT[paths_BT >= 0], minlength=len(own)).tolist()
    counts_MG = []
    for layer, logits_BTE in enumerate(outputs.router_logits):
        chosen = logits_BTE.argmax(-1)
        chosen = chosen.flatten() if paths_BT is None else chosen[paths_BT < 0]
        counts_E = torch.bincount(chosen, minlength=logits_BTE.shape[-1])
        if tables_MG is None:
            counts_MG.append([*counts_E.tolist(), *own])
        else:
            credit_EG = group_credit(tables_MG[layer], group=group if group < config.num_groups else 0)
            counts_MG.append([*(counts_E.double().cpu() @ credit_EG).tolist(), *own])
    return counts_MG
