import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.corpora import packing
from sprachbund.corpora.packing import (
    block_sequence,
    cache_folder,
    epoch_order,
    load_packed,
    pack,
    pack_cached,
)
from sprachbund.errors import InputError

END = 256


def as_bytes(documents: list[str]) -> list[list[int]]:
    return [list(document.encode()) for document in documents]


def explode(documents: list[str]) -> list[list[int]]:
    raise AssertionError("tokenised again")


@settings(max_examples=60, deadline=None)
@given(documents=st.lists(st.text(max_size=20), min_size=1, max_size=12), block_size=st.integers(1, 16))
def test_no_token_is_lost_none_is_invented_and_all_blocks_are_full(documents: list[str], block_size: int) -> None:
    expected = [token for ids in as_bytes(documents) for token in [*ids, END]]
    with TemporaryDirectory() as folder:
        packed = pack(iter(documents), as_bytes, separator=END, path=Path(folder) / "a.npy")
        assert packed.tokens.tolist() == expected
        assert (packed.num_documents, packed.num_tokens) == (len(documents), len(expected))
        assert packed.num_bytes == len("".join(documents).encode())
        if len(expected) < block_size:
            with pytest.raises(InputError):
                packed.num_blocks(block_size)
            return
        blocks = [packed.block(i, block_size) for i in range(packed.num_blocks(block_size))]
    assert all(block.shape == (block_size,) and block.dtype == np.int64 for block in blocks)
    overlap = block_size * len(blocks) - len(expected)
    assert 0 <= overlap < block_size
    assert np.concatenate([*blocks[:-1], blocks[-1][overlap:]]).tolist() == expected


def test_blocks_beyond_the_end_do_not_exist(tmp_path: Path) -> None:
    packed = pack(["abcde"], as_bytes, separator=END, path=tmp_path / "a.npy")
    assert packed.block(1, 4).tolist() == [ord("c"), ord("d"), ord("e"), END]
    for i in (-1, 2):
        with pytest.raises(IndexError):
            packed.block(i, 4)


def test_the_type_is_the_smallest_that_holds_the_ids(tmp_path: Path) -> None:
    small = pack(["a"], lambda d: [[65535]], separator=0, path=tmp_path / "s.npy")
    large = pack(["a"], lambda d: [[65536]], separator=0, path=tmp_path / "l.npy")
    assert (small.tokens.dtype, large.tokens.dtype) == (np.uint16, np.uint32)
    assert large.block(0, 2).tolist() == [65536, 0]
    assert isinstance(small.tokens, np.memmap)


def test_pieces_make_the_same_stream_as_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f"document {i}" for i in range(50)]
    whole = pack(documents, as_bytes, separator=END, path=tmp_path / "a.npy")
    monkeypatch.setattr(packing, "DOCUMENTS_AT_ONCE", 7)
    monkeypatch.setattr(packing, "TOKENS_AT_ONCE", 11)
    pieces = pack(documents, as_bytes, separator=END, path=tmp_path / "b.npy")
    assert pieces.digest == whole.digest
    assert (pieces.tokens == whole.tokens).all()


def test_a_corpus_shorter_than_a_block_says_so(tmp_path: Path) -> None:
    packed = pack(["abc"], as_bytes, separator=END, path=tmp_path / "a.npy", name="swh_Latn")
    with pytest.raises(InputError, match="swh_Latn has 4 tokens, less than one block of 128; give it more text"):
        packed.num_blocks(128)


def test_what_pack_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="swh_Latn has no documents"):
        pack([], as_bytes, separator=END, path=tmp_path / "a.npy", name="swh_Latn")
    with pytest.raises(ValueError, match=r"\.npy"):
        pack(["a"], as_bytes, separator=END, path=tmp_path / "a.bin")
    with pytest.raises(ValueError, match="1 lists for 2 documents"):
        pack(["a", "b"], lambda d: [[1]], separator=END, path=tmp_path / "a.npy")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    before = pack(["old text"], as_bytes, separator=END, path=tmp_path / "a.npy")

    def killed() -> Iterator[str]:
        yield from ["new"] * (packing.DOCUMENTS_AT_ONCE + 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(killed(), as_bytes, separator=END, path=tmp_path / "a.npy")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "a.npy"]
    assert load_packed(tmp_path / "a.npy").digest == before.digest


def test_the_cache_is_used_for_the_same_text_tokenizer_and_separator_only(tmp_path: Path) -> None:
    first = pack_cached(["ab", "c"], "tok-1", as_bytes, END, tmp_path)
    again = pack_cached(["ab", "c"], "tok-1", explode, END, tmp_path, name="swh_Latn")
    assert (again.digest, again.num_bytes, again.num_documents, again.name) == (first.digest, 3, 2, "swh_Latn")
    for documents, fingerprint, separator in (
        (["a", "bc"], "tok-1", END),
        (["ab", "c"], "tok-2", END),
        (["ab", "c"], "tok-1", 0),
    ):
        with pytest.raises(AssertionError, match="tokenised again"):
            pack_cached(documents, fingerprint, explode, separator, tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "no sidecar", "bad sidecar", "other sidecar", "old format"])
def test_damaged_cache_files_are_errors_when_loaded_and_packed_anew_when_cached(tmp_path: Path, damage: str) -> None:
    first = pack_cached(["some text"], "tok", as_bytes, END, tmp_path)
    path = next(tmp_path.glob("*.npy"))
    sidecar, data = path.with_suffix(".json"), path.read_bytes()
    good = json.loads(sidecar.read_text())
    if damage in ("flip", "cut"):
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1, data[-1]]) if damage == "flip" else data[:-2])
    elif damage == "no sidecar":
        sidecar.unlink()
    else:
        changed = {"bad sidecar": [], "other sidecar": {"format": 1}, "old format": {**good, "format": 0}}[damage]
        sidecar.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="delete"):
        load_packed(path)
    assert pack_cached(["some text"], "tok", as_bytes, END, tmp_path).digest == first.digest
    assert load_packed(path).num_tokens == 10


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPRACHBUND_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    pack_cached(["text"], "tok", as_bytes, END)
    assert len(list((tmp_path / "own").glob("*.npy"))) == 1
    monkeypatch.delenv("SPRACHBUND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sprachbund"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sprachbund"


def test_epoch_orders_are_permutations_that_differ_by_seed_tag_and_epoch() -> None:
    orders = [
        epoch_order(50, seed=seed, tag=tag, epoch=epoch)
        for seed, tag, epoch in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]
    ]
    assert all(sorted(order.tolist()) == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    # golden: the order is the same in every process, so a resumed run sees the same blocks
    assert epoch_order(8, seed=0, tag="swh_Latn", epoch=0).tolist() == [5, 0, 1, 3, 7, 6, 4, 2]


def test_block_sequences_run_through_whole_epochs_and_extend_each_other() -> None:
    long = block_sequence(5, 13, seed=3, tag="a")
    assert long.shape == (13,)
    assert [sorted(long[start : start + 5].tolist()) for start in (0, 5)] == [list(range(5))] * 2
    assert len(set(long[10:].tolist())) == 3
    for count in range(13):
        assert block_sequence(5, count, seed=3, tag="a").tolist() == long[:count].tolist()
