from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import VOCABULARY, dense_model, make_job, some_ids, text_of, train_job

from sprachbund.compare.systems import DenseSystem
from sprachbund.compare.tagged import TaggedSystem, add_tags, check_positions, tagged
from sprachbund.corpora.packing import Packed
from sprachbund.errors import InputError
from sprachbund.evaluation import perplexity, score_language
from sprachbund.run.data import PackedCorpora

FAMILIES: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "phi": {"family": "phi", "pad_token_id": 0},  # an output bias
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_tags_start_near_the_mean_and_change_nothing_else(kind: str) -> None:
    fields = {"family": "llama", **FAMILIES[kind]}
    model, same, other = (dense_model(1, **fields) for _ in range(3))
    ids = some_ids()
    with torch.no_grad():
        if kind == "phi":
            model.lm_head.bias.copy_(torch.arange(VOCABULARY))
        before = model(input_ids=ids).logits
        old = {"in": model.get_input_embeddings().weight.clone(), "out": model.get_output_embeddings().weight.clone()}
        add_tags(model, 4, seed=0)
        add_tags(same, 4, seed=0)
        add_tags(other, 4, seed=1)
        after = model(input_ids=ids).logits
    assert model.config.vocab_size == VOCABULARY + 4
    torch.testing.assert_close(after[..., :VOCABULARY], before)
    new = {"in": model.get_input_embeddings().weight, "out": model.get_output_embeddings().weight}
    assert (new["in"] is new["out"]) == (kind == "tied")
    for name, matrix in new.items():
        rows, mean = matrix.detach()[VOCABULARY:], old[name].mean(0)
        assert torch.equal(matrix[:VOCABULARY], old[name])
        assert float((rows - mean).std()) == pytest.approx(0.1 * float(old[name].std()), rel=0.4)
        assert len(rows.unique(dim=0)) == 4
    assert torch.equal(new["in"], same.get_input_embeddings().weight)
    assert not torch.equal(new["in"], other.get_input_embeddings().weight)
    if kind == "phi":
        assert model.lm_head.bias[VOCABULARY:].tolist() == [31.5] * 4


def test_every_block_has_the_tag_of_its_language_in_front() -> None:
    streams = {tag: Packed(np.arange(20) + start, 1, 40, tag, tag) for tag, start in (("aaa", 0), ("bbb", 20))}
    found = tagged(PackedCorpora(streams), vocab_size=VOCABULARY)
    assert found.train["aaa"].block(1, 8).tolist() == [64, *range(8, 16)]
    assert found.train["bbb"].block(2, 8).tolist() == [65, *range(32, 40)]  # the last one moved back to be full
    assert found.train["bbb"].num_blocks(8) == 3
    assert found.digest == PackedCorpora(streams).digest


@torch.no_grad()
def test_scoring_reads_the_prefix_and_counts_the_same_positions() -> None:
    model, tag = dense_model(1), 9
    text = perplexity.TestText(some_ids(1, 21)[0].numpy(), 30)
    settings = {"window": 8, "burn_in": 3, "batch_tokens": 64}
    plain, found = (score_language(model, text, **settings, prefix=prefix) for prefix in (None, tag))
    assert (found.positions, found.positions_after_burn_in) == (plain.positions, plain.positions_after_burn_in)
    inputs, targets = torch.from_numpy(text.tokens[:-1]), torch.from_numpy(text.tokens[1:])

    def by_hand(start: int, length: int, context: int) -> float:
        ids = torch.cat([torch.tensor([tag]), inputs[start : start + length]])
        log_probs = model(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)[1:]  # without the tag's prediction
        return -float(log_probs[range(length), targets[start : start + length]][context:].sum())

    assert found.nats == pytest.approx(sum(by_hand(s, n, 0) for s, n in ((0, 8), (8, 8), (16, 4))), rel=1e-5)
    after = sum(by_hand(s, n, 3) for s, n in ((0, 8), (5, 8), (10, 8), (15, 5)))
    assert found.nats_after_burn_in == pytest.approx(after, rel=1e-5)
    assert found.nats != pytest.approx(plain.nats, rel=1e-3)


def test_a_base_without_room_for_the_tag_is_refused() -> None:
    config = dense_model(1, max_position_embeddings=32).config
    check_positions(config, block_size=31, window=31)
    with pytest.raises(InputError, match=r"at most 32 tokens, .* in front of train\.block_size = 32 makes 33; lower"):
        check_positions(config, block_size=32, window=31)
    with pytest.raises(InputError, match=r"in front of evaluate\.window = 40 makes 41"):
        check_positions(config, block_size=31, window=40)


def test_a_job_trains_and_scores_with_tags(shared_tiny: Path, tmp_path: Path) -> None:
    system, job = TaggedSystem(), make_job(shared_tiny, tmp_path / "job", tag=True)
    facts = train_job(system, job)
    dense = make_job(shared_tiny, tmp_path / "dense")
    plain = train_job(DenseSystem(), dense)
    assert facts["tokens"] == plain["tokens"]
    assert facts["flops"] > plain["flops"]

    scorer = system.scorer(job)
    assert scorer.routings == ("dense",)
    vocabulary = job.base.config().vocab_size
    assert scorer.model.config.vocab_size == vocabulary + 4
    assert scorer.settings("dense", "ita_Latn")["prefix"] == vocabulary + 1
    text = text_of(job, "ita_Latn")
    found, rival = scorer.score("dense", "ita_Latn", text), DenseSystem().scorer(dense).score("dense", "ita_Latn", text)
    assert found.positions == rival.positions == len(text.tokens) - 1
    wrong = score_language(scorer.model, text, **{**scorer.settings("dense", "ita_Latn"), "prefix": vocabulary + 3})
    assert found.nats < wrong.nats  # the tag says something
