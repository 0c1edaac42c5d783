"""The count of operations, against sums done by hand."""

from typing import Any

import pytest
from transformers import AutoConfig

from sprachbund.compare.cost import flops_per_token, matmul_parameters, parameters_used, training_flops
from sprachbund.modeling import mixture_config
from sprachbund.modeling.skeleton import skeleton
from sprachbund.training.stages import StagePlan, TrainingPlan

V, D, F, M, H, T = 50, 16, 24, 3, 16, 32
ATTENTION = 4 * D * H  # queries, keys, values, output
FFN = 3 * D * F


def dense_config(*, tied: bool = True) -> Any:
    return AutoConfig.for_model(
        "llama",
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=M,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=H // 2,
        tie_word_embeddings=tied,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_model_multiplies_with_everything_but_its_norms_and_input_embeddings(tied: bool) -> None:
    model = skeleton(dense_config(tied=tied))
    assert matmul_parameters(model) == M * (ATTENTION + FFN) + V * D
    assert flops_per_token(model, routing=None, context=T) == 2 * (M * (ATTENTION + FFN) + V * D) + 4 * M * H * T


@pytest.mark.parametrize(
    ("routing", "extra"),
    [("group", FFN), ("prefix", FFN), ("top_k", 2 * FFN + 4 * D), ("alternate", (3 * FFN + 4 * D) // 2)],
)
def test_a_mixture_adds_the_experts_that_a_token_uses(routing: str, extra: int) -> None:
    mixture = skeleton(mixture_config(dense_config(), moe_layers=[0, 2], num_groups=4))
    assert matmul_parameters(mixture, routing=routing) == M * (ATTENTION + FFN) + V * D + 2 * extra


@pytest.mark.parametrize("tied", [True, False])
def test_keyed_rows_cost_no_product_of_their_own(tied: bool) -> None:
    config = dense_config(tied=tied)
    configs = [mixture_config(config, moe_layers=[1], num_groups=4, rows=rows) for rows in (None, "group")]
    plain, keyed = map(skeleton, configs)
    assert matmul_parameters(keyed) == matmul_parameters(plain)
    assert parameters_used(keyed, routing="group").active == parameters_used(plain, routing="group").active + V * D * (
        2 - tied
    )


def test_training_is_three_times_forward_and_each_stage_counts_by_its_routing() -> None:
    mixture = skeleton(mixture_config(dense_config(), moe_layers=[1], num_groups=4))
    stages = (StagePlan(2, "group"), StagePlan(10, "top_k"))
    plan = TrainingPlan(num_steps=10, batch_size=8, micro_batch_size=8, learning_rate=1e-3, stages=stages)
    by_group = 6 * (M * (ATTENTION + FFN) + V * D + FFN) + 12 * M * H * T
    by_router = by_group + 6 * (FFN + 4 * D)
    assert training_flops(mixture, plan, context=T) == 8 * T * (2 * by_group + 8 * by_router)


def test_it_is_six_times_the_parameters_and_the_tokens_for_a_model_that_is_large() -> None:
    """The rule of thumb (Kaplan et al. 2020) within 5%, for a short context."""
    config = AutoConfig.for_model(
        "llama", vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=16
    )
    model = skeleton(config)
    num_parameters = sum(parameter.numel() for parameter in model.parameters()) - 32_000 * 2048
    assert 3 * flops_per_token(model, routing=None, context=256) == pytest.approx(6 * num_parameters, rel=0.05)
