import math

import pytest
import torch

from sprachbund.training.objectives import balance_loss, router_cross_entropy


def test_router_cross_entropy_by_hand() -> None:
    """Two layers, two sequences of two tokens, two groups: -log softmax of the true group, averaged over everything."""
    first = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[1.0, 3.0], [0.0, 5.0]]])
    second = torch.zeros(2, 2, 2)
    group_ids = torch.tensor([0, 1])
    by_hand = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(-5))]
    expected = (sum(by_hand) / 4 + math.log(2)) / 2
    assert router_cross_entropy([first, second], group_ids).item() == pytest.approx(expected)


def test_router_cross_entropy_of_layers_with_different_experts_by_hand() -> None:
    """Three groups: in the first layer groups 0 and 2 share expert 1, in the second each group has its own."""
    first = torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])
    second = torch.tensor([[[0.0, 0.0, 1.0]], [[0.0, 3.0, 0.0]]])
    tables = torch.tensor([[1, 0, 1], [0, 1, 2]])
    by_hand = [
        (math.log(1 + math.exp(2)) + math.log(1 + math.exp(4))) / 2,  # group 2: expert 1 of 2; group 1: expert 0 of 2
        (math.log(2 + math.e) - 1 + math.log(2 + math.exp(3)) - 3) / 2,
    ]
    loss = router_cross_entropy([first, second], torch.tensor([2, 1]), tables)
    assert loss.item() == pytest.approx(sum(by_hand) / 2)
    identity = torch.arange(3).expand(2, 3)
    group_ids = torch.tensor([2, 0])
    expected = router_cross_entropy([second, second], group_ids)
    assert torch.equal(router_cross_entropy([second, second], group_ids, identity), expected)


def test_router_cross_entropy_falls_along_its_gradient_towards_the_group() -> None:
    logits = torch.zeros(1, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(router_cross_entropy([logits], torch.tensor([2])), logits)
    assert (gradient[..., 2] < 0).all()
    assert (gradient[..., [0, 1, 3]] > 0).all()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balance_loss_is_one_when_uniform_and_more_when_collapsed(top_k: int) -> None:
    num_groups = 6
    uniform = torch.zeros(2, 9, num_groups)
    assert balance_loss([uniform], top_k=top_k).item() == pytest.approx(1)
    assert balance_loss([uniform, uniform], top_k=top_k).item() == pytest.approx(1)
    even = torch.stack([torch.roll(torch.arange(6.0), shift) for shift in range(6)]).unsqueeze(0)
    assert balance_loss([even], top_k=top_k).item() == pytest.approx(1)  # sharp, but every expert equally often
    collapsed = torch.full((2, 9, num_groups), -30.0)
    collapsed[..., :top_k] = 30.0
    assert balance_loss([collapsed], top_k=top_k).item() == pytest.approx(num_groups / top_k)
    assert balance_loss([uniform, collapsed], top_k=top_k).item() == pytest.approx((1 + num_groups / top_k) / 2)


def test_balance_loss_of_layers_with_different_experts() -> None:
    """A layer with fewer experts than top_k chooses them all, which is balanced whatever the router says."""
    two, six = torch.full((1, 5, 2), -30.0), torch.full((1, 5, 6), -30.0)
    two[..., 0] = six[..., :3] = 30.0
    assert balance_loss([two], top_k=3).item() == pytest.approx(1)
    assert balance_loss([two], top_k=1).item() == pytest.approx(2)
    assert balance_loss([two, six], top_k=3).item() == pytest.approx((1 + 6 / 3) / 2)


def test_balance_loss_by_hand() -> None:
    """Three tokens, two experts, top 1: shares 2/3 and 1/3, mean probabilities (3/4 + 3/4 + 1/5) / 3 and the rest."""
    logits = torch.tensor([[[3.0, 1.0], [3.0, 1.0], [1.0, 4.0]]]).log()
    mean = (3 / 4 + 3 / 4 + 1 / 5) / 3
    assert balance_loss([logits], top_k=1).item() == pytest.approx(2 * (2 / 3 * mean + 1 / 3 * (1 - mean)))


def test_balance_loss_has_a_gradient_that_takes_load_from_the_crowded_expert() -> None:
    """The authors' own loss, softmax inside the chosen top k, is constant with zero gradient."""
    logits = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    logits[..., 4] += 2.0
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(balance_loss([logits], top_k=2), logits)
    assert (gradient[..., 4] > 0).all()
    after = balance_loss([logits - 20 * gradient], top_k=2)
    assert after < balance_loss([logits], top_k=2) - 0.01
