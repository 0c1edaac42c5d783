"""The learner of merges against the plain algorithm, which counts everything anew after each merge."""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.adaptation.merges import MergeLearner, Pair, Piece, Vocabulary

LETTERS = dict(enumerate("abcd"))
LETTERS_AND_BYTES = {**LETTERS, 10: "<0xC3>", 11: "<0xA9>", 12: "<0xA8>"}
BYTE_IDS = {0xC3: 10, 0xA9: 11, 0xA8: 12}
WORDS = st.dictionaries(st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple), st.integers(1, 5), max_size=8)


def plain(words: dict[tuple[int, ...], int], num_merges: int) -> list[tuple[Pair, int]]:
    """Return pairs and the tokens that each saves; a string that there is already is never made again."""
    strings, found = dict(LETTERS), []
    while len(found) < num_merges:
        counts: Counter[Pair] = Counter()
        for word, weight in words.items():
            for pair in pairwise(word):
                counts[pair] += weight
        known = set(strings.values())
        free = {p: n for p, n in counts.items() if n > 1 and strings[p[0]] + strings[p[1]] not in known}
        if not free:
            break
        best = min(free, key=lambda pair: (-free[pair], pair))
        new = 100 + len(found)
        strings[new] = strings[best[0]] + strings[best[1]]
        length = sum(len(word) * weight for word, weight in words.items())
        merged: Counter[tuple[int, ...]] = Counter()
        for word, weight in words.items():
            merged[_merged(word, best, new)] += weight
        words = dict(merged)
        found.append((best, length - sum(len(word) * weight for word, weight in words.items())))
    return found


def _merged(word: tuple[int, ...], pair: Pair, new: int) -> tuple[int, ...]:
    result: list[int] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] = new
        else:
            result.append(piece)
    return tuple(result)


def learner(words: dict[tuple[Piece, ...], int], strings: dict[int, str] = LETTERS, prefix: str = "") -> MergeLearner:
    return MergeLearner(words, Vocabulary(strings, 100, BYTE_IDS, prefix))


@settings(max_examples=200, deadline=None)
@given(words=WORDS)
def test_it_is_the_plain_algorithm(words: dict[tuple[Piece, ...], int]) -> None:
    steps = list(islice(learner(words).steps(), 12))
    assert [(step.parts, step.saved) for step in steps] == plain(words, 12)  # type: ignore[arg-type]


def test_steps_say_what_they_stand_for() -> None:
    first, second = learner({(0, 1, 2): 3, (0, 1): 1}).steps()
    assert (first.parts, first.pieces, first.string, first.saved) == ((0, 1), (0, 1), "ab", 4)
    assert (second.parts, second.pieces, second.string, second.saved) == ((100, 2), (0, 1, 2), "abc", 3)


def test_nothing_is_learned_from_what_occurs_once() -> None:
    assert list(learner({(0, 1): 1, (2, 3, "é"): 1}).steps()) == []


def test_a_string_is_made_in_one_way_only() -> None:
    strings = {**LETTERS, 4: "ab"}
    assert [step.string for step in learner({(0, 1, 2): 5}, strings).steps()] == ["bc", "abc"]


def test_a_character_in_bytes_is_taken_when_it_saves_most() -> None:
    words: dict[tuple[Piece, ...], int] = {("é", "é", 0): 2, (0, 1): 5, (2, 3): 4, ("è", 3): 3}
    steps = list(learner(words, LETTERS_AND_BYTES).steps())
    assert [(step.string, step.saved) for step in steps] == [
        *[("ab", 5), ("é", 4), ("cd", 4), ("è", 3), ("èd", 3)],
        *[("éa", 2), ("ééa", 2)],
    ]
    assert steps[1].parts == steps[1].pieces == (10, 11)
    assert steps[-1].pieces == (10, 11, 10, 11, 0)


def test_the_mark_inside_words_is_written_once() -> None:
    strings = {0: "a", 1: "##b", 2: "##c"}
    assert [step.string for step in learner({(0, 1, 2): 2}, strings, "##").steps()] == ["ab", "abc"]


@pytest.mark.parametrize("order", [1, -1])
def test_equal_counts_are_decided_by_the_ids(order: int) -> None:
    words: dict[tuple[Piece, ...], int] = dict([((2, 3), 2), ((0, 3), 2), ((0, 1), 2)][::order])
    assert [step.parts for step in learner(words).steps()] == [(0, 1), (0, 3), (2, 3)]
