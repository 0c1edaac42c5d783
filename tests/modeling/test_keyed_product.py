"""The output layer with a table for each run: the same as two products and their sum, in one."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sprachbund.modeling import keyed_product
from sprachbund.modeling.keyed_product import keyed_linear

COUNTS, TABLES = [3, 0, 4, 2, 5], [1, 0, 1, None, 2]  # an empty run, a table with two runs, a run without one


def parts(*, bias: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(sum(COUNTS), 5), (7, 5), (7,), (4, 7, 5)]
    made = [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return [made[0], made[1], made[2] if bias else None, made[3]]


def by_two_products(rows: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor) -> Tensor:
    found, start = [], 0
    for count, table in zip(COUNTS, TABLES, strict=True):
        own = rows[start : start + count]
        start += count
        added = 0 if table is None else F.linear(own, delta[table])
        found.append(F.linear(own, weight, bias) + added)
    return torch.cat(found)


def gradients(logits: Tensor, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return list(torch.autograd.grad((logits * weights).sum(), [one for one in inputs if one is not None]))


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_sum_of_two_products_forward_and_backward(bias: bool) -> None:
    inputs = parts(bias=bias)
    ours, theirs = keyed_linear(*inputs, COUNTS, TABLES), by_two_products(*inputs)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("piece", [2, 256])
def test_runs_that_do_not_lie_together_are_as_if_they_did(
    bias: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_product, "_PIECE", piece)
    order = torch.randperm(sum(COUNTS), generator=torch.Generator().manual_seed(1))
    inputs = parts(bias=bias)
    ours = keyed_linear(*inputs, COUNTS, TABLES, order)
    assert inputs[0] is not None
    theirs = by_two_products(inputs[0][order], *inputs[1:])[order.argsort()]
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other)


def test_tables_without_positions_have_a_gradient_of_zeros() -> None:
    inputs = parts()
    *_, delta = gradients(keyed_linear(*inputs, COUNTS, TABLES), inputs)
    assert not delta[0].any()
    assert not delta[3].any()
    assert delta[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_of_zeros_changes_no_bit(dtype: torch.dtype) -> None:
    rows, weight, bias, delta = (None if one is None else one.detach() for one in parts(bias=True, dtype=dtype))
    assert rows is not None
    assert weight is not None
    assert delta is not None
    logits = keyed_linear(rows, weight, bias, torch.zeros_like(delta), [len(rows)], [2])
    assert torch.equal(logits, F.linear(rows, weight, bias))


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_what_is_frozen_has_no_gradient_and_the_rest_the_same(frozen: int) -> None:
    inputs = parts()
    whole = gradients(keyed_linear(*inputs, COUNTS, TABLES), inputs)
    some = [one.detach() if i == frozen and one is not None else one for i, one in enumerate(inputs)]
    logits = keyed_linear(*some, COUNTS, TABLES)
    trained = [i for i in (0, 1, 3) if i != frozen]
    found = gradients(logits, [some[i] for i in trained])
    for i, gradient in zip(trained, found, strict=True):
        torch.testing.assert_close(gradient, whole[(0, 1, 3).index(i)])


def test_autocast_is_followed_and_gradients_keep_their_type() -> None:
    inputs = parts(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = keyed_linear(*inputs, COUNTS, TABLES)
        assert logits.dtype == F.linear(inputs[0], inputs[1]).dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in gradients(logits, inputs))


def test_runs_that_do_not_have_all_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the runs have 3 rows, and there are 14"):
        keyed_linear(*parts(), [3], [0])
