import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.corpora import splits as module
from sprachbund.corpora.splits import STRETCH_BYTES, SplitDocuments, lines_of, split_documents, thinned
from sprachbund.errors import InputError
from sprachbund.recipe import Source, Splits


def jsonl(path: Path, documents: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")


def own_splits(folder: Path, **documents: list[str]) -> SplitDocuments:
    for split, texts in documents.items():
        jsonl(folder / f"{split}.jsonl", texts)
    return split_documents(Source(file=str(folder / "{split}.jsonl")), Splits(), seed=0)


def cut(folder: Path, documents: list[str], *, seed: int = 0, dev: float = 0.2, test: float = 0.1) -> SplitDocuments:
    jsonl(folder / "a.jsonl", documents)
    return split_documents(Source(file=str(folder / "a.jsonl")), Splits(dev=dev, test=test), seed=seed)


def test_shares_are_kept_and_the_order_too(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(2000)]
    result = cut(tmp_path, documents)
    assert sorted(result.train + result.dev + result.test) == sorted(documents)
    assert 350 < len(result.dev) < 450
    assert 150 < len(result.test) < 250
    assert result.train == [document for document in documents if document in set(result.train)]
    assert (result.removed_lines, result.duplicates, result.documents) == (0, 0, 2000)


def test_a_document_stays_in_its_split_when_the_corpus_grows_and_moves_with_the_seed(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(300)]
    small, large = cut(tmp_path, documents[:200]), cut(tmp_path, documents)
    assert set(small.dev) == set(large.dev) & set(documents[:200])
    assert set(small.test) == set(large.test) & set(documents[:200])
    assert set(cut(tmp_path, documents, seed=1).test) != set(large.test)


def test_the_assignment_is_that_of_the_first_release(tmp_path: Path) -> None:
    # A change here moves every user's test split: it needs a line in the changelog.
    assert cut(tmp_path, [f"document {i}" for i in range(40)]).test == [f"document {i}" for i in (17, 18, 20, 24)]


def test_duplicates_stay_in_train_and_count_once_in_test(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(300)]
    result = cut(tmp_path, documents * 3)
    assert result.duplicates == 600
    assert len(result.train) == 3 * len(set(result.train))
    assert len(result.test) == len(set(result.test))
    assert len(result.dev) == len(set(result.dev))


def test_lines_of_an_earlier_split_are_removed_and_counted(tmp_path: Path) -> None:
    result = own_splits(
        tmp_path,
        train=["menu\nfirst text", "menu\nsecond text"],
        dev=["  menu  \n\nthird text\n\nfourth", "menu", "fifth"],
        test=["fifth\nsixth", "first text", "third text", "seventh\n\nlast", "menu\nsixth"],
    )
    assert result.train == ["menu\nfirst text", "menu\nsecond text"]
    assert result.dev == ["third text\n\nfourth", "fifth"]
    assert result.test == ["sixth", "seventh\n\nlast"]
    assert result.removed_lines == 2 + 4
    assert result.documents == 10


def test_a_line_that_only_a_vanished_part_of_dev_held_is_still_free_of_train(tmp_path: Path) -> None:
    result = own_splits(tmp_path, train=["a"], dev=["a\nb"], test=["a\nb\nc"])
    assert (result.dev, result.test) == (["b"], ["c"])


@pytest.mark.parametrize("empty", ["dev", "test"])
def test_a_user_s_split_that_only_repeats_train_is_an_error(tmp_path: Path, empty: str) -> None:
    documents = {"train": ["a", "b"], "dev": ["c"], "test": ["d"], empty: ["a"]}
    with pytest.raises(InputError, match=rf"the {empty} split is empty \(4 documents were read, 1 lines removed"):
        own_splits(tmp_path, **documents)


def test_too_few_documents_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split is empty \(1 documents.*give more documents"):
        cut(tmp_path, ["only one"])
    with pytest.raises(InputError, match="the train split is empty"):
        cut(tmp_path, [f"document {i}" for i in range(100)], dev=0.499999, test=0.499999)


line = st.text(alphabet="ab \n\t\u2028", max_size=4)


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(line.map(str.strip).filter(bool), min_size=1, max_size=40), seed=st.integers(0, 3))
def test_splits_share_no_line(documents: list[str], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "read_documents", lambda *_, **__: iter(documents))
        patch.setattr(module, "_check", lambda *_: None)
        result = split_documents(Source(file="a.txt"), Splits(dev=0.3, test=0.3), seed=seed)
    train, dev, test = lines_of(result.train), lines_of(result.dev), lines_of(result.test)
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert train | dev | test == lines_of(documents)
    assert all(document == document.strip() != "" for document in result.train + result.dev + result.test)


def size(documents: list[str]) -> int:
    return sum(len(document.encode()) for document in documents)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.0333])
def test_thinning_keeps_about_the_share_in_stretches_from_everywhere(share: float) -> None:
    documents = [f"verse {i:05} " + "word " * (20 + i % 13) for i in range(6000)]
    kept = thinned(documents, share)
    assert size(kept) == pytest.approx(share * size(documents), abs=STRETCH_BYTES)
    numbers = [int(document.split()[1]) for document in kept]
    assert numbers == sorted(set(numbers))
    # every tenth of the corpus gives its part, give or take a stretch
    tenth = size(documents) / 10
    for part in range(10):
        given = size([kept[i] for i, number in enumerate(numbers) if number // 600 == part])
        assert abs(given - share * tenth) <= 1.1 * STRETCH_BYTES
    starts = sum(after != before + 1 for before, after in pairwise(numbers)) + 1
    if share < 0.5:
        assert size(kept) / starts == pytest.approx(STRETCH_BYTES, rel=0.1)
    assert thinned(documents, share) == kept


@pytest.mark.parametrize(
    ("documents", "share", "kept"),
    [
        (["a", "b", "c"], None, ["a", "b", "c"]),
        (["a", "b", "c"], 1.0, ["a", "b", "c"]),
        (["only"], 0.01, ["only"]),  # never nothing
        (["long " * 9, "short", "long " * 9], 0.001, ["short"]),  # whole documents: the one that is nearest
        ([str(i) for i in range(10)], 0.5, ["0", "2", "4", "6", "8"]),
    ],
)
def test_thinning_of_few_documents(documents: list[str], share: float | None, kept: list[str]) -> None:
    assert thinned(documents, share) == kept


def test_a_small_share_of_a_small_corpus_is_not_all_from_one_place() -> None:
    kept = thinned([f"{i:03}" for i in range(400)], 0.04)
    assert len(kept) == 16
    assert {int(document) // 100 for document in kept} == {0, 1, 2, 3}


def test_keep_thins_out_train_only(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [f"document {i}" for i in range(500)] + ["menu", "document 7\nnew"])
    whole = split_documents(Source(file=str(tmp_path / "a.jsonl")), Splits(), seed=0)
    part = split_documents(Source(file=str(tmp_path / "a.jsonl"), keep=0.1), Splits(), seed=0)
    assert 0.05 < size(part.train) / size(whole.train) < 0.15
    assert set(part.train) < set(whole.train)
    assert (part.dev, part.test, part.documents) == (whole.dev, whole.test, whole.documents)
