"""The count-based language gate: which group is this text, told by the tokens so far and nothing else.

Naive Bayes over unigram counts of the training text. The sum over a prefix of log p(token | language) is the
language's log posterior up to a constant; summed over the languages of a group it decides the group of a position.
No training, no future token, one decision for all layers. Our own addition; not in the DMoE paper. A gate may have
pairs of neighbouring tokens as well (pairs.py), by which it is surer of a text's first tokens.

Shapes: B sequences, T tokens, L languages, G groups, V vocabulary, P pairs.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sprachbund.modeling.pairs import TOKENS_AT_ONCE, with_previous

SMOOTHING = 0.05  # added to every count: an unseen token must not rule a language out


def count_log_prob(streams: Sequence[np.ndarray], *, vocab_size: int) -> Tensor:
    """Return log p(token | language), (V, L) float32, from one training token stream per language.

    Add-0.05 smoothing. Raises ValueError where a token id is outside the vocabulary.
    """
    counts_LV = np.zeros((len(streams), vocab_size))
    for language, stream in enumerate(streams):
        for start in range(0, len(stream), TOKENS_AT_ONCE):
            counts = np.bincount(stream[start : start + TOKENS_AT_ONCE], minlength=vocab_size)
            if len(counts) > vocab_size:
                raise ValueError(f"token id {len(counts) - 1} is outside the vocabulary of {vocab_size}")
            counts_LV[language] += counts
    counts_LV += SMOOTHING
    return torch.from_numpy(np.log(counts_LV / counts_LV.sum(axis=1, keepdims=True)).T.copy()).float()


class LanguageGate(nn.Module):
    """Decides the group of every position from the tokens up to and including it."""

    log_prob: Tensor
    pair_keys: Tensor
    pair_gain: Tensor

    def __init__(self, vocab_size: int, groups: Sequence[int], num_groups: int, num_pairs: int = 0) -> None:
        """Take the group of each language, (L,) numbers below `num_groups`; the tables start uniform."""
        super().__init__()
        self.groups = list(groups)
        self.num_groups = num_groups
        self.num_pairs = num_pairs
        self.register_buffer("log_prob", torch.zeros(vocab_size, len(self.groups)))
        if num_pairs:
            self.register_buffer("pair_keys", torch.zeros(num_pairs, dtype=torch.int64))
            self.register_buffer("pair_gain", torch.zeros(num_pairs, len(self.groups)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageGate":
        """Move the tables with the model, but keep their float32: rounded to bfloat16, sums drift over a long text."""
        tables = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            moved = getattr(self, name)
            if moved.dtype != table.dtype:
                setattr(self, name, table.to(moved.device))
        return self

    def language_scores(self, input_ids: Tensor, mask: Tensor | None, past: Tensor | None) -> Tensor:
        """Return running sums of log p(token | language), (B, T, L) float32, up to a constant per position.

        `mask`, (B, T), is 0 at padding, which adds nothing; `past`, (B, L), is the sum over earlier tokens.
        """
        scores_BTL = self.log_prob.float()[input_ids]
        # The mean over languages changes no posterior and keeps long sums small, hence exact.
        scores_BTL = scores_BTL - scores_BTL.mean(-1, keepdim=True)
        if mask is not None:
            scores_BTL = scores_BTL * mask.unsqueeze(-1).to(scores_BTL.dtype)
        scores_BTL = scores_BTL.cumsum(1)
        return scores_BTL if past is None else scores_BTL + past.unsqueeze(1)

    def group_log_posterior(self, scores_BTL: Tensor) -> Tensor:
        """Return log p(group | tokens so far), (B, T, G), under a uniform prior over languages."""
        posterior_BTL = scores_BTL.softmax(-1)
        index_L = torch.tensor(self.groups, device=scores_BTL.device)
        shape = (*scores_BTL.shape[:-1], self.num_groups)
        return posterior_BTL.new_zeros(shape).index_add(-1, index_L, posterior_BTL).log()

    def pair_scores(self, input_ids: Tensor, previous_BT: Tensor, mask: Tensor | None, past: Tensor | None) -> Tensor:
        """Return running sums of what pairs tell beyond `language_scores`, (B, T, L), from the token before each.

        A text's first token, before which is -1, is in no pair; `past`, (B, L), is the sum over earlier tokens.
        """
        keys_BT = previous_BT * len(self.log_prob) + input_ids
        places_BT = torch.searchsorted(self.pair_keys, keys_BT).clamp(max=self.num_pairs - 1)
        known_BT = (self.pair_keys[places_BT] == keys_BT) & (previous_BT >= 0)
        if mask is not None:
            known_BT = known_BT & mask.bool()
        gain_BTL = self.pair_gain.float()[places_BT]
        gain_BTL = (gain_BTL - gain_BTL.mean(-1, keepdim=True)) * known_BT.unsqueeze(-1)
        gain_BTL = gain_BTL.cumsum(1)
        return gain_BTL if past is None else gain_BTL + past.unsqueeze(1)

    @property
    def size_of_sums(self) -> int:
        """How many columns the sums that `forward` returns have: of tokens, and with pairs of pairs and a token."""
        return 2 * len(self.groups) + 1 if self.num_pairs else len(self.groups)

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the group of every position, (B, T) int64, and the running sums, (B, T, L).

        With pairs the sums are (B, T, 2 L + 1): those of single tokens, what pairs add to them, and the last token
        (float32 holds numbers up to 16.8 million exactly). `past` is the sums at the last earlier token.
        """
        num_languages = len(self.groups)
        scores_BTL = self.language_scores(input_ids, mask, None if past is None else past[:, :num_languages])
        if not self.num_pairs:
            return self.group_log_posterior(scores_BTL).argmax(-1), scores_BTL
        previous_BT, last_BT = with_previous(input_ids, mask, None if past is None else past[:, -1].long())
        earlier = None if past is None else past[:, num_languages:-1]
        pairs_BTL = self.pair_scores(input_ids, previous_BT, mask, earlier)
        sums = torch.cat([scores_BTL, pairs_BTL, last_BT.unsqueeze(-1).to(scores_BTL.dtype)], dim=-1)
        return self.group_log_posterior(scores_BTL + pairs_BTL).argmax(-1), sums
