"""What benchmarks/adapt.py trains for a new language: the dense rivals, and ours. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DENSE, FULL, SEVERAL = "dense", "full", "several"
RATES = (5.0e-3, 1.0e-2, 2.0e-2)


@dataclass(frozen=True)
class System:
    """One way to give a model a new language.

    `method` is `dense`, `replay` or `lora` (on the dense control), a kind of path, `paper` or `several` (on the
    mixture). A system with `rates` finds the best of them on the dev split under the first seed, for each language, or
    where it is `tuned_once` for the first, whose rate the others take; one without takes the rate of the system `like`
    it. `times` is its budget of new tokens in units of the benchmark's. With `merges` it has a larger vocabulary, and
    with `same_text` only as many tokens as hold the text that the unit holds without. It is trained for the first
    `most` languages, None: all. Under its `gates`, modes in which nothing is said about a text, old text is measured.
    """

    name: str
    method: str
    rates: Sequence[float] = ()
    tuned_once: bool = False
    like: str | None = None
    times: int = 1
    merges: bool = False
    same_text: bool = False
    most: int | None = None
    gates: tuple[str, ...] = ()

    @property
    def is_dense(self) -> bool:
        """Does it start from the dense control?"""
        return self.method in (DENSE, "replay", "lora")


# The longest first among those that wait for a rate: at the end no worker is to be left with a long one.
SYSTEMS = {
    system.name: system
    for system in (
        System(DENSE, DENSE, rates=RATES),
        System(FULL, FULL, rates=RATES, gates=("prefix", "counts", "top_k")),
        System("paper", "paper", rates=RATES, tuned_once=True, gates=("prefix", "top_k")),
        System("dense-replay", "replay", rates=RATES, tuned_once=True),
        System("dense-lora", "lora", rates=RATES, tuned_once=True, most=2),
        System("full-4x", FULL, like=FULL, times=4, most=1),
        System(SEVERAL, SEVERAL, like=FULL, most=1, gates=("prefix", "counts")),
        System("dense-4x", DENSE, like=DENSE, times=4, most=1),
        System("full-2x", FULL, like=FULL, times=2, most=1),
        System("dense-2x", DENSE, like=DENSE, times=2, most=1),
        System("lean", "lean", like=FULL, most=2),
        System("small", "small", like=FULL, most=2),
        System("rows", "rows", like=FULL, most=1),
        System("expert", "expert", like=FULL, most=1),
        System("full-merges", FULL, like=FULL, merges=True),
        System("dense-merges", DENSE, like=DENSE, merges=True),
        System("full-merges-same-text", FULL, like=FULL, merges=True, same_text=True, most=2),
        System("dense-merges-same-text", DENSE, like=DENSE, merges=True, same_text=True, most=2),
    )
}


@dataclass(frozen=True)
class Setting:
    """What is adapted to what, and how long: all that a worker needs to know.

    `run` is the finished run whose `dense` and `model` are adapted, `out` where everything is written, `corpus` the
    path of a new language's text, with {tag} and {split}. `merges` is how many tokens an extended vocabulary has more,
    `old_tokens` how many tokens of each old language are scored. `domain` are the languages with text of another kind,
    and `switch_with` is an old language that text changes to and fro with.
    """

    run: Path
    out: Path
    corpus: str
    languages: tuple[str, ...]
    domain: tuple[str, ...]
    switch_with: str
    seeds: tuple[int, ...] = (0, 1)
    tokens: int = 327_680
    tokens_per_step: int = 1024
    merges: int = 1024
    old_tokens: int = 4096

    def languages_of(self, system: System) -> tuple[str, ...]:
        """Return the languages that a system is trained for; `several` counts as of the first, the others follow."""
        return self.languages[: system.most]


@dataclass(frozen=True)
class Job:
    """A system trained for a language at one rate under one seed; its result is a file in its folder."""

    setting: Setting
    system: System
    language: str
    learning_rate: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where it is done."""
        name = f"{self.language}-lr{self.learning_rate:g}-seed{self.seed}"
        return self.setting.out / "jobs" / self.system.name / name
