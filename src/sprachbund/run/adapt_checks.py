"""Is a new language's text what it is said to be? Everything that can be told before training, as warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sprachbund.adaptation.newcomer import (
    known_shares,
    looks_known,
    mostly_known,
    mostly_shared,
    nearest_by_counts,
    shared_text,
)
from sprachbund.adaptation.path import token_counts
from sprachbund.adaptation.token_length import out_of_line
from sprachbund.corpora.splits import split_documents
from sprachbund.modeling.model import inner_model
from sprachbund.run.adapt_scores import as_numbers, score
from sprachbund.run.adapt_work import Work


def newcomer_warnings(work: Work, model: Any, tag: str, table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is odd about a new language's text, one sentence each.

    It may be small, of a known language (by its tokens, by what the model makes of it, or word by word), or cut into
    short tokens. `table` has the scores of the groups, the best first; of the best one's languages the corpora are read
    where they are known.
    """
    text, settings = work.texts[tag], work.settings
    gate = inner_model(model).language_gate.log_prob.cpu()
    found: list[str | None] = [*text.warnings]
    found.append(mostly_known(tag, known_shares(gate, model.config.languages, np.asarray(text.stream))))
    texts, lengths = work.protected
    relatives = [known for known in table[0]["languages"] if known in texts]
    if relatives:
        known_scores = {
            known: as_numbers(
                score(model, texts[known], settings, mode="group", group=int(table[0]["group"])), texts[known]
            )["bits_per_byte"]
            for known in relatives
        }
        counts = token_counts([np.asarray(text.stream)], len(gate))
        near = [row.tag for row in nearest_by_counts(gate, model.config.languages, counts) if row.tag in known_scores]
        found.append(looks_known(tag, float(table[0]["bits_per_byte"]), known_scores, next(iter(near), relatives[0])))
        corpora = {
            known: split_documents(settings.protect[known], settings.splits, seed=settings.seed) for known in relatives
        }
        documents = {known: corpus.all_documents() for known, corpus in corpora.items()}
        found.append(mostly_shared(tag, shared_text(text.documents.train, documents)))
    if settings.extend_vocab is None:
        found.append(
            out_of_line(tag, work.tokenizer, text.documents.train, lengths, vocab_size=model.config.vocab_size)
        )
    return [said for said in found if said]
