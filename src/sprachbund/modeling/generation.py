"""What our models need to generate text: the group of a language, and routing at every step."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.languages import canonical
from sprachbund.modeling.language_path import all_groups


def group_of_language(config: Any, language: str) -> int:
    """Return the group of a language tag or one of its aliases; raises InputError as `known_tag`."""
    return all_groups(config)[known_tag(config, language)]


def known_tag(config: Any, language: str) -> str:
    """Return a model's own tag of a language, from it or one of its aliases ("swh_Latn" from "sw").

    Raises InputError for a language that the model does not know, with the nearest that it does.
    """
    groups = all_groups(config)
    if language in groups:
        return language
    try:
        tag = canonical(language)
    except InputError:
        tag = language
    if tag in groups:
        return tag
    if not groups:
        raise InputError(f"language = {language!r}: this model's groups have no languages; give group_ids")
    code = {tag: tag.split("_")[0] for tag in groups}  # most tags share their script, which must not count
    close = get_close_matches(tag.split("_")[0], code.values(), n=3)
    near = " or ".join(repr(known) for known in code if code[known] in close)
    known = ", ".join(list(groups)[:12]) + (", ..." if len(groups) > 12 else "")
    raise InputError(
        f"language = {language!r} is none of this model's{f', did you mean {near}?' if near else f'; it knows {known}'}"
    )


class DmoeGeneration:
    """Mixin of the causal models: `generate(..., language=...)`, and routing carried from step to step."""

    config: Any

    def group_ids_of(self, language: str | Sequence[str], *, batch_size: int) -> Tensor:
        """Return group ids, (B,), from one language for all sequences or one for each.

        Raises InputError for unknown languages and for another number of languages than of sequences.
        """
        languages = [language] * batch_size if isinstance(language, str) else list(language)
        if len(languages) != batch_size:
            raise InputError(f"{len(languages)} languages were given for {batch_size} sequences; give one, or one each")
        return torch.tensor([group_of_language(self.config, tag) for tag in languages])

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, *args: Any, language: str | Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Generate as transformers does, with `routing` and `group_ids` of `forward`, or the `language`.

        `language`, one tag or one for each sequence, stands for the group_ids of its group. Raises InputError for an
        unknown one, ValueError where group_ids are given as well.
        """
        if language is not None:
            if kwargs.get("group_ids") is not None:
                raise ValueError("generate takes language or group_ids, not both")
            given = inputs if inputs is not None else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
            if given is None:
                raise ValueError("generate(language=...) needs input_ids or inputs_embeds")
            ids = self.group_ids_of(language, batch_size=given.shape[0])
            kwargs["group_ids"] = ids.to(given.device)
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add what our routing needs at each step of generation.

        `token_mask`: the (B, T) mask as given, since transformers turns it into a 4-D one for caches of fixed size.
        `group_ids` of the prompt's shape, (B, T): new tokens belong to the group of the prompt's last one.
        """
        group_ids = kwargs.pop("group_ids", None)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, *args, attention_mask=attention_mask, **kwargs
        )
        inputs["token_mask"] = attention_mask
        if group_ids is not None and group_ids.dim() == 2 and inputs.get("input_ids") is not None:
            missing = max(input_ids.shape[1] - group_ids.shape[1], 0)
            group_ids = torch.cat([group_ids, group_ids[:, -1:].expand(-1, missing)], dim=1)
            group_ids = group_ids[:, -inputs["input_ids"].shape[1] :]
        return {**inputs, "group_ids": group_ids}
