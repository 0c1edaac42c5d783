"""The best grouping into pairs, or pairs and single languages, of up to 200 languages: a perfect matching.

A language that stays alone is matched with one of as many dummies as groups of one are needed (Edmonds 1965; the
algorithm is networkx's). Weights of edges are whole numbers, with which that algorithm is exact.
Shapes: L languages.
"""

from itertools import combinations

import networkx as nx
import numpy as np

from sprachbund.grouping.problem import Labels, Problem

MOST_LANGUAGES = 200

# Similarities become whole numbers of this many bits, as good as the floats they are.
BITS = 60


def is_matching(problem: Problem) -> bool:
    """Return whether no group has more than two languages."""
    return problem.largest <= 2


class Matching:
    """The optima of a problem whose groups have two languages or one."""

    method = "matching"

    def __init__(self, problem: Problem) -> None:
        """Take a problem of pairs and single languages."""
        assert is_matching(problem), "a matching makes pairs"
        self.problem = problem

    def best_mean(self, *, least: float | None = None) -> Labels | None:
        """Return the grouping with the largest mean similarity among those with no pair below `least`, or None."""
        return self._match(self.problem.with_least(least), weighted=True)

    def best_worst(self) -> Labels | None:
        """Return a grouping whose least alike pair is most alike, or None where nothing satisfies the constraints."""
        best = self._match(self.problem, weighted=False)
        if best is None:
            return None
        levels = self.problem.levels
        low, high = int(np.searchsorted(levels, self.problem.worst(best))), len(levels)
        while high - low > 1:
            middle = (low + high) // 2
            found = self._match(self.problem.with_least(float(levels[middle])), weighted=False)
            if found is None:
                high = middle
            else:
                best, low = found, middle
        return best

    def _match(self, problem: Problem, *, weighted: bool) -> Labels | None:
        graph = _graph(problem, weighted=weighted)
        pairs = nx.max_weight_matching(graph, maxcardinality=True)
        if 2 * len(pairs) < len(graph):
            return None
        labels_L = np.empty(problem.num_languages, dtype=np.intp)
        for number, pair in enumerate(sorted(tuple(sorted(pair)) for pair in pairs)):
            labels_L[[node for node in pair if node < problem.num_languages]] = number
        return labels_L


def _graph(problem: Problem, *, weighted: bool) -> nx.Graph:
    """Return languages and dummies, with an edge where two of them may be matched."""
    num_languages = problem.num_languages
    num_alone = num_languages - 2 * problem.num_pairs
    graph = nx.Graph()
    graph.add_nodes_from(range(num_languages + num_alone))
    # A pair that must be together is allowed nobody else, so its languages only must not stay alone.
    taken = {a for pair in problem.together for a in pair}
    mantissas, exponent = problem.values_LL / (np.abs(problem.values_LL).max() or 1.0), 2.0**BITS
    for a, b in combinations(range(num_languages), 2):
        if problem.allowed_LL[a, b] and _light(problem, a, b):
            graph.add_edge(a, b, weight=int(mantissas[a, b] * exponent) if weighted else 1)
    for a in range(num_languages):
        if a not in taken and _light(problem, a):
            # All groupings have as many dummies, so their edges may weigh anything that is the same for all.
            graph.add_edges_from(((a, num_languages + k) for k in range(num_alone)), weight=0 if weighted else 1)
    return graph


def _light(problem: Problem, *group: int) -> bool:
    """Return whether the weight of a group lies within the window."""
    if problem.weights_L is None:
        return True
    return bool(problem.lightest <= problem.weights_L[list(group)].sum() <= problem.heaviest)
