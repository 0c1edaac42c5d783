"""Which of a model's parameters the probe looks at: weight matrices, no biases and no norm gains, as DMoE's code."""

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


def matrices_of(weights: Mapping[str, Tensor], module: str) -> list[list[str]]:
    """Return for each decoder layer the names of the weight matrices of one of its modules, in the model's order."""
    pattern = re.compile(rf"model\.layers\.(\d+)\.{re.escape(module)}\.")
    names: dict[int, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        if weight.dim() > 1 and (found := pattern.match(name)):
            names[int(found[1])].append(name)
    return [names[layer] for layer in sorted(names)]
