"""The worked plans of docs/scale.md, computed by the calculator: what stands between the marks is never typed.

Run `python docs/generate_scale.py`, which rewrites the page; a test compares.
"""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babel.localedata import locale_identifiers
from transformers import AutoConfig

from sprachbund.errors import InputError
from sprachbund.languages import canonical
from sprachbund.planner.cluster import GB, HEADROOM, Cluster
from sprachbund.planner.needs import Need
from sprachbund.planner.plan import Plan, plan_resources, table
from sprachbund.recipe_file import build_recipe

PAGE = Path(__file__).parent / "scale.md"
END = "<!-- end of plan -->\n"


@dataclass(frozen=True)
class Example:
    """A base by the sizes of its published configuration, a number of languages and GPUs, and the recipe's own part."""

    name: str
    hub: str
    sizes: dict[str, Any]
    num_languages: int
    num_gpus: int
    settings: str


TRAIN = (
    "train: {{tokens: 3_000_000_000, tokens_per_step: {step}, micro_batch_tokens: {micro}, block_size: 2048,\n"
    "        dtype: bfloat16, gradient_checkpointing: true, sharding: fsdp}}\n"
)
EXAMPLES = (
    Example(
        "560M, 18 languages, 8 GPUs",
        "bigscience/bloom-560m",
        {"model_type": "bloom", "vocab_size": 250_880, "hidden_size": 1024, "n_layer": 24, "n_head": 16},
        18,
        8,
        TRAIN.format(step="1_048_576", micro="4096"),
    ),
    Example(
        "1.7B, 128 languages, 32 GPUs",
        "Qwen/Qwen3-1.7B-Base",
        {
            **{"model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144},
            **{"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
            "tie_word_embeddings": True,
        },
        128,
        32,
        "groups: {count: 16}\nexperts: {by: group, rows: null}\n" + TRAIN.format(step="1_048_576", micro="4096"),
    ),
    Example(
        "7B, 128 languages, 256 GPUs",
        "Qwen/Qwen2.5-7B",
        {
            **{"model_type": "qwen2", "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944},
            **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
            "tie_word_embeddings": False,
        },
        128,
        256,
        "groups: {count: 16, source: representation}\nexperts: {by: group, rows: null}\n"
        + TRAIN.format(step="2_097_152", micro="8192"),
    ),
)


def recipe_text(example: Example, tags: Sequence[str]) -> str:
    """Return a recipe over these languages."""
    languages = "".join(f"  {tag}: corpora/{tag}.jsonl.zst\n" for tag in tags)
    name = example.hub.rsplit("/", 1)[1].lower()
    return f"name: {name}\nbase: {example.hub}\nlanguages:\n{languages}{example.settings}"


def some_tags(how_many: int) -> list[str]:
    """Return tags of so many languages of the world, in alphabetical order: which ones changes no size."""
    tags: list[str] = []
    for name in sorted(locale_identifiers()):
        with suppress(InputError):
            tag = canonical(name)
            if tag not in tags:
                tags.append(tag)
        if len(tags) == how_many:
            break
    return tags


def planned(example: Example) -> Plan:
    """Return the plan of an example; its base is nothing but a configuration in a folder."""
    text = recipe_text(example, some_tags(example.num_languages))
    with tempfile.TemporaryDirectory() as folder:
        AutoConfig.for_model(**example.sizes).save_pretrained(folder)
        recipe = build_recipe(text, name=example.name, folder=Path(), overrides=[f"base={folder}"])
        return plan_resources(recipe, Cluster(example.num_gpus, 80))


def arithmetic(plan: Plan) -> list[str]:
    """Return how the numbers of the mixture's training come about, one line for each."""
    need = next(stage.need for stage in plan.stages if stage.need.name == "train")
    stage = next(stage for stage in plan.stages if stage.need is need)
    size, gpus, cluster = f"{need.num_parameters:,}", need.num_gpus, plan.cluster
    memory = {name: f"{value / GB:.2f} GB" for name, value in need.memory(need.micro_tokens).items()}
    tokens = f"{need.micro_tokens:,} tokens"
    return [
        f"weights, and as much for gradients: 4 bytes x {size} / {gpus} GPUs = {memory['gradients']}",
        f"AdamW states: 8 bytes x {size} / {gpus} GPUs = {memory['AdamW states']}",
        f"weights at work: two layers and what is in none, 4 bytes of weight and 4 of gradient = "
        f"{memory['weights at work']}",
        f"bfloat16 copies of linear maps: 2 bytes x {need.fixed['bfloat16 copies'] / 2:,.0f} = "
        f"{memory['bfloat16 copies']}",
        f"activations: {need.per_token['activations']:,.0f} bytes x {tokens} = {memory['activations']}",
        f"logits: 3 tables x 4 bytes x {need.per_token['logits'] / 12:,.0f} entries x {tokens} = {memory['logits']}",
        f"together {need.total / GB:.1f} GB of {cluster.memory_gb:g}, of which {1 - HEADROOM:.0%} may be filled",
        f"time: {need.flops:.3g} operations / ({gpus} x {cluster.peak_tflops:g}e12 x {cluster.mfu:g}) = "
        f"{stage.hours:.2f} hours, {stage.gpu_hours:,.0f} GPU-hours",
        f"per token: {need.flops / need.tokens:.3g} operations, "
        f"{need.flops / need.tokens / need.num_active:.2f} for each of {need.num_active:,} active parameters; "
        f"{_speed(need, stage.hours):,.0f} tokens a second on each GPU",
    ]


def _speed(need: Need, hours: float) -> float:
    return need.tokens / (hours * 3600 * need.num_gpus)


def section(example: Example) -> str:
    """Return what stands between the marks of one example."""
    plan = planned(example)
    tags = some_tags(2)
    shown = recipe_text(example, tags[:2]).replace(
        f"{tags[1]}.jsonl.zst\n", f"{tags[1]}.jsonl.zst   # ... {example.num_languages} in all\n"
    )
    # no block of YAML: of the languages only two are shown
    lines = ["```text", shown.rstrip(), "```", "", "```text", *(line.rstrip() for line in table(plan)), "```", ""]
    reasons = [f"- {line}" for line in arithmetic(plan)]
    return "\n".join([*lines, "How the mixture's column comes about:", "", *reasons, ""])


def page(text: str) -> str:
    """Return the page with every plan computed anew."""
    for example in EXAMPLES:
        mark = f"<!-- plan: {example.name} -->\n"
        before, rest = text.split(mark)
        text = f"{before}{mark}{section(example)}{END}{rest.split(END, 1)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
