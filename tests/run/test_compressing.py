"""What compressing writes: a whole model folder, its sizes, and the loss of quality on the run's development text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprachbund.errors import InputError
from sprachbund.modeling import count_parameters
from sprachbund.modeling.compress import factor_experts, prune_experts
from sprachbund.modeling.model import mixture_layers
from sprachbund.run.compressing import compress
from sprachbund.run.derived import beside
from sprachbund.run.exporting import measure_routings


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's model, that belongs to no run."""
    shutil.copytree(finished / "model", tmp_path / "model")
    return tmp_path / "model"


def test_a_runs_mixture_is_pruned_and_measured(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "smaller"
    facts = compress(str(finished), width=8, out=out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    original = AutoModelForCausalLM.from_pretrained(finished / "model")
    expected = prune_experts(original, 8).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert [moe.experts.width for moe in mixture_layers(loaded)] == [8] * len(loaded.config.moe_layers)
    before, after = measure_routings(finished / "model", finished), measure_routings(out, finished)
    assert before is not None
    assert after is not None
    assert facts["dev"] == {name: {"before": before[name], "after": after[name]} for name in before}
    assert before["prefix"] != after["prefix"]
    assert facts["parameters"]["before"]["total"] == count_parameters(original).total
    assert facts["parameters"]["after"] == {
        "total": count_parameters(loaded).total,
        "active": count_parameters(loaded).active,
    }
    lost = facts["experts"]["before"] - facts["experts"]["after"]
    assert lost == count_parameters(original).total - count_parameters(loaded).total > 0
    assert json.loads((out / "compress.json").read_text(encoding="utf-8")) | {"folder": str(out)} == facts
    assert AutoTokenizer.from_pretrained(out).eos_token_id is not None
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".md", ".py"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "# tiny, its experts made smaller" in card
    assert f"pruned to 8 units, without training; they have {facts['experts']['after']:,} parameters" in card
    change = f"{100 * (after['top_k'] / before['top_k'] - 1):+.1f}%".replace("-", "−")
    row = next(line for line in card.splitlines() if line.startswith("| `top_k` | ") and line.count("|") == 5)
    assert row.replace("-", "−") == f"| `top_k` | {before['top_k']:.2f} | {after['top_k']:.2f} | {change} |"
    assert "## Results" not in card  # those of the run are of the model before


def test_a_model_without_a_run_is_factored_beside_it(model: Path) -> None:
    facts = compress(str(model), rank=4)
    out = model.with_name("model-rank4")
    assert facts["folder"] == str(out)
    assert (facts["method"], facts["rank"], facts["dev"]) == ("svd", 4, None)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    expected = factor_experts(AutoModelForCausalLM.from_pretrained(model), 4).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert any(name.endswith("experts.down_proj_a") for name in load_file(out / "model.safetensors"))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "factored at rank 4, without training" in card
    assert "What it cost was not measured." in card
    assert "| experts | 2 groups, kind `shared`, of rank 4 |" in card
    assert compress(str(out), rank=2)["folder"] == str(out.with_name("model-rank4-rank2"))


def test_nothing_is_measured_where_it_is_not_wanted(finished: Path, tmp_path: Path) -> None:
    assert compress(str(finished), width=4, out=tmp_path / "out", evaluate=False)["dev"] is None


def test_what_goes_wrong_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("no card")

    with monkeypatch.context() as patched:
        patched.setattr("sprachbund.run.derived.write_card", fail)
        with pytest.raises(InputError, match="no card"):
            compress(str(model), width=4)
        patched.setattr("sprachbund.run.derived.take_along", fail)
        with pytest.raises(InputError, match="no card"):
            compress(str(model), rank=4)
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_a_model_of_the_hub_is_compressed_to_here() -> None:
    assert beside("owner/name", Path("cache/snapshot"), "width8") == Path("name-width8")
