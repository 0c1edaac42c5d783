"""Which run a model belongs to, and what its routings are worth on that run's development text."""

import math
import shutil
from pathlib import Path
from statistics import fmean

import pytest

from sprachbund import evaluation
from sprachbund.errors import InputError
from sprachbund.evaluation.metrics import ROUTINGS
from sprachbund.modeling.base import load_model, load_tokenizer, tokenize_with
from sprachbund.run.data import Corpora
from sprachbund.run.directory import read_run
from sprachbund.run.exporting import measure_routings, model_and_run, warning


def test_a_model_is_found_in_its_run_and_the_run_by_its_model(finished: Path, tmp_path: Path) -> None:
    model = finished / "model"
    assert model_and_run(finished) == (model, finished)
    assert model_and_run(model) == (model, finished.resolve())
    shutil.copytree(model, tmp_path / "model")
    assert model_and_run(tmp_path / "model") == (tmp_path / "model", None)
    (tmp_path / "recipe.yaml").write_text("")
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match=r"has no model yet; finish it with `sprachbund run "):
        model_and_run(tmp_path)


def test_routings_are_compared_on_development_text(finished: Path) -> None:
    found = measure_routings(finished / "model", finished)
    assert found is not None
    assert tuple(found) == ROUTINGS
    recipe, tokenizer = read_run(finished), load_tokenizer(finished / "model")
    model = load_model(finished / "model", dtype="float32").eval()
    nats = []
    for tag, documents in Corpora(recipe).documents.items():
        text = evaluation.test_text(
            documents.dev, tokenize_with(tokenizer), separator=tokenizer.eos_token_id, max_tokens=recipe.evaluate.tokens
        )
        scores = evaluation.score_language(
            model, text, window=32, burn_in=8, batch_tokens=512, routing="prefix", group=0
        )
        assert documents.dev != documents.test
        nats.append(math.log(scores.perplexity))
        assert model.config.groups[tag] in (0, 1)
    assert found["prefix"] == pytest.approx(math.exp(fmean(nats)))


def test_without_text_nothing_is_measured_and_why_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "recipe.yaml", tmp_path)
    recipe = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(recipe.replace("corpora/", "gone/"), encoding="utf-8")
    assert measure_routings(finished / "model", tmp_path) is None
    assert "the routings cannot be compared on development text: languages." in capsys.readouterr().err


def test_a_router_that_costs_more_than_a_percent_is_worth_a_warning() -> None:
    assert warning({"top_k": 10.09, "prefix": 10.0, "group": 9.0}) is None
    said = warning({"top_k": 10.3, "prefix": 10.0, "group": 9.0})
    assert said is not None
    assert said.startswith(
        "warning: this engine's routing, top_k, is +3.0% in perplexity against prefix on the dev text"
    )
