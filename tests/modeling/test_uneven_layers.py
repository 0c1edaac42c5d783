"""Layers with different numbers of experts: which groups share one, and that nothing else changes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.modeling import count_log_prob, expand
from sprachbund.modeling.model import mixture_layers
from sprachbund.modeling.routing import merge_runs
from sprachbund.modeling.tables import expert_tables, group_credit, layer_table
from sprachbund.training.objectives import router_cross_entropy
from sprachbund.training.trainer import recompute_activations

GROUPS = {"zul_Latn": 2, "deu_Latn": 0, "quc_Latn": 1, "cak_Latn": 1, "acu_Latn": 3}
# layer 1: four experts in another order than the groups
UNEVEN = {0: [0, 1, 0, 1], 1: [2, 0, 3, 1], 2: [0, 1, 2, 1]}
OWN = {0: [0, 1, 2, 3], 1: [0, 1, 2, 3], 2: [0, 1, 2, 3]}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def per_group(uneven: Any, even: Any) -> Any:
    """Give each group of `even` a copy of the expert that it has in `uneven`: the same function under given groups."""
    model = copy.deepcopy(even)
    state = uneven.state_dict()
    for name, parameter in model.state_dict().items():
        if ".mlp.experts." in name or name.endswith(".mlp.gate.weight"):
            parameter.copy_(state[name][layer_table(uneven.config, int(name.split(".")[2]))])
        else:
            parameter.copy_(state[name])
    return model


@pytest.mark.parametrize("kind", ["shared", "copy"])
@torch.no_grad()
def test_uneven_layers_start_as_the_dense_model_in_every_routing_mode(
    kind: Any, make_dense: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    dense, input_ids = make_dense(), tokens(8, 9)
    streams = [tokens(1, 400, seed=s).flatten().numpy() % 40 + 50 * s for s in range(5)]
    table = count_log_prob(streams, vocab_size=300)
    mixture = expand(dense, groups=GROUPS, expert_of_group=UNEVEN, kind=kind, log_prob=table, num_experts_per_tok=3)
    assert [moe.experts.num_experts for moe in mixture_layers(mixture)] == [2, 4, 3]
    assert [moe.gate.top_k for moe in mixture_layers(mixture)] == [2, 3, 3]
    expected = dense(input_ids).logits
    for mode in modes(8):
        logits = mixture(input_ids, **mode).logits
        if kind == "shared":
            assert torch.equal(logits, expected), mode
        else:
            assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max(), mode


@pytest.mark.parametrize("sorted_groups", [True, False])
@torch.no_grad()
def test_tables_that_give_every_group_its_own_expert_change_no_bit(
    sorted_groups: bool, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    plain, tabled = make_moe(moe_layers=[0, 1, 2]), make_moe(moe_layers=None, expert_of_group=OWN)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in tabled.state_dict().items())
    assert expert_tables(tabled.config) is None
    input_ids = tokens(8, 9)
    given = {"group_ids": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])} if sorted_groups else modes(8)[0]
    for mode in [given, *modes(8)[1:]]:
        assert torch.equal(tabled(input_ids, **mode).logits, plain(input_ids, **mode).logits)


@pytest.mark.parametrize("kind", ["shared", "copy"])
@torch.no_grad()
def test_groups_that_share_an_expert_equal_groups_with_copies_of_it(
    kind: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    uneven = make_moe(kind=kind, moe_layers=None, expert_of_group=UNEVEN)
    even = per_group(uneven, make_moe(kind=kind, moe_layers=[0, 1, 2]))
    input_ids = tokens(8, 9)
    for group_ids in (modes(8)[0]["group_ids"], torch.tensor([0, 1, 1, 2, 2, 2, 3, 3]), torch.tensor([2] * 8)):
        expected = even(input_ids, group_ids=group_ids).logits
        torch.testing.assert_close(uneven(input_ids, group_ids=group_ids).logits, expected, **CLOSE)
    by_prefix = uneven(input_ids, routing="prefix")
    assert len(by_prefix.group_ids.unique()) > 2
    torch.testing.assert_close(by_prefix.logits, even(input_ids, routing="prefix").logits, **CLOSE)


@torch.no_grad()
def test_two_groups_tied_to_one_expert_have_one_output(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(moe_layers=None, expert_of_group={0: [0, 1, 0, 2], 2: [1, 0, 1, 1]})
    input_ids = tokens(1, 6).expand(4, -1)
    logits = model(input_ids, group_ids=torch.tensor([2, 1, 0, 3])).logits
    torch.testing.assert_close(logits[0], logits[2], **CLOSE)
    assert (logits[0] - logits[1]).abs().max() > 0.01
    assert (logits[0] - logits[3]).abs().max() > 0.01  # they share an expert in layer 2, not in layer 0


@torch.no_grad()
def test_top_k_chooses_among_the_experts_of_the_layer(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    """Two layers of two experts are the mixture of two groups, whatever the number of groups that share them."""
    shared = make_moe(moe_layers=None, expert_of_group={0: [0, 1, 1, 0], 2: [0, 0, 0, 1]}, num_experts_per_tok=3)
    two_groups = {tag: group % 2 for tag, group in GROUPS.items()}
    alone = make_moe(groups=two_groups)
    alone.load_state_dict(shared.state_dict())
    input_ids = tokens(3, 7)
    found = shared(input_ids, routing="top_k", output_router_logits=True)
    assert [tuple(logits.shape) for logits in found.router_logits] == [(3, 7, 2), (3, 7, 2)]
    assert torch.equal(found.logits, alone(input_ids, routing="top_k").logits)


@pytest.mark.parametrize("kind", ["shared", "copy"])
def test_gradients_reach_the_expert_of_the_group_and_no_other(
    kind: str, make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(kind=kind, moe_layers=None, expert_of_group=UNEVEN)
    input_ids = tokens(4, 8)
    model(input_ids, labels=input_ids, group_ids=torch.tensor([2, 0, 0, 2])).loss.backward()
    reached = {0: [True, False], 1: [False, False, True, True], 2: [True, False, True]}
    for layer, expected in reached.items():
        for parameter in model.model.layers[layer].mlp.experts.parameters():
            assert [bool(gradient.any()) for gradient in parameter.grad] == expected


def test_a_shared_expert_learns_from_all_of_its_groups(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    """The gradient of an expert of two groups is the sum over copies that each group would have had."""
    uneven = make_moe(moe_layers=None, expert_of_group=UNEVEN)
    with torch.no_grad():
        even = per_group(uneven, make_moe(moe_layers=[0, 1, 2]))
    input_ids, group_ids = tokens(4, 8), torch.tensor([3, 0, 1, 2])
    for model in (uneven, even):
        model(input_ids, labels=input_ids, group_ids=group_ids).loss.backward()
    for layer, table in UNEVEN.items():
        found, copies = (model.model.layers[layer].mlp.experts.down_proj.grad for model in (uneven, even))
        summed = torch.zeros_like(found).index_add(0, torch.tensor(table), copies)
        torch.testing.assert_close(found, summed, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", [{"group_ids": torch.tensor([3, 0, 1, 2])}, {"routing": "top_k"}])
def test_recomputation_changes_no_gradient_of_uneven_layers(
    mode: dict[str, Any], make_moe: Callable[..., Any], tokens: Callable[..., Tensor]
) -> None:
    model = make_moe(moe_layers=None, expert_of_group=UNEVEN).train()
    input_ids, found = tokens(4, 8), []
    for recompute in (False, True):
        if recompute:
            recompute_activations(model)
        model.zero_grad()
        output = model(input_ids, labels=input_ids, use_cache=False, output_router_logits=True, **mode)
        targets = torch.tensor([3, 0, 1, 2])
        loss = output.loss + router_cross_entropy(output.router_logits, targets, expert_tables(model.config))
        loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert found[0]["model.layers.1.mlp.gate.weight"].any()


@torch.no_grad()
def test_a_saved_uneven_model_loads_with_the_same_logits(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_moe("qwen3", moe_layers=None, expert_of_group=UNEVEN)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["expert_of_group"] == {"0": [0, 1, 0, 1], "1": [2, 0, 3, 1], "2": [0, 1, 2, 1]}
    assert stored["moe_layers"] == [0, 1, 2]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    input_ids = tokens(4, 12)
    for mode in modes(4):
        assert torch.equal(loaded(input_ids, **mode).logits, model(input_ids, **mode).logits)


@torch.no_grad()
def test_a_model_saved_before_tables_existed_loads(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    model, input_ids = make_moe(), tokens(3, 6)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored.pop("expert_of_group", None)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.expert_of_group == {}
    assert torch.equal(loaded(input_ids).logits, model(input_ids).logits)


@torch.no_grad()
def test_an_uneven_model_generates_as_without_a_cache(
    make_moe: Callable[..., Any], tokens: Callable[..., Tensor], modes: Callable[..., Any]
) -> None:
    model, prompt = make_moe(moe_layers=None, expert_of_group=UNEVEN), tokens(3, 5)
    for mode in modes(3):
        text = prompt
        for _ in range(6):
            text = torch.cat([text, model(text, use_cache=False, **mode).logits[:, -1:].argmax(-1)], dim=1)
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, **mode
        )
        assert torch.equal(found, text), mode


def test_runs_of_neighbours_that_share_an_expert_are_one() -> None:
    assert merge_runs([4, 0, 2, 3], [0, 0, 1, 0]) == ([4, 2, 3], [0, 1, 0])
    assert merge_runs([4, 1, 2, 3], [2, 0, 3, 1]) == ([4, 1, 2, 3], [2, 0, 3, 1])
    assert merge_runs([1, 2, 3], [0, 0, 0]) == ([6], [0])


def test_the_tables_of_all_layers_in_their_order(make_moe: Callable[..., Any]) -> None:
    assert expert_tables(make_moe().config) is None
    model = make_moe(moe_layers=[2, 0], expert_of_group={2: [0, 1, 1, 0], 0: [0, 1, 2, 3]})
    tables = expert_tables(model.config)
    assert tables is not None
    assert tables.tolist() == [[0, 1, 2, 3], [0, 1, 1, 0]]


def test_tokens_count_for_the_groups_of_their_expert() -> None:
    table = torch.tensor([0, 1, 0, 0, 2])
    assert group_credit(table, group=2).tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    stranger = group_credit(table, group=4)
    assert stranger[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3, 0])
    assert stranger[1:].tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    assert all(torch.equal(group_credit(torch.arange(3), group=g), torch.eye(3).double()) for g in range(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"moe_layers": [0], "expert_of_group": {0: [0, 1, 1, 0], 1: [0, 1, 1, 0]}},
            "expert_of_group is for the layers [0, 1] and moe_layers are [0]; give the same layers, or leave "
            "moe_layers out",
        ),
        ({"expert_of_group": {3: [0, 1, 1, 0]}}, "layer 3 does not exist; the base has layers 0 to 2"),
        ({"expert_of_group": {1: [0, 1, 1]}}, "expert_of_group of layer 1 has 3 entries for 4 groups"),
        (
            {"expert_of_group": {1: [0, 2, 2, 0]}},
            "the experts of layer 1 must be numbered 0, 1, ... without gaps; found [0, 2]",
        ),
        (
            {"expert_of_group": {1: [0, -1, 0, 0]}},
            "the experts of layer 1 must be numbered 0, 1, ... without gaps; found [-1, 0]",
        ),
        (
            {"expert_of_group": {1: [0, 0, 0, 0]}},
            "layer 1 has one expert for all groups: leave it out, it is then a dense layer",
        ),
        ({"expert_of_group": {}}, "no layer is chosen to become a mixture of experts; choose at least one"),
    ],
)
def test_tables_that_cannot_be_are_refused(
    options: dict[str, Any], message: str, make_dense: Callable[..., Any]
) -> None:
    with pytest.raises(InputError) as error:
        expand(make_dense(), **{"groups": GROUPS, **options})
    assert str(error.value) == message
