"""Which positions a proof may rest on: those where no router's choice hung on rounding."""

from types import SimpleNamespace
from typing import Any

import torch

from sprachbund.export.verify import sure_positions


def outputs(*router_logits: list[list[float]]) -> Any:
    """One sequence; a list of (T, E) logits per layer."""
    layers = tuple(torch.tensor([logits]) for logits in router_logits)
    return SimpleNamespace(logits=torch.zeros(1, 3, 5), router_logits=layers or None)


def test_a_near_tie_ends_what_can_be_compared() -> None:
    config = SimpleNamespace(num_experts_per_tok=2)
    plain = [[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]
    near = [[1.0, 3.0, 2.0], [2.00001, 3.0, 2.0], [1.0, 3.0, 2.0]]  # the second place, of two
    first = [[1.0, 3.0, 2.0], [1.0, 3.00001, 3.0], [1.0, 3.0, 2.0]]  # both are chosen anyway
    zeros = [[0.0, 0.0, 0.0]] * 3
    two = [[1.0, 1.000001]] * 3
    assert sure_positions(outputs(), config).tolist() == [[True, True, True]]
    assert sure_positions(outputs(plain, first, zeros, two), config).tolist() == [[True, True, True]]
    assert sure_positions(outputs(plain, near), config).tolist() == [[True, False, False]]
    single = SimpleNamespace(num_experts_per_tok=1)  # one expert, nothing to choose
    assert sure_positions(outputs([[0.5]] * 3), single).tolist() == [[True, True, True]]
