"""The count-based gate, and generation under every routing mode."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.modeling import count_log_prob
from sprachbund.modeling.cache import SCORES, scores_so_far
from sprachbund.modeling.gate import LanguageGate


def slow_groups(log_prob: list[list[float]], language_groups: list[int], ids: list[int], mask: list[int]) -> list[int]:
    """Decide the group of each position of one sequence by Bayes' rule, from nothing but the tokens so far."""
    decided = []
    for t in range(len(ids)):
        sums = [0.0] * len(language_groups)
        for token, real in zip(ids[: t + 1], mask[: t + 1], strict=True):
            if real:
                sums = [total + p for total, p in zip(sums, log_prob[token], strict=True)]
        evidence = [math.exp(total - max(sums)) for total in sums]
        posterior = [0.0] * (max(language_groups) + 1)
        for group, value in zip(language_groups, evidence, strict=True):
            posterior[group] += value
        decided.append(posterior.index(max(posterior)))
    return decided


@torch.no_grad()
def test_the_gate_equals_the_slow_reference_with_padding_anywhere(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    gate = make_moe().model.language_gate
    gate.log_prob.mul_(0.3)  # weak evidence: languages of one group can outvote a likelier one of another
    input_ids = tokens(4, 14)
    mask = torch.ones(4, 14, dtype=torch.long)
    mask[1, :5] = mask[2, 9:] = mask[3, 4:7] = 0
    found, sums_BTL = gate(input_ids, mask)
    rows = [
        slow_groups(gate.log_prob.tolist(), gate.groups, ids, real)
        for ids, real in zip(input_ids.tolist(), mask.tolist(), strict=True)
    ]
    real = mask.bool()
    assert torch.equal(found[real], torch.tensor(rows)[real])
    best_language = torch.tensor(gate.groups)[sums_BTL.argmax(-1)]
    assert (best_language != found)[real].any()  # the vote by groups matters in this sample
    assert (found[:, 1:] != found[:, :-1]).any()


def test_counts_are_smoothed_shares() -> None:
    table = count_log_prob([np.array([0, 0, 1, 3]), np.array([2])], vocab_size=4)
    assert table.shape == (4, 2)
    assert table.exp().sum(0).tolist() == pytest.approx([1, 1])
    assert table[:, 0].exp().tolist() == pytest.approx([2.05 / 4.2, 1.05 / 4.2, 0.05 / 4.2, 1.05 / 4.2])
    with pytest.raises(ValueError, match="token id 4 is outside the vocabulary of 4"):
        count_log_prob([np.array([0, 4])], vocab_size=4)


def test_the_gate_tells_languages_of_different_vocabularies_apart() -> None:
    generator = np.random.default_rng(0)
    streams = [generator.integers(start, start + 60, 2000) for start in (0, 40, 80)]
    gate = LanguageGate(140, [1, 0, 1], 2)
    gate.log_prob.copy_(count_log_prob(streams, vocab_size=140))
    texts = torch.tensor(np.stack([generator.integers(start, start + 60, 32) for start in (0, 40, 80)]))
    assert gate(texts)[0][:, -1].tolist() == [1, 0, 1]


def test_a_long_text_keeps_its_evidence() -> None:
    """A sum over 20,000 tokens must still tell two languages apart that differ by 0.001 nats a token."""
    gate = LanguageGate(2, [0, 1], 2)
    gate.log_prob.copy_(torch.tensor([[-9.0, -9.001], [-9.002, -9.0]]))
    found, _ = gate(torch.zeros(1, 20_000, dtype=torch.long))
    assert not found.any()
    found, _ = gate(torch.ones(1, 20_000, dtype=torch.long))
    assert found.all()


def favourite(model: Any, tag: str) -> Tensor:
    """Return the token that speaks most clearly for a language."""
    table_VL = model.model.language_gate.log_prob
    return (table_VL[:, model.config.languages.index(tag)] - table_VL.mean(1)).argmax()


@torch.no_grad()
def test_padding_changes_nothing(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, text = make_moe(), tokens(1, 7)
    plain = model(text, routing="prefix")
    noise = favourite(model, "deu_Latn").repeat(1, 4)
    ones, zeros = torch.ones_like(text), torch.zeros_like(noise)
    left_mask = torch.cat([zeros, ones], dim=1)
    positions = (left_mask.cumsum(1) - 1).clamp(min=0)
    left = model(torch.cat([noise, text], dim=1), attention_mask=left_mask, position_ids=positions, routing="prefix")
    right = model(torch.cat([text, noise], dim=1), attention_mask=torch.cat([ones, zeros], dim=1), routing="prefix")
    for logits, groups in ((left.logits[:, 4:], left.group_ids[:, 4:]), (right.logits[:, :7], right.group_ids[:, :7])):
        assert torch.equal(groups, plain.group_ids)
        torch.testing.assert_close(logits, plain.logits, rtol=1e-4, atol=1e-5)
    unmasked = model(torch.cat([noise, text], dim=1), routing="prefix")
    assert not torch.equal(unmasked.group_ids[:, 4:], plain.group_ids)  # the noise would have mattered


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_decoding_in_pieces_with_the_cache_equals_one_forward(
    family: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, input_ids = make_moe(family), tokens(3, 12)
    for mode in modes(3):
        whole = model(input_ids, **mode)
        cache, logits, groups = None, [], []
        for piece in input_ids.split([5, 1, 1, 4, 1], dim=1):
            output = model(piece, past_key_values=cache, use_cache=True, **mode)
            cache = output.past_key_values
            logits.append(output.logits)
            groups.append(output.group_ids)
        torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, rtol=1e-4, atol=1e-5)
        if whole.group_ids is not None:
            assert torch.equal(torch.cat(groups, dim=1), whole.group_ids)


def greedy(model: Any, input_ids: Tensor, mask: Tensor, num_new: int, **mode: Any) -> Tensor:
    """Generate without a cache: the whole text anew for every token."""
    for _ in range(num_new):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(input_ids, attention_mask=mask, position_ids=positions, use_cache=False, **mode)
        input_ids = torch.cat([input_ids, output.logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return input_ids


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.no_grad()
def test_greedy_generation_equals_a_loop_without_cache(
    family: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, input_ids = make_moe(family), tokens(3, 6)
    mask = torch.ones_like(input_ids)
    mask[1, :3] = 0
    input_ids[1, :3] = favourite(model, "deu_Latn")
    assert not torch.equal(model(input_ids, attention_mask=mask).group_ids, model(input_ids).group_ids)
    results = []
    for mode in modes(3):
        expected = greedy(model, input_ids, mask, 8, **mode)
        options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(input_ids, **options, **mode), expected)
        static = model.generate(input_ids, **options, cache_implementation="static", disable_compile=True, **mode)
        assert torch.equal(static, expected)  # there transformers hands over a 4-D mask
        results.append(expected)
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@torch.no_grad()
def test_new_tokens_keep_the_group_of_the_last_given_position(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model, input_ids = make_moe(), tokens(2, 4)
    group_ids = torch.tensor([[3, 3, 1, 2], [0, 1, 1, 0]])
    expected, ids = input_ids, group_ids
    for _ in range(6):
        logits = model(expected, group_ids=ids, use_cache=False).logits
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], dim=1)
        ids = torch.cat([ids, group_ids[:, -1:]], dim=1)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "group_ids": group_ids}
    assert torch.equal(model.generate(input_ids, **options), expected)
    assert torch.equal(model.generate(input_ids, use_cache=False, **options), expected)


@torch.no_grad()
def test_beams_and_candidate_tokens_keep_their_own_language_scores(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model, input_ids = make_moe(), tokens(2, 6)
    options: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}
    beams = model.generate(input_ids, num_beams=4, **options)
    assert torch.equal(beams, model.generate(input_ids, num_beams=4, use_cache=False, **options))
    text = tokens(1, 4).repeat(1, 3)  # repeats itself, so that looked-up candidates are tried, and most are refused
    assert torch.equal(model.generate(text, prompt_lookup_num_tokens=3, **options), model.generate(text, **options))


@torch.no_grad()
def test_the_cache_takes_scores_back_with_its_tokens(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model, input_ids = make_moe(), tokens(2, 8)
    cache = model(input_ids[:, :6], use_cache=True).past_key_values
    kept = cache.notes[SCORES][0][:, 3].clone()
    cache.crop(-2)
    assert cache.get_seq_length() == 4
    assert torch.equal(scores_so_far(cache), kept)
    whole = model(input_ids[:, [0, 1, 2, 3, 6, 7]])
    again = model(input_ids[:, 6:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(again.logits, whole.logits[:, 4:], rtol=1e-4, atol=1e-5)
    again.past_key_values.crop(-3)  # more than the last call read
    assert scores_so_far(again.past_key_values).equal(model.model.language_gate(input_ids[:, :3])[1][:, -1])
    again.past_key_values.reset()
    assert scores_so_far(again.past_key_values) is None


@torch.no_grad()
def test_a_cache_of_another_routing_is_refused(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, input_ids = make_moe(), tokens(2, 8)
    cache = model(input_ids[:, :6], use_cache=True, routing="top_k").past_key_values
    with pytest.raises(ValueError, match="a cache whose tokens it has not read; use one routing for a whole text"):
        model(input_ids[:, 6:], past_key_values=cache)
