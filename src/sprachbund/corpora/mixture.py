"""How many tokens each language gives to training, and in which order its sequences come.

Shapes: S steps, B sequences of one step, L languages, K groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from sprachbund.errors import InputError
from sprachbund.recipe import Mixture

TOLERANCE = 1e-6  # of one sequence: far above rounding of S * B * share, far below a decision


def shares(
    num_bytes: Mapping[str, int],
    mixture: Mixture,
    *,
    groups: Mapping[str, int] | None = None,
    budget_bytes: float | None = None,
) -> dict[str, float]:
    """Return each language's share of the training tokens; the shares sum to 1, in the order of `num_bytes`.

    - temperature: share ~ bytes^temperature, with 0.3 as in DMoE (Li et al., Findings of ACL 2025; released code).
    - unimax: as even as the epoch cap allows (Chung et al., ICLR 2023, Algorithm 1) for `budget_bytes` of training text
      in all. If the budget is more than `max_epochs` of everything, no shares can keep the cap: they are ~ bytes then.
    - given: the recipe's shares, normalised.

    With `groups` (language tag to group) and `mixture.balance_groups`, every group gets 1/K and the method shares that
    out inside it, as the paper's data code does; this holds for given shares too.

    Raises:
        InputError: a language without text, or without a given share.
        ValueError: unimax without a budget, or groups that leave a language out (a caller's mistake).
    """
    for tag, size in num_bytes.items():
        if size <= 0:
            raise InputError(f"{tag} has no training text; give it some or remove it from languages.")
    if mixture.method == "unimax" and budget_bytes is None:
        raise ValueError("unimax needs budget_bytes")
    if groups is None or not mixture.balance_groups:
        return _normalised(_weights(num_bytes, mixture, budget_bytes))
    members: dict[int, list[str]] = {}
    for tag in num_bytes:
        if tag not in groups:
            raise ValueError(f"groups leave out {tag}")
        members.setdefault(groups[tag], []).append(tag)
    result = dict.fromkeys(num_bytes, 0.0)
    budget = None if budget_bytes is None else budget_bytes / len(members)
    for tags in members.values():
        inside = _normalised(_weights({tag: num_bytes[tag] for tag in tags}, mixture, budget))
        result.update({tag: share / len(members) for tag, share in inside.items()})
    return result


def _weights(num_bytes: Mapping[str, int], mixture: Mixture, budget_bytes: float | None) -> dict[str, float]:
    if mixture.method == "temperature":
        largest = max(num_bytes.values())
        return {tag: (size / largest) ** mixture.temperature for tag, size in num_bytes.items()}
    if mixture.method == "unimax":
        assert budget_bytes is not None
        return _unimax(num_bytes, budget_bytes=budget_bytes, max_epochs=mixture.max_epochs)
    given = mixture.shares or {}
    missing = [tag for tag in num_bytes if tag not in given]
    if missing:
        raise InputError(f"mixture.shares names no share for {', '.join(missing)}; give every language one.")
    return {tag: given[tag] for tag in num_bytes}


def _unimax(num_bytes: Mapping[str, int], *, budget_bytes: float, max_epochs: float) -> dict[str, float]:
    """Return bytes to draw per language: an even share of what is left, smallest language first, capped in epochs."""
    left = budget_bytes
    drawn = dict.fromkeys(num_bytes, 0.0)
    for i, tag in enumerate(sorted(num_bytes, key=lambda tag: num_bytes[tag])):
        drawn[tag] = min(left / (len(num_bytes) - i), max_epochs * num_bytes[tag])
        left -= drawn[tag]
    return drawn


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {tag: weight / total for tag, weight in weights.items()}


def schedule(
    shares: Mapping[str, float],
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    groups: Mapping[str, int] | None = None,
) -> NDArray[np.int64]:
    """Return (S, B) language numbers (places in `shares`): which language each sequence of each step comes from.

    Why not draws: with few sequences per step a small language would be missing for long, and two runs would differ in
    how much of it they saw. Here, after any number of steps every language has within 1 of its share of all sequences
    so far. With `groups`, first the groups are dealt out by their summed shares (equal shares and a batch that divides
    by K give equal counts in every step; otherwise remainders carry over, within 1), then each group's sequences among
    its languages; a language is then within 1 of its share of its group's sequences. Rows are sorted by (group,
    language), so that a group's sequences are contiguous. `seed` breaks ties only.

    Raises:
        ValueError: shares that are not positive or do not sum to 1, or groups that leave a language out.
    """
    share_L = np.array(list(shares.values()), dtype=np.float64)
    if share_L.size == 0 or (share_L <= 0).any() or abs(share_L.sum() - 1) > 1e-6:
        raise ValueError(f"shares must be above 0 and sum to 1; found {dict(shares)}")
    if groups is not None and (missing := [tag for tag in shares if tag not in groups]):
        raise ValueError(f"groups leave out {', '.join(missing)}")
    names = [0 if groups is None else groups[tag] for tag in shares]
    group_L = np.unique(names, return_inverse=True)[1]
    group_share_K = np.bincount(group_L, weights=share_L) / share_L.sum()
    key = blake2b(f"schedule/{seed}".encode(), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(key, "little"))

    slots_S1 = np.full((num_steps, 1), batch_size)
    counts_SK = _deal(group_share_K, np.zeros(len(group_share_K), dtype=np.int64), slots_S1, random)
    inside_L = share_L / np.bincount(group_L, weights=share_L)[group_L]
    counts_SL = _deal(inside_L, group_L, counts_SK, random)
    order_L = np.argsort(group_L, kind="stable")
    rows = np.repeat(np.tile(order_L, num_steps), counts_SL[:, order_L].ravel())
    return rows.reshape(num_steps, batch_size).astype(np.int64)


def _deal(
    share_L: NDArray[np.float64],
    group_L: NDArray[np.int64],
    slots_SK: NDArray[np.int64],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Return (S, L) counts: each step, `slots_SK` of every group go to its members, whose shares sum to 1 inside it.

    Rounding every step's running targets by largest remainder can take a sequence back from a language, which is no
    schedule. Instead every sequence of a language has a release (its running target has passed the sequence before) and
    a deadline (the target has reached it), and the earliest deadline goes first. That order keeps all deadlines
    whenever any order does, and one does, since the real-valued targets keep them; so every running count is its target
    rounded up or down (the argument of Tijdeman 1980, The chairman assignment problem).
    """
    num_languages, num_groups = len(share_L), slots_SK.shape[1]
    tie_L = random.permutation(num_languages)
    starts_K = np.concatenate([[0], np.cumsum(np.bincount(group_L, minlength=num_groups))[:-1]])
    reached_SL = np.cumsum(slots_SK, axis=0)[:, group_L] * share_L
    due_SL = np.floor(reached_SL + TOLERANCE).astype(np.int64)
    most_SL = np.ceil(reached_SL - TOLERANCE).astype(np.int64)
    places_L = np.arange(num_languages)
    done_L = np.zeros(num_languages, dtype=np.int64)
    counts_SL = np.empty((len(slots_SK), num_languages), dtype=np.int64)
    for step, slots_K in enumerate(slots_SK):
        now_L = np.maximum(due_SL[step] - done_L, 0)
        free_K = slots_K - np.bincount(group_L, weights=now_L, minlength=num_groups).astype(np.int64)
        closed_L = done_L + now_L >= most_SL[step]
        deadline_L = (done_L + now_L + 1) / share_L
        order_L = np.lexsort((tie_L, deadline_L, closed_L, group_L))
        sorted_L = group_L[order_L]
        chosen_L = order_L[places_L - starts_K[sorted_L] < free_K[sorted_L]]
        now_L[chosen_L] += 1
        assert free_K.min() >= 0
        assert not closed_L[chosen_L].any()
        counts_SL[step] = now_L
        done_L += now_L
    return counts_SL
