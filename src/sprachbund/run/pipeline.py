"""The stages of a run in their order; each is computed when it is asked for, once, with all that it needs."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import set_seed

from sprachbund.export.card import write_card
from sprachbund.grouping.greedy import Grouping
from sprachbund.modeling.base import check_arithmetic, quiet
from sprachbund.run import learning, planning, probing, scoring
from sprachbund.run.data import Corpora, PackedCorpora, make_tokenizer, pack_corpora
from sprachbund.run.directory import Run


class Pipeline:
    """corpora -> probe -> groups, layers -> dense, train -> evaluate -> report."""

    def __init__(self, run: Run) -> None:
        quiet()
        set_seed(run.recipe.seed)
        check_arithmetic(run.recipe.train.dtype)
        self.run = run
        self.probe_engine: probing.Engine = probing.measure_here

    @cached_property
    def corpora(self) -> Corpora:
        """Every language's documents."""
        return Corpora(self.run.recipe)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer."""
        return make_tokenizer(self.run, self.corpora)

    @cached_property
    def packed(self) -> PackedCorpora:
        """The train split as token streams."""
        tokenizer = self.tokenizer
        return pack_corpora(self.run, self.corpora, tokenizer)

    @cached_property
    def base(self) -> probing.DenseBase:
        """The dense base."""
        packed = self.packed
        return probing.make_base(self.run, packed, self.tokenizer)

    @cached_property
    def probes(self) -> probing.Probes | None:
        """What the probe measured; None where nothing reads it."""
        sources = self.run.recipe.probe_sources()
        if not sources:
            return None
        base = self.base if set(sources) & set(probing.MODEL_SOURCES) else None
        return probing.probe(self.run, base, self.packed, self.corpora, engine=self.probe_engine)

    @cached_property
    def similarities(self) -> dict[str, Path]:
        """The similarity files, the one to group by first."""
        return planning.compare_languages(self.run, self.probes)

    @cached_property
    def grouping(self) -> Grouping:
        """The groups; given ones need no similarity."""
        packed = self.packed
        if self.run.recipe.groups_by_similarity or self.run.recipe.probe.sources:
            _ = self.similarities
        return planning.group_languages(self.run, self.probes, packed)

    @cached_property
    def layers(self) -> planning.LayerPlan:
        """The mixture layers."""
        base, grouping = self.base, self.grouping
        return planning.choose_layers(self.run, base, self.probes, grouping)

    @cached_property
    def dense(self) -> dict[str, Any]:
        """The dense control's facts, its model in RUN/dense."""
        base, grouping = self.base, self.grouping
        return learning.train_dense(self.run, base, self.packed, grouping, self.tokenizer)

    @cached_property
    def trained(self) -> dict[str, Any]:
        """The mixture's facts, its model in RUN/model."""
        base, grouping, layers = self.base, self.grouping, self.layers
        return learning.train_mixture(self.run, base, self.packed, grouping, layers, self.tokenizer)

    def expanded(self) -> Path:
        """Write the mixture at step 0 to RUN/expanded."""
        base, grouping, layers = self.base, self.grouping, self.layers
        folder = self.run.path("expanded")
        model = learning.expand_base(self.run, base, self.packed, grouping, layers)
        learning.save_model(model, self.tokenizer, folder, dtype=self.run.recipe.train.dtype)
        write_card(folder, base=self.run.recipe.base.path)  # no run: nothing has been trained
        return folder

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Every score, also in RUN/metrics.json."""
        base = self.base
        if self.run.recipe.dense.train:
            _ = self.dense
        _ = self.trained
        return scoring.evaluate(
            self.run, base, self.corpora, self.tokenizer, self.grouping, retrain_dense=self._retrain_dense
        )

    def _retrain_dense(self) -> None:
        self.run.forget("dense")
        learning.train_dense(self.run, self.base, self.packed, self.grouping, self.tokenizer)

    def report(self) -> Path:
        """Return the path of report.html."""
        _ = self.metrics
        return scoring.report(self.run)
