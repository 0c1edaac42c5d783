"""Whole runs as a user starts them, over seeds and presets: the shared part of demo.py and others.

Each run is a process of its own. Presets after the first start from a copy of the first one's directory, so that base
and probe are trained once per seed; what differs is computed anew (`--update`).
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROUTINGS = ("group", "prefix", "top_k")


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    packages = {name: version(name) for name in ("sprachbund", "torch", "transformers", "babel")}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {model}",
        "python": platform.python_version(),
        "packages": packages,
        "commit": commit.stdout.strip(),
    }


def run(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run the command line into `folder`; return its metrics, wall seconds and peak memory (MB) of the process."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "sprachbund", *arguments, "--out", str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"sprachbund {' '.join(arguments)} failed")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "wall_seconds": round(time.monotonic() - begun, 1),
        "peak_memory_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
        "metrics": metrics,
    }


def run_presets(command: list[str], presets: list[str], seeds: list[int], work: Path) -> list[dict[str, Any]]:
    """Run a command under every preset and seed; `work` holds the runs."""
    found = []
    for seed in seeds:
        first = work / f"seed{seed}-{presets[0]}"
        for preset in presets:
            folder = work / f"seed{seed}-{preset}"
            shutil.rmtree(folder, ignore_errors=True)
            extra = ["--seed", str(seed), "--set", f"preset={preset}"]
            if preset != presets[0]:
                shutil.copytree(first, folder)
                extra.append("--update")
            result = run([*command, *extra], folder)
            found.append({"seed": seed, "preset": preset, **result})
            print(f"seed {seed} {preset}: {result['wall_seconds']:.0f} s", flush=True)
    return found


def compact(result: dict[str, Any]) -> dict[str, Any]:
    """Return a run's result without what is large, for the committed file."""
    metrics = result["metrics"]
    languages = {
        tag: {
            "group": language["group"],
            "perplexity_after_burn_in": {k: round(v, 3) for k, v in language["perplexity_after_burn_in"].items()},
            "bits_per_byte": {k: round(v, 4) for k, v in language["bits_per_byte"].items()},
        }
        for tag, language in metrics["languages"].items()
    }
    keys = (
        "average",
        "change_vs_dense",
        "groups",
        "moe_layers",
        "parameters",
        "tokens",
        "seconds",
        "tokens_per_second",
    )
    return {
        **{k: v for k, v in result.items() if k != "metrics"},
        **{k: metrics[k] for k in keys},
        "languages": languages,
    }


def bar(name: str, values: list[float], limit: float) -> dict[str, Any]:
    """Return whether every value (one per seed) is at most `limit`."""
    return {"bar": name, "values": [round(v, 4) for v in values], "at_most": limit, "holds": max(values) <= limit}


def change(results: list[dict[str, Any]], preset: str, routing: str, key: str) -> list[float]:
    """Return a relative change against the dense control, per seed; key "worst" is that of the worst language."""
    changes = [r["metrics"]["change_vs_dense"][routing][key] for r in results if r["preset"] == preset]
    return [c[1] if key == "worst" else c for c in changes]


def finish(name: str, results: list[dict[str, Any]], bars: list[dict[str, Any]]) -> None:
    """Print the table and write benchmarks/results/NAME.json."""
    print(f"\n{'preset':10}{'system':8}{'ppl':>9}{'after burn-in':>15}{'vs dense':>10}{'all pos.':>10}{'worst':>9}")
    for preset in dict.fromkeys(r["preset"] for r in results):
        mine = [r["metrics"] for r in results if r["preset"] == preset]
        for system in mine[0]["average"]["perplexity"]:
            plain = fmean(m["average"]["perplexity"][system] for m in mine)
            after = fmean(m["average"]["perplexity_after_burn_in"][system] for m in mine)
            row = f"{preset:10}{system:8}{plain:9.2f}{after:15.2f}"
            if system in ROUTINGS:
                deltas = [m["change_vs_dense"][system] for m in mine]
                row += f"{fmean(d['average'] for d in deltas):+10.1%}"
                row += f"{fmean(d['average_all_positions'] for d in deltas):+10.1%}"
                row += f"{max(d['worst'][1] for d in deltas):+9.1%}"
            print(row)
    for one in bars:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['values']} (at most {one['at_most']})")
    RESULTS.mkdir(exist_ok=True)
    content = {**machine(), "bars": bars, "runs": [compact(r) for r in results]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {RESULTS / f'{name}.json'}")
