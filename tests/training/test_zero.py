"""What is told to DeepSpeed, which is not installed here: a stand-in for its two functions records it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from sprachbund.modeling.experts import GroupExperts, GroupMoe
from sprachbund.training.zero import gather_partitions, mark_leaf_modules


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for deepspeed: a partitioned parameter is 1000 too large until it is gathered."""
    found: list[Any] = []

    @contextmanager
    def gathered(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        found.append(("gather", len(parameters)))
        for parameter in parameters:
            parameter.sub_(1000)
        yield
        for parameter in parameters:
            parameter.add_(1000)

    package, utils, zero = ModuleType("deepspeed"), ModuleType("deepspeed.utils"), ModuleType("deepspeed.zero")
    utils.set_z3_leaf_modules = lambda model, kinds: found.append(("leaves", kinds))  # type: ignore[attr-defined]
    zero.GatheredParameters = gathered  # type: ignore[attr-defined]
    for module in (package, utils, zero):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return found


def test_mixture_layers_are_leaves_and_a_dense_model_has_none(
    calls: list[Any], make_moe: Callable[..., Any], make_dense: Callable[[], Any]
) -> None:
    mark_leaf_modules(make_moe())
    mark_leaf_modules(make_dense())
    assert calls == [("leaves", [GroupMoe, GroupExperts])]


def test_the_whole_model_gets_every_parameter_while_it_is_gathered(
    calls: list[Any], make_moe: Callable[..., Any]
) -> None:
    model, whole, expected = make_moe(), make_moe(), make_moe()
    with torch.no_grad():
        for parameter, wanted in zip(model.parameters(), expected.parameters(), strict=True):
            wanted.copy_(torch.arange(wanted.numel()).view(wanted.shape) % 7)
            parameter.copy_(wanted + 1000)
    gather_partitions(model, whole)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), expected.parameters(), strict=True))
    gather_partitions(model, None)
    assert len(calls) == 2 * len(list(model.parameters()))
