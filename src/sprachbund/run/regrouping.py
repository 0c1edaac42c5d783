"""`sprachbund split | merge | prune | keep | reassign`: a mixture with other groups, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sprachbund.export.source import read_mixture_config
from sprachbund.modeling import count_parameters
from sprachbund.modeling.checkpoint import fetch, refuse_existing
from sprachbund.modeling.regroup import changed_languages, regroup
from sprachbund.modeling.regroup_plan import Plan, groups_of
from sprachbund.modeling.skeleton import skeleton
from sprachbund.run.derived import beside, write_changed
from sprachbund.run.directory import read_json
from sprachbund.run.exporting import mean_perplexity, model_and_run, score_routings

FILE = "regroup.json"


def change_groups(
    target: str,
    decide: Callable[[Any], Plan],
    *,
    verb: str,
    out: Path | None = None,
    evaluate: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the mixture of a run, a folder or a Hub id with other groups to a new folder; return what was done.

    `decide` makes the plan from the configuration (regroup_plan.py), and `seed` draws what tells copied router rows
    from their originals. `out` is by default beside the model, named after the plan: `model-merge2-5`. With `evaluate`,
    a run's model is measured before and after on its development text, under every routing; the test split is left for
    the evaluation.

    Returns what the folder's regroup.json says: `verb`, `done` (what was done in sentences, that to the model before
    included), `groups` (the languages of each `before` and `after`), `sources` (the groups before that each one after
    is made of, by weight), `paths`, `changed` (the languages whose given group computes something else than before),
    `gone`, `parameters`, and `dev`: `mean`, {routing: {"before", "after": perplexity over all positions}} over the
    languages of both models, and `languages`, the same for each; None where nothing was measured.

    Raises InputError, before anything is loaded, for a model that is no mixture, for what `decide` refuses, and for a
    folder that exists.
    """
    folder, run = model_and_run(fetch(target))
    config = read_mixture_config(folder, purpose=verb)
    plan = decide(config)
    out = out or beside(target, folder, plan.word)
    refuse_existing(out)
    before = groups_of(config)
    stay = {tag for part in plan.parts for tag in part.languages} | {
        tag for tags in plan.paths.values() for tag in tags
    }
    known = [*config.languages, *(tag for tags in before.paths for tag in tags)]
    sizes = asdict(count_parameters(skeleton(config)))

    def facts(changed: Any) -> dict[str, Any]:
        return {
            "verb": plan.verb,
            "done": [*read_json(folder / FILE).get("done", []), plan.sentence],
            "groups": {"before": before.members, "after": groups_of(changed.config).members},
            "sources": [{str(group): share for group, share in part.sources.items()} for part in plan.parts],
            "paths": [list(tags) for tags in plan.paths.values()],
            "changed": changed_languages(config, plan),
            "gone": [tag for tag in known if tag not in stay],
            "parameters": {"before": sizes, "after": asdict(count_parameters(changed))},
        }

    measured = [tag for tag in config.languages if tag in stay]
    measure = partial(_compare, folder, run=run, languages=measured) if evaluate and run is not None else None
    change = partial(regroup, plan=plan, seed=seed)
    return write_changed(
        folder,
        out,
        config=config,
        change=change,
        facts=facts,
        measure=measure,
        file=FILE,
        run=run,
        extensions={before.paths[path][0]: kept[0] for path, kept in plan.paths.items()},  # called by a path's first
    )


def _compare(before: Path, after: Path, *, run: Path, languages: list[str]) -> dict[str, Any] | None:
    """Return the perplexities of each routing before and after, from the files as they lie; None without text."""
    scores = score_routings(before, run, languages=languages)
    if not scores or not all(scores.values()):
        return None
    now = score_routings(after, run, languages=languages)
    assert now is not None  # the text was there
    return {
        "mean": {
            routing: _pair(mean_perplexity(scores[routing].values()), mean_perplexity(now[routing].values()))
            for routing in scores
        },
        "languages": {
            tag: {routing: _pair(of[tag], now[routing][tag]) for routing, of in scores.items()}
            for tag in scores["group"]
        },
    }


def _pair(before: float, after: float) -> Mapping[str, float]:
    return {"before": before, "after": after}
