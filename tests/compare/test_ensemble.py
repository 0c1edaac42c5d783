import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import GROUPS, VOCABULARY, dense_model, log_prob, make_job, some_ids, text_of, train_job

from sprachbund.compare.ensemble import Ensemble, EnsembleSystem
from sprachbund.evaluation import score_language
from sprachbund.modeling import count_parameters


@pytest.fixture
def ensemble() -> Ensemble:
    return Ensemble([dense_model(seed) for seed in range(3)], groups=GROUPS, log_prob=log_prob())


@pytest.mark.parametrize("top_m", [None, 1, 2, 3])
def test_weights_sum_to_one_and_only_the_top_m_have_any(ensemble: Ensemble, top_m: int | None) -> None:
    weights_BTG = ensemble.weights(some_ids(), top_m=top_m)
    torch.testing.assert_close(weights_BTG.sum(-1), torch.ones(2, 12))
    assert bool(((weights_BTG > 0).sum(-1) == (top_m or 3)).all())


def test_weights_are_the_posterior_by_hand(ensemble: Ensemble) -> None:
    ids, table = some_ids(1, 5), log_prob().double()
    language = torch.stack([table[token] for token in ids[0]]).cumsum(0).exp()
    group = torch.stack([language[:, 1], language[:, 0] + language[:, 2], language[:, 3]], dim=1)
    by_hand = group / group.sum(1, keepdim=True)
    torch.testing.assert_close(ensemble.weights(ids)[0].double(), by_hand, rtol=1e-5, atol=1e-6)
    two = by_hand.scatter(1, by_hand.argmin(1, keepdim=True), 0.0)
    found = ensemble.weights(ids, top_m=2)[0].double()
    torch.testing.assert_close(found, two / two.sum(1, keepdim=True), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_probabilities_are_mixed_not_logits(ensemble: Ensemble) -> None:
    ids = some_ids()
    by_hand: Any = 0.0
    for model, weight_BT in zip(ensemble.models, ensemble.weights(ids).unbind(-1), strict=True):
        by_hand = by_hand + weight_BT.unsqueeze(-1) * model(input_ids=ids).logits.softmax(-1)
    torch.testing.assert_close(ensemble(ids, routing="prefix").logits.exp(), by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_hand.sum(-1), torch.ones(2, 12))


@torch.no_grad()
def test_one_model_is_chosen_at_each_position(ensemble: Ensemble) -> None:
    ids = some_ids()
    outputs = ensemble(ids, routing="prefix-1")
    assert len(outputs.group_ids.unique()) > 1  # else the test would be of nothing
    logits_BTGV = torch.stack([model(input_ids=ids).logits.log_softmax(-1) for model in ensemble.models], dim=2)
    chosen = outputs.group_ids[:, :, None, None].expand(-1, -1, 1, VOCABULARY)
    torch.testing.assert_close(outputs.logits, logits_BTGV.gather(2, chosen).squeeze(2), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("routing", ["prefix", "prefix-1", "prefix-2"])
def test_identical_models_are_one_model(routing: str) -> None:
    model, ids = dense_model(7), some_ids()
    same = Ensemble([model] * 3, groups=GROUPS, log_prob=log_prob())
    expected = model(input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(same(ids, routing=routing).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_past_does_not_see_the_future(ensemble: Ensemble) -> None:
    ids = some_ids()
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCABULARY
    before, after = ensemble(ids).logits, ensemble(changed).logits
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=1e-6, atol=1e-6)
    assert float((before[:, 6:] - after[:, 6:]).abs().max()) > 0.1


@pytest.mark.parametrize("routing", ["top_k", "prefix-", "prefix-0", "prefix-x"])
def test_unknown_routings_are_refused(ensemble: Ensemble, routing: str) -> None:
    with pytest.raises(ValueError, match="an ensemble has 'group', 'prefix' and 'prefix-M'"):
        ensemble(some_ids(), routing=routing)


def test_a_model_is_needed_for_each_group(ensemble: Ensemble) -> None:
    with pytest.raises(ValueError, match="2 models for 3 groups"):
        Ensemble(ensemble.models[:2], groups=GROUPS, log_prob=log_prob())
    with pytest.raises(ValueError, match="the same for all sequences"):
        ensemble(some_ids(), routing="group", group_ids=torch.tensor([0, 1]))


def test_a_job_trains_and_scores_a_model_for_each_group(shared_tiny: Path, tmp_path: Path) -> None:
    system, job = EnsembleSystem(), make_job(shared_tiny, tmp_path / "job")
    facts = train_job(system, job)
    train = job.run.recipe.train
    assert facts["tokens"] == train.num_steps * train.tokens_per_step
    assert facts["flops"] > 0
    assert facts["tokens_per_second"] > 0

    scorer = system.scorer(job)
    one = count_parameters(job.base.load()).total
    assert (scorer.parameters.total, scorer.parameters.active) == (2 * one, one)
    text = text_of(job, "rus_Cyrl")
    scores = {routing: scorer.score(routing, "rus_Cyrl", text) for routing in scorer.routings}
    assert list(scores) == ["group", "prefix", "prefix-1"]
    assert all(math.isfinite(score.perplexity_after_burn_in) for score in scores.values())
    assert scores["prefix"].right > 0.5 * scores["prefix"].positions  # another alphabet: the count table knows

    alone = {"window": train.block_size, "burn_in": job.run.recipe.evaluate.burn_in, "batch_tokens": 8192}
    own, other = (score_language(model, text, **alone) for model in reversed(scorer.ensemble.models))
    assert scores["group"].nats == pytest.approx(own.nats, rel=1e-6)
    assert own.nats < other.nats  # the model of Cyrillic has learned from it
