"""A new language for a finished run: what is written, what stays as it was, and that a killed adaptation continues."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sprachbund.adaptation.reading import Reader
from sprachbund.errors import InputError
from sprachbund.modeling.language_path import all_groups, path_specs
from sprachbund.recipe import Adaptation, Source
from sprachbund.run import adapting
from sprachbund.run.adapt_settings import complete, parse_languages
from sprachbund.run.adapting import adapt

LETTERS = {"mam_Latn": "aeioukqxtzlnm", "jac_Latn": "aeioukqxtzbwh", "chr_Cher": "ᎠᎡᎢᎣᎤᎥᎦᎧᎨᎩᎪᎫ"}


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Source]:
    """Write a corpus of invented words in a language's letters, and return it."""

    def write(tag: str) -> Source:
        rng = random.Random(tag)
        words = ["".join(rng.choices(LETTERS[tag], k=rng.randint(2, 6))) for _ in range(60)]
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=12))}, ensure_ascii=False) for _ in range(80)]
        (tmp_path / f"{tag}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return Source(file=str(tmp_path / f"{tag}.jsonl"))

    return write


@pytest.fixture
def settings(finished: Path, source: Callable[[str], Source]) -> Callable[..., Adaptation]:
    """Make the settings of a small adaptation of the finished run."""

    def make(*tags: str, model: Path | None = None, **given: Any) -> Adaptation:
        languages = {tag: source(tag) for tag in tags or ("mam_Latn",)}
        given = {"tokens": 2048, "learning_rate": 2e-2, **given}
        return complete(str(model or finished), languages, **given)

    return make


def old_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def test_a_language_is_added_and_no_old_tensor_changes(
    finished: Path, tmp_path: Path, settings: Callable[..., Adaptation]
) -> None:
    out = tmp_path / "out"
    facts = adapt(settings(max_forgetting=1.0), out)
    assert facts == json.loads((out / "adapt.json").read_text(encoding="utf-8"))
    before, after = old_tensors(finished), old_tensors(out)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    new = facts["scores"]["mam_Latn"]
    assert new["new"]
    assert new["after"]["group"]["perplexity"] < 0.8 * new["before"]["group"]["perplexity"]
    for tag in ("ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl"):
        of = facts["scores"][tag]
        assert of["after"]["group"] == of["before"]["group"]
        assert of["routed"]["group"] == 0
    rows = facts["languages"]["mam_Latn"]["under_groups"]
    assert [row["perplexity"] for row in rows] == sorted(row["perplexity"] for row in rows)
    assert facts["languages"]["mam_Latn"]["parent"]["group"] == rows[0]["group"]
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert all_groups(model.config)["mam_Latn"] == 2
    assert (out / "report.html").stat().st_size > 1000
    assert not (out / "steps").exists()


def test_the_same_call_does_nothing_again_and_other_settings_are_refused(
    tmp_path: Path, settings: Callable[..., Adaptation], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = adapt(settings(path="small"), tmp_path / "out")
    monkeypatch.setattr(adapting, "train_path", lambda *args, **kwargs: pytest.fail("trained again"))
    assert adapt(settings(path="small"), tmp_path / "out") == facts
    with pytest.raises(InputError, match=r"another recipe \(differing: path\)"):
        adapt(settings(path="rows"), tmp_path / "out")


def test_what_is_killed_half_way_continues_to_the_same_model(
    tmp_path: Path, settings: Callable[..., Adaptation], monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = ("mam_Latn", "jac_Latn")
    whole = adapt(settings(*tags), tmp_path / "whole")
    trained = adapting.train_path
    calls: list[int] = []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trained(*args, **kwargs)

    monkeypatch.setattr(adapting, "train_path", killed)
    with pytest.raises(KeyboardInterrupt):
        adapt(settings(*tags), tmp_path / "out")
    assert not (tmp_path / "out/model").exists()
    again = adapt(settings(*tags), tmp_path / "out")
    assert len(calls) == 3  # the first path was there already
    assert again["scores"] == whole["scores"]
    expected, found = old_tensors(tmp_path / "whole"), old_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_languages_one_after_the_other_leave_each_other_alone(
    tmp_path: Path, settings: Callable[..., Adaptation]
) -> None:
    first = adapt(settings("mam_Latn"), tmp_path / "one")
    chained = settings("jac_Latn", model=tmp_path / "one", start="mam_Latn")
    assert set(chained.protect) == {"ron_Latn", "ita_Latn", "rus_Cyrl", "ukr_Cyrl", "mam_Latn"}
    second = adapt(chained, tmp_path / "two")
    assert second["scores"]["mam_Latn"]["after"]["group"] == first["scores"]["mam_Latn"]["after"]["group"]
    before, after = old_tensors(tmp_path / "one"), old_tensors(tmp_path / "two")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with pytest.raises(InputError, match="the model has this language already"):
        settings("mam_Latn", model=tmp_path / "two")


def test_the_papers_way_copies_an_expert_and_trains_nothing_else(
    finished: Path, tmp_path: Path, settings: Callable[..., Adaptation]
) -> None:
    adapt(settings(path="paper", max_forgetting=9.0), tmp_path / "out")
    before, after = old_tensors(finished), old_tensors(tmp_path / "out")
    grown = [name for name in before if not torch.equal(before[name], after[name])]
    assert grown
    assert all(".experts." in name or name.endswith((".gate.weight", "gate.log_prob")) for name in grown)
    for name in grown:
        part = after[name][:, :-1] if name.endswith("log_prob") else after[name][:-1]
        assert torch.equal(part, before[name])


def test_joining_a_group_trains_its_experts_alone_and_a_path_takes_a_second_language(
    finished: Path, tmp_path: Path, settings: Callable[..., Adaptation]
) -> None:
    joined = adapt(settings(join="ita_Latn", max_forgetting=9.0), tmp_path / "old")
    group = AutoModelForCausalLM.from_pretrained(finished / "model").config.groups["ita_Latn"]
    before, after = old_tensors(finished), old_tensors(tmp_path / "old")
    changed = {name for name in before if not torch.equal(before[name], after[name])} - {"model.language_gate.log_prob"}
    assert changed
    for name in changed:
        other = 1 - group
        assert ".experts." in name
        assert torch.equal(after[name][other], before[name][other])
    assert joined["scores"]["ita_Latn"]["after"]["group"] != joined["scores"]["ita_Latn"]["before"]["group"]
    adapt(settings("mam_Latn"), tmp_path / "one")
    adapt(settings("jac_Latn", model=tmp_path / "one", join="mam_Latn", max_forgetting=9.0), tmp_path / "two")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "two/model").config
    assert [spec.languages for spec in path_specs(config)] == [("mam_Latn", "jac_Latn")]


def test_languages_share_a_path(tmp_path: Path, settings: Callable[..., Adaptation]) -> None:
    facts = adapt(settings("mam_Latn", "chr_Cher", "jac_Latn", together=2, path="rows"), tmp_path / "out")
    assert facts["languages"]["mam_Latn"]["shares_with"] == ["jac_Latn"]
    assert facts["languages"]["chr_Cher"]["shares_with"] == []


def test_a_vocabulary_of_its_own(finished: Path, tmp_path: Path, settings: Callable[..., Adaptation]) -> None:
    facts = adapt(settings("chr_Cher", extend_vocab=40), tmp_path / "out")
    assert facts["languages"]["chr_Cher"]["extension"] == 40
    scores = facts["scores"]["chr_Cher"]
    assert list(scores["after"]) == ["group"]
    assert scores["after"]["group"]["bits_per_byte"] < scores["before"]["group"]["bits_per_byte"]
    assert (tmp_path / "out/model/extensions/chr_Cher/tokenizer.json").is_file()
    before, after = old_tensors(finished), old_tensors(tmp_path / "out")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").eval()
    reader = Reader(model, tmp_path / "out/model")
    cherokee = reader.read("ᎠᎡᎢᎣ ᎤᎥᎦᎧ ᎨᎩᎪ ᎠᎡᎢᎣ", most=12)
    assert cherokee.group_id == model.config.num_groups
    assert int(cherokee.input_ids.max()) >= model.config.vocab_size  # told by base tokens, then tokenised again
    assert cherokee.input_ids.shape[1] < len(reader.base("ᎠᎡᎢᎣ ᎤᎥᎦᎧ ᎨᎩᎪ ᎠᎡᎢᎣ")["input_ids"])
    romanian = reader.read("aeiou ăîșțr lnmae iouăî")
    assert romanian.group_id is None
    assert int(romanian.input_ids.max()) < model.config.vocab_size


def test_a_model_without_a_run(finished: Path, tmp_path: Path, source: Callable[[str], Source]) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    ron = yaml.safe_load((finished / "recipe.yaml").read_text(encoding="utf-8"))["languages"]["ron_Latn"]
    settings = complete(
        str(tmp_path / "model"),
        {"mam_Latn": source("mam_Latn")},
        protect={"ron_Latn": Source(**ron)},
        tokens=1024,
        block_size=32,
        evaluate={"burn_in": 8, "tokens": 256},
    )
    facts = adapt(settings, tmp_path / "out")
    assert [tag for tag, scores in facts["scores"].items() if not scores["new"]] == ["ron_Latn"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mam_Latn"], "--language mam_Latn: give TAG=CORPUS"),
        (["nolanguage_Latn=x.jsonl"], "nolanguage"),
        (["mam_Latn=a.jsonl", "mam=b.jsonl"], "is given twice"),
    ],
)
def test_words_that_are_no_languages(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_languages(words, option="--language")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "full", "width": 3, "start": "nobody_Latn"}, "nobody_Latn"),
        ({"join": "99"}, "the model has groups 0 to 1"),
        ({"path": "rows", "width": 3}, "has no experts"),
        ({"path": "paper", "rank": 3}, "copies an expert and nothing else"),
        ({"tokens": 3}, "less than one step"),
        ({"prior": 0.4, "tags": ("mam_Latn", "jac_Latn")}, "2 paths would have 0.8 in all; give at most 0.25"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, settings: Callable[..., Adaptation], given: dict[str, Any], said: str
) -> None:
    tags = given.pop("tags", ())
    with pytest.raises(InputError, match=said):
        adapt(settings(*tags, **given), tmp_path / "out")
    assert not (tmp_path / "out/model").exists()


def test_a_missing_and_a_tiny_corpus(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--language mam_Latn: .*gone\.jsonl"):
        adapt(complete(str(finished), {"mam_Latn": Source(file=str(tmp_path / "gone.jsonl"))}), tmp_path / "out")
    (tmp_path / "one.txt").write_text("a b c\n" * 3, encoding="utf-8")
    with pytest.raises(InputError, match="--language mam_Latn"):
        adapt(complete(str(finished), {"mam_Latn": Source(file=str(tmp_path / "one.txt"))}), tmp_path / "out2")


def test_text_in_another_script_than_the_tag_says(
    tmp_path: Path, finished: Path, source: Callable[[str], Source]
) -> None:
    languages = {"mam_Latn": source("chr_Cher")}
    with pytest.raises(InputError, match="in the script Cher, and the tag says Latn"):
        adapt(complete(str(finished), languages, tokens=1024), tmp_path / "out")
    facts = adapt(complete(str(finished), languages, tokens=1024, force=True), tmp_path / "out")
    assert any("script Cher" in said for said in facts["languages"]["mam_Latn"]["warnings"])


def test_the_text_of_a_known_language_is_noticed(finished: Path, tmp_path: Path) -> None:
    ron = yaml.safe_load((finished / "recipe.yaml").read_text(encoding="utf-8"))["languages"]["ron_Latn"]
    facts = adapt(complete(str(finished), {"mam_Latn": Source(**ron)}, tokens=1024, path="rows"), tmp_path / "out")
    said = " ".join(facts["languages"]["mam_Latn"]["warnings"])
    assert "stands word by word in the text of" in said
    assert "is it the right text?" in said
