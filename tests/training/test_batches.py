from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from sprachbund.corpora.mixture import schedule, shares
from sprachbund.corpora.packing import Packed
from sprachbund.recipe import Mixture
from sprachbund.training import TrainingBlocks
from sprachbund.training.batches import collate

TAGS = ["zul_Latn", "deu_Latn", "quc_Latn", "cak_Latn"]
GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1}
GROUP_OF = np.array(list(GROUPS.values()))


@pytest.fixture
def schedule_SB() -> np.ndarray:
    share = shares(dict(zip(TAGS, [100, 5000, 900, 20], strict=True)), Mixture(), groups=GROUPS)
    return schedule(share, num_steps=20, batch_size=12, seed=0, groups=GROUPS)


def make(corpora: list[Packed], schedule_SB: np.ndarray, micro_batch_size: int, seed: int = 0) -> TrainingBlocks:
    return TrainingBlocks(corpora, TAGS, schedule_SB, block_size=16, micro_batch_size=micro_batch_size, seed=seed)


@pytest.mark.parametrize("micro_batch_size", [12, 6, 3])
def test_every_micro_batch_holds_every_group_equally_and_sorted(
    micro_batch_size: int, corpora: list[Packed], schedule_SB: np.ndarray
) -> None:
    blocks = make(corpora, schedule_SB, micro_batch_size)
    assert len(blocks) == 240
    groups = GROUP_OF[blocks.languages].reshape(-1, micro_batch_size)
    assert (groups == np.repeat([0, 1, 2], micro_batch_size // 3)).all()
    for row, step in zip(blocks.languages.reshape(20, 12), schedule_SB, strict=True):
        assert Counter(row.tolist()) == Counter(step.tolist())


def test_groups_that_do_not_divide_a_micro_batch_differ_by_one_at_most(corpora: list[Packed]) -> None:
    blocks = make(corpora, np.array([[1, 1, 1, 2, 2, 3, 0, 0]]), 4)
    counts = [np.bincount(row, minlength=3) for row in GROUP_OF[blocks.languages].reshape(2, 4)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert all((np.diff(row) >= 0).all() for row in GROUP_OF[blocks.languages].reshape(2, 4))


def test_every_block_is_seen_before_any_is_seen_again(corpora: list[Packed], schedule_SB: np.ndarray) -> None:
    blocks = make(corpora, schedule_SB, 6)
    repeated = 0
    for language, corpus in enumerate(corpora):
        drawn = blocks.blocks[blocks.languages == language].tolist()
        num_blocks = corpus.num_blocks(16)
        for start in range(0, len(drawn), num_blocks):
            epoch = drawn[start : start + num_blocks]
            assert len(set(epoch)) == len(epoch)
        repeated += len(drawn) > num_blocks
        assert drawn[:num_blocks] != sorted(drawn[:num_blocks])
    assert repeated  # the sample has a language with more than one epoch


def test_an_item_is_the_block_of_its_language(corpora: list[Packed], schedule_SB: np.ndarray) -> None:
    blocks = make(corpora, schedule_SB, 12)
    for i in (0, 5, 239):
        item = blocks[i]
        corpus = corpora[int(item["language"])]
        start = min(16 * int(blocks.blocks[i]), corpus.num_tokens - 16)
        assert item["input_ids"].tolist() == corpus.tokens[start : start + 16].tolist()
    batch = collate([blocks[0], blocks[7]])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["language"].tolist() == [int(blocks.languages[0]), int(blocks.languages[7])]


def test_the_order_is_the_same_every_time_and_differs_by_seed(corpora: list[Packed], schedule_SB: np.ndarray) -> None:
    def read(seed: int) -> torch.Tensor:
        blocks = make(corpora, schedule_SB, 6, seed)
        loader = DataLoader(blocks, batch_size=6, sampler=SequentialSampler(blocks), collate_fn=collate)
        return torch.cat([batch["input_ids"] for batch in loader])

    assert torch.equal(read(0), read(0))
    assert not torch.equal(read(0), read(1))


def test_a_step_has_the_same_sequences_however_it_is_cut(corpora: list[Packed], schedule_SB: np.ndarray) -> None:
    def steps(micro_batch_size: int) -> list[Any]:
        blocks = make(corpora, schedule_SB, micro_batch_size)
        pairs = np.stack([blocks.languages, blocks.blocks], axis=1).reshape(20, 12, 2)
        return [Counter(map(tuple, step.tolist())) for step in pairs]

    whole = steps(12)
    assert sum(a == b for a, b in zip(whole, steps(4), strict=True)) == 20


def test_dense_and_mixture_read_the_same_sequences_in_the_same_order(
    make_dense: Callable[[], Any],
    make_moe: Callable[..., Any],
    make_blocks: Callable[..., TrainingBlocks],
    make_plan: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    blocks = make_blocks([[1, 1, 2, 3, 0, 0]] * 3, micro_batch_size=2)
    seen: dict[str, list[list[int]]] = {}
    for name, model in (("dense", make_dense()), ("mixture", make_moe())):
        rows = seen.setdefault(name, [])
        model.register_forward_pre_hook(
            lambda _, args, kwargs, rows=rows: rows.extend(kwargs["input_ids"].tolist()), with_kwargs=True
        )
        plan = make_plan(3, 6, micro_batch_size=2)
        run(model, blocks, plan.dense() if name == "dense" else plan, folder=name)
    assert seen["dense"] == seen["mixture"] == [blocks[i]["input_ids"].tolist() for i in range(18)]
