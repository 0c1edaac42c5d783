"""What all methods of a comparison share: tokenizer, corpora, base, probe, and the order of the sequences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from sprachbund.compare.methods import BaseSizes, Method
from sprachbund.corpora.packing import load_packed
from sprachbund.evaluation import TestText
from sprachbund.grouping.greedy import Grouping
from sprachbund.modeling.base import check_base, read_config
from sprachbund.modeling.skeleton import dense_ffn_shape
from sprachbund.recipe import Experts, Layers, ProbeSource, Recipe, Stage, Train
from sprachbund.run.data import Corpora, PackedCorpora, read_test_text
from sprachbund.run.directory import open_run, read_run
from sprachbund.run.pipeline import Pipeline
from sprachbund.run.probing import DenseBase

PLAIN = {"resamples": 0}  # of a grouping: how stable it is, is no question here


@dataclass(frozen=True)
class Shared:
    """The shared run, as far as a job in another process needs it; `recipe` is the comparison's.

    `base_mark` and `digest` tell whether base and token streams have changed; `stream` is the grouping of the
    comparison's own recipe, by which sequences are drawn.
    """

    folder: Path
    recipe: Recipe
    base: DenseBase
    base_mark: str
    digest: str
    stream: Grouping


DEV_TOKENS = 8192  # per language: enough to tell learning rates apart, a fraction of what a test needs


class Materials:
    """Tokenizer, token streams and texts of the shared run, read once per process."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.corpora = Corpora(shared.recipe)
        self._texts: dict[str, dict[str, TestText]] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return self.shared.base.load_tokenizer()

    @cached_property
    def packed(self) -> PackedCorpora:
        """The train split as token streams; raises InputError where the cache that holds them was emptied."""
        facts = json.loads((self.shared.folder / "corpora.json").read_text(encoding="utf-8"))
        return PackedCorpora(
            {tag: load_packed(Path(facts[tag]["file"]), name=f"{tag} (train)") for tag in self.shared.recipe.languages}
        )

    def texts(self, split: str) -> dict[str, TestText]:
        """Return what every language is scored on; raises InputError where that is too short."""
        if split not in self._texts:
            changes: dict[str, Any] = {"split": split}
            if split == "dev":
                changes["tokens"] = min(self.shared.recipe.evaluate.tokens or DEV_TOKENS, DEV_TOKENS)
            settings = self.shared.recipe.evaluate.model_copy(update=changes)
            corpora = Corpora(self.shared.recipe.model_copy(update={"evaluate": settings}))
            tags = self.shared.recipe.languages
            self._texts[split] = {tag: read_test_text(corpora, tag, self.tokenizer) for tag in tags}
        return self._texts[split]


_CACHE: dict[tuple[Path, str, str], Materials] = {}


def materials(shared: Shared) -> Materials:
    """Return the shared run's materials; a process has those of one comparison at a time."""
    key = (shared.folder, shared.digest, shared.base_mark)
    if key not in _CACHE:
        _CACHE.clear()
        _CACHE[key] = Materials(shared)
    return _CACHE[key]


def base_sizes(recipe: Recipe) -> BaseSizes:
    """Return the sizes of a recipe's base, of one from scratch before it is trained."""
    if (scratch := recipe.base.scratch) is not None:
        return BaseSizes(scratch.num_layers, scratch.hidden_size, scratch.ffn_size)
    check_base(recipe)
    config = read_config(recipe.base)
    return BaseSizes(config.num_hidden_layers, config.hidden_size, dense_ffn_shape(config).width)


def needs_similarity(recipe: Recipe) -> bool:
    """Do the recipe's groups need one? One group, and one for each language, do not."""
    return recipe.groups.given is None and recipe.groups.count not in (1, len(recipe.languages))


def shared_recipe(recipe: Recipe, methods: Sequence[Method], known: Recipe | None) -> Recipe:
    """Return the recipe of the shared run: the comparison's, with every source that a method groups or chooses by.

    A source that was measured before (`known`) stays: fewer methods need no other probe. What only the trainings of
    methods read is left at fixed values: a change there is a change of methods, which are then trained anew, and base
    and probe stay.
    """
    wanted: set[str] = set(recipe.probe_sources()) | set(known.probe.sources if known else ())
    for method in methods:
        if method.has_groups:
            needed = method.recipe if needs_similarity(method.recipe) else _given(method.recipe)
            wanted |= set(needed.probe_sources())
    sources = [source for source in get_args(ProbeSource) if source in wanted]
    return _with_sources(recipe, sources).model_copy(
        update={
            "compare": None,
            "preset": "default",
            "groups": recipe.groups.model_copy(update=PLAIN),
            "layers": Layers(all=True),
            "experts": Experts(),
            "train": _sizes_alone(recipe.train),
        }
    )


def _sizes_alone(train: Train) -> Train:
    """Return the training of a recipe as far as base and probe read it."""
    read = train.model_dump(include={"tokens_per_step", "micro_batch_tokens", "block_size", "dtype"})
    more = train.model_dump(include={"gradient_checkpointing", "checkpoints", "trackers"})
    return Train(**read, **more, tokens=train.tokens_per_step, stages=[Stage(share=1.0)])


def _given(recipe: Recipe) -> Recipe:
    """Return a recipe whose groups need no source."""
    return recipe.model_copy(update={"groups": recipe.groups.model_copy(update={"given": "none"})})


def _with_sources(recipe: Recipe, sources: Sequence[ProbeSource]) -> Recipe:
    return recipe.model_copy(update={"probe": recipe.probe.model_copy(update={"sources": list(sources)})})


@contextmanager
def shared_run(recipe: Recipe, methods: Sequence[Method], folder: Path) -> Iterator[tuple[Pipeline, Shared]]:
    """Open the shared run with base, probe and groups done; raises InputError for a folder of another recipe."""
    known = read_run(folder) if (folder / "recipe.yaml").is_file() else None
    ours = shared_recipe(recipe, methods, known)
    # further sources are no other recipe; all else that differs is
    more = known is not None and known != ours and _with_sources(known, ours.probe.sources) == ours
    run = open_run(ours, folder, update=more)
    try:
        stages = Pipeline(run)
        grouping, base = stages.grouping, stages.base
        _ = stages.probes
        yield (
            stages,
            Shared(
                folder,
                recipe.model_copy(update={"compare": None}),
                base,
                run.fingerprints["base"],
                stages.packed.digest,
                grouping,
            ),
        )
    finally:
        run.close()
