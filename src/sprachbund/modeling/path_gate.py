"""Which positions belong to a language's path, told by the tokens so far: the count gate for languages that came later.

The languages of the groups keep their scores, their decisions and their routers, to the bit; beside them each path has
the running sums of its own languages' counts. A path takes a position where its languages are ahead of all others
together by `path_advantage` nats, which are a prior for the old ones: text of theirs must not be lost to a newcomer for
a few tokens. (The other gate, the mixture of the posterior, compares what the model makes of the text with and without
the path: path_mixture.py.)

Shapes: B sequences, T tokens, L languages of the groups, M languages with paths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sprachbund.modeling.gate import LanguageGate


def newcomer_scores(
    gate: LanguageGate, paths: Sequence[Any], input_ids: Tensor, mask: Tensor | None, past: Tensor | None
) -> Tensor:
    """Return running sums of log p(token | language) of all languages with paths, (B, T, M) float32.

    They are relative to the mean over the languages of the groups, as `LanguageGate.language_scores` are, so that the
    two can be compared; `past`, (B, M), is the sum over earlier tokens.
    """
    old_BTL = gate.log_prob.float()[input_ids]
    own_BTM = torch.cat([path.language_gate.log_prob.float()[input_ids] for path in paths], dim=-1)
    scores_BTM = own_BTM - old_BTL.mean(-1, keepdim=True)
    if mask is not None:
        scores_BTM = scores_BTM * mask.unsqueeze(-1).to(scores_BTM.dtype)
    scores_BTM = scores_BTM.cumsum(1)
    return scores_BTM if past is None else scores_BTM + past.unsqueeze(1)


def paths_of_scores(
    old_BTL: Tensor, new_BTM: Tensor, paths: Sequence[Any], *, advantage: float, extended: bool = False
) -> Tensor:
    """Return the number of the path that each position belongs to, (B, T), -1 for none.

    A path that has more tokens than the model's vocabulary is chosen with `extended` only: its text is to be tokenised
    otherwise (adaptation/reading.py).
    """
    scores = []
    start = 0
    for path in paths:
        end = start + len(path.spec.languages)
        own_BT = new_BTM[..., start:end].logsumexp(-1)
        scores.append(torch.full_like(own_BT, -torch.inf) if path.spec.extension and not extended else own_BT)
        start = end
    best_BT, number_BT = torch.stack(scores, dim=-1).max(-1)
    ahead_BT = best_BT - advantage > old_BTL.logsumexp(-1)
    return torch.where(ahead_BT, number_BT, torch.full_like(number_BT, -1))
