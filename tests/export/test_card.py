"""The model card as a whole document, its metadata as the Hub reads it, and what it says of losses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sprachbund import __version__
from sprachbund.errors import InputError
from sprachbund.export import card as cards
from sprachbund.export.card import write_card
from sprachbund.export.card_facts import hub_language, is_hub_id
from sprachbund.export.markdown import code, markdown, ranges

EXPECTED = Path(__file__).with_name("expected_card.md")
CONFIG = {
    "model_type": "dmoe_llama", "architectures": ["DmoeLlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_dmoe.DmoeLlamaForCausalLM"},
    "vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
    "moe_layers": [0, 1, 3], "num_groups": 2, "num_experts_per_tok": 2, "expert_kind": "shared", "expert_width": 8,
    "groups": {"arb_Arab": 0, "nob_Latn": 1, "nhg_Latn": 1}, "languages": ["nob_Latn", "arb_Arab", "nhg_Latn"],
    "routing": "prefix", "router_gradient": "detach",
}  # fmt: skip
RECIPE = {
    "name": "small", "preset": "default", "seed": 3, "base": {"path": "someone/base-1b", "revision": "main"},
    "experts": {"kind": "shared"},
    "train": {
        "tokens": 737280, "tokens_per_step": 6144, "block_size": 128, "learning_rate": 0.012,
        "stages": [
            {"share": 0.1, "routing": "group", "router_loss": 1.28},
            {"share": 0.9, "routing": "top_k", "router_loss": 1},
        ],
    },
}  # fmt: skip
GROUPING = {
    "source": "deviation", "objective": "mean", "method": "exact", "proven": True,
    "stability": {"resamples": 20, "mean_rand": 0.914},
}  # fmt: skip
SYSTEMS = {"base": 100.0, "dense": 50.0, "group": 40.0, "prefix": 41.0, "top_k": 52.0}


def metrics() -> dict[str, Any]:
    """Three languages; the last one loses under prefix, two lose under top_k."""
    languages: dict[str, Any] = {}
    for tag, group, factor in (("nob_Latn", 1, 0.9), ("arb_Arab", 0, 1.0), ("nhg_Latn", 1, 1.25)):
        scores = {name: value * (factor if name in ("prefix", "top_k") else 1) for name, value in SYSTEMS.items()}
        languages[tag] = {"group": group, "tokens": 4000 + group, "bytes": 9000, "perplexity_after_burn_in": scores}
    after = {**SYSTEMS, "prefix": 42.5, "top_k": 53.75}
    return {
        "schema": 1, "name": "small", "seed": 3, "split": "test", "burn_in": 32, "moe_layers": [0, 1, 3],
        "tokens": {"dense": 737280, "moe": 737280}, "languages": languages,
        "average": {
            "perplexity": {name: value + 2 for name, value in SYSTEMS.items()},
            "perplexity_after_burn_in": after,
            "bits_per_byte": {name: value / 25 for name, value in SYSTEMS.items()},
        },
        "change_vs_dense": {
            "group": {"average": -0.2, "average_all_positions": -0.192, "worst": ["nob_Latn", -0.2]},
            "prefix": {"average": -0.15, "average_all_positions": -0.173, "worst": ["nhg_Latn", 0.025]},
            "top_k": {"average": 0.075, "average_all_positions": 0.038, "worst": ["nhg_Latn", 0.3]},
        },
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with a model of which there is only the configuration."""
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text(json.dumps(CONFIG))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "metrics.json").write_text(json.dumps(metrics()))
    (folder / "grouping.json").write_text(json.dumps(GROUPING))
    (folder / "groups.json").write_text(json.dumps(CONFIG["groups"]))
    return folder


def card(folder: Path, **options: Any) -> str:
    """Write a card and return it."""
    write_card(folder, **options)
    return (folder / "README.md").read_text(encoding="utf-8")


def front(text: str) -> dict[str, Any]:
    """Return a card's metadata, read as YAML."""
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def section(text: str, name: str) -> str:
    """Return what is under a heading."""
    return text.split(f"\n## {name}\n\n")[1].split("\n## ")[0]


def test_the_whole_document(run: Path) -> None:
    assert card(run / "model", run=run) == EXPECTED.read_text(encoding="utf-8").replace("{version}", __version__)


HIERARCHY = {"language_width": 4, "num_groups": 3, "expert_of_group": {"0": [0, 1, 1], "1": [0, 1, 1], "3": [0, 1, 1]}}
WORDS = [
    ({"expert_kind": "copy"}, "2 groups", "each group's expert takes the place of the FFN"),
    (
        {"expert_kind": "adapter"},
        "2 groups",
        "each group's expert is a bottleneck on the output of an FFN that all share",
    ),
    (
        {**HIERARCHY, "expert_rank": 2},
        "2 groups and within them 3 of one language",
        "each group's expert and a small one of each language add to an FFN that all share; their weights are products "
        "of two thin factors",
    ),
    (
        {"row_of_group": [0, 1]},
        "2 groups",
        "each group's expert adds to an FFN that all share; deltas in 2 tables are added to the embedding and the "
        "output rows",
    ),
]


@pytest.mark.parametrize(("changes", "groups", "kind"), WORDS)
def test_the_kind_is_said_in_words(
    changes: dict[str, Any], groups: str, kind: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "_parameters", lambda folder: "many")
    (run / "model/config.json").write_text(json.dumps({**CONFIG, **changes}))
    text = card(run / "model")
    assert f"\n| what they do | {kind} |\n" in text
    assert f"3 languages in {groups}, with experts in 3 layers" in text
    assert ("everything but them and the keyed rows is shared" in text) == ("row_of_group" in changes)
    if "language_width" in changes:
        said = "2 of groups of languages, 8 units wide, and 3 of languages, 4 units wide, of rank 2"
        assert f"\n| experts | {said} |\n" in text


def test_one_group_is_a_dense_model(run: Path) -> None:
    one = dict.fromkeys(CONFIG["groups"], 0)
    (run / "model/config.json").write_text(json.dumps({**CONFIG, "num_groups": 1, "groups": one}))
    text = card(run / "model")
    assert "\nA dense model in the form of a mixture: one expert for all text in 3 layers. Made with" in text


def test_the_metadata_is_what_the_hub_reads(run: Path) -> None:
    write_card(run / "model", run=run)
    data = ModelCard.load(run / "model/README.md").data.to_dict()
    assert data == {
        "language": ["ar", "nb", "nhg"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "someone/base-1b",
        "tags": ["mixture-of-experts", "multilingual", "sprachbund"],
    }


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("swh_Latn", "sw"), ("arb_Arab", "ar"), ("arz_Arab", "arz"), ("nor_Latn", "no"), ("zho_Hans", "zh"),
        ("cmn_Hans", "cmn"), ("tgl_Latn", "tl"), ("nhg_Latn", "nhg"), ("hbs_Latn", "sh"), ("<script>", None),
    ],
)  # fmt: skip
def test_languages_have_the_codes_of_the_hub(tag: str, expected: str | None) -> None:
    assert hub_language(tag) == expected


def test_norwegian_is_not_a_truth_value(run: Path) -> None:
    config = {**CONFIG, "groups": {"nor_Latn": 0, "deu_Latn": 1}, "languages": ["nor_Latn", "deu_Latn"]}
    (run / "model/config.json").write_text(json.dumps(config))
    assert front(card(run / "model"))["language"] == ["no", "de"]


def test_what_users_wrote_is_no_markup(run: Path) -> None:
    nasty = "x](http://evil) <script>|`*a*`\n# title"
    config = {**CONFIG, "groups": {nasty: 0, "deu_Latn": 1}, "languages": [nasty, "deu_Latn"]}
    (run / "model/config.json").write_text(json.dumps(config))
    recipe = {**RECIPE, "name": nasty, "base": {"path": f"/models/{nasty}"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = card(run / "model", run=run, evaluated=False)
    assert front(text) == {**front(text), "language": ["de"]}
    assert "base_model" not in front(text)
    assert "\n# title" not in text
    assert "# x\\](http://evil) \\<script\\>\\|\\`\\*a\\*\\` \\# title\n" in text
    assert f"language={json.dumps(nasty)})" in text
    rows = [line for line in section(text, "Languages and groups").splitlines() if line.startswith("| 0")]
    assert rows == ["| 0 | " + markdown(nasty) + " (" + code(nasty) + ") |"]


def test_scores_of_an_earlier_model_are_left_out(run: Path) -> None:
    text = card(run / "model", run=run, evaluated=False)
    assert "## Results" not in text
    assert "- It was not scored: nothing here shows how good it is\n" in text
    assert "Trained on 737,280 tokens:" in text


def test_a_model_without_a_run(run: Path) -> None:
    text = card(run / "model", base="someone/base-1b")
    assert front(text)["base_model"] == "someone/base-1b"
    assert "- Nothing here says how it was trained: fresh from `expand` it computes what its dense base does\n" in text
    assert text.split("---\n")[2].startswith("\n# run\n\nA language-group mixture of experts: 3 languages in 2 groups")
    assert "## Training" not in text
    assert "## Results" not in text


def test_a_local_base_is_named_without_its_path(run: Path) -> None:
    recipe = {**RECIPE, "base": {"path": "/home/someone/bases/base-1b"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = card(run / "model", run=run)
    assert "| base | `base-1b` |" in text
    assert "base_model" not in front(text)
    assert "someone" not in text


def test_groups_without_languages(run: Path) -> None:
    config = {**CONFIG, "groups": {}, "languages": [], "routing": "top_k"}
    (run / "model/config.json").write_text(json.dumps(config))
    text = card(run / "model")
    assert "language" not in front(text)
    assert "language=" not in text
    assert "prefix" not in text
    assert "| `group` | you: the number of the group | `group_ids` |" in text


def test_no_dense_control_is_said(run: Path) -> None:
    found = metrics()
    del found["change_vs_dense"]
    for scores in (*found["average"].values(), *(x["perplexity_after_burn_in"] for x in found["languages"].values())):
        del scores["dense"]
    (run / "metrics.json").write_text(json.dumps(found))
    results = section(card(run / "model", run=run), "Results")
    assert "No dense control was trained: the table does not show what the experts are worth." in results
    assert "Worse than" not in results
    assert "| `prefix` | 43.00 |  | 42.50 |  | 1.640 |  |" in results


def test_no_language_loses(run: Path) -> None:
    found = metrics()
    for language in found["languages"].values():
        language["perplexity_after_burn_in"] = {**SYSTEMS, "top_k": 50.0}
    (run / "metrics.json").write_text(json.dumps(found))
    results = section(card(run / "model", run=run), "Results")
    for routing in ("group", "prefix", "top_k"):
        assert f"- Worse than the dense control under `{routing}`: no language\n" in results


NATIVE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 100, "hidden_size": 16,
    "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 2, "mlp_only_layers": [2],
}  # fmt: skip
EXPORT = {
    "target": "qwen3_moe", "densified": False, "architecture": "Qwen3MoeForCausalLM", "difference": 8.4e-7,
    "caveats": ["vLLM: *read*, not run"], "dev": {"top_k": 52.0, "prefix": 40.0, "group": 39.0},
    "groups": CONFIG["groups"],
}  # fmt: skip
EXPORT_SECTION = """\
Target: `qwen3_moe`. It was loaded in plain transformers and compared with the mixture before it was kept: their \
logits differ by at most 8.4e-07 of the largest one. This architecture knows the learned router only: what it computes \
is the row `top_k`.

| routing | perplexity on the dev text | against `prefix` |
|---|---:|---:|
| `top_k` | 52.00 | +30.0% |
| `prefix` | 40.00 |  |
| `group` | 39.00 | -2.5% |

- vLLM: \\*read\\*, not run
"""


def _exported(folder: Path, config: dict[str, Any], export: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "export.json").write_text(json.dumps(export))
    return folder


def test_a_native_export_needs_no_package_and_says_what_its_routing_costs(run: Path, tmp_path: Path) -> None:
    text = card(_exported(tmp_path / "native", NATIVE, EXPORT), run=run)
    assert "# small as qwen3\\_moe\n" in text
    assert "| architecture | `Qwen3MoeForCausalLM` |" in text
    assert "no other package and no code from this repository is needed" in section(text, "Use")
    assert "import sprachbund" not in text
    assert section(text, "Export") == EXPORT_SECTION
    assert "These are the scores of the mixture; this export computes what `top_k` does there." in text
    limits = section(text, "Limits")
    assert (
        "- `top_k` is +7.5% against the dense control; under `group`, which only the mixture itself can, -20.0%"
        in limits
    )
    assert front(text)["tags"] == ["mixture-of-experts", "multilingual", "sprachbund"]


def test_a_dense_export_is_for_the_languages_of_its_group(run: Path, tmp_path: Path) -> None:
    dense = {key: value for key, value in CONFIG.items() if key in NATIVE and key != "num_experts_per_tok"}
    config = {**dense, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    export = {"target": "dense", "group": 1, "languages": ["nob_Latn", "nhg_Latn"], "caveats": [], "difference": 0.0}
    text = card(_exported(tmp_path / "dense", config, {**export, "dev": None, "groups": CONFIG["groups"]}), run=run)
    assert "# small, group 1 as a dense model\n" in text
    assert front(text)["language"] == ["nb", "nhg"]
    rows = [line for line in section(text, "Languages and groups").splitlines() if line.startswith("|")][2:]
    assert rows == ["| 1 | Norwegian Bokmål (`nob_Latn`), Tetelcingo Nahuatl (`nhg_Latn`) |"]
    results = section(text, "Results")
    assert "These are the scores of the mixture; this export computes what `group` does there." in results
    assert [line for line in results.splitlines() if line.startswith("- ")] == [
        "- Worse than the dense control under `group`: no language"
    ]
    assert [line.split(" | ")[0] for line in results.splitlines() if "_Latn` | 1" in line] == [
        "| `nob_Latn`",
        "| `nhg_Latn`",
    ]
    assert "arb_Arab" not in results
    assert "perplexity on the dev text" not in text
    assert "- Languages other than its 2 were not trained for and not tested\n" in text


def test_the_dense_control_of_a_run(run: Path) -> None:
    config = {**NATIVE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (run / "dense").mkdir()
    (run / "dense/config.json").write_text(json.dumps(config))
    text = card(run / "dense", run=run, evaluated=False)
    assert "# small, dense control\n\nA dense control: the base trained on the same tokens" in text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.json", "{", "metrics.json is not JSON"),
        ("metrics.json", '{"schema": 2}', "found schema 2, and this version reads 1; evaluate again"),
        ("metrics.json", '{"schema": 1}', "there is nothing under 'perplexity'; evaluate again"),
        ("recipe.yaml", "a: [", "recipe.yaml is not YAML"),
        ("grouping.json", "[]", "grouping.json holds no JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(name: str, content: str, sentence: str, run: Path) -> None:
    (run / name).write_text(content)
    with pytest.raises(InputError, match=sentence) as failed:
        write_card(run / "model", run=run)
    assert "\n" not in str(failed.value)
    assert not (run / "model/README.md").exists()


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; a model card is written for a saved model"):
        write_card(tmp_path)


def test_the_card_of_a_finished_run(finished: Path, tmp_path: Path) -> None:
    config = json.loads((finished / "model/config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = card(tmp_path, run=finished)
    found = json.loads((finished / "metrics.json").read_text())
    assert set(front(text)["language"]) == {"ro", "it", "ru", "uk"}
    assert f"| parameters | {found['parameters']['moe']:,}, {found['parameters']['active']:,} of them active" in text
    assert f"| `prefix` | {found['average']['perplexity']['prefix']:,.2f} |" in text
    assert "Base: a `llama` model from scratch" in text


def test_the_code_of_a_card_runs(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    text = card(tmp_path / "model", run=finished)
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert program.count("model.generate(") == 3
    names: dict[str, Any] = {}
    exec(program.replace('name = "."', f"name = {str(tmp_path / 'model')!r}"), names)
    assert type(names["model"]).__name__ == "DmoeLlamaForCausalLM"


def test_hub_ids_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    found = {base: is_hub_id(base) for base in ("gpt2", "a/b", "local", "./x", "/a/b", "a/b/c", "~/x", "a b")}
    assert found == {**dict.fromkeys(found, False), "gpt2": True, "a/b": True}


def test_markdown_of_awkward_text() -> None:
    assert code("a`b|c") == "`` a`b\\|c ``"
    assert markdown("a_b\n[c]") == "a\\_b \\[c\\]"
    assert ranges([5, 0, 1, 2, 9, 8]) == "0-2, 5, 8-9"
    assert ranges([]) == ""


def test_nothing_is_changed_by_reading(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    write_card(run / "model", run=run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
