"""The groups of every position, decided once in a forward pass, before layer 0: given, or told by the tokens so far.

Shapes: B sequences, T tokens, L languages of the groups, M languages with paths.
"""

from typing import Any

import torch
from torch import Tensor

from sprachbund.modeling.cache import cache_of_call, keep_scores, scores_so_far
from sprachbund.modeling.config import PATH_GATES, ROUTINGS
from sprachbund.modeling.gate import LanguageGate
from sprachbund.modeling.language_path import num_group_ids, rows_of_paths
from sprachbund.modeling.path_gate import newcomer_scores, paths_of_scores
from sprachbund.modeling.routing import Dispatch, RoutingContext, dispatch


class GroupDecision:
    """Mixin of the inner models: fills in a forward pass's routing."""

    config: Any
    language_gate: LanguageGate
    language_paths: Any

    def decide(self, context: RoutingContext, arguments: dict[str, Any]) -> None:
        """Fill in the groups of every position, unless the routers choose.

        Under path_gate = "mixture" it is the causal model that weighs the paths, in passes of their own
        (path_mixture.py); an inner model by itself decides by counts.
        """
        config: Any = self.config
        context.decided = True
        routing = context.routing or ("group" if context.given is not None else config.routing)
        if routing not in ROUTINGS:
            raise ValueError(f"routing = {routing!r} is unknown; one of {', '.join(ROUTINGS)}")
        paths = getattr(self, "language_paths", ())
        gate = context.path_gate or config.path_gate
        if gate not in PATH_GATES:
            raise ValueError(f"path_gate = {gate!r} is unknown; one of {', '.join(PATH_GATES)}")
        gated = bool(paths) and gate != "off" and context.given is None
        needed = config.row_of_group or gated or (paths and context.given is not None)
        if routing == "top_k" and not needed:
            return
        tokens: Any = arguments.get("input_ids")
        shape = tuple(arguments["inputs_embeds"].shape[:2] if tokens is None else tokens.shape)
        if routing == "group" or (routing == "top_k" and context.given is not None):
            ids_BT = self._given_groups(context.given, shape)
        else:
            ids_BT = self._prefix_groups(tokens, context.token_mask, arguments, gated=gated)
        own_BT = ids_BT
        if paths:
            own_BT = self._take_paths(context, ids_BT, tokens)
        if routing != "top_k" or config.row_of_group:
            plan = dispatch(own_BT.flatten(), config.num_groups)
            if config.row_of_group:  # rows are chosen before layer 0, where no router has decided anything
                self._take_rows(context, own_BT, plan)
            if routing != "top_k":
                context.group_ids, context.plan = ids_BT, plan

    def _take_rows(self, context: RoutingContext, own_BT: Tensor, plan: Dispatch) -> None:
        """Note which table of keyed rows each position reads: that of its group, none where a path has its own rows."""
        tables_BT = torch.tensor(self.config.row_of_group, device=own_BT.device)[own_BT]
        context.row_plan, context.table_ids = plan, tables_BT
        with_rows = [rows for rows in context.path_rows if rows.path.spec.rows]
        if not with_rows:
            return
        numbers_BT = context.path_ids
        assert numbers_BT is not None
        none_BT = torch.isin(numbers_BT, torch.tensor([rows.number for rows in with_rows], device=own_BT.device))
        context.table_ids = tables_BT.masked_fill(none_BT, -1)
        num_groups = self.config.num_groups
        context.row_plan = dispatch(own_BT.masked_fill(none_BT, num_groups).flatten(), num_groups + 1)

    def _take_paths(self, context: RoutingContext, ids_BT: Tensor, tokens: Tensor | None) -> Tensor:
        """Note which positions belong to paths; return the groups that all positions stand on, (B, T)."""
        num_groups = self.config.num_groups
        paths = list(self.language_paths)
        path_ids_BT = (ids_BT - num_groups).clamp(min=-1)
        context.path_ids, context.tokens = path_ids_BT, tokens
        context.path_rows = rows_of_paths(path_ids_BT, paths)
        if not context.path_rows:
            return ids_BT
        parents = [*range(num_groups), *(path.spec.parent for path in paths)]
        own_BT = torch.tensor(parents, device=ids_BT.device)[ids_BT]
        rows_n = (path_ids_BT.flatten() >= 0).nonzero().squeeze(1)
        context.pinned = (rows_n, own_BT.flatten()[rows_n])
        return own_BT

    def _given_groups(self, group_ids: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if group_ids is None:
            raise ValueError("routing = 'group' needs group_ids, (B,) or (B, T)")
        ids = group_ids.unsqueeze(1) if group_ids.dim() == 1 else group_ids
        if ids.dim() != 2 or ids.shape[0] != shape[0] or ids.shape[1] not in (1, shape[1]):
            raise ValueError(f"group_ids has shape {tuple(group_ids.shape)}; the batch needs {shape[:1]} or {shape}")
        if ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"group_ids is {ids.dtype}; it must hold whole numbers (torch.int64)")
        how_many = num_group_ids(self.config)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < how_many:
            raise ValueError(f"group_ids must lie in 0..{how_many - 1}; found {int(ids.min())}..{int(ids.max())}")
        return ids.expand(shape)

    def _prefix_groups(
        self, input_ids: Tensor | None, token_mask: Any, arguments: dict[str, Any], *, gated: bool
    ) -> Tensor:
        """Decide by the tokens so far, whose scores are kept on the key-value cache; `gated`: paths may be chosen."""
        if input_ids is None:
            raise ValueError("routing = 'prefix' reads tokens: give input_ids, or group_ids with routing = 'group'")
        if not self.language_gate.groups:
            raise ValueError("routing = 'prefix' needs languages, and this model's groups have none; give group_ids")
        cache = cache_of_call(arguments, self.config)
        mask: Any = arguments.get("attention_mask") if token_mask is None else token_mask
        plain = isinstance(mask, Tensor) and mask.dim() == 2
        mask = mask[:, -input_ids.shape[1] :] if plain else None
        past = scores_so_far(cache)
        num_old = self.language_gate.size_of_sums
        ids_BT, sums = self.language_gate(input_ids, mask, None if past is None else past[:, :num_old])
        if gated:
            new_BTM = newcomer_scores(
                self.language_gate, self.language_paths, input_ids, mask, None if past is None else past[:, num_old:]
            )
            old_BTL = sums[..., : len(self.language_gate.groups)]  # of single tokens, as the newcomers' are
            chosen_BT = paths_of_scores(old_BTL, new_BTM, self.language_paths, advantage=self.config.path_advantage)
            ids_BT = torch.where(chosen_BT < 0, ids_BT, chosen_BT + self.config.num_groups)
            sums = torch.cat([sums, new_BTM], dim=-1)
        if cache is not None:
            keep_scores(cache, sums)
        return ids_BT  # type: ignore[no-any-return]
