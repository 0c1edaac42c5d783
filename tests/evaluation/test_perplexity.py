import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sprachbund.errors import SprachbundError
from sprachbund.evaluation import perplexity
from sprachbund.evaluation.perplexity import LanguageScores, score_language, windows
from sprachbund.modeling import likelihood

# by their module's name: pytest would collect test_text and TestText
make_text = perplexity.test_text
Text = perplexity.TestText

END = 256


def as_bytes(documents: list[str]) -> list[list[int]]:
    return [list(document.encode()) for document in documents]


class Stub:
    """A model of `logits`, (V,), wherever it is; it routes a token to group token % 3 and remembers its batches."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(
            vocab_size=len(logits), num_groups=3, moe_layers=[0, 1], expert_of_group={}, language_width=None
        )
        self.batches: list[tuple[int, ...]] = []
        self.calls: list[dict[str, Any]] = []

    def __call__(self, input_ids: Tensor, use_cache: bool, **options: Any) -> Any:
        self.batches.append(tuple(input_ids.shape))
        self.calls.append(options)
        groups = input_ids % 3
        one_hot = torch.nn.functional.one_hot(groups, 3).float()
        return SimpleNamespace(
            logits=self.logits.expand(*input_ids.shape, -1),
            group_ids=groups if options.get("routing") == "prefix" else None,
            path_ids=None,
            # the second layer sends everything to group 1
            router_logits=(one_hot, torch.tensor([0.0, 9.0, 0.0]).expand(*input_ids.shape, -1)),
        )


def uniform(vocabulary: int = 257) -> Stub:
    return Stub(torch.zeros(vocabulary))


@given(num_tokens=st.integers(1, 200), window=st.integers(1, 40))
def test_windows_side_by_side_cover_every_position_once(num_tokens: int, window: int) -> None:
    found = windows(num_tokens, window=window, context=0)
    covered = [position for start, length in found for position in range(start, start + length)]
    assert covered == list(range(num_tokens))
    assert all(length == window for _, length in found[:-1])


@given(num_tokens=st.integers(1, 200), window=st.integers(2, 40), data=st.data())
def test_overlapping_windows_score_every_position_with_enough_context_once(
    num_tokens: int, window: int, data: st.DataObject
) -> None:
    context = data.draw(st.integers(1, window - 1))
    found = windows(num_tokens, window=window, context=context)
    scored = [position for start, length in found for position in range(start + context, start + length)]
    assert scored == list(range(context, num_tokens))
    assert all(length <= window and start + length <= num_tokens for start, length in found)
    assert len(found) == 1 or all(length > context for _, length in found)  # none is read for nothing


@pytest.mark.parametrize("context", [8, 9, -1])
def test_a_context_that_fills_the_window_is_refused(context: int) -> None:
    with pytest.raises(ValueError, match=rf"a context of {context} leaves nothing of a window of 8"):
        windows(100, window=8, context=context)


def test_a_test_text_is_made_of_whole_documents() -> None:
    documents = ["abc", "é", "日本", "z"]
    text = make_text(documents, as_bytes, separator=END, max_tokens=6)
    assert text.tokens.tolist() == [*b"abc", END, *"é".encode(), END]  # the second document reaches six tokens
    assert text.tokens.dtype == np.int64
    assert text.num_bytes == 3 + 2
    exact = make_text(documents, as_bytes, separator=END, max_tokens=7)
    assert exact.tokens.tolist() == text.tokens.tolist()
    more = make_text(documents, as_bytes, separator=END, max_tokens=8)
    assert more.tokens.tolist() == [*text.tokens.tolist(), *"日本".encode(), END]
    everything = make_text(documents, as_bytes, separator=END, max_tokens=None)
    assert everything.num_bytes == len("".join(documents).encode()) == 12
    assert (everything.tokens == END).sum() == 4


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    text = Text(np.arange(100) % 257, 99)
    scores = score_language(uniform(), text, window=16, burn_in=4, batch_tokens=64)
    assert scores.perplexity == pytest.approx(257)
    assert scores.perplexity_after_burn_in == pytest.approx(257)
    assert scores.positions == 99  # the first token is never predicted
    assert scores.positions_after_burn_in == 95
    assert scores.bits_per_byte(1.0) == pytest.approx(math.log2(257))


def test_probabilities_are_those_of_the_next_token() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    text = Text(np.array([3, 0, 1, 2, 0, 0]), 5)
    scores = score_language(Stub(logits), text, window=4, burn_in=3, batch_tokens=4)
    assert scores.nats / math.log(2) == pytest.approx(1 + 2 + 3 + 1 + 1)  # of 0 1 2 0 0, not of the first 3
    assert scores.nats_after_burn_in / math.log(2) == pytest.approx(1 + 1)  # of the last two: inputs 3 and 4


def test_bits_per_byte_by_hand() -> None:
    scores = LanguageScores(
        nats=24 * math.log(2), positions=6, nats_after_burn_in=3 * math.log(2), positions_after_burn_in=1
    )
    assert scores.bits_per_byte(2.0) == pytest.approx(24 / 12)
    assert scores.bits_per_byte_after_burn_in(2.0) == pytest.approx(3 / 2)
    assert scores.perplexity == pytest.approx(2**4)
    assert scores.perplexity_after_burn_in == pytest.approx(2**3)


def test_routers_are_counted_by_hand() -> None:
    text = Text(np.array([0, 1, 2, 0, 0, 5, 4]), 7)  # the inputs are all but the last: groups 0 1 2 0 0 2
    options = {"window": 4, "burn_in": 2, "batch_tokens": 4, "group": 2}
    prefix = score_language(uniform(6), text, routing="prefix", **options)
    assert prefix.routed == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    assert prefix.right / prefix.positions == pytest.approx(2 / 6)
    top_k = score_language(uniform(6), text, routing="top_k", **options)  # the mean over two layers' first choices
    assert top_k.routed == pytest.approx([3 / 12, (1 + 6) / 12, 2 / 12])
    assert top_k.right / top_k.positions == pytest.approx(2 / 12)
    assert score_language(uniform(6), text, routing="group", **options).routed == []


def test_an_expert_of_several_groups_counts_for_the_true_one_of_them() -> None:
    text = Text(
        np.array([0, 1, 2, 0, 0, 5, 4]), 7
    )  # first choices: experts 0 1 2 0 0 2 in layer 0, always 1 in layer 1
    model = uniform(6)
    model.config = SimpleNamespace(
        vocab_size=6,
        language_width=None,
        num_groups=4,
        moe_layers=[3, 5],
        expert_of_group={"3": [0, 1, 0, 2], "5": [1, 1, 2, 0]},
    )
    options = {"window": 4, "burn_in": 2, "batch_tokens": 4, "routing": "top_k"}
    own = score_language(model, text, group=2, **options)
    # layer 3: expert 0 is the group's own, 1 and 2 are those of groups 1 and 3; layer 5: groups 0 and 1 share expert 1
    assert own.routed == pytest.approx([3 / 12, (1 + 3) / 12, 3 / 12, 2 / 12])
    assert own.right / own.positions == pytest.approx(3 / 12)
    other = score_language(model, text, group=0, **options)
    assert other.routed == pytest.approx([(3 + 6) / 12, 1 / 12, 0, 2 / 12])
    assert other.right / other.positions == pytest.approx(9 / 12)


def test_the_true_group_is_told_under_group_routing_only() -> None:
    text = Text(np.arange(9), 9)
    for routing, told in (("group", [1, 1]), ("prefix", None), ("top_k", None)):
        model = uniform()
        score_language(model, text, window=4, burn_in=1, batch_tokens=8, routing=routing, group=1)
        given_ids = model.calls[0]["group_ids"]
        assert (None if given_ids is None else given_ids.tolist()) == told
        assert all(call["routing"] == routing for call in model.calls)


def test_batches_stay_below_both_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(np.arange(99), 99)
    model = uniform()
    score_language(model, text, window=8, burn_in=2, batch_tokens=32)
    assert max(math.prod(shape) for shape in model.batches) == 32
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", 2 * 8 * 257)  # a large vocabulary
    model = uniform()
    score_language(model, text, window=8, burn_in=2, batch_tokens=32)
    assert max(math.prod(shape) for shape in model.batches) == 16
    monkeypatch.setattr(perplexity, "LOGITS_AT_ONCE", 1)
    model = uniform()
    score_language(model, text, window=8, burn_in=2, batch_tokens=32)
    assert max(shape[0] for shape in model.batches) == 1


@pytest.mark.parametrize("floats", [1, 257 * 3, 1 << 24])
def test_cross_entropy_in_pieces_is_cross_entropy(monkeypatch: pytest.MonkeyPatch, floats: int) -> None:
    monkeypatch.setattr(likelihood, "FLOATS_AT_ONCE", floats)
    logits = torch.randn(3, 7, 257, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(21).view(3, 7)
    expected = -logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    found = likelihood.token_nats(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "window", "burn_in", "message"),
    [
        (5, 16, 4, "5 tokens are too few for a burn-in of 4"),
        (50, 16, 0, "burn_in = 0 must be at least 1"),
        (50, 4, 4, "a context of 4 leaves nothing of a window of 4"),
    ],
)
def test_what_cannot_be_scored_is_refused(num_tokens: int, window: int, burn_in: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_language(uniform(), Text(np.arange(num_tokens), 9), window=window, burn_in=burn_in, batch_tokens=64)


def test_the_shortest_text_has_one_position_after_burn_in() -> None:
    scores = score_language(uniform(), Text(np.arange(6), 6), window=16, burn_in=4, batch_tokens=64)
    assert (scores.positions, scores.positions_after_burn_in) == (5, 1)


def test_a_model_without_finite_probabilities_is_an_error() -> None:
    with pytest.raises(SprachbundError, match="the model's probabilities are not finite"):
        score_language(Stub(torch.full((257,), math.nan)), Text(np.arange(50), 9), window=8, burn_in=4, batch_tokens=64)
