"""A new language among the groups: the copy computes what its original does, and only its own rows train."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.new_group import only_rows, with_copy, with_language

KINDS: list[dict[str, Any]] = [
    {},
    {"kind": "copy"},
    {"by": "language", "rows": "group"},
    {"kind": "hierarchy", "language_width": 4},
    {"moe_layers": None, "expert_of_group": {0: [0, 0, 1, 2], 2: [0, 1, 2, 3]}},
]
COLUMN = torch.linspace(-9, -1, 300)


def logits(model: Any, ids: Tensor, group: int) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, group_ids=torch.full((len(ids),), group), use_cache=False).logits
    return found


@pytest.mark.parametrize("options", KINDS)
def test_a_copied_group_computes_what_its_original_does(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    model, ids = make_moe(**options), tokens(2, 9)
    new = with_copy(model, "mam_Latn", 1, COLUMN)
    assert new.config.groups["mam_Latn"] == model.config.num_groups
    assert new.config.languages[-1] == "mam_Latn"
    for group in range(model.config.num_groups):
        assert torch.equal(logits(new, ids, group), logits(model, ids, group))
    assert torch.allclose(logits(new, ids, model.config.num_groups), logits(model, ids, 1), atol=1e-6)
    for moe, old in zip(mixture_layers(new), mixture_layers(model), strict=True):
        assert torch.equal(moe.gate.weight[:-1], old.gate.weight)
        assert not any(torch.equal(row, moe.gate.weight[-1]) for row in old.gate.weight)  # no tie under top_k


@pytest.mark.parametrize("options", KINDS)
def test_only_the_new_groups_rows_train(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    model, ids = with_copy(make_moe(**options), "mam_Latn", 1, COLUMN).train(), tokens(2, 9)
    before, place = copy.deepcopy(model.state_dict()), model.config.num_groups - 1
    with only_rows(model, place, router=True):
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert all(len(parameter) == 1 for parameter in own)
        optimizer = torch.optim.AdamW(own, lr=0.1)
        for _ in range(2):
            outputs = model(
                input_ids=ids, labels=ids, group_ids=torch.full((2,), place), output_router_logits=True, use_cache=False
            )
            (outputs.loss + sum(part.logsumexp(-1).mean() for part in outputs.router_logits)).backward()
            optimizer.step()
            optimizer.zero_grad()
    after = model.state_dict()
    assert set(after) == set(before)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert {name.rsplit(".", 1)[0].rsplit(".", 1)[-1] for name in changed} >= {"experts", "gate"}
    assert all(torch.equal(after[name][:-1], before[name][:-1]) for name in changed)


def test_a_language_joins_a_group(make_moe: Callable[..., Any], tokens: Callable[..., Tensor]) -> None:
    model, ids = make_moe(), tokens(2, 9)
    new = with_language(model, "mam_Latn", 1, COLUMN)
    assert torch.equal(logits(new, ids, 1), logits(model, ids, 1))
    assert new.config.groups["mam_Latn"] == 1
    assert torch.equal(new.get_decoder().language_gate.log_prob[:, -1], COLUMN)
