"""Who shares an expert, and which layers have experts: plain numbers in, plain numbers out, no torch."""

from sprachbund.grouping.greedy import (
    METHODS,
    Grouping,
    group,
    group_greedy_exhaustive,
    group_greedy_seeded,
    read_groups,
    write_groups,
)
from sprachbund.grouping.layers import (
    LayerNorms,
    bitmask,
    choose_by_budget,
    choose_by_epsilon,
    choose_top,
    mean_norms,
    noise_warning,
    normalised,
    outlier_warning,
    read_norms,
    relative_spread,
)
from sprachbund.grouping.similarity_csv import Similarity, read_similarity, write_similarity

__all__ = [
    "METHODS",
    "Grouping",
    "LayerNorms",
    "Similarity",
    "bitmask",
    "choose_by_budget",
    "choose_by_epsilon",
    "choose_top",
    "group",
    "group_greedy_exhaustive",
    "group_greedy_seeded",
    "mean_norms",
    "noise_warning",
    "normalised",
    "outlier_warning",
    "read_groups",
    "read_norms",
    "read_similarity",
    "relative_spread",
    "write_groups",
    "write_similarity",
]
