"""The experts of a layer for every shape of FFN, by runs and by choice, in our code and in transformers'."""

import copy
import itertools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import BloomConfig, GPT2Config, MptConfig, Phi3Config, Qwen2MoeConfig
from transformers.models.bloom.modeling_bloom import BloomMLP
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.mpt.modeling_mpt import MptMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from sprachbund.modeling import experts as experts_module
from sprachbund.modeling.experts import GroupExperts, GroupMoe, build_moe, ungrouped
from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.ffn_weights import FfnShape, to_expert
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, dispatch, routed

D, WIDTH, E, N = 16, 24, 4, 37
SHAPES = [FfnShape(D, WIDTH, gated, bias) for gated, bias in itertools.product([True, False], repeat=2)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{'gated' * s.gated}{'bias' * s.bias}")
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def make(shape: FfnShape, *, implementation: str | None = None, copies: bool = False, fused: bool = False) -> Any:
    """Return experts with random weights, or with the same random ones in all."""
    config = SimpleNamespace(_experts_implementation=implementation)
    experts = GroupExperts(config, E, shape, F.silu, fused=fused)
    generator = torch.Generator().manual_seed(3)
    for parameter in experts.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.4
        parameter.data.copy_(drawn[:1] if copies else drawn)
    return experts


def rows(dtype: torch.dtype = torch.float32, how_many: int = N) -> Tensor:
    drawn = torch.randn(how_many, D, generator=torch.Generator().manual_seed(5))
    return drawn.to(dtype).requires_grad_()


def choice(num_chosen: int = 2) -> tuple[Tensor, Tensor]:
    logits = torch.randn(N, E, generator=torch.Generator().manual_seed(6))
    weights, index = logits.softmax(-1).topk(num_chosen)
    return index, weights / weights.sum(-1, keepdim=True)


def dense(experts: Any, expert: int, hidden: Tensor) -> Tensor:
    """Return the output of one expert from `linear`, as a dense FFN of that shape computes it."""

    def projected(name: str, given: Tensor, rows: slice = slice(None)) -> Tensor:
        bias = getattr(experts, f"{name}_bias")[expert, rows] if experts.has_bias else None
        return F.linear(given, getattr(experts, name)[expert, rows], bias)

    if experts.has_gate:
        gate = projected("gate_up_proj", hidden, slice(None, WIDTH))
        inner = F.silu(gate) * projected("gate_up_proj", hidden, slice(WIDTH, None))
    else:
        inner = F.silu(projected("up_proj", hidden))
    return projected("down_proj", inner)


def of_choice(experts: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over the chosen experts, slowly."""
    every_END = torch.stack([dense(experts, expert, hidden) for expert in range(E)])
    chosen_KND = every_END[index.T, torch.arange(len(hidden))]
    return (chosen_KND * weights.T.unsqueeze(-1)).sum(0)


def gradients(output: Tensor, hidden: Tensor, experts: nn.Module) -> dict[str, Tensor]:
    named = {"hidden": hidden, **dict(experts.named_parameters())}
    wanted = torch.autograd.grad((output * torch.linspace(-1, 1, D)).sum(), list(named.values()))
    return dict(zip(named, wanted, strict=True))


@every_shape
def test_names_and_shapes_are_those_of_transformers(shape: FfnShape) -> None:
    experts = make(shape)
    first, height = ("gate_up_proj", 2 * WIDTH) if shape.gated else ("up_proj", WIDTH)
    expected = {first: (E, height, D), "down_proj": (E, D, WIDTH)}
    if shape.bias:
        expected |= {f"{first}_bias": (E, height), "down_proj_bias": (E, D)}
    assert {name: tuple(tensor.shape) for name, tensor in experts.state_dict().items()} == expected


@every_shape
@every_dtype
@torch.no_grad()
def test_one_run_is_the_dense_ffn_to_the_last_bit(shape: FfnShape, dtype: torch.dtype) -> None:
    experts, hidden = make(shape).to(dtype), rows(dtype)
    for expert in (0, 2):
        counts = [N if e == expert else 0 for e in range(E)]
        assert torch.equal(experts(hidden, counts=counts), dense(experts, expert, hidden))


@every_shape
def test_runs_are_their_experts_with_their_gradients(shape: FfnShape) -> None:
    experts, hidden = make(shape), rows()
    runs = ([5, 0, 20, 12], [1, 0, 3, 1])
    output = experts(hidden, counts=runs[0], expert_of_run=runs[1])
    pieces = zip(hidden.split(runs[0]), runs[1], strict=True)
    expected = torch.cat([dense(experts, expert, piece) for piece, expert in pieces])
    torch.testing.assert_close(output, expected)
    found, wanted = gradients(output, hidden, experts), gradients(expected, hidden, experts)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        assert gradient.any()


@every_shape
@pytest.mark.parametrize("num_chosen", [1, 2, 3])
@pytest.mark.parametrize("implementation", [None, "eager", "grouped_mm", "batched_mm"])
def test_a_choice_is_the_weighted_sum_with_its_gradients(
    shape: FfnShape, num_chosen: int, implementation: str | None
) -> None:
    experts, hidden = make(shape, implementation=implementation), rows()
    index, weights = choice(num_chosen)
    output, expected = experts(hidden, index, weights), of_choice(experts, hidden, index, weights)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(output, hidden, experts), gradients(expected, hidden, experts)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=name)


@every_shape
@pytest.mark.parametrize("implementation", [None, "eager", "grouped_mm"])
@torch.no_grad()
def test_a_choice_is_the_same_on_every_run(shape: FfnShape, implementation: str | None) -> None:
    experts, hidden = make(shape, implementation=implementation).bfloat16(), rows(torch.bfloat16)
    index, weights = choice(3)
    first = experts(hidden, index, weights.bfloat16())
    assert all(torch.equal(experts(hidden, index, weights.bfloat16()), first) for _ in range(3))


@every_shape
@every_dtype
@pytest.mark.parametrize("num_chosen", [1, 2, 3, 4])
@pytest.mark.parametrize("implementation", [None, "eager", "grouped_mm"])
@torch.no_grad()
def test_copies_with_a_zero_router_are_the_dense_ffn_to_the_last_bit(
    shape: FfnShape, dtype: torch.dtype, num_chosen: int, implementation: str | None
) -> None:
    experts = make(shape, implementation=implementation, copies=True)
    moe = GroupMoe(GroupRouter(D, E, num_chosen, detach=True), experts, None).to(dtype)
    hidden = rows(dtype)
    with routed(RoutingContext()):
        assert torch.equal(moe(hidden), dense(experts, 0, hidden))


@torch.no_grad()
def test_widths_that_grouped_products_cannot_have() -> None:
    for width in (5, 7):
        shape = FfnShape(D, width, gated=True, bias=False)
        experts = make(shape, implementation="grouped_mm").bfloat16()
        output = experts(rows(torch.bfloat16), *choice())
        assert output.isfinite().all()
        assert output.shape == (N, D)


def test_float64_under_the_default_implementation() -> None:
    experts, hidden = make(SHAPES[0], implementation="grouped_mm").double(), rows(torch.float64)
    index, weights = choice()
    output = experts(hidden, index, weights.double())
    torch.testing.assert_close(output, of_choice(experts, hidden, index, weights.double()))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((1024, 4096, torch.bfloat16, False), None),
        ((1020, 4, torch.float32, False), None),
        ((1024, 100, torch.bfloat16, False), "the widths 1024 and 100 are not both multiples of 8, as torch.bfloat16"),
        ((98, 128, torch.float32, False), "the widths 98 and 128 are not both multiples of 4, as torch.float32"),
        ((1024, 4096, torch.float64, False), "they do not support torch.float64"),
        ((1024, 4096, torch.float32, True), "they do not follow autocast"),
    ],
)
def test_where_grouped_products_cannot_serve(given: Any, reason: str | None) -> None:
    hidden_size, width, dtype, autocast = given
    found = ungrouped(hidden_size, width, dtype, autocast=autocast)
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_falling_back_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """As on a GPU, where alone grouped products are used."""
    experts = make(FfnShape(D, 5, gated=True, bias=False), implementation="grouped_mm").bfloat16()
    hidden: Any = SimpleNamespace(device=SimpleNamespace(type="cuda"), shape=(N, D), dtype=torch.bfloat16)
    experts_module._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert experts._implementation(hidden) is None
        assert experts._implementation(hidden) is None
    assert [record.message for record in caplog.records] == [
        "experts are computed one after the other, without grouped products: the widths 16 and 5 are not both "
        "multiples of 8, as torch.bfloat16 needs"
    ]
    wide = make(SHAPES[0], implementation="grouped_mm").bfloat16()
    assert wide._implementation(hidden).__name__ == "grouped_mm_experts_forward"


@pytest.mark.parametrize("by_choice", [True, False])
def test_autocast_computes_in_bfloat16_and_learns_in_float32(by_choice: bool) -> None:
    experts, hidden = make(SHAPES[0], implementation="grouped_mm"), rows()
    arguments: dict[str, Any] = {"counts": [10, 7, 0, 20]}
    if by_choice:
        index, weights = choice()
        arguments = {"top_k_index": index, "top_k_weights": weights}
    exact = experts(hidden, **arguments)
    with torch.autocast("cpu", torch.bfloat16):
        output = experts(hidden, **arguments)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=5e-2, atol=5e-2)
    output.float().square().sum().backward()
    assert {parameter.grad.dtype for parameter in experts.parameters()} == {torch.float32}
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_an_adapter_on_the_weights_is_trained_and_asked_once() -> None:
    """PEFT replaces a parameter by a computed tensor while the module is called."""

    class Low(nn.Module):
        def __init__(self, shape: torch.Size) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(E, shape[1], 1)), nn.Parameter(torch.randn(E, 1, shape[2]))
            self.calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.calls += 1
            return weight + self.a @ self.b

    experts, hidden = make(SHAPES[0]), rows()
    adapters = {}
    for name in ("gate_up_proj", "down_proj"):
        parameter = getattr(experts, name).requires_grad_(False)
        adapters[name] = Low(parameter.shape)
        parametrize.register_parametrization(experts, name, adapters[name])
    merged = make(SHAPES[0])
    for name, adapter in adapters.items():
        with torch.no_grad():
            getattr(merged, name).add_(adapter.a @ adapter.b)
        adapter.calls = 0
    output = experts(hidden, counts=[10, 0, 7, 20])
    assert [adapter.calls for adapter in adapters.values()] == [1, 1]
    torch.testing.assert_close(output, merged(hidden, counts=[10, 0, 7, 20]))
    output.sum().backward()
    for adapter in adapters.values():
        assert [bool(adapter.a.grad[e].any()) for e in range(E)] == [True, False, True, True]


def test_experts_need_runs_or_a_choice() -> None:
    with pytest.raises(TypeError, match="experts need counts, or top_k_index and top_k_weights"):
        make(SHAPES[0])(rows())


def test_a_mixture_outside_its_model_is_refused() -> None:
    moe = GroupMoe(GroupRouter(D, E, 2, detach=True), make(SHAPES[0]), None)
    with pytest.raises(RuntimeError, match="called outside its model: no routing is known"):
        moe(rows())


def test_unsorted_groups_and_shapes_of_hidden_states() -> None:
    experts = make(SHAPES[0])
    moe = GroupMoe(GroupRouter(D, E, 2, detach=True), experts, None)
    moe.gate.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    hidden = rows(how_many=36)
    groups = torch.tensor([3, 0, 2, 0] * 9)
    expected = torch.stack([dense(experts, int(g), row) for g, row in zip(groups, hidden, strict=True)])
    with routed(RoutingContext(plan=dispatch(groups, E))):
        output = moe(hidden)
        torch.testing.assert_close(moe(hidden.view(4, 9, D)), output.view(4, 9, D))
    torch.testing.assert_close(output, expected)
    found, wanted = gradients(output, hidden, experts), gradients(expected, hidden, experts)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    with routed(RoutingContext()):
        assert torch.equal(moe(hidden.view(4, 9, D)).view(36, D), moe(hidden))


def config(kind: str, **fields: Any) -> Any:
    common = {"num_groups": E, "num_experts_per_tok": 2, "expert_kind": kind, "expert_width": None}
    common |= {"expert_rank": None, "language_width": None}
    return SimpleNamespace(
        **common, router_gradient="detach", expert_of_group={}, _experts_implementation=None, **fields
    )


FFNS: dict[str, Callable[[], nn.Module]] = {
    "bloom": lambda: BloomMLP(BloomConfig(hidden_size=D, hidden_dropout=0.5)),
    "mpt": lambda: MptMLP(MptConfig(d_model=D)),
    "gpt2": lambda: GPT2MLP(WIDTH, GPT2Config(n_embd=D)),
    "phi3": lambda: Phi3MLP(Phi3Config(hidden_size=D, intermediate_size=WIDTH)),
}


@pytest.mark.parametrize("family", FFNS)
@pytest.mark.parametrize("kind", ["shared", "copy"])
@torch.no_grad()
def test_a_mixture_takes_the_place_of_the_ffn_residual_and_all(family: str, kind: str) -> None:
    torch.manual_seed(2)
    ffn = FFNS[family]().eval()
    fields = {"hidden_dropout": 0.5, "attn_config": SimpleNamespace(attn_pdrop=0.0), "resid_pdrop": 0.1}
    hidden = torch.randn(3, 12, D)
    given = (hidden, torch.randn(3, 12, D)) if FAMILIES[family].residual else (hidden,)
    expected = ffn(*given)
    expert = to_expert(FAMILIES[family], ffn.state_dict().__getitem__)
    moe = build_moe(config(kind, **fields), FAMILIES[family], ffn, layer=0).eval()
    assert moe.experts.has_bias == (family in ("bloom", "gpt2"))
    for name, parameter in moe.experts.named_parameters():
        parameter.copy_(expert[name] if kind == "copy" else torch.zeros_like(parameter))
    plan = dispatch(torch.full((36,), 2), E)
    for context in (RoutingContext(), RoutingContext(plan=plan)):
        with routed(context):
            assert torch.equal(moe(*given), expected)
    if kind == "shared":  # what the experts compute comes on top, and the residual is still there once
        moe.experts.down_proj.copy_(expert["down_proj"])
        alone = copy.deepcopy(moe)
        alone.shared_expert = None
        with routed(RoutingContext(plan=plan)):
            torch.testing.assert_close(moe(*given) - expected, alone(hidden))


def test_the_output_is_dropped_as_the_ffn_drops_it_in_training_only() -> None:
    fields = {"hidden_dropout": 0.5}
    moe = build_moe(config("copy", **fields), FAMILIES["bloom"], FFNS["bloom"](), layer=0)
    nn.init.ones_(moe.experts.down_proj_bias)
    hidden, residual = torch.randn(20, D), torch.full((20, D), 10.0)
    with routed(RoutingContext()):
        torch.manual_seed(0)
        assert set(moe.train()(hidden, residual).unique().tolist()) == {10.0, 12.0}
        assert set(moe.eval()(hidden, residual).unique().tolist()) == {11.0}


def test_an_expert_has_its_own_width_and_groups_may_share() -> None:
    settings = config("shared")
    settings.expert_width, settings.expert_of_group = 8, {"3": [0, 1, 0, 1]}
    moe = build_moe(settings, FAMILIES["phi3"], FFNS["phi3"](), layer=3)
    assert moe.experts.gate_up_proj.shape == (2, 16, D)
    assert moe.expert_of_group == [0, 1, 0, 1]
    assert build_moe(settings, FAMILIES["phi3"], FFNS["phi3"](), layer=1).experts.num_experts == E


def test_transformers_own_configuration_serves() -> None:
    """As `set_experts_implementation` leaves it."""
    own = Qwen2MoeConfig()
    own._experts_implementation = "batched_mm"
    experts, hidden = make(SHAPES[0]), rows()
    index, weights = choice()
    expected = experts(hidden, index, weights)
    experts.config = own
    assert experts._implementation(hidden).__name__ == "batched_mm_experts_forward"
    torch.testing.assert_close(experts(hidden, index, weights), expected)
