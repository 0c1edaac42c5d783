"""Learning new merges on text that a BPE tokenizer has cut into pieces: the most frequent pair of pieces becomes one.

The counting of Sennrich, Haddow and Birch (2016, algorithm 1), started from a tokenizer's own pieces instead of
characters, and incremental: the places of all distinct words lie in one array, and a merge touches only the places
where it happens. A word counts as often as it occurs.

Characters that a tokenizer does not know and spells in bytes, one token each (`byte_fallback`), are whole or not at
all, since no tokenizer could decode a token of half a character: such a character becomes one token in a step of its
own, when no other step saves more tokens, and can be part of a pair from then on.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace

Piece = int | str  # the id of a token, or a character that is spelled in bytes
Pair = tuple[int, int]

LEAST_OCCURRENCES = 2  # what occurs once says nothing about the language


@dataclass(frozen=True)
class Step:
    """One new token: the ids it is made of, those of the old tokens it stands for, its string, and what it saves.

    `saved` is the number of tokens by which the text becomes shorter.
    """

    parts: tuple[int, ...]
    pieces: tuple[int, ...]
    string: str
    saved: int


@dataclass(frozen=True)
class Vocabulary:
    """What a learner must know of the tokenizer that it continues.

    `strings` has the string of every token; `first_id` is the id of the first new one. `byte_ids` has, by byte, the
    tokens that spell unknown characters. `prefix` marks tokens inside a word and is dropped from the second of a pair
    (`continuing_subword_prefix`).
    """

    strings: Mapping[int, str]
    first_id: int
    byte_ids: Mapping[int, int] = field(default_factory=dict)
    prefix: str = ""


class MergeLearner:
    """The words of a text, each as its pieces so far, and how often every pair of pieces occurs.

    Places are numbered through all words, with an empty one after each; `before` and `after` link those that are left.
    """

    def __init__(self, words: Mapping[tuple[Piece, ...], int], vocabulary: Vocabulary) -> None:
        """Take the distinct words, as pieces, with how often each occurs."""
        self.vocabulary = vocabulary
        self.strings = dict(vocabulary.strings)
        self.taken = set(self.strings.values())
        self.pieces: dict[int, tuple[int, ...]] = {}  # of the new tokens
        self.piece: list[Piece | None] = [None]
        self.weight = [0]
        for word, count in words.items():
            self.piece += [*word, None]
            self.weight += [count] * (len(word) + 1)
        self.before = list(range(-1, len(self.piece) - 1))
        self.after = list(range(1, len(self.piece) + 1))
        self.counts: dict[Pair, int] = defaultdict(int)
        self.places: dict[Pair, list[int]] = defaultdict(list)
        self.characters: dict[str, list[int]] = defaultdict(list)
        for place, piece in enumerate(self.piece):
            self._note(place)
            if isinstance(piece, str):
                self.characters[piece].append(place)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapify(self.heap)

    @property
    def num_pieces(self) -> int:
        """The tokens of the text so far, without unknown ones."""
        total = 0
        for piece, weight in zip(self.piece, self.weight, strict=True):
            if piece is not None:
                total += weight * (len(piece.encode()) if isinstance(piece, str) else 1)
        return total

    def steps(self) -> Iterator[Step]:
        """Yield new tokens one by one, each the one that saves most tokens; ties go to the lowest ids.

        A string that is a token already is never one again, so that each stands for one sequence of old tokens. Ends
        where nothing occurs twice any more.
        """
        characters = self._characters_by_saving()
        while True:
            count, pair = self._most_frequent()
            if characters and characters[-1][0] >= max(count, LEAST_OCCURRENCES):
                saved, character = characters.pop()
                parts = tuple(self.vocabulary.byte_ids[byte] for byte in character.encode())
                new = self._add(character, parts)
                touched = self._spell(character, new)
                yield Step(parts, parts, character, saved)
            elif pair is not None and count >= LEAST_OCCURRENCES:
                heappop(self.heap)
                string = self.strings[pair[0]] + self.strings[pair[1]].removeprefix(self.vocabulary.prefix)
                pieces = tuple(old for part in pair for old in self.pieces.get(part, (part,)))
                if string in self.taken:
                    continue
                new = self._add(string, pieces)
                saved, touched = self._merge(pair, new)
                yield Step(pair, pieces, string, saved)
            else:
                return
            for changed in touched:
                heappush(self.heap, (-self.counts[changed], changed))

    def _characters_by_saving(self) -> list[tuple[int, str]]:
        """Return the characters spelled in bytes with the tokens that each would save, the most at the end."""
        found = []
        for character, places in self.characters.items():
            count = sum(self.weight[place] for place in places)
            saved = count * (len(character.encode()) - 1)
            if saved and count >= LEAST_OCCURRENCES:
                found.append((saved, character))
        return sorted(found, key=lambda entry: (entry[0], [-ord(letter) for letter in entry[1]]))

    def _most_frequent(self) -> tuple[int, Pair | None]:
        """Return the count of the most frequent pair and the pair, which stays on the heap."""
        while self.heap:
            negative, pair = self.heap[0]
            count = self.counts.get(pair, 0)
            if -negative == count > 0:
                return count, pair
            if count > 0:  # it has become rarer since it was put here
                heapreplace(self.heap, (-count, pair))
            else:
                heappop(self.heap)
        return 0, None

    def _add(self, string: str, pieces: tuple[int, ...]) -> int:
        new = self.vocabulary.first_id + len(self.pieces)
        self.strings[new] = string
        self.taken.add(string)
        self.pieces[new] = pieces
        return new

    def _pair_at(self, place: int) -> Pair | None:
        """Return the pair of the pieces at a place and after it; None where a word ends or a character is in bytes."""
        first = self.piece[place]
        if not isinstance(first, int):
            return None
        second = self.piece[self.after[place]]
        return (first, second) if isinstance(second, int) else None

    def _note(self, place: int) -> Pair | None:
        """Count the pair at a place, and return it."""
        pair = self._pair_at(place)
        if pair is not None:
            self.counts[pair] += self.weight[place]
            self.places[pair].append(place)
        return pair

    def _forget(self, place: int) -> None:
        pair = self._pair_at(place)
        if pair is not None:
            self.counts[pair] -= self.weight[place]

    def _spell(self, character: str, new: int) -> set[Pair]:
        """Make a character one token wherever it stands; return the pairs that come into being."""
        touched: set[Pair | None] = set()
        for place in self.characters.pop(character):
            self.piece[place] = new
            touched |= {self._note(self.before[place]), self._note(place)}
        return {pair for pair in touched if pair is not None}

    def _merge(self, pair: Pair, new: int) -> tuple[int, set[Pair]]:
        """Make a pair one token wherever it stands; return the tokens saved and the pairs that come into being."""
        saved = 0
        touched: set[Pair | None] = set()
        for place in sorted(self.places.pop(pair)):  # from left to right, as the tokenizer will
            if self._pair_at(place) != pair:  # gone since it was noted, or overlapped by the one before
                continue
            second = self.after[place]
            self._forget(self.before[place])
            self._forget(second)
            self.piece[place], self.piece[second] = new, None
            self.after[place] = self.after[second]
            self.before[self.after[second]] = place
            touched |= {self._note(self.before[place]), self._note(place)}
            saved += self.weight[place]
        del self.counts[pair]
        return saved, {noted for noted in touched if noted is not None}
