"""The Hugging Face Trainer on several processes: who trains on what, who writes, and what is agreed on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from sprachbund import parallel
from sprachbund.training.batches import TrainingBlocks, collate
from sprachbund.training.sharding import (
    clip_sharded_gradients,
    fill_from_leader,
    gather_to_leader,
    gathered_optimizer_state,
    sharded_optimizer_state,
)

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # the Trainer's names
RANDOM = "random.safetensors"


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep from the user what only we could change.

    accelerate hands DDP a switch by its former name; FSDP2 warns of in-place changes of a model's outputs, which we do
    not make.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
        yield


class _Sharded(nn.Module):
    """Stands before a sharded model, so that accelerate neither wraps it in DDP nor moves it."""

    def __init__(self, module: nn.Module, accelerator: Any) -> None:
        super().__init__()
        self.module = module
        self._autocast = accelerator.autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model in the arithmetic that the plan asks for."""
        with self._autocast():
            return self.module(*args, **kwargs)


class RankTrainer(Trainer):  # type: ignore[misc]
    """Trains on this process's part of every step; rank 0 writes, in files that any number of processes can read.

    Every rank has a copy of the model (DDP), or, where `sharded`, shards of it; then rank 0 has the `whole` one too.
    """

    def __init__(self, *, sharded: bool = False, whole: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sharded = sharded
        self.whole = whole

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches in the order of the data set, which no sampler and no launcher changes."""
        blocks: TrainingBlocks = self.train_dataset
        size = self.args.per_device_train_batch_size
        own = blocks.of_rank(parallel.rank(), parallel.world_size(), micro_batch_size=size)
        return DataLoader(own, batch_size=size, collate_fn=collate, pin_memory=self.args.dataloader_pin_memory)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        return _Sharded(model, self.accelerator) if self.sharded else super()._wrap_model(model, training, dataloader)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.sharded:
            return clip_sharded_gradients(self.model, self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """Return the mean over all ranks of what each has computed on micro-batches of one size."""
        return parallel.add_up(values) / parallel.world_size() if parallel.world_size() > 1 else values

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.sharded:
            super()._save(output_dir, state_dict)
            return
        gather_to_leader(self.model, self.whole)
        if self.whole is not None:
            self.whole.save_pretrained(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        if self.whole is not None:
            super()._load_from_checkpoint(resume_from_checkpoint, self.whole)
        fill_from_leader(self.model, self.whole)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered_optimizer_state(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        self.optimizer.load_state_dict(sharded_optimizer_state(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _save_rng_state(self, output_dir: str) -> None:
        """Save rank 0's generators: all ranks start from one seed, and the Trainer's own files are one for each."""
        if self.args.should_save:
            states = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                states["cuda"] = torch.cuda.get_rng_state()
            save_file(states, Path(output_dir) / RANDOM)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states = load_file(Path(checkpoint) / RANDOM) if checkpoint and (Path(checkpoint) / RANDOM).exists() else {}
        if "cpu" in states:
            torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
