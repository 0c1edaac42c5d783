"""The same text under two languages: a copied file, a mixed-up tag, or one language's text in another's crawl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import permutations

MOST_SHARED = 0.01  # of a language's documents: short lines, such as names and numbers, coincide now and then


def shared_documents(documents: Mapping[str, Iterable[str]]) -> dict[str, dict[str, float]]:
    """Return, for each language, the share of its different documents that another has too: tag -> other -> share.

    Only others with at least one such document are named, the largest share first. Why it matters: the experts of the
    two learn from the same text, the grouping finds them alike for it, and what is trained on may be tested on.
    Documents are told apart by a 64-bit hash: one pass and one number each, however many languages there are.
    """
    holders: dict[int, int] = {}  # hash of a document -> the languages that hold it, one bit each
    for place, texts in enumerate(documents.values()):
        for text in texts:
            key = hash(text)
            holders[key] = holders.get(key, 0) | 1 << place
    tags = list(documents)
    totals: Counter[str] = Counter()
    common: dict[str, Counter[str]] = {tag: Counter() for tag in tags}
    for bits, number in Counter(holders.values()).items():
        names = [tag for place, tag in enumerate(tags) if bits >> place & 1]
        totals.update(dict.fromkeys(names, number))
        for tag, other in permutations(names, 2):
            common[tag][other] += number
    return {tag: {other: n / totals[tag] for other, n in common[tag].most_common()} for tag in tags}


def shared_warning(shared: Mapping[str, float]) -> str | None:
    """Return a sentence on what a language shares with others, None where that is within `MOST_SHARED`."""
    over = {other: share for other, share in shared.items() if share > MOST_SHARED}
    if not over:
        return None
    named = ", ".join(f"{share:.0%} with {other}" for other, share in list(over.items())[:3])
    more = f" and {len(over) - 3} more" if len(over) > 3 else ""
    return f"documents are shared with other languages ({named}{more}); give every language its own text."
