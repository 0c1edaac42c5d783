"""From signals to similarities: cosines, and what the probe's data leaves unsure about them.

Everything is inner products, added up over layers: a cosine over several layers is that of their concatenation.
Shapes: L languages, M entries of a vector, P parts of a language, B replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, pad

from sprachbund.errors import SprachbundError
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.similarity.signal import Signal

STEPWISE = "gradient-stepwise"  # read from the signals of "gradient"
COUNTS = ("lexical", "characters")  # their vectors are counts, compared as distributions
# Whose part p is in every language of one kind: a step of one learning rate, sentences of one content.
ALIKE = ("deviation", "representation")
# As a share of a vector's norm: a centred vector that is shorter is what rounding left of zero.
NOTHING = 1e-6

_ZERO = {
    "deviation": "the probe did not move the parameters for {}; raise probe.learning_rate",
    "gradient": "the base's gradient is zero for {}; take another base, or another source",
    "representation": "the base's hidden states are zero for {}; take another probe.hidden_layer, or another source",
    "lexical": "the train split of {} has no token; give it text",
    "characters": "the train split of {} has no run of probe.ngram characters; lower probe.ngram",
}


def similarity_of(signals: Mapping[str, Signal], *, source: str, center: bool) -> Similarity:
    """Return how alike the languages are to one source: the cosine over the layers that it compares, together.

    `deviation` is DMoE's as released. `gradient` is the cosine of the summed gradients ("cosine of means");
    `gradient-stepwise`, from the same signals, the mean over steps of the cosines of the steps' gradients ("mean of
    cosines"), as the cosine baseline of TAG (Fifty et al. 2021), in whose line GradSim (Wang et al. 2023) stands; only
    that all steps are taken at the base's weights. Of `lexical` and `characters` the square roots of the relative
    frequencies are compared: the cosine is then the Bhattacharyya coefficient of the two distributions.

    `center` first removes the mean over languages, in each layer by itself: of deviations what every fine-tuning does
    whatever the language, of representations what all text has in common. Not in DMoE.

    Raises:
        SprachbundError: a vector is zero, before or after centring, and has no direction.
    """
    return _compare(signals, _first(signals).compared, source=source, center=center)


def similarity_by_layer(signals: Mapping[str, Signal], *, source: str, center: bool) -> dict[int, Similarity]:
    """Return the similarity of every layer by itself; otherwise as `similarity_of`."""
    return {layer: _compare(signals, [layer], source=source, center=center) for layer in _first(signals).totals}


def resampled(signals: Mapping[str, Signal], *, source: str, center: bool, num: int, seed: int) -> list[Similarity]:
    """Return `num` bootstrap replicates of `similarity_of`: each language's parts drawn with replacement.

    A language's draw depends on its tag and the seed only, so that the order of languages changes nothing. Languages
    draw alike where their parts go together. Of the deviation that is every step: under a falling rate and momentum the
    first is thirty times the last, and a language that happens to draw it twice would stand apart from all others once
    the mean is removed (benchmarks/similarity_sources.py compares the spread with that between repeats of the probe).

    A replicate holds the noise of the data twice, that of the data at hand and that of the draw: it errs on the side of
    doubt.
    """
    tags = list(signals)
    num_parts = len(next(iter(_first(signals).parts.values())))
    names = ["" if source in ALIKE else tag for tag in tags]
    draws_BLP = torch.from_numpy(np.stack([_draws(name, seed=seed, shape=(num, num_parts)) for name in names], axis=1))
    if source in COUNTS:
        return _resampled_counts(signals, draws_BLP, source=source, center=center)
    parts = _PartProducts.of(signals, _first(signals).compared)
    if source == STEPWISE:
        return [_similarity(tags, parts.stepwise(draw_LP, center=center)) for draw_LP in draws_BLP]
    whole_LL = _products(signals, _first(signals).compared, source=source)
    if not center:  # a mean can be removed from products of sketches only where all are of sketches
        whole_LL.diagonal().copy_(_norms(signals, _first(signals).compared, source=source).square())
    parts_LL = parts.of_sums(torch.ones(len(tags), num_parts, dtype=torch.float64))
    found = []
    for draw_LP in draws_BLP:
        weights_LP = one_hot(draw_LP, num_parts).sum(1).double()
        # totals are known better than parts, which are sketched to fewer numbers: only the difference comes from these
        products_LL = whole_LL + parts.of_sums(weights_LP) - parts_LL
        found.append(_similarity(tags, _cosines(_centred(products_LL) if center else products_LL)))
    return found


def by_repeat(signals: Mapping[str, Signal], *, source: str, center: bool) -> list[Similarity]:
    """Return the similarity that each repeat of the probe alone would have given; none where there is one repeat."""
    tags, repeats = list(signals), _first(signals).repeats
    if repeats == 1:
        return []
    parts = _PartProducts.of(signals, _first(signals).compared)
    found = []
    for own in torch.arange(parts.num_parts).chunk(repeats):
        if source == STEPWISE:
            cosines_LL = parts.stepwise(own.expand(len(tags), -1), center=center)
        else:
            weights_LP = one_hot(own, parts.num_parts).sum(0).double().expand(len(tags), -1)
            products_LL = parts.of_sums(weights_LP)
            cosines_LL = _cosines(_centred(products_LL) if center else products_LL)
        found.append(_similarity(tags, cosines_LL))
    return found


@dataclass(frozen=True)
class _PartProducts:
    """Inner products of all parts of all languages, (L, P, L, P), of which every resampling is a weighted sum."""

    products_LPLP: Tensor

    @classmethod
    def of(cls, signals: Mapping[str, Signal], layers: Sequence[int]) -> "_PartProducts":
        products = torch.zeros(())
        for layer in layers:
            parts_LPM = _stacked([signal.parts[layer] for signal in signals.values()]).double()
            flat = parts_LPM.flatten(0, 1)
            products = products + (flat @ flat.T).view(*parts_LPM.shape[:2], *parts_LPM.shape[:2])
        return cls(products)

    @property
    def num_parts(self) -> int:
        return self.products_LPLP.shape[1]

    def of_sums(self, weights_LP: Tensor) -> Tensor:
        """Return the inner products of the languages' weighted sums of parts, (L, L)."""
        return torch.einsum("lp,lpmq,mq->lm", weights_LP, self.products_LPLP, weights_LP)

    def stepwise(self, draw_LP: Tensor, *, center: bool) -> Tensor:
        """Return the mean over positions of the cosines of the parts drawn for that position, (L, L)."""
        languages = torch.arange(len(draw_LP))
        cosines = []
        for draw_L in draw_LP.T:
            products_LL = self.products_LPLP[languages, draw_L][:, languages, draw_L]
            cosines.append(_cosines(_centred(products_LL) if center else products_LL))
        return torch.stack(cosines).mean(0)


def _first(signals: Mapping[str, Signal]) -> Signal:
    return next(iter(signals.values()))


def _compare(signals: Mapping[str, Signal], layers: Sequence[int], *, source: str, center: bool) -> Similarity:
    tags, kind = list(signals), source.removesuffix("-stepwise")
    exact_L = _norms(signals, layers, source=kind)
    if zero := [tag for tag, norm in zip(tags, exact_L, strict=True) if not norm > 0]:
        raise SprachbundError(_ZERO[kind].format(", ".join(zero)))
    products_LL = _products(signals, layers, source=kind, center=center)
    # exact norms where they are known, inner products of sketches
    norms_L = products_LL.diagonal().sqrt() if center else exact_L
    if alike := [tag for tag, norm, whole in zip(tags, norms_L, exact_L, strict=True) if not norm > NOTHING * whole]:
        raise SprachbundError(
            f"the {kind} of {', '.join(alike)} is exactly the mean over all languages; "
            "give each language a text of its own, or set probe.center: false"
        )
    if source == STEPWISE:
        parts = _PartProducts.of(signals, layers)
        every_LP = torch.arange(parts.num_parts).expand(len(tags), -1)
        return _similarity(tags, parts.stepwise(every_LP, center=center))
    return _similarity(tags, products_LL / torch.outer(norms_L, norms_L))


def _norms(signals: Mapping[str, Signal], layers: Sequence[int], *, source: str) -> Tensor:
    """Return the exact norms of the vectors over `layers`, (L,)."""
    norms = torch.tensor(
        [[signal.norms[layer] for layer in layers] for signal in signals.values()], dtype=torch.float64
    )
    if source in COUNTS:
        norms = (norms > 0).double()  # frequencies sum to one, and are the squares of what is compared
    return norms.square().sum(1).sqrt()


def _products(signals: Mapping[str, Signal], layers: Sequence[int], *, source: str, center: bool = False) -> Tensor:
    """Return the inner products of the languages' vectors, summed over `layers`, (L, L)."""
    products_LL = torch.zeros(len(signals), len(signals), dtype=torch.float64)
    for layer in layers:  # one at a time: all layers of many languages would be gigabytes
        vectors_LM = _stacked([signal.totals[layer] for signal in signals.values()]).double()
        if source in COUNTS:
            vectors_LM = _roots(vectors_LM)
        if center:
            vectors_LM = vectors_LM - vectors_LM.mean(0)
        products_LL += vectors_LM @ vectors_LM.T
    return products_LL


def _stacked(vectors: Sequence[Tensor]) -> Tensor:
    """Return (L, ..., M); counts end with a language's last token and are filled up with zeros."""
    longest = max(vector.shape[-1] for vector in vectors)
    return torch.stack([pad(vector, (0, longest - vector.shape[-1])) for vector in vectors])


def _roots(counts: Tensor) -> Tensor:
    """Return the square roots of the relative frequencies."""
    return (counts / counts.sum(-1, keepdim=True).clamp_min(1)).sqrt()


def _centred(products_LL: Tensor) -> Tensor:
    """Return the inner products of the vectors less their mean, (L, L), from those of the vectors."""
    return products_LL - products_LL.mean(0) - products_LL.mean(1, keepdim=True) + products_LL.mean()


def _cosines(products_LL: Tensor) -> Tensor:
    """Return the cosines, (L, L); a vector that a draw left without length is like no other."""
    norms_L = products_LL.diagonal().clamp_min(0).sqrt()
    return products_LL / torch.outer(norms_L, norms_L).clamp_min(torch.finfo(torch.float64).tiny)


def _draws(tag: str, *, seed: int, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return for each replicate the numbers of the parts drawn, (B, P)."""
    key = blake2b(f"bootstrap/{seed}/{tag}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(key, "little")).integers(shape[1], size=shape)


def _resampled_counts(
    signals: Mapping[str, Signal], draws_BLP: Tensor, *, source: str, center: bool
) -> list[Similarity]:
    """The roots of summed counts are no sum of roots: every replicate is made from the counts."""
    (layer,) = _first(signals).compared
    parts_LPM = _stacked([signal.parts[layer] for signal in signals.values()])
    found = []
    for draw_LP in draws_BLP:
        weights_LP = one_hot(draw_LP, parts_LPM.shape[1]).sum(1).float()
        vectors_LM = _roots(torch.einsum("lp,lpm->lm", weights_LP, parts_LPM).double())
        if center:
            vectors_LM = vectors_LM - vectors_LM.mean(0)
        found.append(_similarity(list(signals), _cosines(vectors_LM @ vectors_LM.T)))
    return found


def _similarity(tags: Sequence[str], cosines_LL: Tensor) -> Similarity:
    values_LL = cosines_LL.clamp(-1, 1)
    values_LL = (values_LL + values_LL.T) / 2
    values_LL.fill_diagonal_(1.0)
    return Similarity(tuple(tags), values_LL.numpy())
