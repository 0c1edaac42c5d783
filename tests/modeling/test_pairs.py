"""Pairs of neighbouring tokens in the count gate: their table, and what the gate makes of them wherever it runs."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sprachbund.modeling import PairTable, count_log_prob, expand, pair_table
from sprachbund.modeling.base import load_model
from sprachbund.modeling.cache import scores_so_far
from sprachbund.modeling.compress import prune_experts
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.language_path import PathSpec
from sprachbund.modeling.model import add_path
from sprachbund.modeling.new_group import with_copy, with_language
from sprachbund.modeling.pairs import PRIOR, pair_gains
from sprachbund.modeling.regroup import regroup
from sprachbund.modeling.regroup_plan import plan_keep
from sprachbund.recipe import Adaptation, Source
from sprachbund.run.path_training import Place, make_place

LANGUAGES = 5
VOCAB = 300


@pytest.fixture
def pairs() -> PairTable:
    """Pairs of every third token with every other one, at random gains: strong beside the tokens' own evidence."""
    generator = torch.Generator().manual_seed(5)
    before, after = torch.arange(0, VOCAB, 3), torch.arange(VOCAB)
    keys = (before.unsqueeze(1) * VOCAB + after).flatten()
    return PairTable(keys, 4 * torch.randn(len(keys), LANGUAGES, generator=generator))


def streams(num_languages: int = 3, vocab_size: int = 12) -> list[np.ndarray]:
    """Texts of the same tokens in the same numbers, in other orders: single tokens tell nothing."""
    found = []
    for step in range(1, num_languages + 1):
        generator = np.random.default_rng(step)
        walk = np.cumsum(np.where(generator.random(600) < 0.8, step, 5)) % vocab_size
        found.append(walk.astype(np.uint16))
    return found


def test_the_table_holds_the_most_frequent_pairs_and_their_gains() -> None:
    texts = [*streams(2), streams(3)[2][:100]]
    log_prob = count_log_prob(texts, vocab_size=12)
    table = pair_table(texts, log_prob, num_pairs=20)
    shares: Counter[int] = Counter()
    for text in texts:
        for u, v in zip(text[:-1].tolist(), text[1:].tolist(), strict=True):
            shares[u * 12 + v] += 1 / (len(text) - 1)
    twentieth = sorted(shares.values())[-20]
    assert table.keys.tolist() == sorted(key for key, share in shares.items() if share >= twentieth - 1e-12)
    assert table.gain.shape == (20, 3)
    for language, text in enumerate(texts):
        single = log_prob[:, language].double().exp().tolist()
        seen = Counter(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
        for key, gain in zip(table.keys.tolist(), table.gain[:, language].tolist(), strict=True):
            u, v = divmod(key, 12)
            conditional = (seen[u, v] + PRIOR * single[v]) / (single[u] * len(text) + PRIOR)
            assert gain == pytest.approx(math.log(conditional / single[v]), abs=1e-4)
    assert len(pair_table(texts, log_prob, num_pairs=10_000).keys) == len(shares)  # there are no more
    assert len(pair_table([np.array([3])], log_prob[:, :1], num_pairs=5).keys) == 0


def test_a_long_stream_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = streams()
    log_prob = count_log_prob(texts, vocab_size=12)
    keys = pair_table(texts, log_prob, num_pairs=30).keys
    whole = pair_gains(texts, log_prob, keys)
    monkeypatch.setattr("sprachbund.modeling.pairs.TOKENS_AT_ONCE", 7)
    assert torch.equal(pair_gains(texts, log_prob, keys), whole)


def test_pairs_tell_languages_apart_that_single_tokens_cannot() -> None:
    texts = streams()
    log_prob = count_log_prob(texts, vocab_size=12)
    table = pair_table(texts, log_prob, num_pairs=60)
    gates = [LanguageGate(12, [0, 1, 2], 3, num_pairs=num_pairs) for num_pairs in (0, len(table.keys))]
    for gate in gates:
        gate.log_prob.copy_(log_prob)
    gates[1].pair_keys.copy_(table.keys)
    gates[1].pair_gain.copy_(table.gain)
    ids = torch.tensor(np.stack([text[:590].reshape(59, 10) for text in texts]).reshape(-1, 10).astype(np.int64))
    right = torch.arange(3).repeat_interleave(59)
    single, paired = ((gate(ids)[0][:, 5] == right).float().mean() for gate in gates)
    assert paired > 0.9 > 0.6 > single


def slow_language(gate: LanguageGate, ids: list[int], mask: list[int]) -> list[int]:
    """Return the likeliest language at each position of one sequence; -1 before the first token."""
    gains = dict(zip(gate.pair_keys.tolist(), gate.pair_gain.tolist(), strict=True))
    sums, previous, found = [0.0] * len(gate.groups), None, []
    for token, real in zip(ids, mask, strict=True):
        if real:
            sums = [a + b for a, b in zip(sums, gate.log_prob[token].tolist(), strict=True)]
            if previous is not None and (more := gains.get(previous * len(gate.log_prob) + token)) is not None:
                sums = [a + b for a, b in zip(sums, more, strict=True)]
            previous = token
        found.append(-1 if previous is None else int(np.argmax(sums)))
    return found


@torch.no_grad()
def test_the_gate_equals_the_slow_reference_with_padding_anywhere(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    gate = make_moe(pairs=pairs).model.language_gate
    gate.groups, gate.num_groups = list(range(LANGUAGES)), LANGUAGES
    ids, mask = tokens(4, 14), torch.ones(4, 14, dtype=torch.long)
    mask[1, :5] = mask[2, 9:] = mask[3, 4:7] = 0
    found, _ = gate(ids, mask)
    slow = torch.tensor([slow_language(gate, *row) for row in zip(ids.tolist(), mask.tolist(), strict=True)])
    real = mask.bool()
    assert torch.equal(found[real], slow[real])
    gate.pair_gain.zero_()
    assert not torch.equal(gate(ids, mask)[0][real], found[real])  # pairs matter in this sample


@torch.no_grad()
def test_padding_in_front_changes_nothing(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model, text, noise = make_moe(pairs=pairs), tokens(2, 7), torch.full((2, 4), 3)
    plain = model(text, routing="prefix")
    mask = torch.cat([torch.zeros_like(noise), torch.ones_like(text)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = model(torch.cat([noise, text], dim=1), attention_mask=mask, position_ids=positions, routing="prefix")
    assert torch.equal(padded.group_ids[:, 4:], plain.group_ids)
    torch.testing.assert_close(padded.logits[:, 4:], plain.logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_decoding_in_pieces_and_generation_equal_whole_texts(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model, ids = make_moe(pairs=pairs), tokens(3, 12)
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[2, 4:7] = 0
    for given in (None, mask):
        whole = model(ids, attention_mask=given)
        cache, groups, start = None, [], 0
        for length in (5, 1, 1, 4, 1):
            seen = None if given is None else given[:, : start + length]
            piece = model(ids[:, start : start + length], attention_mask=seen, past_key_values=cache, use_cache=True)
            cache, start = piece.past_key_values, start + length
            groups.append(piece.group_ids)
        assert torch.equal(torch.cat(groups, dim=1), whole.group_ids)
    mask[2, 4:7] = 1
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    plain = model.generate(ids, **options, use_cache=False)
    assert torch.equal(model.generate(ids, **options), plain)
    static = model.generate(ids, **options, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, plain)
    beams = model.generate(ids, **options, num_beams=3)
    assert torch.equal(beams, model.generate(ids, **options, num_beams=3, use_cache=False))


@torch.no_grad()
def test_a_cropped_cache_goes_on_from_the_token_before(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model, ids = make_moe(pairs=pairs), tokens(2, 8)
    cache = model(ids[:, :6], use_cache=True).past_key_values
    cache.crop(-2)
    assert scores_so_far(cache)[:, -1].tolist() == ids[:, 3].tolist()
    whole = model(ids[:, [0, 1, 2, 3, 6, 7]])
    again = model(ids[:, 6:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(again.logits, whole.logits[:, 4:], rtol=1e-4, atol=1e-5)
    assert torch.equal(again.group_ids, whole.group_ids[:, 4:])


@torch.no_grad()
def test_the_table_is_saved_and_keeps_its_types(
    tmp_path: Path, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model, ids = make_moe(pairs=pairs), tokens(2, 9)
    groups = model(ids).group_ids
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, dtype="bfloat16").eval()
    gate = loaded.model.language_gate
    assert torch.equal(gate.pair_keys, pairs.keys)
    assert torch.equal(gate.pair_gain, pairs.gain)
    assert torch.equal(loaded(ids).group_ids, groups)
    earlier = {key: value for key, value in loaded.config.to_dict().items() if key != "gate_pairs"}
    assert type(loaded.config).from_dict(earlier).gate_pairs == 0  # checkpoints of earlier versions have no such field


@torch.no_grad()
def test_a_new_language_brings_its_column(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model = make_moe(pairs=pairs)
    text = tokens(1, 500, seed=3)[0].numpy()
    log_prob = count_log_prob([text], vocab_size=VOCAB)
    gain_P = pair_gains([text], log_prob, pairs.keys)[:, 0]
    for add in (with_language, with_copy):
        new = add(model, "mam_Latn", 1, log_prob[:, 0], gain_P)
        gate = new.model.language_gate
        assert torch.equal(gate.pair_gain, torch.cat([pairs.gain, gain_P.unsqueeze(1)], dim=1))
        assert new(torch.tensor(text[None, :40].astype(np.int64))).group_ids[0, -1] == new.config.groups["mam_Latn"]


@torch.no_grad()
def test_adapting_counts_the_new_text(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    text = tokens(1, 500, seed=3)[0].numpy()
    gain_P = pair_gains([text], count_log_prob([text], vocab_size=VOCAB), pairs.keys)[:, 0]
    settings: dict[str, Any] = {"source": "", "languages": {"mam_Latn": Source(file="x")}, "learning_rate": 1e-3}
    settings |= {"tokens_per_step": 64, "block_size": 64}
    for place, path in ((Place(1), "paper"), (Place(1, join=1), "full")):
        model = make_moe(pairs=pairs)
        new, group = make_place(model, ["mam_Latn"], [text], place, Adaptation(path=path, **settings))
        assert torch.equal(new.model.language_gate.pair_gain[:, -1], gain_P)
        assert group == new.config.groups["mam_Latn"]


@torch.no_grad()
def test_groups_that_change_keep_the_columns_of_their_languages(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    model = make_moe(pairs=pairs)
    other = regroup(model, plan_keep(model.config, languages=["acu_Latn", "deu_Latn"]))
    columns = [model.config.languages.index(tag) for tag in other.config.languages]
    assert len(columns) == 2
    assert torch.equal(other.model.language_gate.pair_gain, pairs.gain[:, columns])
    assert torch.equal(other.model.language_gate.pair_keys, pairs.keys)
    assert other(tokens(2, 7), routing="prefix").logits.isfinite().all()
    smaller = prune_experts(model, 4)
    assert torch.equal(smaller(tokens(2, 7)).group_ids, model(tokens(2, 7)).group_ids)


@torch.no_grad()
def test_languages_with_paths_are_told_by_single_tokens_as_ever(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], pairs: PairTable
) -> None:
    generator = torch.Generator().manual_seed(1)
    table_V1 = (3 * torch.randn(VOCAB, 1, generator=generator)).log_softmax(0)
    ids, found, cached = tokens(8, 12), [], []
    ids[:4, 2:] = table_V1[:, 0].topk(10).indices
    for given in (None, pairs):
        model = make_moe(pairs=given)
        path = add_path(model, PathSpec(("mam_Latn",), 1, width=4))
        path.reset()
        path.language_gate.log_prob.copy_(table_V1)
        found.append(model(ids, path_gate="counts", use_cache=False))
        first = model(ids[:, :5], path_gate="counts", use_cache=True)
        second = model(ids[:, 5:], path_gate="counts", past_key_values=first.past_key_values)
        cached.append(torch.cat([first.path_ids, second.path_ids], dim=1))
    assert torch.equal(found[0].path_ids, found[1].path_ids)
    assert (found[0].path_ids == 0).any()
    assert (found[0].path_ids == -1).any()
    assert not torch.equal(found[0].group_ids, found[1].group_ids)  # the old languages are told by pairs too
    assert all(torch.equal(one, found[0].path_ids) for one in cached)


def test_a_mixture_without_pairs_has_no_table(make_dense: Callable[..., Any]) -> None:
    model = expand(make_dense(), moe_layers=[0], num_groups=2)
    assert [name for name, _ in model.model.language_gate.named_buffers()] == ["log_prob"]
