"""The curse of multilinguality itself: what the first languages lose as others join, at equal tokens per language.

After Conneau et al. 2020 (*Unsupervised Cross-lingual Representation Learning at Scale*, section 5.2), who add
languages to one model at a fixed budget; here every language keeps its own tokens, so that what changes is only who
shares the parameters. One tokenizer, that of all languages, serves every number of them: perplexities and texts are
then the same, whoever else is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sprachbund.compare.table import level
from sprachbund.errors import InputError
from sprachbund.files import write_text
from sprachbund.recipe import Groups, Mixture, Recipe, Train
from sprachbund.recipe_file import explain

if TYPE_CHECKING:
    from sprachbund.report.drawing import Picture

SCHEMA = 1


def curse(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    keep: bool = False,
    methods: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare the methods of a recipe on its first languages, then on more; return what FOLDER/curse.json holds.

    `recipe.compare.languages` says how many languages; each number is a comparison of its own in FOLDER/<number>, so
    that a rerun does only what is missing. The result has the `fixed` languages (those of the smallest number) and
    under `counts` the result of each comparison; FOLDER/curse.svg shows it.

    Raises:
        InputError: a number of languages that the recipe does not have, or a recipe that does not hold for one.
    """
    from sprachbund.compare.engine import compare
    from sprachbund.run.data import Corpora, make_tokenizer
    from sprachbund.run.directory import open_run

    counts = language_counts(recipe)
    tokenizer: Path | None = None
    if recipe.base.scratch is not None and recipe.base.scratch.tokenizer is None:
        run = open_run(recipe, folder / "shared")
        try:
            make_tokenizer(run, Corpora(recipe))
        finally:
            run.close()
        tokenizer = (folder / "shared/tokenizer").resolve()
    results = {
        str(count): compare(
            restricted(recipe, count, tokenizer=tokenizer),
            folder / str(count),
            workers=workers,
            keep=keep,
            methods=methods,
        )
        for count in counts
    }
    result = {"schema": SCHEMA, "recipe": recipe.name, "fixed": recipe.tags()[: counts[0]], "counts": results}
    write_text(folder / "curse.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "curse.svg", curse_figure(result).standalone())
    return result


def language_counts(recipe: Recipe) -> list[int]:
    """Return the numbers of languages to compare, ascending; raises InputError for those the recipe cannot have."""
    counts = sorted(set((recipe.compare.languages if recipe.compare else None) or ()))
    num_languages = len(recipe.languages)
    if len(counts) < 2 or counts[0] < 2 or counts[-1] > num_languages:
        raise InputError(
            f"compare.languages: found {counts}; give two or more numbers of languages from 2 to {num_languages}, the "
            "number in this recipe"
        )
    return counts


def restricted(recipe: Recipe, count: int, *, tokenizer: Path | None = None) -> Recipe:
    """Return the recipe for its first `count` languages, each with the tokens that it has among all of them.

    Steps stay and batches shrink, since a language should also be met as often: with full batches three languages would
    get a tenth of the updates. Links, weights and shares of languages that are out go; there are at most as many groups
    as languages.

    Raises:
        InputError: what is left is no valid recipe.
    """
    tags, share = recipe.tags()[:count], count / len(recipe.languages)
    if recipe.compare is None:
        raise InputError("the recipe has no section compare; give one with languages, the numbers of them to compare")
    update: dict[str, Any] = {
        "name": f"{recipe.name}-{count}",
        "languages": {tag: recipe.languages[tag] for tag in tags},
        "compare": recipe.compare.model_copy(update={"languages": None}),
        "groups": _groups_of(recipe.groups, tags),
        "mixture": _mixture_of(recipe.mixture, tags),
        "train": _train_of(recipe.train, share),
    }
    if (scratch := recipe.base.scratch) is not None:
        tokens, tokens_per_step = _tokens_of(scratch.tokens, scratch.tokens_per_step, share, recipe.train.block_size)
        smaller: dict[str, Any] = {"tokens": tokens, "tokens_per_step": tokens_per_step}
        if tokenizer is not None:
            smaller["tokenizer"] = str(tokenizer)
        update["base"] = recipe.base.model_copy(update={"scratch": scratch.model_copy(update=smaller)})
    try:
        return Recipe.model_validate(recipe.model_copy(update=update).model_dump())
    except ValidationError as error:
        raise InputError(explain(error, f"compare.languages: {count} of {recipe.name}")) from None


def _tokens_of(tokens: int, tokens_per_step: int, share: float, block_size: int) -> tuple[int, int]:
    """Return (tokens, tokens per step) of a share of the languages: whole sequences, and as near as steps allow."""
    batch = max(round(tokens_per_step * share / block_size), 1) * block_size
    return max(round(tokens * share / batch), 1) * batch, batch


def _train_of(train: Train, share: float) -> Train:
    tokens, batch = _tokens_of(train.tokens, train.tokens_per_step, share, train.block_size)
    most = min(train.micro_batch_tokens or batch, batch)
    micro = next(size for size in range(most, 0, -train.block_size) if batch % size == 0)
    update = {"tokens": tokens, "tokens_per_step": batch, "micro_batch_tokens": micro}
    return train.model_copy(update=update)


def _groups_of(groups: Groups, tags: Sequence[str]) -> Groups:
    def left(links: Sequence[Sequence[str]]) -> list[list[str]]:
        return [inside for link in links if len(inside := [tag for tag in link if tag in tags]) > 1]

    update: dict[str, Any] = {"must_link": left(groups.must_link), "cannot_link": left(groups.cannot_link)}
    if isinstance(groups.weights, dict):
        update["weights"] = {tag: groups.weights[tag] for tag in tags}
    if isinstance(groups.count, int):
        update["count"] = min(groups.count, len(tags))
    return groups.model_copy(update=update)


def _mixture_of(mixture: Mixture, tags: Sequence[str]) -> Mixture:
    if mixture.shares is None:
        return mixture
    return mixture.model_copy(update={"shares": {tag: mixture.shares[tag] for tag in tags}})


def fixed_perplexity(result: dict[str, Any], method: str, *, routing: str | None = None) -> dict[int, float]:
    """Return the perplexity after burn-in of the fixed languages by number of languages.

    Geometric over languages, then a mean over seeds; under the method's headline routing, or another. A number of
    languages at which the method was not trained is not there.
    """
    found = {}
    for count, comparison in result["counts"].items():
        entry = comparison["methods"].get(method)
        if entry is None:
            continue
        tests = [run["test"][routing or entry["headline"]] for run in entry["runs"]]
        found[int(count)] = fmean(level(test, languages=result["fixed"]) for test in tests)
    return found


def curse_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of a table: what the fixed languages have at each number of languages, per method.

    After the perplexities come the changes of all others against `dense`, where that was trained.
    """
    methods = _methods(result)
    levels = {method: fixed_perplexity(result, method) for method in methods}
    rivals = [method for method in methods if method != "dense" and "dense" in levels]
    rows = []
    for count in sorted(map(int, result["counts"])):
        cells = [f"{levels[method][count]:.2f}" if count in levels[method] else "" for method in methods]
        for method in rivals:
            both = count in levels[method] and count in levels["dense"]
            cells.append(f"{levels[method][count] / levels['dense'][count] - 1:+.1%}" if both else "")
        rows.append([str(count), *cells])
    return ["languages", *methods, *(f"{method} vs dense" for method in rivals)], rows


def _methods(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for comparison in result["counts"].values() for name in comparison["methods"]))


def print_curse(result: dict[str, Any]) -> None:
    """Print that table on the terminal."""
    from rich.table import Table

    from sprachbund.cli.summary import print_table

    heads, rows = curse_table(result)
    printed = Table(title=f"perplexity after burn-in of {', '.join(result['fixed'])} as others join")
    for head in heads:
        printed.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        printed.add_row(*row)
    print_table(printed)


def curse_figure(result: dict[str, Any]) -> Picture:
    """Draw what the fixed languages pay as others join: their perplexity, and its change against the fewest languages.

    One line per method over the number of languages: dense in its colour, the others in ours, told apart by markers.
    """
    from matplotlib.figure import Figure

    from sprachbund.report.drawing import picture, style

    counts = sorted(map(int, result["counts"]))
    lines = {name: fixed_perplexity(result, name) for name in _methods(result)}
    with style("curse"):
        figure = Figure(figsize=(6.8, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, (name, values) in enumerate(lines.items()):
            first = values[min(values)]
            left.plot(list(values), list(values.values()), label=name, **_look(name, i))
            right.plot(list(values), [100 * (value / first - 1) for value in values.values()], **_look(name, i))
        for axes, what in ((left, "perplexity after burn-in"), (right, f"change since {counts[0]} languages, %")):
            axes.set_xticks(counts)
            axes.set_xlabel("languages trained together")
            axes.set_ylabel(what)
            axes.grid(visible=True, axis="y")
        figure.legend(loc="outside upper left", ncols=4, fontsize=9)
        return picture(
            figure,
            name="curse",
            title=f"What {len(result['fixed'])} languages pay as others join",
            description="Two panels over the number of languages that share a model, one line per method: perplexity "
            f"of {', '.join(result['fixed'])}, and its change against the fewest languages in percent.",
        )


def _look(name: str, place: int) -> dict[str, Any]:
    from sprachbund.report.drawing import DENSE, OURS

    dense = name.startswith("dense")
    style = (0, (5, 2)) if dense else "-"
    return {"color": DENSE if dense else OURS, "linestyle": style, "marker": "oDs^vP*X"[place % 8], "markersize": 5}
