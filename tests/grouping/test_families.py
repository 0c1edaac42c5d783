from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from sprachbund.errors import InputError
from sprachbund.grouping.families import (
    family_agreement,
    family_auc,
    family_similarity,
    random_similarity,
    read_families,
)
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.stability import adjusted_rand

BIBLE = Path(__file__).parents[2] / "../shared/corpora/bible-nt/languages.csv"
needs_bible = pytest.mark.skipif(not BIBLE.is_file(), reason="the Bible corpus is not beside this checkout")


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "families.csv"
    path.write_text(text, encoding="utf-8")
    return path


def matrix(tags: str, upper: list[float]) -> Similarity:
    values_LL = np.eye(len(tags))
    rows, columns = np.triu_indices(len(tags), k=1)
    values_LL[rows, columns] = values_LL[columns, rows] = upper
    return Similarity(tuple(tags), values_LL)


def test_family_and_genus_are_found_by_their_headers_and_other_columns_ignored(tmp_path: Path) -> None:
    path = table(tmp_path, "tag,Genus,count,Family\nde,Germanic,3,Indo-European\n\nfi,Finnic,,Uralic\n")
    found = read_families(path, tags=["fi", "de"])
    assert found == {"fi": ("Uralic", "Finnic"), "de": ("Indo-European", "Germanic")}
    assert list(found) == ["fi", "de"]


def test_without_these_headers_every_column_is_a_level_from_left_to_right(tmp_path: Path) -> None:
    path = table(tmp_path, "language,macro-area,stock\nde,Eurasia,IE\n")
    assert read_families(path, tags=["de"]) == {"de": ("Eurasia", "IE")}


@pytest.mark.parametrize(("written", "tag"), [("Swahili", "swh_Latn"), ("arb_Arab", "ar"), ("DE", "deu"), ("x1", "x1")])
def test_languages_may_be_written_differently_in_table_and_matrix(tmp_path: Path, written: str, tag: str) -> None:
    assert read_families(table(tmp_path, f"name,family\n{written},F\n"), tags=[tag]) == {tag: ("F",)}


def test_equal_names_win_over_equal_languages(tmp_path: Path) -> None:
    path = table(tmp_path, "name,family\narb_Arab,A\nar,B\n")
    assert read_families(path, tags=["ar", "arb_Arab"]) == {"ar": ("B",), "arb_Arab": ("A",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the file is empty"),
        ("de\nfi\n", "line 1: found the single column 'de'"),
        ("tag,family\nde,IE\ndeu_Latn,IE\nfi,U\n", "line 3: 'deu_Latn' is 'de', which has a line already"),
        ("tag,family,genus\nde,IE,\nfi,U,F\n", "line 2: 'de' has no 'genus'"),
        ("tag,family,genus\nde,IE,G\nfi,U\n", "line 3: 'fi' has no 'genus'"),
        ("tag,family\nde,IE\nsv,IE\n", "no line for the language 'fi'; add its line"),
        ("tag,family\nde,IE\nfin_Latin,U\n", "no line for the language 'fi'"),
    ],
)
def test_bad_tables_are_refused_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = table(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_families(path, tags=["de", "fi"])
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_an_empty_cell_of_a_language_that_is_not_asked_for_does_not_matter(tmp_path: Path) -> None:
    assert read_families(table(tmp_path, "tag,family\nde,IE\nfi,\n"), tags=["de"]) == {"de": ("IE",)}


@needs_bible
def test_the_table_of_the_bible_corpus_is_read() -> None:
    families = read_families(BIBLE, tags=["cak_Latn", "ukr_Cyrl"])
    assert families == {"cak_Latn": ("Mayan", "Quichean"), "ukr_Cyrl": ("Indo-European", "Slavic")}


def test_similarity_is_the_share_of_levels_from_the_coarse_end() -> None:
    families = {"a": ("F", "g"), "b": ("F", "g"), "c": ("F", "h"), "d": ("E", "h")}
    similarity = family_similarity(families, ["a", "b", "c", "d"])
    # c and d have a genus of one name in two families: that is no kinship.
    np.testing.assert_array_equal(similarity.values_LL[0], [1, 1, 0.5, 0])
    np.testing.assert_array_equal(similarity.values_LL[3], [0, 0, 0, 1])


def test_a_language_without_family_is_named() -> None:
    with pytest.raises(InputError, match="'swa' has no family, did you mean 'swh'"):
        family_similarity({"swh": ("Niger-Congo",)}, ["swa"])


def test_random_similarity_gives_a_pair_its_number_in_any_order() -> None:
    straight, turned = random_similarity(["a", "b", "c"], seed=3), random_similarity(["c", "a", "b"], seed=3)
    order = [straight.tags.index(tag) for tag in turned.tags]
    np.testing.assert_array_equal(straight.values_LL[np.ix_(order, order)], turned.values_LL)
    np.testing.assert_array_equal(straight.values_LL, straight.values_LL.T)
    assert len(set(straight.values_LL.ravel())) == 4  # the diagonal and three pairs
    assert not np.array_equal(straight.values_LL, random_similarity(["a", "b", "c"], seed=4).values_LL)


def test_agreement_is_the_rand_index_and_its_p_value_that_of_all_permutations() -> None:
    grouping = Grouping((("a", "b", "c"), ("d", "e", "f")))
    family = {"a": "X", "b": "X", "c": "Y", "d": "Y", "e": "Y", "f": "Z"}
    found = family_agreement(grouping, family, permutations=20_000, seed=0)
    as_groups = Grouping((("a", "b"), ("c", "d", "e"), ("f",)))
    assert found.rand == pytest.approx(adjusted_rand(grouping, as_groups))

    def together(labels: tuple[str, ...]) -> int:
        return sum(labels[i] == labels[j] for block in ((0, 1, 2), (3, 4, 5)) for i in block for j in block if i < j)

    every = [together(labels) for labels in permutations(family.values())]
    exact = float(np.mean([value >= together(tuple(family.values())) for value in every]))
    assert 0.1 < exact < 0.9
    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_perfect_agreement_has_the_smallest_p_value_and_no_agreement_a_large_one() -> None:
    groups = (tuple("abcdef"), tuple("ghijkl"))
    family = {tag: "first" if tag < "g" else "second" for tag in "abcdefghijkl"}
    found = family_agreement(Grouping(groups), family, permutations=400, seed=1)
    assert found.rand == 1.0
    assert found.p_value <= 6 / 401  # 2 of the 924 ways to split twelve languages in halves are as good
    crossed = Grouping((tuple("abcghi"), tuple("defjkl")))
    assert family_agreement(crossed, family, permutations=400, seed=1).p_value == 1.0


def test_where_all_are_of_one_family_nothing_can_be_said() -> None:
    found = family_agreement(Grouping((("a", "b"), ("c",))), dict.fromkeys("abc", "F"), permutations=10, seed=0)
    assert (found.rand, found.p_value) == (0.0, 1.0)


def test_agreement_does_not_depend_on_other_languages_and_refuses_missing_ones() -> None:
    grouping = Grouping((("a", "b"), ("c", "d")))
    family = {"z": "Z", "d": "Y", "c": "Y", "b": "X", "a": "X"}
    assert family_agreement(grouping, family, permutations=9, seed=0).rand == 1.0
    with pytest.raises(InputError, match="'d' has no family"):
        family_agreement(grouping, {"a": "X", "b": "X", "c": "Y"}, seed=0)
    with pytest.raises(InputError, match="0 permutations"):
        family_agreement(grouping, family, permutations=0, seed=0)


def test_auc_counts_pairs_of_pairs() -> None:
    # Same-family pairs: ab .5, cd .2; others: .4 .2 .1 .1. Better: 4 of 4, then 2 and a tie of 4.
    similarity = matrix("abcd", [0.5, 0.4, 0.2, 0.1, 0.1, 0.2])
    family = {"a": "X", "b": "X", "c": "Y", "d": "Y"}
    assert family_auc(similarity, family) == pytest.approx((4 + 2.5) / 8)


@pytest.mark.parametrize("labels", ["XXXX", "WXYZ"])
def test_auc_is_unknown_where_all_pairs_are_of_one_kind(labels: str) -> None:
    assert family_auc(random_similarity("abcd", seed=0), dict(zip("abcd", labels, strict=True))) is None
