import json
from pathlib import Path

import pytest

from sprachbund.errors import InputError
from sprachbund.grouping import (
    bitmask,
    choose_by_epsilon,
    choose_top,
    mean_norms,
    noise_warning,
    normalised,
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
