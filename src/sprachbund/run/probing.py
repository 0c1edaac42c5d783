"""The stages from a base to a plan for the mixture: base, probe, groups, layers."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.corpora.packing import Packed, block_sequence
from sprachbund.errors import InputError
from sprachbund.files import read_text, write_text
from sprachbund.grouping.greedy import Grouping, group, read_groups, write_groups
from sprachbund.grouping.layers import choose_by_epsilon, choose_top, mean_norms, noise_warning, normalised
from sprachbund.grouping.similarity_csv import read_similarity, write_similarity
from sprachbund.modeling.base import device, load_model, read_config, scratch_model
from sprachbund.modeling.ffn import family_of
from sprachbund.progress import say, track
from sprachbund.recipe import Base, Layers
from sprachbund.run.data import PackedCorpora, batch_schedule
from sprachbund.run.directory import Run
from sprachbund.run.learning import drop_checkpoints, run_training
from sprachbund.similarity import (
    CountSketch,
    LanguageProbe,
    deviation_similarity,
    load_probe,
    probe_language,
    save_probe,
)
from sprachbund.training import TrainingBlocks
from sprachbund.training.stages import plan_base

MARK = "fingerprint"  # of the probe folder: what its results were computed from


@dataclass(frozen=True)
class DenseBase:
    """The dense base on disk or on the Hub; `load` gives a fresh copy of it."""

    path: str
    revision: str
    trust_remote_code: bool
    dtype: str

    def num_layers(self) -> int:
        """Return the number of decoder layers, by the configuration alone."""
        base = Base(path=self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        return int(read_config(base).num_hidden_layers)

    def load(self, *, dtype: str | None = None) -> Any:
        """Return the model on the device, its weights in the recipe's dtype or another."""
        model = load_model(
            self.path, revision=self.revision, trust_remote_code=self.trust_remote_code, dtype=dtype or self.dtype
        )
        family_of(model.config.model_type)
        return model.to(device()).eval()


def make_base(run: Run, packed: PackedCorpora, tokenizer: Any) -> DenseBase:
    """Return the base; `scratch` trains one on the mixture into RUN/base."""
    recipe = run.recipe
    base, dtype = recipe.base, recipe.train.dtype
    if base.scratch is None:
        config = read_config(base)
        if len(tokenizer) > config.vocab_size:
            raise InputError(
                f"base: the tokenizer of {base.path} has {len(tokenizer)} tokens, its model embeds "
                f"{config.vocab_size}; give a base whose two parts belong together"
            )
        revision = getattr(config, "_commit_hash", None) or base.revision  # a branch moves, a commit does not
        run.fingerprints["base"] = f"{base.path}@{revision} {dtype} {_weights_state(Path(base.path or ''))}"
        return DenseBase(base.path or "", revision, base.trust_remote_code, dtype)
    scratch, folder = base.scratch, run.path("base")
    plan = plan_base(scratch, recipe)

    def work() -> Mapping[str, Any]:
        model = scratch_model(
            scratch,
            vocab_size=len(tokenizer),
            block_size=recipe.train.block_size,
            eos_token_id=tokenizer.eos_token_id,
            seed=recipe.seed,
        ).to(device())
        blocks = TrainingBlocks(
            list(packed.train.values()),
            list(packed.train),
            batch_schedule(run, packed, num_steps=plan.num_steps, batch_size=plan.batch_size, groups=None),
            block_size=recipe.train.block_size,
            micro_batch_size=plan.micro_batch_size,
            seed=recipe.seed,
        )
        groups = [0] * len(packed.train)
        return run_training(run, "base", model, blocks, plan, groups=groups, tokenizer=tokenizer, keep=folder)

    inputs = [scratch.model_dump(), packed.digest, recipe.mixture.model_dump(), recipe.train.block_size, recipe.seed]
    run.stage("base", [*inputs, recipe.train.dtype], ["base"], work, after=["tokenizer"], precious=True)
    drop_checkpoints(run, "base")
    return DenseBase(str(folder), "main", False, dtype)


def _weights_state(folder: Path) -> list[Any]:
    """Return names, sizes and times of a local checkpoint's files, which tell whether it has changed."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


def probe(run: Run, base: DenseBase, packed: PackedCorpora) -> list[LanguageProbe]:
    """Probe every language; a language's result is on disk as soon as it is there, and is not computed again."""
    recipe, folder = run.recipe, run.path("probe")
    settings = recipe.probe

    def work() -> Mapping[str, Any]:
        model = base.load()
        layers = probed_layers(settings.layers, model.config.num_hidden_layers)
        ffn = family_of(model.config.model_type).ffn
        start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        sketch = CountSketch(settings.sketch_size, seed=recipe.seed)
        mark = run.fingerprints["probe"]
        if folder.exists() and (not (folder / MARK).exists() or (folder / MARK).read_text() != mark):
            shutil.rmtree(folder)
        write_text(folder / MARK, mark)
        norms = {}
        with track("probe", len(packed.train)) as advance:
            for tag, corpus in packed.train.items():
                file = folder / f"{tag}.safetensors"
                if not file.exists():
                    result = probe_language(
                        model,
                        _probe_steps(run, corpus, tag),
                        tag=tag,
                        ffn=ffn,
                        num_steps=settings.steps,
                        learning_rate=settings.learning_rate,
                        layers=layers,
                        sketch=sketch,
                        base=start,
                    )
                    save_probe(file, result)
                    run.log("probe", "language", language=tag, losses=result.losses)
                result = load_probe(file)
                norms[tag] = {"delta_norm_ffn": result.ffn_norms, "delta_norm_att": result.attention_norms}
                advance(1, tag)
        write_text(folder / "probe.json", json.dumps(norms, indent=1) + "\n")
        tokens = settings.steps * _probe_batch(run) * recipe.train.block_size
        return {"layers": layers, "tokens": tokens * len(packed.train)}

    inputs = [settings.model_dump(exclude={"center"}), packed.digest, recipe.train.block_size, recipe.seed]
    inputs += [recipe.train.dtype]
    run.stage("probe", inputs, ["probe/probe.json"], work, after=["base"])
    return [load_probe(folder / f"{tag}.safetensors") for tag in packed.train]


def probed_layers(choice: str, num_layers: int) -> list[int]:
    """Return the layers that `all` or `last:N` names."""
    last = num_layers if choice == "all" else int(choice.removeprefix("last:"))
    return list(range(max(num_layers - last, 0), num_layers))


def _probe_batch(run: Run) -> int:
    return max(run.recipe.probe.tokens_per_step // run.recipe.train.block_size, 1)


def _probe_steps(run: Run, corpus: Packed, tag: str) -> Iterator[list[Tensor]]:
    """Yield each step's micro-batches, (B, T) token ids of one language."""
    train, batch = run.recipe.train, _probe_batch(run)
    micro = min((train.micro_batch_tokens or train.tokens_per_step) // train.block_size, batch)
    count = run.recipe.probe.steps * batch
    order = block_sequence(corpus.num_blocks(train.block_size), count, seed=run.recipe.seed, tag=f"probe/{tag}")
    for step in order.reshape(run.recipe.probe.steps, batch):
        ids_BT = torch.stack([torch.from_numpy(corpus.block(int(i), train.block_size)) for i in step])
        # equal micro-batches, so that the mean of their losses is the step's
        parts = next(n for n in range(-(-batch // micro), batch + 1) if batch % n == 0)
        yield list(ids_BT.chunk(parts))


def group_languages(run: Run, probes: list[LanguageProbe] | None) -> Grouping:
    """Return the grouping: given, or computed from the probe's similarity; writes similarity.csv and groups.json."""
    recipe = run.recipe
    settings = recipe.groups

    def work() -> Mapping[str, Any]:
        if settings.given is not None:
            run.path("similarity.csv").unlink(missing_ok=True)
            grouping = read_groups(Path(settings.given), tags=recipe.tags())
        else:
            if probes is None:
                raise RuntimeError("grouping needs the probe")
            write_similarity(run.path("similarity.csv"), deviation_similarity(probes, center=recipe.probe.center))
            similarity = read_similarity(run.path("similarity.csv"))
            grouping = group(similarity, num_groups=settings.count, method=settings.method)
        write_groups(run.path("groups.json"), grouping)
        return {"groups": [list(members) for members in grouping.groups]}

    given = read_text(Path(settings.given)) if settings.given else ""
    inputs = [settings.model_dump(), given, recipe.probe.center, recipe.tags()]
    after = [] if settings.given is not None else ["probe"]
    run.stage("groups", inputs, ["groups.json"], work, after=after)
    return read_groups(run.path("groups.json"), tags=recipe.tags())


def choose_layers(run: Run, base: DenseBase, probes: list[LanguageProbe] | None) -> list[int]:
    """Return the layers that become mixtures; writes layers.csv where there is a probe."""
    choice = run.recipe.layers

    def work() -> Mapping[str, Any]:
        if probes is None:
            run.path("layers.csv").unlink(missing_ok=True)
            return {"layers": choice.given or list(range(base.num_layers()))}
        ffn = mean_norms({p.tag: p.ffn_norms for p in probes})
        attention = mean_norms({p.tag: p.attention_norms for p in probes})
        layers = _chosen(choice, ffn)
        if choice.epsilon is not None and (warning := noise_warning(ffn)):
            say(f"layers: {warning}")
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(["layer", "ffn_norm", "attention_norm", "normalised", "chosen"])
        for layer, values in enumerate(zip(ffn, attention, normalised(ffn), strict=True)):
            rows.writerow([layer, *(f"{value:.6g}" for value in values), int(layer in layers)])
        write_text(run.path("layers.csv"), table.getvalue())
        return {"layers": layers}

    outputs, after = (["layers.csv"], ["probe"]) if probes is not None else ([], ["base"])
    result = run.stage("layers", choice.model_dump(), outputs, work, after=after)
    return [int(layer) for layer in result["layers"]]


def _chosen(choice: Layers, norms: list[float]) -> list[int]:
    if choice.epsilon is not None:
        return choose_by_epsilon(norms, epsilon=choice.epsilon)
    if choice.top is not None:
        if choice.top > len(norms):
            raise InputError(f"layers.top = {choice.top} is more than the base's {len(norms)} layers")
        return choose_top(norms, num_layers=choice.top)
    if choice.given is not None:
        if max(choice.given) >= len(norms):
            raise InputError(f"layers.given names layer {max(choice.given)}; the base has layers 0 to {len(norms) - 1}")
        return sorted(choice.given)
    return list(range(len(norms)))
