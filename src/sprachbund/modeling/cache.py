"""The language scores of the tokens so far, kept on the key-value cache.

Whatever generation does to the cached tokens must happen to their scores: beams are reordered, candidate tokens of
assisted decoding are taken back. So the cache becomes a subclass of its own class, which does both.

Shapes: B sequences, T tokens of one call, L languages.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class _Scored:
    """A key-value cache with the running language scores of all its tokens: one (B, T, L) for each call."""

    language_scores: list[Tensor]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.language_scores = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.language_scores = [scores.repeat_interleave(repeats, dim=0) for scores in self.language_scores]

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Take tokens back, with their scores."""
        before = int(self.get_seq_length())  # type: ignore[attr-defined]
        super().crop(*args, **kwargs)  # type: ignore[misc]
        removed = before - int(self.get_seq_length())  # type: ignore[attr-defined]
        while removed > 0 and self.language_scores:
            last = self.language_scores.pop()
            if last.shape[1] > removed:
                self.language_scores.append(last[:, : last.shape[1] - removed])
            removed -= last.shape[1]

    def _take(self, rows: Tensor) -> None:
        if self.language_scores:  # one tensor from here on: beams are reordered at every step
            scores = torch.cat(self.language_scores, dim=1)
            self.language_scores = [scores[rows.to(scores.device)]]


@lru_cache
def _scored(kind: Any) -> Any:
    return type(kind.__name__, (_Scored, kind), {"__module__": kind.__module__})


def scores_so_far(cache: Any) -> Tensor | None:
    """Return the sums over all cached tokens, (B, L); None where nothing was scored yet.

    Raises ValueError for a cache whose tokens another routing read: `prefix` cannot know what they were.
    """
    if cache is None:
        return None
    scores = getattr(cache, "language_scores", None)
    if scores:
        return scores[-1][:, -1]  # type: ignore[no-any-return]
    if int(cache.get_seq_length()) > 0:
        raise ValueError(
            "routing = 'prefix' was given a cache whose tokens it has not read; use one routing for a whole text"
        )
    return None


def keep_scores(cache: Any, scores_BTL: Tensor) -> None:
    """Keep the running sums of this call, (B, T, L), on the cache."""
    if not isinstance(cache, _Scored):
        kind: Any = type(cache)
        cache.__class__ = _scored(kind)
        cache.language_scores = []
    cache.language_scores.append(scores_BTL)
