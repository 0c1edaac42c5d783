import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprachbund.errors import InputError
from sprachbund.grouping.layers import (
    bitmask,
    choose_by_budget,
    choose_by_epsilon,
    choose_top,
    mean_norms,
    noise_warning,
    normalised,
    outlier_warning,
    read_norms,
    relative_spread,
)

DMOE = Path(__file__).parents[2] / "../shared/reference/dmoe"
needs_reference = pytest.mark.skipif(not DMOE.is_dir(), reason="the authors' files are not beside this checkout")


@needs_reference
@pytest.mark.parametrize(
    ("model", "epsilon", "published"),
    [
        ("bloom-560m", 0.4, 16515135),
        ("bloom-560m", 0.6, 15728671),
        ("bloom-560m", 0.8, 14680064),
        ("gemma-2b", 0.6, 6200),
        ("gemma-2b", 0.8, 56),
    ],
)
def test_layers_of_the_paper(model: str, epsilon: float, published: int) -> None:
    norms_L = mean_norms(read_norms(DMOE / f"delta-norms-{model}.json"))
    assert bitmask(choose_by_epsilon(norms_L, epsilon=epsilon)) == published


@needs_reference
def test_noise_in_the_papers_own_norms() -> None:
    assert noise_warning(mean_norms(read_norms(DMOE / "delta-norms-bloom-560m.json"))) is None
    warning = noise_warning(mean_norms(read_norms(DMOE / "delta-norms-gemma-2b.json")))
    assert warning is not None
    assert "differ by 4.9%" in warning


@needs_reference
@pytest.mark.parametrize("model", ["bloom-560m", "gemma-2b"])
@pytest.mark.parametrize("epsilon", [0.4, 0.6, 0.8, 1.0])
def test_no_layer_of_the_papers_norms_is_an_outlier(model: str, epsilon: float) -> None:
    assert outlier_warning(mean_norms(read_norms(DMOE / f"delta-norms-{model}.json")), epsilon=epsilon) is None


@needs_reference
def test_a_budget_takes_the_papers_layers_by_their_norms() -> None:
    norms_L = mean_norms(read_norms(DMOE / "delta-norms-bloom-560m.json"))
    chosen = choose_by_budget(norms_L, budget=9_999, cost_L=[1_100] * 24)
    assert chosen == choose_top(norms_L, num_layers=9) == choose_by_epsilon(norms_L, epsilon=0.6)


def test_bit_order_of_the_authors() -> None:
    assert bitmask([0, 1, 2, 3, 4, 20, 21, 22, 23]) == 15728671
    assert bitmask([12, 3, 4, 5, 11]) == 6200
    assert bitmask([]) == 0


def test_mean_then_min_max_then_threshold() -> None:
    norms_L = mean_norms({"a": [1.0, 2.0, 3.0, 6.0], "b": [3.0, 2.0, 7.0, 6.0]})
    assert norms_L == [2.0, 2.0, 5.0, 6.0]
    assert normalised(norms_L) == [0.0, 0.0, 0.75, 1.0]
    assert choose_by_epsilon(norms_L, epsilon=0.75) == [2, 3]
    assert choose_by_epsilon(norms_L, epsilon=0.76) == [3]
    assert choose_by_epsilon(norms_L, epsilon=1.0) == [3]
    assert choose_by_epsilon(norms_L, epsilon=0.0) == [0, 1, 2, 3]


def test_equal_norms_choose_every_layer() -> None:
    assert normalised([0.2, 0.2, 0.2]) == [1.0, 1.0, 1.0]
    assert choose_by_epsilon([0.2, 0.2, 0.2], epsilon=1.0) == [0, 1, 2]
    assert choose_by_epsilon([0.0], epsilon=0.6) == [0]


def test_top_takes_the_lower_of_equal_layers() -> None:
    norms_L = [1.0, 5.0, 3.0, 5.0, 3.0]
    assert choose_top(norms_L, num_layers=1) == [1]
    assert choose_top(norms_L, num_layers=3) == [1, 2, 3]
    assert choose_top(norms_L, num_layers=5) == [0, 1, 2, 3, 4]


def test_a_budget_takes_the_largest_norms_that_fit() -> None:
    norms_L = [1.0, 5.0, 3.0, 5.0, 3.0]
    assert choose_by_budget(norms_L, budget=10, cost_L=[10] * 5) == [1]
    assert choose_by_budget(norms_L, budget=39, cost_L=[10] * 5) == [1, 2, 3]
    assert choose_by_budget(norms_L, budget=10**12, cost_L=[10] * 5) == [0, 1, 2, 3, 4]
    # layer 1 is too expensive and passed over; after layer 3 only the cheap layer 4 fits
    assert choose_by_budget(norms_L, budget=12, cost_L=[1, 20, 9, 8, 4]) == [3, 4]


def test_a_budget_below_the_cheapest_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"a budget of 1,999 .* a single mixture layer, which costs 2,000;"):
        choose_by_budget([1.0, 2.0], budget=1_999, cost_L=[2_000, 3_000])


@given(
    layers=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), min_size=1, max_size=12),
    budget=st.integers(50, 400),
)
@settings(max_examples=60)
def test_a_budget_is_kept_and_nothing_that_fits_is_left(layers: list[tuple[float, int]], budget: int) -> None:
    norms_L, cost_L = [norm for norm, _ in layers], [cost for _, cost in layers]
    chosen = choose_by_budget(norms_L, budget=budget, cost_L=cost_L)
    left = budget - sum(cost_L[layer] for layer in chosen)
    assert left >= 0
    assert all(cost_L[layer] > left for layer in range(len(layers)) if layer not in chosen)
    even = choose_by_budget(norms_L, budget=budget, cost_L=[50] * len(layers))
    assert even == choose_top(norms_L, num_layers=min(budget // 50, len(layers)))


def test_one_layer_that_suppresses_the_rest_is_named() -> None:
    norms_L = [1.0, 1.2, 1.1, 9.0, 1.3, 1.25]
    assert choose_by_epsilon(norms_L, epsilon=0.6) == [3]
    assert outlier_warning(norms_L, epsilon=0.6) == (
        "Layer 3 stands out (norm 9, median 1.225) and suppresses 1, 4, 5, which would reach epsilon = 0.6 without it: "
        "look at the norms, and lower epsilon or choose the number of layers."
    )
    warning = outlier_warning([1.0, 1.0, 1.0, 1.0, 2.0], epsilon=0.6)  # no spread at all but for the one
    assert warning is not None
    assert "suppresses 0, 1, 2, 3," in warning


@pytest.mark.parametrize(
    "norms_L",
    [
        [1.0, 1.2, 1.1, 1.4, 1.3, 1.25],  # the largest is no outlier
        [1.0, 2.0, 3.0, 4.0, 7.0],  # far, but not by the spread of the others
        [9.0, 1.2, 1.1, 9.0, 1.3, 1.25],  # two, neither of which does it alone
        [0.1, 9.0, 9.1, 9.2, 9.3, 9.25],  # an outlier below lets everything through
        [1.0, 5.0],  # of two layers neither is an outlier
        [2.0, 2.0, 2.0],
        [0.0, 0.0, 0.0],
    ],
)
def test_no_outlier_is_seen_where_there_is_none(norms_L: list[float]) -> None:
    assert outlier_warning(norms_L, epsilon=0.6) is None


def test_norms_that_are_all_zero_say_nothing() -> None:
    assert choose_by_epsilon([0.0, 0.0, 0.0], epsilon=0.6) == [0, 1, 2]
    warning = noise_warning([0.0, 0.0, 0.0])
    assert warning is not None
    assert "nothing moved" in warning
    assert noise_warning([0.0, 0.0, 1.0]) is None


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -0.5])
def test_norms_that_are_no_norms_are_refused(norm: float) -> None:
    for choose in (
        normalised,
        relative_spread,
        noise_warning,
        lambda norms_L: choose_by_epsilon(norms_L, epsilon=0.6),
        lambda norms_L: outlier_warning(norms_L, epsilon=0.6),
        lambda norms_L: choose_top(norms_L, num_layers=1),
        lambda norms_L: choose_by_budget(norms_L, budget=5, cost_L=[1, 1]),
    ):
        with pytest.raises(InputError, match=f"The norm of layer 1 is {norm}; a norm is a finite number"):
            choose([1.0, norm])


def test_spread_and_its_warning() -> None:
    assert relative_spread([1.0, 2.0, 3.0]) == 1.0
    assert relative_spread([0.0, 0.0]) == 0.0
    # The measured case: Adam leaves .2239 to .2328, and epsilon would tell them apart all the same.
    warning = noise_warning([0.2239, 0.2280, 0.2328])
    assert warning is not None
    assert "differ by 3.9%" in warning
    assert noise_warning([0.975, 1.0, 1.03]) is None


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_epsilon_outside_its_range_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"number in 0\.\.1"):
        choose_by_epsilon([1.0, 2.0], epsilon=epsilon)


@pytest.mark.parametrize("num_layers", [-1, 0, 3])
def test_number_of_layers_outside_the_model_is_refused(num_layers: int) -> None:
    with pytest.raises(InputError, match="the model has 2; ask for 1 to 2"):
        choose_top([1.0, 2.0], num_layers=num_layers)


def test_no_layers_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="No layer norms"):
        choose_by_epsilon([], epsilon=0.6)


def test_attention_norms_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text(json.dumps({"a": {"delta_norm_ffn": [1, 0.5], "delta_norm_att": [9, 9]}}))
    assert read_norms(path) == {"a": [1.0, 0.5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":\n\n', "n.json, line 3: not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ('{"a": [1, 2]}', "'a' has no list 'delta_norm_ffn'"),
        ('{"a": {"delta_norm_att": [1]}}', "'a' has no list 'delta_norm_ffn'"),
        ('{"a": {"delta_norm_ffn": []}}', "'a' has no list 'delta_norm_ffn'"),
        ('{"a": {"delta_norm_ffn": [1, -0.1]}}', "'a', layer 1, is -0.1"),
        ('{"a": {"delta_norm_ffn": [NaN]}}', "'a', layer 0, is NaN"),
        ('{"a": {"delta_norm_ffn": [Infinity]}}', "'a', layer 0, is Infinity"),
        ('{"a": {"delta_norm_ffn": ["1"]}}', "'a', layer 0, is \"1\""),
        ('{"a": {"delta_norm_ffn": [true]}}', "'a', layer 0, is true"),
        ('{"a": {"delta_norm_ffn": [1' + "0" * 400 + "]}}", "'a', layer 0, is 1000"),
        ('{"a": {"delta_norm_ffn": [1' + "0" * 9000 + "]}}", "not readable as JSON"),
        ('{"a": {"delta_norm_ffn": [1, 2]}, "b": {"delta_norm_ffn": [1]}}', "'b' has norms of 1 layers and 'a' of 2"),
        ('{"a": {"delta_norm_ffn": [1]}, "a": {"delta_norm_ffn": [1]}}', "'a' occurs twice"),
    ],
)
def test_bad_norm_files_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_norms(path)
    assert message in str(caught.value)
    assert "n.json" in str(caught.value)
