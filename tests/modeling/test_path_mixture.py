"""The posterior mixture of the old model and its paths: exact Bayes, bounded loss, and the same with a cache."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import families
import pytest
import torch
from test_language_path import with_path
from torch import Tensor
from transformers import DynamicCache

from sprachbund.errors import InputError
from sprachbund.modeling import path_mixture
from sprachbund.modeling.cache import last_note
from sprachbund.modeling.likelihood import token_nats
from sprachbund.modeling.model import inner_model
from sprachbund.modeling.path_posterior import log_prior, mixed_logits, posterior

TAGS = ("mam_Latn", "est_Latn", "chr_Cher")
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}

Make = Callable[..., Any]


def model_with_paths(make_moe: Make, num_paths: int = 1, *, prior: float = 0.01, commit: float = 1e-3) -> Any:
    model = make_moe()
    for number in range(num_paths):
        with_path(model, tag=TAGS[number], parent=number)
    model.config.path_prior, model.config.path_commit = prior, commit
    model.config.path_keep_old = False
    return model


@torch.no_grad()
def nats(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """Return -log p of each text but its first token, (B,)."""
    logits = model(input_ids=ids, use_cache=False, **options).logits
    return token_nats(logits[:, :-1], ids[:, 1:]).double().sum(1)


def own_nats(model: Any, ids: Tensor, path: int) -> Tensor:
    return nats(model, ids, group_ids=torch.full((len(ids),), model.config.num_groups + path))


@torch.no_grad()
def favourites(model: Any, ids: Tensor, length: int, path: int | None) -> Tensor:
    """Return texts of the tokens that a path likes best, or the old model."""
    options: dict[str, Any] = {"max_new_tokens": length - ids.shape[1], "do_sample": False, "pad_token_id": 0}
    if path is None:
        options["path_gate"] = "off"
    else:
        options["group_ids"] = torch.full((len(ids),), model.config.num_groups + path)
    found: Tensor = model.generate(ids, **options)
    return found


def spied(monkeypatch: pytest.MonkeyPatch, model: Any) -> list[tuple[str, int]]:
    """Return the list of (side, tokens) that forward passes of the model will be added to."""
    calls: list[tuple[str, int]] = []
    plain = type(model)._plain

    def spy(self: Any, arguments: dict[str, Any], context: Any) -> Any:
        calls.append(("old" if context.given is None else "path", arguments["input_ids"].shape[1]))
        return plain(self, arguments, context)

    monkeypatch.setattr(type(model), "_plain", spy)
    return calls


# --- the posterior


def test_sides_are_dropped_as_one_would_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = 3 * torch.randn(50, 30, 4, generator=generator, dtype=torch.float64)
    prior = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64).log().expand(50, -1)
    found = posterior(prior, evidence, commit=0.02, keep_old=False).exp()
    sizes = []
    for row in range(50):
        weights = prior[row].exp()
        for place in range(30):
            weights = weights * evidence[row, place].exp()
            weights = weights / weights.sum()
            weights = torch.where(weights < 0.02, 0.0, weights)
            weights = weights / weights.sum()
            torch.testing.assert_close(found[row, place], weights, rtol=1e-9, atol=0)
            sizes.append(int((weights > 0).sum()))
    assert set(sizes) == {1, 2, 3}


def test_the_old_side_is_dropped_as_rarely_as_the_inequality_of_ville_says() -> None:
    commit, prior, length = 0.1, 0.2, 12
    texts = torch.tensor(list(itertools.product((0, 1), repeat=length)))
    sides = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.8, 0.2]], dtype=torch.float64).log()
    start = torch.tensor([1 - 2 * prior, prior, prior], dtype=torch.float64).log().expand(len(texts), -1)
    found = posterior(start, sides.T[texts], commit=commit, keep_old=False)
    share = float((found[:, -1, 0] == -math.inf).double().mean())  # all texts are equally likely under the old side
    bound = 2 * prior * commit / ((1 - 2 * prior) * (1 - commit))
    assert 0.2 * bound < share <= bound


def test_one_side_alone_gives_its_logits_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))
    alone = torch.tensor([0.0, -math.inf], dtype=torch.float64).expand(2, 3, -1)
    assert mixed_logits(alone, {0: first, 1: second[:, :1]}) is first
    weights = alone.clone()
    weights[0, 2] = torch.tensor([-math.inf, 0.0])
    weights[1, 1] = torch.tensor([0.25, 0.75]).log()
    mixed = mixed_logits(weights, {0: first.clone(), 1: second})
    assert torch.equal(mixed[0, 2], second[0, 2])
    torch.testing.assert_close(mixed[1, 1].exp(), 0.25 * first[1, 1].softmax(-1) + 0.75 * second[1, 1].softmax(-1))
    mixed[0, 2], mixed[1, 1] = first[0, 2], first[1, 1]
    assert torch.equal(mixed, first)


# --- what text costs under it


@pytest.mark.parametrize("num_paths", [1, 2, 3])
@pytest.mark.parametrize("routing", ["prefix", "top_k"])
def test_it_is_exact_bayes_where_nothing_is_dropped(
    make_moe: Make, tokens: Callable[..., Tensor], num_paths: int, routing: str
) -> None:
    model, ids = model_with_paths(make_moe, num_paths, commit=0.0), tokens(4, 50)
    sides = [nats(model, ids, routing=routing, path_gate="off"), *(own_nats(model, ids, n) for n in range(num_paths))]
    joint = torch.stack([prior - own for prior, own in zip(log_prior(model.config), sides, strict=True)])
    torch.testing.assert_close(nats(model, ids, routing=routing), -joint.logsumexp(0), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("num_paths", [1, 2, 3])
def test_old_text_loses_no_more_than_the_bound_whatever_it_is(
    make_moe: Make, tokens: Callable[..., Tensor], num_paths: int
) -> None:
    model = model_with_paths(make_moe, num_paths, prior=0.1, commit=0.0)
    bound = -math.log1p(-num_paths * 0.1)
    drawn = tokens(8, 30)
    liked = [favourites(model, drawn[:4, :1], 20, path) for path in range(num_paths)]
    texts = [drawn, *liked, *(torch.cat([drawn[:4, :10], text], dim=1) for text in liked)]
    losses = torch.cat([nats(model, ids) - nats(model, ids, path_gate="off") for ids in texts])
    assert losses.max() <= bound + 1e-4
    assert losses.min() < -1.0  # it is a gain where a path is right


@pytest.mark.parametrize("num_paths", [1, 3])
def test_dropping_paths_keeps_the_bound(make_moe: Make, tokens: Callable[..., Tensor], num_paths: int) -> None:
    model, ids = model_with_paths(make_moe, num_paths, prior=0.1, commit=0.02), tokens(12, 50)
    with torch.no_grad():
        weights = model(input_ids=ids, use_cache=False).path_weights
    old = weights[:, -1].eq(0).all(-1)
    assert old.sum() >= 3  # every path was dropped there
    losses = (nats(model, ids) - nats(model, ids, path_gate="off"))[old]
    bound = -math.log1p(-num_paths * 0.1)
    assert 0.5 * bound < losses.max() <= bound + 1e-4


def test_a_new_language_pays_its_prior_at_most(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model = model_with_paths(make_moe, 2, prior=1e-3, commit=1e-6)
    for path in range(2):
        ids = favourites(model, tokens(4, 2), 26, path)
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=False)
        assert output.path_ids[:, 16:].eq(path).all()
        assert output.path_weights[:, 16:, path].eq(1).all()  # the others were dropped
        assert output.group_ids[:, 16:].eq(model.config.num_groups + path).all()
        loss = nats(model, ids) - own_nats(model, ids, path)
        assert 0.5 * math.log(1e3) < loss.max() <= math.log(1e3) + 1e-4


# --- how far the sides are read


def test_a_path_is_read_until_it_is_dropped_and_old_logits_stay_to_the_bit(
    make_moe: Make, tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with_paths(make_moe, prior=1e-3, commit=1e-4)
    ids = torch.cat([favourites(model, tokens(3, 2), 18, None), tokens(3, 42)], dim=1)
    calls = spied(monkeypatch, model)
    with torch.no_grad():
        mixed, off = model(input_ids=ids, use_cache=False), model(input_ids=ids, use_cache=False, path_gate="off")
    assert mixed.path_weights[:, 15].eq(0).all()
    assert calls == [("old", 60), ("path", 16), ("old", 60)]
    for row in range(3):
        dropped = mixed.path_weights[row, :, 0] == 0
        assert torch.equal(mixed.logits[row, dropped], off.logits[row, dropped])
        assert not torch.equal(mixed.logits[row, 0], off.logits[row, 0])
    assert torch.equal(mixed.group_ids, off.group_ids)


def test_sides_dropped_in_the_cache_are_not_run(
    make_moe: Make, tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with_paths(make_moe, prior=1e-3, commit=1e-4)
    ids, new = (favourites(model, tokens(3, 2), 26, path) for path in (None, 0))
    calls = spied(monkeypatch, model)
    for text, side, gate in ((ids, "old", {"path_gate": "off"}), (new, "path", {"group_ids": torch.full((3,), 4)})):
        with torch.no_grad():
            alone = model(input_ids=text[:, :20], use_cache=True, **gate).past_key_values
            cache = model(input_ids=text[:, :20], use_cache=True).past_key_values
            calls.clear()
            found = model(input_ids=text[:, 20:], past_key_values=cache)
            assert calls == [(side, 6)]
            expected = model(input_ids=text[:, 20:], past_key_values=alone, **gate)
        assert cache.get_seq_length() == 26
        torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
        if side == "old":
            assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2", "gpt2"])
@torch.no_grad()
def test_parts_and_caches_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = families.mixture(family), families.tokens(3, 48)
    with_path(model)
    with_path(model, tag="est_Latn", parent=0)
    in_parts = model(ids, use_cache=False)
    monkeypatch.setattr(path_mixture, "WHOLE", 64)
    whole = model(ids, use_cache=False)
    torch.testing.assert_close(in_parts.logits, whole.logits, **CLOSE)
    cache, found = None, []
    for start, end in ((0, 9), (9, 10), (10, 48)):
        output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output)
    torch.testing.assert_close(torch.cat([output.logits for output in found], dim=1), whole.logits, **CLOSE)
    weights = torch.cat([output.path_weights for output in found], dim=1)
    torch.testing.assert_close(weights, whole.path_weights, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_a_long_prompt_is_read_in_halves(
    make_moe: Make, tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = model_with_paths(make_moe, 2), tokens(2, 60)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False)
    calls = spied(monkeypatch, model)
    found = model(input_ids=ids, attention_mask=mask, logits_to_keep=2)
    assert max(length for _, length in calls) == 30
    torch.testing.assert_close(found.logits, whole.logits[:, -2:], **CLOSE)
    torch.testing.assert_close(found.path_weights, whole.path_weights, rtol=1e-3, atol=1e-5)
    assert torch.equal(found.group_ids, whole.group_ids)
    assert torch.equal(found.path_ids, whole.path_ids)


@torch.no_grad()
def test_padding_is_no_evidence(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = model_with_paths(make_moe), tokens(2, 20)
    plain = model(input_ids=ids, use_cache=False)
    padded = torch.cat([torch.tensor([[3, 17, 40], [5, 6, 7]]), ids, torch.tensor([[41], [3]])], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3], mask[:, -1] = 0, 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(input_ids=padded, attention_mask=mask, position_ids=places, use_cache=False)
    torch.testing.assert_close(found.logits[:, 3:-1], plain.logits, **CLOSE)
    torch.testing.assert_close(found.path_weights[:, 3:-1], plain.path_weights, rtol=1e-3, atol=1e-6)
    assert torch.equal(found.path_weights[:, -1], found.path_weights[:, -2])


# --- generation


SAMPLED, BEAMS, STATIC = {"do_sample": True, "top_k": 20}, {"num_beams": 3}, {"cache_implementation": "static"}


@pytest.mark.parametrize(("kinds", "caches"), [([{}, SAMPLED, BEAMS], [{}]), ([{}], [STATIC])])
@torch.no_grad()
def test_generation_is_the_same_with_a_cache(
    make_moe: Make, tokens: Callable[..., Tensor], kinds: list[dict[str, Any]], caches: list[dict[str, Any]]
) -> None:
    model, ids = model_with_paths(make_moe, 2, prior=0.1, commit=1e-3), tokens(4, 40)
    ids[1, :20] = favourites(model, ids[1:2, :2], 20, 0)
    ids[2, 33:] = favourites(model, ids[2:3, :2], 9, 1)[:, 2:]
    mask = torch.ones_like(ids)
    mask[3, :11] = 0
    alive = model(input_ids=ids, attention_mask=mask, use_cache=False).path_weights[:, -1]
    assert {tuple(row.gt(0).tolist()) for row in alive} >= {(False, False), (True, False)}
    new = ids[1:2, :20].repeat(2, 1)  # the old side is dropped in the whole batch
    assert model(input_ids=new, use_cache=False).path_weights[:, -1, 0].eq(1).all()
    for text, of_text in ((ids, mask), (new, torch.ones_like(new))):
        for kind in kinds:
            options = {"attention_mask": of_text, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **kind}
            found = []
            for cached in ({"use_cache": False}, *caches):
                torch.manual_seed(5)
                found.append(model.generate(text, **options, **cached))
            assert all(torch.equal(other, found[0]) for other in found[1:]), kind


@torch.no_grad()
def test_candidate_tokens_are_taken_back_with_what_they_told(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, text = model_with_paths(make_moe, prior=0.1, commit=0.01), tokens(1, 4).repeat(1, 3)
    options: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(text, prompt_lookup_num_tokens=3, **options), model.generate(text, **options))
    ids = tokens(8, 30)
    whole = model(input_ids=ids, use_cache=False)
    lost = whole.path_weights[..., 0].eq(0).int().argmax(1)  # where the path is dropped in each text
    places = sorted(set(lost[lost > 2].tolist()))
    assert len(places) >= 2
    for place in places[:3]:  # from before and after, so that it lives again or does not
        for start in (place, place + 2):
            cache = model(input_ids=ids[:, :start], use_cache=True).past_key_values
            cache = model(input_ids=ids[:, start : start + 7], past_key_values=cache).past_key_values
            cache.crop(start + 1 - int(cache.get_seq_length()))
            again = model(input_ids=ids[:, start + 1 :], past_key_values=cache)
            torch.testing.assert_close(again.logits, whole.logits[:, start + 1 :], **CLOSE)


@torch.no_grad()
def test_a_cache_can_be_reordered_repeated_selected_and_reset(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = model_with_paths(make_moe, commit=0.0), tokens(3, 16)
    expected = model(input_ids=ids, use_cache=False).logits[:, 8:]
    changes: list[tuple[Callable[[Any], None], list[int]]] = [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ]
    for change, rows in changes:
        cache = model(input_ids=ids[:, :8], use_cache=True).past_key_values
        change(cache)
        found = model(input_ids=ids[rows, 8:], past_key_values=cache).logits
        torch.testing.assert_close(found, expected[rows], **CLOSE)
    cache.reset()
    assert last_note(cache, path_mixture._WEIGHTS) is None
    torch.testing.assert_close(model(input_ids=ids, past_key_values=cache).logits[:, 8:], expected, **CLOSE)


# --- the rest


def test_the_loss_is_that_of_the_mixture_and_has_gradients(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = model_with_paths(make_moe, prior=0.3, commit=0.0), tokens(2, 40)
    output = model(input_ids=ids, labels=ids)
    assert float(output.loss.detach()) == pytest.approx(float(nats(model, ids).mean()) / 39, rel=1e-5)
    output.loss.backward()
    for part in (inner_model(model).language_paths[0].output_bias, model.model.layers[0].self_attn.q_proj.weight):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0


@torch.no_grad()
def test_bfloat16_is_float32_where_sides_are_mixed(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = model_with_paths(make_moe, commit=0.0), tokens(2, 12)
    expected = model(input_ids=ids, use_cache=False).logits
    found = model.to(torch.bfloat16)(input_ids=ids, use_cache=False).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(2, 12), rtol=0, atol=1e-5)
    assert (found - expected.log_softmax(-1)).abs().max() < 0.5


@torch.no_grad()
def test_a_path_with_more_tokens_takes_no_part(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = make_moe(), tokens(2, 20)
    off = model(input_ids=ids, use_cache=False)
    with_path(model, extension=4)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, off.logits)
    model.config.path_prior, model.config.path_commit = 0.1, 0.0
    with_path(model, tag="est_Latn", parent=0)
    weights = model(input_ids=ids, use_cache=False).path_weights
    assert weights[..., 0].eq(0).all()
    assert weights[..., 1].gt(0).all()


def test_what_it_cannot_do_is_said(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    model, ids = model_with_paths(make_moe, 2), tokens(2, 8)
    for fields, message in (
        ({"path_prior": 0.3}, "path_prior = 0.3 for 2 paths is 0.6 in all, and must be above 0 and at most 0.5"),
        ({"path_prior": 0.0}, "must be above 0"),
        ({"path_commit": 0.01}, "path_commit = 0.01 must be at least 0 and below path_prior = 0.01"),
    ):
        broken = copy.deepcopy(model)
        for name, value in fields.items():
            setattr(broken.config, name, value)
        with pytest.raises(InputError, match=message):
            broken(input_ids=ids)
    with pytest.raises(ValueError, match="reads tokens: give input_ids"):
        model(inputs_embeds=torch.zeros(2, 3, 16))
    with torch.no_grad():
        cache = model(input_ids=ids, path_gate="off", past_key_values=DynamicCache(config=model.config)).past_key_values
        with pytest.raises(ValueError, match="a cache whose tokens it has not read; use one gate"):
            model(input_ids=ids, past_key_values=cache)
        cache = model(input_ids=ids).past_key_values
        with pytest.raises(ValueError, match="begun under path_gate = 'mixture'"):
            model(input_ids=ids, past_key_values=cache, path_gate="off")
        model(input_ids=ids[:, :1], past_key_values=cache)
        cache.crop(-1)
        with pytest.raises(ValueError, match="cropped by more tokens than its last call gave logits for"):
            model(input_ids=ids, past_key_values=cache)


def test_the_old_side_is_kept_unless_it_is_told_not_to_be(make_moe: Make, tokens: Callable[..., Tensor]) -> None:
    """Text that first looks like the path's, then does not: the bound holds only where the old side is kept."""
    model = model_with_paths(make_moe, prior=1e-2, commit=1e-3)
    with torch.no_grad():
        first = inner_model(model).language_paths[0]
        first.output_bias[7], first.output_bias[9] = 25.0, -25.0  # it is sure of one token, and never gives the other
    ids = torch.cat([torch.full((1, 24), 7), torch.full((1, 24), 9)], dim=1)
    options = {"input_ids": ids, "labels": ids, "routing": "prefix", "use_cache": False}
    with torch.no_grad():
        old = float(model(**options, path_gate="off").loss) * 47
        dropped = float(model(**options).loss) * 47
        model.config.path_keep_old = True
        kept = float(model(**options).loss) * 47
    bound = -math.log1p(-1e-2)
    assert kept <= old + bound + 1e-3
    assert dropped > old + 10 * bound
