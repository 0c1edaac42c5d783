"""Text whose language nobody says, for a model with paths of larger vocabularies: decide on base tokens, then tokenise.

The model's own gates see tokens, and a path with tokens of its own reads others than the rest of the model does. So its
text has to be told before it is tokenised: by the count gate, on the text in base tokens (docs/adapt.md).

Shapes: T tokens, L languages of the groups, M languages with paths.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.adaptation.vocabulary import load_extension
from sprachbund.files import EXTENSIONS
from sprachbund.modeling.base import load_tokenizer, tokenize_with
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.model import inner_model
from sprachbund.modeling.path_gate import newcomer_scores, paths_of_scores


@dataclass(frozen=True)
class Reading:
    """A text as its model reads it: `input_ids`, (1, T), and the path that it goes to, by its group id.

    `group_id` None is text that no path claims: the model's own routing decides there.
    """

    input_ids: Tensor
    group_id: int | None


class Reader:
    """Tokenises texts for a model with paths, whatever their language; `folder` is the model's."""

    def __init__(self, model: Any, folder: Path) -> None:
        """Load the model's tokenizer and those of its paths; raises InputError where one cannot be loaded."""
        self.model = model
        self.base = load_tokenizer(folder)
        self.extended = {
            number: load_extension(folder / EXTENSIONS / spec.languages[0])
            for number, spec in enumerate(path_specs(model.config))
            if spec.extension
        }

    @torch.no_grad()
    def read(self, text: str, *, most: int | None = None) -> Reading:
        """Return a text as the model is to read it, by the count gate on all of its base tokens, or the first `most`.

        A path claims it where its languages are ahead of those of the groups by `config.path_advantage` nats at the
        end of what was looked at. Raises ValueError for a text without a token.
        """
        (ids,) = tokenize_with(self.base)([text])
        if not ids:
            raise ValueError("the text has no token; give some text")
        inner, config = inner_model(self.model), self.model.config
        base_BT = torch.tensor([ids], device=self.model.device)
        path = -1
        if config.language_paths:
            seen_BT = base_BT[:, :most]
            old_BTL = inner.language_gate.language_scores(seen_BT, None, None)
            new_BTM = newcomer_scores(inner.language_gate, inner.language_paths, seen_BT, None, None)
            advantage = config.path_advantage
            chosen_BT = paths_of_scores(old_BTL, new_BTM, inner.language_paths, advantage=advantage, extended=True)
            path = int(chosen_BT[0, -1])
        if path in self.extended:
            (ids,) = tokenize_with(self.extended[path].tokenizer)([text])
            base_BT = torch.tensor([ids], device=self.model.device)
        return Reading(base_BT, None if path < 0 else config.num_groups + path)
