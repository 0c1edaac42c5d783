"""score_language against the slowest possible way: one position at a time, from the tokens before it in its window."""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from sprachbund.evaluation import perplexity, score_language
from sprachbund.modeling import count_log_prob, expand
from sprachbund.modeling.base import scratch_model
from sprachbund.recipe import Scratch

VOCABULARY, WINDOW, BURN_IN = 260, 12, 5
GROUPS = {"deu_Latn": 0, "rus_Cyrl": 1, "ukr_Cyrl": 1, "hin_Deva": 2}


@lru_cache
def dense() -> Any:
    scratch = Scratch(hidden_size=16, num_layers=2, ffn_size=24, num_heads=2, tokens=1)
    model = scratch_model(scratch, vocab_size=VOCABULARY, block_size=32, eos_token_id=0, seed=0).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)  # tied: predictions far from uniform
    return model


@lru_cache
def mixture(*, uneven: bool = False) -> Any:
    """A mixture whose experts and routers differ, with a gate that knows four languages.

    In the uneven one groups 0 and 1 share an expert in layer 1.
    """
    generator = np.random.default_rng(0)
    streams = [generator.integers(0, VOCABULARY, 400) for _ in GROUPS]
    table = count_log_prob(streams, vocab_size=VOCABULARY)
    tables = {0: [0, 1, 2], 1: [0, 0, 1]} if uneven else None
    model = expand(dense(), moe_layers=[0, 1], expert_of_group=tables, groups=GROUPS, log_prob=table, seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name or name.endswith("gate.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def text(num_tokens: int = 44) -> perplexity.TestText:
    return perplexity.TestText(np.random.default_rng(1).integers(0, VOCABULARY, num_tokens), 2 * num_tokens)


def score(model: Any, routing: str | None, group: int | None = 1, **changes: int) -> perplexity.LanguageScores:
    settings = {"window": WINDOW, "burn_in": BURN_IN, "batch_tokens": 2 * WINDOW, **changes}
    return score_language(model, text(), routing=routing, group=group, **settings)


@torch.inference_mode()
def slow(model: Any, routing: str | None, group: int) -> perplexity.LanguageScores:
    tokens = torch.from_numpy(text().tokens)
    scores = perplexity.LanguageScores(routed=[0.0] * 3)
    for position in range(len(tokens) - 1):
        starts = {"cold": position // WINDOW * WINDOW}
        if position >= BURN_IN:
            starts["warm"] = (position - BURN_IN) // (WINDOW - BURN_IN) * (WINDOW - BURN_IN)
        for kind, start in starts.items():
            options: dict[str, Any] = {}
            if routing is not None:
                given = torch.tensor([group]) if routing == "group" else None
                options = {"routing": routing, "group_ids": given, "output_router_logits": True}
            outputs = model(input_ids=tokens[None, start : position + 1], **options)
            nats = -float(outputs.logits[0, -1].double().log_softmax(-1)[tokens[position + 1]])
            if kind == "warm":
                scores.nats_after_burn_in += nats
                scores.positions_after_burn_in += 1
                continue
            scores.nats += nats
            scores.positions += 1
            if routing is not None:
                ids = outputs.group_ids
                chosen = (
                    [int(ids[0, -1])]
                    if ids is not None
                    else [int(logits[0, -1].argmax()) for logits in outputs.router_logits]
                )
                for choice in chosen:
                    scores.routed[choice] += 1 / len(chosen)
                    scores.right += (choice == group) / len(chosen)
    return scores


@pytest.mark.parametrize("routing", [None, "group", "prefix", "top_k"])
def test_scores_are_those_of_one_position_at_a_time(routing: str | None) -> None:
    model = dense() if routing is None else mixture()
    found, expected = score(model, routing), slow(model, routing, 1)
    assert found.positions == expected.positions == 43
    assert found.positions_after_burn_in == expected.positions_after_burn_in == 43 - BURN_IN
    assert found.nats == pytest.approx(expected.nats, rel=1e-5)
    assert found.nats_after_burn_in == pytest.approx(expected.nats_after_burn_in, rel=1e-5)
    if routing in ("prefix", "top_k"):
        assert found.right == pytest.approx(expected.right)
        assert found.routed == pytest.approx([count / 43 for count in expected.routed])
        assert sum(found.routed) == pytest.approx(1)
        assert sum(share > 0 for share in found.routed) > 1  # a test where everything goes one way would show nothing


def test_routings_and_groups_give_different_scores() -> None:
    scores = [score(mixture(), "group", group).nats for group in range(3)]
    scores += [score(mixture(), routing).nats for routing in ("prefix", "top_k")]
    assert len({round(nats, 2) for nats in scores}) == 5


def test_the_true_group_changes_nothing_that_a_label_free_routing_predicts() -> None:
    for routing in ("prefix", "top_k"):
        first, second = score(mixture(), routing, 0), score(mixture(), routing, 2)
        assert (first.nats, first.nats_after_burn_in) == (second.nats, second.nats_after_burn_in)
        assert first.routed == second.routed
        assert first.right != second.right


@pytest.mark.parametrize("routing", ["group", "prefix", "top_k"])
def test_the_batch_size_changes_nothing(routing: str) -> None:
    one, many = (score(mixture(), routing, batch_tokens=tokens) for tokens in (1, 10_000))
    assert one.nats == pytest.approx(many.nats, rel=1e-6)
    assert one.nats_after_burn_in == pytest.approx(many.nats_after_burn_in, rel=1e-6)
    assert one.right == pytest.approx(many.right)
    assert one.routed == pytest.approx(many.routed)


def test_a_window_longer_than_the_text_is_the_text_once() -> None:
    scores = score(dense(), None, window=100)
    ids = torch.from_numpy(text().tokens)[None]
    with torch.inference_mode():
        loss = dense()(input_ids=ids, labels=ids).loss
    assert scores.nats / scores.positions == pytest.approx(float(loss), rel=1e-5)
    assert scores.positions_after_burn_in == scores.positions - BURN_IN


def test_scoring_leaves_the_model_as_it_was() -> None:
    model = mixture()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    score(model, "top_k")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


@torch.inference_mode()
def test_an_uneven_mixture_is_scored_by_the_experts_of_the_true_group() -> None:
    model = mixture(uneven=True)
    for routing in ("prefix", "top_k"):
        found = score(model, routing, 1)
        assert sum(found.routed) == pytest.approx(1)
        assert found.routed[1] == pytest.approx(found.right / found.positions)
    inputs = torch.from_numpy(text().tokens[:-1])
    right = 0.0
    for start in range(0, len(inputs), WINDOW):
        first, second = model(inputs[None, start : start + WINDOW], routing="top_k", output_router_logits=True)[
            "router_logits"
        ]
        assert (first.shape[-1], second.shape[-1]) == (3, 2)
        right += float((first.argmax(-1) == 1).sum() + (second.argmax(-1) == 0).sum()) / 2
    found = score(model, "top_k", 1)
    assert found.right == pytest.approx(right)
    assert 0 < right < found.positions
