"""Hierarchies, low-rank experts and keyed rows: identity at the start, isolation between groups, what is shared."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import dense
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters, expand
from sprachbund.modeling.expand import mixture_config
from sprachbund.modeling.expand_files import expand_files
from sprachbund.modeling.paths import paths_of
from sprachbund.modeling.sizing import widths_within

TAGS = ("cat_Latn", "ces_Latn", "cym_Latn", "deu_Latn", "est_Latn", "fin_Latn")
GROUPS = dict(zip(TAGS, (0, 1, 2, 0, 1, 2), strict=True))
HIERARCHY: dict[str, Any] = {"kind": "hierarchy", "width": 8, "language_width": 3}
KINDS: dict[str, dict[str, Any]] = {
    "hierarchy": HIERARCHY,
    "low-rank": {"kind": "shared", "rank": 4},
    "low-rank hierarchy with rows": {**HIERARCHY, "rank": 2, "rows": "group"},
    "experts of languages, rows of groups": {"by": "language", "width": 4, "rows": "group"},
    "rows of groups": {"kind": "shared", "rows": "group"},
    "rows of languages": {"kind": "shared", "rows": "language"},
    "rows for all": {"kind": "copy", "rows": "all"},
    "adapters": {"kind": "adapter", "width": 5},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
MODES = ("group", "prefix", "top_k")


def twin(options: dict[str, Any], *, family: str = "qwen3", trained: bool = False) -> Any:
    model = dense(family)
    table = torch.randn(model.config.vocab_size, len(TAGS), generator=torch.Generator().manual_seed(3))
    found = expand(model, moe_layers=[0, 1], groups=GROUPS, log_prob=table, **options).eval()
    if trained:
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.normal_(0, 0.2)
    return found


def ids(count: int = 6, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 60, (count, length), generator=torch.Generator().manual_seed(1))


def given(model: Any) -> torch.Tensor:
    return torch.tensor([model.config.groups[tag] for tag in TAGS])


def logits(model: Any, input_ids: torch.Tensor, mode: str) -> torch.Tensor:
    with torch.no_grad():
        group_ids = given(model)[: len(input_ids)] if mode == "group" else None
        return model(input_ids, routing=mode, group_ids=group_ids).logits  # type: ignore[no-any-return]


@every_kind
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma3_text", "bloom"])
def test_every_kind_starts_as_the_dense_model(family: str, options: dict[str, Any]) -> None:
    model = dense(family)
    with torch.no_grad():
        expected = model(ids()).logits
    started = twin(options, family=family)
    for mode in MODES:
        assert (logits(started, ids(), mode) - expected).abs().max() <= 1e-5 * expected.abs().max(), mode


@every_kind
def test_a_mixed_batch_equals_each_sequence_alone(options: dict[str, Any]) -> None:
    model = twin(options, trained=True)
    together = logits(model, ids(), "group")
    for row, group in enumerate(given(model)):
        with torch.no_grad():
            alone = model(ids()[row : row + 1], routing="group", group_ids=group.view(1)).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@every_kind
def test_saving_and_loading_gives_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    model = twin(options, trained=True)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for mode in MODES:
        torch.testing.assert_close(logits(again, ids(), mode), logits(model, ids(), mode), rtol=1e-6, atol=1e-6)


@every_kind
def test_the_model_from_disk_equals_the_one_from_memory(options: dict[str, Any], tmp_path: Path) -> None:
    base = dense("qwen3")
    base.save_pretrained(tmp_path / "base")
    expand_files(tmp_path / "base", tmp_path / "out", moe_layers=[0, 1], groups=GROUPS, seed=4, **options)
    from_disk = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    expected = expand(base, moe_layers=[0, 1], groups=GROUPS, seed=4, **options).state_dict()
    assert from_disk.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(from_disk[name], tensor), name


@every_kind
def test_step_by_step_decoding_equals_one_pass(options: dict[str, Any]) -> None:
    model = twin(options, trained=True)
    group_ids = given(model)[:2]
    for mode in MODES:
        arguments = {"group_ids": group_ids} if mode == "group" else {}
        written = model.generate(ids(2, 5), routing=mode, max_new_tokens=4, do_sample=False, **arguments)
        with torch.no_grad():
            whole = model(written[:, :-1], routing=mode, **arguments).logits.argmax(-1)
        assert torch.equal(whole[:, -4:], written[:, -4:]), mode


def test_training_one_language_moves_only_its_own_path() -> None:
    model = twin({**HIERARCHY, "rows": "language"}, trained=True).train()
    language = model.config.groups["deu_Latn"]
    batch = ids(2)
    model(batch, labels=batch, routing="group", group_ids=torch.tensor([language] * 2)).loss.backward()
    bank = model.model.layers[0].mlp
    own, shared = bank.language_experts.down_proj.grad, bank.experts.down_proj.grad
    assert [i for i in range(len(TAGS)) if own[i].abs().sum() > 0] == [language]
    assert [i for i in range(3) if shared[i].abs().sum() > 0] == [GROUPS["deu_Latn"]]
    tables = model.model.embed_tokens.delta.grad
    assert [i for i in range(len(TAGS)) if tables[i].abs().sum() > 0] == [language]


def test_relatives_share_the_experts_of_their_group_and_differ_by_their_own() -> None:
    model = twin(HIERARCHY, trained=True)
    german, catalan = model.config.groups["deu_Latn"], model.config.groups["cat_Latn"]
    assert model.config.expert_of_group["0"][german] == model.config.expert_of_group["0"][catalan] == 0
    outputs = [model(ids(1), group_ids=torch.tensor([g])).logits for g in (german, catalan)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.language_experts.down_proj.zero_()
    outputs = [model(ids(1), group_ids=torch.tensor([g])).logits for g in (german, catalan)]
    assert torch.equal(outputs[0], outputs[1])


def test_the_routers_of_a_hierarchy_choose_among_languages() -> None:
    output = twin(HIERARCHY)(ids(), routing="top_k", output_router_logits=True)
    assert [tuple(layer.shape) for layer in output.router_logits] == [(6, 9, len(TAGS))] * 2


def test_one_group_is_the_dense_model_with_a_wider_ffn() -> None:
    model = dense("qwen3")
    groups = dict.fromkeys(TAGS, 0)
    wide = expand(model, moe_layers=[0, 1], groups=groups, width=10)
    counts, before = count_parameters(wide), count_parameters(model).total
    routers = 2 * model.config.hidden_size
    assert counts.active == before + 2 * 3 * 10 * model.config.hidden_size
    assert counts.total == counts.active + routers
    assert wide.config.num_experts_per_tok == 1


def test_rows_count_once_as_active_and_are_tied() -> None:
    for tied in (True, False):
        config = copy.deepcopy(dense("qwen3").config)
        config.tie_word_embeddings = tied
        base = type(dense("qwen3"))(config)
        model, plain = (expand(base, moe_layers=[0], groups=GROUPS, rows=rows) for rows in ("group", None))
        tables = config.vocab_size * config.hidden_size * (1 if tied else 2)
        assert (model.lm_head.delta is model.model.embed_tokens.delta) == tied
        assert count_parameters(model).total == count_parameters(plain).total + 3 * tables
        assert count_parameters(model).active == count_parameters(plain).active + tables


def test_rows_of_a_token_that_was_not_read_get_no_gradient_from_the_input() -> None:
    model = twin({"kind": "shared", "rows": "group"}, trained=True).train()
    batch = torch.full((1, 6), 7)
    hidden = model.model(batch, routing="group", group_ids=torch.tensor([1])).last_hidden_state
    hidden.sum().backward()
    touched = model.model.embed_tokens.delta.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[1, 7]]


def test_languages_are_numbered_by_group_so_that_relatives_are_neighbours() -> None:
    paths = paths_of(GROUPS, 3, [0, 2], {}, hierarchy=True, by="group", rows="group")
    assert paths.groups == {TAGS[0]: 0, TAGS[1]: 2, TAGS[2]: 4, TAGS[3]: 1, TAGS[4]: 3, TAGS[5]: 5}
    assert paths.expert_of_group == {"0": [0, 0, 1, 1, 2, 2], "2": [0, 0, 1, 1, 2, 2]}
    assert paths.row_of_group == [0, 0, 1, 1, 2, 2]
    uneven = paths_of(GROUPS, 3, [0], {0: [1, 0, 1]}, hierarchy=True, by="group", rows=None)
    assert uneven.expert_of_group == {"0": [1, 1, 0, 0, 1, 1]}
    own = paths_of(GROUPS, 3, [0], {}, hierarchy=False, by="language", rows="group")
    assert (own.groups, own.expert_of_group, own.row_of_group) == (paths.groups, {}, [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize("hierarchy", [False, True])
def test_a_budget_is_used_and_kept(hierarchy: bool) -> None:
    config = dense("qwen3").config

    def make(width: int, language_width: int | None) -> Any:
        kind: Any = "hierarchy" if hierarchy else "shared"
        return mixture_config(
            config, moe_layers=[0, 1], groups=GROUPS, kind=kind, width=width, language_width=language_width
        )

    width, own = widths_within(config, make, budget=2.0, hierarchy=hierarchy)
    base = count_parameters(dense("qwen3")).total
    options = {"kind": "hierarchy", "language_width": own} if hierarchy else {"kind": "shared"}
    size = count_parameters(expand(dense("qwen3"), moe_layers=[0, 1], groups=GROUPS, width=width, **options)).total
    wider = {**options, "language_width": own + 1} if own else options
    over = count_parameters(
        expand(dense("qwen3"), moe_layers=[0, 1], groups=GROUPS, width=width + (0 if own else 1), **wider)
    ).total
    assert size <= 2 * base < over
    with pytest.raises(InputError, match=r"experts.budget = 1.01 leaves no room for experts"):
        widths_within(config, make, budget=1.01, hierarchy=hierarchy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "shared", "language_width": 3}, "language_width = 3 with kind = 'shared'"),
        ({"kind": "hierarchy"}, "language_width = None with kind = 'hierarchy'"),
        ({"kind": "hierarchy", "language_width": 0}, "the experts of languages have at least one unit"),
        ({"kind": "copy", "rank": 2}, "rank = 2 with kind = 'copy'"),
        ({"kind": "shared", "rank": 0}, "rank = 0"),
        ({"kind": "adapter", "width": 0}, "width = 0"),
        ({**HIERARCHY, "by": "language"}, "a hierarchy has experts of both"),
    ],
)
def test_sizes_that_a_kind_does_not_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand(dense("qwen3"), moe_layers=[0], groups=GROUPS, **options)


def test_languages_are_needed_where_something_is_keyed_by_language() -> None:
    with pytest.raises(InputError, match="keyed by language and the groups have none"):
        expand(dense("qwen3"), moe_layers=[0], num_groups=3, kind="hierarchy", language_width=2)
