"""Groups and layers as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.layers import bitmask, normalised
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.grouping.solve import Solution


def group_text(grouping: Grouping, similarity: Similarity | None, facts: Mapping[str, Any]) -> str:
    """Return groups with their similarities, and below them how they were found and how sure they are."""
    confidence = (facts.get("stability") or {}).get("confidence", {})
    lines = ["group  size    mean     min  languages"]
    for number, members in enumerate(grouping.groups):
        mean, least = _similarities(Grouping((members,)), similarity)
        lines.append(f"{number:>5}  {len(members):>4}  {mean:>6}  {least:>6}  {' '.join(members)}")
    mean, least = _similarities(grouping, similarity)
    lines.append(f"{'all':>5}  {len(grouping.as_dict()):>4}  {mean:>6}  {least:>6}  {_how(facts)}")
    if curve := facts.get("curve"):
        lines += ["", *_curve(curve, facts)]
    if steadiness := facts.get("stability"):
        lines.append(
            f"stability: adjusted Rand index {steadiness['mean_rand']:.2f} to the groups of "
            f"{steadiness['resamples']} resamplings ({steadiness['kind']})"
        )
        if loose := [tag for tag, value in confidence.items() if value < 0.5]:
            lines.append(f"unsure, with their group in less than half of them: {' '.join(loose)}")
    if facts.get("between_repeats") is not None:
        lines.append(f"between repeats of the probe: adjusted Rand index {facts['between_repeats']:.2f}")
    if families := facts.get("families"):
        lines.append(f"families: adjusted Rand index {families['rand']:.2f}, p = {families['p_value']:.4f}")
    return "\n".join(lines)


def _how(facts: Mapping[str, Any]) -> str:
    """Return in brackets how the groups were found, and what is proven of them."""
    method, value, bound = facts.get("method", "given"), facts.get("value"), facts.get("bound")
    parts = [method]
    if method not in ("given", "greedy-exhaustive", "greedy-seeded"):
        parts[0] = f"{facts['objective']}, {method}"
        if facts.get("least") is not None:
            parts.append(f"no pair below {facts['least']:.4f}")
        if facts.get("proven"):
            parts.append("proven optimal")
        elif value is not None and bound is not None:
            parts.append(f"at most {bound:.4f} is possible")
    return f"({', '.join(parts)})"


def _curve(curve: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
    """Return the curve that the number of groups was chosen from, the chosen row marked."""
    columns = [name for name in curve[0] if name not in ("count", "chosen")]
    lines = ["  groups  " + "  ".join(f"{name.replace('_', ' '):>10}" for name in columns)]
    for row in curve:
        cells = "  ".join(f"{_decimals(row[name]):>10}" for name in columns)
        lines.append(f"{'>' if row['chosen'] else ' '} {row['count']:>6}  {cells}")
    return [*lines, *([f"warning: {facts['warning']}"] if facts.get("warning") else []), ""]


def front_text(front: Sequence[Solution]) -> str:
    """Return every trade-off between the smallest and the mean similarity, largest mean first."""
    lines = ["    min     mean  groups"]
    for solution in front:
        groups = " | ".join(" ".join(members) for members in solution.grouping.groups)
        lines.append(f"{_decimals(solution.min):>7}  {_decimals(solution.mean):>7}  {groups}")
    proven = all(solution.proven for solution in front)
    return "\n".join([*lines, "proven: no grouping is better in both" if proven else "found by search: not proven"])


def layers_text(norms_L: Sequence[float], layers: Sequence[int], *, rule: str, said: Sequence[str] = ()) -> str:
    """Return the layers with their norms, the authors' bitmask, and warnings."""
    lines = ["layer        norm  normalised  experts"]
    for layer, (norm, scaled) in enumerate(zip(norms_L, normalised(norms_L), strict=True)):
        lines.append(f"{layer:>5}  {norm:>10.4g}  {scaled:>10.3f}  {'yes' if layer in layers else 'no':>7}")
    lines.append(f"{len(layers)} of {len(norms_L)} layers have experts at {rule}; bitmask {bitmask(layers)}")
    return "\n".join([*lines, *(f"warning: {warning}" for warning in said)])


def _similarities(grouping: Grouping, similarity: Similarity | None) -> tuple[str, str]:
    if similarity is None:
        return "-", "-"
    return _decimals(grouping.mean_similarity(similarity)), _decimals(grouping.min_similarity(similarity))


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
