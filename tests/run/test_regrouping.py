"""What the verbs on groups write: a whole model folder, the same languages to the bit, and what the change costs."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.base import load_config
from sprachbund.modeling.language_path import PathSpec, all_groups
from sprachbund.modeling.model import add_path
from sprachbund.modeling.regroup import regroup
from sprachbund.modeling.regroup_plan import groups_of, plan_keep, plan_merge, plan_prune, plan_reassign, plan_split
from sprachbund.run.exporting import measure_routings, score_routings
from sprachbund.run.regrouping import change_groups


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's model, that belongs to no run."""
    shutil.copytree(finished / "model", tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def first_group(mixture: Any) -> list[str]:
    return groups_of(mixture.config).members[0]


def test_a_runs_groups_are_merged_and_the_cost_is_measured(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    facts = change_groups(str(finished), partial(plan_merge, groups=["0", "1"]), verb="merge", out=out)
    original, loaded = load(finished / "model"), load(out)
    expected = regroup(original, plan_merge(original.config, groups=["0", "1"])).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    before, after = (measure_routings(folder, finished) for folder in (finished / "model", out))
    assert before is not None
    assert after is not None
    assert facts["dev"]["mean"] == {name: {"before": before[name], "after": after[name]} for name in before}
    assert before["group"] != after["group"]
    scores = score_routings(out, finished, languages=["ukr_Cyrl"])
    assert scores is not None
    for routing, of in scores.items():
        assert facts["dev"]["languages"]["ukr_Cyrl"][routing]["after"] == of["ukr_Cyrl"]
    assert facts["groups"]["after"] == [loaded.config.languages]
    assert sorted(facts["changed"]) == sorted(original.config.languages)
    assert facts["parameters"]["after"]["total"] == count_parameters(loaded).total
    assert facts["parameters"]["before"]["total"] == count_parameters(original).total
    assert json.loads((out / "regroup.json").read_text(encoding="utf-8")) | {"folder": str(out)} == facts
    assert AutoTokenizer.from_pretrained(out).eos_token_id is not None
    assert GenerationConfig.from_pretrained(out).eos_token_id == loaded.config.eos_token_id
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".md", ".py"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "# tiny, its groups changed\n" in card
    assert "are merged into group 0. Languages that the last step changes where their group is given: `" in card
    assert f"| `group` | {before['group']:.2f} | {after['group']:.2f} | " in card
    assert "How the groups were made" not in card  # those of the run are no more
    assert "How the groups were made" in (finished / "model/README.md").read_text(encoding="utf-8")


def test_a_model_without_a_run_keeps_its_history(model: Path) -> None:
    config = load_config(model)
    group, members = max(enumerate(groups_of(config).members), key=lambda item: len(item[1]))
    into = [members[:1], members[1:]]
    split = change_groups(str(model), partial(plan_split, group=str(group), into=into), verb="split", seed=3)
    out = model.with_name(f"model-split{group}")
    assert (split["folder"], split["dev"], split["changed"]) == (str(out), None, [])
    assert "What it cost was not measured." in (out / "README.md").read_text(encoding="utf-8")
    moved = change_groups(str(out), partial(plan_reassign, language=members[0], to=members[1]), verb="reassign")
    assert [sentence.split()[0] for sentence in moved["done"]] == ["group", members[0]]
    assert moved["groups"]["before"] == split["groups"]["after"]
    assert moved["changed"] == [members[0]]
    kept = change_groups(str(model), partial(plan_keep, languages=members[:1]), verb="keep")
    assert kept["folder"] == str(model.with_name("model-keep1"))
    assert kept["gone"] == [tag for tag in config.languages if tag != members[0]]
    pruned = change_groups(str(model), partial(plan_prune, group=members[0]), verb="prune", out=model.parent / "rest")
    assert kept["parameters"]["after"]["total"] == pruned["parameters"]["after"]["total"]
    batch = torch.arange(1, 21).view(2, 10)
    models = {folder: load(folder) for folder in (model, out, Path(kept["folder"]))}
    with torch.no_grad():
        logits = [
            one(batch, group_ids=torch.tensor([one.config.groups[members[0]]] * 2)).logits for one in models.values()
        ]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_only_languages_of_both_models_are_measured(finished: Path, tmp_path: Path) -> None:
    decide = partial(plan_keep, languages=["rus_Cyrl", "ron_Latn"])
    facts = change_groups(str(finished), decide, verb="keep", out=tmp_path / "two")
    assert sorted(facts["dev"]["languages"]) == ["ron_Latn", "rus_Cyrl"]
    for scores in facts["dev"]["languages"].values():
        assert scores["group"]["before"] == scores["group"]["after"]
    unmeasured = change_groups(str(finished), decide, verb="keep", out=tmp_path / "again", evaluate=False)
    assert unmeasured["dev"] is None


def test_the_tokenizers_of_paths_go_along_with_their_paths(model: Path) -> None:
    mixture = load(model)
    for languages in (("mam_Latn", "kek_Latn"), ("est_Latn",)):
        path = add_path(mixture, PathSpec(languages, 0, extension=3))
        for parameter in path.parameters():
            torch.nn.init.normal_(parameter)
        (model / "extensions" / languages[0]).mkdir(parents=True)
        (model / "extensions" / languages[0] / "extension.json").write_text(languages[0], encoding="utf-8")
    mixture.save_pretrained(model)
    kept = change_groups(str(model), partial(plan_keep, languages=[*first_group(mixture), "kek"]), verb="keep")
    assert (kept["paths"], kept["groups"]["after"]) == ([["kek_Latn"]], [first_group(mixture)])
    (place,) = (Path(kept["folder"]) / "extensions").iterdir()
    assert (place.name, (place / "extension.json").read_text(encoding="utf-8")) == ("kek_Latn", "mam_Latn")
    ids = torch.tensor([[5, mixture.config.vocab_size + 2, 7]])
    with torch.no_grad():
        old, new = (
            one(ids, group_ids=torch.tensor([all_groups(one.config)["kek_Latn"]])).logits
            for one in (mixture, load(Path(kept["folder"])))
        )
    assert torch.equal(old, new)


def test_what_is_refused_is_refused_before_anything_is_loaded(
    model: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("sprachbund.run.derived.load_model", fail)
    decide = partial(plan_merge, groups=["0", "1"])
    (model.parent / "there").mkdir()
    with pytest.raises(InputError, match="there exists already; give another --out, or remove it first"):
        change_groups(str(model), decide, verb="merge", out=model.parent / "there")
    with pytest.raises(InputError, match=r"dense is a 'llama' model and no mixture .* so there is nothing to merge; "):
        change_groups(str(finished / "dense"), decide, verb="merge")
    with pytest.raises(InputError, match="group 9 is none of this model's"):
        change_groups(str(model), partial(plan_prune, group="9"), verb="prune")
    assert sorted(path.name for path in model.parent.iterdir()) == ["model", "there"]


def test_what_goes_wrong_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("no card")

    monkeypatch.setattr("sprachbund.run.derived.write_card", fail)
    with pytest.raises(InputError, match="no card"):
        change_groups(str(model), partial(plan_prune, group="1"), verb="prune")
    assert [path.name for path in model.parent.iterdir()] == ["model"]
