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


def _write_run(folder: Path) -> Path:
    """Write a finished run directory whose groups came without a word on how they were made."""
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
def run_folder(tmp_path: Path) -> Path:
    """A finished run directory with every file that each run has."""
    return _write_run(tmp_path / "run")


def grouping() -> dict[str, Any]:
    """A complete grouping.json for the same run; Wolof often changes its group."""
    tags = list(NAMES)
    together = np.kron(np.eye(6), np.full((3, 3), 0.9)) + 0.02
    wolof = tags.index("wol_Latn")
    together[wolof, :] = together[:, wolof] = 0.2
    np.fill_diagonal(together, 1.0)
    counts = [2, 3, 6, 9]
    return {
        "source": "deviation", "objective": "mean", "method": "search", "mean": 0.4987, "min": 0.4012,
        "bound": 0.5087, "proven": False, "least": 0.2808, "floor": 0.7, "count_chosen": "auto",
        "curve": [
            {"count": k, "mean": 0.1 + 0.05 * k, "min": 0.02 * k, "held_out": 0.3 - 0.01 * (k - 6) ** 2,
             "gap": None if k == 2 else 0.1 * k, "note": "text", "chosen": k == 6}
            for k in counts
        ],
        "stability": {
            "resamples": 100, "kind": "bootstrap of the probe's steps", "tags": tags,
            "co_assignment": together.tolist(),
            "mean_rand": 0.871, "confidence": {tag: 0.31 if i == wolof else 0.92 for i, tag in enumerate(tags)},
            "between_repeats": 0.664,
        },
        "families": {
            "rand": 0.537, "p_value": 0.00012, "permutations": 10_000,
            "families": {tag: ("Mayan" if i in (3, 4, 5) else "Jivaroan" if i < 3 else "other")
                         for i, tag in enumerate(tags)},
        },
        "sources": {
            "deviation": {"mean": 0.4987, "min": 0.4012, "rand_to_used": 1.0, "family_auc": 0.81, "family_rand": 0.537},
            "lexical": {"mean": 0.7, "min": -0.01, "rand_to_used": 0.412, "family_auc": None, "family_rand": 0.3},
        },
        "layers": None,
    }  # fmt: skip


def _write_planned(run_folder: Path) -> Path:
    """Write a finished run directory in which everything about the grouping was computed and written."""
    _write_run(run_folder)
    (run_folder / "grouping.json").write_text(json.dumps(grouping()), encoding="utf-8")
    folder = run_folder / "similarity"
    folder.mkdir()
    tags = list(NAMES)
    for seed, source in enumerate(("gradient", "lexical")):
        values = np.random.default_rng(seed).normal(0.3, 0.1, (18, 18))
        values = (values + values.T) / 2 + np.kron(np.eye(6), np.full((3, 3), 0.2 + 0.2 * seed))
        rows = [f"{tag}," + ",".join(map(repr, row)) for tag, row in zip(tags, values.tolist(), strict=True)]
        (folder / f"{source}.csv").write_text("\n".join(["language," + ",".join(tags), *rows]) + "\n")
    # Alike in a group by 0.1 * (layer + 1), to others by 0.05.
    lines = [
        f"{layer},{a},{b},{0.1 * (layer + 1) if i // 3 == j // 3 else 0.05}"
        for layer in range(4)
        for i, a in enumerate(tags)
        for j, b in enumerate(tags[:i])
    ]
    (folder / "deviation-by-layer.csv").write_text("\n".join(["layer,a,b,similarity", *lines]) + "\n")
    (run_folder / "layers.csv").write_text(
        "layer,ffn_norm,attention_norm,normalised,chosen,experts\n"
        "0,0.31,0.12,0.9,1,6\n1,0.35,0.345,1.0,1,3\n2,0.22,0.11,0.0,0,1\n3,0.30,0.14,0.7,1,2\n"
    )
    return run_folder


@pytest.fixture
def planned_folder(tmp_path: Path) -> Path:
    """A finished run directory in which everything about the grouping was computed and written."""
    return _write_planned(tmp_path / "planned")


@pytest.fixture(scope="session")
def shared_planned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for tests that change nothing in it."""
    return _write_planned(tmp_path_factory.mktemp("shared") / "planned")


@pytest.fixture
def told_folder(tmp_path: Path) -> Path:
    """A run of which only the metrics and the word on its grouping are left: next to no pictures to draw."""
    folder = tmp_path / "told"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics()), encoding="utf-8")
    (folder / "grouping.json").write_text(json.dumps(grouping()), encoding="utf-8")
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
