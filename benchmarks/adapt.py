"""New languages for a model that exists: ours beside the dense rivals, and what each does to the old languages.

python benchmarks/adapt.py [--out FOLDER] [--workers N] [--quick]: the run of examples/bible-18.yaml is made once, with
its dense control; then every system of benchmarks/adapt_systems.py is trained on languages that are neither in the base
nor in a group. Resumable: what is done is not done again. Writes benchmarks/results/adapt.json, from which
benchmarks/adapt_tables.py makes docs/adapt-results.md. Needs the corpus in ../shared/corpora/bible-nt beside the clone.
`--quick` trains for a few steps only, to see that everything works, and writes its result to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapt_bars import adapt_bars
from adapt_jobs import run_before, run_job
from adapt_systems import SYSTEMS, Job, Setting, System
from runs import RESULTS, machine

from sprachbund.compare.course import Course, Task
from sprachbund.compare.pool import Submit, default_workers, pool
from sprachbund.files import write_text

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "../shared/corpora/bible-nt"
BASE_RATE = 2.0e-2  # at which the mixture is best; the dense control is within 1% of its best there


def setting_of(run: Path, out: Path) -> Setting:
    """Return what is measured: a language with relatives in the base, one without, and one in a new script."""
    return Setting(
        run=run,
        out=out,
        corpus=str((CORPUS / "{split}/{tag}.jsonl").resolve()),
        languages=("mam_Latn", "est_Latn", "chr_Cher"),
        domain=("ewe_Latn", "hye_Armn", "kab_Latn", "swh_Latn", "ukr_Cyrl", "zul_Latn", "est_Latn", "chr_Cher"),
        switch_with="swh_Latn",
    )


def make_run(folder: Path) -> float:
    """Train the run that is adapted, as a user does; return its seconds, which are few where it was done before."""
    begun = time.monotonic()
    recipe, rate = ROOT / "examples/bible-18.yaml", f"train.learning_rate={BASE_RATE}"
    command = [sys.executable, "-m", "sprachbund", "train", str(recipe), "--out", str(folder), "--set", rate]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"sprachbund train {recipe.name} failed; the same command continues")
    return time.monotonic() - begun


Place = tuple[str, str]  # the names of a system and of a language


@dataclass
class Plan:
    """What is to be done: a course for every system that looks for its rate, and jobs that wait for one."""

    setting: Setting
    courses: dict[Place, Course] = field(default_factory=dict)
    results: dict[Place, dict[int, dict[str, Any]]] = field(default_factory=dict)
    started: set[tuple[Job, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, system in SYSTEMS.items():
            for tag in self.setting.languages_of(system):
                self.results[name, tag] = {}
                if self._place(system, tag) == (name, tag):
                    self.courses[name, tag] = Course(self.setting.seeds, system.rates)

    def _place(self, system: System, tag: str) -> Place:
        """Return the course that finds the rate of a system for a language."""
        if system.like is not None:
            return self._place(SYSTEMS[system.like], tag)
        return system.name, self.setting.languages[0] if system.tuned_once else tag

    def num_trainings(self) -> tuple[int, float]:
        """Return how many trainings there are, grids that grow apart, and how many units of new tokens they have."""
        units = [SYSTEMS[name].times * len(self.setting.seeds) for name, _ in self.results]
        units += [SYSTEMS[name].times * (len(course.rates) - 1) for (name, _), course in self.courses.items()]
        grids = sum(len(course.rates) - 1 for course in self.courses.values())
        return len(self.results) * len(self.setting.seeds) + grids, float(sum(units))

    def ready(self) -> list[tuple[Job, str]]:
        """Return the jobs that can be started now, each with the split to score it on: grids first."""
        found = []
        for (name, tag), course in self.courses.items():
            tasks = [] if _decided(course) else course.ready()
            found += [(self._job(SYSTEMS[name], tag, task), task.split) for task in tasks]
        for name, tag in self.results:
            course = self.courses[self._place(SYSTEMS[name], tag)]
            if _decided(course):
                tasks = [Task(course.best(), seed, "test") for seed in self.setting.seeds]
                found += [(self._job(SYSTEMS[name], tag, task), "test") for task in tasks]
        return [(job, split) for job, split in found if (job, split) not in self.started]

    def _job(self, system: System, tag: str, task: Task) -> Job:
        return Job(self.setting, system, tag, task.learning_rate, task.seed)

    def take(self, job: Job, split: str, result: dict[str, Any]) -> None:
        """Record what a job came to; raises SystemExit where nothing can be made of it."""
        place = job.system.name, job.language
        if split == "test":
            if "diverged" in result:
                raise SystemExit(f"{' '.join(place)}: {result['diverged']}")
            self.results[place][job.seed] = result
        else:
            self.courses[place].take(Task(job.learning_rate, job.seed, split), result)

    def result(self, before: dict[str, Any]) -> dict[str, Any]:
        """Return all that was found."""
        systems: dict[str, Any] = {}
        for (name, tag), runs in self.results.items():
            course = self.courses[self._place(SYSTEMS[name], tag)]
            entry = {"learning_rate": course.best(), "runs": [runs[seed] for seed in self.setting.seeds]}
            if (name, tag) in self.courses:
                grid = {f"{rate:g}": _dev(found) for rate, found in sorted(course.dev.items())}
                entry |= {"edge": course.at_edge(), "grid": grid}
            systems.setdefault(name, {})[tag] = entry
        sizes = ("languages", "tokens", "merges", "domain", "switch_with")
        return {**{key: getattr(self.setting, key) for key in sizes}, "before": before, "systems": systems}


def _decided(course: Course) -> bool:
    """Is the best rate known?"""
    return all(rate in course.dev for rate in course.grid())


def _dev(result: dict[str, Any]) -> float | None:
    """Return the perplexity that rates are chosen by; None where training diverged."""
    if "diverged" in result:
        return None
    (scores,) = result["dev"].values()
    return float(scores["perplexity_after_burn_in"])


def work_through(plan: Plan, submit: Submit, workers: int) -> None:
    """Do every job, as far as the workers allow at a time."""
    running: dict[Future[Any], tuple[Job, str]] = {}
    done, begun = 0, time.monotonic()
    while True:
        for job, split in plan.ready()[: workers - len(running)]:
            plan.started.add((job, split))
            running[submit(run_job, job, split)] = job, split
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job, split = running.pop(future)
            plan.take(job, split, future.result())
            done += 1
            said = f"{job.system.name}, {job.language}, rate {job.learning_rate:g}, seed {job.seed}: {split} done"
            print(f"[{done}, {time.monotonic() - begun:.0f} s] {said}", flush=True)


def check_folder(setting: Setting) -> None:
    """Note the setting in its folder; raises SystemExit where results that are there are of another one."""
    file, own = setting.out / "setting.json", json.dumps(asdict(setting), indent=1, default=str) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != own:
        raise SystemExit(f"{setting.out} has results of another setting (setting.json); give another --out")
    write_text(file, own)


def measure(setting: Setting, workers: int) -> dict[str, Any]:
    """Do all that is missing, and return the result."""
    check_folder(setting)
    plan = Plan(setting)
    count, units = plan.num_trainings()
    print(f"{count} trainings, {units:g} times {setting.tokens:,} new tokens, {workers} at a time", flush=True)
    before = run_before(setting)
    with pool(workers) as submit:
        work_through(plan, submit, workers)
    return plan.result(before)


def write(result: dict[str, Any], path: Path) -> None:
    """Write the result with where it was measured and its bars, and say which bars hold."""
    content = {**machine(), "command": "python benchmarks/adapt.py", "bars": adapt_bars(result), "result": result}
    for one in content["bars"]:
        print(f"{'holds' if one['holds'] else 'FAILS':6} {one['bar']}: {one['values']} (at most {one['at_most']})")
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the run, adapt it in every way, and write what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs/adapt", help="folder of the trainings")
    parser.add_argument("--run", type=Path, help="a finished run to adapt; none: it is made in the folder")
    parser.add_argument("--workers", type=int, default=default_workers(), help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it works")
    given = parser.parse_args(arguments)
    if not CORPUS.is_dir():
        raise SystemExit("skipped: ../shared/corpora/bible-nt is not beside this clone")
    out = given.out.resolve()
    run = (given.run or out / "base").resolve()
    if given.run is None:
        print(f"the run to adapt: {make_run(run):.0f} s", flush=True)
    setting = setting_of(run, out / "quick" if given.quick else out)
    if given.quick:
        setting = replace(setting, tokens=20 * 1024, seeds=(0,), merges=64, old_tokens=512)
    begun = time.monotonic()
    result = measure(setting, given.workers)
    print(f"{time.monotonic() - begun:.0f} s", flush=True)
    write(result, out / "quick/adapt.json" if given.quick else RESULTS / "adapt.json")


if __name__ == "__main__":
    main()
