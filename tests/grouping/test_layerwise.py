from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.layerwise import allocate, between_groups, check_total, evenness_warning, experts_per_layer
from sprachbund.grouping.similarity_csv import Similarity

TAGS = ("aaa", "bbb", "ccc", "ddd", "eee", "fff")
PAIRS = Grouping((("aaa", "bbb"), ("ccc", "ddd"), ("eee", "fff")))


def similarity(values: dict[str, float], default: float, tags: tuple[str, ...] = TAGS) -> Similarity:
    """Return a matrix with ones on the diagonal, the given values for pairs like "ac", and a default for the others."""
    matrix = np.full((len(tags), len(tags)), default)
    np.fill_diagonal(matrix, 1.0)
    for pair, value in values.items():
        a, b = (next(i for i, tag in enumerate(tags) if tag.startswith(letter)) for letter in pair)
        matrix[a, b] = matrix[b, a] = value
    return Similarity(tags, matrix)


def test_the_similarity_of_groups_is_the_mean_over_their_pairs_of_languages() -> None:
    grouping = Grouping((("ccc",), ("aaa", "bbb"), ("fff", "ddd", "eee")))
    matrix = similarity({"ac": 0.2, "bc": 0.4, "ad": 0.1, "ae": 0.2, "af": 0.3, "ab": 0.9, "de": -0.9}, 0.0)
    between = between_groups(matrix, grouping, layer=0)
    assert between[0, 1] == pytest.approx(0.3)
    assert between[1, 0] == pytest.approx(0.3)
    assert between[1, 2] == pytest.approx(0.1)
    assert between[0, 2] == pytest.approx(0.0)


def test_the_less_alike_the_groups_of_a_layer_the_more_experts_it_gets() -> None:
    """Dissimilarities .4, .1 and .5 of 6 experts: 2.4, .6 and 3; the second stays dense, then 2.67 and 3.33."""
    found = experts_per_layer(
        {4: similarity({}, 0.6), 5: similarity({}, 0.9), 9: similarity({"ab": 0.0, "cd": 0.0}, 0.5)}, PAIRS, total=6
    )
    assert found == {4: [0, 1, 2], 9: [0, 1, 2]}
    found = experts_per_layer({4: similarity({}, 0.6), 5: similarity({}, 0.9), 9: similarity({}, 0.5)}, PAIRS, total=5)
    assert {layer: max(table) + 1 for layer, table in found.items()} == {4: 2, 9: 3}


def test_the_groups_that_are_most_alike_in_a_layer_share_its_expert() -> None:
    first_and_last = similarity({"ae": 0.8, "bf": 0.8, "af": 0.8, "be": 0.8, "ac": 0.1, "ce": 0.2}, 0.0)
    last_two = similarity({"ce": 0.5}, 0.2)
    found = experts_per_layer({0: first_and_last, 3: last_two}, PAIRS, total=4)
    assert found == {0: [0, 1, 0], 3: [0, 1, 1]}
    one_each = experts_per_layer({0: first_and_last, 3: last_two}, PAIRS, total=6)
    assert one_each == {0: [0, 1, 2], 3: [0, 1, 2]}


def test_sharing_is_by_average_linkage() -> None:
    """Four groups: 0 and 1 merge first; 2 is nearer to 1 than to 3, but on average over 0 and 1 it is not."""
    tags = ("aaa", "bbb", "ccc", "ddd")
    matrix = similarity({"ab": 0.9, "bc": 0.6, "ac": 0.0, "cd": 0.4, "bd": 0.0, "ad": 0.0}, 0.0, tags)
    grouping = Grouping(tuple((tag,) for tag in tags))
    assert experts_per_layer({0: matrix}, grouping, total=3) == {0: [0, 0, 1, 2]}
    assert experts_per_layer({0: matrix}, grouping, total=2) == {0: [0, 0, 1, 1]}


def test_ties_give_the_number_of_experts_all_the_same() -> None:
    tags = tuple(f"t{i}" for i in range(9))
    equal, grouping = similarity({}, 0.3, tags), Grouping(tuple((tag,) for tag in tags))
    for count in range(2, 10):
        (table,) = experts_per_layer({0: equal}, grouping, total=count).values()
        assert len(set(table)) == count


def test_labels_may_be_in_another_order_and_more_than_the_groups_have() -> None:
    values = {"ac": 0.9, "ad": 0.7, "bc": 0.8, "ce": 0.1}
    tags = ("fff", "xxx", "ccc", "aaa", "eee", "ddd", "bbb")
    plain = experts_per_layer({0: similarity(values, 0.2)}, PAIRS, total=2)
    assert experts_per_layer({0: similarity(values, 0.2, tags)}, PAIRS, total=2) == plain == {0: [0, 0, 1]}


@pytest.mark.parametrize(
    ("dissimilarity", "total", "most", "expected"),
    [
        ([0.5, 0.5, 0.5, 0.5], 6, 3, [2, 2, 2, 0]),  # of equal ones the last stays dense
        ([0.5, 0.5, 0.5, 0.5], 7, 3, [3, 2, 2, 0]),
        ([0.1, 0.9], 2, 4, [0, 2]),
        ([0.3, 0.5, 0.2], 8, 4, [2, 4, 2]),  # shares 2.4, 4 and 1.6; no layer has one expert
        ([0.6, 0.2, 0.2], 10, 6, [6, 2, 2]),
        ([0.99, 0.01], 4, 3, [2, 2]),  # one layer alone has no room for four
        ([0.99, 0.01], 5, 3, [3, 2]),
        ([1.0, 0.0], 7, 4, [4, 3]),  # nor here, though the groups are all alike in the second
        ([0.0, 0.0, 0.0], 4, 2, [2, 2, 0]),
        ([0.9, 0.1, 0.5], 4, 2, [2, 0, 2]),
        ([1.6, 0.3], 4, 4, [4, 0]),  # shares 3.37 and .63
        ([1.6, 0.5], 5, 6, [3, 2]),  # shares 3.81 and 1.19: no layer has one expert
    ],
)
def test_allocation_by_hand(dissimilarity: list[float], total: int, most: int, expected: list[int]) -> None:
    assert allocate(dissimilarity, total=total, most=most) == expected


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_possible_total_is_spent_and_more_dissimilar_layers_never_get_less(data: st.DataObject) -> None:
    most = data.draw(st.integers(2, 6))
    values = data.draw(st.lists(st.floats(0, 2, width=16), min_size=1, max_size=8))
    total = data.draw(st.integers(2, most * len(values)))
    if most == 2:
        total -= total % 2
    counts = allocate(values, total=total, most=most)
    assert sum(counts) == total
    assert all(count == 0 or 2 <= count <= most for count in counts)
    for a, b in combinations(range(len(values)), 2):
        if values[a] >= values[b]:
            assert counts[a] >= counts[b]
        if values[b] > values[a]:
            assert counts[b] >= counts[a]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_experts_of_every_layer_are_numbered_in_the_order_of_the_groups(data: st.DataObject) -> None:
    num_groups, num_layers = data.draw(st.integers(3, 6)), data.draw(st.integers(1, 4))
    tags = tuple(f"t{i}" for i in range(num_groups))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    layers = {}
    for layer in range(num_layers):
        vectors = draw.normal(size=(num_groups, 3))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        layers[layer] = Similarity(tags, np.clip(vectors @ vectors.T, -1, 1))
    total = data.draw(st.integers(2, num_groups * num_layers))
    found = experts_per_layer(layers, Grouping(tuple((tag,) for tag in tags)), total=total)
    assert sum(len(set(table)) for table in found.values()) == total
    for table in found.values():
        assert list(dict.fromkeys(table)) == list(range(len(set(table))))
        assert len(table) == num_groups


def test_layers_that_hardly_differ_are_said_to() -> None:
    layers = {0: similarity({}, 0.5), 1: similarity({}, 0.51), 2: similarity({}, 0.49)}
    warning = evenness_warning(layers, PAIRS)
    assert warning is not None
    assert "differs by 4.0% of its mean" in warning
    assert evenness_warning({**layers, 3: similarity({}, 0.4)}, PAIRS) is None
    assert evenness_warning({0: similarity({}, 0.5)}, PAIRS) is None  # one layer has nothing to differ from
    alike = evenness_warning({0: similarity({}, 1.0), 1: similarity({}, 1.0)}, PAIRS)
    assert alike is not None


@pytest.mark.parametrize("total", [-3, 0, 1, 7])
def test_a_total_that_cannot_be_is_refused_with_the_range(total: int) -> None:
    layers = {0: similarity({}, 0.5), 1: similarity({}, 0.6)}
    with pytest.raises(InputError, match=rf"layerwise = {total} experts .*; 3 groups in 2 layers can have 2 to 6\."):
        experts_per_layer(layers, PAIRS, total=total)
    check_total(6, num_groups=3, num_layers=2)


def test_what_cannot_be_allocated_is_refused() -> None:
    two = Grouping((("aaa", "bbb", "ccc"), ("ddd", "eee", "fff")))
    layers = {0: similarity({}, 0.5), 1: similarity({}, 0.6)}
    assert experts_per_layer(layers, two, total=2) == {0: [0, 1]}
    with pytest.raises(InputError, match="with 2 groups every mixture layer has 2, so give an even number from 2 to 4"):
        experts_per_layer(layers, two, total=3)
    with pytest.raises(InputError, match="at least 2 groups"):
        experts_per_layer(layers, Grouping((TAGS,)), total=2)
    with pytest.raises(InputError, match="at least one layer"):
        experts_per_layer({}, PAIRS, total=2)
    with pytest.raises(InputError, match="similarity of layer 1 has no language 'fff'"):
        experts_per_layer({0: similarity({}, 0.5), 1: similarity({}, 0.5, TAGS[:5])}, PAIRS, total=2)
    for odd in (1.2, -3.0, float("nan")):
        with pytest.raises(InputError, match=f"similarity of layer 0 holds {odd:g}; experts per layer"):
            experts_per_layer({0: similarity({"ab": odd}, 0.5)}, PAIRS, total=2)
