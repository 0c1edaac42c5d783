import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import GROUPING, make_job, train_job

from sprachbund.checksums import DamagedError
from sprachbund.compare.branches import StepBatches, train_branches
from sprachbund.compare.ensemble import EnsembleSystem
from sprachbund.compare.systems import DenseSystem
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.training import TrainingBlocks
from sprachbund.training.batches import collate

BLOCK = 8


@pytest.fixture
def blocks() -> TrainingBlocks:
    """Seven sequences of one language."""
    corpus = Packed(np.arange(200), 1, 400, "", "the corpus")
    return TrainingBlocks([corpus], ["aaa"], np.zeros((7, 1), dtype=int), block_size=BLOCK, micro_batch_size=1, seed=0)


@pytest.mark.parametrize(("num_steps", "micro", "sizes"), [(7, 9, [1] * 7), (3, 9, [2, 2, 3]), (1, 3, [2, 2, 3])])
def test_every_sequence_is_in_one_step_in_order(
    blocks: TrainingBlocks, num_steps: int, micro: int, sizes: list[int]
) -> None:
    batches = StepBatches(blocks, num_steps=num_steps, micro_batch_size=micro)
    assert [len(batches[i]["input_ids"]) for i in range(len(batches))] == sizes
    joined = torch.cat([batches[i]["input_ids"] for i in range(len(batches))])
    assert torch.equal(joined, torch.stack([blocks[i]["input_ids"] for i in range(7)]))
    assert batches.num_steps * batches.num_micro == len(batches)


def test_fewer_sequences_than_steps_are_fewer_steps(blocks: TrainingBlocks) -> None:
    batches = StepBatches(blocks, num_steps=20, micro_batch_size=4)
    assert (batches.num_steps, batches.num_micro, len(batches)) == (7, 1, 7)


def test_a_micro_batch_is_never_empty(blocks: TrainingBlocks) -> None:
    batches = StepBatches(blocks, num_steps=5, micro_batch_size=1)  # steps of one and two sequences
    assert batches.num_micro == 1
    assert sorted(len(batches[i]["language"]) for i in range(len(batches))) == [1, 1, 1, 2, 2]


def test_a_batch_is_collated_as_it_is(blocks: TrainingBlocks) -> None:
    batches = StepBatches(blocks, num_steps=3, micro_batch_size=9)
    assert collate([batches[2]])["input_ids"].shape == (3, BLOCK)
    assert collate([blocks[0], blocks[1]])["language"].shape == (2,)


def test_models_share_out_the_common_sequences(
    shared_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(shared_tiny, tmp_path / "job")
    seen: dict[str, Any] = {}

    def instead(run: Any, stage: str, model: Any, batches: StepBatches, plan: Any, **_: Any) -> dict[str, Any]:
        seen[stage] = (batches.whole, plan)
        return {"tokens": 0, "tokens_per_second": 100.0}

    monkeypatch.setattr("sprachbund.compare.branches.run_training", instead)
    plan = job.plan().dense()
    blocks = job.blocks(plan)
    job.run.fingerprints["train"] = "inside it"
    facts = train_branches(job, blocks, plan)
    assert facts == {"tokens": len(blocks) * 32, "tokens_per_second": 100.0}
    tags = list(job.packed.train)
    for number, members in enumerate(GROUPING.groups):
        own, own_plan = seen[f"branch-{number}"]
        pairs = list(zip(blocks.languages, blocks.blocks, strict=True))
        expected = [pair for pair in pairs if tags[pair[0]] in members]
        assert list(zip(own.languages, own.blocks, strict=True)) == expected
        assert own_plan.num_steps == plan.num_steps


def test_a_killed_job_trains_only_what_is_missing(shared_tiny: Path, tmp_path: Path) -> None:
    job = make_job(shared_tiny, tmp_path / "job")
    files = [job.run.path(f"branch-{number}/model.safetensors") for number in range(2)]
    train_job(EnsembleSystem(), job)
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    job.run.forget("train")
    job.run.forget("branch-1")  # as if killed in its training
    train_job(EnsembleSystem(), job)
    after = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    assert after[0] == before[0]
    assert after[1][0] > before[1][0]
    assert after[1][1] == before[1][1]
    assert not list(job.run.path("checkpoints").glob("*"))


@pytest.mark.parametrize(("system", "name"), [(EnsembleSystem(), "branch-1"), (DenseSystem(), "model")])
def test_changed_bytes_of_a_trained_model_are_named_and_it_is_trained_again_once_removed(
    system: Any, name: str, shared_tiny: Path, tmp_path: Path
) -> None:
    job = make_job(shared_tiny, tmp_path / "jobs/method/job")
    file = job.run.path(f"{name}/model.safetensors")
    train_job(system, job)
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(DamagedError, match=rf"{name}/model\.safetensors has other bytes.* remove \S+/{name} and give"):
        system.scorer(job)
    shutil.rmtree(file.parent)
    train_job(system, job)
    assert file.read_bytes() == sound
    system.scorer(job)


def test_a_group_without_a_sequence_is_told(shared_tiny: Path, tmp_path: Path) -> None:
    job = make_job(shared_tiny, tmp_path / "job")
    plan = job.plan().dense()
    blocks = job.blocks(plan)
    cyrillic = blocks.tags.index("rus_Cyrl")
    job.run.fingerprints["train"] = "inside it"
    with pytest.raises(InputError, match=r"train\.tokens = 2560 leave no sequence for the group of ron_Latn, ita_Latn"):
        train_branches(job, blocks.select(np.flatnonzero(blocks.languages == cyrillic)), plan)
