"""What `group` and `layers` say about a bare file: text in, text out, so that it can be tested word for word."""

import json
from collections.abc import Sequence
from pathlib import Path

from sprachbund.grouping import (
    Grouping,
    Similarity,
    bitmask,
    choose_by_epsilon,
    group,
    mean_norms,
    noise_warning,
    normalised,
    read_norms,
    read_similarity,
)


def group_file(path: Path | str, *, num_groups: int, method: str, as_json: bool) -> str:
    """Return the groups of a similarity file as a table, or as JSON for a machine.

    Raises:
        InputError: the file, the number of groups or the method is not valid.
    """
    similarity = read_similarity(path)
    grouping = group(similarity, num_groups=num_groups, method=method)
    if not as_json:
        return _group_table(grouping, similarity, method=method)
    content = {
        "groups": [list(members) for members in grouping.groups],
        "method": method,
        "mean_similarity": grouping.mean_similarity(similarity),
        "min_similarity": grouping.min_similarity(similarity),
        "sizes": [len(members) for members in grouping.groups],
    }
    return json.dumps(content, ensure_ascii=False)


def layers_file(path: Path | str, *, epsilon: float, as_json: bool) -> str:
    """Return the layers that epsilon chooses from a file of norms as a table, or as JSON for a machine.

    Raises:
        InputError: the file or epsilon is not valid.
    """
    norms_L = mean_norms(read_norms(path))
    layers = choose_by_epsilon(norms_L, epsilon=epsilon)
    if not as_json:
        return _layers_table(norms_L, layers, epsilon=epsilon)
    content = {
        "layers": layers,
        "bitmask": bitmask(layers),
        "epsilon": epsilon,
        "norms": norms_L,
        "normalised": normalised(norms_L),
        "warning": noise_warning(norms_L),
    }
    return json.dumps(content, ensure_ascii=False)


def _group_table(grouping: Grouping, similarity: Similarity, *, method: str) -> str:
    lines = ["group  size    mean     min  languages"]
    for number, members in enumerate(grouping.groups):
        alone = Grouping((members,))
        mean, least = _decimals(alone.mean_similarity(similarity)), _decimals(alone.min_similarity(similarity))
        lines.append(f"{number:>5}  {len(members):>4}  {mean:>6}  {least:>6}  {' '.join(members)}")
    mean, least = _decimals(grouping.mean_similarity(similarity)), _decimals(grouping.min_similarity(similarity))
    lines.append(f"{'all':>5}  {len(similarity.tags):>4}  {mean:>6}  {least:>6}  ({method})")
    return "\n".join(lines)


def _layers_table(norms_L: Sequence[float], layers: Sequence[int], *, epsilon: float) -> str:
    lines = ["layer        norm  normalised  experts"]
    for layer, (norm, scaled) in enumerate(zip(norms_L, normalised(norms_L), strict=True)):
        lines.append(f"{layer:>5}  {norm:>10.4g}  {scaled:>10.3f}  {'yes' if layer in layers else 'no':>7}")
    lines.append(
        f"{len(layers)} of {len(norms_L)} layers have experts at epsilon {epsilon:g}; bitmask {bitmask(layers)}"
    )
    warning = noise_warning(norms_L)
    return "\n".join([*lines, f"warning: {warning}"] if warning else lines)


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
