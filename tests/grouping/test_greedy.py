import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sprachbund.errors import InputError
from sprachbund.grouping import (
    METHODS,
    Grouping,
    Similarity,
    group,
    group_greedy_exhaustive,
    group_greedy_seeded,
    read_groups,
    read_similarity,
    write_groups,
)

DMOE = Path(__file__).parents[2] / "../shared/reference/dmoe"
needs_reference = pytest.mark.skipif(not DMOE.is_dir(), reason="the authors' files are not beside this checkout")


def planted(blocks: list[str], *, inside: float, between: float) -> Similarity:
    """Every letter is a language, every string a family."""
    tags = tuple("".join(blocks))
    family = np.array([number for number, block in enumerate(blocks) for _ in block])
    values_LL = np.where(family[:, None] == family[None, :], inside, between)
    np.fill_diagonal(values_LL, 1.0)
    return Similarity(tags, values_LL)


def from_pairs(tags: str, pairs: dict[str, float], *, otherwise: float = 0.0) -> Similarity:
    values_LL = np.full((len(tags), len(tags)), otherwise)
    np.fill_diagonal(values_LL, 1.0)
    for (a, b), value in pairs.items():
        values_LL[tags.index(a), tags.index(b)] = values_LL[tags.index(b), tags.index(a)] = value
    return Similarity(tuple(tags), values_LL)


def random_similarity(num_languages: int, *, seed: int) -> Similarity:
    rows = np.random.default_rng(seed).normal(size=(num_languages, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Similarity(tuple(f"l{i}" for i in range(num_languages)), rows @ rows.T)


def as_sets(grouping: Grouping) -> list[set[str]]:
    return [set(members) for members in grouping.groups]


# BLOOM-560M, last three layers: the two triples that the paper's six groups start with, and the Slavic pair.
PUBLISHED_TAGS = ("fr", "id", "vi", "hi", "ta", "te", "ru", "uk")
PUBLISHED_UPPER = [
    [0.14398, 0.15352, 0.07852, 0.04477, 0.02422, 0.03867, 0.01992],
    [0.14516, 0.13711, 0.06914, 0.05273, 0.02695, 0.01992],
    [0.08789, 0.05445, 0.03867, 0.03164, 0.01992],
    [0.16289, 0.12305, 0.02227, 0.01758],
    [0.18633, 0.01992, 0.01992],
    [0.01055, 0.01289],
    [0.30133],
]


def test_first_groups_of_the_paper_without_its_files() -> None:
    values_LL = np.eye(8)
    for row, values in enumerate(PUBLISHED_UPPER):
        values_LL[row, row + 1 :] = values_LL[row + 1 :, row] = values
    grouping = group_greedy_exhaustive(Similarity(PUBLISHED_TAGS, values_LL), num_groups=3)
    # Li et al. publish {fr id vi} {hi ta te} in this order; ru and uk are left for the smaller last group.
    assert grouping.groups == (("fr", "id", "vi"), ("hi", "ta", "te"), ("ru", "uk"))


@needs_reference
@pytest.mark.parametrize("num_groups", [2, 3, 6, 9])
def test_exhaustive_gives_the_published_groups_of_18_languages(num_groups: int) -> None:
    similarity = read_similarity(DMOE / "bloom-560m_last3_sim_fine.csv")
    published = read_groups(DMOE / f"{num_groups}Groups-train.json", tags=similarity.tags)
    assert as_sets(group_greedy_exhaustive(similarity, num_groups=num_groups)) == as_sets(published)


@needs_reference
def test_seeded_differs_from_the_published_groups_of_18_languages() -> None:
    # A contrast: the algorithm for 128 languages is another one; on the 2-decimal matrix it finds 3 of the 6 groups.
    similarity = read_similarity(DMOE / "bloom-560m_last3_sim_text.csv")
    published = as_sets(read_groups(DMOE / "6Groups-train.json"))
    assert sum(members in published for members in as_sets(group_greedy_seeded(similarity, num_groups=6))) == 3


@needs_reference
def test_published_groups_of_128_languages_are_readable() -> None:
    grouping = read_groups(DMOE / "16Groups-128langs-train.json")
    assert [len(members) for members in grouping.groups] == [8] * 16


@pytest.mark.parametrize("method", list(METHODS))
def test_planted_families_are_found(method: str) -> None:
    similarity = planted(["abc", "def", "ghi"], inside=0.4, between=0.1)
    shuffled = [4, 0, 8, 2, 6, 1, 3, 7, 5]
    similarity = Similarity(
        tuple(similarity.tags[i] for i in shuffled), similarity.values_LL[np.ix_(shuffled, shuffled)]
    )
    grouping = group(similarity, num_groups=3, method=method)
    assert {frozenset(members) for members in grouping.groups} == {frozenset("abc"), frozenset("def"), frozenset("ghi")}


def test_the_two_algorithms_part_where_the_closest_pair_has_no_friend() -> None:
    # a-b is the most alike pair, but its group can only be completed by a stranger; c-d-e is tighter as a group.
    similarity = from_pairs("abcdef", {"ab": 0.9, "cd": 0.5, "ce": 0.5, "de": 0.5, "af": 0.1, "bf": 0.2})
    assert group_greedy_exhaustive(similarity, num_groups=2).groups == (tuple("cde"), tuple("abf"))
    assert group_greedy_seeded(similarity, num_groups=2).groups == (tuple("abf"), tuple("cde"))


def test_seeded_adds_by_the_least_alike_member_not_by_the_mean() -> None:
    # To {a, b}: c has 0.8 and 0.1 (mean 0.45), d has 0.3 and 0.3.
    similarity = from_pairs("abcdef", {"ab": 0.9, "ac": 0.8, "bc": 0.1, "ad": 0.3, "bd": 0.3}, otherwise=-0.5)
    assert group_greedy_seeded(similarity, num_groups=2).groups[0] == tuple("abd")


def test_seeded_counts_the_members_that_joined_later() -> None:
    # d is nearer to the seed {a, b} than e is, but a stranger to c, which joins third.
    pairs = {"ab": 0.9, "ac": 0.5, "bc": 0.5, "ad": 0.4, "bd": 0.4, "cd": -0.2, "ae": 0.3, "be": 0.3, "ce": 0.3}
    similarity = from_pairs("abcdefgh", pairs, otherwise=-0.5)
    assert group_greedy_seeded(similarity, num_groups=2).groups == (tuple("abce"), tuple("dfgh"))


@pytest.mark.parametrize("method", list(METHODS))
def test_ties_go_to_the_first_in_the_order_of_the_input(method: str) -> None:
    similarity = planted(["zyxwvu"], inside=0.3, between=0.3)
    assert group(similarity, num_groups=3, method=method).groups == (tuple("zy"), tuple("xw"), tuple("vu"))


@pytest.mark.parametrize("chunk_indices", [1, 7, 64])
def test_exhaustive_agrees_with_plain_enumeration_whatever_the_chunk(
    chunk_indices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprachbund.grouping.greedy.CHUNK_INDICES", chunk_indices)
    similarity = random_similarity(8, seed=3)
    # Two decimals make ties, as in the paper's own figures.
    similarity = Similarity(similarity.tags, similarity.values_LL.round(1))
    remaining, expected = list(range(8)), []
    while remaining:
        best = max(
            combinations(remaining, 4),
            key=lambda members: min(similarity.values_LL[a, b] for a, b in combinations(members, 2)),
        )
        expected.append(tuple(similarity.tags[i] for i in best))
        remaining = [i for i in remaining if i not in best]
    assert list(group_greedy_exhaustive(similarity, num_groups=2).groups) == expected


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize(
    ("num_groups", "sizes"),
    [(1, [7]), (2, [4, 3]), (3, [3, 2, 2]), (5, [2, 2, 1, 1, 1]), (6, [2, 1, 1, 1, 1, 1]), (7, [1] * 7)],
)
def test_sizes_differ_by_at_most_one_larger_first(method: str, num_groups: int, sizes: list[int]) -> None:
    similarity = random_similarity(7, seed=1)
    grouping = group(similarity, num_groups=num_groups, method=method)
    assert [len(members) for members in grouping.groups] == sizes
    assert sorted(grouping.as_dict()) == sorted(similarity.tags)


def test_seeded_takes_128_languages() -> None:
    grouping = group_greedy_seeded(random_similarity(128, seed=0), num_groups=16)
    assert [len(members) for members in grouping.groups] == [8] * 16


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("num_groups", [-1, 0, 5])
def test_number_of_groups_outside_the_range_is_refused(method: str, num_groups: int) -> None:
    with pytest.raises(InputError, match=rf"{num_groups} groups asked for 4 languages; ask for 1 to 4"):
        group(random_similarity(4, seed=0), num_groups=num_groups, method=method)


def test_exhaustive_refuses_what_cannot_be_enumerated() -> None:
    with pytest.raises(
        InputError, match=r"3\.2e\+12 combinations for 128 languages in 16 .* use the method greedy-see"
    ):
        group_greedy_exhaustive(random_similarity(128, seed=0), num_groups=16)


def test_unknown_method_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"'kmeans'\. Available: greedy-exhaustive, greedy-seeded"):
        group(random_similarity(4, seed=0), num_groups=2, method="kmeans")


def test_mean_and_min_are_over_pairs_inside_groups() -> None:
    similarity = from_pairs("abcd", {"ab": 0.5, "ac": 0.2, "bc": 0.3}, otherwise=-1.0)
    grouping = Grouping((tuple("abc"), tuple("d")))
    assert grouping.mean_similarity(similarity) == pytest.approx(1.0 / 3)
    assert grouping.min_similarity(similarity) == 0.2
    singletons = Grouping((("a",), ("b",), ("c",), ("d",)))
    assert singletons.mean_similarity(similarity) is None
    assert singletons.min_similarity(similarity) is None
    with pytest.raises(InputError, match="no language 'e'"):
        Grouping((("a", "e"),)).mean_similarity(similarity)


def test_grouping_and_its_dict_are_inverse() -> None:
    grouping = Grouping((("c", "a"), ("b",)))
    assert list(grouping.as_dict().items()) == [("c", 0), ("a", 0), ("b", 1)]
    assert Grouping.from_dict(grouping.as_dict()) == grouping
    assert Grouping.from_dict({"b": 1, "c": 0, "a": 0}) == grouping
    assert grouping.group_of("b") == 1
    with pytest.raises(InputError, match="'d'"):
        grouping.group_of("d")
    with pytest.raises(InputError, match=r"\[0, 2\]"):
        Grouping.from_dict({"a": 0, "b": 2})


def test_groups_file_round_trip(tmp_path: Path) -> None:
    grouping = Grouping((("swh_Latn", "zul_Latn"), ("ukr_Cyrl",)))
    path = tmp_path / "groups.json"
    write_groups(path, grouping)
    assert list(json.loads(path.read_text()).items()) == [("swh_Latn", 0), ("zul_Latn", 0), ("ukr_Cyrl", 1)]
    assert read_groups(path, tags=["ukr_Cyrl", "swh_Latn", "zul_Latn"]) == grouping
    assert [entry.name for entry in tmp_path.iterdir()] == ["groups.json"]


@pytest.mark.parametrize(
    "content",
    ['{"a": 7, "b": 2, "c": 7}', '{"a": "romance", "b": "slavic", "c": "romance"}', '{"a": 0, "b": 1, "c": 0}'],
)
def test_groups_are_renumbered_by_first_appearance(content: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(content)
    assert read_groups(tmp_path / "g.json").groups == (("a", "c"), ("b",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"swh": 0,\n "zul": }', "g.json, line 2: not valid JSON"),
        ("", "g.json, line 1: not valid JSON"),
        ('["swh", "zul"]', "expected a JSON object"),
        ("{}", "expected a JSON object"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"swh": 0, "zul": 0, "swh": 1}', "'swh' occurs twice"),
        ('{"swh": 0, "zul": 1.5}', "the group of 'zul' is 1.5"),
        ('{"swh": 0, "zul": true}', "the group of 'zul' is true"),
        ('{"swh": 0, "zul": -1}', "the group of 'zul' is -1"),
        ('{"swh": 0, "zul": "x"}', "the group of 'zul' is \"x\""),
        ('{"swh": "x", "zul": ""}', "the group of 'zul' is \"\""),
        ('{"swh": null, "zul": null}', "the group of 'swh' is null"),
        ('{"swh": 0}', "no group for 'zul'"),
        ('{"swh": 0, "zull": 0}', "the recipe has no language 'zull', did you mean 'zul'"),
    ],
)
def test_bad_groups_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_groups(tmp_path / "g.json", tags=["swh", "zul"])
    assert message in str(caught.value)
    assert "g.json" in str(caught.value)


def test_missing_groups_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json: cannot be read"):
        read_groups(tmp_path / "absent.json")


def test_given_groups_may_name_languages_in_any_notation(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text('{"Zulu": "bantu", "sw": "bantu", "uk": "slavic"}')
    assert read_groups(path, tags=["swh_Latn", "zul_Latn", "ukr_Cyrl"]).as_dict() == {
        "zul_Latn": 0,
        "swh_Latn": 0,
        "ukr_Cyrl": 1,
    }
    path.write_text('{"zul_Latn": 0, "zu": 0, "ukr_Cyrl": 1}')
    with pytest.raises(InputError, match="'zu' is zul_Latn, which is there already"):
        read_groups(path, tags=["zul_Latn", "ukr_Cyrl"])
