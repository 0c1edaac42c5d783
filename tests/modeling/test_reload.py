"""Every family's saved model in fresh processes: with the package imported, and found by `trust_remote_code`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import mixture, tokens
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.model import is_dmoe

LOAD = """
import json, sys
from pathlib import Path
{imports}
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
import torch
torch.set_num_threads(1)
differences = {{}}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = load_file(folder / "expected.st")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code={trust})
    ids = expected.pop("input_ids")
    asked = {{"group": {{"group_ids": torch.tensor([2, 0, 1])}}, "prefix": {{}}, "top_k": {{"routing": "top_k"}}}}
    found = [float((model(ids, **asked[mode]).logits - logits).abs().max()) for mode, logits in expected.items()]
    differences[folder.name] = [type(model).__name__, max(found)]
print(json.dumps(differences))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a mixture of every family with its logits in every mode."""
    root = tmp_path_factory.mktemp("saved")
    input_ids = tokens(3, 8)
    for family in FAMILIES:
        model = mixture(family, "copy")
        model.save_pretrained(root / family)
        with torch.no_grad():
            logits = {
                "group": model(input_ids, group_ids=torch.tensor([2, 0, 1])).logits,
                "prefix": model(input_ids).logits,
                "top_k": model(input_ids, routing="top_k").logits,
            }
        save_file({"input_ids": input_ids, **logits}, root / family / "expected.st")
    return root


def _load(saved: Path, tmp_path: Path, *, imports: str, trust: bool) -> dict[str, tuple[str, float]]:
    script = LOAD.format(imports=imports, trust=trust)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("imports", "trust"), [("import sprachbund.modeling", False), ("", True)], ids=["imported", "trust_remote_code"]
)
def test_a_fresh_process_loads_every_family(saved: Path, tmp_path: Path, imports: str, trust: bool) -> None:
    found = _load(saved, tmp_path, imports=imports, trust=trust)
    assert sorted(found) == sorted(FAMILIES)
    for family, (name, difference) in found.items():
        assert name.startswith("Dmoe"), family
        assert difference <= 1e-5, family


def test_saving_a_loaded_model_again_copies_no_source(saved: Path, tmp_path: Path) -> None:
    folder = saved / "llama"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert is_dmoe(model)
    model.save_pretrained(tmp_path / "again")
    code = [path.name for path in (tmp_path / "again").glob("*.py")]
    assert code == ["modeling_dmoe.py"]
    assert (tmp_path / "again" / "modeling_dmoe.py").read_text() == (folder / "modeling_dmoe.py").read_text()
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_dmoe.DmoeLlamaConfig",
        "AutoModelForCausalLM": "modeling_dmoe.DmoeLlamaForCausalLM",
    }
