"""The whole run on bases of other families than those that `scratch` makes, with other names and shapes."""

import json
from pathlib import Path

import pytest
import torch
from command_line import CommandLine
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BASES = {
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "phi3": {
        **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 2, "max_position_embeddings": 64},
    },
}


@pytest.mark.parametrize("family", BASES)
def test_a_run_from_a_base_of_another_family(
    family: str, finished: Path, shared_tiny: Path, tmp_path: Path, cli: CommandLine
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "base")
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **BASES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    said = cli(
        *("run", shared_tiny, "--out", tmp_path / "run", "--set", f"base={tmp_path / 'base'}"),
        *("--set", "probe.sources=[deviation, gradient, representation]", "--set", "layers={budget: 60000}"),
    )
    assert said.status == 0, said.err
    stored = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert stored["model_type"] == f"dmoe_{family}"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    average = metrics["average"]["perplexity"]
    assert {"base", "dense", "group", "prefix", "top_k"} <= average.keys()
    assert average["group"] < average["base"]
    written = {path.stem for path in (tmp_path / "run" / "similarity").glob("*.csv")}
    assert {"deviation", "gradient", "representation"} <= written
