"""From a similarity and the recipe's `groups` to a decision: the groups, how good they are, and how sure.

Shapes: L languages.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from sprachbund.errors import InputError
from sprachbund.grouping.count import CountChoice, choose_count
from sprachbund.grouping.families import FamilyAgreement, family_agreement, family_auc
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.problem import Constraints
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.solve import Solution, solve
from sprachbund.grouping.stability import Stability, adjusted_rand, perturbed, stability
from sprachbund.recipe.plan import Groups

QUICK = 0.1  # effort of regrouping what was resampled: of a hundred answers, each matters little
LEFT_OUT = "leaving out a fifth of the languages"  # what `perturbed` does, in words


@dataclass(frozen=True)
class Evidence:
    """What is known beside the similarity itself.

    Attributes:
        weights: capacity of every language, where the recipe asks for one.
        replicates: the similarity of resampled probe data.
        resampled: what was resampled, in words.
        repeats: the similarity of each repeat of the probe, where there are several.
        families: the family of every language, where known.
    """

    weights: Mapping[str, float] | None = None
    replicates: Sequence[Similarity] = ()
    resampled: str = ""
    repeats: Sequence[Similarity] = ()
    families: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Decision:
    """Groups and what is known about them."""

    solution: Solution
    settings: Groups
    evidence: Evidence
    curve: CountChoice | None
    stability: Stability | None
    between_repeats: float | None
    agreement: FamilyAgreement | None


def constraints_of(settings: Groups, weights: Mapping[str, float] | None) -> Constraints:
    """Return the constraints that the recipe's `groups` names."""
    return Constraints(
        must_link=tuple(map(tuple, settings.must_link)),
        cannot_link=tuple(map(tuple, settings.cannot_link)),
        weights=weights,
        window=settings.window,
        strict=settings.strict,
    )


def decide(similarity: Similarity, settings: Groups, evidence: Evidence, *, seed: int) -> Decision:
    """Group as the recipe's `groups` says; `seed` is that of the search, the shuffles and the permutations.

    Raises:
        InputError: a number of groups or constraints that cannot be.
    """
    curve, count = None, settings.count
    if count == "auto":
        curve = choose_count(
            similarity, replicates=evidence.replicates, solve_one=_quickly(settings, evidence, seed), seed=seed
        )
        count = curve.count
    solution = _solver(settings, evidence, seed)(similarity, num_groups=count, exact=settings.exact)
    again = partial(_regroup, count=count, solve_one=_quickly(settings, evidence, seed))
    of_repeats = [again(repeat) for repeat in evidence.repeats]
    between = [adjusted_rand(a, b) for a, b in combinations(of_repeats, 2)]
    families = evidence.families
    return Decision(
        solution,
        settings,
        evidence,
        curve,
        _stability(solution.grouping, similarity, settings, evidence, again, seed=seed),
        float(np.mean(between)) if between else None,
        family_agreement(solution.grouping, families, seed=seed) if families else None,
    )


def _solver(settings: Groups, evidence: Evidence, seed: int) -> Callable[..., Solution]:
    return partial(
        solve,
        objective=settings.objective,
        method=settings.method,
        floor=settings.floor,
        constraints=constraints_of(settings, evidence.weights),
        seed=seed,
    )


def _quickly(settings: Groups, evidence: Evidence, seed: int) -> Callable[[Similarity, int], Grouping]:
    solver = _solver(settings, evidence, seed)
    return lambda similarity, count: solver(similarity, num_groups=count, effort=QUICK).grouping


def _regroup(similarity: Similarity, *, count: int, solve_one: Callable[[Similarity, int], Grouping]) -> Grouping:
    return solve_one(similarity, count)


def _stability(
    reference: Grouping,
    similarity: Similarity,
    settings: Groups,
    evidence: Evidence,
    again: Callable[[Similarity], Grouping],
    *,
    seed: int,
) -> Stability | None:
    """Regroup resampled probe data, or where there is none, parts of the languages."""
    if not settings.resamples:
        return None
    if evidence.replicates:
        return stability(reference, evidence.replicates, solve_one=again)
    if constraints_of(settings, evidence.weights).given:  # they name languages that a part may lack
        return None
    with suppress(InputError):  # too few languages to leave some out
        return perturbed(reference, similarity, solve_one=again, seed=seed)
    return None


def as_dict(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON values: the content of grouping.json."""
    solution, settings = decision.solution, decision.settings
    facts: dict[str, Any] = {
        "source": settings.source,
        "objective": solution.objective,
        "method": solution.method,
        "mean": solution.mean,
        "min": solution.min,
        "value": solution.value,
        "bound": solution.bound,
        "proven": solution.proven,
        "least": solution.least,
        "floor": settings.floor if solution.objective == "mean" else None,
        "count_chosen": "given" if decision.curve is None else "auto",
        "curve": None,
        "p_value": None,
        "warning": None,
        "stability": None,
        "between_repeats": decision.between_repeats,
        "families": None,
    }
    if decision.curve is not None:
        rows = [asdict(row) for row in decision.curve.rows]
        facts["curve"] = [{**row, "chosen": row["count"] == decision.curve.count} for row in rows]
        facts["p_value"], facts["warning"] = decision.curve.p_value, decision.curve.warning
    if (found := decision.stability) is not None:
        facts["stability"] = {
            "resamples": len(found.groupings),
            "kind": decision.evidence.resampled if decision.evidence.replicates else LEFT_OUT,
            "tags": list(found.tags),
            "co_assignment": [
                [None if np.isnan(share) else round(share, 4) for share in row]
                for row in found.co_assignment_LL.tolist()
            ],
            "mean_rand": found.mean_rand,
            "confidence": found.confidence,
        }
    if decision.agreement is not None and decision.evidence.families is not None:
        facts["families"] = {**asdict(decision.agreement), "families": dict(decision.evidence.families)}
    return facts


def compare_sources(
    similarities: Mapping[str, Similarity], decision: Decision, *, seed: int
) -> dict[str, dict[str, float | None]]:
    """Return how every similarity groups the same languages into as many groups under the same objective.

    For each: mean and smallest similarity in its own groups, the adjusted Rand index of these to the decision's, and,
    where families are known, the index to them and the probability that a pair of one family is more alike than a
    pair of two (AUC).
    """
    count, families = len(decision.solution.grouping.groups), decision.evidence.families
    solve_one = _quickly(decision.settings, decision.evidence, seed)
    found = {}
    for name, similarity in similarities.items():
        grouping = decision.solution.grouping
        if name != decision.settings.source:
            grouping = solve_one(similarity, count)
        found[name] = {
            "mean": grouping.mean_similarity(similarity),
            "min": grouping.min_similarity(similarity),
            "rand_to_used": adjusted_rand(grouping, decision.solution.grouping),
            "family_auc": family_auc(similarity, families) if families else None,
            "family_rand": family_agreement(grouping, families, permutations=1, seed=seed).rand if families else None,
        }
    return found
