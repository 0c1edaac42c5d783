"""`sprachbund adapt`: new languages for a model that exists, each with a path of its own, and what that costs others.

A folder of stage results, as a run is: nearest groups -> paths trained -> before and after -> report. An adaptation
that was killed continues where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from sprachbund import __version__
from sprachbund.adaptation.newcomer import new_tags
from sprachbund.adaptation.path import dense_size
from sprachbund.evaluation.forgetting import forgetting
from sprachbund.export.card import write_card
from sprachbund.export.source import read_mixture_config
from sprachbund.files import EXTENSIONS, model_of, write_text
from sprachbund.modeling.base import check_arithmetic, quiet
from sprachbund.modeling.checkpoint import fetch
from sprachbund.modeling.language_path import all_groups, path_specs
from sprachbund.progress import say
from sprachbund.recipe import Adaptation
from sprachbund.report import write_adapt_report
from sprachbund.run.adapt_checks import newcomer_warnings
from sprachbund.run.adapt_scores import MODES, as_numbers, old_scores, score, under_groups
from sprachbund.run.adapt_work import Work, shared_paths
from sprachbund.run.data import source_state
from sprachbund.run.directory import open_adaptation, read_json
from sprachbund.run.learning import save_model
from sprachbund.run.path_training import (
    check_prior,
    make_place,
    named_group,
    place_of,
    plan_of,
    train_path,
    trained_size,
)
from sprachbund.training.checkpoints import last_checkpoint, step_of

SCHEMA = 1
RESULT = "adapt.json"
FINISHED = "finished.json"  # in the folder of steps: all is trained, what remains is to move the model


def adapt(settings: Adaptation, out: Path, *, update: bool = False) -> dict[str, Any]:
    """Give a model new languages and write it, with what that did to all languages, to a folder.

    OUT has model/ (the model, its tokenizer and card), adapt.json (what is returned), report.html, adapt.yaml (the
    settings), events.jsonl and stages/. The same call continues what was broken off; with `update` a folder takes other
    settings. No tensor of the old model changes.

    Raises InputError, before anything is trained, for a model that is no mixture of this package, a language that it
    has, texts that cannot be used, and a folder of other settings.
    """
    quiet()
    set_seed(settings.seed)
    check_arithmetic(settings.dtype)
    source = model_of(fetch(settings.source))
    config = read_mixture_config(source, purpose="adapt")
    new_tags(config, list(settings.languages))
    named_group(config, settings)
    check_prior(config, settings)
    place = open_adaptation(settings, out, update=update)
    try:
        work = Work(place, source, config)
        nearest = _nearest(work)
        _train(work, nearest)
        _evaluate(work, nearest)
        return _report(work)
    finally:
        place.close()


def _nearest(work: Work) -> dict[str, list[dict[str, Any]]]:
    """Score the new texts under every group, and look whether they are what they are said to be.

    Returns the table of each language, the best group first.
    """

    def compute() -> Mapping[str, Any]:
        model = work.load()
        tables = {tag: under_groups(model, text, work.settings) for tag, text in work.texts.items()}
        warnings = {tag: newcomer_warnings(work, model, tag, tables[tag]) for tag in work.texts}
        for said in (said for of in warnings.values() for said in of):
            say(f"warning: {said}")
        return {"tables": tables, "warnings": warnings}

    scored = [work.settings.evaluate.model_dump(mode="json"), work.settings.block_size]
    tables: dict[str, list[dict[str, Any]]] = work.place.stage("nearest", [work.marks(), scored], [], compute)["tables"]
    return tables


def _train(work: Work, nearest: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Train a path for each language, one after the other, into OUT/model."""
    settings, place = work.settings, work.place

    def compute() -> Mapping[str, Any]:
        folder, facts, finished = work.source, list[dict[str, Any]](), work.steps / FINISHED
        done = read_json(finished)
        moved = done and not (work.steps / str(len(done["paths"]) - 1)).exists()
        if moved and place.path("model").is_dir():  # killed before this could be recorded
            return done
        for number, members in enumerate(shared_paths(work)):
            step = work.steps / str(number)
            if not step.is_dir():
                _train_one(work, folder, members, nearest, number)
            facts.append(read_json(work.steps / f"{number}.json"))
            folder = step
        for origin in (work.source / EXTENSIONS, work.steps / EXTENSIONS):
            if origin.is_dir():
                shutil.copytree(origin, folder / EXTENSIONS, dirs_exist_ok=True)
        write_text(finished, json.dumps({"paths": facts}))
        shutil.rmtree(place.path("model"), ignore_errors=True)
        folder.rename(place.path("model"))
        return {"paths": facts}

    # the texts and the model are in the fingerprint of "nearest"
    unrelated = {"source", "languages", "protect", "evaluate", "max_forgetting", "checkpoints"}
    inputs = [list(settings.languages), settings.model_dump(mode="json", exclude=unrelated)]
    facts = place.stage("train", inputs, ["model"], compute, after=["nearest"], precious=True)
    for left in place.folder.glob("steps-*"):  # only now that the stage is recorded as done
        shutil.rmtree(left)
    return facts


def _train_one(
    work: Work, folder: Path, members: Sequence[str], nearest: Mapping[str, list[dict[str, Any]]], number: int
) -> None:
    """Add a path to the model of a folder, train it, and write the model, and what it took, to the folder of steps."""
    settings, place = work.settings, work.place
    texts = {tag: work.texts[tag] for tag in members}
    model = work.load(folder)
    dtype = str(model.config.dtype or "float32").removeprefix("torch.")
    chosen = place_of(work.config, settings, nearest[members[0]])
    extension = work.extension(members)
    model, group_id = make_place(
        model,
        members,
        [np.asarray(text.stream) for text in texts.values()],
        chosen,
        settings,
        pieces=() if extension is None else extension.pieces,
    )
    model.config.path_gate, model.config.path_prior = settings.gate, settings.prior
    model.config.path_advantage = settings.advantage
    packed = {tag: text.packed if extension is None else work.repacked(tag, extension) for tag, text in texts.items()}
    plan = plan_of(settings, settings.tokens or 2 * sum(corpus.num_tokens for corpus in packed.values()))
    size = trained_size(model, group_id, router=plan.stages[0].router_loss > 0)
    checkpoints = work.steps / f"checkpoints-{number}"
    resume = last_checkpoint(checkpoints)
    place.forget_events(f"adapt-{number}", after_step=step_of(resume) if resume else 0)
    begun = time.monotonic()
    result = train_path(
        model,
        group_id,
        packed,
        plan,
        folder=checkpoints,
        log=lambda event, **values: place.log(f"adapt-{number}", event, **values),
        block_size=settings.block_size,
    )
    facts = {
        "languages": list(members),
        "group_id": group_id,
        "parent": chosen.parent,
        "start": settings.start,
        "joined": chosen.join,
        "tokens": plan.num_steps * settings.tokens_per_step,
        "tokens_per_second": round(result.tokens_per_second, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "parameters": size,
        "share_of_dense": size / dense_size(model.config),
        "extension": 0 if extension is None else len(extension.tokens),
    }
    write_text(work.steps / f"{number}.json", json.dumps(facts))
    save_model(model, work.tokenizer, work.steps / str(number), dtype=dtype)


def _evaluate(work: Work, nearest: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Score old and new languages before and after, under every mode."""
    settings = work.settings

    def compute() -> Mapping[str, Any]:
        texts, _ = work.protected
        model = work.load()
        before, _ = old_scores(model, texts, settings, label="before")
        first: dict[str, Any] = {}
        for tag, text in work.texts.items():
            best = int(nearest[tag][0]["group"])
            modes = [mode for mode in MODES if mode != "counts" or path_specs(model.config)]
            found = {mode: score(model, text.test, settings, mode=mode, group=best) for mode in modes}
            numbers = {mode: as_numbers(scores, text.test) for mode, scores in found.items()}
            first[tag] = {mode: numbers.get(mode, numbers["prefix"]) for mode in MODES}
        model = work.load(work.place.path("model"))
        new = {tag: text.test for tag, text in work.texts.items()}
        extended = {tag: work.extended_test(tag) for tag in new} if settings.extend_vocab else {}
        measured = {**texts, **{tag: text for tag, text in new.items() if tag not in extended}}
        after, shares = old_scores(model, measured, settings, label="after")
        for tag, own in extended.items():  # without its group given, its text would be tokenised otherwise
            of_group = score(model, own, settings, mode="group", group=all_groups(model.config)[tag])
            after[tag], shares[tag] = {"group": as_numbers(of_group, own)}, {}
        return {
            tag: {
                "new": tag in new,
                "before": first[tag] if tag in new else before[tag],
                "after": after[tag],
                "routed": shares[tag],
            }
            for tag in [*new, *texts]
        }

    protected = {tag: source_state(source) for tag, source in settings.protect.items()}
    inputs = [settings.evaluate.model_dump(mode="json"), protected]
    return work.place.stage("evaluate", inputs, ["model"], compute, after=["nearest", "train"])


def _report(work: Work) -> dict[str, Any]:
    """Write adapt.json, the model's card and report.html from the stages' results; return what adapt.json holds."""
    place, settings = work.place, work.settings
    records = place.records()
    nearest, scores = records["nearest"]["result"]["tables"], records["evaluate"]["result"]
    warnings = records["nearest"]["result"]["warnings"]
    paths = records["train"]["result"]["paths"]
    of_groups = {row["group"]: row["languages"] for table in nearest.values() for row in table}
    languages = {}
    for path in paths:
        for tag in path["languages"]:
            text = work.texts[tag]
            languages[tag] = {
                "group_id": path["group_id"],
                "parent": {"group": path["parent"], "languages": of_groups.get(path["parent"], [])},
                "start": path["start"],
                "joined": path["joined"],
                "shares_with": [other for other in path["languages"] if other != tag],
                "train_tokens": text.packed.num_tokens,
                "train_bytes": text.packed.num_bytes,
                "bytes_per_token": text.bytes_per_token,
                "warnings": warnings[tag],
                "under_groups": nearest[tag],
                "parameters": path["parameters"],
                "share_of_dense": path["share_of_dense"],
                "extension": path.get("extension", 0),
            }
    facts = {
        "schema": SCHEMA,
        "package": __version__,
        "source": settings.source,
        "path": settings.path,
        "gate": settings.gate,
        "seed": settings.seed,
        "tokens": sum(path["tokens"] for path in paths),
        "learning_rate": settings.learning_rate,
        "base_parameters": dense_size(work.config),
        "languages": languages,
        "scores": scores,
        "forgetting": forgetting(scores, limit=settings.max_forgetting),
        "seconds": place.seconds(),
    }
    write_text(place.path(RESULT), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    write_card(place.path("model"))
    write_adapt_report(place.folder)
    return facts
