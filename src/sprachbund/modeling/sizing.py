"""Widths of experts from a budget of parameters."""

from collections.abc import Callable
from typing import Any

from sprachbund.errors import InputError
from sprachbund.modeling.parameters import count_parameters
from sprachbund.modeling.skeleton import dense_ffn_shape, skeleton

GROUP_SHARE = 2 / 3  # of a hierarchy's budget: the experts of groups, as in the measured best (docs/experiments.md)


def widths_within(
    dense: Any, make_config: Callable[[int, int | None], Any], *, budget: float, hierarchy: bool
) -> tuple[int, int | None]:
    """Return the widths (a group's expert's, a language's) that keep all parameters within `budget` times `dense`'s.

    `make_config(width, language_width)` returns the mixture's configuration; its size grows linearly with both. In a
    hierarchy two thirds of what experts may cost go to the groups'. No expert is wider than the dense FFN, however
    much there would be room for: it would cost more at every token. Raises InputError where not one unit fits.
    """
    widest = dense_ffn_shape(dense).width
    allowed = budget * count_parameters(skeleton(dense)).total

    def size(width: int, language_width: int | None) -> int:
        return count_parameters(skeleton(make_config(width, language_width))).total

    own = 1 if hierarchy else None
    smallest = size(1, own)
    unit = size(2, own) - smallest
    if not hierarchy:
        width = 1 + int((allowed - smallest) // unit)
        return min(_checked(width, budget, smallest / allowed * budget), widest), None
    language_unit = size(1, 2) - smallest
    free = allowed - smallest + unit + language_unit
    width = int(GROUP_SHARE * free // unit)
    language_width = int((free - width * unit) // language_unit)
    _checked(min(width, language_width), budget, smallest / allowed * budget)
    return min(width, widest), min(language_width, widest)


def _checked(width: int, budget: float, least: float) -> int:
    """Raise InputError where a width is not positive."""
    if width < 1:
        raise InputError(
            f"experts.budget = {budget:g} leaves no room for experts: with a single unit each the model has "
            f"{least:.2f} times the parameters of its base; raise it, or take fewer groups or layers"
        )
    return width
