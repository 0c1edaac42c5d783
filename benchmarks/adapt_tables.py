"""docs/adapt-results.md, generated from benchmarks/results/adapt.json: no number is typed by hand.

python benchmarks/adapt_tables.py writes it, and a test compares it with the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from adapt_bars import AFTER, ALL, Result, against, changed, new_bits, old_changes, runs_of, spread, unlabelled
from adapt_systems import SYSTEMS
from grouping_tables import read, table
from quality_tables import bars, measured
from runs import RESULTS

from sprachbund.languages import display_name

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "adapt-results.md"
GUIDE = "adapt.md"
BEGIN, END = "<!-- from benchmarks/results/adapt.json -->", "<!-- end -->"  # what is between is generated
HEAD = """# New languages, measured

What [`sprachbund adapt`](adapt.md) gives a language that a model does not have, and what it does to the languages that
the model has, beside the ways to do it with a dense model. `python benchmarks/adapt.py` measures all of it in one run;
this page is generated from `benchmarks/results/adapt.json` by `benchmarks/adapt_tables.py`.

- **The model** is that of `examples/bible-18.yaml`, 18 languages, and the rivals start from its dense control, which
  was trained on the same sequences. The new languages are in neither base nor groups.
- **Training** has the same tokens in the same steps for every method, with the warm-up, clipping and schedule of our
  presets. Learning rates were chosen on the dev split under the first seed; methods that differ in their parts or their
  budget alone take the rate of the method that they vary.
- **Scores** are of the test split, means over seeds. Bits per byte compare across vocabularies. *All positions* is
  cold: every window of 128 tokens begins as after a fresh prompt.
"""
NAMES = {
    "dense": "dense fine-tuning of everything",
    "dense-2x": "dense, 2x the tokens",
    "dense-4x": "dense, 4x the tokens",
    "dense-replay": "dense, half of each step old text (2x the compute)",
    "dense-lora": "LoRA on dense, rank 16",
    "paper": "`paper`: a copied expert and its router row",
    "expert": "`expert`: a path of experts alone",
    "rows": "`rows`: a path without experts",
    "small": "`small`: a path of at most 25% of dense",
    "lean": "`lean`: a path of at most 40% of dense",
    "full": "**`full`**",
    "full-2x": "`full`, 2x the tokens",
    "full-4x": "`full`, 4x the tokens",
    "dense-merges": "dense, {merges:,} tokens more in the vocabulary",
    "full-merges": "`full`, {merges:,} tokens more in the vocabulary",
    "dense-merges-same-text": "dense, the larger vocabulary, no more text than without",
    "full-merges-same-text": "`full`, the larger vocabulary, no more text than without",
}
# Whom a method is compared with: those that are not here with `dense`, and the rivals with nobody.
RIVALS = {
    "full": "dense",
    "full-2x": "dense-2x",
    "full-4x": "dense-4x",
    "full-merges": "dense-merges",
    "full-merges-same-text": "dense-merges-same-text",
}
WAYS = {"prefix": "told nothing, mixture", "counts": "told nothing, counts", "top_k": "routers, mixture"}
PAPERS = {"prefix": "told nothing", "top_k": "routers"}  # a group is no path: there is nothing to mix


def name_of(system: str, result: Result) -> str:
    """Return what a system is called in the tables."""
    return NAMES[system].format(merges=result["merges"])


def mean_of(result: Result, system: str, tag: str, value: Callable[[Mapping[str, Any]], float]) -> float | None:
    """Return the mean over seeds of a value of what was measured; None where nothing was."""
    if tag not in result["systems"].get(system, {}):
        return None
    return fmean(value(test) for test in runs_of(result, system, tag))


def signed(value: float, digits: int = 1) -> str:
    """Return a change in percent."""
    return f"{value:+.{digits}f}%"


def small(value: float) -> str:
    """Return a small change in percent with its digits; none at all, and one below the arithmetic's, is 0."""
    return "0" if abs(value) < 5e-5 else f"{value:+.4f}%"


def factor(percent: float) -> str:
    """Return a large change as how many times what it was."""
    return f"x{1 + percent / 100:,.2f}" if percent < 900 else f"x{1 + percent / 100:,.0f}"


def new_languages(result: Result) -> list[str]:
    """Return the table of the new languages' own text, their group given."""
    tags, before = result["languages"], result["before"]["new"]
    columns = ["bits per byte, all positions", "trained, of dense"]
    columns += [cell for tag in tags for cell in (display_name(tag), "vs dense")]
    rows = []
    for what, key in (("dense, untrained", "dense"), ("ours, under the nearest group", "group")):
        rows.append([what, "", *(cell for tag in tags for cell in (f"{before[tag][key][ALL]:.4f}", ""))])
    for system in NAMES:
        entries = result["systems"].get(system)
        if not entries:
            continue
        share = fmean(run["share_of_dense"] for entry in entries.values() for run in entry["runs"])
        cells = [name_of(system, result), f"{share:.0%}"]
        for tag in tags:
            bits = mean_of(result, system, tag, new_bits)
            rival = RIVALS.get(system, "" if system in RIVALS.values() else "dense")
            known = bits is not None and tag in result["systems"].get(rival, {})
            cells.append("" if bits is None else f"{bits:.4f}")
            cells.append(signed(fmean(against(result, system, rival, tag))) if known else "")
        rows.append(cells)
    fertility = ", ".join(
        f"{display_name(tag)} {result['before']['bytes_per_token'][tag]:.2f} "
        f"({result['before']['bytes_per_token_merges'][tag]:.2f} with the larger vocabulary)"
        for tag in tags
    )
    return [
        "## The new languages",
        "",
        f"{result['tokens']:,} new tokens where not said. *vs dense* is against dense fine-tuning with the same tokens "
        f"and the same vocabulary. Bytes per token of training text: {fertility}.",
        "",
        *table(columns, rows),
        "",
    ]


def dense_old(result: Result) -> list[list[str]]:
    """Return rows of how many times their perplexity before the old languages have after dense training."""
    rows = []
    for system in NAMES:
        if system in result["systems"] and SYSTEMS[system].is_dense:
            cells = [spread_cells(result, system, tag, "dense", factor) for tag in result["languages"]]
            rows.append([name_of(system, result), *chain(*cells)])
    return rows


def our_old(result: Result) -> list[list[str]]:
    """Return rows of the old languages' change under our systems, by mode."""
    rows = []
    for system, ways, show in (("paper", PAPERS, factor), ("full", WAYS, small)):
        if system not in result["systems"]:
            continue
        cells = []
        for tag in result["languages"]:
            differ = mean_of(result, system, tag, changed)
            cells += ["" if differ is None else f"{differ:g} changed" if differ else "0, to the bit", ""]
        rows.append([f"{name_of(system, result)}, group given", *cells])
        for mode, way in ways.items():
            found = [spread_cells(result, system, tag, mode, show) for tag in result["languages"]]
            rows.append([f"{name_of(system, result)}, {way}", *chain(*found)])
    return rows


def spread_cells(result: Result, system: str, tag: str, mode: str, show: Callable[[float], str]) -> list[str]:
    """Return what the old languages lose to a new one, mean and worst, over seeds; empty where nothing was measured."""
    if tag not in result["systems"][system]:
        return ["", ""]
    spreads = [spread(result, test, mode) for test in runs_of(result, system, tag)]
    return [show(fmean(values)) for values in zip(*spreads, strict=True)]


def old_languages(result: Result) -> list[str]:
    """Return the table of what the old languages lose."""
    columns = ["old perplexity, all positions", *(c for tag in result["languages"] for c in (f"+ {tag}", "worst"))]
    return [
        "## The old languages",
        "",
        f"The change of the perplexity of the {len(result['before']['old']['dense'])} old languages, geometric mean "
        "and worst language, against the same model before: how many times as high it is, or in percent where it is "
        "small. A path changes nothing about old text whose group is given; what can happen is that text of which "
        "nothing is said finds a path by mistake.",
        "",
        *table(columns, [*dense_old(result), *our_old(result)]),
        "",
    ]


def told_nothing(result: Result) -> list[str]:
    """Return the table of what new text loses where its path has to be found."""
    columns = ["against the group given"]
    shown = ("all positions", "after 32 tokens", "on the path", "old text on it")
    columns += [f"{tag}, {what}" for tag in result["languages"] for what in shown]
    rows = []
    for mode, way in WAYS.items():
        cells = [way]
        for tag in result["languages"]:
            if tag in result["systems"].get("full", {}):
                tests = runs_of(result, "full", tag)
                losses = [fmean(unlabelled(result, "full", tag, mode, key)) for key in (ALL, AFTER)]
                share = fmean(test["new"][mode]["share"] for test in tests)
                taken = fmean(one["share"] for test in tests for one in test["old"][mode].values())
                cells += [signed(losses[0], 2), signed(losses[1], 3), f"{share:.2%}", f"{taken:.3%}"]
        rows.append(cells)
    return [
        "## Told nothing",
        "",
        "What `full` loses in bits per byte of the new language where it is not told which language the text is in, "
        "and the share of positions that the path had, of the new language and of all old ones.",
        "",
        *table(columns, rows),
        "",
    ]


def several(result: Result) -> list[str]:
    """Return the table of a model that was given one language after the other."""
    ((tag, entry),) = result["systems"]["several"].items()
    alone = runs_of(result, "full", tag)
    rows = []
    for count in entry["runs"][0]["test"]:
        tests = [run["test"][count] for run in entry["runs"]]
        cells = [f"{count} languages", "yes" if all(test["unchanged"] for test in tests) else "**no**"]
        cells.append("yes" if not any(map(changed, tests)) else "**no**")
        for mode in ("prefix", "counts"):
            losses = [percent_of(test, one, mode) for test, one in zip(tests, alone, strict=True)]
            worst = [max(old_changes(result, test, mode).values()) for test in tests]
            cells += [small(fmean(losses)), small(max(worst))]
        rows.append(cells)
    columns = ["new languages in one model", f"{tag} as before, group given", "old languages as before, group given"]
    columns += [c for way in ("mixture", "counts") for c in (f"{tag}, {way}", f"worst old language, {way}")]
    return [
        "## One language after the other",
        "",
        f"{', '.join(result['languages'])} on one model, a path each: what the later ones do to {tag} (bits per byte "
        "against when it was alone) and to the old languages (perplexity against before).",
        "",
        *table(columns, rows),
        "",
    ]


def percent_of(test: Mapping[str, Any], alone: Mapping[str, Any], mode: str) -> float:
    """Return the change of a new language's bits per byte between two measurements, in percent."""
    return 100 * (new_bits(test, mode) / new_bits(alone, mode) - 1)


def domain(result: Result) -> list[str]:
    """Return the table of text of another kind."""
    known = list(result["before"]["domain"]["prefix"])
    columns = [
        "path of",
        "text in",
        *(c for way in ("mixture", "counts") for c in (f"on the path, {way}", "perplexity")),
    ]
    rows = []
    for tag in result["languages"]:
        if tag not in result["systems"].get("full", {}):
            continue
        tests = runs_of(result, "full", tag)
        for other in [*known, *([tag] if tag in tests[0]["domain"]["prefix"] else [])]:
            cells = [tag, f"{other}, its own" if other == tag else other]
            for mode in ("prefix", "counts"):
                cells.append(f"{fmean(test['domain'][mode][other]['share'] for test in tests):.2%}")
                changes = (
                    [] if other == tag else [old_changes(result, test, mode, what="domain")[other] for test in tests]
                )
                cells.append(small(fmean(changes)) if changes else "")
            rows.append(cells)
    return [
        "## Text of another kind",
        "",
        "The gates' counts come from the training text; here they meet lists, dates and units (the embedded CLDR "
        "corpus). The share of positions that went to the path, which is right for its own language alone, and the "
        "change of old perplexity. Nothing had to be reached.",
        "",
        *table(columns, rows, left=2),
        "",
    ]


def switching(result: Result) -> list[str]:
    """Return the table of text in two languages."""
    ways = {
        "given": "each sentence's group given",
        "mixture": "told nothing, mixture",
        "counts": "told nothing, counts",
        "off": "without the path",
    }
    columns = ["path of", f"each sentence in turn with {result['switch_with']}", "bits per byte", "against given"]
    columns += ["new text on the path", "old text off it"]
    rows = []
    for tag in result["languages"]:
        tests = [test["switching"] for test in runs_of(result, "full", tag)] if tag in result["systems"]["full"] else []
        for way, said in ways.items() if tests else ():
            bits = fmean(test[way]["bits_per_byte"] for test in tests)
            bound = fmean(test["given"]["bits_per_byte"] for test in tests)
            right = [fmean(test[way].get(side, math.nan) for test in tests) for side in ("right_new", "right_old")]
            cells = ["" if math.isnan(share) else f"{share:.1%}" for share in right]
            rows.append([tag, said, f"{bits:.4f}", signed(100 * (bits / bound - 1)), *cells])
    return [
        "## Two languages in one text",
        "",
        "Sentences of the new language and an old one in turn, in windows of 128 tokens: what each way to find the "
        "path makes of it, and how much of each language's text is where it belongs. Nothing had to be reached.",
        "",
        *table(columns, rows, left=2),
        "",
    ]


def rates(result: Result) -> list[str]:
    """Return the table of the learning rates that were tried."""
    rows = []
    for system, languages in result["systems"].items():
        for tag, entry in languages.items():
            if "grid" in entry:
                tried = ", ".join(
                    f"{float(rate):g}: {'diverged' if score is None else f'{score:.2f}'}"
                    for rate, score in sorted(entry["grid"].items(), key=lambda pair: float(pair[0]))
                )
                rows.append([system, tag, tried, f"{entry['learning_rate']:g}{'*' if entry['edge'] else ''}"])
    columns = ["method", "on the dev text of", "perplexity after burn-in by learning rate", "taken"]
    return ["## Learning rates", "", *table(columns, rows, left=3), "", "*: at the edge of those tried.", ""]


def page() -> str:
    """Return docs/adapt-results.md."""
    if not (RESULTS / "adapt.json").is_file():
        return f"{HEAD}\nNot measured yet.\n"
    content = read("adapt")
    result = content["result"]
    lines = [HEAD, measured(content), ""]
    for section in (new_languages, old_languages, told_nothing, several, domain, switching):
        lines += section(result)
    lines += ["## Targets", "", *bars(content, of="in percent where it says so"), *rates(result)]
    return "\n".join(lines).rstrip() + "\n"


def guide(text: str) -> str:
    """Return docs/adapt.md with what its reader wants to know first: the new languages, and the old ones."""
    if not (RESULTS / "adapt.json").is_file():
        return text
    result = read("adapt")["result"]
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [line for part in (new_languages, old_languages) for line in part(result)]
    return f"{before}{BEGIN}\n" + "\n".join(lines).replace("## ", "### ").rstrip() + f"\n{END}{after}"


if __name__ == "__main__":
    (DOCS / PAGE).write_text(page())
    (DOCS / GUIDE).write_text(guide((DOCS / GUIDE).read_text()))
