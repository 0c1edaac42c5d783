"""The count-based language gate: which group is this text, told by the tokens so far and nothing else.

Naive Bayes over unigram counts of the training text. The sum over a prefix of log p(token | language) is the
language's log posterior up to a constant; summed over the languages of a group it decides the group of a position.
No training, no future token, one decision for all layers. Our own addition; not in the DMoE paper.

Shapes: B sequences, T tokens, L languages, G groups, V vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

TOKENS_AT_ONCE = 1 << 24  # a stream on disk may be larger than memory
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

    def __init__(self, vocab_size: int, groups: Sequence[int], num_groups: int) -> None:
        """Take the group of each language, (L,) numbers below `num_groups`; the table starts uniform."""
        super().__init__()
        self.groups = list(groups)
        self.num_groups = num_groups
        self.register_buffer("log_prob", torch.zeros(vocab_size, len(self.groups)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageGate":
        """Move the table with the model, but keep its float32: rounded to bfloat16, its sums drift over a long text."""
        table = self.log_prob
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.log_prob.dtype != table.dtype:
            self.log_prob = table.to(self.log_prob.device)
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

    def forward(
        self, input_ids: Tensor, mask: Tensor | None = None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the group of every position, (B, T) int64, and the running sums, (B, T, L)."""
        scores_BTL = self.language_scores(input_ids, mask, past)
        return self.group_log_posterior(scores_BTL).argmax(-1), scores_BTL
