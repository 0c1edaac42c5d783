"""The main methods at a larger scale, on one GPU: 33 languages, a base of about 40M parameters, 8 and 16 groups.

python benchmarks/quality_gpu.py [--out FOLDER] [--corpora FOLDER] [--workers N] [--smoke]: about 25 minutes on one
H200, resumable; writes benchmarks/results/quality-gpu.json. --smoke runs the same at toy size on a CPU, on the embedded
corpus, and writes into the folder only. Needs the corpus in ../shared/corpora/bible-nt beside the clone, or where
--corpora says.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import yaml
from quality import ROOT, compare, write
from runs import machine

METHODS: list[Any] = [
    "dense", "dense-active", "upcycling", "paper", "ensemble", "default", "native",
    {"default-16": {"like": "default", "groups": {"count": 16}}},
    {"native-16": {"like": "native", "groups": {"count": 16}}},
    "per-language", "hierarchy",
]  # fmt: skip
SMOKE_METHODS: list[Any] = ["dense", "default", {"default-3": {"like": "default", "groups": {"count": 3}}}]


def languages(corpora: Path) -> dict[str, Any]:
    """Return a source for every language of the corpus, with its family."""
    with (corpora / "languages.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = f"{corpora.resolve()}/{{split}}"
    return {row["tag"]: {"file": f"{folder}/{row['tag']}.jsonl", "family": row["family"]} for row in rows}


def recipe(corpora: Path) -> dict[str, Any]:
    """Return the recipe at full size.

    The base sees the corpus about five times, by when another pass gains dense training little; 65,536 tokens a step
    are what keeps one GPU busy with a model of this size.
    """
    scratch = {"hidden_size": 512, "num_layers": 8, "ffn_size": 1536, "num_heads": 8, "vocab_size": 16_384}
    budget = {"tokens": 52_428_800, "tokens_per_step": 65_536, "learning_rate": 1.5e-3}
    return {
        "name": "quality-gpu",
        "base": {"scratch": {"family": "qwen3", **scratch, **budget}},
        "languages": languages(corpora),
        "probe": {"steps": 10, "tokens_per_step": 16_384, "learning_rate": 3.0e-4},
        "groups": {"count": 8, "resamples": 0},
        "train": {
            "tokens": 13_107_200,
            "tokens_per_step": 65_536,
            "block_size": 256,
            "learning_rate": 1.0e-3,
            "dtype": "bfloat16",
            "checkpoints": 0,
        },
        "evaluate": {"tokens": 16_384, "batch_tokens": 65_536},
        "compare": {"seeds": [0], "learning_rates": [1.0e-3, 2.0e-3], "methods": METHODS},
    }


def smoke() -> dict[str, Any]:
    """Return the recipe at toy size, on the embedded corpus."""
    scratch = {"hidden_size": 16, "num_layers": 2, "ffn_size": 32, "num_heads": 2, "vocab_size": 300}
    budget = {"tokens": 2048, "tokens_per_step": 256, "learning_rate": 5e-3}
    return {
        "name": "quality-gpu-smoke",
        "base": {"scratch": {"family": "qwen3", **scratch, **budget}},
        "languages": {tag: {"cldr": tag, "lines": 200} for tag in ("ro", "it", "ru", "uk")},
        "splits": {"dev": 0.1, "test": 0.1},
        "probe": {"steps": 1, "tokens_per_step": 128, "learning_rate": 3e-3, "sketch_size": 512},
        "groups": {"count": 2, "resamples": 0},
        "train": {"tokens": 2560, "tokens_per_step": 256, "block_size": 32, "learning_rate": 1e-2, "checkpoints": 0},
        "evaluate": {"burn_in": 8, "tokens": 256},
        "compare": {"seeds": [0], "learning_rates": [1e-2], "methods": SMOKE_METHODS},
    }


def device() -> str | None:
    """Return the name of the GPU; None where there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def main(arguments: list[str] | None = None) -> None:
    """Run the comparison and write its result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/quality/gpu", help="folder of the comparison")
    parser.add_argument(
        "--corpora", type=Path, default=ROOT / "../shared/corpora/bible-nt", help="folder of the corpus"
    )
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time; 2 where the GPU is not full")
    parser.add_argument("--smoke", action="store_true", help="toy size, also without a GPU")
    given = parser.parse_args(arguments)
    gpu = device()
    if gpu is None and not given.smoke:
        raise SystemExit("skipped: there is no CUDA device here; --smoke runs the same at toy size")
    if not given.smoke and not given.corpora.is_dir():
        raise SystemExit(f"skipped: there is no corpus in {given.corpora}; give --corpora")
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "recipe.yaml"
    file.write_text(yaml.safe_dump(smoke() if given.smoke else recipe(given.corpora), sort_keys=False))
    folder = given.out / "compare"
    seconds = compare(file, folder, ["--workers", str(given.workers)])
    where = machine()
    content = {
        **where,
        "hardware": f"{gpu or 'no GPU'}, {where['hardware']}",
        "command": "python benchmarks/quality_gpu.py",
        "seconds": round(seconds, 1),
        "bars": [],
        "result": json.loads((folder / "compare.json").read_text()),
    }
    if given.smoke:
        (given.out / "quality-gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    else:
        write("gpu", content)


if __name__ == "__main__":
    main()
