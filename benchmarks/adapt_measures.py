"""What benchmarks/adapt.py measures of a trained model: new and old text, text of another kind, two languages in one.

A mode is a routing together with how text finds the path of a language that came later (run/adapt_scores.py).

Shapes: B windows, T tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from adapt_material import Material
from adapt_systems import DENSE, FULL
from adapt_trials import Trial
from torch import Tensor

from sprachbund.evaluation import TestText, score_language
from sprachbund.modeling.language_path import all_groups
from sprachbund.run.adapt_scores import MODES, as_numbers, score, under_groups

Numbers = dict[str, Any]
LABEL_FREE = tuple(mode for mode in MODES if mode != "group")
SHARE = "share"  # of the positions, which went to paths, or to the paper's new expert


def dense_numbers(model: Any, text: TestText, material: Material) -> Numbers:
    """Score a dense model on a text."""
    evaluate, block_size = material.settings.evaluate, material.settings.block_size
    window, burn_in = evaluate.window or block_size, evaluate.burn_in
    found = score_language(model, text, window=window, burn_in=burn_in, batch_tokens=evaluate.batch_tokens)
    return as_numbers(found, text)


def numbers(model: Any, text: TestText, material: Material, *, mode: str, group: int, first: int) -> Numbers:
    """Score a mixture on a text of a group in a mode; groups from `first` on came later."""
    found = score(model, text, material.settings, mode=mode, group=group)
    share = {SHARE: sum(found.routed[first:])} if found.routed else {}
    return {**as_numbers(found, text), **share}


def dense_perplexities(model: Any, texts: Mapping[str, TestText], material: Material) -> dict[str, Numbers]:
    """Score a dense model on texts: {tag: its perplexity}."""
    return {tag: _brief(dense_numbers(model, text, material)) for tag, text in texts.items()}


def perplexities(
    model: Any, texts: Mapping[str, TestText], material: Material, *, first: int, modes: Iterable[str]
) -> dict[str, dict[str, Numbers]]:
    """Score a mixture on texts in its languages: {mode: {tag: its perplexity, and the share that came later}}."""
    groups = all_groups(model.config)
    return {
        mode: {
            tag: _brief(numbers(model, text, material, mode=mode, group=groups[tag], first=first))
            for tag, text in texts.items()
        }
        for mode in modes
    }


def _brief(found: Numbers) -> Numbers:
    """Return what is kept of a text that is not the new language's."""
    return {key: found[key] for key in ("perplexity", SHARE) if key in found}


def measure_before(material: Material) -> dict[str, Any]:
    """Return what every change is relative to: both models on all texts, and the group nearest to each language."""
    dense, model = material.load(DENSE), material.load("model")
    languages, first = material.setting.languages, model.config.num_groups
    parents = {tag: under_groups(model, material.new(tag), material.settings)[0] for tag in languages}
    new = {
        tag: {
            DENSE: dense_numbers(dense, material.new(tag).test, material),
            **{
                mode: numbers(
                    model, material.new(tag).test, material, mode=mode, group=int(parents[tag]["group"]), first=first
                )
                for mode in ("group", "prefix")
            },
        }
        for tag in languages
    }
    modes = ("prefix", "top_k")  # without paths, which gate there is makes no difference
    known = {tag: text for tag, text in material.domain.items() if tag in material.old}
    return {
        "parents": parents,
        "bytes_per_token": {tag: material.new(tag).bytes_per_token for tag in languages},
        "bytes_per_token_merges": {tag: material.extended(tag)[0].bytes_per_token for tag in languages},
        "parameters": {
            name: sum(parameter.numel() for parameter in one.parameters())
            for name, one in ((DENSE, dense), ("model", model))
        },
        "groups": first,
        "new": new,
        "old": {
            DENSE: dense_perplexities(dense, material.old, material),
            **perplexities(model, material.old, material, first=first, modes=modes),
        },
        "domain": perplexities(model, known, material, first=first, modes=("prefix",)),
    }


def measure_dev(trial: Trial) -> dict[str, Numbers]:
    """Return the scores by which learning rates are chosen: of the new language, its group given."""
    text = trial.text.dev
    if trial.group is None:
        return {DENSE: dense_numbers(trial.model, text, trial.material)}
    first = trial.material.before["groups"]
    return {"group": numbers(trial.model, text, trial.material, mode="group", group=trial.group, first=first)}


def measure_test(trial: Trial) -> dict[str, Any]:
    """Return everything that is measured of a trained model, under `new`, `old` and the like."""
    model, material, text = trial.model, trial.material, trial.text.test
    if trial.group is None:
        old = dense_perplexities(model, material.old, material)
        return {"new": {DENSE: dense_numbers(model, text, material)}, "old": {DENSE: old}}
    first, gates = material.before["groups"], trial.job.system.gates
    # a path with more tokens than the vocabulary is never found: its text has to be tokenised for it
    modes = ["group"] if trial.job.system.merges else ["group", *(gates or LABEL_FREE)]
    measured: dict[str, Any] = {
        "new": {mode: numbers(model, text, material, mode=mode, group=trial.group, first=first) for mode in modes},
        "identical": identical(model, material),
    }
    if gates:
        measured["old"] = perplexities(model, material.old, material, first=first, modes=gates)
    if trial.job.system.name == FULL:
        known = {tag: one for tag, one in material.domain.items() if tag in all_groups(model.config)}
        measured["domain"] = perplexities(model, known, material, first=first, modes=("prefix", "counts"))
        measured["switching"] = switching(trial)
    return measured


@torch.inference_mode()
def identical(model: Any, material: Material) -> dict[str, bool]:
    """Return of every old language whether its logits, its group given, are to the bit what they were."""
    reference, same = material.load("model"), {}
    for tag, text in material.old.items():
        ids_BT, _ = windows_of(text, material.settings.block_size)
        asked = {"routing": "group", "group_ids": torch.full((len(ids_BT),), reference.config.groups[tag])}
        now, then = (one(input_ids=ids_BT, use_cache=False, **asked).logits for one in (model, reference))
        same[tag] = torch.equal(now, then)
    return same


def windows_of(text: TestText, length: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and the targets, (B, T), of windows side by side; what is left at the end is dropped."""
    count = (len(text.tokens) - 1) // length
    tokens = torch.from_numpy(text.tokens[: count * length + 1])
    return tokens[:-1].view(count, length), tokens[1:].view(count, length)


@torch.inference_mode()
def switching(trial: Trial) -> dict[str, Numbers]:
    """Return what happens to text that changes language at every sentence, by how its paths are found.

    `given`: each position has the group of its sentence, the bound that no gate reaches; `off`: the path is not used.
    For each the bits per byte, and for the gates the share of positions whose side is right, of both languages.
    """
    model, material = trial.model, trial.material
    text, is_new = material.switching(trial.job.language)
    ids_BT, targets_BT = windows_of(text, material.settings.block_size)
    is_new_BT = torch.from_numpy(is_new[: ids_BT.numel()].astype(np.bool_)).view(ids_BT.shape)
    groups = all_groups(model.config)
    own = groups[trial.job.language]
    given = torch.where(is_new_BT, own, groups[material.setting.switch_with])
    ways: dict[str, dict[str, Any]] = {
        "given": {"routing": "group", "group_ids": given},
        "mixture": {"routing": "prefix", "path_gate": "mixture"},
        "counts": {"routing": "prefix", "path_gate": "counts"},
        "off": {"routing": "prefix", "path_gate": "off"},
    }
    found = {}
    for way, asked in ways.items():
        outputs = model(input_ids=ids_BT, use_cache=False, **asked)
        nats = F.cross_entropy(outputs.logits.flatten(0, 1).double(), targets_BT.flatten(), reduction="sum")
        bits = float(nats) / math.log(2) / ids_BT.numel() * len(text.tokens) / text.num_bytes
        paths_BT = torch.full_like(ids_BT, -1) if outputs.path_ids is None else outputs.path_ids
        taken_BT = paths_BT == own - model.config.num_groups
        right = {
            name: float((taken_BT == is_new_BT)[side].double().mean())
            for name, side in (("right_new", is_new_BT), ("right_old", ~is_new_BT))
        }
        found[way] = {"bits_per_byte": bits, **(right if way in ("mixture", "counts") else {})}
    return found
