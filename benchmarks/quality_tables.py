"""docs/comparison.md, its figures and docs/experiments.md, generated from the JSON under benchmarks/results.

No number is typed by hand: python benchmarks/quality_tables.py writes them, and a test compares them with the JSON.
What has not been measured has no section.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments_tables import experiments
from grouping_tables import read, table
from quality_bars import changes, worst_language
from quality_missed import full_text, native
from runs import RESULTS

from sprachbund.compare.curse import curse_figure, curse_table
from sprachbund.compare.figure import comparison_figure
from sprachbund.compare.table import AFTER, legend, level
from sprachbund.compare.table import table as comparison_table
from sprachbund.evaluation.metrics import ROUTINGS

HEAD = """# Side by side

What each way of lifting the curse of multilinguality costs and gives, one comparison per section: `sprachbund compare
RECIPE` trains every method from the same base, with the same tokenizer, on the same sequences in the same order.

- **Learning rates.** Every method is trained at every rate of the grid under the first seed, and the dev split chooses;
  where the best is at an edge, the grid grows. Rates are not shared: a method is judged at its own best one.
- **Optimiser.** All methods have the warm-up, clipping and schedule of our presets, but `paper`, which keeps the
  paper's: its place is that of the recipe as published.
- **Seeds.** At its best rate every method is trained under all seeds (some of the many variants under fewer). Changes
  are between runs of one seed, then averaged.
- **Test.** The test split is scored at the end, once, for the rates that were chosen.
- **Routing.** A method's headline routing is the one it is made for: `prefix` is told nothing and finds the language
  from the tokens so far, `top_k` is the learned router, `group` is given each text's group, as a model with a language
  tag is given the tag. Where something had to be reached, the rival is taken under its best routing, whichever it is.
- Perplexities are geometric means over languages. *After burn-in* counts positions with at least 32 tokens of context.

This page is generated from `benchmarks/results/quality-*.json` by `benchmarks/quality_tables.py`. Everything that was
tried on the way, with what lost, is in [experiments.md](experiments.md).
"""
SURVEY = "survey"
TEXTS = {
    "bible-18": (
        "18 languages of the New Testament, equal text",
        "`python benchmarks/quality.py bible-18`, on `examples/bible-18.yaml`.",
    ),
    "survey": (
        "What else there is",
        "`python benchmarks/quality.py survey`, on `examples/bible-18-survey.yaml`: the same languages, base and "
        "tokens, one seed, with which differences of 1% are noise. The methods of the table above are trained again at "
        "their best rate; other ways have the whole grid; groups and layers are chosen in other ways for `shared-6`, "
        "at its rate; and the presets are changed in one thing each.",
    ),
    "gpu": (
        "33 languages at a larger scale",
        "`python benchmarks/quality_gpu.py`, on one GPU: a base trained on all 33 languages until dense training gains "
        "little more, then the main methods at equal tokens, with 8 and with 16 groups.",
    ),
}
# What grouping by similarity is worth with unequal text: (what, method, rival).
PAIRS = (
    ("families against random groups", "shared-6", "shared-6-random"),
    ("families against one expert per language", "shared-6", "per-language"),
    ("hierarchy: families against random groups", "hierarchy", "hierarchy-random"),
    ("hierarchy against families alone", "hierarchy", "shared-6"),
    ("hierarchy against one expert per language", "hierarchy", "per-language"),
    ("the default against one expert per language", "default", "per-language"),
)


def percent(values: Sequence[float]) -> str:
    """Return the mean of some changes, and their range where there are several."""
    said = f"{fmean(values):+.1%}"
    return said if len(values) == 1 else f"{said} ({min(values):+.1%} to {max(values):+.1%})"


def measured(content: Mapping[str, Any]) -> str:
    """Return where and when a comparison was made."""
    packages = ", ".join(f"{name} {version}" for name, version in content["packages"].items() if name != "sprachbund")
    said = f"Measured {content['date']} on {content['hardware']} ({packages}), commit {content['commit']}."
    return f"{said} {content['note']}" if content.get("note") else said


def bars(content: Mapping[str, Any], *, of: str = "changes of perplexity after burn-in where not said") -> list[str]:
    """Return the table of what had to be reached; `of` says what the values are."""
    rows = []
    for one in content["bars"]:
        values = ", ".join(f"{value:g}" for value in one["values"])
        rows.append([one["bar"], values, f"{one['at_most']:g}", "yes" if one["holds"] else "**no**"])
    if not rows:
        return []
    lines = [f"What had to be reached; a value per seed, {of}.", ""]
    return [*lines, *table(["", "values over seeds", "at most", "holds"], rows), ""]


def shown(name: str, content: Mapping[str, Any], files: dict[str, str]) -> list[str]:
    """Return the table and the figure of a comparison; the figure goes to `files`."""
    files[f"comparison-{name}.svg"] = comparison_figure(content["result"]).standalone()
    return [
        *comparison_table(content["result"]),
        "",
        legend(content["result"]),
        "",
        f"![Bits per byte of each method against its parameters and its operations](comparison-{name}.svg)",
        "",
    ]


def plain(name: str, content: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Return a section of a comparison with equal text."""
    title, text = TEXTS[name]
    return [f"## {title}", "", f"{text} {measured(content)}", "", *shown(name, content, files), *bars(content)]


def equal(name: str, content: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Return the section of the main comparison, with what it missed."""
    known = (RESULTS / f"quality-{SURVEY}.json").is_file()
    survey = read(f"quality-{SURVEY}")["result"] if known else None
    return [*plain(name, content, files), *native(content, survey)]


def routing_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return a row per mixture of several groups: the change of perplexity after burn-in under each routing."""
    rows = []
    for method, entry in result["methods"].items():
        if set(ROUTINGS) <= set(entry["runs"][0]["test"]):
            values = [fmean(changes(result, method, "dense", routing=routing)) for routing in ROUTINGS]
            rows.append([method, *(f"{value:+.1%}" for value in values)])
    return rows


def survey(name: str, content: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Return the section of the survey: the table of all methods, and what each is worth under every routing."""
    return [
        *plain(name, {**content, "bars": []}, files),
        "What each mixture is worth under every routing: the change of perplexity after burn-in against dense.",
        "",
        *table(["method", *(f"`{routing}`" for routing in ROUTINGS)], routing_rows(content["result"])),
        "",
    ]


def tier_rows(result: dict[str, Any], tiers: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return a row per method: perplexity of each tier, and its change against dense."""
    rows = []
    for method, entry in result["methods"].items():
        cells = [method]
        for tags in tiers.values():
            cells.append(f"{fmean(level(run['test'][entry['headline']], AFTER, tags) for run in entry['runs']):.2f}")
            cells.append("" if method == "dense" else f"{fmean(changes(result, method, 'dense', tags=tags)):+.1%}")
        worst = "" if method == "dense" else f"{max(worst_language(result, method, 'dense')):+.1%}"
        rows.append([*cells, worst])
    return rows


def pair_rows(result: dict[str, Any], tiers: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Return a row per pair of methods: the change of each tier, and how many languages are better off."""
    rows = []
    for what, method, rival in PAIRS:
        if {method, rival} <= set(result["methods"]):
            how = {"rival_routing": result["methods"][rival]["headline"]}
            cells = [percent(changes(result, method, rival, tags=tags, **how)) for tags in tiers.values()]
            tags = [tag for languages in tiers.values() for tag in languages]
            better = sum(fmean(changes(result, method, rival, tags=[tag], **how)) < 0 for tag in tags)
            rows.append([what, *cells, f"{better} of {len(tags)}"])
    return rows


def worth(result: dict[str, Any], method: str, rival: str, tags: Sequence[str]) -> str:
    """Return in words what a method is worth beside a rival for some languages: of one seed's sign, or undecided."""
    how = {"rival_routing": result["methods"][rival]["headline"]}
    values = changes(result, method, rival, tags=tags, **how)
    if min(values) < 0 < max(values):
        return f"between {min(values):+.1%} and {max(values):+.1%}, no difference"
    return f"{abs(fmean(values)):.1%} {'better' if fmean(values) < 0 else 'worse'}"


def answer(result: dict[str, Any], tiers: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the plain answer to what grouping by similarity is worth with unequal text; none where it is not known."""
    needed = {"shared-6", "shared-6-random", "per-language", "hierarchy", "hierarchy-random", "default"}
    if not needed <= set(result["methods"]):
        return []
    full, *others = tiers.values()
    small = [tag for tags in others for tag in tags]

    def both(method: str, rival: str) -> str:
        return f"{worth(result, method, rival, full)} (all text), {worth(result, method, rival, small)} (little text)"

    return [
        "**The plain answer.** In perplexity after burn-in, over seeds:",
        "",
        f"- One expert for each family, against random groups: {both('shared-6', 'shared-6-random')}.",
        f"- The same against one narrow expert for each language: {both('shared-6', 'per-language')}.",
        "- In a hierarchy, where each language has a small expert too, families against random groups: "
        f"{both('hierarchy', 'hierarchy-random')}; and the hierarchy against experts for languages alone: "
        f"{both('hierarchy', 'per-language')}.",
        f"- The default, narrow experts for languages and rows for groups, against those experts without the rows: "
        f"{both('default', 'per-language')}.",
        "",
    ]


def unequal(name: str, content: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Return the section of unequal text."""
    result, tiers = content["result"], content["tiers"]
    columns = [cell for tier in tiers for cell in (f"text: {tier}", "vs dense")]
    return [
        "## Unequal text",
        "",
        "`python benchmarks/quality.py unequal`, on `examples/bible-18-unequal.yaml`: in each family one language has "
        "all of its training text, one a tenth, one a thirtieth, and the base is trained with the same cuts. Levels "
        "differ between the columns because the languages do. The random groups have one language of each size and no "
        f"relatives. {measured(content)}",
        "",
        *table(["perplexity after burn-in", *columns, "worst language vs dense"], tier_rows(result, tiers)),
        "",
        "What grouping by similarity is worth: the change of perplexity after burn-in, mean over seeds (and their "
        "range), and how many languages are better off.",
        "",
        *table(["", *(f"text: {tier}" for tier in tiers), "languages better"], pair_rows(result, tiers)),
        "",
        *answer(result, tiers),
        *shown(name, content, files),
        *bars(content),
        *full_text(content),
    ]


def cursed(name: str, content: dict[str, Any], files: dict[str, str]) -> list[str]:
    """Return the section of the curse."""
    result = content["result"]
    files[f"comparison-{name}.svg"] = curse_figure(result).standalone()
    columns, rows = curse_table(result)
    runs = [entry["runs"] for one in result["counts"].values() for entry in one["methods"].values()]
    num_seeds = max(len({run["seed"] for run in own}) for own in runs)
    return [
        "## The curse itself",
        "",
        "`python benchmarks/quality.py curse`, on `examples/curse.yaml`: what "
        f"{', '.join(f'`{tag}`' for tag in result['fixed'])} pay as other languages join. Every language has the same "
        "tokens in the same number of steps whoever else is there, and one tokenizer serves all; every number of "
        f"languages has a base of its own. Perplexity after burn-in of these {len(result['fixed'])}, mean over "
        f"{num_seeds} seed{'s' if num_seeds > 1 else ''}. "
        f"{measured(content)}",
        "",
        *table(columns, rows, left=0),
        "",
        f"![Perplexity of the first languages as others join](comparison-{name}.svg)",
        "",
    ]


SECTIONS: dict[str, Callable[[str, dict[str, Any], dict[str, str]], list[str]]] = {
    "bible-18": equal,
    "unequal": unequal,
    "curse": cursed,
    "survey": survey,
    "gpu": plain,
}


def pages() -> dict[str, str]:
    """Return the files under docs/ by name: comparison.md, and a figure for each comparison that was made."""
    files: dict[str, str] = {}
    lines = [HEAD]
    for name, section in SECTIONS.items():
        if (RESULTS / f"quality-{name}.json").is_file():
            lines += section(name, read(f"quality-{name}"), files)
    files["comparison.md"] = "\n".join(lines).rstrip() + "\n"
    if (RESULTS / "experiments.json").is_file():
        files["experiments.md"] = experiments()
    return files


if __name__ == "__main__":
    docs = Path(__file__).parents[1] / "docs"
    for file, text in pages().items():
        (docs / file).write_text(text)
