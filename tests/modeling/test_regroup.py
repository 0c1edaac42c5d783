"""Groups that change: what stays the same to the bit, what is averaged, copied or left out, and what is refused."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.language_path import PathSpec, all_groups
from sprachbund.modeling.model import add_path, mixture_layers
from sprachbund.modeling.regroup import changed_languages, regroup
from sprachbund.modeling.regroup_plan import (
    Plan,
    groups_of,
    plan_keep,
    plan_merge,
    plan_prune,
    plan_reassign,
    plan_split,
)
from sprachbund.modeling.tables import layer_table

ZUL, DEU, QUC, CAK, ACU, NLD = "zul_Latn", "deu_Latn", "quc_Latn", "cak_Latn", "acu_Latn", "nld_Latn"
GROUPS = {ZUL: 2, DEU: 0, QUC: 1, CAK: 1, ACU: 3, NLD: 0}
HIERARCHY: dict[str, Any] = {"kind": "hierarchy", "width": 6, "language_width": 3}
UNEVEN = {"moe_layers": None, "expert_of_group": {0: [0, 1, 0, 1], 1: [2, 0, 3, 1], 2: [0, 1, 2, 1]}}
KINDS: dict[str, dict[str, Any]] = {
    "copies": {"kind": "copy"},
    "shared": {"width": 5},
    "ungated with biases": {"family": "gpt2", "width": 5},
    "low rank, rows of groups": {"rank": 3, "rows": "group"},
    "adapters": {"kind": "adapter", "width": 5},
    "layers with fewer experts": {**UNEVEN, "width": 5},
    "rows for all": {"kind": "copy", "rows": "all"},
    "a hierarchy": HIERARCHY,
    "a hierarchy with fewer experts": {**HIERARCHY, **UNEVEN},
    "a hierarchy with rows of groups": {**HIERARCHY, "rows": "group"},
    "by language, rows of groups": {"by": "language", "width": 4, "rows": "group"},
    "rows of languages": {"width": 4, "rows": "language"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
Make = Callable[..., Any]
VERBS: dict[str, tuple[Callable[[Any], Plan], set[str]]] = {
    "split": (partial(plan_split, group="1", into=[[CAK], [QUC]]), set()),
    "merge": (partial(plan_merge, groups=[ACU, "0"]), {ACU, DEU, NLD}),
    "prune": (partial(plan_prune, group="2"), set()),
    "keep": (partial(plan_keep, languages=["nl", ACU, CAK]), set()),
    "reassign": (partial(plan_reassign, language="German", to="1"), {DEU}),
}


@pytest.fixture
def make(make_moe: Make) -> Make:
    """Build a mixture of GROUPS, of a kind, all of whose parameters are random."""

    def of(kind: str, **more: Any) -> Any:
        options = {"groups": GROUPS, "log_prob": None, "routing": "prefix", **KINDS[kind], **more}
        model = make_moe(options.pop("family", "llama"), **options)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            gate = getattr(model, model.base_model_prefix).language_gate
            gate.log_prob.copy_(torch.randn(gate.log_prob.shape, generator=generator).log_softmax(0))
        return model

    return of


@torch.no_grad()
def logits_of(model: Any, tag: str, tokens: Callable[..., Tensor]) -> Tensor:
    """Return a language's logits, its group given."""
    group = all_groups(model.config)[tag]
    return model(tokens(2, 7), group_ids=torch.tensor([group] * 2)).logits  # type: ignore[no-any-return]


def add_paths(model: Any) -> None:
    """Give a mixture a path of two languages on that of the Mayan languages, and one on Zulu's."""
    specs = (
        PathSpec(("mam_Latn", "kek_Latn"), model.config.groups[CAK], width=3, rank=2, rows=5, bias=True),
        PathSpec(("swh_Latn",), model.config.groups[ZUL], width=2, norms=True),
    )
    for seed, spec in enumerate(specs):
        path = add_path(model, spec, seed=seed)
        path.tokens.copy_(40 * torch.arange(spec.rows))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in path.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape))
            path.language_gate.log_prob.copy_(torch.randn(path.language_gate.log_prob.shape).log_softmax(0))


@every_kind
@pytest.mark.parametrize("verb", VERBS)
def test_who_is_not_touched_computes_the_same_to_the_bit(
    verb: str, kind: str, make: Make, tokens: Callable[..., Tensor]
) -> None:
    decide, touched = VERBS[verb]
    model = make(kind)
    plan = decide(model.config)
    other = regroup(model, plan)
    config = other.config
    assert set(changed_languages(model.config, plan)) == touched
    assert sorted(set(config.groups.values())) == list(range(config.num_groups))
    assert set(config.groups) == set(config.languages) == {tag for part in plan.parts for tag in part.languages}
    assert [members for members in groups_of(config).members if members] == [
        [tag for tag in config.languages if tag in part.languages] for part in plan.parts
    ]
    for column, tag in enumerate(config.languages):
        old, new = logits_of(model, tag, tokens), logits_of(other, tag, tokens)
        assert torch.equal(old, new) == (tag not in touched), tag
        gates = [getattr(one, one.base_model_prefix).language_gate.log_prob for one in (model, other)]
        assert torch.equal(gates[0][:, model.config.languages.index(tag)], gates[1][:, column])
    with torch.no_grad():
        for routing in ("prefix", "top_k"):
            assert other(tokens(2, 7), routing=routing).logits.isfinite().all()


@every_kind
def test_saved_and_loaded_it_is_the_same(kind: str, make: Make, tokens: Callable[..., Tensor], tmp_path: Path) -> None:
    model = make(kind)
    for verb in ("split", "merge", "keep"):
        other = regroup(model, VERBS[verb][0](model.config))
        other.save_pretrained(tmp_path / verb)
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / verb, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        with torch.no_grad():
            for routing in ("prefix", "top_k"):
                expected = other(tokens(2, 7), routing=routing).logits
                found = loaded(tokens(2, 7), routing=routing).logits
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_kind
def test_a_group_that_is_split_and_merged_again_is_what_it_was(
    kind: str, make: Make, tokens: Callable[..., Tensor]
) -> None:
    model = make(kind)
    split = regroup(model, VERBS["split"][0](model.config))
    merged = regroup(split, plan_merge(split.config, groups=[CAK, QUC], weights=[1, 0]))
    for tag in GROUPS:
        assert torch.equal(logits_of(merged, tag, tokens), logits_of(model, tag, tokens))
    if "fewer experts" not in kind:  # these are numbered anew
        assert merged.config.to_dict() == model.config.to_dict()
        state = merged.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert count_parameters(split).total > count_parameters(model).total


def test_copies_do_not_tie_under_top_k(make: Make, tokens: Callable[..., Tensor]) -> None:
    for model in (make("shared"), make("layers with fewer experts").to(torch.bfloat16)):
        plan = plan_split(model.config, group="1", into=[[QUC], [CAK]])
        split, again = regroup(model, plan), regroup(model, plan, seed=1)
        with torch.no_grad():
            scores = split(tokens(4, 9), routing="top_k", output_router_logits=True).router_logits
        for layer, scores_BTE in zip(split.config.moe_layers, scores, strict=True):
            parent, child = layer_table(split.config, layer)[1::3]
            before = layer_table(model.config, layer)[1]
            old, new, seeded = (one.model.layers[layer].mlp.gate.weight for one in (model, split, again))
            assert torch.equal(new[parent], old[before])
            assert 0.002 < (new[child] - new[parent]).float().norm() / new[parent].float().norm() < 0.03
            assert not torch.equal(new[child], seeded[child])
            experts = split.model.layers[layer].mlp.experts.down_proj
            assert torch.equal(experts[parent], experts[child])
            assert (scores_BTE[..., parent] != scores_BTE[..., child]).float().mean() > (
                0.99 if split.dtype == torch.float32 else 0.5
            )
    zeros = make("shared")
    for moe in mixture_layers(zeros):
        torch.nn.init.zeros_(moe.gate.weight)
    assert all(moe.gate.weight[4].abs().sum() > 0 for moe in mixture_layers(regroup(zeros, plan)))


def test_three_sides_get_a_copy_each(make: Make) -> None:
    model = make("copies", groups={**GROUPS, ACU: 1, ZUL: 2})
    split = regroup(model, plan_split(model.config, group=CAK, into=[[QUC], [ACU], [CAK]]))
    assert split.config.groups == {ZUL: 2, DEU: 0, QUC: 1, CAK: 4, ACU: 3, NLD: 0}
    for moe in mixture_layers(split):
        assert torch.equal(moe.experts.down_proj[3], moe.experts.down_proj[4])
        assert not torch.equal(moe.gate.weight[3], moe.gate.weight[4])


def test_merging_averages_experts_routers_and_rows(make: Make) -> None:
    model = make("low rank, rows of groups")
    merged = regroup(model, plan_merge(model.config, groups=["0", "2"]))  # two languages and one
    assert merged.config.groups == {ZUL: 0, DEU: 0, QUC: 1, CAK: 1, ACU: 2, NLD: 0}
    assert (merged.config.expert_of_group, merged.config.row_of_group) == ({}, [0, 1, 2])
    pairs = [
        *((old.gate.weight, new.gate.weight) for old, new in zip(*map(mixture_layers, (model, merged)), strict=True)),
        (mixture_layers(model)[0].experts.down_proj_a, mixture_layers(merged)[0].experts.down_proj_a),
        (model.lm_head.delta, merged.lm_head.delta),
        (model.model.embed_tokens.delta, merged.model.embed_tokens.delta),
    ]
    for old, new in pairs:
        torch.testing.assert_close(new[0], (2 * old[0] + old[2]) / 3)
        assert torch.equal(new[1:], old[[1, 3]])
    weighted = regroup(model, plan_merge(model.config, groups=["2", "0"], weights=[3, 1]))
    torch.testing.assert_close(weighted.lm_head.delta[0], 0.75 * model.lm_head.delta[2] + 0.25 * model.lm_head.delta[0])


def test_the_weights_of_a_merge_say_who_is_touched(make: Make) -> None:
    config = make("shared").config
    assert changed_languages(config, plan_merge(config, groups=["2", "3"], weights=[1, 0])) == [ACU]
    assert changed_languages(config, plan_merge(config, groups=["2", "3", "0"])) == [ZUL, DEU, ACU, NLD]


def test_who_shares_an_expert_with_a_merged_group_keeps_it(make: Make) -> None:
    """Group 1 shares experts with 3 in the layers 0 and 2, and group 2 shares none with it."""
    model = make("layers with fewer experts")
    merged = regroup(model, plan_merge(model.config, groups=["1", "2"], weights=[1, 3]))
    # layer 0: 0 keeps its expert, the average is a new one, 3 keeps the one that it shared with 1
    assert layer_table(merged.config, 0) == [0, 1, 2]
    assert [moe.experts.num_experts for moe in mixture_layers(merged)] == [3, 3, 3]
    old, new = (mixture_layers(one)[0].experts.down_proj for one in (model, merged))
    assert torch.equal(new[[0, 2]], old)
    torch.testing.assert_close(new[1], 0.25 * old[1] + 0.75 * old[0])
    relatives = regroup(model, plan_merge(model.config, groups=["1", "3"]))
    assert [moe.experts.num_experts for moe in mixture_layers(relatives)] == [2, 3, 3]  # shared ones stay as they are
    assert torch.equal(mixture_layers(relatives)[0].experts.down_proj, mixture_layers(model)[0].experts.down_proj)


def test_what_goes_makes_the_model_smaller(make: Make) -> None:
    model = make("rows of languages")
    kept = regroup(model, plan_keep(model.config, languages=[CAK, ZUL]))
    assert kept.config.languages == [ZUL, CAK]
    assert kept.lm_head.delta.shape[0] == kept.model.embed_tokens.delta.shape[0] == 2
    assert [moe.experts.num_experts for moe in mixture_layers(kept)] == [2, 2]
    one = regroup(model, plan_keep(model.config, languages=[CAK]))
    assert (one.config.num_groups, one.config.num_experts_per_tok) == (1, 1)
    assert count_parameters(one).total < count_parameters(kept).total < count_parameters(model).total


def test_languages_that_are_groups_keep_what_is_their_own(make: Make) -> None:
    model = make("a hierarchy with rows of groups")
    assert groups_of(model.config).members == [[DEU, NLD], [QUC, CAK], [ZUL], [ACU]]
    moved = regroup(model, plan_reassign(model.config, language=NLD, to="2"))
    assert groups_of(moved.config).members == [[DEU], [QUC, CAK], [ZUL, NLD], [ACU]]
    assert moved.config.expert_of_group["0"] == moved.config.row_of_group == [0, 1, 1, 2, 2, 3]
    old, new = model.config.groups[NLD], moved.config.groups[NLD]
    for before, after in zip(*map(mixture_layers, (model, moved)), strict=True):
        assert torch.equal(before.language_experts.down_proj[old], after.language_experts.down_proj[new])
        assert torch.equal(before.gate.weight[old], after.gate.weight[new])
        assert torch.equal(before.experts.down_proj, after.experts.down_proj)
    split = regroup(model, plan_split(model.config, group=NLD, into=[[NLD], [DEU]]))
    assert groups_of(split.config).members == [[NLD], [QUC, CAK], [ZUL], [ACU], [DEU]]
    assert torch.equal(split.lm_head.delta[0], split.lm_head.delta[4])


def test_where_every_language_has_all_for_itself_it_is_a_group(make: Make, tokens: Callable[..., Tensor]) -> None:
    model = make("shared", by="language")
    assert groups_of(model.config).members == [[DEU], [NLD], [QUC], [CAK], [ZUL], [ACU]]
    shared = regroup(model, plan_reassign(model.config, language=NLD, to=DEU))
    assert shared.config.groups == {ZUL: 3, DEU: 0, QUC: 1, CAK: 2, ACU: 4, NLD: 0}
    assert torch.equal(logits_of(shared, NLD, tokens), logits_of(model, DEU, tokens))
    assert [moe.experts.num_experts for moe in mixture_layers(shared)] == [5, 5]


def test_groups_without_languages_are_merged_equally_and_pruned(make: Make) -> None:
    model = make("shared", groups=None, num_groups=3, routing="top_k")
    merged = regroup(model, plan_merge(model.config, groups=["2", "0"]))
    old, new = (mixture_layers(one)[0].experts.down_proj for one in (model, merged))
    torch.testing.assert_close(new[0], (old[0] + old[2]) / 2)
    pruned = regroup(model, plan_prune(model.config, group="0"))
    assert torch.equal(mixture_layers(pruned)[0].experts.down_proj, old[1:])


@pytest.mark.parametrize("kind", ["shared", "layers with fewer experts", "a hierarchy with rows of groups"])
@pytest.mark.parametrize("verb", VERBS)
def test_paths_go_on_standing_on_their_groups(verb: str, kind: str, make: Make, tokens: Callable[..., Tensor]) -> None:
    model = make(kind)
    add_paths(model)
    later = ["mam_Latn", "kek_Latn"]
    decide = {
        "prune": partial(plan_prune, group="3"),
        "keep": partial(plan_keep, languages=[*later[1:], CAK, DEU]),
    }.get(verb, VERBS[verb][0])
    plan = decide(model.config)
    other = regroup(model, plan)
    stay = later[1:] if verb == "keep" else [*later, "swh_Latn"]
    assert [tag for entry in other.config.language_paths for tag in entry["languages"]] == stay
    for tag in [*stay, CAK]:
        assert torch.equal(logits_of(model, tag, tokens), logits_of(other, tag, tokens)), tag
    gate = other.model.language_paths[0].language_gate.log_prob
    assert torch.equal(gate, model.model.language_paths[0].language_gate.log_prob[:, -gate.shape[1] :])


def test_a_path_is_touched_with_what_it_stands_on_and_goes_alone(
    make: Make, tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    for kind in ("shared", "a hierarchy"):
        model = make(kind)
        add_paths(model)
        plan = plan_merge(model.config, groups=["1", "3"])
        assert changed_languages(model.config, plan) == [QUC, CAK, ACU, "mam_Latn", "kek_Latn"]
        other = regroup(model, plan)
        assert not torch.equal(logits_of(model, "mam_Latn", tokens), logits_of(other, "mam_Latn", tokens))
        assert torch.equal(logits_of(model, "swh_Latn", tokens), logits_of(other, "swh_Latn", tokens))
        for name in ("mam_Latn", "4"):
            pruned = regroup(model, plan_prune(model.config, group=name))
            assert [entry["languages"] for entry in pruned.config.language_paths] == [["swh_Latn"]]
            assert torch.equal(logits_of(model, "swh_Latn", tokens), logits_of(pruned, "swh_Latn", tokens))
        other.save_pretrained(tmp_path / kind)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        for tag in all_groups(other.config):
            found, expected = (logits_of(one, tag, tokens) for one in (loaded, other))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("decide", "sentence"),
    [
        (
            partial(plan_prune, group="7"),
            "group 7 is none of this model's: give 0 to 5, or a language; its groups are ",
        ),
        (partial(plan_prune, group="German?"), "language = 'German?' is none of this model's; it knows zul_Latn, "),
        (
            partial(plan_keep, languages=["zuk_Latn"]),
            "language = 'zuk_Latn' is none of this model's, did you mean 'zul_Latn'",
        ),
        (partial(plan_split, group="2", into=[[ZUL], []]), "group 2 has zul_Latn alone: a split takes two languages"),
        (partial(plan_split, group="4", into=[[], []]), "mam_Latn, kek_Latn has a path of its own and no group"),
        (
            partial(plan_split, group="0", into=[[DEU, NLD], []]),
            "a side of the split is empty: group 0 has deu_Latn, nld",
        ),
        (partial(plan_split, group="0", into=[[DEU, NLD]]), "a side of the split is empty: group 0 has deu_Latn, nld"),
        (partial(plan_split, group="0", into=[[DEU], [NLD, ZUL]]), "zul_Latn are not of the group: group 0 has deu_L"),
        (partial(plan_split, group="0", into=[[DEU], [NLD, "de"]]), "deu_Latn are named twice: group 0 has deu_Latn, "),
        (partial(plan_split, group="1", into=[[QUC], [QUC]]), "quc_Latn are named twice: group 1 has quc_Latn, cak_La"),
        (partial(plan_merge, groups=["1"]), "a merge takes two or more different groups; found 1"),
        (partial(plan_merge, groups=["1", CAK]), "a merge takes two or more different groups; found 1, 1"),
        (partial(plan_merge, groups=["1", "2"], weights=[1.0]), "1 weights were given for 2 groups; give one for each"),
        (
            partial(plan_merge, groups=["1", "2"], weights=[1, -2]),
            "the weights 1, -2 are no shares; give numbers from 0",
        ),
        (partial(plan_merge, groups=["1", "2"], weights=[0, 0]), "the weights 0, 0 are no shares; give numbers from 0"),
        (
            partial(plan_merge, groups=["1", "mam"]),
            "mam_Latn, kek_Latn has a path of its own and no group, which cannot",
        ),
        (partial(plan_keep, languages=[]), "give the languages to keep"),
        (partial(plan_keep, languages=[ZUL, "zu"]), "zul_Latn is named twice; name each once"),
        (
            partial(plan_keep, languages=["mam"]),
            "the path of mam_Latn, kek_Latn stands on group 1 (quc_Latn, cak_Latn)",
        ),
        (
            partial(plan_prune, group="1"),
            "the path of mam_Latn, kek_Latn stands on group 1 (quc_Latn, cak_Latn), which",
        ),
        (
            partial(plan_reassign, language=ZUL, to="1"),
            "the path of swh_Latn stands on group 2 (zul_Latn), which would",
        ),
        (partial(plan_reassign, language=NLD, to="0"), "nld_Latn is in group 0 already; give another group"),
        (partial(plan_reassign, language="mam", to="0"), "mam_Latn has a path of its own, which moves to no group; "),
    ],
)
def test_what_cannot_be_is_one_sentence(decide: Callable[[Any], Plan], sentence: str, make: Make) -> None:
    model = make("shared")
    add_paths(model)
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        decide(model.config)


def test_a_model_needs_a_group_and_something_to_leave_out(make: Make) -> None:
    config = make("shared", groups=dict.fromkeys(GROUPS, 0)).config
    with pytest.raises(InputError, match="the model has one group, which cannot go: a model needs one"):
        plan_prune(config, group="0")
    everyone: Sequence[str] = list(GROUPS)
    with pytest.raises(InputError, match="these are all of the model's 6 languages: there is nothing to leave out"):
        plan_keep(config, languages=everyone)
    hierarchy = make("a hierarchy")
    add_paths(hierarchy)
    with pytest.raises(
        InputError, match="the path of mam_Latn, kek_Latn stands on cak_Latn, which would go; keep that"
    ):
        plan_keep(hierarchy.config, languages=["mam", QUC])
