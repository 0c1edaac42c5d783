"""The stages from a base to a plan for the mixture: base, probe, groups, layers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprachbund.corpora.packing import Packed, block_sequence
from sprachbund.corpora.sentences import evenly_spaced, read_parallel
from sprachbund.errors import InputError
from sprachbund.files import write_bytes, write_text
from sprachbund.memory import keep_freed_memory
from sprachbund.modeling.base import device, load_model, load_tokenizer, read_config, scratch_model, tokenize_with
from sprachbund.modeling.ffn import family_of
from sprachbund.parallel import world_size
from sprachbund.progress import track
from sprachbund.recipe import Base, Recipe
from sprachbund.run.data import Corpora, PackedCorpora, batch_schedule
from sprachbund.run.directory import Run
from sprachbund.run.learning import drop_checkpoints, run_training
from sprachbund.similarity import (
    FineTuning,
    LanguageProbe,
    Signal,
    Sketches,
    count_characters,
    count_tokens,
    load_probe,
    measure_gradient,
    measure_representation,
    probe_bytes,
    probe_language,
)
from sprachbund.training import TrainingBlocks
from sprachbund.training.stages import plan_base

MARK = "fingerprint"  # of the probe folder: what its results were computed from
MODEL_SOURCES = ("deviation", "gradient", "representation")
STATES_AT_ONCE = 4096  # tokens of which the hidden states of all layers are held: 1 GB for 32 layers of width 4096


@dataclass(frozen=True)
class DenseBase:
    """The dense base on disk or on the Hub; `load` gives a fresh copy of it."""

    path: str
    revision: str
    trust_remote_code: bool
    dtype: str

    def config(self) -> Any:
        """Return the model's configuration."""
        return read_config(Base(path=self.path, revision=self.revision, trust_remote_code=self.trust_remote_code))

    def num_layers(self) -> int:
        """Return the number of decoder layers, by the configuration alone."""
        return int(self.config().num_hidden_layers)

    def load(self, *, dtype: str | None = None, on: torch.device | None = None) -> Any:
        """Return the model on the device, or another, its weights in the recipe's dtype or another."""
        model = load_model(
            self.path, revision=self.revision, trust_remote_code=self.trust_remote_code, dtype=dtype or self.dtype
        )
        family_of(model.config.model_type)
        return model.to(on or device()).eval()

    def load_tokenizer(self) -> Any:
        """Return the tokenizer beside it."""
        return load_tokenizer(self.path, revision=self.revision, trust_remote_code=self.trust_remote_code)


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
    plan = plan_base(scratch, recipe).on_ranks(world_size())

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

    made_of = scratch.model_dump(exclude={"tokenizer"})  # of the tokenizer its content counts, not its folder
    inputs = [made_of, packed.digest, recipe.mixture.model_dump(), recipe.train.block_size, recipe.seed]
    run.stage("base", [*inputs, recipe.train.dtype], ["base"], work, after=["tokenizer"], precious=True)
    drop_checkpoints(run, "base")
    return DenseBase(str(folder), "main", False, dtype)


def _weights_state(folder: Path) -> list[Any]:
    """Return names, sizes and times of a local checkpoint's files, which tell whether it has changed."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()]


@dataclass(frozen=True)
class Probes:
    """What the probe found in every language, in the order of the recipe; vectors are read from disk when asked for."""

    languages: dict[str, LanguageProbe]

    @property
    def signals(self) -> dict[str, dict[str, Signal]]:
        """The signals by source and language."""
        sources = next(iter(self.languages.values())).signals
        return {source: {tag: probe.signals[source] for tag, probe in self.languages.items()} for source in sources}

    @property
    def ffn_norms(self) -> dict[str, list[float]]:
        """How far each layer's FFN moved, by language; empty where nothing was fine-tuned."""
        return {tag: probe.ffn_norms for tag, probe in self.languages.items() if probe.ffn_norms}

    @property
    def attention_norms(self) -> dict[str, list[float]]:
        """How far each layer's attention moved, by language; empty where nothing was fine-tuned."""
        return {tag: probe.attention_norms for tag, probe in self.languages.items() if probe.attention_norms}

    @property
    def norms(self) -> dict[str, dict[str, list[float]]]:
        """Both, in the form of the authors' files."""
        attention = self.attention_norms
        return {tag: {"delta_norm_ffn": ffn, "delta_norm_att": attention[tag]} for tag, ffn in self.ffn_norms.items()}


@dataclass(frozen=True)
class LanguageText:
    """What the probe reads of one language: its token stream, and texts for the sources that read texts."""

    tag: str
    stream: Packed
    sentences: Sequence[str] = ()
    documents: Sequence[str] = ()


@dataclass(frozen=True)
class ProbeJob:
    """What a recipe's probe measures and reads; the base is None where no source needs it."""

    recipe: Recipe
    base: DenseBase | None
    packed: PackedCorpora
    corpora: Corpora
    parallel: dict[str, list[str]] | None

    def text(self, tag: str) -> LanguageText:
        """Return what is read of one language; sentences are documents, spread evenly, where none are parallel."""
        sources, sentences = self.recipe.probe_sources(), list[str]()
        documents: Sequence[str] = ()
        if "characters" in sources:
            documents = self.corpora.documents[tag].train
        if "representation" in sources and self.parallel is not None:
            sentences = self.parallel[tag]
        elif "representation" in sources:
            train = self.corpora.documents[tag].train
            sentences = [train[i] for i in evenly_spaced(len(train), most=self.recipe.probe.num_sentences)]
        return LanguageText(tag, self.packed.train[tag], sentences, documents)


# Measures the given languages and yields, as soon as each is there, its tag and the content of its file. Which engine
# did it changes no result, so that no fingerprint knows of it.
Engine = Callable[[ProbeJob, Sequence[str]], Generator[tuple[str, bytes], None, None]]


def measure_here(job: ProbeJob, tags: Sequence[str]) -> Generator[tuple[str, bytes], None, None]:
    """Measure one language after the other in this process: the engine that needs nothing."""
    measure = Measure(job.recipe, job.base)
    for tag in tags:
        yield tag, probe_bytes(measure(job.text(tag)))


def probe(
    run: Run,
    base: DenseBase | None,
    packed: PackedCorpora,
    corpora: Corpora,
    *,
    engine: Engine = measure_here,
) -> Probes:
    """Read from the base how alike the languages are, by every source of the recipe, in one pass.

    The base is needed by the sources of MODEL_SOURCES only. A language's result is on disk as soon as it is there and
    is not computed again; but another source or setting means another probe, which starts afresh.

    Raises:
        InputError: layers that the base does not have, or parallel sentences that are none.
        SprachbundError: a measurement that is not finite.
    """
    recipe, folder = run.recipe, run.path("probe")
    settings, sources = recipe.probe, recipe.probe_sources()
    parallel = None
    if "representation" in sources and settings.sentences is not None:
        parallel = read_parallel(settings.sentences, recipe.tags(), most=settings.num_sentences)
    used = base if any(source in MODEL_SOURCES for source in sources) else None

    def work() -> Mapping[str, Any]:
        layers = probed_layers(settings.layers, used.num_layers()) if used is not None else []
        _measure_missing(run, ProbeJob(recipe, used, packed, corpora, parallel), engine)
        write_text(folder / "probe.json", json.dumps(_load(folder, packed).norms, indent=1) + "\n")
        passes = sum(source in sources for source in ("deviation", "gradient"))
        tokens = passes * settings.repeats * settings.steps * probe_batch(recipe) * recipe.train.block_size
        return {"layers": layers, "sources": sources, "tokens": tokens * len(packed.train)}

    inputs: list[Any] = [settings.model_dump(exclude={"center", "sources"}), sources, parallel, packed.digest]
    inputs += [recipe.train.block_size, recipe.seed, recipe.train.dtype]
    files = [f"probe/{tag}.safetensors" for tag in packed.train]
    run.stage("probe", inputs, ["probe/probe.json", *files], work, after=["base"] if used is not None else [])
    return _load(folder, packed)


def _measure_missing(run: Run, job: ProbeJob, engine: Engine) -> None:
    """Fill RUN/probe; what is there of the very same probe stays."""
    folder, mark = run.path("probe"), run.fingerprints["probe"]
    if folder.exists() and (not (folder / MARK).exists() or (folder / MARK).read_text() != mark):
        shutil.rmtree(folder)
    write_text(folder / MARK, mark)
    files = {tag: folder / f"{tag}.safetensors" for tag in job.packed.train}
    missing = [tag for tag, file in files.items() if not file.exists()]
    if not missing:
        return
    done = len(files) - len(missing)
    with track("probe", len(files), start=done) as advance, closing(engine(job, missing)) as measured:
        for tag, content in measured:
            write_bytes(files[tag], content)
            run.log("probe", "language", language=tag, losses=load_probe(files[tag]).losses)
            advance(1, tag)


def _load(folder: Path, packed: PackedCorpora) -> Probes:
    return Probes({tag: load_probe(folder / f"{tag}.safetensors") for tag in packed.train})


class Measure:
    """Measures one language after the other by every source."""

    def __init__(self, recipe: Recipe, base: DenseBase | None) -> None:
        self.recipe, self.sources = recipe, recipe.probe_sources()
        if base is None:
            return
        settings = recipe.probe
        self.model = base.load()
        if self.model.device.type == "cpu":
            keep_freed_memory()
        if "deviation" in self.sources:
            self.start = _set_aside(self.model)
        self.ffn = family_of(self.model.config.model_type).ffn
        self.layers = probed_layers(settings.layers, self.model.config.num_hidden_layers)
        self.hidden_layer = hidden_layer(settings.hidden_layer, self.model.config.num_hidden_layers)
        num_parts = settings.steps * settings.repeats
        self.sketches = Sketches(settings.sketch_size, num_parts=num_parts, seed=recipe.seed)
        if "representation" in self.sources:
            self.tokenize = tokenize_with(base.load_tokenizer())

    def __call__(self, text: LanguageText) -> LanguageProbe:
        """Return what the probe of one language finds: first at the base's weights, then by moving them."""
        settings, signals, tag = self.recipe.probe, dict[str, Signal](), text.tag
        if "representation" in self.sources:
            signals["representation"] = measure_representation(
                self.model,
                [ids[: self.recipe.train.block_size] for ids in self.tokenize(text.sentences) if ids],
                tag=tag,
                hidden_layer=self.hidden_layer,
                batch_tokens=min(probe_micro_batch(self.recipe) * self.recipe.train.block_size, STATES_AT_ONCE),
            )
        if "lexical" in self.sources:
            signals["lexical"] = count_tokens(text.stream.tokens)
        if "characters" in self.sources:
            signals["characters"] = count_characters(text.documents, ngram=settings.ngram)
        steps = steps_of(self.recipe, text.stream, tag)
        if "gradient" in self.sources:
            signals["gradient"] = measure_gradient(
                self.model, steps, tag=tag, ffn=self.ffn, layers=self.layers, sketches=self.sketches
            )
        found = LanguageProbe(tag, {})
        if "deviation" in self.sources:
            torch.manual_seed(_seed_of(self.recipe, tag))
            found = probe_language(
                self.model,
                steps,
                tag=tag,
                ffn=self.ffn,
                tuning=FineTuning(settings.steps, settings.learning_rate, settings.optimizer),
                layers=self.layers,
                sketches=self.sketches,
                base=self.start,
            )
        signals.update(found.signals)
        return replace(found, signals={source: signals[source] for source in self.sources})


def _set_aside(model: Any) -> dict[str, Tensor]:
    """Return the parameters as they were loaded, and let the model work on copies.

    This way round, and not copies to restore from, because loaded parameters of the file's dtype are the file itself,
    mapped into memory: as long as nobody writes to them, all processes of a machine share them.
    """
    start = {}
    for name, parameter in model.named_parameters():
        start[name] = parameter.data
        parameter.data = parameter.data.clone()
    return start


def _seed_of(recipe: Recipe, tag: str) -> int:
    """Return the seed of one language's dropout: the same whichever languages this process measured before."""
    return int.from_bytes(blake2b(f"probe/{recipe.seed}/{tag}".encode(), digest_size=7).digest(), "big")


def probed_layers(choice: str | list[int], num_layers: int) -> list[int]:
    """Return the layers that `all`, `last:N` or a list names; raises InputError for a layer that is not there."""
    if isinstance(choice, list):
        if max(choice) >= num_layers:
            raise InputError(f"probe.layers names layer {max(choice)}; the base has layers 0 to {num_layers - 1}")
        return sorted(choice)
    last = num_layers if choice == "all" else int(choice.removeprefix("last:"))
    return list(range(max(num_layers - last, 0), num_layers))


def hidden_layer(choice: int | None, num_layers: int) -> int:
    """Return after how many layers representations are read; raises InputError for more than there are."""
    if choice is not None and choice > num_layers:
        raise InputError(f"probe.hidden_layer = {choice} is more than the base's {num_layers} layers")
    return num_layers // 2 if choice is None else choice


def probe_batch(recipe: Recipe) -> int:
    """Return the sequences of one step."""
    return max(recipe.probe.tokens_per_step // recipe.train.block_size, 1)


def probe_micro_batch(recipe: Recipe) -> int:
    """Return the sequences of one micro-batch: as many as may be on the device at once, or fewer.

    Micro-batches are equally large, so that the mean of their losses is the step's.
    """
    train, batch = recipe.train, probe_batch(recipe)
    most = min((train.micro_batch_tokens or train.tokens_per_step) // train.block_size, batch)
    return next(size for size in range(most, 0, -1) if batch % size == 0)


@dataclass(frozen=True)
class _Steps:
    """The steps of one repeat, each a list of micro-batches (B, T), read from the stream whenever they are needed."""

    corpus: Packed
    order_SB: NDArray[np.int64]
    block_size: int
    num_micro_batches: int

    def __iter__(self) -> Iterator[list[Tensor]]:
        for step in self.order_SB:
            ids_BT = torch.stack([torch.from_numpy(self.corpus.block(int(i), self.block_size)) for i in step])
            yield list(ids_BT.chunk(self.num_micro_batches))


def steps_of(recipe: Recipe, corpus: Packed, tag: str) -> list[_Steps]:
    """Return the steps of every repeat of one language: no block twice before every block was used once."""
    settings, block_size, batch = recipe.probe, recipe.train.block_size, probe_batch(recipe)
    num_micro_batches = batch // probe_micro_batch(recipe)
    count = settings.repeats * settings.steps * batch
    order = block_sequence(corpus.num_blocks(block_size), count, seed=recipe.seed, tag=f"probe/{tag}")
    return [
        _Steps(corpus, order_SB, block_size, num_micro_batches)
        for order_SB in order.reshape(settings.repeats, settings.steps, batch)
    ]
