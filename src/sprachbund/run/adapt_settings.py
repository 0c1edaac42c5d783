"""The settings of an adaptation, completed from the run or adaptation that the model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sprachbund.errors import InputError
from sprachbund.files import ADAPTATION
from sprachbund.languages import canonical
from sprachbund.recipe import Adaptation, Recipe, Source
from sprachbund.recipe.adapt import corpus
from sprachbund.recipe.text import BadLinePolicy
from sprachbund.run.directory import read_adaptation, read_run

BLOCKS_PER_STEP = 8  # a single language needs small steps and many of them
LEARNING_RATE = 1e-4  # where no run says what its model was trained at
BLOCK_SIZE = 2048


def parse_languages(given: list[str], *, option: str, on_bad_line: BadLinePolicy = "error") -> dict[str, Source]:
    """Return {tag: source} from TAG=CORPUS words; raises InputError, naming the option, for what is none.

    `on_bad_line` holds for all of them.
    """
    found: dict[str, Source] = {}
    for word in given:
        tag, equals, text = word.partition("=")
        if not equals or not tag or not text:
            raise InputError(
                f"{option} {word}: give TAG=CORPUS, such as mam_Latn=texts/mam.jsonl (CORPUS: a .jsonl, .txt or "
                ".parquet file, cldr:LOCALE, or hub:DATASET[:CONFIGURATION])"
            )
        tag = canonical(tag)
        if tag in found:
            raise InputError(f"{option} {word}: {tag} is given twice; give each language once")
        found[tag] = corpus(text).model_copy(update={"on_bad_line": on_bad_line})
    return found


def complete(
    source: str, languages: Mapping[str, Source], *, protect: Mapping[str, Source] | None = None, **given: Any
) -> Adaptation:
    """Return an adaptation's settings: those `given` that are not None, then those of the model's run, then our own.

    Of a run, and of an adaptation, the languages that the model has are protected: their corpora are known. Raises
    InputError for settings that cannot be, and for languages that are given as new and as known.
    """
    known = _of_source(source)
    values = {**known, **{name: value for name, value in given.items() if value is not None}}
    values["protect"] = {**known.get("protect", {}), **(protect or {})}
    values.setdefault("block_size", BLOCK_SIZE)
    values.setdefault("tokens_per_step", BLOCKS_PER_STEP * values["block_size"])
    values.setdefault("learning_rate", LEARNING_RATE)
    if both := [tag for tag in languages if tag in values["protect"]]:
        raise InputError(
            f"--language {both[0]}: the model has this language already; --join {both[0]} with a new language's text "
            "trains its group further, `sprachbund run` trains it anew"
        )
    try:
        return Adaptation(source=source, languages=dict(languages), **values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = str(first["msg"]).removeprefix("Value error, ")
        where = f"{place}: " if place else ""
        raise InputError(f"{where}{said[:1].lower()}{said[1:]}; see `sprachbund adapt --help`") from None


def _of_source(source: str) -> dict[str, Any]:
    """Return the settings that the folder of a run or of an adaptation decides; none for other models."""
    folder = Path(source).expanduser()
    if (folder / "recipe.yaml").is_file():
        recipe: Recipe = read_run(folder)
        return {
            "protect": recipe.languages,
            "block_size": recipe.train.block_size,
            "learning_rate": recipe.train.learning_rate,
            "dtype": recipe.train.dtype,
            "splits": recipe.splits,
            "evaluate": recipe.evaluate,
            "seed": recipe.seed,
        }
    if (folder / ADAPTATION).is_file():
        before = read_adaptation(folder)
        kept = ("block_size", "learning_rate", "dtype", "splits", "evaluate", "seed")
        return {"protect": {**before.protect, **before.languages}, **{name: getattr(before, name) for name in kept}}
    return {}
