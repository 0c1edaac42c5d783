"""`inspect` says what a model is, exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from transformers import AutoConfig

from sprachbund.cli.inspect import size
from sprachbund.modeling.expand import mixture_config

SIZES = {
    "vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True,
}  # fmt: skip
GROUPS = {"swh_Latn": 1, "zul_Latn": 1, "deu_Latn": 0, "srp_Latn": 2}
MIXTURE = """\
model       {}: DmoeQwen3ForCausalLM, a mixture of experts on qwen3
layers      4, of which 3 are mixtures: 0-1, 3
experts     3 in each mixture layer; kind copy, 24 units wide
routing     prefix where none is asked for; top_k chooses 2 experts
FFN         gated, 24 units wide, without biases
parameters  17,568, 10,512 of them active per token
memory      weights 71.9 kB in float32, 36.7 kB in bfloat16
group 0     German (deu_Latn)
group 1     Swahili (swh_Latn), Zulu (zul_Latn)
group 2     Serbian (Latin) (srp_Latn)
exports     dense: yes (one group as a plain qwen3 model)
            qwen3_moe: yes{}
"""
DENSE = """\
model       {}: LlamaForCausalLM, a model of type llama
layers      4
FFN         gated, 24 units wide, without biases
parameters  10,448
memory      weights 41.8 kB in float32, 20.9 kB in bfloat16
expand      possible: sprachbund expand {} --layers ... --groups ... --out DIR
"""


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A folder with nothing but a mixture's configuration."""
    dense = AutoConfig.for_model("qwen3", **SIZES)
    mixture_config(dense, moe_layers=[0, 1, 3], groups=GROUPS, kind="copy", routing="prefix").save_pretrained(
        tmp_path / "mixture"
    )
    return tmp_path / "mixture"


def test_a_mixture(mixture: Path, cli: CommandLine) -> None:
    said = cli("inspect", mixture)
    assert said.status == 0, said.err
    assert said.out == MIXTURE.format(mixture, " (caveats: sprachbund export --list)")


HIERARCHY = """\
experts     a hierarchy in each mixture layer: 3 experts for groups of languages of width 6, 4 for languages of width \
2, in factors of rank 2
rows        3 tables of deltas on the embedding and the output rows, one for each group
routing     top_k where none is asked for; top_k chooses 2 experts
FFN         gated, 24 units wide, without biases
group 0     German (deu_Latn), with expert 0
group 1     Swahili (swh_Latn), with expert 1
group 2     Zulu (zul_Latn), with expert 1
group 3     Serbian (Latin) (srp_Latn), with expert 2
exports     dense: yes (one language as a plain qwen3 model; the factors of the experts, of rank 2, are multiplied \
out: 384 numbers for each instead of 176; the deltas of the keyed rows are added to the embedding and the output rows)
            qwen3_moe: no, it has one embedding and one output row for each token; the model has some for each group \
(row_of_group)
"""


def test_a_hierarchy_with_factors_and_rows(tmp_path: Path, cli: CommandLine) -> None:
    options: dict[str, Any] = {"kind": "hierarchy", "width": 6, "language_width": 2, "rank": 2, "rows": "group"}
    config = mixture_config(AutoConfig.for_model("qwen3", **SIZES), moe_layers=[0, 1], groups=GROUPS, **options)
    config.save_pretrained(tmp_path)
    kept = [
        line for line in cli("inspect", tmp_path).out.splitlines()
        if not line.startswith(("model", "layers", "parameters", "memory"))
    ]  # fmt: skip
    assert kept == HIERARCHY.splitlines()
    facts = json.loads(cli("inspect", tmp_path, "--json").out)["mixture"]
    assert (facts["language_width"], facts["rank"], facts["rows"], facts["row_tables"]) == (2, 2, "group", 3)


def test_rows_that_all_groups_share(tmp_path: Path, cli: CommandLine) -> None:
    dense = AutoConfig.for_model("qwen3", **SIZES)
    mixture_config(dense, moe_layers=[0], groups=GROUPS, kind="copy", rows="all").save_pretrained(tmp_path)
    lines = cli("inspect", tmp_path).out.splitlines()
    assert "rows        1 table of deltas on the embedding and the output rows, for all groups" in lines


def test_a_dense_model(tmp_path: Path, cli: CommandLine) -> None:
    AutoConfig.for_model("llama", **SIZES).save_pretrained(tmp_path)
    assert cli("inspect", tmp_path).out == DENSE.format(tmp_path, tmp_path)


def test_as_json(mixture: Path, cli: CommandLine) -> None:
    facts = json.loads(cli("inspect", mixture, "--json").out)
    assert facts["parameters"] == {"total": 17568, "active": 10512}
    assert facts["mixture"]["groups"] == [["deu_Latn"], ["swh_Latn", "zul_Latn"], ["srp_Latn"]]
    assert facts["mixture"]["language_names"]["srp_Latn"] == "Serbian (Latin)"
    exact = {verdict["target"]: verdict["exact"] for verdict in facts["exports"]}
    assert exact["dense"] is exact["qwen3_moe"] is True
    assert exact["mixtral"] is False


def _bloom(**fields: Any) -> Any:
    return AutoConfig.for_model("bloom", vocab_size=100, hidden_size=16, n_layer=2, n_head=2, **fields)


def test_what_is_not_possible_says_why(tmp_path: Path, cli: CommandLine) -> None:
    config = mixture_config(_bloom(), moe_layers=[0, 1], num_groups=3, kind="shared", width=4)
    config.save_pretrained(tmp_path / "shared")
    lines = cli("inspect", tmp_path / "shared").out.splitlines()
    assert "layers      2, all of them mixtures" in lines
    assert "groups      3, without languages" in lines
    assert "routing     top_k where none is asked for; top_k chooses 2 experts" in lines
    assert lines[-2].startswith("exports     dense: no, the FFNs of bloom models have a fixed width")
    assert lines[-1] == "            native: no, no architecture of transformers extends bloom models"
    AutoConfig.for_model("opt", num_hidden_layers=1, hidden_size=12).save_pretrained(tmp_path / "opt")
    assert "expand      not possible: the base is a 'opt' model, which cannot" in cli("inspect", tmp_path / "opt").out


def test_layers_with_different_numbers_of_experts(tmp_path: Path, cli: CommandLine) -> None:
    tables = {0: [0, 1, 1], 1: [0, 1, 2]}
    mixture_config(_bloom(), expert_of_group=tables, num_groups=3, kind="copy").save_pretrained(tmp_path)
    assert "experts     by layer 0: 2, 1: 3; kind copy, 64 units wide" in cli("inspect", tmp_path).out.splitlines()


def test_a_finished_run(finished: Path, cli: CommandLine) -> None:
    said = cli("inspect", finished)
    assert said.status == 0, said.err
    total = json.loads((finished / "metrics.json").read_text())["parameters"]
    assert f"parameters  {total['moe']:,}, {total['active']:,} of them active per token" in said.out.splitlines()


def test_what_is_no_model_is_one_sentence(tmp_path: Path, cli: CommandLine) -> None:
    said = cli("inspect", tmp_path)
    assert said.status == 2
    assert said.err == (
        f"sprachbund: {tmp_path} has no config.json; give the folder of a model or a run, or a Hub id\n"
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (2_236_858_368, "2.24 GB"),
     (999_900_000, "1,000 MB"), (1_340_000_000_000, "1,340 GB")],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text
