import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sprachbund.recipe import Recipe

SMALLEST: dict[str, Any] = {
    "name": "small",
    "base": "org/model",
    "languages": {"swh_Latn": "sw.jsonl", "zul_Latn": "zu.jsonl", "xho_Latn": "xh.jsonl"},
    "groups": {"count": 2},
    "train": {"tokens": 4096, "tokens_per_step": 1024, "block_size": 128, "stages": [{"share": 1}]},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The smallest recipe with values at dotted places, written with __ for the dot."""
    values = copy.deepcopy(SMALLEST)
    for place, value in changes.items():
        here = values
        *path, last = place.split("__")
        for key in path:
            here = here.setdefault(key, {})
        here[last] = value
    return values


def fault(**changes: Any) -> str:
    """The place and message of the one mistake."""
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(changed(**changes))
    (only,) = error.value.errors()
    return f"{'.'.join(map(str, only['loc']))}: {only['msg'].removeprefix('Value error, ')}"


def test_the_smallest_recipe_gets_the_papers_defaults() -> None:
    recipe = Recipe.model_validate(SMALLEST)
    assert (recipe.mixture.method, recipe.mixture.temperature) == ("temperature", 0.3)
    assert (recipe.probe.steps, recipe.probe.tokens_per_step, recipe.probe.learning_rate) == (10, 2048 * 512, 8e-6)
    assert recipe.experts.num_experts_per_tok == 2
    assert recipe.layers.all is True
    assert recipe.tags() == ["swh_Latn", "zul_Latn", "xho_Latn"]


def test_a_string_is_a_base_and_a_source() -> None:
    recipe = Recipe.model_validate(SMALLEST)
    assert (recipe.base.path, recipe.base.revision, recipe.base.trust_remote_code) == ("org/model", "main", False)
    assert recipe.languages["swh_Latn"].file == "sw.jsonl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {}}, "base: give exactly one of: path (a Hub id or folder) and scratch"),
        ({"base": {"path": "a", "scratch": {}}}, "base: give exactly one of: path (a Hub id or folder) and scratch"),
        (
            {"base": {"scratch": {"hidden_size": 64, "num_heads": 5}}},
            "base.scratch: num_heads = 5 does not divide hidden_size = 64 into even heads",
        ),
        (
            {"base": {"scratch": {"hidden_size": 6, "num_heads": 2}}},
            "base.scratch: num_heads = 2 does not divide hidden_size = 6 into even heads",
        ),
        ({"languages__swh_Latn": {}}, "languages.swh_Latn: give exactly one of: file, hub, cldr"),
        (
            {"languages__swh_Latn": {"file": "a", "cldr": "sw"}},
            "languages.swh_Latn: give exactly one of: file, hub, cldr",
        ),
        (
            {"languages__sw": "b.jsonl"},
            "languages: 'swh_Latn' and 'sw' are both swh_Latn; every language may be given once",
        ),
        (
            {"splits": {"dev": 0.5, "test": 0.5}},
            "splits: dev = 0.5 and test = 0.5 leave nothing to train on; sum below 1",
        ),
        ({"mixture": {"method": "given"}}, "mixture: shares belong to method: given, and only to it"),
        ({"mixture": {"shares": {"sw": 1}}}, "mixture: shares belong to method: given, and only to it"),
        (
            {"mixture": {"method": "given", "shares": {"sw": 1, "zu": 0, "xh": 1}}},
            "mixture: every given share must be above 0",
        ),
        (
            {"mixture": {"method": "given", "shares": {"sw": 1, "zu": 1, "ron": 1}}},
            "mixture: shares must name every language of the recipe and no other; differing: ron_Latn, xho_Latn",
        ),
        (
            {"mixture": {"method": "given", "shares": {"sw": 1, "swh_Latn": 1, "zu": 1, "xh": 1}}},
            "mixture: 'sw' and 'swh_Latn' are both swh_Latn; every language may be given once",
        ),
        ({"layers": {}}, "layers: give exactly one of: all, epsilon, top, budget, layerwise, given"),
        ({"layers": {"all": False}}, "layers: give exactly one of: all, epsilon, top, budget, layerwise, given"),
        (
            {"layers": {"epsilon": 0.6, "top": 2}},
            "layers: give exactly one of: all, epsilon, top, budget, layerwise, given",
        ),
        ({"layers": {"given": []}}, "layers: given must name at least one layer, each once; found []"),
        ({"layers": {"given": [1, 1]}}, "layers: given must name at least one layer, each once; found [1, 1]"),
        ({"train__block_size": 100}, "train: tokens_per_step = 1024 is no multiple of block_size 100"),
        (
            {"train__micro_batch_tokens": 100},
            "train: micro_batch_tokens = 100 must be a multiple of block_size 128 and divide tokens_per_step 1024",
        ),
        (
            {"train__micro_batch_tokens": 384},
            "train: micro_batch_tokens = 384 must be a multiple of block_size 128 and divide tokens_per_step 1024",
        ),
        ({"train__tokens": 1023}, "train: tokens = 1023 is less than one step of 1024"),
        (
            {"train__stages": [{"share": 0.5}, {"share": 0.4}]},
            "train: the stages' shares sum to 0.9; they must sum to 1",
        ),
        ({"groups__count": 4}, ": groups.count = 4 for 3 languages; give 1 to 3, or auto"),
        (
            {"experts": {"kind": "copy", "width": 64}},
            ": experts.width does not belong to experts.kind: copy; a copy has the dense FFN's width",
        ),
        (
            {"base": {"scratch": {"num_layers": 2}}, "layers": {"given": [0, 2]}},
            ": layers.given names layer 2; the base has layers 0 to 1",
        ),
        (
            {"base": {"scratch": {"num_layers": 2}}, "layers": {"top": 3}},
            ": layers.top = 3 is more than the base's 2 layers",
        ),
        (
            {"groups__count": 0},
            "groups.count: found 0; give a whole number from 1, or auto",
        ),
        (
            {"groups__similarity": "s.csv"},
            "groups: similarity belongs to source: given, and only to it",
        ),
        (
            {"groups__method": "greedy-seeded"},
            "groups: method = greedy-seeded belongs to objective: greedy, and only to it",
        ),
        (
            {"groups__must_link": [["sw", "zul"], ["sw", "fra"]]},
            "groups: must_link names fra_Latn, which is no language of the recipe, "
            "did you mean 'zul_Latn' or 'xho_Latn' or 'swh_Latn'?",
        ),
        (
            {"groups__cannot_link": [["sw"]]},
            "groups: cannot_link has the link ['swh_Latn']; a link names at least two languages",
        ),
        ({"groups__weights": "size"}, "groups.weights: found 'size'; give a number for every language, or bytes"),
        ({"groups__weights": {"sw": 0}}, "groups.weights: the weight of sw is 0; give a number above 0"),
        (
            {"groups__weights": {"sw": 1}},
            "groups: weights has no number for zul_Latn, xho_Latn; give every language one",
        ),
        (
            {"groups__source": "family"},
            "groups: source: family knows no family of swh_Latn, zul_Latn, xho_Latn; "
            "give languages.swh_Latn.family, or groups.families, a CSV",
        ),
        (
            {"probe": {"sentences": "flores.txt"}},
            "probe: sentences = 'flores.txt' lacks {tag}, which stands for the language",
        ),
        (
            {"base": {"scratch": {"num_layers": 2}}, "probe": {"layers": [1, 2]}},
            ": probe.layers names layer 2; the base has layers 0 to 1",
        ),
        (
            {"base": {"scratch": {"num_layers": 2}}, "probe": {"hidden_layer": 3}},
            ": probe.hidden_layer = 3 is more than the base's 2 layers",
        ),
        ({"evaluate": {"burn_in": 128}}, ": evaluate.burn_in = 128 leaves nothing of a window of 128 tokens"),
        (
            {"evaluate": {"burn_in": 64, "window": 64}},
            ": evaluate.burn_in = 64 leaves nothing of a window of 64 tokens",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_named(changes: dict[str, Any], message: str) -> None:
    assert fault(**changes) == message


def test_an_unknown_language_is_named_with_its_neighbours() -> None:
    assert fault(languages={"sw": "a", "Swahilli": "b"}).startswith("languages: unknown language 'Swahilli'")
    assert "Swahili" in fault(languages={"sw": "a", "Swahilli": "b"})


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": ".."}, "name"),  # runs/.. is not a run
        ({"languages": {"sw": "a"}}, "languages"),
        ({"seed": -1}, "seed"),
        ({"seed": 2.5}, "seed"),
        ({"preset": "papre"}, "preset"),
        ({"base": {"scratch": {"vocab_size": 259}}}, "base.scratch.vocab_size"),  # 256 bytes and what is special
        ({"splits": {"dev": 0}}, "splits.dev"),
        ({"mixture": {"temperature": 1.5}}, "mixture.temperature"),
        ({"probe": {"layers": "last:0"}}, "probe.layers"),
        ({"probe": {"layers": "first:3"}}, "probe.layers"),
        ({"probe": {"learning_rate": 0}}, "probe.learning_rate"),
        ({"groups__count": 0}, "groups.count"),
        ({"groups__count": True}, "groups.count"),
        ({"groups__floor": 1.5}, "groups.floor"),
        ({"probe": {"layers": [0, 0]}}, "probe.layers"),
        ({"probe": {"center": ["lexicon"]}}, "probe.center"),
        ({"probe": {"sources": ["words"]}}, "probe.sources.0"),
        ({"groups__method": "exact"}, "groups.method"),
        ({"layers": {"epsilon": 1.1}}, "layers.epsilon"),
        ({"layers": {"given": [-1]}}, "layers.given.0"),
        ({"train__stages": []}, "train.stages"),
        ({"train__stages": [{"share": 1, "routing": "topk"}]}, "train.stages.0.routing"),
        ({"train__stages": [{"share": 1, "router_loss": math.inf}]}, "train.stages.0.router_loss"),
        ({"train__learning_rate": math.nan}, "train.learning_rate"),
        ({"train__warmup": 1}, "train.warmup"),
        ({"train__dtype": "float16"}, "train.dtype"),
        ({"train__trackers": ["mlflow"]}, "train.trackers.0"),
        ({"evaluate": {"burn_in": 0}}, "evaluate.burn_in"),
        ({"evaluate": {"windows": 64}}, "evaluate.windows"),
    ],
)
def test_a_value_out_of_its_range_is_found_at_its_place(changes: dict[str, Any], place: str) -> None:
    assert fault(**changes).startswith(f"{place}: ")


def test_given_groups_are_not_counted() -> None:
    recipe = Recipe.model_validate(changed(groups={"count": 9, "given": "groups.json"}))
    assert recipe.groups.given == "groups.json"


def test_languages_and_shares_become_canonical_in_the_recipes_order() -> None:
    values = changed(
        languages={"Zulu": "zu.jsonl", "sw": "sw.jsonl"},
        mixture={"method": "given", "shares": {"swh": 3, "zul_Latn": 1}},
    )
    recipe = Recipe.model_validate(values)
    assert recipe.tags() == ["zul_Latn", "swh_Latn"]
    assert recipe.languages["zul_Latn"].file == "zu.jsonl"
    assert recipe.mixture.shares == {"swh_Latn": 3, "zul_Latn": 1}


def test_steps_and_the_ends_of_stages() -> None:
    stages = [{"share": 0.1}, {"share": 0.6}, {"share": 0.3}]
    train = Recipe.model_validate(changed(train__tokens=20_500, train__stages=stages)).train
    assert (train.num_steps, train.batch_size) == (20, 8)
    assert train.stage_ends() == [2, 14, 20]


def test_a_recipe_does_not_change() -> None:
    recipe = Recipe.model_validate(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_relative_paths_are_seen_from_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    values = changed(
        base="models/mine",
        groups={"given": "../groups.json"},
        languages={"sw": "a/{split}.jsonl", "zu": "/data/zu.txt", "xh": "~/xh.txt", "ro": {"cldr": "ro"}},
    )
    recipe = Recipe.model_validate(values).resolved(tmp_path)
    assert recipe.base.path == str(tmp_path / "models" / "mine")
    assert recipe.groups.given == str(tmp_path.parent / "groups.json")
    files = [source.file for source in recipe.languages.values()]
    assert files == [str(tmp_path / "a/{split}.jsonl"), "/data/zu.txt", str(tmp_path / "xh.txt"), None]


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    assert Recipe.model_validate(SMALLEST).resolved(tmp_path).base.path == "org/model"


def test_every_field_has_a_description_and_defaults_name_their_source() -> None:
    def parts(part: Any) -> list[Any]:
        inner = [f.annotation for f in part.model_fields.values()]
        found = [a for a in inner if isinstance(a, type) and hasattr(a, "model_fields")]
        return [part, *(p for a in found for p in parts(a))]

    fields = [f for part in parts(Recipe) for f in part.model_fields.values()]
    assert len(fields) > 50
    assert all(field.description for field in fields)
    sources = re.findall(r"\[(\w+)", " ".join(field.description or "" for field in fields))
    assert set(sources) == {"paper", "ours"}
