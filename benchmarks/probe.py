"""The probe against the authors' procedure, on a tiny model and 18 languages: time, memory, disk, the same similarity.

python benchmarks/probe.py [WORK_FOLDER]; writes benchmarks/results/probe.json; exit status 1 where a bar fails. About
five minutes on 2 idle cores; no download: the corpus is the embedded CLDR's, the base is made on the spot and trained
briefly on four of the languages, since the deviations of an untrained one tell nothing.

The control re-writes the authors' procedure: for each language load the base, fine-tune it with the Hugging Face
Trainer (AdamW, linear decay), save a full checkpoint; afterwards load base and checkpoints, subtract, and compute the
cosines of all pairs as one broadcast tensor (N, N, P). It gets exactly our blocks in our steps; unlike theirs its
gradients are not clipped and nothing is padded, since ours are not, and it saves one checkpoint where they save two.

As released each language is a process of its own; the bar for time is against that. The same in one process, which
pays once for starting and importing, is measured too, and its ratio is printed and kept beside: there both sides do
little else than fine-tune, with the same arithmetic, and ours is a little faster. So it is at the paper's size, whose
steps are two thousand times longer than these: what the probe saves there is memory and disk.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import RESULTS, machine
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity
from transformers import Trainer, TrainingArguments

from sprachbund.corpora.packing import load_packed
from sprachbund.modeling.base import load_model, quiet
from sprachbund.recipe import Recipe
from sprachbund.recipe_file import build_recipe
from sprachbund.run import probing
from sprachbund.run.data import Corpora, PackedCorpora, make_tokenizer, pack_corpora
from sprachbund.run.directory import open_run
from sprachbund.similarity import similarity_of

LOCALES = ["es", "pt", "it", "gl", "de", "nl", "sv", "da", "cs", "sk", "hr", "sl", "ru", "uk", "be", "bg", "hi", "mr"]
KNOWN = ("es", "de", "cs", "ru")  # what the base is trained on
SCRATCH = {
    "family": "qwen3",
    "hidden_size": 128,
    "num_layers": 6,
    "ffn_size": 512,
    "num_heads": 4,
    "vocab_size": 2048,
    "tokens": 40_960,
    "tokens_per_step": 2048,
}
STEPS, BLOCKS, BLOCK_SIZE, RATE, LAST = 10, 4, 128, 3e-3, 3
SKETCH_SIZE, WHOLE = 4096, 1 << 20
RELEASED, GENEROUS = "a process per language, as released", "all in one process"
LEAST_SPEED, MOST_MEMORY, MOST_DISK, LEAST_SPEARMAN, MOST_DIFFERENCE = 2.0, 0.6, 0.01, 0.99, 1e-4


def recipe_of(locales: Sequence[str], base: Any, *, sketch_size: int = SKETCH_SIZE) -> Recipe:
    """Return a recipe over some locales, with the paper's settings as far as a tiny model allows."""
    recipe = {
        "name": "probe",
        "preset": "paper",
        "base": base,
        "languages": {locale: {"cldr": locale, "lines": 600} for locale in locales},
        "probe": {
            "steps": STEPS,
            "tokens_per_step": BLOCKS * BLOCK_SIZE,
            "learning_rate": RATE,
            "layers": f"last:{LAST}",
            "sketch_size": sketch_size,
        },
        "groups": {"count": 2},
        "train": {"tokens": 65_536, "tokens_per_step": 2048, "block_size": BLOCK_SIZE},
    }
    return build_recipe(json.dumps(recipe), name="probe", folder=Path())


def prepare(work: Path) -> None:
    """Train the base, and pack every language with its tokenizer."""
    first = open_run(recipe_of(KNOWN, {"scratch": SCRATCH}), work / "known")
    corpora = Corpora(first.recipe)
    tokenizer = make_tokenizer(first, corpora)
    base = probing.make_base(first, pack_corpora(first, corpora, tokenizer), tokenizer)
    every = open_run(recipe_of(LOCALES, base.path), work / "every")
    packed = pack_corpora(every, Corpora(every.recipe), tokenizer)
    paths = {tag: str(corpus.path) for tag, corpus in packed.train.items()}
    (work / "prepared.json").write_text(json.dumps({"base": base.path, "packed": paths}))


def prepared(work: Path) -> tuple[str, PackedCorpora]:
    """Return the base's folder and the token streams."""
    facts = json.loads((work / "prepared.json").read_text())
    return facts["base"], PackedCorpora({tag: load_packed(Path(path)) for tag, path in facts["packed"].items()})


def ours(work: Path, name: str, sketch_size: str) -> None:
    """Probe as `sprachbund probe` does, and save the similarity."""
    folder, packed = prepared(work)
    run = open_run(recipe_of(LOCALES, folder, sketch_size=int(sketch_size)), work / name)
    run.fingerprints["base"] = "given"
    base = probing.DenseBase(folder, "main", False, "float32")
    probes = probing.probe(run, base, packed, Corpora(run.recipe))
    similarity = similarity_of(probes.signals["deviation"], source="deviation", center=False)
    np.save(work / f"{name}.npy", similarity.values_LL)


class Blocks(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The blocks of our steps, in their order."""

    def __init__(self, recipe: Recipe, packed: PackedCorpora, tag: str) -> None:
        (steps,) = probing.steps_of(recipe, packed.train[tag], tag)
        self.rows = torch.cat([block for micro_batches in steps for block in micro_batches])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


class InOrder(Trainer):  # type: ignore[misc]
    """The Trainer without shuffling."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def fine_tune(work: Path, name: str, tag: str) -> None:
    """Fine-tune the base on one language and save it whole."""
    quiet()
    folder, packed = prepared(work)
    arguments = TrainingArguments(
        output_dir=str(work / name / tag),
        max_steps=STEPS,
        per_device_train_batch_size=BLOCKS,
        learning_rate=RATE,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    blocks = Blocks(recipe_of(LOCALES, folder), packed, tag)
    model = load_model(folder, dtype="float32")
    trainer = InOrder(model=model, args=arguments, train_dataset=blocks)
    trainer.model_accepts_loss_kwargs = False  # the mean over the tokens that are predicted, as ours
    trainer.train()
    trainer.save_model()


@torch.no_grad()
def subtract(work: Path, name: str) -> None:
    """Load what was saved, subtract the base, and compare all pairs at once."""
    folder, packed = prepared(work)
    before = dict(load_model(folder, dtype="float32").named_parameters())
    rows = []
    for tag in packed.train:
        after = dict(load_model(work / name / tag, dtype="float32").named_parameters())
        last = [f"model.layers.{layer}.mlp." for layer in range(SCRATCH["num_layers"] - LAST, SCRATCH["num_layers"])]
        names = [key for key in before if key.startswith(tuple(last))]
        rows.append(torch.cat([(after[key] - before[key]).flatten() for key in names]))
    deltas_NP = torch.stack(rows)
    np.save(work / f"{name}.npy", cosine_similarity(deltas_NP[:, None], deltas_NP[None], dim=-1).numpy())


def theirs(work: Path, name: str) -> None:
    """Do all of it in one process."""
    for tag in prepared(work)[1].train:
        fine_tune(work, name, tag)
    subtract(work, name)


WORKERS = {function.__name__: function for function in (prepare, ours, fine_tune, subtract, theirs)}


def measured(worker: str, work: Path, *arguments: Any) -> dict[str, float]:
    """Run a worker as a process of its own; return what it took, start and imports included.

    CPU seconds, of all threads, are beside the wall's: other work on the machine changes them less.
    """
    begun = time.monotonic()
    command = [sys.executable, __file__, worker, str(work), *map(str, arguments)]
    with (work / "log.txt").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{worker} failed:\n{(work / 'log.txt').read_text()[-2000:]}")
    return {
        "seconds": time.monotonic() - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
    }


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def side(runs: list[dict[str, float]], folder: Path) -> dict[str, float]:
    """Return what the processes of one side took together, and the bytes they left."""
    return {
        **{key: round(sum(run[key] for run in runs), 2) for key in ("seconds", "cpu_seconds")},
        "peak_memory_mb": round(max(run["peak_memory_mb"] for run in runs), 1),
        "bytes_on_disk": size_of(folder),
    }


def measure(work: Path) -> dict[str, dict[str, float]]:
    """Run both sides; returns what each took."""
    measured("prepare", work)
    tags = list(prepared(work)[1].train)
    found = {"ours": side([measured("ours", work, "sketched", SKETCH_SIZE)], work / "sketched/probe")}
    measured("ours", work, "exact", WHOLE)
    found[GENEROUS] = side([measured("theirs", work, "generous")], work / "generous")
    runs = [measured("fine_tune", work, "released", tag) for tag in tags]
    runs.append(measured("subtract", work, "released"))
    found[RELEASED] = side(runs, work / "released")
    return found


def similarities(work: Path) -> dict[str, float]:
    """Return how near our matrices are to theirs, over the pairs of different languages."""
    names = ("sketched", "exact", "generous", "released")
    pairs = {}
    for name in names:
        values_LL = np.load(work / f"{name}.npy")
        pairs[name] = values_LL[np.triu_indices(len(values_LL), 1)]
    return {
        "spearman_sketched": float(spearmanr(pairs["sketched"], pairs["released"]).statistic),
        "spearman_exact": float(spearmanr(pairs["exact"], pairs["released"]).statistic),
        "largest_difference_sketched": float(np.abs(pairs["sketched"] - pairs["released"]).max()),
        "largest_difference_exact": float(np.abs(pairs["exact"] - pairs["released"]).max()),
        "largest_difference_of_theirs": float(np.abs(pairs["generous"] - pairs["released"]).max()),
        "lowest_cosine": float(pairs["released"].min()),
        "highest_cosine": float(pairs["released"].max()),
    }


def bars_of(found: dict[str, dict[str, float]], alike: dict[str, float]) -> list[dict[str, Any]]:
    """Return what must hold."""
    mine, released = found["ours"], found[RELEASED]
    limits = [
        ("times faster", released["seconds"] / mine["seconds"], LEAST_SPEED, True),
        ("share of their peak memory", mine["peak_memory_mb"] / released["peak_memory_mb"], MOST_MEMORY, False),
        ("share of their disk", mine["bytes_on_disk"] / released["bytes_on_disk"], MOST_DISK, False),
        ("Spearman with theirs, sketched", alike["spearman_sketched"], LEAST_SPEARMAN, True),
        ("largest difference from theirs, exact", alike["largest_difference_exact"], MOST_DIFFERENCE, False),
    ]
    return [
        {
            "bar": name,
            "value": value,
            "at_least" if least else "at_most": limit,
            "holds": value >= limit if least else value <= limit,
        }
        for name, value, limit, least in limits
    ]


def main() -> None:
    """Measure in a folder of the user's or a temporary one, print, write, and fail where a bar does."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise SystemExit(f"{work} is not empty; what is there already would not be measured")
        os.environ["SPRACHBUND_CACHE"] = str(work / "cache")
        found = measure(work)
        alike = similarities(work)
    bars = bars_of(found, alike)
    print(f"{'':40}{'seconds':>9}{'of CPU':>9}{'peak MB':>9}{'disk KB':>9}{'times faster':>14}{'of CPU':>9}")
    for name, one in found.items():
        mine = found["ours"]
        one |= {f"times_{key}": round(one[key] / mine[key], 2) for key in ("seconds", "cpu_seconds")}
        print(
            f"{name:40}{one['seconds']:9.1f}{one['cpu_seconds']:9.1f}{one['peak_memory_mb']:9.0f}"
            f"{one['bytes_on_disk'] / 1000:9.0f}{one['times_seconds']:14.2f}{one['times_cpu_seconds']:9.2f}"
        )
    for one in bars:
        limit = f"at least {one['at_least']}" if "at_least" in one else f"at most {one['at_most']}"
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['value']:.4g} ({limit})")
    settings = {"languages": len(LOCALES), "steps": STEPS, "tokens_per_step": BLOCKS * BLOCK_SIZE, "last_layers": LAST}
    content = {
        **machine(),
        "settings": {**settings, "learning_rate": RATE, "sketch_size": SKETCH_SIZE, "base": SCRATCH},
        "sides": found,
        "similarity": {key: round(value, 6) for key, value in alike.items()},
        "bars": [{**one, "value": round(one["value"], 6)} for one in bars],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "probe.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {RESULTS / 'probe.json'}")
    if not all(one["holds"] for one in bars):
        raise SystemExit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in WORKERS:
        WORKERS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    else:
        main()
