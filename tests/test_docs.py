"""What the documentation says is true: commands run, recipes validate, generated pages are as generated."""

import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from typer.main import get_command

from sprachbund.cli.app import app
from sprachbund.recipe_file import build_recipe, load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "../shared/reference/dmoe"
# What the documented run needs to take seconds: the same stages, fewer tokens.
SMALL = (
    "base.scratch.tokens=9216",
    "base.scratch.vocab_size=300",
    "base.scratch.hidden_size=16",
    "base.scratch.num_layers=2",
    "probe.steps=1",
    "train.tokens=12288",
    "train.tokens_per_step=1024",
    "evaluate.tokens=512",
)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def script(path: Path) -> ModuleType:
    """Import a script that is no part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_base(folder: Path) -> None:
    """Save the tiny dense model that stands for the reader's own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": None, "bos_token_id": None}
    config = AutoConfig.for_model("qwen3", **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_the_recipe_reference_is_generated_from_the_model() -> None:
    reference = script(ROOT / "docs/generate_reference.py").reference()
    assert (ROOT / "docs/recipe.md").read_text(encoding="utf-8") == reference


def test_the_page_of_models_is_generated_from_the_registries() -> None:
    assert (ROOT / "docs/models.md").read_text(encoding="utf-8") == script(ROOT / "docs/generate_models.py").models()


def test_the_results_are_generated_from_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = script(ROOT / "benchmarks/tables.py")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "docs/results.md").read_text(encoding="utf-8") == tables.results()
    assert tables.readme(readme) == readme
    grouping = (ROOT / "docs/grouping.md").read_text(encoding="utf-8")
    assert tables.grouping_tables.page(grouping) == grouping


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_in_the_documentation_validate(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "yaml")):
        if page.name == "recipe.md":  # presets: parts of a recipe, tested with it
            continue
        recipe = build_recipe(text, name=f"{page.name}, block {number}", folder=tmp_path)
        assert len(recipe.languages) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documentation_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    monkeypatch.chdir(tmp_path)
    if REFERENCE.is_dir():
        shutil.copy(REFERENCE / "bloom-560m_last3_sim_fine.csv", "similarity.csv")
        shutil.copy(REFERENCE / "delta-norms-bloom-560m.json", "norms.json")
    if "my-base" in page.read_text(encoding="utf-8"):
        save_base(Path("my-base"))
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if not line.startswith("$ sprachbund "):
                continue
            arguments = shlex.split(line.removeprefix("$ sprachbund "))
            if {"similarity.csv", "norms.json"} & set(arguments) and not REFERENCE.is_dir():
                continue
            if arguments[0] in ("run", "probe"):
                arguments += [part for value in SMALL for part in ("--set", value)]
            said = cli(*arguments)
            assert said.status == 0, f"{line}\n{said.err}"


def test_the_code_in_getting_started_runs(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(ROOT / "docs/getting-started.md", "python")
    code = code.replace("runs/demo/model", str(finished / "model")).replace("spa_Latn", "ita_Latn")
    exec(compile(code, "getting-started.md", "exec"), {})
    assert "sprachbund.modeling" in sys.modules


def test_the_code_about_new_languages_runs(finished: Path, tmp_path: Path) -> None:
    from sprachbund.adaptation.path import add_language
    from sprachbund.modeling.base import load_model, load_tokenizer

    model, tokenizer = load_model(finished / "model", dtype="float32"), load_tokenizer(finished / "model")
    add_language(model, ["mam_Latn"], [np.arange(300).repeat(30)], kind="full", parent=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (code,) = blocks(ROOT / "docs/adapt.md", "python")
    found: dict[str, Any] = {}
    exec(compile(code.replace("runs/bible-18-mam/model", str(tmp_path)), "adapt.md", "exec"), found)
    assert found["group"] == model.config.num_groups
    assert found["taken"].shape == found["batch"]["input_ids"].shape


def test_the_options_of_adapt_are_those_of_its_page() -> None:
    adapt: Any = get_command(app)
    options = {name for part in adapt.commands["adapt"].params for name in part.opts if name.startswith("--")}
    named = set(re.findall(r"`(--[a-z-]+)", (ROOT / "docs/adapt.md").read_text(encoding="utf-8")))
    assert options - {"--language"} <= named
    assert named <= options


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("preset", ["default", "paper", "native"])
def test_examples_validate_under_every_preset(path: Path, preset: str) -> None:
    recipe = load_recipe(path, overrides=[f"preset={preset}"])
    assert recipe.preset == preset
    assert all(source.file is None or Path(source.file).is_absolute() for source in recipe.languages.values())
