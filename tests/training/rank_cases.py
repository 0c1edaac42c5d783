"""Trainings to do on one process and on several, and a script that does them on several as a run does.

`python -m torch.distributed.run --nproc-per-node 2 rank_cases.py FOLDER [more]` leaves FOLDER/<case>.safetensors, the
trained model, and FOLDER/<case>.json, what was logged, for every case; checkpoints are those of FOLDER/<case>.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_model
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund import parallel
from sprachbund.corpora.packing import Packed, pack
from sprachbund.errors import SprachbundError
from sprachbund.modeling import count_log_prob, expand
from sprachbund.training import StagePlan, TrainingBlocks, TrainingPlan
from sprachbund.training.together import follow, train_together

TAGS = ["zul_Latn", "deu_Latn", "quc_Latn", "cak_Latn"]
GROUPS = [2, 0, 1, 1]
ROWS = [[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 2, 2, 2, 3, 0, 0]]  # languages of a step, sorted by group
BLOCK, STEPS = 16, 4
ROUTED = (StagePlan(STEPS, "group", router_loss=1.28),)
CHOSEN = (StagePlan(2, "group", router_loss=1.28), StagePlan(STEPS, "top_k", router_loss=0.5, balance_loss=0.02))


@dataclass(frozen=True)
class Case:
    """A model, None a dense one, and how it is trained: in micro-batches of so many sequences on one process."""

    experts: dict[str, Any] | None = None
    stages: tuple[StagePlan, ...] = ROUTED
    micro_batch_size: int = 4
    plan: dict[str, Any] = field(default_factory=dict)
    seed: int = 3


CASES = {
    "default": Case({"kind": "shared", "by": "language", "rows": "language"}),
    "paper": Case({"kind": "copy", "router_gradient": "through"}, CHOSEN),
    "native": Case({"kind": "shared"}, CHOSEN, plan={"gradient_checkpointing": True}),
    "no router loss": Case({"kind": "shared"}, (StagePlan(2, "group"), StagePlan(STEPS, "group", router_loss=1.0))),
    "dense": Case(None, (StagePlan(STEPS, None),), micro_batch_size=2),
}
MORE = {
    "hierarchy": Case({"kind": "hierarchy", "width": 8, "language_width": 4, "rows": "all"}, CHOSEN),
    "adapter": Case({"kind": "adapter", "rows": "group"}, (StagePlan(STEPS, "prefix", router_loss=1.0),)),
    "low rank": Case({"kind": "shared", "rank": 3}, (StagePlan(STEPS, "alternate"),), micro_batch_size=1),
    "shared experts": Case({"kind": "shared", "expert_of_group": {0: [0, 1, 1], 1: [0, 0, 1]}}, CHOSEN),
    "prefix": Case({"kind": "copy", "router_gradient": "through"}, (StagePlan(STEPS, "prefix"),)),
}
SHARDED = (*MORE, "default", "paper", "native", "no router loss", "resumed")


def corpora(folder: Path) -> list[Packed]:
    """Pack one stream per language: each token is followed by the next of the language's 40, more often than not."""
    streams = []
    for language, tag in enumerate(TAGS):
        generator = np.random.default_rng(language)
        steps = np.where(generator.random(800 + 100 * language) < 0.9, 1, 7)
        tokens = (60 * language + np.cumsum(steps) % 40 + 1).tolist()
        path = folder / f"{tag}.npy"
        streams.append(pack([""], lambda _, tokens=tokens: [tokens], separator=0, path=path, name=tag))
    return streams


def model_of(case: Case, streams: list[Packed]) -> Any:
    """Build the model of a case."""
    torch.manual_seed(case.seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    dense = AutoModelForCausalLM.from_config(config)
    if case.experts is None:
        return dense
    log_prob = count_log_prob([stream.tokens for stream in streams], vocab_size=300)
    groups = dict(zip(TAGS, GROUPS, strict=True))
    return expand(dense, moe_layers=[0, 1], groups=groups, log_prob=log_prob, seed=case.seed, **case.experts)


def plan_of(case: Case, *, sharded: bool = False) -> TrainingPlan:
    """Return the plan of a case on one process."""
    plan = TrainingPlan(
        num_steps=STEPS,
        batch_size=8,
        micro_batch_size=case.micro_batch_size,
        learning_rate=1e-2,
        router_learning_rate=4e-2,
        stages=case.stages,
        checkpoints=1,
        log_every=1,
        sharded=sharded,
    )
    return replace(plan, **case.plan)


def blocks_of(streams: list[Packed], *, micro_batch_size: int, rows: list[list[int]] | None = None) -> TrainingBlocks:
    """Return the training sequences, by default of steps that take turns with ROWS."""
    rows_SB = np.array(rows or [ROWS[step % 2] for step in range(STEPS)])
    return TrainingBlocks(streams, TAGS, rows_SB, block_size=BLOCK, micro_batch_size=micro_batch_size, seed=0)


def train_case(
    case: Case, streams: list[Packed], folder: Path, plan: TrainingPlan, *, break_at: int | None = None
) -> tuple[Any, list[dict[str, Any]]]:
    """Train a case on the processes that there are; return the model and what was logged.

    `break_at` is a step after which the final norm is set to infinity.
    """
    model = model_of(case, streams)
    blocks = blocks_of(streams, micro_batch_size=plan.micro_batch_size)
    groups = [0] * len(TAGS) if case.experts is None else [model.config.groups[tag] for tag in TAGS]
    events: list[dict[str, Any]] = []

    def log(event: str, **values: Any) -> None:
        events.append({"event": event, **values})
        if event == "step" and values["step"] == break_at:
            with torch.no_grad():
                model.model.norm.weight.fill_(torch.inf)

    folder.mkdir(exist_ok=True)
    train_together(model, blocks, plan, groups=groups, folder=folder, log=log, description="test")
    return model, events


def lead(folder: Path, cases: dict[str, Case]) -> int:
    """Do these cases, in copies of the model and in shards, and one training that diverges on rank 0 alone.

    Where FOLDER/resumed holds a checkpoint of the default case, it is gone on with as well.
    """
    streams = corpora(folder / "streams")
    if (folder / "resumed").exists():
        cases = {**cases, "resumed": replace(CASES["default"], seed=99)}  # other weights: the checkpoint's count
    for name, case in cases.items():
        for sharded in (False, True) if name in SHARDED else (False,):
            plan = plan_of(case, sharded=sharded).on_ranks(parallel.world_size())
            label = f"{name} sharded" if sharded else name
            model, events = train_case(case, streams, folder / label, plan)
            save_model(model, str(folder / f"{label}.safetensors"))
            (folder / f"{label}.json").write_text(json.dumps(events))
    case = CASES["dense"]
    try:
        train_case(case, streams, folder / "broken", plan_of(case).on_ranks(parallel.world_size()), break_at=2)
    except SprachbundError as error:
        (folder / "broken.txt").write_text(str(error))
    return 0


if __name__ == "__main__":
    place = Path(sys.argv[1])
    wanted = MORE if sys.argv[2:] == ["more"] else CASES
    sys.exit(parallel.lead_or_follow(lambda: lead(place, wanted), follow))
