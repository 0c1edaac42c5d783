"""A synthetic run directory: 18 languages in 6 groups, with names in several scripts."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = {
    "acu_Latn": "Achuar", "agr_Latn": "Aguaruna", "jiv_Latn": "Shuar",
    "cak_Latn": "Kaqchikel", "quc_Latn": "K’iche’", "usp_Latn": "Uspanteko",
    "arb_Arab": "العربية", "heb_Hebr": "עברית", "mlt_Latn": "Malti",
    "swh_Latn": "Kiswahili", "zul_Latn": "isiZulu", "wol_Latn": "Wolof",
    "kaz_Cyrl": "Қазақша", "tat_Cyrl": "Татарча", "tur_Latn": "Türkçe",
    "ell_Grek": "Ελληνικά", "hin_Deva": "हिन्दी", "ukr_Cyrl": "Українська",
}  # fmt: skip
WAYS = ("base", "dense", "group", "prefix", "top_k")


def _scores(tags: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """One entry of metrics.json per language; Ukrainian loses under prefix and everything loses under top_k."""
    factors = {"base": 1.6, "dense": 1.0, "group": 0.82, "prefix": 0.85, "top_k": 1.03}
    languages = {}
    for i, tag in enumerate(tags):
        dense = 40.0 + 25 * rng.random()
        ppl = {way: dense * factor for way, factor in factors.items()}
        if tag == "ukr_Cyrl":
            ppl["prefix"] = dense * 1.021
        share = np.full(6, 0.01)
        share[i // 3] = 0.95
        languages[tag] = {
            "name": NAMES.get(tag, f"Language {i}"), "group": i // 3 % 6, "bytes": 50_000, "tokens": 20_000,
            "perplexity": ppl, "perplexity_after_burn_in": ppl,
            "bits_per_byte": {way: math.log2(value) / 2.5 for way, value in ppl.items()},
            "bits_per_byte_after_burn_in": {way: math.log2(value) / 2.6 for way, value in ppl.items()},
            "router_accuracy": {"prefix": 0.95, "top_k": 0.81},
            "router_share": {"prefix": share.tolist(), "top_k": share[::-1].tolist()},
        }  # fmt: skip
    return languages


def metrics() -> dict[str, Any]:
    """A complete metrics.json."""
    tags = list(NAMES)
    languages = _scores(tags, np.random.default_rng(0))
    average: dict[str, Any] = {
        kind: {way: float(np.mean([language[kind][way] for language in languages.values()])) for way in WAYS}
        for kind in ("perplexity", "perplexity_after_burn_in", "bits_per_byte", "bits_per_byte_after_burn_in")
    }
    average["router_accuracy"] = {"prefix": 0.95, "top_k": 0.81}
    return {
        "schema": 1, "package": "0.1.0", "name": "bible-18", "seed": 0, "preset": "default",
        "tokens": {"base": 2_304_000, "probe": 1_474_560, "dense": 921_600, "moe": 921_600},
        "parameters": {"dense": 394_112, "moe": 1_180_000, "active": 590_720},
        "seconds": {"base": 168.2, "probe": 77.0, "dense": 50.5, "train": 61.2, "evaluate": 3725.0},
        "tokens_per_second": {"dense": 21_000.4, "moe": 17_500.0}, "peak_memory_mb": 912.5,
        "burn_in": 32, "window": 128, "languages": languages, "average": average,
        "change_vs_dense": {
            "group": {"average": -0.18, "average_all_positions": -0.19, "worst": ["acu_Latn", -0.18]},
            "prefix": {"average": -0.142, "average_all_positions": -0.116, "worst": ["ukr_Cyrl", 0.021]},
            "top_k": {"average": 0.03, "average_all_positions": 0.04, "worst": ["jiv_Latn", 0.03]},
        },
        "groups": [tags[i : i + 3] for i in range(0, 18, 3)], "moe_layers": [0, 1, 3], "num_layers": 4,
    }  # fmt: skip


def _write_events(path: Path) -> None:
    """A log with a resumed stage, an ignored event and a torn last line."""
    lines = []
    for stage, floor in (("dense", 4.0), ("train", 3.8)):
        for step in [*range(10, 160, 10), *range(130, 210, 10)]:
            loss = floor + 2 * math.exp(-step / 60)
            lines.append({
                "time": "2026-01-01T00:00:00", "stage": stage, "event": "step", "step": step, "num_steps": 200,
                "loss": loss, "language_model_loss": loss, "routing": "group" if step < 150 else "top_k",
                **({"router_loss": 1.7 * math.exp(-step / 40)} if stage == "train" else {}),
            })  # fmt: skip
    lines.append({"stage": "train", "event": "saved", "path": "model"})
    for tokens in (10, 120):
        # Nobody's text reaches expert 5: it is dead.
        counts = {
            tag: [tokens if expert == min(i // 3, 4) else 0 for expert in range(6)] for i, tag in enumerate(NAMES)
        }
        lines.append({"stage": "train", "event": "tokens", "tokens": counts})
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"stage": "train", "eve', encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run directory with every file in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics()), encoding="utf-8")
    (folder / "recipe.yaml").write_text("name: bible-18\ngroups:\n  count: 6  # </code><script>bad()</script>\n")
    (folder / "groups.json").write_text(json.dumps({tag: i // 3 for i, tag in enumerate(NAMES)}))
    similarity = np.random.default_rng(1).normal(0.1, 0.05, (18, 18))
    similarity = (similarity + similarity.T) / 2 + np.kron(np.eye(6), np.full((3, 3), 0.4))
    np.fill_diagonal(similarity, 1.0)
    # The columns come in another order than the groups, as a file may.
    order = np.random.default_rng(2).permutation(18)
    tags = [list(NAMES)[i] for i in order]
    rows = [
        f"{tag}," + ",".join(f"{x:.6f}" for x in row)
        for tag, row in zip(tags, similarity[np.ix_(order, order)], strict=True)
    ]
    (folder / "similarity.csv").write_text("\n".join(["language," + ",".join(tags), *rows]) + "\n")
    (folder / "layers.csv").write_text(
        "layer,ffn_norm,attention_norm,normalised,chosen\n"
        "0,0.31,0.12,0.9,1\n1,0.35,0.15,1.0,1\n2,0.22,0.11,0.0,0\n3,0.30,0.14,0.7,1\n"
    )
    _write_events(folder / "events.jsonl")
    return folder


@pytest.fixture
def edit_metrics(run_folder: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change the run's metrics.json in place."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        path = run_folder / "metrics.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        change(found)
        path.write_text(json.dumps(found), encoding="utf-8")

    return edit
