"""Which of a model's parameters the probe looks at: weight matrices, no biases and no norm gains, as DMoE's code."""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


def ffn_matrices(weights: Mapping[str, Tensor], ffn: str) -> list[list[str]]:
    """Return for each decoder layer the names of its FFN's weight matrices, in the model's order.

    `ffn` is the name of the FFN in a layer ("mlp"); where the layers are is found by it, since every family has its
    own place for them ("model.layers.0.mlp.", "transformer.h.0.mlp.").
    """
    return _by_layer(weights, ffn)[0]


def attention_matrices(weights: Mapping[str, Tensor], ffn: str) -> list[list[str]]:
    """Return for each decoder layer the names of the weight matrices outside its FFN, in the model's order."""
    return _by_layer(weights, ffn)[1]


def _by_layer(weights: Mapping[str, Tensor], ffn: str) -> tuple[list[list[str]], list[list[str]]]:
    inside = re.compile(rf"(.+?\.)\d+\.{re.escape(ffn)}\.")
    prefix = next((found[1] for name in weights if (found := inside.match(name))), "")
    in_layer = re.compile(rf"{re.escape(prefix)}(\d+)\.({re.escape(ffn)}\.)?")
    names: tuple[dict[int, list[str]], dict[int, list[str]]] = (defaultdict(list), defaultdict(list))
    for name, weight in weights.items():
        if weight.dim() > 1 and (found := in_layer.match(name)):
            names[0 if found[2] else 1][int(found[1])].append(name)
    ffns, others = names
    return [ffns[layer] for layer in sorted(ffns)], [others[layer] for layer in sorted(ffns)]
