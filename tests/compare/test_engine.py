"""A whole comparison of a tiny recipe: its result, that all methods see the same text, and what a rerun does."""

import json
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sprachbund.compare import jobs, plans
from sprachbund.compare.engine import compare
from sprachbund.errors import InputError, SprachbundError
from sprachbund.evaluation.metrics import KINDS
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe
from sprachbund.run import learning

TAGS = ["ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"]
METHODS = [
    {"dense": {"learning_rates": [5e-3, 1e-2]}},
    "default",
    {"per-language": {"seeds": 1}},
    "native-random",
    {"dense-active": {"seeds": 1}},
]


def recipe_of(path: Path, **compare_part: Any) -> Recipe:
    values = {"methods": METHODS, "seeds": [0, 1]} | compare_part
    return load_recipe(path, overrides=[f"compare={json.dumps(values)}"])


@dataclass
class Watched:
    """A finished comparison, and what was trained on in which order, by the folder of the job."""

    folder: Path
    recipe: Recipe
    result: dict[str, Any]
    streams: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    paths: dict[str, list[int]] = field(default_factory=dict)


def watch(patched: pytest.MonkeyPatch, found: Watched) -> None:
    """Let every training leave the order of its sequences in `found`."""
    original = learning.run_training

    def watched(run: Any, stage: str, model: Any, blocks: Any, *args: Any, groups: list[int], **kwargs: Any) -> Any:
        if stage == "train":
            name = f"{run.folder.parent.name}/seed{run.recipe.seed}"
            found.streams[name] = (blocks.languages.copy(), blocks.blocks.copy())
            found.paths[name] = groups
        return original(run, stage, model, blocks, *args, groups=groups, **kwargs)

    patched.setattr(learning, "run_training", watched)


@pytest.fixture(scope="module")
def done(shared_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("compare") / "out"
    found = Watched(folder, recipe_of(shared_tiny), {})
    with pytest.MonkeyPatch.context() as patched:
        watch(patched, found)
        found.result = compare(found.recipe, folder, workers=1)
    return found


def test_the_result_is_the_file(done: Watched) -> None:
    assert json.loads((done.folder / "compare.json").read_text(encoding="utf-8")) == done.result
    assert "| per-language | prefix |" in (done.folder / "compare.md").read_text(encoding="utf-8")
    assert (done.folder / "compare.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_result_has_the_schema(done: Watched) -> None:
    result = done.result
    assert (result["schema"], result["recipe"], result["languages"]) == (1, "tiny", TAGS)
    assert list(result["methods"]) == ["dense", "default", "per-language", "native-random", "dense-active"]
    for name, method in result["methods"].items():
        assert [run["seed"] for run in method["runs"]] == ([0] if name in ("per-language", "dense-active") else [0, 1])
        assert method["flops"] > 0
        assert method["headline"] in method["runs"][0]["test"]
        for run in method["runs"]:
            assert run["seconds"] > 0
            assert run["tokens_per_second"] > 0
            assert run["peak_memory_mb"] > 0
            for scores in run["test"].values():
                assert all(0 < scores[kind] < 400 for kind in KINDS)
                assert list(scores["languages"]) == TAGS
    assert list(result["methods"]["dense"]["runs"][0]["test"]) == ["dense"]
    assert list(result["methods"]["default"]["runs"][0]["test"]) == ["group", "prefix", "top_k"]
    assert list(result["methods"]["dense-active"]["runs"][0]["test"]) == ["group"]  # one group: nothing to route
    average = result["methods"]["default"]["runs"][0]["test"]["group"]
    product = np.prod([language["perplexity"] for language in average["languages"].values()])
    assert average["perplexity"] == pytest.approx(product**0.25)


def test_training_helped_every_method(done: Watched) -> None:
    untouched = done.result["base"]["perplexity"]
    for method in done.result["methods"].values():
        assert all(run["test"][method["headline"]]["perplexity"] < untouched for run in method["runs"])


def test_the_learning_rate_is_the_best_on_dev(done: Watched) -> None:
    dense = done.result["methods"]["dense"]
    dev = {row["learning_rate"]: row["dev"]["dense"] for row in dense["grid"]}
    assert dense["learning_rate"] == min(dev, key=lambda rate: dev[rate])
    assert list(dev) == [5e-3, 1e-2, 2e-2, 4e-2]  # the upper edge won, twice
    assert dense["edge"]
    assert not done.result["methods"]["default"]["edge"]  # the recipe's own rate alone


def test_every_method_trains_on_the_same_sequences_in_the_same_order(done: Watched) -> None:
    for seed in (0, 1):
        of_seed = {name: found for name, found in done.streams.items() if name.endswith(f"seed{seed}")}
        assert len(of_seed) == (5 if seed == 0 else 3)
        languages, blocks = of_seed[f"dense/seed{seed}"]
        for name, (other_languages, other_blocks) in of_seed.items():
            assert np.array_equal(languages, other_languages), name
            assert np.array_equal(blocks, other_blocks), name
    assert not np.array_equal(done.streams["dense/seed0"][1], done.streams["dense/seed1"][1])
    # and that although their groups differ
    assert len({tuple(paths) for paths in done.paths.values()}) >= 3


def test_each_method_has_its_groups(done: Watched) -> None:
    methods = done.result["methods"]
    assert {frozenset(group) for group in methods["default"]["groups"]} == {frozenset(TAGS[:2]), frozenset(TAGS[2:])}
    assert methods["per-language"]["groups"] == [[tag] for tag in TAGS]
    assert methods["dense-active"]["groups"] == [TAGS]
    assert methods["dense"]["groups"] is None
    assert methods["default"]["layers"] == [0, 1]


def test_sizes_are_those_of_the_methods_named(done: Watched) -> None:
    sizes = {name: method["parameters"] for name, method in done.result["methods"].items()}
    assert sizes["dense"]["total"] == sizes["dense"]["active"] == 10_000
    assert sizes["dense-active"]["active"] == sizes["default"]["active"]
    router = 2 * 16 * 2  # two further rows of two routers
    assert sizes["per-language"]["total"] == sizes["default"]["total"] + router
    assert sizes["per-language"]["active"] < sizes["default"]["active"]


def test_random_groups_are_drawn_anew_for_each_seed(done: Watched) -> None:
    drawn = {path.name for path in (done.folder / "plans").glob("*") if path.is_dir()}
    recipes = [(done.folder / "plans" / name / "recipe.yaml").read_text(encoding="utf-8") for name in drawn]
    random = [text for text in recipes if "source: random" in text]
    assert sorted(line for text in random for line in text.splitlines() if line.startswith("seed:")) == [
        "seed: 0",
        "seed: 1",
    ]


def test_models_that_are_scored_are_gone(done: Watched) -> None:
    assert not list((done.folder / "jobs").rglob("*.safetensors"))
    assert list((done.folder / "shared").rglob("model.safetensors"))


def test_a_second_call_trains_nothing(done: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "system_of", lambda method: pytest.fail("a job was done again"))
    assert compare(done.recipe, done.folder, workers=1) == done.result


def test_one_that_was_stopped_goes_on_and_comes_to_the_same(
    done: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(done.folder / "shared", folder / "shared")
    original, steps = learning.run_training, []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(learning, "run_training", stopped)
    recipe = done.recipe.model_copy(
        update={"compare": done.recipe.compare and done.recipe.compare.model_copy(update={"seeds": [0, 1]})}
    )
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, folder, workers=1, methods=["default"])
    result = compare(recipe, folder, workers=1, methods=["default"], keep=True)
    assert len(steps) == 3  # seed 0, seed 1 stopped, seed 1
    assert list(result["methods"]) == ["default"]
    for ours, theirs in zip(
        result["methods"]["default"]["runs"], done.result["methods"]["default"]["runs"], strict=True
    ):
        assert ours["test"] == theirs["test"]
    assert len(list((folder / "jobs/default").rglob("model.safetensors"))) == 1  # keep came after seed 0


def test_a_changed_method_is_trained_again_and_no_other(
    done: Watched, tmp_path: Path, shared_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "copied"))
    trained: list[str] = []
    original = jobs.system_of
    monkeypatch.setattr(jobs, "system_of", lambda method: (trained.append(method.name), original(method))[1])
    methods = [METHODS[-1], {"per-language": {"seeds": 1, "experts": {"width": 5}, "size_of": None, "size": None}}]
    result = compare(recipe_of(shared_tiny, methods=methods), folder, workers=1)
    assert set(trained) == {"per-language"}
    assert result["methods"]["dense-active"] == done.result["methods"]["dense-active"]
    assert result["methods"]["per-language"] != done.result["methods"]["per-language"]


def test_a_folder_of_another_recipe_is_refused(done: Watched, shared_tiny: Path) -> None:
    other = load_recipe(shared_tiny, overrides=["base.scratch.hidden_size=32", "compare={methods: [dense]}"])
    with pytest.raises(InputError, match=r"holds a run of another recipe \(differing: base.scratch.hidden_size\)"):
        compare(other, done.folder, workers=1)


def test_other_tokens_train_the_methods_anew_from_the_same_base(
    done: Watched, tmp_path: Path, shared_tiny: Path
) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "copied"))
    base = (folder / "shared/base/model.safetensors").stat().st_mtime_ns
    overrides = ["train.tokens=3072", "compare={methods: [dense]}"]
    result = compare(load_recipe(shared_tiny, overrides=overrides), folder, workers=1)
    assert result["tokens"] == 3072
    assert result["methods"]["dense"]["flops"] == pytest.approx(1.2 * done.result["methods"]["dense"]["flops"])
    assert (folder / "shared/base/model.safetensors").stat().st_mtime_ns == base


def test_a_source_that_only_a_method_needs_is_no_other_recipe(done: Watched, tmp_path: Path, shared_tiny: Path) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "copied"))
    base = (folder / "shared/base/model.safetensors").stat().st_mtime_ns
    recipe = recipe_of(shared_tiny, methods=["groups-lexical"], seeds=[0])
    result = compare(recipe, folder, workers=1)
    assert {frozenset(group) for group in result["methods"]["groups-lexical"]["groups"]} == {
        frozenset(TAGS[:2]),
        frozenset(TAGS[2:]),
    }
    assert (folder / "shared/base/model.safetensors").stat().st_mtime_ns == base


def test_divergence_at_every_rate_is_said(done: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sprachbund.errors import DivergedError

    def diverge(*args: Any, **kwargs: Any) -> Any:
        raise DivergedError("the loss became nan at step 1")

    folder = tmp_path / "diverged"
    shutil.copytree(done.folder / "shared", folder / "shared")
    monkeypatch.setattr(learning, "run_training", diverge)
    with pytest.raises(SprachbundError, match=r"default, learning rate 0\.01, seed 0: the loss became nan at step 1"):
        compare(done.recipe, folder, workers=1, methods=["default"])


def test_a_job_can_be_sent_to_another_process(done: Watched) -> None:
    from sprachbund.compare.engine import base_method
    from sprachbund.compare.shared import Shared
    from sprachbund.grouping.greedy import Grouping
    from sprachbund.run.planning import LayerPlan
    from sprachbund.run.probing import DenseBase

    base = DenseBase(str(done.folder / "shared/base"), "main", False, "float32")
    grouping = Grouping((tuple(TAGS),))
    shared = Shared(done.folder / "shared", done.recipe, base, "mark", "digest", grouping)
    plan = plans.Plan(grouping, LayerPlan([]), done.folder / "plans/stream/groups.json")
    spec = jobs.JobSpec(shared, base_method(done.recipe), plan, 0.01, 0, done.folder / "jobs/x")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert pickle.loads(pickle.dumps(spec)).mark == spec.mark
