"""The same text under two languages: a copied file, a mixed-up tag, or one language's text in another's crawl.

Shapes: L languages, N documents.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sprachbund.corpora.documents import Hashes, different_hashes

SLICE = 1 << 60  # of the range of hashes, compared at once: a sixteenth of all
MOST_SHARED = 0.01  # of a language's documents: short lines, such as names and numbers, coincide now and then


def shared_documents(documents: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Return, for each language, the share of its different documents that another has too: tag -> other -> share.

    Only others with at least one such document are named, the largest share first. Why it matters: the experts of the
    two learn from the same text, the grouping finds them alike for it, and what is trained on may be tested on.
    Documents are told apart by a 64-bit hash: one pass and eight bytes each, however many languages there are.
    """
    tags, num_languages = list(documents), len(documents)
    hashes = [_hashes(texts) for texts in documents.values()]
    common_LL = np.zeros((num_languages, num_languages), dtype=np.int64)
    for least, most in pairwise([-(1 << 63), *range(-(1 << 63) + SLICE, 1 << 63, SLICE), None]):
        part = [of_one[slice(*_between(of_one, least, most))] for of_one in hashes]
        common_LL += _common(part)
    shares: dict[str, dict[str, float]] = {}
    for place, tag in enumerate(tags):
        others = [other for other in np.argsort(-common_LL[place], kind="stable") if common_LL[place, other]]
        shares[tag] = {tags[other]: int(common_LL[place, other]) / len(hashes[place]) for other in others}
    return shares


def _hashes(documents: Iterable[str]) -> Hashes:
    """Return the different hashes of documents, sorted."""
    return different_hashes(array("q", map(hash, documents)))


def _between(of_one: Hashes, least: int, most: int | None) -> tuple[int, int]:
    start = int(np.searchsorted(of_one, least))
    return start, len(of_one) if most is None else int(np.searchsorted(of_one, most))


def _common(hashes: Sequence[Hashes]) -> NDArray[np.int64]:
    """Return (L, L) how many of the hashes of one language another has too; zero for one and itself."""
    num_languages = len(hashes)
    languages_N = np.repeat(np.arange(num_languages), [len(of_one) for of_one in hashes])
    all_N = np.concatenate(hashes)
    order_N = np.argsort(all_N, kind="stable")
    all_N, languages_N = all_N[order_N], languages_N[order_N]
    found_LL = np.zeros(num_languages**2, dtype=np.int64)
    for distance in range(1, num_languages):  # equal hashes stand together, each language once
        same = all_N[distance:] == all_N[:-distance]
        if not same.any():
            break
        pairs = languages_N[:-distance][same] * num_languages + languages_N[distance:][same]
        found_LL += np.bincount(pairs, minlength=num_languages**2)
    one_way_LL = found_LL.reshape(num_languages, num_languages)
    return one_way_LL + one_way_LL.T


def shared_warning(shared: Mapping[str, float]) -> str | None:
    """Return a sentence on what a language shares with others, None where that is within `MOST_SHARED`."""
    over = {other: share for other, share in shared.items() if share > MOST_SHARED}
    if not over:
        return None
    named = ", ".join(f"{share:.0%} with {other}" for other, share in list(over.items())[:3])
    more = f" and {len(over) - 3} more" if len(over) > 3 else ""
    return f"documents are shared with other languages ({named}{more}); give every language its own text."
