"""A model with languages that came later: what exports, inspect, compress and the model card make of their paths."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import CommandLine
from mixtures import config_of, save_mixture, verify_here
from transformers import AutoModelForCausalLM

from sprachbund.errors import InputError
from sprachbund.export import exporter
from sprachbund.export.card import write_card
from sprachbund.export.dense import dense_verdict
from sprachbund.export.exporter import export_dense, export_native
from sprachbund.export.targets import verdicts
from sprachbund.files import EXTENSIONS
from sprachbund.modeling.compress import factor_experts, prune_experts
from sprachbund.modeling.description import describe
from sprachbund.modeling.language_path import PathSpec
from sprachbund.modeling.model import add_path, inner_model
from sprachbund.run.compressing import compress

IDS = torch.randint(1, 128, (2, 10), generator=torch.Generator().manual_seed(0))
PATH = 3  # the group id: there are three groups


def adapted(folder: Path, *, extension: int = 0, **options: Any) -> Path:
    """Save a mixture with a random path for Mam on group 1, and return its folder."""
    save_mixture(folder, **{"kind": "shared", **options})
    model = AutoModelForCausalLM.from_pretrained(folder)
    spec = PathSpec(("mam_Latn",), 1, width=6, rank=2, rows=4, bias=True, norms=True, extension=extension)
    path = add_path(model, spec)
    path.tokens.copy_(torch.tensor([2, 3, 5, 7]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in path.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any, group: int) -> torch.Tensor:
    found: torch.Tensor = model(IDS, group_ids=torch.full((len(IDS),), group), use_cache=False).logits
    return found


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process; a test in tests/cli goes through the fresh one."""
    monkeypatch.setattr(exporter, "verify", verify_here)


@pytest.mark.parametrize("kind", ["shared", "copy", "everything"])
@pytest.mark.usefixtures("here")
def test_a_group_without_a_path_becomes_a_dense_model_as_before(kind: str, tmp_path: Path) -> None:
    options = {"kind": "hierarchy", "options": {"rank": 3, "rows": "group"}} if kind == "everything" else {"kind": kind}
    save_mixture(tmp_path / "old", **options)
    folder = adapted(tmp_path / "model", **options)
    before, after = tmp_path / "before", tmp_path / "after"
    export_dense(tmp_path / "old", before, group=1)
    export_dense(folder, after, group=1)
    assert (before / "model.safetensors").read_bytes() == (after / "model.safetensors").read_bytes()
    assert "language_paths" not in json.loads((after / "config.json").read_text())


def test_a_language_with_a_path_is_refused_by_every_export(tmp_path: Path) -> None:
    folder = adapted(tmp_path / "model")
    with pytest.raises(InputError, match="--language mam: it came later and has a path of its own"):
        export_dense(folder, tmp_path / "out", language="mam")
    with pytest.raises(InputError, match="--group 3: the mixture has groups 0 to 2"):
        export_dense(folder, tmp_path / "out", group=PATH)
    with pytest.raises(InputError) as error:
        export_native(folder, tmp_path / "out", to="qwen2_moe")
    assert str(error.value) == (
        "qwen2_moe cannot compute what this model does: it has no place for a language's own path; the model has some "
        "(mam_Latn); the model as it is loads with this package (or trust_remote_code=True where it is installed), the "
        "one that it was adapted from may be exported, and --to dense --group G makes a plain dense model of one group"
    )
    assert not (tmp_path / "out").exists()


def test_the_verdicts_name_the_languages() -> None:
    config = config_of(kind="shared")
    assert any(verdict.exact for verdict in verdicts(config))
    config.language_paths = [PathSpec(("mam_Latn", "jac_Latn"), 0).entry()]
    assert not any(verdict.exact for verdict in verdicts(config, densify=True))
    assert dense_verdict(config).caveats == (
        "one group as a plain llama model",
        "not for mam_Latn, jac_Latn, which a path beside the FFN serves",
    )


def test_inspect_shows_the_paths(tmp_path: Path, cli: CommandLine) -> None:
    folder = adapted(tmp_path / "model", extension=5)
    said = cli("inspect", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (path,) = inner_model(model).language_paths
    size = sum(parameter.numel() for parameter in path.parameters())
    found = said.out.splitlines()
    place = found.index(f"path 3      Mam (mam_Latn), on group 1; {size:,} parameters, 5 tokens of its own")
    assert found[place - 1] == "group 2     Zulu (zul_Latn)"
    assert found[place + 1] == "path gate   mixture where none is asked for"
    facts = json.loads(cli("inspect", folder, "--json").out)["mixture"]
    assert facts["paths"] == [
        {"group_id": 3, "languages": ["mam_Latn"], "parent": 1, "parameters": size, "extension": 5}
    ]
    assert facts["language_names"]["mam_Latn"] == "Mam"
    assert describe(folder).parameters.total == sum(parameter.numel() for parameter in model.parameters())


def test_a_mixture_without_paths_says_nothing_of_them(tmp_path: Path, cli: CommandLine) -> None:
    said = cli("inspect", save_mixture(tmp_path / "moe")).out
    assert [line for line in said.splitlines() if line.startswith("path")] == []


@pytest.mark.parametrize("how", ["width", "rank"])
def test_smaller_experts_leave_the_paths_as_they_are(how: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(adapted(tmp_path / "model")).eval()
    smaller = prune_experts(model, 4) if how == "width" else factor_experts(model, 16)
    names = [name for name, _ in model.named_parameters() if ".language_paths." in name]
    assert names
    assert all(torch.equal(smaller.state_dict()[name], model.state_dict()[name]) for name in names)
    if how == "rank":  # a rank at which nothing is lost: the path stands on what it stood on
        assert torch.allclose(logits(smaller, PATH), logits(model, PATH), atol=1e-4)
    assert not torch.allclose(logits(smaller, PATH), logits(smaller, 1), atol=1e-2)


def test_compressing_takes_the_tokenizers_of_paths_along(tmp_path: Path) -> None:
    folder = adapted(tmp_path / "model", extension=5)
    (folder / EXTENSIONS / "mam_Latn").mkdir(parents=True)
    (folder / EXTENSIONS / "mam_Latn/tokenizer.json").write_text("{}")
    facts = compress(str(folder), width=4, out=tmp_path / "smaller")
    assert (tmp_path / "smaller" / EXTENSIONS / "mam_Latn/tokenizer.json").read_text() == "{}"
    lost = facts["parameters"]["before"]["total"] - facts["parameters"]["after"]["total"]
    assert lost == facts["experts"]["before"] - facts["experts"]["after"]


RESULT = {
    "schema": 1,
    "scores": {
        "mam_Latn": {"new": True, "before": {}, "after": {
            "group": {"bits_per_byte": 1.5}, "prefix": {"bits_per_byte": 1.625}, "counts": {"bits_per_byte": 1.75},
        }},
    },
    "forgetting": {
        "limit": 0.001, "holds": True, "worst": {"language": "deu_Latn", "mode": "prefix", "change": 0.000008},
    },
}  # fmt: skip


def test_the_card_says_which_languages_came_later(tmp_path: Path) -> None:
    folder = adapted(tmp_path / "run2/model", extension=5)
    write_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "4 languages in 3 groups, with experts in 2 layers; everything else is shared; 1 language came later." in text
    )
    assert "\n| group id | languages | stands on |\n|---:|---|---:|\n| 3 | Mam (`mam_Latn`) | group 1 |\n" in text
    assert "Mam read tokens of their own: their tokenizers are in `extensions/`" in text
    assert "- Languages other than its 5 were not trained for" in text
    assert "- It was not scored: nothing here shows how good it is\n" in text
    assert yaml.safe_load(text.split("---\n")[1])["language"] == ["de", "quc", "cak", "zu", "mam"]
    (tmp_path / "run2/adapt.json").write_text(json.dumps(RESULT))
    write_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "\n- Mam: bits per byte 1.500 under `group`, 1.625 under `prefix`\n"
        "- Of the other languages German lost most: perplexity +0.0008%, `prefix`\n" in text
    )
    assert "- What is said of its scores was measured when its last languages were added, and only that\n" in text
    assert "It was not scored" not in text
    assert "fresh from `expand`" not in text
    nothing_lost = {**RESULT, "forgetting": {"worst": {"language": "deu_Latn", "mode": "prefix", "change": 0.0}}}
    (tmp_path / "run2/adapt.json").write_text(json.dumps(nothing_lost))
    write_card(folder)
    assert "\n- No other language lost anything, under any routing\n" in (folder / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_card_of_a_mixture_without_later_languages_does_not_mention_any(tmp_path: Path) -> None:
    folder = save_mixture(tmp_path / "moe")
    write_card(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "later" not in text
    assert "path" not in text
