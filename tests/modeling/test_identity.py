"""At step 0 the mixture computes what the dense model did."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob, expand
from sprachbund.modeling.experts import GroupExperts, GroupMoe
from sprachbund.modeling.ffn import family_of
from sprachbund.modeling.ffn_weights import FfnShape
from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, routed

GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1, "acu_Latn": 3}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["shared", "copy"])
@pytest.mark.parametrize("moe_layers", [[2, 0], [0, 1, 2]], ids=["some", "all"])
@torch.no_grad()
def test_the_mixture_starts_as_the_dense_model_in_every_routing_mode(
    family: str,
    kind: Any,
    moe_layers: list[int],
    make_dense: Callable[..., Any],
    tokens: Callable[..., Tensor],
    modes: Callable[..., Any],
) -> None:
    dense = make_dense(family)
    input_ids = tokens(8, 9)
    streams = [tokens(1, 400, seed=s).flatten().numpy() % 40 + 50 * s for s in range(5)]
    mixture = expand(
        dense,
        moe_layers=moe_layers,
        groups=GROUPS,
        kind=kind,
        router_init="normal",
        log_prob=count_log_prob(streams, vocab_size=300),
    )
    assert [i for i, layer in enumerate(mixture.model.layers) if isinstance(layer.mlp, GroupMoe)] == sorted(moe_layers)
    expected = dense(input_ids).logits
    for mode in modes(8):
        logits = mixture(input_ids, **mode).logits
        if kind == "shared":
            assert torch.equal(logits, expected), mode
        else:
            assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max(), mode


@torch.no_grad()
def test_copies_under_top_k_with_a_zero_router_are_bit_identical_to_one_ffn() -> None:
    """Whole numbers and a ReLU make every product exact, so that no library's order of summation can hide an error."""
    generator = torch.Generator().manual_seed(0)

    def whole(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    gate_FD, up_FD, down_DF, hidden_BTD = whole(10, 6), whole(10, 6), whole(6, 10), whole(2, 5, 6)
    for top_k in (1, 2, 3, 4):
        experts = GroupExperts(None, 4, FfnShape(6, 10, gated=True, bias=False), torch.relu)
        experts.gate_up_proj.copy_(torch.cat([gate_FD, up_FD]).expand(4, 20, 6))
        experts.down_proj.copy_(down_DF.expand(4, 6, 10))
        moe = GroupMoe(GroupRouter(6, 4, top_k, detach=True), experts, None)
        with routed(RoutingContext()):
            output = moe(hidden_BTD)
        assert torch.equal(output, ((hidden_BTD @ gate_FD.T).relu() * (hidden_BTD @ up_FD.T)) @ down_DF.T)


@torch.no_grad()
def test_the_dense_model_is_left_as_it_was_and_shares_no_memory(make_dense: Callable[..., Any]) -> None:
    dense = make_dense()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    mixture = expand(dense, moe_layers=[0, 1, 2], groups=GROUPS, kind="copy")
    for parameter in mixture.parameters():
        parameter.fill_(3.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("width", [8, 24, 40])
def test_shared_experts_start_fresh_at_the_scale_of_the_ffn(width: int, make_dense: Callable[..., Any]) -> None:
    dense = make_dense()
    mixture = expand(dense, moe_layers=[1], groups=GROUPS, width=width)
    experts, ffn = mixture.model.layers[1].mlp.experts, dense.model.layers[1].mlp
    assert experts.gate_up_proj.shape == (4, 2 * width, 16)
    assert not experts.down_proj.any()
    gate_GFD, up_GFD = experts.gate_up_proj.chunk(2, dim=1)
    assert gate_GFD.std().item() == pytest.approx(ffn.gate_proj.weight.std().item(), rel=0.2)
    assert up_GFD.std().item() == pytest.approx(ffn.up_proj.weight.std().item(), rel=0.2)
    units = experts.gate_up_proj.reshape(-1, 16)
    assert len(units.unique(dim=0)) == len(units)  # two equal units with equal gradients would never part


def test_expand_is_decided_by_its_seed(make_dense: Callable[..., Any]) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        state: dict[str, Tensor] = expand(
            make_dense(), moe_layers=[0], groups=GROUPS, width=8, seed=seed, router_init="normal"
        ).state_dict()
        return state

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.layers.0.mlp.gate.weight"], other["model.layers.0.mlp.gate.weight"])


def test_router_initialisation_and_dtype(make_dense: Callable[..., Any]) -> None:
    dense = make_dense(hidden_size=64).to(torch.bfloat16)
    mixture = expand(dense, moe_layers=[0], groups=GROUPS, log_prob=torch.full((300, 5), -5.7032), router_init="normal")
    (moe,) = mixture_layers(mixture)
    assert moe.gate.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert {parameter.dtype for parameter in mixture.parameters()} == {torch.bfloat16}
    table = mixture.to(torch.bfloat16).model.language_gate.log_prob
    assert table.dtype == torch.float32
    assert table[0, 0].item() == pytest.approx(-5.7032)
    (zero,) = mixture_layers(expand(dense, moe_layers=[0], groups=GROUPS))
    assert not zero.gate.weight.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moe_layers": [0, 3]}, "layer 3 does not exist; the base has layers 0 to 2"),
        ({"moe_layers": [-1]}, "layer -1 does not exist; the base has layers 0 to 2"),
        ({"moe_layers": [1, 1]}, "a layer is chosen twice: [1, 1]"),
        ({"moe_layers": []}, "no layer is chosen to become a mixture of experts; choose at least one"),
        ({"groups": {}}, "groups must be numbered 0, 1, ... without gaps; found []"),
        (
            {"groups": {"deu_Latn": 0, "zul_Latn": 2}},
            "groups must be numbered 0, 1, ... without gaps; found [0, 2]",
        ),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5 must lie in 1..4, the groups' number"),
        (
            {"log_prob": torch.zeros(300, 1)},
            "log_prob has shape (300, 1); it needs (300, 5): a row for each token of the vocabulary, a column for each "
            "language of groups",
        ),
    ],
)
def test_what_cannot_be_expanded_is_refused(
    options: dict[str, Any], message: str, make_dense: Callable[..., Any]
) -> None:
    with pytest.raises(InputError) as error:
        expand(make_dense(), **{"moe_layers": [0], "groups": GROUPS, **options})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "opt"},
            "the base is a 'opt' model, which cannot be expanded: its decoder layer computes the FFN itself, without a "
            "module that could be replaced; give a dense decoder of one of apertus, arcee, bloom, ",
        ),
        ({"model_type": "mixtral", "num_local_experts": 8}, "the base is a 'mixtral' model, a mixture of experts"),
        ({"model_type": "dmoe_llama"}, "the base is a 'dmoe_llama' model: it has been expanded already; give"),
        ({"model_type": "lama"}, "the base is a 'lama' model, a family that is not supported, did you mean 'llama'"),
        ({"model_type": "t5"}, "the base is a 't5' model, a family that is not supported; give a dense decoder of one"),
    ],
)
def test_families_that_are_not_supported_are_refused_with_the_reason(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        family_of(config["model_type"], SimpleNamespace(**config))
    assert str(error.value).startswith(message)


def test_biases_become_the_experts_own(make_dense: Callable[..., Any]) -> None:
    dense = make_dense(mlp_bias=True)
    ffn = dense.model.layers[0].mlp
    with torch.no_grad():
        ffn.up_proj.bias.fill_(0.5)
        ffn.down_proj.bias.fill_(-0.25)
    (moe,) = mixture_layers(expand(dense, moe_layers=[0], groups=GROUPS, kind="copy"))
    assert torch.equal(moe.experts.gate_up_proj_bias[2], torch.cat([torch.zeros(24), torch.full((24,), 0.5)]))
    assert torch.equal(moe.experts.down_proj_bias, torch.full((4, 16), -0.25))


def test_a_base_with_tensors_that_its_family_does_not_have_is_refused(make_dense: Callable[..., Any]) -> None:
    dense = make_dense()
    dense.model.adapter = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"tensors that its family does not: model\.adapter\.weight"):
        expand(dense, moe_layers=[0], groups=GROUPS)
