"""What the tests of the systems share: tiny dense models, and jobs of a tiny comparison."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sprachbund.compare.systems import Job, System
from sprachbund.evaluation import perplexity
from sprachbund.grouping.greedy import Grouping
from sprachbund.recipe_file import load_recipe
from sprachbund.run.data import read_test_text
from sprachbund.run.directory import open_run
from sprachbund.run.pipeline import Pipeline
from sprachbund.run.planning import LayerPlan

VOCABULARY = 64
GROUPS = {"aaa": 1, "bbb": 0, "ccc": 1, "ddd": 2}  # languages not in the order of the groups
GROUPING = Grouping((("ron_Latn", "ita_Latn"), ("rus_Cyrl", "ukr_Cyrl")))


def dense_model(seed: int, family: str = "llama", **fields: Any) -> Any:
    """Return a random dense model of 2 layers of width 16 whose predictions are far from uniform."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    config = AutoConfig.for_model(family, **settings | fields)
    return AutoModelForCausalLM.from_config(config).eval()


def log_prob(seed: int = 0) -> Tensor:
    """Return a count table, (V, L), under which a few tokens do not decide the language."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCABULARY, len(GROUPS), generator=generator).mul(0.3).log_softmax(0)


def some_ids(num_sequences: int = 2, length: int = 12, seed: int = 5) -> Tensor:
    """Return random tokens, (B, T)."""
    return torch.randint(VOCABULARY, (num_sequences, length), generator=torch.Generator().manual_seed(seed))


@cache
def prepared(recipe: Path) -> Any:
    """Return the pipeline of the tiny recipe with its base trained, in a folder beside it; once for all tests."""
    run = open_run(load_recipe(recipe), recipe.parent / "prepared")
    pipeline = Pipeline(run)
    _ = pipeline.base
    return pipeline


def make_job(recipe: Path, folder: Path, *, overrides: tuple[str, ...] = (), **method: Any) -> Job:
    """Return a job of the tiny recipe with two groups, whose method has these fields."""
    pipeline = prepared(recipe)
    run = open_run(load_recipe(recipe, overrides=list(overrides)), folder)
    return Job(
        method=SimpleNamespace(keys=SimpleNamespace(routing=None), **method),  # type: ignore[arg-type]
        run=run,
        base=pipeline.base,
        packed=pipeline.packed,
        corpora=pipeline.corpora,
        tokenizer=pipeline.tokenizer,
        grouping=GROUPING,
        layers=LayerPlan([0, 1]),
        stream=GROUPING,
    )


def train_job(system: System, job: Job) -> dict[str, Any]:
    """Train a job as the comparison does: as the stage `train` of its run."""
    job.run.fingerprints["base"] = "the base"
    return job.run.stage("train", ["inputs"], system.outputs(job), lambda: system.train(job))


def text_of(job: Job, tag: str) -> perplexity.TestText:
    """Return the text that a language is scored on."""
    return read_test_text(job.corpora, tag, job.tokenizer)


def losses(job: Job, stage: str) -> list[float]:
    """Return the losses that a stage has logged, in their order."""
    lines = job.run.path("events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["loss"] for event in events if event["stage"] == stage and event["event"] == "step"]
