"""The verb `adapt`: new languages for a model that exists."""

import json
from pathlib import Path
from typing import Annotated

import typer

from sprachbund.cli.options import JsonOption
from sprachbund.parallel import refuse_several
from sprachbund.recipe.adapt import Gate, PathChoice
from sprachbund.recipe.text import BadLinePolicy


def adapt(
    model: Annotated[str, typer.Argument(help="A run, an adaptation, a mixture's folder, or a Hub id.")],
    language: Annotated[
        list[str], typer.Option("--language", help="TAG=CORPUS of a new language (repeatable).", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)],
    path: Annotated[PathChoice, typer.Option("--path", help="What a new language owns.")] = "full",
    gate: Annotated[Gate, typer.Option("--gate", help="How text that nothing is said about finds it.")] = "mixture",
    prior: Annotated[
        float | None, typer.Option("--prior", help="mixture: probability of each path before any token; default 0.001.")
    ] = None,
    advantage: Annotated[
        float | None, typer.Option("--advantage", help="counts: nats by which a path must be ahead; default 5.")
    ] = None,
    together: Annotated[
        int | None, typer.Option("--together", min=1, help="So many paths for all, similar languages in one.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="A language of the model whose path or group to start from.")
    ] = None,
    join: Annotated[
        str | None, typer.Option("--join", help="Train the group of this language, or of this number, further.")
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option("--protect", help="TAG=CORPUS of a language that the model has, to measure it; a run names its."),
    ] = None,
    on_bad_line: Annotated[
        BadLinePolicy, typer.Option("--on-bad-line", help="A line of these corpora that gives no document.")
    ] = "error",
    width: Annotated[int | None, typer.Option("--width", min=1, help="Units of each of the path's experts.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Rank of its changes of the attention.")] = None,
    extend_vocab: Annotated[
        int | None, typer.Option("--extend-vocab", min=1, help="Tokens of its own, from merges of its text.")
    ] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Training tokens; default two passes.")] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", min=1, help="Default 8 blocks.", show_default=False)
    ] = None,
    block_size: Annotated[
        int | None, typer.Option("--block-size", min=8, help="Default that of the run.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Default that of the run.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Default that of the run.")] = None,
    max_forgetting: Annotated[
        float, typer.Option("--max-forgetting", min=0, help="Share of its perplexity that a language may lose.")
    ] = 0.001,
    force: Annotated[
        bool, typer.Option("--force", help="Train also where the text seems to be of another script.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Take other settings in an existing folder; compute what changes anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Teach a trained mixture new languages, each on a path of its own, and measure what the others lose.

    The same command continues what was broken off. Exit status 3: done, but a language lost more than allowed.

    Example: `sprachbund adapt runs/bible-18 --language mam_Latn=texts/mam.jsonl --out runs/bible-18-mam`
    """
    from sprachbund.run.adapt_settings import complete, parse_languages

    refuse_several("adapt")
    settings = complete(
        model,
        parse_languages(language, option="--language", on_bad_line=on_bad_line),
        protect=parse_languages(protect or [], option="--protect", on_bad_line=on_bad_line),
        path=path,
        gate=gate,
        prior=prior,
        advantage=advantage,
        together=together,
        start=start,
        join=join,
        width=width,
        rank=rank,
        extend_vocab=extend_vocab,
        tokens=tokens,
        tokens_per_step=tokens_per_step,
        block_size=block_size,
        learning_rate=learning_rate,
        seed=seed,
        max_forgetting=max_forgetting,
        force=force,
    )
    from sprachbund.cli.adapt_table import print_adaptation
    from sprachbund.evaluation.forgetting import forgetting_warning
    from sprachbund.run.adapting import adapt as work

    facts = work(settings, out, update=update)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        print_adaptation(facts)
        typer.echo(f"{out}/model, {out}/adapt.json, {out}/report.html")
    if warning := forgetting_warning(facts["forgetting"]):
        typer.echo(f"sprachbund: {warning}", err=True)
        raise typer.Exit(3)
