"""Where the time of a run goes, and how fast the mixtures train and are scored beside the dense model.

python benchmarks/pipeline.py [speed] [stages] [help] (none: all); writes benchmarks/results/pipeline.json, each part
apart, from which benchmarks/pipeline_tables.py makes docs/speed.md.

- speed: the dense model and the mixtures of each preset, of the sizes of examples/bible-18.yaml, in turns: training by
  the package's own trainer, and scoring. Text is random, which costs what other text does. Figures are ratios in
  seconds of the processor where there is no accelerator, so that other work beside does not count.
- stages: `sprachbund demo`, and examples/bible-18.yaml where its corpus is there, as a user runs them; seconds a stage.
- help: `sprachbund --help`, the least of several.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from runs import RESULTS, bar, machine, run

from sprachbund.compare.cost import flops_per_token, training_flops
from sprachbund.corpora.packing import Packed
from sprachbund.evaluation import TestText, score_language
from sprachbund.modeling import count_log_prob, expand, is_dmoe
from sprachbund.modeling.base import device, quiet, scratch_model
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe
from sprachbund.run.learning import expert_arguments
from sprachbund.run.planning import LayerPlan
from sprachbund.training import TrainingBlocks, TrainingPlan, train
from sprachbund.training.stages import StagePlan, plan_training

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/bible-18.yaml"
STEPS, ROUNDS, HELPS, NUM_GROUPS, SCORED = 10, 3, 5, 6, 16_384


@dataclass
class System:
    """A model, and how it is trained and scored: `routing` None is the dense one."""

    name: str
    recipe: Recipe
    model: Any
    routing: str | None
    router_loss: float = 0.0

    def plan(self) -> TrainingPlan:
        """Return a plan of a few steps in one stage."""
        stage = StagePlan(STEPS, self.routing, self.router_loss)  # type: ignore[arg-type]
        return replace(plan_training(self.recipe), num_steps=STEPS, stages=(stage,), checkpoints=0)


def systems() -> list[System]:
    """Return the dense model and each preset's mixture, with random weights of the example's sizes.

    `copy` is `paper` in all layers: which ones its threshold would choose depends on the text.
    """
    quiet()
    recipe = load_recipe(EXAMPLE)
    scratch = recipe.base.scratch
    assert scratch is not None
    dense = scratch_model(
        scratch, vocab_size=scratch.vocab_size, block_size=recipe.train.block_size, eos_token_id=0, seed=0
    ).to(device())
    found = [System("dense", recipe, dense, None)]
    for name, preset, stages in (
        ("default", "default", (("group", 1.0),)),
        ("native", "native", (("group", 1.28), ("top_k", 0.1))),
        ("copy", "paper", (("group", 1.28), ("top_k", 0.0))),
    ):
        own = load_recipe(EXAMPLE, overrides=[f"preset={preset}"])
        mixture = mixture_of(own, dense)
        found += [System(name, own, mixture, routing, loss) for routing, loss in stages]
    return found


def mixture_of(recipe: Recipe, dense: Any) -> Any:
    """Return a dense model expanded by a recipe's experts in all layers, neighbours in the recipe being groups."""
    tags = recipe.tags()
    groups = {tag: place * NUM_GROUPS // len(tags) for place, tag in enumerate(tags)}
    layers = LayerPlan(list(range(dense.config.num_hidden_layers)))
    arguments = expert_arguments(recipe.experts, dense.config, groups, layers)
    streams = [packed.tokens for packed in corpora(tags, dense.config.vocab_size)]
    log_prob = count_log_prob(streams, vocab_size=dense.config.vocab_size)
    return expand(dense, **arguments, router_init="normal", log_prob=log_prob, seed=0).to(device())


def corpora(tags: list[str], vocab_size: int) -> list[Packed]:
    """Return a stream of random tokens for each language, each with tokens that it likes."""
    streams = []
    for place, tag in enumerate(tags):
        draw = np.random.default_rng(place)
        likes = draw.dirichlet(np.full(vocab_size, 0.1))
        tokens = draw.choice(vocab_size, size=SCORED + 1, p=likes).astype(np.uint16)
        streams.append(Packed(tokens, 1, 4 * len(tokens), "", tag))
    return streams


def training_seconds(system: System) -> float:
    """Return the seconds of training a system for a few steps."""
    recipe, plan = system.recipe, system.plan()
    tags = recipe.tags()
    schedule_SB = np.tile(np.sort(np.arange(plan.batch_size) % len(tags)), (plan.num_steps, 1))
    blocks = TrainingBlocks(
        corpora(tags, system.model.config.vocab_size),
        tags,
        schedule_SB,
        block_size=recipe.train.block_size,
        micro_batch_size=plan.micro_batch_size,
        seed=0,
    )
    groups = [system.model.config.groups[tag] if is_dmoe(system.model) else 0 for tag in tags]
    with tempfile.TemporaryDirectory() as folder:
        begun = seconds()
        train(
            system.model,
            blocks,
            plan,
            groups=groups,
            folder=Path(folder),
            log=lambda event, **values: None,
            description=system.name,
        )
        return seconds() - begun


def scoring_seconds(system: System, routing: str | None) -> float:
    """Return the seconds of scoring three languages under a routing."""
    settings = system.recipe.evaluate
    begun = seconds()
    for packed in corpora(system.recipe.tags()[:3], system.model.config.vocab_size):
        group = system.model.config.groups[packed.name] if is_dmoe(system.model) else None
        text = TestText(np.asarray(packed.tokens, dtype=np.int64), packed.num_bytes)
        window = system.recipe.train.block_size
        how = {"window": window, "burn_in": settings.burn_in, "batch_tokens": settings.batch_tokens}
        score_language(system.model, text, **how, routing=routing, group=group)
    return seconds() - begun


def seconds() -> float:
    """Return the time, of the processor where the work is there, else of the clock once the accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.monotonic()
    return time.process_time()


def in_turns(cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Return the seconds of every case over the rounds, one after the other in each; a first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(ROUNDS + 1):
        for name, case in cases.items():
            taken = case()
            if turn:
                times[name].append(taken)
    return times


def rows(times: dict[str, list[float]], tokens: int, flops: dict[str, float]) -> list[dict[str, Any]]:
    """Return each case's speed, beside dense round by round, and what its operations alone would give."""
    return [
        {
            "case": name,
            "tokens_per_second": round(tokens / median(taken), 1),
            "of_dense": round(median(d / t for d, t in zip(times["dense"], taken, strict=True)), 3),
            "of_dense_by_flops": round(flops["dense"] / flops[name], 3) if name in flops else None,
        }
        for name, taken in times.items()
    ]


def speed() -> dict[str, Any]:
    """Measure training and scoring in turns."""
    torch.set_num_threads(1)
    found = systems()
    cases = {name_of(system): (lambda one=system: training_seconds(one)) for system in found}
    flops = {name_of(one): training_flops(one.model, one.plan(), context=one.recipe.train.block_size) for one in found}
    tokens = STEPS * found[0].recipe.train.tokens_per_step
    trained = rows(in_turns(cases), tokens, flops)
    ways = {"dense": (found[0], None)}
    for one in {system.name: system for system in found[1:]}.values():
        ways |= {f"{one.name}, {routing}": (one, routing) for routing in ("group", "prefix", "top_k")}
    scored_cases = {name: (lambda one=one, how=how: scoring_seconds(one, how)) for name, (one, how) in ways.items()}
    window = found[0].recipe.train.block_size
    flops = {name: flops_per_token(one.model, routing=how, context=window) for name, (one, how) in ways.items()}
    scored = rows(in_turns(scored_cases), 3 * SCORED, flops)
    return {"training": trained, "evaluation": scored, "bars": bars(trained, scored)}


def name_of(system: System) -> str:
    """Return what a system is called in the tables."""
    return system.name if system.routing is None else f"{system.name}, {system.routing}"


def bars(trained: list[dict[str, Any]], scored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what had to be reached, as time over that of dense."""

    def slower(rows: list[dict[str, Any]], case: str) -> list[float]:
        return [1 / next(row["of_dense"] for row in rows if row["case"] == case)]

    wanted = [
        *(
            (f"training, {case}", trained, case, 1 / 0.85)
            for case in ("default, group", "native, group", "copy, group")
        ),
        *((f"training, {case}", trained, case, 1 / 0.6) for case in ("native, top_k", "copy, top_k")),
        *((f"evaluation, {row['case']}", scored, row["case"], 1 / 0.8) for row in scored if row["case"] != "dense"),
    ]
    return [bar(f"{what}: time over dense", slower(of, case), round(limit, 3)) for what, of, case, limit in wanted]


def stages() -> dict[str, Any]:
    """Run the demo and the example from nothing; return the seconds of their stages."""
    commands = {"demo": ["demo"]}
    if (ROOT / "../shared/corpora/bible-nt").is_dir():
        commands["bible-18"] = ["run", str(EXAMPLE)]
    found = {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            done = run(command, Path(folder) / name)
            recorded = {
                path.stem: json.loads(path.read_text())["seconds"]
                for path in sorted((Path(folder) / name / "stages").glob("*.json"))
            }
        found[name] = {"seconds": done["wall_seconds"], "peak_memory_mb": done["peak_memory_mb"], "stages": recorded}
    return found


def help_seconds() -> dict[str, Any]:
    """Return the seconds of `sprachbund --help`."""
    taken = []
    for _ in range(HELPS):
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "sprachbund", "--help"], capture_output=True, check=True)
        taken.append(round(time.monotonic() - begun, 3))
    return {"seconds": taken, "bars": [bar("sprachbund --help, seconds, the least of several", [min(taken)], 1.0)]}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"speed": speed, "stages": stages, "help": help_seconds}


def main() -> None:
    """Measure what is asked for, and write it beside what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none: all")
    given = parser.parse_args()
    if odd := [name for name in given.parts if name not in PARTS]:
        parser.error(f"no part {odd[0]}; there are {', '.join(PARTS)}")
    path = RESULTS / "pipeline.json"
    content = json.loads(path.read_text()) if path.is_file() else {}
    for name in given.parts or PARTS:
        found = PARTS[name]()
        for one in found.get("bars", []):
            print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['values']} (at most {one['at_most']})")
        content[name] = {**machine(), **found}
        path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
