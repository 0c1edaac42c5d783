"""The page about models, docs/models.md: its tables are generated from the registries, so that they cannot go stale.

Run `python docs/generate_models.py > docs/models.md`; a test compares the two.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sprachbund.errors import InputError
from sprachbund.export.foldable import why_not_dense
from sprachbund.export.targets import TARGETS, Target, verdict
from sprachbund.modeling.base import quiet
from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.ffn import FAMILIES, REFUSED, Family, family_of
from sprachbund.modeling.ffn_weights import ffn_tensors
from sprachbund.modeling.skeleton import dense_ffn_shape

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
# Public models of a family, for orientation; the table is about the family.
EXAMPLES = {
    "bloom": "bigscience/bloom-560m",
    "cohere": "CohereForAI/aya-23-8B",
    "falcon": "tiiuae/falcon-7b",
    "gemma": "google/gemma-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-1b-pt",
    "gpt2": "openai-community/gpt2",
    "gpt_neo": "EleutherAI/gpt-neo-125m",
    "gpt_neox": "EleutherAI/pythia-160m",
    "gptj": "EleutherAI/gpt-j-6b",
    "llama": "meta-llama/Llama-3.2-1B",
    "mistral": "mistralai/Mistral-7B-v0.1",
    "mpt": "mosaicml/mpt-7b",
    "olmo2": "allenai/OLMo-2-0425-1B",
    "phi": "microsoft/phi-2",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
    "qwen2": "Qwen/Qwen2.5-0.5B",
    "qwen3": "Qwen/Qwen3-0.6B",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "starcoder2": "bigcode/starcoder2-3b",
}

HEAD = """# Models: what goes in, what comes out

Any dense decoder of the families below becomes a mixture of experts that computes, at first, what the dense model did.
The tables of this page are generated from the code. {count} families are supported.

```console
$ sprachbund inspect my-base
$ sprachbund expand my-base --layers 0-1,3 --groups 2 --kind copy --out my-moe
$ sprachbund inspect my-moe
$ sprachbund export --list my-moe
$ sprachbund export my-moe --to native --out my-native
```

`my-base` is a folder with safetensors, or an id on the Hub. `expand` reads and writes tensor by tensor: the model need
not fit into memory. `--groups` also takes a file `{{language: group}}`, such as the `groups.json` of a run. `inspect`
reads nothing but `config.json`.

A run's mixture, one of its groups as a plain dense model, and an upload (private unless `--public` is given):

```
sprachbund inspect runs/demo
sprachbund export runs/demo --to dense --language spa_Latn --out spanish
sprachbund push runs/demo OWNER/NAME
```

Every saved model has a model card, README.md: languages, groups, recipe, the numbers of its run, what loses, limits.

What `expand` promises: with a router of zeros, its default, the mixture's logits equal the dense model's bit by bit, in
float32 and bfloat16, however the tokens are routed; with a random router within 1e-5. (Copies under `group` or `prefix`
compute a batch of several groups in several products, whose last bit may differ from that of one.) The tests check this
for every family, with saving and loading, generation with caches and beams, padding, mixed batches, gradient
checkpointing, torch.compile, and LoRA.

Experts are fused tensors, as in transformers: for LoRA, PEFT takes them as `target_parameters`, attention as
`target_modules` as usual. (GPT-2's `Conv1D` and the experts want two adapters: PEFT has one memory layout for each.)

```python
from peft import LoraConfig, get_peft_model

config = LoraConfig(
    r=8, target_modules=["q_proj", "v_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
)
model = get_peft_model(model, config)
```

## Families

Where transformers keeps the FFN of a decoder layer, and its shape with the family's default configuration; biases are
taken over wherever a model has them. Attention, norms and caches stay the family's own. *Dense export*: the kinds of
expert of which one group can be folded into a plain dense model (`--to dense`). `shared` stands for hierarchies and for
low-rank experts as well. Keyed rows are added to the embedding and the output rows. Adapters have no dense model.
"""
FUSED = "gate and up projection in one tensor"
REFUSED_HEAD = """## Not supported

A model that is a mixture of experts already, a quantised one, and these, which have no FFN that could be replaced, or
one that experts cannot compute:
"""
EXPORTS_HEAD = """## Exports to native architectures

`sprachbund export MODEL --to native` writes the first of these that holds the mixture exactly, as transformers' own
class without this package, loads it in a fresh process and compares logits and a greedy generation before it is kept.
Native architectures route every token by the learned router (`top_k`) and by nothing else: of a run, `export` measures
on the dev text what that costs against `prefix` and `group`, and writes it into the card. Where dense layers are not
allowed, `--densify` stores them as identical experts. Experts of kind `shared` need an FFN for all tokens beside them,
which Qwen2-MoE has; elsewhere it becomes a part of every expert. That is exact, since the weights of the chosen experts
sum to 1, but costs memory and time. `sprachbund export --list MODEL` gives the verdict for one model,
with every reason and caveat.

In the table `shared` stands for hierarchies too, in which each language becomes an expert: its relatives' and its own
side by side; and for low-rank experts, whose factors are multiplied out. Adapters, which read the FFN's output, and
rows of each group have no place in a native architecture; rows that all groups share are added to the embedding.
"""
CAVEATS_HEAD = """What `--list` warns of, for the families' default configurations with 6 groups (of vLLM and llama.cpp
the sources were read; they were not run):
"""
SPEED_HEAD = """## Speed

One mixture layer, forward and backward, against a dense FFN and other ways to compute experts, in one run
(benchmarks/experts.py; {hardware}, {date}; {tokens} tokens, D = {hidden_size}, F = {width}). `group`: times as long as
a dense FFN of width F; asked for were at most 1.10 with one group in the batch and 1.25 with eight. `top_k` with two
experts a token: times as long as a dense FFN of the same active size (2F); then how many times faster it is than
transformers' eager experts, and than a loop with boolean masks as in the authors' code; 1.3 was asked for in bfloat16.
What is **bold** was missed: nine tenths of the time there are the products themselves, on this machine as fast as those
of the dense FFN.
"""
LINE = 'Family("lfm2", ffn="feed_forward", gate="w1", up="w3", down="w2", activation="=silu", width=None)'
ADD = """## Adding a family

One line in `modeling/ffn.py` says where the FFN is and what its projections are called:

```python
{line}
```

Everything else (classes, attention, masks, caches, generation) is found through transformers' tables. The parametrised
tests in `tests/modeling/test_every_family.py` then check the new family. The fields of a line:

"""


def _table(*rows: tuple[str, ...]) -> list[str]:
    head, *rest = rows
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rest), ""]


def _default(family: str, **fields: Any) -> Any:
    """Return a family's default configuration; some leave to the model what the configuration must say."""
    config = FAMILIES[family].dense_config_class(**fields)
    heads = config.num_attention_heads
    for name, value in (("head_dim", config.hidden_size // heads), ("num_key_value_heads", heads)):
        if getattr(config, name, value) is None:
            setattr(config, name, value)
    return config


def _family_row(family: Family) -> tuple[str, ...]:
    config = _default(family.model_type)
    shape = dense_ffn_shape(config)
    notes = [FUSED] if family.gate_up else []
    notes += ["weights are (in, out)"] if family.transposed else []
    notes += ["is given the residual and adds it"] if family.residual else []
    projections = ", ".join(f"`{name}`" for name in ffn_tensors(family))
    shared = SimpleNamespace(dense_model_type=family.model_type, expert_kind="shared")
    return (
        f"`{family.model_type}`",
        "gated" if shape.gated else "not gated",
        "yes" if shape.bias else "no",
        f"`{family.layers}.N.{family.ffn}`: {projections}" + (f" ({'; '.join(notes)})" if notes else ""),
        "copy, shared" if why_not_dense(shared) is None else "copy",
        EXAMPLES.get(family.model_type, ""),
    )


def _families() -> list[str]:
    rows = [_family_row(family) for _, family in sorted(FAMILIES.items())]
    return _table(("family", "FFN", "biases", "where, and its projections", "dense export", "for example"), *rows)


def _refused() -> list[str]:
    reasons: dict[str, list[str]] = {}
    for model_type, reason in sorted(REFUSED.items()):
        reasons.setdefault(reason, []).append(f"`{model_type}`")
    return [*(f"- {', '.join(names)}: {reason}" for reason, names in sorted(reasons.items())), ""]


def _mixture(base: str, layers: list[int], kind: Any) -> Any:
    return mixture_config(_default(base), moe_layers=layers, num_groups=6, kind=kind)


def _layers(target: Target, base: str) -> str:
    """Say which sets of layers a target takes, by asking it."""
    num_layers = _default(base).num_hidden_layers
    if verdict(target, _mixture(base, [0, 1, 3], "copy")).exact:
        return "any"
    if verdict(target, _mixture(base, list(range(1, num_layers, 2)), "copy")).exact:
        return "at a regular interval; others with `--densify`"
    return "all; others with `--densify`"


def _export_row(target: Target, base: str) -> tuple[str, ...]:
    everywhere = list(range(_default(base).num_hidden_layers))
    kinds = [kind for kind in ("copy", "shared") if verdict(target, _mixture(base, everywhere, kind)).exact]
    if not kinds:
        raise InputError(f"{target.name} takes no default {base} model: the table of exports would be wrong")
    return f"`{base}`", f"`{target.name}`", _layers(target, base), ", ".join(kinds)


def _exports() -> list[str]:
    pairs = [(target, base) for target in TARGETS for base in target.bases]
    rows = [_export_row(target, base) for target, base in pairs]
    return _table(("dense family", "architecture", "mixture layers", "kinds of expert"), *rows)


def _caveats() -> list[str]:
    said: dict[str, dict[str, None]] = {}
    for target in TARGETS:
        for base in target.bases:
            for layers in ([0, 1, 3], list(range(_default(base).num_hidden_layers))):
                found = verdict(target, _mixture(base, layers, "copy"))
                for caveat in found.caveats if found.exact else ():
                    said.setdefault(caveat, {})[f"`{target.name}`"] = None
    return [*(f"- {', '.join(names)}: {caveat}" for caveat, names in said.items()), ""]


def _cell(found: dict[str, Any]) -> str:
    """Return a ratio; bold where it misses what was asked for."""
    value = found.get("ratio", found.get("times_faster"))
    missed = (found.get("at_most") or value) < value or (found.get("at_least") or value) > value
    return f"**{value:.2f}**" if missed else f"{value:.2f}"


def _speed() -> list[str]:
    """Return a table of the committed measurements, one for each device."""
    lines: list[str] = []
    for file in sorted(RESULTS.glob("experts-*.json")):
        measured = json.loads(file.read_text(encoding="utf-8"))
        rows = []
        for one in measured["results"]:
            of = {(found["ours"], found["than"]): found for found in one["compared"]}
            mixed = [found for (ours, _), found in of.items() if ours.endswith("mixed")]
            others = [of["top_k, K = 2", than] for than in ("dense 2F", "eager", "masks")]
            cells = [of["group, one group", "dense F"], mixed[0], *others]
            rows.append((one["dtype"], str(one["groups"]), *map(_cell, cells)))
        head = ("", "groups", "`group`, one group", "`group`, mixed (8 at most)")
        other = ("`top_k` to dense", "`top_k`, faster than eager", "faster than masks")
        lines += [SPEED_HEAD.format(**measured), *_table((*head, *other), *rows)]
    return lines


def _fields() -> list[str]:
    """Return what the registry's entry says of its fields: the paragraphs of its docstring after the first."""
    paragraphs = (Family.__doc__ or "").split("\n\n")[1:]
    return [" ".join(paragraph.split()) + "\n" for paragraph in paragraphs]


def models() -> str:
    """Return docs/models.md."""
    quiet()
    assert all(family_of(name) for name in EXAMPLES)
    assert eval(LINE) == FAMILIES["lfm2"]
    lines = [HEAD.format(count=len(FAMILIES)), *_families(), REFUSED_HEAD, *_refused()]
    lines += [EXPORTS_HEAD, *_exports(), CAVEATS_HEAD, *_caveats(), *_speed()]
    lines += [ADD.format(line=LINE).rstrip() + "\n", *_fields()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(models(), end="")
