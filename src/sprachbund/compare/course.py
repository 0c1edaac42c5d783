"""The course of one method: the grid of learning rates on dev, then all seeds at the best rate on test.

No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

MOST_EXTENSIONS = 2  # of the grid, on each side


@dataclass(frozen=True)
class Task:
    """What is to be done next: train at a rate under a seed where that is not done, and score on a split."""

    learning_rate: float
    seed: int
    split: str


@dataclass
class Course:
    """What is done and what comes next, for one method; `routing` is the headline, None the first that there is."""

    seeds: Sequence[int]
    rates: Sequence[float]
    routing: str | None = None
    dev: dict[float, dict[str, Any]] = field(default_factory=dict)
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    started: set[Task] = field(default_factory=set)

    def ready(self) -> list[Task]:
        """Return the tasks that can be started now and are not, in their order."""
        return [task for task in self._next() if task not in self.started]

    def _next(self) -> list[Task]:
        rates = self.grid()
        if missing := [rate for rate in rates if rate not in self.dev]:
            return [Task(rate, self.seeds[0], "dev") for rate in missing]
        best = self.best()
        return [Task(best, seed, "test") for seed in self.seeds if seed not in self.runs]

    def grid(self) -> list[float]:
        """Return the rates to try, ascending: those given, and where the best of them is at an edge, further ones.

        Each is beyond the edge by the factor between the edge and its neighbour; a grid of one rate has no edge.
        """
        rates = sorted(self.rates)
        lowest, highest = rates[0], rates[-1]
        while len(self.rates) > 1 and all(rate in self.dev for rate in rates):
            best = min(rates, key=self.score)
            if best == rates[-1] and sum(rate > highest for rate in rates) < MOST_EXTENSIONS:
                rates.append(_rounded(best * best / rates[-2]))
            elif best == rates[0] and sum(rate < lowest for rate in rates) < MOST_EXTENSIONS:
                rates.insert(0, _rounded(best * best / rates[1]))
            else:
                break
        return rates

    def score(self, rate: float) -> float:
        """Return the headline's perplexity after burn-in on dev; a training that diverged has none, and is last."""
        found = self.dev[rate].get("dev")
        return inf if found is None else float(found[self.headline(found)]["perplexity_after_burn_in"])

    def headline(self, scores: Mapping[str, Any]) -> str:
        """Return the routing that decides: the method's, or the first where the system has not that one."""
        return self.routing if self.routing is not None and self.routing in scores else next(iter(scores))

    def best(self) -> float:
        """Return the best rate; of equal ones the lower."""
        return min(self.grid(), key=lambda rate: (self.score(rate), rate))

    def at_edge(self) -> bool:
        """Is the best rate the least or the greatest of several that were tried?"""
        rates = self.grid()
        return len(rates) > 1 and self.best() in (rates[0], rates[-1])

    def diverged(self) -> bool:
        """Is the grid done, without a rate that did not diverge?"""
        return all("diverged" in self.dev.get(rate, {}) for rate in self.grid())

    def take(self, task: Task, result: dict[str, Any]) -> None:
        """Record what a task came to."""
        if task.split == "dev":
            self.dev[task.learning_rate] = result
        else:
            self.runs[task.seed] = result

    def runs_in_order(self) -> list[dict[str, Any]]:
        """Return the results of the seeds."""
        return [self.runs[seed] for seed in self.seeds]

    def done(self) -> bool:
        """Is every seed scored on test?"""
        return len(self.runs) == len(self.seeds)


def _rounded(rate: float) -> float:
    """Return a rate with four digits."""
    return float(f"{rate:.4g}")
