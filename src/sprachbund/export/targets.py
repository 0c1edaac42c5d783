"""The table of native architectures: which mixtures each can hold exactly, and why it cannot hold the others.

Native means: transformers' own classes, which other engines implement as well. They route every token by the learned
router, as `top_k` does here. What is said of other engines was read in their sources and not run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sprachbund.errors import InputError, nearest
from sprachbund.export.foldable import half_precision, instead, path_languages, stored_otherwise
from sprachbund.modeling.experts import num_routes

Condition = Callable[[Any], str | None]  # a mixture's configuration -> the reason why the target cannot hold it
DENSIFY = "--densify stores dense layers as identical experts"


@dataclass(frozen=True)
class Layout:
    """The names that a native checkpoint has on disk for the parts of a mixture layer.

    `block` is the block in a decoder layer; `gate`, `up` and `down` are named in each expert, or, where `fused`, hold
    all experts in one tensor, the gate above the up projection.
    """

    block: str = "mlp"
    router: str = "gate.weight"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    fused: bool = False


@dataclass(frozen=True)
class Target:
    """A native architecture: the dense families it extends, its conditions, and how its checkpoints are written.

    `any_layers`: may dense layers and mixture layers alternate? `shared`: has it an expert for all tokens, beside the
    routed ones? `qkv_bias`: does it want biases there, which are zero where the base has none?
    """

    name: str
    bases: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    any_layers: bool = False
    shared: bool = False
    qkv_bias: bool = False
    layout: Layout = field(default_factory=Layout)


@dataclass(frozen=True)
class Verdict:
    """What the table says of one target for one model.

    `exact`: the target computes what the model does under `top_k`; else `reasons` says why not. `densify`: it would
    with `--densify`. `caveats`: what to know before it is served.
    """

    target: str
    exact: bool
    reasons: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    densify: bool = False


def num_experts(config: Any) -> int:
    """Return the number of experts that the routers choose among; of the largest layer, where they differ.

    In a hierarchy they choose among its languages: what one has is an expert there.
    """
    return max(num_routes(config, layer=layer) for layer in config.moe_layers)


def dense_layers(config: Any) -> list[int]:
    """Return the layers of a mixture that have no experts."""
    return [layer for layer in range(config.num_hidden_layers) if layer not in config.moe_layers]


def expert_width(config: Any) -> int:
    """Return the FFN width of a mixture's experts, in units; in a hierarchy of the two that a language has."""
    return int(config.expert_width or config.intermediate_size) + (config.language_width or 0)


def folded(target: Target, config: Any) -> bool:
    """Must the FFN for all tokens become a part of every expert?

    Where experts are added to it and the target has no such FFN: since the weights of the chosen experts sum to 1, it
    is whole again in their weighted sum.
    """
    return config.expert_kind == "shared" and not target.shared


def native_width(target: Target, config: Any) -> int:
    """Return the FFN width of the target's experts, in units."""
    return expert_width(config) + (int(config.intermediate_size) if folded(target, config) else 0)


def attention_types(config: Any) -> list[str]:
    """Return the kind of attention of each layer: `sliding_attention` or `full_attention`."""
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    # mistral has one window for all layers; other families without layer_types have none
    sliding = config.dense_model_type == "mistral" and config.sliding_window is not None
    return ["sliding_attention" if sliding else "full_attention"] * config.num_hidden_layers


def head_dim(config: Any) -> int:
    """Return the width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def interval(layers: list[int]) -> int | None:
    """Return the interval d for which `layers` are all l with (l + 1) % d = 0 from the first to the last, or None."""
    steps = {after - before for before, after in pairwise(layers)} or {1}
    step = steps.pop()
    return step if not steps and (layers[0] + 1) % step == 0 else None


def _list(numbers: list[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _one_size(config: Any) -> str | None:
    sizes: dict[int, list[int]] = {}
    for layer in sorted(config.moe_layers):
        sizes.setdefault(num_routes(config, layer=layer), []).append(layer)
    if len(sizes) == 1:
        return None
    found = ", ".join(f"{size} ({_list(layers)})" for size, layers in sorted(sizes.items()))
    return f"needs the same number of experts in every mixture layer; found {found}"


def _without(name: str, what: str) -> Condition:
    def condition(config: Any) -> str | None:
        return f"has no {what}; the model has them ({name})" if getattr(config, name, False) else None

    return condition


def _one_attention(config: Any) -> str | None:
    if len(set(attention_types(config))) == 1:
        return None
    return "has one kind of attention for all layers; the model has sliding windows in some of them (layer_types)"


def _causal(config: Any) -> str | None:
    if getattr(config, "use_bidirectional_attention", None):
        return "has causal attention only; the model's is bidirectional (use_bidirectional_attention)"
    return None


def _after_ffn(config: Any) -> str | None:
    if config.expert_kind == "adapter":
        return "has experts that read the FFN's input; those of the model are adapters, which read its output"
    return None


def _one_table(config: Any) -> str | None:
    if len(set(config.row_of_group)) > 1:
        return "has one embedding and one output row for each token; the model has some for each group (row_of_group)"
    return None


def _no_paths(config: Any) -> str | None:
    if later := path_languages(config):
        return f"has no place for a language's own path; the model has some ({', '.join(later)})"
    return None


_OF_EVERY_TARGET = (_after_ffn, _one_table, _no_paths)
_NO_FFN_BIAS = _without("mlp_bias", "biases in its FFNs")
_NO_ATTENTION_BIAS = _without("attention_bias", "biases in its attention")
_NO_OUTPUT_BIAS = _without("attention_bias", "bias in its attention's output projection")

# In the order in which `--to native` tries them.
TARGETS = (
    Target("qwen3_moe", ("qwen3",), (_one_attention,), any_layers=True),
    Target(
        "mixtral",
        ("llama", "mistral"),
        (_NO_ATTENTION_BIAS, _NO_FFN_BIAS),
        layout=Layout(block="block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    Target(
        "qwen2_moe",
        ("qwen2", "llama", "mistral", "gemma"),
        (_NO_OUTPUT_BIAS, _NO_FFN_BIAS, _causal),
        any_layers=True,
        shared=True,
        qkv_bias=True,
    ),
    Target("flex_olmo", ("olmo2",)),
    Target(
        "granitemoe",
        ("granite",),
        (_NO_FFN_BIAS,),
        layout=Layout(
            block="block_sparse_moe",
            router="router.layer.weight",
            up="input_linear",
            down="output_linear",
            fused=True,
        ),
    ),
    Target("ernie4_5_moe", ("ernie4_5",), (_without("use_bias", "biases in its experts"),), any_layers=True),
)


def _layers(target: Target, config: Any) -> str | None:
    """Say why a target cannot hold this set of mixture layers; all of them are possible with --densify."""
    dense = dense_layers(config)
    if not dense:
        return None
    if not target.any_layers:
        return f"needs experts in every layer; {_list(dense)} {'are' if len(dense) > 1 else 'is'} dense ({DENSIFY})"
    if target.name == "ernie4_5_moe" and interval(sorted(config.moe_layers)) is None:
        return (
            "needs its mixture layers at a regular interval d, at layers l with (l + 1) divisible by d; found "
            f"{_list(sorted(config.moe_layers))} ({DENSIFY})"
        )
    return None


def _reasons(target: Target, config: Any) -> list[str]:
    """Return the conditions that fail, but for those on the set of layers."""
    base = config.dense_model_type
    if base not in target.bases:
        return [f"takes {' or '.join(target.bases)} models; this one is {base}"]
    found = [_one_size(config), *(condition(config) for condition in (*_OF_EVERY_TARGET, *target.conditions))]
    return [reason for reason in found if reason is not None]


def verdict(target: Target, config: Any, *, densify: bool = False) -> Verdict:
    """Return what the table says of one target; with `densify`, of the model with experts in every layer."""
    reasons, layers = _reasons(target, config), None if densify else _layers(target, config)
    everywhere = densify or not dense_layers(config)
    return Verdict(
        target.name,
        exact=not reasons and layers is None,
        reasons=(*reasons, *([layers] if layers and config.dense_model_type in target.bases else [])),
        caveats=() if reasons else tuple(caveats(target, config, everywhere=everywhere)),
        densify=not reasons and bool(dense_layers(config)),
    )


def verdicts(config: Any, *, densify: bool = False) -> list[Verdict]:
    """Return the verdict on every target for a mixture's configuration, in the order of the table."""
    return [verdict(target, config, densify=densify) for target in TARGETS]


def caveats(target: Target, config: Any, *, everywhere: bool) -> list[str]:
    """Return what to know of a target before it is served; `everywhere`: all its layers have experts."""
    found = stored_otherwise(config, every_expert=True)
    if num_experts(config) == 1:
        found.append(
            "one expert serves all tokens: --to dense --group 0 is the plainer way; only transformers was tried"
        )
    elif folded(target, config):
        found.append(
            f"the FFN for all tokens is stored in each of the {num_experts(config)} experts of a layer, and computed "
            f"for each of the {min(config.num_experts_per_tok, num_experts(config))} that a token chooses"
        )
    widths = (config.hidden_size, native_width(target, config))
    if any(width % 8 for width in widths):
        found.append(
            f"transformers: widths {widths[0]} and {widths[1]} are no multiples of 8: where its grouped products "
            "refuse them, load with experts_implementation='eager'"
        )
    if half_precision(config):
        found.append("equal in float32; in half precision the router's weights are rounded, up to 1% of a logit")
    if config.dense_model_type == "gemma":
        found.append("transformers only (other engines compute SiLU here); folded weights are stored in float32")
        return found
    return [*found, *_vllm(target, config), *_llama_cpp(target, config, everywhere=everywhere)]


def _vllm(target: Target, config: Any) -> list[str]:
    """What vLLM's sources say; not run."""
    found = []
    if config.hidden_act not in ("silu", "swish"):
        found.append(f"vLLM: not exact, its experts compute SiLU and the model {config.hidden_act}")
    if target.name == "qwen2_moe":
        if head_dim(config) * config.num_attention_heads != config.hidden_size:
            found.append(
                f"vLLM: cannot load it, since it takes a head's width to be {config.hidden_size} / "
                f"{config.num_attention_heads} and the model's is {head_dim(config)}"
            )
        if "sliding_attention" in attention_types(config):
            found.append("vLLM: not exact beyond the sliding window, which it does not use here")
        if config.expert_kind == "copy":
            found.append("vLLM: a small shared expert of zeros is there because an empty one is untested")
    return found


def _llama_cpp(target: Target, config: Any, *, everywhere: bool) -> list[str]:
    """What llama.cpp's sources say; not run."""
    if target.name == "qwen2_moe":
        has_other = config.dense_model_type in ("llama", "mistral") and config.expert_kind == "copy"
        other = "; --to mixtral --densify is the way there" if has_other else ""
        return [f"llama.cpp: not exact, it does not renormalise the router's weights of this architecture{other}"]
    if target.name in ("flex_olmo", "granitemoe"):
        return ["llama.cpp: not checked"]
    found = []
    if not everywhere:
        found.append(f"llama.cpp: cannot load it, since it needs experts in every layer: {DENSIFY}")
    experts = num_experts(config)
    if experts & (experts - 1):
        found.append(f"llama.cpp: reported to refuse {experts} experts, no power of two (not verified)")
    return found


def find_target(config: Any, name: str, *, densify: bool = False) -> tuple[Target, Verdict]:
    """Return the target `name`, or for `native` the first that is exact, unfolded ones before folded, and its verdict.

    Raises InputError where it is unknown or cannot hold the model exactly: with the conditions that fail, and with
    what is possible instead.
    """
    by_name: Mapping[str, Target] = {target.name: target for target in TARGETS}
    if name != "native":
        if name not in by_name:
            known = ["native", "dense", *by_name]
            near = nearest(name, known) or f"; give {', '.join(known)}"
            raise InputError(f"--to {name} is no architecture to export to{near}")
        found = verdict(by_name[name], config, densify=densify)
        if not found.exact:
            raise InputError(
                f"{name} cannot compute what this model does: it {'; it '.join(found.reasons)}; {instead(config)}"
            )
        return by_name[name], found
    failed = []
    for target in sorted(TARGETS, key=lambda target: folded(target, config)):  # folding costs memory and time
        found = verdict(target, config, densify=densify)
        if found.exact:
            return target, found
        if config.dense_model_type in target.bases:
            failed.append(f"{target.name} {' and '.join(found.reasons)}")
    base = config.dense_model_type
    why = "; ".join(failed) or f"none of {', '.join(by_name)} extends {base} models"
    raise InputError(f"no native architecture computes what this {base} mixture does: {why}; {instead(config)}")
