"""The same comparison on more and more languages: who gets how many tokens, and what is drawn of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from comparisons import TAGS, comparison, dense, entry, even

from sprachbund.compare.curse import (
    curse,
    curse_figure,
    curse_table,
    fixed_perplexity,
    language_counts,
    print_curse,
    restricted,
)
from sprachbund.errors import InputError
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import load_recipe

TOKENS = (
    "train.tokens=2560",
    "train.tokens_per_step=256",
    "base.scratch.tokens=2048",
    "base.scratch.tokens_per_step=128",
)


def recipe(tiny: Path, languages: Sequence[int], *overrides: str) -> Recipe:
    compare = json.dumps({"languages": list(languages), "methods": ["dense", "default"]})
    return load_recipe(tiny, overrides=[f"compare={compare}", *TOKENS, *overrides])


def test_every_language_has_the_same_tokens_in_the_same_steps_whoever_else_is_there(tiny: Path) -> None:
    whole = recipe(tiny, [2, 4])
    half = restricted(whole, 2)
    assert half.tags() == whole.tags()[:2]
    assert (half.train.tokens, half.train.tokens_per_step, half.train.num_steps) == (1280, 128, whole.train.num_steps)
    assert half.base.scratch is not None
    assert (half.base.scratch.tokens, half.base.scratch.tokens_per_step) == (1024, 64)
    assert half.train.micro_batch_tokens == 128
    assert half.name == "tiny-2"
    assert half.compare is not None
    assert half.compare.languages is None
    assert restricted(whole, 4).train.tokens == whole.train.tokens


def test_a_step_of_whole_sequences_still_gives_the_tokens_that_belong_to_the_languages(tiny: Path) -> None:
    # 5 sequences a step of 4 languages: 3 languages would have 3.75 of them, so 4, in fewer steps
    three = restricted(recipe(tiny, [2, 4], "train.tokens=3200", "train.tokens_per_step=160"), 3)
    assert three.train.tokens_per_step == 4 * 32
    assert three.train.tokens == pytest.approx(3200 * 3 / 4, abs=4 * 32 / 2)


def test_a_micro_batch_still_divides_the_step(tiny: Path) -> None:
    three = restricted(recipe(tiny, [2, 4], "train.micro_batch_tokens=128"), 3)
    assert three.train.tokens_per_step == 192
    assert three.train.micro_batch_tokens == 96


def test_what_names_other_languages_goes(tiny: Path) -> None:
    links = {"must_link": [["ron", "ita"], ["ita", "rus"]], "cannot_link": [["ron", "ita", "ukr"]]}
    weights = {"ron": 1.0, "ita": 2.0, "rus": 1.0, "ukr": 1.0}
    groups = json.dumps({**links, "weights": weights, "count": 3})
    shares = json.dumps({"method": "given", "shares": weights})
    two = restricted(recipe(tiny, [2, 4], f"groups={groups}", f"mixture={shares}"), 2)
    assert two.groups.must_link == [["ron_Latn", "ita_Latn"]]
    assert two.groups.cannot_link == [["ron_Latn", "ita_Latn"]]
    assert two.groups.weights == {"ron_Latn": 1.0, "ita_Latn": 2.0}
    assert two.mixture.shares == {"ron_Latn": 1.0, "ita_Latn": 2.0}
    assert two.groups.count == 2


def test_one_tokenizer_is_made_of_all_languages_and_every_number_of_them_is_a_comparison(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Recipe, Path, dict[str, Any]]] = []

    def stand_in(recipe: Recipe, folder: Path, **how: Any) -> dict[str, Any]:
        asked.append((recipe, folder, how))
        return comparison({"dense": dense(even(50.0, recipe.tags()))}, tags=recipe.tags())

    monkeypatch.setattr("sprachbund.compare.engine.compare", stand_in)
    result = curse(recipe(tiny, [4, 2]), tmp_path / "out", workers=1, methods=["dense"])
    assert [len(one.languages) for one, _, _ in asked] == [2, 4]
    assert [folder for _, folder, _ in asked] == [tmp_path / "out/2", tmp_path / "out/4"]
    assert all(how == {"workers": 1, "keep": False, "methods": ["dense"]} for _, _, how in asked)
    tokenizers = {one.base.scratch.tokenizer for one, _, _ in asked if one.base.scratch is not None}
    assert tokenizers == {str(tmp_path / "out/shared/tokenizer")}
    assert (tmp_path / "out/shared/tokenizer/tokenizer.json").is_file()
    assert json.loads((tmp_path / "out/curse.json").read_text()) == result
    assert result["fixed"] == ["ron_Latn", "ita_Latn"]
    assert list(result["counts"]) == ["2", "4"]
    ElementTree.parse(tmp_path / "out/curse.svg")


@pytest.mark.parametrize("numbers", [[3], [3, 5]])
def test_numbers_of_languages_that_the_recipe_does_not_have(tiny: Path, numbers: list[int]) -> None:
    with pytest.raises(InputError, match=rf"compare.languages: found \{numbers}.* from 2 to 4"):
        language_counts(recipe(tiny, numbers))


def test_a_recipe_that_does_not_hold_for_fewer_languages_is_one_sentence(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"^compare.languages: 2 of tiny: .*layerwise = 6 experts in all; 2 groups"):
        restricted(recipe(tiny, [2, 4], "layers={layerwise: 6}", "groups.count=4"), 2)


@pytest.fixture
def two_counts() -> dict[str, Any]:
    first, later = TAGS[:2], TAGS
    counts = {
        "2": comparison({"dense": dense(even(20.0, first)), "default": entry(even(18.0, first))}, tags=first),
        "4": comparison({"dense": dense({**even(99.0, later), **even(30.0, first)})}, tags=later),
    }
    return {"schema": 1, "recipe": "small", "fixed": list(first), "counts": counts}


def test_only_the_first_languages_are_watched(two_counts: dict[str, Any]) -> None:
    # the mean over the two seeds, of which the second is a tenth worse
    assert fixed_perplexity(two_counts, "dense") == pytest.approx({2: 21.0, 4: 31.5})
    assert fixed_perplexity(two_counts, "default") == pytest.approx({2: 18.9})
    assert fixed_perplexity(two_counts, "default", routing="top_k") == pytest.approx({2: 18.9 * 1.5})


def test_the_figure_has_a_line_per_method_in_both_panels(two_counts: dict[str, Any]) -> None:
    text = curse_figure(two_counts).standalone()
    assert text == curse_figure(two_counts).standalone(), "the same in every run"
    said = [
        "".join(element.itertext()) for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert {"dense", "default", "change since 2 languages, %", "languages trained together"} <= set(said)


def test_the_table_compares_with_dense_where_both_were_trained(
    two_counts: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    heads, rows = curse_table(two_counts)
    assert heads == ["languages", "dense", "default", "default vs dense"]
    assert rows == [["2", "21.00", "18.90", "-10.0%"], ["4", "31.50", "", ""]]
    print_curse(two_counts)
    assert "-10.0%" in capsys.readouterr().out
