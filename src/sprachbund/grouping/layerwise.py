"""How many experts each layer gets, and which groups share one there, by how alike the groups are in that layer.

After LayerMoE (Zhang et al. 2025, "Less, but Better: Efficient Multilingual Expansion for Language Models via
Layer-wise Mixture-of-Experts", arXiv 2505.22582): the more similar a layer's representations are across languages,
the fewer experts it gets. What differs: they compare hidden states of old and new languages and allocate in inverse
proportion to the similarity, we take any similarity of the layer and allocate in proportion to 1 - similarity, since
cosines of deviations may be zero or negative; they add experts for new languages, we merge language groups.
Shapes: L languages, G groups, M layers.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.optimize import brentq
from scipy.spatial.distance import squareform

from sprachbund.errors import InputError, nearest
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.layers import SMALLEST_TELLING_SPREAD, relative_spread
from sprachbund.grouping.similarity_csv import Matrix, Similarity

# Cosines of sketches may leave -1..1 by rounding.
COSINE_TOLERANCE = 1e-6

FEWEST = 2
"""Experts of the smallest mixture layer: one expert for all groups is a dense layer."""


def experts_per_layer(
    similarity_by_layer: Mapping[int, Similarity], grouping: Grouping, *, total: int
) -> dict[int, list[int]]:
    """Return, for every layer that becomes a mixture, the expert of each group: numbers 0.. without a gap.

    `total` is the number of experts of all mixture layers together. A layer that is not in the result stays dense: it
    costs nothing and counts as 0, not as 1. Layers get experts in proportion to their dissimilarity, 1 - the mean
    similarity of two groups, by largest remainders, at least 2 and at most one per group; layers whose share is less
    than one expert stay dense, and so do the most similar ones where two experts for each are more than `total`.
    Which groups share an expert in a layer: those that average linkage merges first.

    Only layers of `similarity_by_layer` are considered. Of equally dissimilar layers the lower gets the spare expert.

    Raises:
        InputError: a `total` that cannot be, fewer than two groups, a similarity that lacks a language or is no cosine.
    """
    num_groups = len(grouping.groups)
    layers = sorted(similarity_by_layer)
    check_total(total, num_groups=num_groups, num_layers=len(layers))
    between_MGG = [between_groups(similarity_by_layer[layer], grouping, layer=layer) for layer in layers]
    counts_M = allocate([_dissimilarity(between_GG) for between_GG in between_MGG], total=total, most=num_groups)
    return {
        layer: _shared_experts(between_GG, num_experts=count)
        for layer, between_GG, count in zip(layers, between_MGG, counts_M, strict=True)
        if count
    }


def evenness_warning(similarity_by_layer: Mapping[int, Similarity], grouping: Grouping) -> str | None:
    """Return one sentence where the layers differ so little that their numbers of experts read noise, else None.

    In our own measurement (18 languages, 6 groups, 4 layers) the dissimilarities of deviations differed by 1%, centred
    or not, those of hidden states by 11%, but by 1% after centring, which brings every layer's mean to the same value.
    """
    dissimilarity_M = [
        _dissimilarity(between_groups(similarity, grouping, layer=layer))
        for layer, similarity in sorted(similarity_by_layer.items())
    ]
    spread = relative_spread(dissimilarity_M)
    if spread >= SMALLEST_TELLING_SPREAD or len(dissimilarity_M) == 1:
        return None
    return (
        f"The groups are about as dissimilar in every layer (1 - similarity differs by {spread:.1%} of its mean): how "
        "many experts a layer gets reads noise here; compare hidden states without centring, or give every layer the "
        "same."
    )


def _dissimilarity(between_GG: Matrix) -> float:
    """Return 1 - the mean similarity of two groups, never below 0."""
    return max(1 - float(between_GG[np.triu_indices(len(between_GG), k=1)].mean()), 0.0)


def between_groups(similarity: Similarity, grouping: Grouping, *, layer: int) -> Matrix:
    """Return (G, G) mean similarities of a language of one group and one of another; the diagonal means nothing.

    Raises:
        InputError: a language is missing, or a value is no cosine.
    """
    column = {tag: index for index, tag in enumerate(similarity.tags)}
    share_GL = np.zeros((len(grouping.groups), len(similarity.tags)))
    for group, tags in enumerate(grouping.groups):
        for tag in tags:
            if tag not in column:
                raise InputError(
                    f"The similarity of layer {layer} has no language {tag!r}{nearest(tag, column) or '.'}"
                )
            share_GL[group, column[tag]] = 1 / len(tags)
    values_LL = similarity.values_LL
    if not bool((np.abs(values_LL) <= 1 + COSINE_TOLERANCE).all()):  # so that NaN is refused too
        odd = values_LL.flat[int(np.argmax(~(np.abs(values_LL) <= 1 + COSINE_TOLERANCE)))]
        raise InputError(
            f"The similarity of layer {layer} holds {odd:g}; experts per layer are chosen by cosines, from -1 to 1."
        )
    between_GG: Matrix = share_GL @ values_LL @ share_GL.T
    return between_GG


def allocate(dissimilarity_M: Sequence[float], *, total: int, most: int) -> list[int]:
    """Return (M) numbers of experts that sum to `total`: 0 (the layer stays dense), or 2 to `most`.

    In proportion to `dissimilarity_M` as far as these bounds allow, by largest remainders; a more dissimilar layer
    never gets fewer. `total` must be possible, see `experts_per_layer`.
    """
    weights_M = np.asarray(dissimilarity_M, dtype=np.float64)
    # A layer whose groups are all alike still takes what the others have no room for.
    weights_M = np.maximum(weights_M / weights_M.max(), 1e-6) if weights_M.max() else np.ones_like(weights_M)
    mixtures = sorted(range(len(weights_M)), key=lambda layer: (-dissimilarity_M[layer], layer))
    while total <= most * (len(mixtures) - 1):
        shares = _bounded_shares(weights_M[mixtures], total=total, fewest=0, most=most)
        if shares[-1] >= 1 and FEWEST * len(mixtures) <= total:
            break
        mixtures.pop()
    shares = _bounded_shares(weights_M[mixtures], total=total, fewest=FEWEST, most=most)
    counts = np.floor(shares).astype(int)
    by_remainder = np.argsort(counts - shares, kind="stable")  # equal ones stay in their order, most dissimilar first
    counts[by_remainder[: total - int(counts.sum())]] += 1
    counts_M = np.zeros(len(weights_M), dtype=int)
    counts_M[mixtures] = counts
    return [int(count) for count in counts_M]


def _bounded_shares(weights: Matrix, *, total: int, fewest: int, most: int) -> Matrix:
    """Return shares that sum to `total`, in proportion to the weights (above 0, at most 1) between two bounds."""

    def excess(scale: float) -> float:
        return float(np.clip(scale * weights, fewest, most).sum()) - total

    scale = brentq(excess, 0.0, 2 * most / weights.min())  # at 0 all are at the lower bound, here at the upper
    # Nine decimals: whether a share is a whole number must not hang on the last bit of the root.
    shares: Matrix = np.clip(scale * weights, fewest, most).round(9)
    return shares


def _shared_experts(between_GG: Matrix, *, num_experts: int) -> list[int]:
    """Return the expert of each group, numbered in the order of the groups: average linkage down to `num_experts`."""
    distance_GG = np.clip(1 - between_GG, 0.0, None)
    np.fill_diagonal(distance_GG, 0.0)
    tree = linkage(squareform(distance_GG, checks=False), method="average")
    clusters = [int(cluster) for cluster in cut_tree(tree, n_clusters=num_experts)[:, 0]]
    number = {cluster: expert for expert, cluster in enumerate(dict.fromkeys(clusters))}
    return [number[cluster] for cluster in clusters]


def check_total(total: int, *, num_groups: int, num_layers: int) -> None:
    """Raise InputError for a number of experts that no choice of layers can have."""
    if num_groups < FEWEST:
        raise InputError("Experts per layer need at least 2 groups; with one group there is nothing to share.")
    if not num_layers:
        raise InputError("Experts per layer need the similarity of at least one layer.")
    if not FEWEST <= total <= num_groups * num_layers:
        raise InputError(
            f"layers.layerwise = {total} experts in all; {num_groups} groups in {num_layers} layers can have "
            f"{FEWEST} to {num_groups * num_layers}."
        )
    if num_groups == FEWEST and total % FEWEST:
        raise InputError(
            f"layers.layerwise = {total} experts in all; with 2 groups every mixture layer has 2, so give an even "
            f"number from 2 to {2 * num_layers}."
        )
