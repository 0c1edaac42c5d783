"""A language's path: it starts as its parent, acts at its own positions alone, and leaves all else as it was."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprachbund.modeling import count_parameters
from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.language_path import LanguagePath, PathSpec, all_groups
from sprachbund.modeling.model import add_path, inner_model

FULL = {"width": 8, "rank": 4, "rows": 5, "bias": True, "norms": True}
TOKENS = torch.tensor([3, 17, 40, 41, 77])


def with_path(model: Any, *, parent: int = 1, tag: str = "mam_Latn", random: bool = True, **parts: Any) -> LanguagePath:
    """Give a model a path, by default with random weights in all of its parts."""
    path = add_path(model, PathSpec((tag,), parent, **{**FULL, **parts}))
    if path.spec.rows:
        path.tokens.copy_(TOKENS)
    if random:
        generator = torch.Generator().manual_seed(len(model.config.language_paths))
        with torch.no_grad():
            for parameter in path.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return path


def logits(model: Any, ids: Tensor, group: int | Tensor, **options: Any) -> Tensor:
    given = torch.full((len(ids),), group) if isinstance(group, int) else group
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, group_ids=given, use_cache=False, **options).logits
    return found


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_a_fresh_path_computes_what_its_parent_does_and_a_trained_one_does_not(family: str, kind: str) -> None:
    model, ids = families.mixture(family, kind), families.tokens(2, 9)
    parent = logits(model, ids, 1)
    with_path(model, random=False)
    assert torch.allclose(logits(model, ids, 3), parent, atol=1e-5)
    with_path(model)
    assert not torch.allclose(logits(model, ids, 4), parent, atol=1e-2)
    assert torch.equal(logits(model, ids, 1), parent)


@pytest.mark.parametrize("options", [{}, {"kind": "copy"}, {"by": "language", "rows": "group"}, {"rows": "language"}])
def test_old_languages_stay_to_the_bit_with_three_paths(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    model, ids = make_moe(**options), tokens(4, 12)
    before, state = copy.deepcopy(model), {name: t.clone() for name, t in model.state_dict().items()}
    for tag in ("mam_Latn", "est_Latn", "chr_Cher"):
        with_path(model, tag=tag)
        for group in range(model.config.num_groups):
            assert torch.equal(logits(model, ids, group), logits(before, ids, group))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_batch_may_mix_groups_and_paths(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, ids = make_moe(rows="group"), tokens(4, 12)
    with_path(model)
    with_path(model, tag="est_Latn", parent=0, width=None)
    mixed = logits(model, ids, torch.tensor([5, 2, 4, 0]))
    for row, group in enumerate((5, 2, 4, 0)):
        assert torch.allclose(mixed[row], logits(model, ids, group)[row], atol=1e-5)
    by_position = torch.tensor([[2] * 5 + [4] * 7])
    halves = logits(model, ids[:1], by_position)
    assert torch.allclose(halves[:, :5], logits(model, ids[:1, :5], 2), atol=1e-5)
    assert not torch.allclose(halves[:, 5:], logits(model, ids[:1], 2)[:, 5:], atol=1e-2)


def test_a_path_is_saved_and_loaded_and_has_gradients_of_its_own(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    model, ids = make_moe(), tokens(2, 10)
    path = with_path(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, ids, 4), logits(model, ids, 4))
    assert all_groups(loaded.config)["mam_Latn"] == 4
    ids[0, :5] = TOKENS  # rows of tokens that do not occur have no gradient
    model.requires_grad_(False)
    path.requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(input_ids=ids, labels=ids, group_ids=torch.full((2,), 4), use_cache=False).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in path.parameters())


def test_the_path_counts_as_idle_parameters(make_moe: Callable[..., Any]) -> None:
    model = make_moe()
    before = count_parameters(model)
    path = with_path(model)
    after = count_parameters(model)
    assert after.total - before.total == sum(parameter.numel() for parameter in path.parameters())
    assert after.active == before.active


@pytest.mark.parametrize("routing", ["prefix", "top_k"])
def test_the_count_gate_takes_a_newcomers_text_and_leaves_the_others(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], routing: str
) -> None:
    model, ids = make_moe(), tokens(3, 16)
    before = copy.deepcopy(model)
    path = with_path(model)
    path.language_gate.log_prob.fill_(-9.0)
    ids[0] = 40  # a token that the newcomer alone is made of
    path.language_gate.log_prob[40] = 0.0
    inner_model(model).language_gate.log_prob[40] = -9.0
    inner_model(before).language_gate.log_prob[40] = -9.0
    options = {"routing": routing, "use_cache": False}
    with torch.no_grad():
        found, old = model(input_ids=ids, path_gate="counts", **options), before(input_ids=ids, **options)
        off = model(input_ids=ids, path_gate="off", **options)
    assert found.path_ids[0, 2:].eq(0).all()
    assert found.path_ids[1:].eq(-1).all()
    assert torch.allclose(found.logits[1:], old.logits[1:], atol=1e-5)
    assert not torch.allclose(found.logits[0, 4:], old.logits[0, 4:], atol=1e-2)
    assert torch.equal(off.logits, old.logits)


def test_generation_under_the_count_gate_is_the_same_with_a_cache(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model, ids = make_moe(), tokens(2, 6)
    path = with_path(model)
    path.language_gate.log_prob.copy_(
        (2 * torch.randn(300, 1, generator=torch.Generator().manual_seed(1))).log_softmax(0)
    )
    options = {"max_new_tokens": 8, "do_sample": False, "path_gate": "counts", "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
    given = {"language": "mam_Latn", "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **given), model.generate(ids, use_cache=False, **given))


def test_more_tokens_than_the_vocabulary(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, ids = make_moe(rows="group"), tokens(2, 8)
    before = logits(model, ids, 1)
    with_path(model, extension=6)
    ids_beyond = ids.clone()
    ids_beyond[:, 3] = 303
    own = logits(model, ids_beyond, 4)
    assert own.shape[-1] == 306
    assert not torch.allclose(own[:, 3:], logits(model, ids, 4)[:, 3:], atol=1e-2)
    assert torch.equal(logits(model, ids, 1), before)
    mixed = logits(model, torch.stack([ids_beyond[0], ids[1]]), torch.tensor([4, 1]))
    assert torch.allclose(mixed[0], own[0], atol=1e-5)
    assert mixed[1, :, 300:].eq(-torch.inf).all()
    loss = model(input_ids=ids_beyond, labels=ids_beyond, group_ids=torch.full((2,), 4)).loss
    expected = torch.nn.functional.cross_entropy(own[:, :-1].flatten(0, 1), ids_beyond[:, 1:].flatten())
    assert torch.allclose(loss, expected)
