"""Tiny models and corpora to train on, made on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.corpora.packing import Packed
from sprachbund.modeling import count_log_prob, expand
from sprachbund.training import StagePlan, TrainingBlocks, TrainingPlan, train

TAGS = ["zul_Latn", "deu_Latn", "quc_Latn", "cak_Latn"]
GROUPS = [2, 0, 1, 1]
BLOCK = 16
Event = dict[str, Any]


@pytest.fixture
def corpora() -> list[Packed]:
    """One stream per language: each token is followed by the next one of the language's own 40, more often than not."""
    streams = []
    for language in range(4):
        generator = np.random.default_rng(language)
        steps = np.where(generator.random(800 + 100 * language) < 0.9, 1, 7)
        streams.append(60 * language + np.cumsum(steps) % 40 + 1)
    return [Packed(tokens, 1, 3 * len(tokens), "", tag) for tokens, tag in zip(streams, TAGS, strict=True)]


@pytest.fixture
def make_blocks(corpora: list[Packed]) -> Callable[..., TrainingBlocks]:
    """Return the sequences of a schedule, (S, B) languages."""

    def make(schedule: Sequence[Sequence[int]], *, micro_batch_size: int | None = None) -> TrainingBlocks:
        schedule_SB = np.array(schedule)
        micro = micro_batch_size or schedule_SB.shape[1]
        return TrainingBlocks(corpora, TAGS, schedule_SB, block_size=BLOCK, micro_batch_size=micro, seed=0)

    return make


@pytest.fixture
def make_dense() -> Callable[[], Any]:
    """Build a fresh dense model of 2 layers of width 16."""

    def make() -> Any:
        torch.manual_seed(3)
        config = AutoConfig.for_model(
            "llama",
            vocab_size=300,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=None,
            eos_token_id=None,
        )
        return AutoModelForCausalLM.from_config(config)

    return make


@pytest.fixture
def make_moe(make_dense: Callable[[], Any], corpora: list[Packed]) -> Callable[..., Any]:
    """Build its mixture twin: 3 groups, the languages not in the order of the groups."""

    def make(**options: Any) -> Any:
        log_prob = count_log_prob([corpus.tokens for corpus in corpora], vocab_size=300)
        groups = dict(zip(TAGS, GROUPS, strict=True))
        return expand(make_dense(), **{"moe_layers": [0, 1], "groups": groups, "log_prob": log_prob, **options})

    return make


@pytest.fixture
def make_plan() -> Callable[..., TrainingPlan]:
    """Return a plan for a schedule: one stage by group with a router loss, unless said otherwise."""

    def make(num_steps: int, batch_size: int = 8, **fields: Any) -> TrainingPlan:
        values: dict[str, Any] = {
            "micro_batch_size": batch_size,
            "learning_rate": 1e-2,
            "router_learning_rate": 4e-2,
            "stages": (StagePlan(num_steps, "group", router_loss=1.28),),
            "checkpoints": 0,
            "log_every": 1,
        }
        return TrainingPlan(num_steps=num_steps, batch_size=batch_size, **{**values, **fields})

    return make


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[Event]]:
    """Train a model and return its events; `watch` is called with each one, after it was recorded."""

    def go(
        model: Any,
        blocks: TrainingBlocks,
        plan: TrainingPlan,
        *,
        folder: str = "checkpoints",
        watch: Callable[[Event], None] = lambda event: None,
        events: list[Event] | None = None,
    ) -> list[Event]:
        found = [] if events is None else events

        def log(event: str, **values: Any) -> None:
            found.append({"event": event, **values})
            watch(found[-1])

        train(model, blocks, plan, groups=GROUPS, folder=tmp_path / folder, log=log, description="test")
        return found

    return go
