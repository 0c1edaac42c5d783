"""The tree beside the heatmap: groups stay together, forks stand where the similarities say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.grouping.similarity_csv import Matrix, Similarity
from sprachbund.report.tree import BETWEEN, INSIDE, LIFTED, Tree, arrange, grow_tree, stretches


def symmetric(num_languages: int, seed: int) -> Matrix:
    values = np.random.default_rng(seed).normal(size=(num_languages, num_languages))
    return values + values.T


def kinds(tree: Tree) -> list[tuple[str, float]]:
    return sorted((fork.kind, round(fork.similarity, 6)) for fork in tree.forks)


def test_forks_stand_at_the_mean_similarity_of_the_pairs_they_join() -> None:
    values = np.eye(5)
    for a, b, similarity in ((0, 1, 0.9), (0, 2, 0.6), (1, 2, 0.8), (3, 4, 0.7)):
        values[a, b] = values[b, a] = similarity
    for a in range(3):
        for b, similarity in ((3, 0.1 * a), (4, 0.1)):
            values[a, b] = values[b, a] = similarity
    tree = grow_tree(values, [0, 0, 0, 1, 1])
    # (0.6 + 0.8) / 2 inside; (0 + 0.1 + 0.2 + 3 * 0.1) / 6 between.
    assert kinds(tree) == [(BETWEEN, 0.1), (INSIDE, 0.7), (INSIDE, 0.7), (INSIDE, 0.9)]
    assert tree.closest == 0.9


def test_groups_more_alike_than_their_own_parts_are_lifted_level() -> None:
    # The groups cut across the pairs (0, 2) and (1, 3), which are alike.
    values = np.full((4, 4), 0.1)
    values[0, 2] = values[2, 0] = values[1, 3] = values[3, 1] = 0.9
    tree = grow_tree(values, [0, 0, 1, 1])
    # Between the groups it is (0.9 + 0.9 + 0.1 + 0.1) / 4 = 0.5, nearer to the leaves than 0.1 inside.
    assert kinds(tree) == [(INSIDE, 0.1), (INSIDE, 0.1), (LIFTED, 0.1)]


def test_alike_groups_are_neighbours() -> None:
    values = np.full((6, 6), 0.1)
    for a, b in ((0, 1), (2, 3), (4, 5)):
        values[a, b] = values[b, a] = 0.9
    for a in (0, 1):
        for b in (4, 5):
            values[a, b] = values[b, a] = 0.5
    order = grow_tree(values, [0, 0, 1, 1, 2, 2]).order
    assert [group for group in (0, 1, 2) if {order[0], order[1]} == {2 * group, 2 * group + 1}] != []
    middle = {order[2] // 2, order[3] // 2}
    assert middle in ({0}, {2})  # group 1 is at an end


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 4), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 50.0]),
    shift=st.sampled_from([-3.0, 0.0, 2.0]),
)
def test_every_tree_is_drawable(groups: list[int], seed: int, scale: float, shift: float) -> None:
    values = symmetric(len(groups), seed) * scale + shift
    tree = grow_tree(values, groups)
    assert sorted(tree.order) == list(range(len(groups)))
    in_order = [groups[i] for i in tree.order]
    assert len(stretches(in_order)) == len(set(groups))
    assert len(tree.forks) == len(groups) - 1
    for fork in tree.forks:
        # No fork stands nearer to the leaves than what it joins.
        assert all(end is None or end >= fork.similarity for end in fork.ends)
        assert fork.rows[0] < fork.rows[1]
        assert fork.similarity <= tree.closest
    # A fork inside a group covers rows of that group only.
    inside = [fork for fork in tree.forks if fork.kind == INSIDE]
    assert len(inside) == len(groups) - len(set(groups))
    assert all(in_order[round(fork.rows[0])] == in_order[round(fork.rows[1])] for fork in inside)


@given(seed=st.integers(0, 1000), shift=st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_a_constant_only_moves_the_axis(seed: int, shift: float) -> None:
    groups = [0, 0, 1, 1, 1, 2, 2]
    values = symmetric(7, seed)
    tree, moved = grow_tree(values, groups), grow_tree(values + shift, groups)
    assert tree.order == moved.order
    for a, b in zip(tree.forks, moved.forks, strict=True):
        assert a.kind == b.kind
        assert b.similarity == pytest.approx(a.similarity + shift)


def test_the_arrangement_does_not_depend_on_the_order_of_the_file() -> None:
    values = symmetric(9, 3)
    tags = tuple("abcdefghi")
    group_of = {tag: i % 3 for i, tag in enumerate(tags)}
    first = arrange(Similarity(tags, values), group_of)
    order = np.random.default_rng(0).permutation(9)
    shuffled = Similarity(tuple(tags[i] for i in order), values[np.ix_(order, order)])
    second = arrange(shuffled, dict(reversed(group_of.items())))
    assert (first.tags, first.groups) == (second.tags, second.groups)
    assert first.tree == second.tree
    np.testing.assert_array_equal(first.values_LL, second.values_LL)
    assert [group_of[tag] for tag in first.tags] == list(first.groups)


def test_equal_values_keep_a_stable_order() -> None:
    tags = ("b", "a", "d", "c")
    arrangement = arrange(Similarity(tags, np.full((4, 4), 0.25)), {"a": 0, "b": 0, "c": 1, "d": 1})
    assert {fork.similarity for fork in arrangement.tree.forks} == {0.25}
    assert [fork.kind for fork in arrangement.tree.forks] == [INSIDE, INSIDE, BETWEEN]
    assert len(stretches(arrangement.groups)) == 2
