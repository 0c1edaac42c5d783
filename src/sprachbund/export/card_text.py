"""The sentences of a model card that depend on what the run was and on what it gave."""

from collections.abc import Mapping, Sequence
from typing import Any

from sprachbund.export.card_facts import EQUAL, ROUTINGS, Facts, language_name
from sprachbund.export.markdown import code, markdown, ranges, signed

_SHOWN = 12  # languages that a sentence names before it only counts
_SYSTEMS = {"base": "the base before training", "dense": "the base trained on the same tokens without experts"}


def summary(facts: Facts) -> str:
    """Return the paragraph that says what the model is."""
    made = " Made with sprachbund" + (f" from {code(facts.base)}." if facts.base else ".")
    if facts.is_mixture:
        config = facts.config
        languages = f"{len(facts.tags)} languages in " if facts.tags else ""
        count = len(facts.later)
        later = f"; {count} language{'s' if count > 1 else ''} came later" if count else ""
        layers = len(config.get("moe_layers") or [])
        plural = "" if layers == 1 else "s"
        if config.get("num_groups") == 1:
            return f"A dense model in the form of a mixture: one expert for all text in {layers} layer{plural}.{made}"
        groups = f"{languages}{_groups(config)}"
        keyed = len(set(config.get("row_of_group") or [])) > 1
        shared = "everything but them and the keyed rows is shared" if keyed else "everything else is shared"
        where = f"with experts in {layers} layer{plural}; {shared}{later}"
        return f"A language-group mixture of experts: {groups}, {where}.{made}"
    target = facts.export.get("target")
    if target == "dense":
        return f"One group of a language-group mixture of experts, as a plain dense model.{made}"
    if target:
        return f"A language-group mixture of experts, exported as {code(target)}.{made}"
    if facts.recipe:
        return (
            "A dense control: the base trained on the same tokens as a language-group mixture of experts, in the same "
            f"order, without experts.{made}"
        )
    return f"A dense language model.{made}"


_KINDS = {
    "copy": "each group's expert takes the place of the FFN",
    "shared": "each group's expert adds to an FFN that all share",
    "adapter": "each group's expert is a bottleneck on the output of an FFN that all share",
}


def _groups(config: Mapping[str, Any]) -> str:
    """Return how many groups there are; of a hierarchy, whose groups are languages, how many are of relatives."""
    if not config.get("language_width"):
        return f"{config.get('num_groups')} groups"
    sizes = {max(table) + 1 for table in (config.get("expert_of_group") or {}).values()}
    return f"{' or '.join(map(str, sorted(sizes)))} groups and within them {config.get('num_groups')} of one language"


def kind_in_words(config: Mapping[str, Any]) -> str:
    """Return what the experts of a mixture compute, and what its keyed rows are; "" for what is no mixture."""
    kind = _KINDS.get(str(config.get("expert_kind")), "")
    if not kind:
        return ""
    if config.get("language_width"):
        kind = "each group's expert and a small one of each language add to an FFN that all share"
    if config.get("expert_rank"):
        kind += "; their weights are products of two thin factors"
    tables = set(config.get("row_of_group") or [])
    if tables:
        whose = "that all share" if len(tables) == 1 else f"in {len(tables)} tables"
        kind += f"; deltas {whose} are added to the embedding and the output rows"
    return kind


def export_part(facts: Facts) -> dict[str, Any] | None:
    """Return what export.json says: how exact the export is, how its routing compares, what to know."""
    export = facts.export
    if not export:
        return None
    difference = export.get("difference")
    text = f"Target: {code(export.get('target'))}."
    if difference is not None:
        text += (
            " It was loaded in plain transformers and compared with the mixture before it was kept: their logits "
            f"differ by at most {difference:.2g} of the largest one."
        )
    scores = {name: float(value) for name, value in (export.get("dev") or {}).items() if value is not None}
    reference = next((name for name in ("prefix", "group", "top_k") if name in scores), "")
    rows = [
        (name, score, None if name == reference else score / scores[reference] - 1) for name, score in scores.items()
    ]
    if scores and facts.export_routing == "top_k":
        text += " This architecture knows the learned router only: what it computes is the row `top_k`."
    return {"text": text, "dev": rows, "reference": reference, "caveats": list(export.get("caveats") or [])}


def changes(facts: Facts) -> list[dict[str, Any]]:
    """Return what was done to a trained mixture without training, and what it cost on the development text."""
    return [part for part in (_compression(facts.compression), _regrouping(facts.regrouping)) if part]


def _compression(made: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what compress.json says: how the experts were made smaller, and what that cost."""
    if not made.get("method"):
        return None
    pruned = made["method"] == "prune"
    how = f"pruned to {made.get('width')} units" if pruned else f"factored at rank {made.get('rank')}"
    experts = made.get("experts") or {}
    size = f"; they have {experts['after']:,} parameters, before {experts['before']:,}" if experts else ""
    text = f"The experts of a trained mixture were {how}, without training{size}."
    return _change("Smaller experts", text, made.get("dev") or {})


def _regrouping(made: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what regroup.json says: how the groups were changed, and what that cost."""
    if not made.get("done"):
        return None
    done = "; then ".join(map(markdown, made["done"]))
    changed = ", ".join(code(tag) for tag in made.get("changed") or []) or "none"
    text = (
        f"The groups of a trained mixture were changed, without training: {done}. "
        f"Languages that the last step changes where their group is given: {changed}; the others compute what they did."
    )
    return _change("Changed groups", text, (made.get("dev") or {}).get("mean") or {})


def _change(title: str, text: str, dev: Mapping[str, Any]) -> dict[str, Any]:
    measured = "The loss of quality was measured on development text:" if dev else "What it cost was not measured."
    rows = [
        (routing, score["before"], score["after"], score["after"] / score["before"] - 1)
        for routing, score in dev.items()
    ]
    return {"title": title, "text": f"{text} {measured}", "dev": rows}


def later_part(facts: Facts) -> dict[str, Any] | None:
    """Return what is said of languages that came later, each on a path: what that is, and what adapt.json measured."""
    if not facts.paths:
        return None
    text = (
        "Each has a path of its own: parts that add to what the group it stands on computes, at its own positions "
        "only; no tensor of the model before it was changed. Text of other languages that are given (`language=...`) "
        "meets nothing of it. Text that nothing is said about finds a path by "
        f'{code(facts.config.get("path_gate", "mixture"))} (`path_gate="mixture"`, `"counts"` or `"off"`), which '
        "costs the other languages little, but not nothing."
    )
    own_tokens = [path for path in facts.paths if path.get("extension")]
    if extended := [markdown(language_name(tag)) for path in own_tokens for tag in path["languages"]]:
        text += (
            f" {', '.join(extended)} read tokens of their own: their tokenizers are in `extensions/`, and the language "
            "must be given."
        )
    num_groups = int(facts.config.get("num_groups") or 0)
    rows = [(num_groups + number, path["languages"], path["parent"]) for number, path in enumerate(facts.paths)]
    return {"text": text, "rows": rows, "measured": _measured_later(facts)}


def _measured_later(facts: Facts) -> list[str]:
    """Return the scores of the new languages and the worst of the old ones, from the adaptation's own file."""
    scores = facts.adaptation.get("scores") or {}
    lines = []
    for tag in facts.later:
        after = (scores.get(tag) or {}).get("after") or {}
        found = [f"{after[mode]['bits_per_byte']:.3f} under `{mode}`" for mode in ("group", "prefix") if mode in after]
        if found:
            lines.append(f"{markdown(language_name(tag))}: bits per byte {', '.join(found)}")
    worst = (facts.adaptation.get("forgetting") or {}).get("worst")
    if worst and worst["change"] <= 0:
        lines.append("No other language lost anything, under any routing")
    elif worst:
        name = markdown(language_name(worst["language"]))
        lines.append(f"Of the other languages {name} lost most: perplexity {worst['change']:+.4%}, `{worst['mode']}`")
    return lines


def grouping_text(facts: Facts) -> str:
    """Return how the groups were made and how sure they are; "" where no file says it, or they were changed since."""
    how = facts.grouping
    if not how.get("method") or facts.regrouping:
        return ""
    parts = [f"method {code(how['method'])}"]
    if how.get("objective"):
        parts.insert(0, f"objective {code(how['objective'])}")
    if how.get("source"):
        parts.insert(0, f"similarity {code(how['source'])}")
    text = f"How the groups were made: {', '.join(parts)}{'; proven optimal' if how.get('proven') else ''}."
    stability = how.get("stability") or {}
    if stability.get("mean_rand") is not None:
        text += (
            f" Groups of {stability.get('resamples')} resamplings agree with them at an adjusted Rand index of "
            f"{stability['mean_rand']:.2f} (1 is the same)."
        )
    return text


def training(facts: Facts) -> list[str]:
    """Return the recipe in short; [] where the model has no run."""
    recipe = facts.recipe
    if not recipe:
        return []
    train, experts = recipe.get("train") or {}, recipe.get("experts") or {}
    tokens = facts.metrics.get("tokens") or {}
    scratch = recipe["base"].get("scratch") if isinstance(recipe.get("base"), dict) else None
    base = f"a {code(scratch.get('family'))} model from scratch" if scratch else code(facts.base)
    layers = facts.config.get("moe_layers") or facts.metrics.get("moe_layers")
    control = ", the dense control on the same ones" if tokens.get("dense") else ""
    lines = [
        f"Recipe {code(recipe.get('name'))}, preset {code(recipe.get('preset'))}, seed {recipe.get('seed')}",
        f"Base: {base}",
        f"Experts: kind {code(experts.get('kind'))}" + (f", layers {ranges(layers)}" if layers else ""),
        f"Trained on {_count(tokens.get('moe') or train.get('tokens'))} tokens{control}: "
        f"{_count(train.get('tokens_per_step'))} a step, in blocks of {_count(train.get('block_size'))}, at a learning "
        f"rate of {code(train.get('learning_rate'))}",
    ]
    if stages := train.get("stages"):
        lines.append("Stages: " + ", then ".join(_stage(stage) for stage in stages))
    return lines


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else "an unknown number of"


def _stage(stage: Mapping[str, Any]) -> str:
    return f"{stage['share']:.0%} routed by `{stage['routing']}` with a router loss of {stage.get('router_loss', 0):g}"


def results_part(facts: Facts) -> dict[str, Any]:
    """Return the sentences around the tables of scores."""
    metrics = facts.metrics
    systems = list(metrics["average"]["perplexity"])
    meaning = ", ".join(f"`{name}` is {_SYSTEMS[name]}" for name in systems if name in _SYSTEMS)
    own = facts.export_routing
    of_mixture = f"These are the scores of the mixture; this export computes what `{own}` does there. " if own else ""
    head = (
        f"{of_mixture}Averages over {len(metrics['languages'])} languages on the {metrics.get('split', 'test')} split "
        f"(perplexity: geometric mean; a change below zero is better); {meaning}. *After burn-in* counts positions "
        f"with at least {metrics.get('burn_in')} tokens of context."
    )
    if "dense" not in systems:
        return {"head": f"{head} No dense control was trained: the table does not show what the experts are worth.",
                "losers": [], "systems": systems}  # fmt: skip
    computed = [own] if own else ROUTINGS  # an export computes one of them
    losers = [_losers(facts, routing) for routing in computed if routing in systems]
    return {"head": head, "losers": losers, "systems": systems}


def _losers(facts: Facts, routing: str) -> str:
    losers = facts.losers(routing)
    if not losers:
        return f"Worse than the dense control under `{routing}`: no language"
    named = ", ".join(f"{markdown(language_name(tag))} {signed(change)}" for tag, change in losers[:_SHOWN])
    rest = f" and {len(losers) - _SHOWN} more" if len(losers) > _SHOWN else ""
    count = f"{len(losers)} of {len(facts.scored)} languages"
    return f"Worse than the dense control under `{routing}`: {count} ({named}{rest})"


def limits(facts: Facts) -> list[str]:
    """Return what a reader must know before using the model."""
    lines = _routing_limits(facts) if facts.is_mixture else _export_limits(facts)
    if facts.is_mixture and not (facts.recipe or facts.later or facts.adaptation):
        lines.append("Nothing here says how it was trained: fresh from `expand` it computes what its dense base does")
    if facts.metrics:
        lines += _measured_limits(facts)
    elif facts.compression.get("dev") or facts.regrouping.get("dev"):
        lines.append("It was not scored on the test split: only its loss against the mixture that it was made from")
    elif facts.adaptation.get("scores"):
        lines.append("What is said of its scores was measured when its last languages were added, and only that")
    else:
        lines.append("It was not scored: nothing here shows how good it is")
    if facts.tags:
        others = f"Languages other than its {len(facts.tags) + len(facts.later)} were not trained for and not tested"
        lines.append(others + ("; under `prefix` they go to the group that their text looks like" * facts.is_mixture))
    lines.append("It repeats the errors and prejudices of its training text; nothing was filtered by this package")
    lines.append("This card sets no licence: those of the base and of the training text hold")
    return lines


def _routing_limits(facts: Facts) -> list[str]:
    changes = facts.metrics.get("change_vs_dense", {})
    prefix, top_k = (changes.get(name, {}).get("average") for name in ("prefix", "top_k"))
    lines = []
    if prefix is not None and top_k is not None and top_k - prefix > EQUAL:
        lines.append(
            f"The routings are not equally good: `top_k` is {signed(top_k)} against the dense control, `prefix` "
            f"{signed(prefix)}; engines that know only a learned router get `top_k`"
        )
    elif prefix is None:
        lines.append("The routings give different results: measure the one that is used")
    if facts.tags:
        cold = changes.get("prefix", {}).get("average_all_positions")
        measured = ""
        if cold is not None:
            measured = f" ({signed(cold)} against the dense control over all positions, {signed(prefix)} after burn-in)"
        lines.append(
            f"`prefix` has little to go by in the first tokens of a text{measured}; name the language if you can"
        )
    return lines


def _export_limits(facts: Facts) -> list[str]:
    """Return what is lost against the mixture under its best routing."""
    changes = facts.metrics.get("change_vs_dense", {})
    top_k = changes.get("top_k", {}).get("average")
    if facts.export_routing != "top_k" or top_k is None:
        return []
    best = min(changes, key=lambda routing: changes[routing]["average"])
    better = f"; under `{best}`, which only the mixture itself can, {signed(changes[best]['average'])}"
    return [f"`top_k` is {signed(top_k)} against the dense control{better if best != 'top_k' else ''}"]


def _measured_limits(facts: Facts) -> list[str]:
    sizes = sorted(int(language["tokens"]) for language in facts.scored.values())
    lines = ["Measured was perplexity on held-out text of the same corpora: no task, and no other kind of text"]
    if sizes:
        lines.append(f"A language was scored on {_span(sizes)} tokens, in one run: small differences mean nothing")
    small = (facts.metrics.get("tokens") or {}).get("moe")
    if small is not None and small < 100_000_000:
        lines.append(f"{small:,} training tokens are few: this is a model to study the method with")
    return lines


def _span(sizes: Sequence[int]) -> str:
    return f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
