"""The posterior mixture of the old model and its languages' paths, for text that nothing is said about.

    p(x_t | x_<t) = sum over sides i of w_i,t p_i(x_t | x_<t)

The sides are the model without its paths (its own routing decides there) and each path, the whole stack of it. A side's
weight is its posterior: its prior, `path_prior` for each of P paths and the rest for the old model, times what it made
of the tokens so far. A path whose posterior falls below `path_commit` is dropped for the rest of the sequence; one that
is dropped in every sequence is not computed any more.

What old text can lose. As long as paths alone are dropped, the tokens of a document cost at most -ln(1 - P * prior)
nats more, all of them together, than under the old model, whatever the text. Proof: by Bayes' rule
p_old(x_t+1) / p(x_t+1) is the old side's weight after reading x_t+1 over that before, and dropping others only raises
its weight; so the product over a document is at most 1 / (1 - P * prior). In the same way a document of a path's own
language costs at most ln(1 / prior) nats more than under the path, unless the path is dropped, as it is in at most
commit / prior, about, of all documents that follow its own distribution.

The old side is never dropped, unless `path_keep_old` is off, which saves half of the work on new text. Then the bound
is gone: on text that follows the old model's own distribution, the odds against the old side are a non-negative
supermartingale that starts at P * prior / (1 - P * prior), and by Ville's inequality exceed (1 - commit) / commit in at
most P * prior * commit / ((1 - P * prior) (1 - commit)) of all documents, about one in 10^9 by default. But real text
does not follow the model: documents of old languages that begin with much that only the path knows (names, numbers,
the dates of another calendar) lost up to an eighth of their perplexity by a drop (docs/decisions.md).

Evidence is what was predicted: the first token of a text tells nothing, and no more does padding.

Bayesian mixtures under log loss and their bound are old (De Santis, Markowsky and Wegman 1988); dropping sides, and
that this is how a new language is kept from harming the old ones, is our own, not in the DMoE paper.

Shapes: B sequences, T tokens of a call, t of a part of it, P paths, S = 1 + P sides (the old model is 0), V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.likelihood import FLOATS_AT_ONCE, token_nats


def log_prior(config: Any) -> list[float]:
    """Return the logarithm of the prior of every side, (S,): -inf for paths with more tokens than the vocabulary, whose
    text is tokenised otherwise.

    Raises InputError for priors that leave the old model less than a half, or are not above `path_commit`.
    """
    specs = path_specs(config)
    how_many = sum(not spec.extension for spec in specs)
    prior, commit = float(config.path_prior), float(config.path_commit)
    if not (prior > 0 and how_many * prior <= 0.5):
        raise InputError(
            f"path_prior = {prior:g} for {how_many} paths is {how_many * prior:g} in all, and must be above 0 and at "
            f"most 0.5; a path_prior of 0.001 leaves old text as it is"
        )
    if not 0 <= commit < prior:
        raise InputError(f"path_commit = {commit:g} must be at least 0 and below path_prior = {prior:g}")
    return [math.log1p(-how_many * prior), *(-math.inf if spec.extension else math.log(prior) for spec in specs)]


def posterior(log_weights_BS: Tensor, evidence_BTS: Tensor, *, commit: float, keep_old: bool = True) -> Tensor:
    """Return the log weights of all sides after each token, (B, T, S), from those before and log p(token).

    A side below `commit` has the weight 0 from that token on, and the others share what it had; with `keep_old` the
    old model, the first side, never does.
    """
    joint_BTS = log_weights_BS.unsqueeze(1) + evidence_BTS.cumsum(1)
    places_T = torch.arange(evidence_BTS.shape[1], device=evidence_BTS.device)
    lowest = math.log(commit) if commit else -math.inf
    while True:  # each round drops at least one side of some sequence
        log_weights_BTS = joint_BTS.log_softmax(-1)
        low_BTS = (log_weights_BTS < lowest) & (joint_BTS > -math.inf)
        low_BTS[..., 0] &= not keep_old
        if not bool(low_BTS.any()):
            return log_weights_BTS
        first_B = low_BTS.any(-1).int().argmax(1)
        low_BS = low_BTS[torch.arange(len(first_B), device=first_B.device), first_B]
        later_BT = places_T >= first_B.unsqueeze(1)
        joint_BTS = joint_BTS.masked_fill(later_BT.unsqueeze(2) & low_BS.unsqueeze(1), -math.inf)


def mixed_logits(log_weights_BTS: Tensor, sides: Mapping[int, Tensor]) -> Tensor:
    """Return the mixture's log-probabilities, (B, T, V), from logits of sides, (B, t, V), the first of them of all T.

    Where one side has all the weight, its logits as they are; in all other cases float32. A side that was not read to
    the end has no weight there. Without gradients, the first side's logits may be overwritten.
    """
    first = next(iter(sides))
    alive_BTS = log_weights_BTS > -math.inf
    alone_BT = alive_BTS.sum(-1) == 1
    if bool((alone_BT & alive_BTS[..., first]).all()):
        return sides[first]
    result_BTV = sides[first].to(torch.float32, copy=torch.is_grad_enabled())
    for side, logits_BtV in sides.items():
        if side != first:
            own = (alone_BT & alive_BTS[..., side]).nonzero(as_tuple=True)
            result_BTV[own] = logits_BtV[own].float()
    length = max(FLOATS_AT_ONCE // result_BTV.shape[-1], 1)
    for batch_n, place_n in zip(
        *(torch.split(index, length) for index in (~alone_BT).nonzero(as_tuple=True)), strict=True
    ):
        terms = []
        for side, logits_BtV in sides.items():
            if logits_BtV.shape[1]:
                logits_nV = logits_BtV[batch_n, place_n.clamp(max=logits_BtV.shape[1] - 1)].float()
                terms.append(logits_nV.log_softmax(-1) + log_weights_BTS[batch_n, place_n, side].unsqueeze(1).float())
        result_BTV[batch_n, place_n] = torch.stack(terms).logsumexp(0)
    return result_BTV


def evidence(before_BV: Tensor | None, logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Return what a side made of each token, log p(token), (B, T), from its logits at these tokens and `before` them.

    Where there is nothing before, the first token is no evidence.
    """
    if before_BV is None:
        first_B1 = logits_BTV.new_zeros(len(tokens_BT), 1, dtype=torch.float32)
    else:
        first_B1 = -token_nats(before_BV.unsqueeze(1), tokens_BT[:, :1])
    return torch.cat([first_B1, -token_nats(logits_BTV[:, :-1], tokens_BT[:, 1:])], dim=1)
