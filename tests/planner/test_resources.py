"""`sprachbund plan`: its arithmetic against sums done by hand, what it prints, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from transformers import AutoConfig

from sprachbund.compare.cost import flops_per_token, training_flops
from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.footprint import at_work_bytes, kept_per_token
from sprachbund.planner.cluster import Cluster
from sprachbund.planner.models import models_of
from sprachbund.planner.needs import Need
from sprachbund.planner.plan import Plan, largest_micro_batch, plan_resources, table
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe
from sprachbund.training.stages import plan_training


def recipe_with(path: Path, *sets: str) -> Recipe:
    """Read a recipe with changes."""
    return load_recipe(path, overrides=list(sets))


def stage(plan: Plan, name: str) -> Any:
    """Return one stage of a plan."""
    return next(found for found in plan.stages if found.need.name == name)


def test_a_gpu_holds_its_share_and_the_layers_at_work(tiny: Path) -> None:
    recipe = recipe_with(tiny, "train.dtype=bfloat16", "train.sharding=fsdp")
    mixture = models_of(recipe).mixture
    size = count_parameters(mixture).total
    one, four = (stage(plan_resources(recipe, Cluster(n, 80)), "train").need for n in (1, 4))
    buffers = sum(buffer.numel() * 4 for buffer in mixture.buffers())
    assert one.fixed["weights"] == 4 * size + buffers == 4 * four.fixed["weights"]
    assert one.fixed["gradients"] == 4 * size == 4 * four.fixed["gradients"]
    assert one.fixed["AdamW states"] == pytest.approx(8 * size, rel=0.01)
    assert one.fixed["weights at work"] == at_work_bytes(mixture, num_gpus=1)
    assert four.fixed["weights at work"] == at_work_bytes(mixture, num_gpus=4) > 0
    assert one.fixed["gradient buckets"] == four.fixed["gradient buckets"] == 0
    kept = kept_per_token(mixture, arithmetic="autocast", block_size=32)
    assert one.per_token == {"activations": kept.activations(checkpointing=False), "logits": kept.logits}
    assert (one.micro_tokens, four.micro_tokens) == (256, 64)
    assert one.total == sum(one.fixed.values()) + 256 * sum(one.per_token.values())


def test_stages_tokens_and_operations_are_those_of_the_run(tiny: Path) -> None:
    recipe = recipe_with(tiny)
    models, plan = models_of(recipe), plan_resources(recipe, Cluster(1, 80, peak_tflops=100, mfu=0.5))
    assert [found.need.name for found in plan.stages] == ["base", "probe", "dense", "train", "evaluate"]
    train, dense = stage(plan, "train"), stage(plan, "dense")
    assert (train.need.num_steps, train.need.tokens) == (10, 2560)
    assert train.need.flops == training_flops(models.mixture, plan_training(recipe), context=32)
    assert dense.need.flops == 2560 * 3 * flops_per_token(models.base, routing=None, context=32)
    assert train.hours == train.need.flops / 50e12 / 3600
    assert stage(plan, "base").need.tokens == 1536
    probe = stage(plan, "probe").need
    assert (probe.tokens, probe.num_steps) == (4 * 2 * 128, 8)  # languages, steps, tokens


def test_what_a_run_did_is_what_was_planned(tiny: Path, finished: Path) -> None:
    plan = plan_resources(recipe_with(tiny), Cluster(1, 80))
    metrics = json.loads((finished / "metrics.json").read_text(encoding="utf-8"))
    planned = {name: stage(plan, name).need.tokens for name in ("base", "probe", "dense", "train")}
    assert planned == {("train" if name == "moe" else name): tokens for name, tokens in metrics["tokens"].items()}
    train = stage(plan, "train").need
    assert (train.num_parameters, train.num_active) == (metrics["parameters"]["moe"], metrics["parameters"]["active"])


def test_languages_are_probed_side_by_side(tiny: Path) -> None:
    recipe = recipe_with(tiny, "probe.tokens_per_step=64", "train.micro_batch_tokens=64")
    one, two = (stage(plan_resources(recipe, Cluster(n, 80, tokens_per_second=1e6)), "probe") for n in (1, 2))
    assert (one.need.parallel, two.need.parallel, two.need.num_gpus) == (1, 2, 2)
    assert two.hours == one.hours / 2
    assert two.need.micro_tokens == 64


def test_a_measured_speed_is_that_of_the_dense_base(tiny: Path) -> None:
    plan = plan_resources(
        recipe_with(tiny, "train.gradient_checkpointing=true"), Cluster(2, 80, tokens_per_second=1000)
    )
    dense, train = stage(plan, "dense"), stage(plan, "train")
    assert dense.hours * 3600 == pytest.approx(2560 / 2000)
    assert train.hours / dense.hours == pytest.approx(train.need.flops / dense.need.flops)
    assert train.hours > dense.hours


def test_recomputation_costs_a_third_and_saves_memory(tiny: Path) -> None:
    without, with_it = (
        stage(plan_resources(recipe_with(tiny, f"train.gradient_checkpointing={on}"), Cluster(1, 80)), "train").need
        for on in ("false", "true")
    )
    assert with_it.flops == pytest.approx(without.flops * 4 / 3)
    assert with_it.total < without.total


@pytest.mark.parametrize("usable", [0, 99, 100, 119, 140, 259, 260, 10_000])
def test_the_largest_micro_batch_fits_and_divides_the_step(usable: int) -> None:
    need = Need("train", 1, 1, 1, {"weights": 100}, 0, {"logits": 2}, 80, 80, 10, 1, 80, 1.0, 1)
    found = largest_micro_batch(need, usable)
    sizes = [size for size in (10, 20, 40, 80) if 100 + 2 * size <= usable]
    assert found == max(sizes, default=None)


@pytest.mark.parametrize(
    ("gpus", "megabytes", "name", "sentence"),
    [
        (1, 1.3, "dense", "lower train.micro_batch_tokens to {largest} or less"),
        (1, 2.05, "train", "set train.gradient_checkpointing: true, or lower train.micro_batch_tokens to {largest}"),
        (1, 0.1, "dense", "before a single token, so give more GPUs (about "),
        (8, 0.12, "train", "each GPU holds a whole model, so set train.sharding: fsdp"),
        (1, 0.15, "probe", "take probe.optimizer: sgd, or group by something that moves no weights"),
        (1, 0.3, "evaluate", "one GPU scores a whole model"),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_says_what_to_lower(
    gpus: int, megabytes: float, name: str, sentence: str, tiny: Path
) -> None:
    plan = plan_resources(recipe_with(tiny), Cluster(gpus, megabytes / 1000 / 0.9))
    found = stage(plan, name)
    assert found.advice is not None
    assert found.advice.startswith(f"{name} needs ")
    assert sentence.format(largest=found.largest) in found.advice
    assert f"does not fit: {found.advice}" in table(plan)
    assert not plan.fits


def test_shards_that_do_not_fit_either_are_told_apart(tiny: Path) -> None:
    plan = plan_resources(recipe_with(tiny, "train.sharding=fsdp"), Cluster(8, 0.12 / 1000 / 0.9))
    assert "layers in full leave no room however many GPUs there are" in str(stage(plan, "train").advice)


def test_without_shards_every_gpu_holds_the_model_and_its_gradients_twice(tiny: Path) -> None:
    recipe = recipe_with(tiny)
    one, four = (stage(plan_resources(recipe, Cluster(n, 80)), "train").need for n in (1, 4))
    size = count_parameters(models_of(recipe).mixture).total
    assert four.fixed == {**one.fixed, "gradient buckets": 4 * size}
    assert (four.micro_tokens, four.num_gpus) == (64, 4)


def test_what_is_advised_helps(tiny: Path) -> None:
    cluster = Cluster(1, 1.3 / 1000 / 0.9)
    largest = stage(plan_resources(recipe_with(tiny), cluster), "dense").largest
    lowered = plan_resources(recipe_with(tiny, f"train.micro_batch_tokens={largest}"), cluster)
    assert stage(lowered, "dense").advice is None
    doubled = plan_resources(recipe_with(tiny, f"train.micro_batch_tokens={2 * largest}"), cluster)
    assert stage(doubled, "dense").advice is not None


@pytest.mark.parametrize(
    ("layers", "num_layers", "note"),
    [
        ("all", 2, None),
        ("{given: [1]}", 1, None),
        ("{top: 1}", 1, None),
        ("{budget: 4000}", 1, None),
        (
            "{epsilon: 0.6}",
            2,
            "layers.epsilon: the probe chooses; planned with all 2 layers, the most it can be",
        ),
        ("{layerwise: 4}", 2, "layers.layerwise: the 4 experts are planned evenly over 2 layers"),
    ],
)
def test_layers_that_the_probe_chooses_are_assumed_and_said(
    layers: str, num_layers: int, note: str | None, tiny: Path
) -> None:
    plan = plan_resources(recipe_with(tiny, f"layers={layers}"), Cluster(1, 80))
    assert len(models_of(plan.recipe).mixture.config.moe_layers) == num_layers
    assert list(plan.notes) == ([] if note is None else [note])


def test_given_groups_are_read(tiny: Path) -> None:
    groups = tiny.with_name("groups.json")
    groups.write_text('{"ron": 0, "ita": 0, "rus": 1, "ukr": 2}', encoding="utf-8")
    assert models_of(recipe_with(tiny, "groups.given=groups.json")).mixture.config.num_groups == 3


def test_the_probe_holds_what_its_sources_need(tiny: Path) -> None:
    def fixed(*sets: str) -> dict[str, float]:
        return dict(stage(plan_resources(recipe_with(tiny, *sets), Cluster(1, 80)), "probe").need.fixed)

    size = count_parameters(models_of(recipe_with(tiny)).base).total
    assert sum(fixed().values()) == (4 + 4 + 4 + 8) * size
    assert sum(fixed("probe.optimizer=sgd").values()) == (4 + 4 + 4) * size
    assert sum(fixed("train.dtype=bfloat16").values()) == (2 + 2 + 4 + 6 + 8) * size
    assert sum(fixed("groups.source=representation").values()) == (4 + 4) * size
    assert 8 * size < sum(fixed("groups.source=gradient").values()) < 16 * size
    lexical = plan_resources(recipe_with(tiny, "groups.source=lexical"), Cluster(1, 80))
    assert "probe" not in [found.need.name for found in lexical.stages]


def test_a_base_on_disk_is_read_by_its_configuration_alone(tiny: Path, cli: CommandLine) -> None:
    """A base of seven billion parameters of which there is nothing but config.json."""
    config = AutoConfig.for_model(
        "llama", vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32
    )
    config.save_pretrained(tiny.parent / "base")
    arguments = ("--set", "base={path: base}", "--set", "experts.width=64", "--set", "train.sharding=fsdp")
    said = cli("plan", tiny, *arguments, "--gpus", 8, "--json")
    assert said.status == 0, said.err
    found = json.loads(said.out)
    assert found["stages"]["dense"]["parameters"]["total"] == 6_738_415_616
    assert found["stages"]["dense"]["bytes"]["gradients"] == round(4 * 6_738_415_616 / 8)
    assert found["fits"] is False


def test_the_table_has_a_column_for_each_stage(tiny: Path, cli: CommandLine) -> None:
    said = cli("plan", tiny, "--gpus", 2, "--gpu-memory", 24, "--mfu", 0.5, "--peak-tflops", 100)
    assert said.status == 0, said.err
    plan = plan_resources(recipe_with(tiny), Cluster(2, 24, peak_tflops=100, mfu=0.5))
    lines = said.out.splitlines()
    assert lines == table(plan)
    assert lines[0] == "tiny on 2 GPUs of 24 GB, each 100 TFLOP/s at 50%"
    assert lines[2].split() == ["base", "probe", "dense", "train", "evaluate"]
    assert "  within 21.6 (90%)                  yes             yes             yes             yes" in said.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpus", 0), "--gpus 0: give a whole number from 1"),
        (("--gpu-memory", 0), "--gpu-memory 0: give a number above 0"),
        (("--gpu-memory", "nan"), "--gpu-memory nan: give a number above 0"),
        (("--mfu", 40), "--mfu 40: give the share of the peak that is reached, above 0 and at most 1"),
        (("--tokens-per-second", -1), "--tokens-per-second -1: give a number above 0"),
        (
            ("--gpus", 3, "--set", "base.scratch.tokens_per_step=96"),
            "train.tokens_per_step: a step is 8 sequences of 32 tokens, which 3 GPUs cannot share evenly; give a "
            "multiple of 96 tokens, or other --gpus",
        ),
        (
            ("--set", "groups.count=auto"),
            "groups.count is auto, which the probe decides; plan with a number: --set groups.count=6",
        ),
        (("--set", "base={path: nowhere}"), None),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[object, ...], sentence: str | None, tiny: Path, cli: CommandLine
) -> None:
    said = cli("plan", tiny, *arguments)
    assert said.status == 2
    assert len(said.err.splitlines()) == 1
    assert said.last == f"sprachbund: {sentence}" or (sentence is None and "nowhere" in said.last)


def test_a_cluster_knows_what_it_may_fill() -> None:
    assert Cluster(1, 80).usable == pytest.approx(72e9)
    with pytest.raises(InputError, match="--peak-tflops inf"):
        Cluster(1, 80, peak_tflops=float("inf"))
