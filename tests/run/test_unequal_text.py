"""Languages with unequal text, and a base from scratch on a given tokenizer: what the first stages make of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sprachbund.errors import InputError
from sprachbund.recipe_file import build_recipe
from sprachbund.run.data import Corpora, make_tokenizer, pack_corpora, source_state
from sprachbund.run.directory import Run, open_run


def opened(recipe: Path, folder: Path, *overrides: str) -> Run:
    built = build_recipe(recipe.read_text(encoding="utf-8"), name="r", folder=recipe.parent, overrides=overrides)
    return open_run(built, folder, update=True)


@pytest.fixture
def whole(tiny: Path, tmp_path: Path) -> Iterator[Run]:
    run = opened(tiny, tmp_path / "whole")
    yield run
    run.close()


def test_what_is_kept_is_all_that_is_packed_and_counted_and_dev_and_test_stay(
    tiny: Path, whole: Run, tmp_path: Path
) -> None:
    source = '{"file": "corpora/ita.jsonl", "keep": 0.25}'
    cut = opened(tiny, tmp_path / "cut", f"languages.ita_Latn={source}")
    all_text, kept_text = Corpora(whole.recipe), Corpora(cut.recipe)
    tokenizer = make_tokenizer(whole, all_text)
    all_packed = pack_corpora(whole, all_text, tokenizer)
    kept_packed = pack_corpora(cut, kept_text, tokenizer)
    cut.close()
    sizes = [packed.train["ita_Latn"].num_bytes for packed in (all_packed, kept_packed)]
    assert sizes[1] == pytest.approx(0.25 * sizes[0], rel=0.15)
    assert sizes[1] == sum(len(text.encode()) for text in kept_text.documents["ita_Latn"].train)
    for name in ("dev", "test"):
        assert getattr(kept_text.documents["ita_Latn"], name) == getattr(all_text.documents["ita_Latn"], name)
    assert kept_packed.train["ron_Latn"].digest == all_packed.train["ron_Latn"].digest
    # the share belongs to what results are computed from; without it nothing has changed
    assert kept_text.states["ita_Latn"]["keep"] == 0.25
    assert "keep" not in all_text.states["ita_Latn"]
    assert source_state(cut.recipe.languages["ron_Latn"]) == all_text.states["ron_Latn"]


def test_a_base_from_scratch_takes_a_given_tokenizer(tiny: Path, whole: Run, tmp_path: Path) -> None:
    make_tokenizer(whole, Corpora(whole.recipe))
    given = tmp_path / "whole/tokenizer"
    run = opened(tiny, tmp_path / "other", f"base.scratch.tokenizer={json.dumps(str(given))}", "seed=5")
    corpora = Corpora(run.recipe)
    tokenizer = make_tokenizer(run, corpora)
    assert "documents" not in corpora.__dict__, "no text is read where no tokenizer is trained"
    own = json.loads((tmp_path / "other/tokenizer/tokenizer.json").read_text())
    assert own == json.loads((given / "tokenizer.json").read_text())
    assert len(tokenizer) == 300
    run.close()


def test_the_folder_of_a_tokenizer_is_seen_from_the_recipe(tiny: Path, tmp_path: Path) -> None:
    run = opened(tiny, tmp_path / "run", "base.scratch.tokenizer=shared/tokenizer")
    assert run.recipe.base.scratch is not None
    assert run.recipe.base.scratch.tokenizer == str(tiny.parent / "shared/tokenizer")
    with pytest.raises(InputError, match=r"base: the tokenizer of .*shared/tokenizer' cannot be loaded"):
        make_tokenizer(run, Corpora(run.recipe))
    run.close()
