"""The language scores of the tokens so far, kept on the key-value cache.

Whatever generation does to the cached tokens must happen to their scores: beams are reordered, candidate tokens of
assisted decoding are taken back. So the cache becomes a subclass of its own class, which does both.

Shapes: B sequences, T tokens of the last call, L languages.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


class _Scored:
    """A key-value cache with language scores, (B, 1 + T, L): before the last call, and after each of its tokens.

    Earlier ones are not kept: nothing takes back more than the tokens of one call.
    """

    language_scores: Tensor | None = None

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.language_scores = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.language_scores is not None:
            self.language_scores = self.language_scores.repeat_interleave(repeats, dim=0)

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Take tokens back; raises ValueError for more tokens than the last call read."""
        before = int(self.get_seq_length())  # type: ignore[attr-defined]
        super().crop(*args, **kwargs)  # type: ignore[misc]
        left = int(self.get_seq_length())  # type: ignore[attr-defined]
        if left == 0:
            self.language_scores = None
        if self.language_scores is None or left == before:
            return
        removed, num_tokens = before - left, self.language_scores.shape[1] - 1
        if removed > num_tokens:
            raise ValueError(f"{removed} tokens cannot be taken back; the last call read {num_tokens}")
        self.language_scores = self.language_scores[:, : num_tokens + 1 - removed]

    def _take(self, rows: Tensor) -> None:
        if self.language_scores is not None:
            self.language_scores = self.language_scores[rows.to(self.language_scores.device)]


@lru_cache
def _scored(kind: Any) -> Any:
    return type(kind.__name__, (_Scored, kind), {"__module__": kind.__module__})


def scores_so_far(cache: Any) -> Tensor | None:
    """Return the sums over all cached tokens, (B, L); None where nothing was scored yet."""
    scores = getattr(cache, "language_scores", None)
    return None if scores is None else scores[:, -1]


def keep_scores(cache: Any, scores_BTL: Tensor) -> None:
    """Keep the running sums of this call, (B, T, L), on the cache."""
    past = scores_so_far(cache)
    before_B1L = torch.zeros_like(scores_BTL[:, :1]) if past is None else past.unsqueeze(1)
    if not isinstance(cache, _Scored):
        kind: Any = type(cache)
        cache.__class__ = _scored(kind)
    cache.language_scores = torch.cat([before_B1L, scores_BTL], dim=1)
