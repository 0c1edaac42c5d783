"""The training sequences in their order: fixed by seed before training starts, the same for every model of a run.

Shapes: S steps, B sequences of a step, L languages, T tokens of a block.
"""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sprachbund.corpora.packing import Packed, block_sequence


class TrainingBlocks(Dataset[dict[str, Tensor]]):
    """Item i is the i-th training sequence: `input_ids` (T,) and its `language`, an index into `tags`.

    The rows of `schedule_SB` give the languages of each step, sorted by group. A step of several micro-batches deals
    its row out like cards, so that every micro-batch holds every group in the same proportion, still sorted.
    """

    def __init__(
        self,
        corpora: Sequence[Packed],
        tags: Sequence[str],
        schedule_SB: np.ndarray,
        *,
        block_size: int,
        micro_batch_size: int,
        seed: int,
    ) -> None:
        self.corpora = list(corpora)
        self.tags = list(tags)
        self.block_size = block_size
        num_micro = schedule_SB.shape[1] // micro_batch_size
        dealt = schedule_SB.reshape(len(schedule_SB), micro_batch_size, num_micro).swapaxes(1, 2)
        self.languages = dealt.reshape(-1)
        self.blocks = np.zeros(len(self.languages), dtype=np.int64)
        for language, (tag, corpus) in enumerate(zip(self.tags, self.corpora, strict=True)):
            places = np.flatnonzero(self.languages == language)
            self.blocks[places] = block_sequence(corpus.num_blocks(block_size), len(places), seed=seed, tag=tag)

    @classmethod
    def of_places(
        cls,
        corpora: Sequence[Packed],
        tags: Sequence[str],
        languages: np.ndarray,
        blocks: np.ndarray,
        *,
        block_size: int,
    ) -> Self:
        """Return training sequences that were laid out elsewhere: the `languages` and `blocks` of other ones."""
        ours = cls(corpora, tags, languages[:0].reshape(0, 1), block_size=block_size, micro_batch_size=1, seed=0)
        ours.languages, ours.blocks = languages, blocks
        return ours

    def select(self, places: np.ndarray | slice) -> Self:
        """Return these training sequences only, in this order: a part of the steps, or the languages of a group."""
        selected = copy.copy(self)
        selected.languages, selected.blocks = self.languages[places], self.blocks[places]
        return selected

    def of_rank(self, rank: int, num_ranks: int, *, micro_batch_size: int) -> Self:
        """Return the training sequences of one of several processes: micro-batch i of all goes to rank i % num_ranks.

        Micro-batches of a step stand side by side, so that ranks and accumulation steps together have exactly the
        sequences that one process would have, and each micro-batch of each rank has every group in the same proportion.
        """
        places = np.arange(len(self)).reshape(-1, num_ranks, micro_batch_size)
        return self.select(places[:, rank].reshape(-1))

    def __len__(self) -> int:
        return len(self.languages)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        language = int(self.languages[index])
        block = self.corpora[language].block(int(self.blocks[index]), self.block_size)
        return {"input_ids": torch.from_numpy(block), "language": torch.tensor(language)}


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """Return {"input_ids": (B, T), "language": (B,)}; items that are batches already are joined."""
    join = torch.stack if items[0]["input_ids"].dim() == 1 else torch.cat
    return {key: join([item[key] for item in items]) for key in items[0]}
