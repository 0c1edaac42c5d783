"""Read what a finished run left in its directory, before any of it is shown.

Only `metrics.json` is required; every other file is optional, because a run may have been given its groups
or have trained no dense control. What is there but malformed is a named error, never a half-empty page; only what
`grouping.json` and the folder `similarity` say about the groups is left out with a remark instead.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sprachbund.errors import InputError
from sprachbund.grouping.greedy import read_groups
from sprachbund.grouping.similarity_csv import Similarity, read_similarity
from sprachbund.report.corpora_section import CorpusFacts, corpus_facts
from sprachbund.report.formats import clean, clean_all
from sprachbund.report.grouping_file import GroupingResult, read_grouping_file
from sprachbund.report.similarity_files import OtherSimilarities, read_other_similarities

Scores = dict[str, float | None]


class LanguageMetrics(BaseModel):
    """The scores of one language; a way that was not measured is absent or null."""

    model_config = ConfigDict(extra="ignore")

    name: str
    group: int
    bytes: int = 0
    tokens: int = 0
    perplexity: Scores = {}
    perplexity_after_burn_in: Scores = {}
    bits_per_byte: Scores = {}
    bits_per_byte_after_burn_in: Scores = {}
    router_accuracy: Scores = {}
    router_share: dict[str, list[float]] = {}


class AverageMetrics(BaseModel):
    """The same scores over all languages; perplexity is a geometric mean."""

    model_config = ConfigDict(extra="ignore")

    perplexity: Scores = {}
    perplexity_after_burn_in: Scores = {}
    bits_per_byte: Scores = {}
    bits_per_byte_after_burn_in: Scores = {}
    router_accuracy: Scores = {}


class Change(BaseModel):
    """Perplexity of one routing against the dense control, as a fraction: -0.17 is 17 % lower."""

    model_config = ConfigDict(extra="ignore")

    average: float
    average_all_positions: float | None = None
    worst: tuple[str, float] | None = None


class Metrics(BaseModel):
    """`metrics.json`, schema 1; what the page does not show is ignored."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int
    package: str = ""
    name: str
    seed: int = 0
    preset: str | None = None
    tokens: dict[str, int | None] = {}
    parameters: dict[str, int | None] = {}
    seconds: dict[str, float | None] = {}
    tokens_per_second: dict[str, float | None] = {}
    peak_memory_mb: float | None = None
    burn_in: int
    window: int | None = None
    languages: dict[str, LanguageMetrics]
    average: AverageMetrics
    change_vs_dense: dict[str, Change] = {}
    groups: list[list[str]] = []
    experts: dict[str, str | None] = {}
    moe_layers: list[int] = []
    num_layers: int = 0

    def tags_by_group(self) -> list[list[str]]:
        """Return the languages of each group; the position of a group is its number."""
        num_groups = 1 + max((language.group for language in self.languages.values()), default=-1)
        return self.groups or [
            [tag for tag, language in self.languages.items() if language.group == group] for group in range(num_groups)
        ]

    def name_of(self, tag: str) -> str:
        """Return what a language is called, its tag where it was not scored."""
        return self.languages[tag].name if tag in self.languages else tag


@dataclass(frozen=True)
class Layer:
    """How far one layer moved in the probe, and whether it got experts; `experts` is None where it was not written."""

    index: int
    ffn_norm: float
    attention_norm: float
    normalised: float
    chosen: bool
    experts: int | None = None


@dataclass(frozen=True)
class Step:
    """One logged training step; a loss that was not logged is NaN."""

    step: int
    language_model_loss: float
    router_loss: float
    routing: str


@dataclass
class Events:
    """What `events.jsonl` says about training: steps per stage, and tokens per language and expert."""

    steps: dict[str, list[Step]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    num_unreadable: int = 0


@dataclass(frozen=True)
class RunResult:
    """All that the page is made of; None where the run wrote no such file."""

    metrics: Metrics
    recipe: str | None
    groups: dict[str, int]
    similarity: Similarity | None
    grouping: GroupingResult
    others: OtherSimilarities
    layers: list[Layer] | None
    events: Events | None
    corpora: dict[str, CorpusFacts]


def read_run(folder: Path) -> RunResult:
    """Read a run directory.

    Raises:
        InputError: `folder` is no finished run, or one of its files is malformed.
    """
    if not (folder / "metrics.json").is_file():
        raise InputError(
            f"{folder}: there is no metrics.json, and a report needs a run that was evaluated; "
            "finish it first with `sprachbund run`."
        )
    metrics = _read_metrics(folder / "metrics.json")
    groups = {tag: language.group for tag, language in metrics.languages.items()}
    if (folder / "groups.json").is_file():
        groups = {**read_groups(folder / "groups.json").as_dict(), **groups}
    recipe, similarity, layers, events = (
        folder / name for name in ("recipe.yaml", "similarity.csv", "layers.csv", "events.jsonl")
    )
    how, corpora = folder / "grouping.json", folder / "corpora.json"
    grouping = read_grouping_file(how) if how.is_file() else GroupingResult()
    source = grouping.how.source if grouping.how else None
    return RunResult(
        metrics=metrics,
        recipe=_read_text(recipe) if recipe.is_file() else None,
        groups=groups,
        similarity=_read_similarity(similarity, groups) if similarity.is_file() else None,
        grouping=grouping,
        others=read_other_similarities(folder / "similarity", groups, used=source),
        layers=read_layers(layers) if layers.is_file() else None,
        events=_read_events(events, with_dense="dense" in metrics.average.perplexity) if events.is_file() else None,
        corpora=corpus_facts(read_json(corpora), corpora) if corpora.is_file() else {},
    )


def _read_text(path: Path) -> str:
    """Read a text file that is only shown: a wrong byte must not cost the report."""
    return clean(path.read_text(encoding="utf-8", errors="replace"))


def read_json(path: Path) -> Any:
    """Read a JSON file that the page cannot do without."""
    try:
        return clean_all(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: this is not JSON ({error}); run the stage that writes it again.") from error


def _read_metrics(path: Path) -> Metrics:
    """Read and check `metrics.json`."""
    found = read_json(path)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != 1:
        raise InputError(
            f"{path}: found schema {schema!r}, and this version reads schema 1; "
            "evaluate the run again with this version of sprachbund."
        )
    try:
        # Pydantic's models have a method called `schema`, so the field goes by another name.
        return Metrics.model_validate({**found, "schema_version": schema})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: at {where}: {first['msg'].lower()}; evaluate the run again.") from error


def _read_similarity(path: Path, groups: dict[str, int]) -> Similarity:
    """Read `similarity.csv`; every language in it must be in a group."""
    similarity = read_similarity(path)
    unknown = [tag for tag in similarity.tags if tag not in groups]
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r} is in no group of this run; run `sprachbund group` on it again.")
    return similarity


def read_layers(path: Path) -> list[Layer]:
    """Read `layers.csv`; the column `experts` may be missing, as in files of earlier versions.

    Raises:
        InputError: a row lacks a column or has no number in it, with its line.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        try:
            return [
                Layer(
                    index=int(row["layer"]),
                    ffn_norm=float(row["ffn_norm"]),
                    attention_norm=float(row["attention_norm"] or "nan"),
                    normalised=float(row["normalised"] or "nan"),
                    chosen=row["chosen"].strip() == "1",
                    experts=int(row["experts"]) if row.get("experts") else None,
                )
                for row in reader
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}:{reader.line_num}: a row must hold layer, ffn_norm, attention_norm, normalised and "
                f"chosen ({type(error).__name__}: {error})."
            ) from error


def _read_events(path: Path, *, with_dense: bool) -> Events:
    """Read the event log; a torn line (the run was killed while writing) is left out.

    Without `with_dense` the events of a control that an earlier recipe of this folder trained are left out as well.
    """
    events = Events()
    for event in _event_lines(path, events):
        if event.get("event") == "step" and isinstance(event.get("step"), int):
            steps = events.steps.setdefault(str(event.get("stage")), [])
            # A resumed stage logs again the steps after its last checkpoint: the later line is what happened.
            while steps and steps[-1].step >= event["step"]:
                steps.pop()
            loss = event.get("language_model_loss", event.get("loss"))
            steps.append(
                Step(event["step"], _number(loss), _number(event.get("router_loss")), str(event.get("routing") or ""))
            )
        elif event.get("event") == "tokens" and event.get("stage") == "train":
            events.tokens = {
                tag: [n if isinstance(n, int) else 0 for n in counts] for tag, counts in event["tokens"].items()
            }
    if not with_dense:
        events.steps.pop("dense", None)
    return events


def _event_lines(path: Path, events: Events) -> Iterator[dict[str, Any]]:
    """Yield the events of a log one by one, as it can be long."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                event = clean_all(json.loads(line))
            except ValueError:
                event = None
            if isinstance(event, dict):
                yield event
            elif line.endswith("\n"):
                # An unfinished last line only says that the log was cut off; one in the middle is worth a remark.
                events.num_unreadable += 1


def _number(value: Any) -> float:
    """Return a logged number, NaN where there is none."""
    return float(value) if isinstance(value, int | float) else math.nan
