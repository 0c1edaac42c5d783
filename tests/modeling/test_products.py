"""Products of runs of rows equal the dense products that they are made of, forward and backward."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sprachbund.modeling import products
from sprachbund.modeling.products import gather_rows, linear_of_runs, weighted_mean

COUNTS, EXPERTS = [4, 0, 3, 5], [2, 0, 1, 2]  # an empty run, an expert twice, and expert 3 without rows


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def by_linear(rows: Tensor, weights: Tensor, bias: Tensor | None, counts: list[int], experts: list[int]) -> Tensor:
    """The same from torch's own parts."""
    pieces = zip(rows.split(counts), experts, strict=True)
    return torch.cat([F.linear(piece, weights[e], None if bias is None else bias[e]) for piece, e in pieces])


def gradients(output: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float32).view(output.shape).to(output.dtype)
    return list(torch.autograd.grad(output, [i for i in inputs if i is not None], weight))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck(with_bias: bool, parts: int) -> None:
    rows, weights = draw(12, 3, dtype=torch.float64), draw(4, 6, 3, dtype=torch.float64)
    bias = draw(4, 6, dtype=torch.float64) if with_bias else None
    assert torch.autograd.gradcheck(
        lambda *tensors: linear_of_runs(*tensors, COUNTS, EXPERTS, parts=parts), (rows, weights, bias)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_outputs_and_gradients_are_those_of_separate_linears(
    dtype: torch.dtype, with_bias: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE", 0 if large else 1 << 40)  # the gradient's memory: mapped, or allocated
    rows, weights = draw(12, 16, dtype=dtype), draw(4, 24, 16, seed=1, dtype=dtype)
    bias = draw(4, 24, seed=2, dtype=dtype) if with_bias else None
    expected = by_linear(rows, weights, bias, COUNTS, EXPERTS)
    (output,) = linear_of_runs(rows, weights, bias, COUNTS, EXPERTS)
    assert torch.equal(output, expected)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for found, wanted in zip(
        gradients(output, rows, weights, bias), gradients(expected, rows, weights, bias), strict=True
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, **close)
    assert not gradients(linear_of_runs(rows, weights, bias, COUNTS, EXPERTS)[0], weights)[0][3].any()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("counts", [COUNTS, [0, 0, 0, 12], [0, 0, 0, 0]])
def test_runs_apart_are_the_same_runs(counts: list[int], parts: int) -> None:
    rows, first, last = draw(sum(counts), 3), draw(4, 6, 3, seed=1), draw(4, 5, 6 // parts, seed=2)
    whole = linear_of_runs(rows, first, None, counts, EXPERTS, parts=parts)
    (expected,) = linear_of_runs(whole[0], last, None, counts, EXPERTS)
    apart = linear_of_runs(rows, first, None, counts, EXPERTS, parts=parts, apart=True)
    assert [len(piece) for piece in apart[::parts]] == ([count for count in counts if count] or [0])
    for part in range(parts):
        assert torch.equal(torch.cat(apart[part::parts]), whole[part])
    (found,) = linear_of_runs(apart[::parts], last, None, counts, EXPERTS)
    torch.testing.assert_close(found, expected)  # to the bit only where rows begin at the same alignment
    for ours, theirs in zip(gradients(found, rows, first, last), gradients(expected, rows, first, last), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 7, 36])
def test_one_run_is_linear_to_the_last_bit_with_its_gradients(num_rows: int, dtype: torch.dtype) -> None:
    rows, weights = draw(num_rows, 24, dtype=dtype), draw(3, 80, 24, seed=1, dtype=dtype)
    apart = [F.linear(rows, weights[1, :40]), F.linear(rows, weights[1, 40:])]
    found = linear_of_runs(rows, weights, None, [0, num_rows], [2, 1], parts=2)
    assert all(torch.equal(a, b) for a, b in zip(found, apart, strict=True))
    # of the product of both, the gradient of the weights is exact; that of the rows is a sum of two, in another order
    ours, theirs = gradients(found[0] * found[1], weights), gradients(apart[0] * apart[1], weights)
    assert torch.equal(ours[0], theirs[0])


def test_what_needs_no_gradient_gets_none() -> None:
    tensors = [draw(12, 3), draw(4, 6, 3), draw(4, 6)]
    for wanted in itertools.product([False, True], repeat=3):
        given = [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
        (output,) = linear_of_runs(*given, COUNTS, EXPERTS)
        assert output.requires_grad == any(wanted)
        if any(wanted):
            output.sum().backward()
        assert [t.grad is not None for t in given] == list(wanted)


def test_no_rows_at_all() -> None:
    rows, weights, bias = draw(0, 3), draw(2, 6, 3), draw(2, 6)
    (output,) = linear_of_runs(rows, weights, bias, [0, 0], [0, 1])
    assert output.shape == (0, 6)
    output.sum().backward()
    assert rows.grad is not None
    assert rows.grad.shape == (0, 3)
    for tensor in (weights, bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_rows_and_gradients_of_any_layout() -> None:
    base, weights = draw(3, 12), draw(4, 6, 3)
    rows = base.T
    assert not rows.is_contiguous()
    (output,) = linear_of_runs(rows, weights, None, COUNTS, EXPERTS)
    assert torch.equal(output, linear_of_runs(rows.contiguous(), weights, None, COUNTS, EXPERTS)[0])
    found = torch.autograd.grad(output.sum(), [base, weights])  # the gradient of a sum has no strides
    expected = torch.autograd.grad(by_linear(rows, weights, None, COUNTS, EXPERTS).sum(), [base, weights])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows_dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_that_of_linear(rows_dtype: torch.dtype) -> None:
    rows, weights, bias = draw(12, 16, dtype=rows_dtype), draw(4, 24, 16, seed=1), draw(4, 24, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_linear(rows, weights, bias, COUNTS, EXPERTS)
        (output,) = linear_of_runs(rows, weights, bias, COUNTS, EXPERTS)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    found, wanted = gradients(output, rows, weights, bias), gradients(expected, rows, weights, bias)
    assert [g.dtype for g in found] == [rows_dtype, torch.float32, torch.float32]
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1][:2], wanted[1][:2])  # expert 2 has two runs, whose sum linear rounds
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=5e-2)


def test_autocast_leaves_float64_alone() -> None:
    rows, weights = draw(12, 3, dtype=torch.float64), draw(4, 6, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_of_runs(rows, weights, None, COUNTS, EXPERTS)[0].dtype == torch.float64


def test_a_second_derivative_is_refused() -> None:
    rows, weights = draw(12, 3), draw(4, 6, 3)
    (output,) = linear_of_runs(rows, weights, None, COUNTS, EXPERTS)
    (gradient,) = torch.autograd.grad(output.square().sum(), [rows], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the runs have 11 rows, and there are 12"):
        linear_of_runs(draw(12, 3), draw(4, 6, 3), None, [4, 7], [0, 1])
    with pytest.raises(RuntimeError, match=r"rows are torch\.bfloat16 and experts are torch\.float32"):
        linear_of_runs(draw(12, 3, dtype=torch.bfloat16), draw(4, 6, 3), None, COUNTS, EXPERTS)


@pytest.mark.parametrize("copies", [1, 2])
def test_gathered_rows_are_indexed_rows_with_their_gradient(copies: int) -> None:
    rows = draw(6, 3, dtype=torch.float64)
    order = torch.randperm(6 * copies, generator=torch.Generator().manual_seed(1))
    inverse = order.argsort()
    expected = rows.repeat_interleave(copies, 0)[order]
    assert torch.equal(gather_rows(rows, order, inverse, copies=copies), expected)
    assert torch.autograd.gradcheck(lambda r: gather_rows(r, order, inverse, copies=copies), (rows,))
    assert torch.equal(gather_rows(rows, None, None, copies=copies), rows.repeat_interleave(copies, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_chosen", [1, 2, 3, 5])
def test_the_mean_of_equal_outputs_is_exactly_they(num_chosen: int, dtype: torch.dtype) -> None:
    output = draw(7, 1, 4, dtype=dtype)
    weights = draw(7, num_chosen, seed=1).softmax(-1).to(dtype)
    assert torch.equal(weighted_mean(output.expand(7, num_chosen, 4), weights), output[:, 0])


@pytest.mark.parametrize("num_chosen", [1, 2, 3])
def test_the_mean_is_the_weighted_sum_with_its_gradients(num_chosen: int) -> None:
    outputs, logits = draw(7, num_chosen, 4), draw(7, num_chosen, seed=1)

    found = weighted_mean(outputs, 3.0 * logits.softmax(-1))  # weights need not sum to 1
    expected = (outputs * logits.softmax(-1).unsqueeze(-1)).sum(1)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, outputs, logits), gradients(expected, outputs, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_survive_recomputation() -> None:
    rows, weights = draw(12, 3), draw(4, 6, 3)

    def forward(r: Tensor, w: Tensor) -> Tensor:
        return linear_of_runs(r, w, None, COUNTS, EXPERTS)[0].square()

    expected = torch.autograd.grad(forward(rows, weights).sum(), [rows, weights])
    recomputed = checkpoint(forward, rows, weights, use_reentrant=False)
    for ours, theirs in zip(torch.autograd.grad(recomputed.sum(), [rows, weights]), expected, strict=True):
        assert torch.equal(ours, theirs)
