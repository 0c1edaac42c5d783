"""What is told by the tokens so far, kept on the key-value cache.

Whatever generation does to the cached tokens must happen to what was told by them: beams are reordered, candidate
tokens of assisted decoding are taken back. So the cache becomes a subclass of its own class, which does both; also to
the caches of the other readings of the same text, its `sides` (path_mixture.py).

Shapes: B sequences, T tokens of one call, L languages.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

SCORES = "language scores"


class _Keeper:
    """A key-value cache with `notes`, by name one (B, T, ...) for each call, and other caches of the same text.

    A side that is read no longer keeps what it has: it is shorter than the others, and may be the cache itself.
    """

    notes: dict[str, list[Tensor]]
    sides: dict[int, Any]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.notes, self.sides = {}, {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        for side in self.sides.values():
            side.reorder_cache(beam_idx)
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        for side in self.sides.values():
            side.batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        for side in self.sides.values():
            side.batch_repeat_interleave(repeats)
        for name, calls in self.notes.items():
            self.notes[name] = [note.repeat_interleave(repeats, dim=0) for note in calls]

    def activate_past_recording(self) -> None:
        super().activate_past_recording()  # type: ignore[misc]
        for side in self.sides.values():
            side.activate_past_recording()

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return the tokens of the longest side: the others have been dropped."""
        own = super().get_seq_length(layer_idx)  # type: ignore[misc]
        return max([own, *(side.get_seq_length(layer_idx) for side in self.sides.values())], key=int)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> Any:
        """Return what the mask of a call needs to know, of the longest side."""
        own = int(super().get_seq_length(layer_idx))  # type: ignore[misc]
        for side in self.sides.values():
            if int(side.get_seq_length(layer_idx)) > own:
                return side.get_mask_sizes(query_length, layer_idx)
        return super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back, with what was told by them; the number is negative, as transformers has it."""
        length, own = int(self.get_seq_length()), int(super().get_seq_length())  # type: ignore[misc]
        for side in self.sides.values():
            side.crop(_behind(tokens_to_remove, length - int(side.get_seq_length())))
        super().crop(_behind(tokens_to_remove, length - own))  # type: ignore[misc]
        for calls in self.notes.values():
            removed = length - int(self.get_seq_length())
            while removed > 0 and calls:
                last = calls.pop()
                if last.shape[1] > removed:
                    calls.append(last[:, : last.shape[1] - removed])
                removed -= last.shape[1]

    def _take(self, rows: Tensor) -> None:
        for name, calls in self.notes.items():
            if calls:  # one tensor from here on: beams are reordered at every step
                notes = torch.cat(calls, dim=1)
                self.notes[name] = [notes[rows.to(notes.device)]]


def _behind(tokens_to_remove: int, behind: int) -> int:
    """Return what to ask of a cache that is so many tokens behind the text, which has lost them already."""
    return min(tokens_to_remove + behind, 0) if tokens_to_remove < 0 else tokens_to_remove


@lru_cache
def _keeper_class(kind: Any) -> Any:
    return type(kind.__name__, (_Keeper, kind), {"__module__": kind.__module__})


def keeper(cache: Any) -> Any:
    """Return a cache, which from here on can hold notes and sides."""
    if not isinstance(cache, _Keeper):
        kind: Any = type(cache)
        cache.__class__ = _keeper_class(kind)
        cache.notes, cache.sides = {}, {}
    return cache


def cache_of_call(arguments: dict[str, Any], config: Any) -> Any:
    """Return the cache of a forward pass, made here and put among its arguments where it is to have one."""
    use_cache = arguments.get("use_cache")
    if arguments.get("past_key_values") is None and (config.use_cache if use_cache is None else use_cache):
        arguments["past_key_values"] = DynamicCache(config=config)
    return arguments.get("past_key_values")


def note(cache: Any, name: str, note_BT: Tensor) -> None:
    """Keep what a call tells about each of its tokens, (B, T, ...)."""
    keeper(cache).notes.setdefault(name, []).append(note_BT)


def last_note(cache: Any, name: str) -> Tensor | None:
    """Return what was noted about the last cached token, (B, ...); None where there is nothing."""
    calls = cache.notes.get(name) if isinstance(cache, _Keeper) else None
    return calls[-1][:, -1] if calls else None


def has_sides(cache: Any) -> bool:
    """Was this cache read in more than one way?"""
    return isinstance(cache, _Keeper) and bool(cache.sides)


def scores_so_far(cache: Any) -> Tensor | None:
    """Return the gate's sums over all cached tokens, (B, L) and more columns where it has more to remember; None where
    nothing was scored yet.

    Raises ValueError for a cache whose tokens another routing read: `prefix` cannot know what they were.
    """
    scores = last_note(cache, SCORES)
    if scores is None and cache is not None and int(cache.get_seq_length()) > 0:
        raise ValueError(
            "routing = 'prefix' was given a cache whose tokens it has not read; use one routing for a whole text"
        )
    return scores


def keep_scores(cache: Any, scores: Tensor) -> None:
    """Keep the gate's running sums of this call, (B, T, ...), on the cache."""
    note(cache, SCORES, scores)
