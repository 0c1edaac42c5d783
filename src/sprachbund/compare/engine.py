"""`sprachbund compare`: every method of a recipe from one base, on the same tokens in the same order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprachbund import __version__
from sprachbund.compare.course import Course, Task
from sprachbund.compare.figure import comparison_figure
from sprachbund.compare.jobs import JobSpec, remove_models, run_job
from sprachbund.compare.methods import BASE, Method, base_method, methods_of
from sprachbund.compare.plans import Plan, plan_methods
from sprachbund.compare.pool import Submit, default_workers, pool
from sprachbund.compare.shared import Shared, base_sizes, materials, shared_run
from sprachbund.compare.systems import DENSE
from sprachbund.compare.table import legend, table
from sprachbund.errors import InputError, SprachbundError
from sprachbund.files import write_text
from sprachbund.modeling.base import device
from sprachbund.progress import say
from sprachbund.recipe import Recipe
from sprachbund.recipe.compare import Compare
from sprachbund.run.directory import tidy

SCHEMA = 1
RESULT = "compare.json"
RUN_KEYS = ("seed", "seconds", "cpu_seconds", "tokens_per_second", "peak_memory_mb", "test")  # of a job's result


def compare(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    keep: bool = False,
    methods: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train and score the methods of a recipe's comparison, or those named; return what FOLDER/compare.json holds.

    Each method is trained at every learning rate under the first seed, and its headline routing's perplexity after
    burn-in on the dev split chooses the rate (geometric mean over languages); all seeds are then trained at that rate,
    and only these are scored on the test split, under every routing that the system has. A rerun does what is missing,
    and anew what has changed; training resumes from checkpoints.

    FOLDER has the shared run (`shared`), the groups of each method (`plans`) and a folder for each training
    (`jobs/METHOD/lr...-seed...`), whose models are removed when they are scored unless `keep`.

    Args:
        recipe: the recipe; its `compare` part says what is compared.
        folder: where everything is written.
        workers: processes; None: one per usable core, or one where there is an accelerator.
        keep: keep the trained models.
        methods: compare only these.

    Raises:
        InputError: a wrong method, a folder of another recipe, texts too short to score.
        SprachbundError: a training failed, or diverged at every learning rate.
    """
    settings = recipe.compare or Compare()
    sizes = base_sizes(recipe)
    chosen = [base_method(recipe), *methods_of(recipe, sizes, methods)]
    others = _sized_by(recipe, chosen)
    folder = folder.resolve()
    with shared_run(recipe, [*chosen, *others.values()], folder / "shared") as (stages, shared):
        tidy(folder)
        for split in ("dev", "test"):
            materials(shared).texts(split)
        seeds = {method.name: settings.seeds[: 1 if method.system == BASE else method.keys.seeds] for method in chosen}
        planned = plan_methods(stages, shared, chosen, others=others, seeds=seeds, folder=folder / "plans")
        comparison = _Comparison(shared, planned, _courses(recipe, chosen, seeds), folder, keep=keep)
        workers = workers or default_workers()
        with pool(workers) as submit:
            comparison.run(submit, workers=workers)
    result = comparison.result()
    write_result(folder, result)
    return result


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a comparison as JSON, with its table as Markdown and its figure as SVG beside it."""
    against = DENSE if DENSE in result["methods"] else next(iter(result["methods"]))
    lines = [f"# {result['recipe']}", "", *table(result, against), "", legend(result, against), ""]
    write_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "compare.md", "\n".join(lines))
    write_text(folder / "compare.svg", comparison_figure(result).standalone())


def _courses(recipe: Recipe, methods: Sequence[Method], seeds: Mapping[str, list[int]]) -> dict[str, Course]:
    """Return the course of every method."""
    alone = [recipe.train.learning_rate]
    common = (recipe.compare or Compare()).learning_rates or alone
    return {
        method.name: Course(
            seeds[method.name],
            alone if method.system == BASE else method.keys.learning_rates or common,
            method.keys.routing,
        )
        for method in methods
    }


def _sized_by(recipe: Recipe, methods: Sequence[Method]) -> dict[str, Method]:
    """Return the methods that others take their size from."""
    found = {}
    for method in methods:
        name = method.keys.size_of
        if name is None or name in found:
            continue
        try:
            (found[name],) = methods_of(recipe, base_sizes(recipe), [name])
        except InputError as error:
            raise InputError(f"compare.methods.{method.name}.size_of: {error}") from None
        if found[name].keys.size_of is not None:
            raise InputError(
                f"compare.methods.{method.name}.size_of: {name} takes its size from {found[name].keys.size_of} itself; "
                "name a method with a width of its own"
            )
    return found


class _Comparison:
    """All courses together: which job is next, and the result so far."""

    def __init__(
        self,
        shared: Shared,
        planned: Mapping[str, tuple[Method, dict[int, Plan]]],
        courses: Mapping[str, Course],
        folder: Path,
        *,
        keep: bool,
    ) -> None:
        self.shared, self.planned, self.courses = shared, planned, courses
        self.folder, self.keep = folder, keep

    def spec(self, name: str, task: Task) -> JobSpec:
        """Return the job of a task."""
        method, plans = self.planned[name]
        folder = self.folder / "jobs" / name / f"lr{task.learning_rate:g}-seed{task.seed}"
        return JobSpec(self.shared, method, plans[task.seed], task.learning_rate, task.seed, folder)

    def run(self, submit: Submit, *, workers: int) -> None:
        """Do every task that is not done, method by method as far as the workers allow."""
        running: dict[Future[Any], tuple[str, Task]] = {}
        while True:
            for name, course in self.courses.items():
                for task in course.ready()[: workers - len(running)]:
                    course.started.add(task)
                    running[submit(run_job, self.spec(name, task), task.split)] = (name, task)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, task = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    raise SprachbundError(
                        f"a worker was killed, at or beside {name}, perhaps for want of memory; run the same command "
                        "again with fewer --workers"
                    ) from None
                self._take(name, task, result)

    def _take(self, name: str, task: Task, result: dict[str, Any]) -> None:
        """Record a task's result, remove models that nobody needs, and write what is known by now."""
        course, what = self.courses[name], f"{name}, learning rate {task.learning_rate:g}, seed {task.seed}"
        course.take(task, result)
        if "diverged" in result and (task.split == "test" or course.diverged()):
            raise SprachbundError(f"{what}: {result['diverged']}")
        scores = result.get(task.split)
        said = "diverged" if scores is None else f"{scores[course.headline(scores)]['perplexity_after_burn_in']:.2f}"
        say(f"{what}: perplexity after burn-in on {task.split} {said}")
        self._clean(name, task)
        if course.done():
            write_text(self.folder / RESULT, json.dumps(self.result(), indent=1, ensure_ascii=False) + "\n")

    def _clean(self, name: str, task: Task) -> None:
        """Remove the models of rates that did not win, and those that are scored for good."""
        course = self.courses[name]
        if self.keep:
            return
        if task.split == "test":
            remove_models(self.spec(name, task).folder)
        elif all(rate in course.dev for rate in course.grid()):
            for rate in course.dev:
                if rate != course.best():
                    remove_models(self.spec(name, replace(task, learning_rate=rate)).folder)

    def result(self) -> dict[str, Any]:
        """Return what is known of the methods that are done."""
        recipe = self.shared.recipe
        done = {name: course for name, course in self.courses.items() if course.done()}
        base = next(iter(done[BASE].runs.values()))["test"] if BASE in done else {}
        return {
            "schema": SCHEMA,
            "package": __version__,
            "recipe": recipe.name,
            "languages": recipe.tags(),
            "device": str(device()),
            "tokens": recipe.train.num_steps * recipe.train.tokens_per_step,
            "burn_in": recipe.evaluate.burn_in,
            "window": recipe.evaluate.window or recipe.train.block_size,
            "base": base.get(DENSE, {}),
            "methods": {name: self._method(name, course) for name, course in done.items() if name != BASE},
        }

    def _method(self, name: str, course: Course) -> dict[str, Any]:
        """Return the result of one method."""
        method, plans = self.planned[name]
        first = course.runs[course.seeds[0]]
        plan = plans[course.seeds[0]]
        return {
            "system": method.system,
            "headline": course.headline(first["test"]),
            "grid": [{"learning_rate": rate, "dev": _dev(course.dev[rate])} for rate in course.grid()],
            "learning_rate": course.best(),
            "edge": course.at_edge(),
            **{key: first[key] for key in ("parameters", "flops", "flops_per_token_active")},
            "groups": [list(members) for members in plan.grouping.groups] if method.has_groups else None,
            "layers": plan.layers.layers if method.has_groups else None,
            "runs": [{key: run.get(key) for key in RUN_KEYS} for run in course.runs_in_order()],
        }


def _dev(result: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the perplexity after burn-in of every routing; None where training diverged."""
    found = result.get("dev")
    return None if found is None else {routing: scores["perplexity_after_burn_in"] for routing, scores in found.items()}
