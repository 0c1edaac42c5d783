"""Keyed rows: what each group adds to the rows of the embedding, on the way in and on the way out.

A vocabulary that many languages share gives each of its tokens one vector. Here every table of deltas, (R, V, D), gives
it another one: of a group, of a language, or one for all (the control that has the same capacity and knows no groups).
The deltas start at zero. Where the base ties its output rows to its embedding, the deltas are tied as well.
Shapes: B sequences, T tokens, R tables, V vocabulary, D model width, N = B*T.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprachbund.errors import InputError
from sprachbund.modeling.keyed_product import keyed_linear
from sprachbund.modeling.routing import current_routing, merge_runs


class KeyedEmbedding(nn.Module):
    """Mixin of an embedding: the row of a token is the base's plus that of the table of its group."""

    delta: nn.Parameter

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return embeddings, (B, T, D), of tokens, (B, T)."""
        hidden_BTD: Tensor = super().forward(input_ids)
        routing = current_routing()
        if routing is None or routing.table_ids is None:
            return hidden_BTD
        num_tables, num_rows, width = self.delta.shape
        places_BT = routing.table_ids.clamp(min=0) * num_rows + input_ids
        delta_BTD = F.embedding(places_BT, self.delta.view(num_tables * num_rows, width))
        if routing.path_rows:  # -1: rows of the path's own are in the place of a table
            delta_BTD = delta_BTD * (routing.table_ids >= 0).unsqueeze(-1)
        scale = getattr(self, "embed_scale", None)  # Gemma's embedding multiplies its rows
        return hidden_BTD + (delta_BTD if scale is None else delta_BTD * scale.to(delta_BTD.dtype))


class KeyedHead(nn.Module):
    """Mixin of an output layer: the row that gives a token's logit is the base's plus that of the table."""

    weight: Tensor
    bias: Tensor | None
    delta: nn.Parameter
    row_of_group: Sequence[int]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return logits, (B, T, V); only the last positions may be asked for."""
        routing = current_routing()
        if routing is None or routing.row_plan is None:
            return super().forward(hidden_states)  # type: ignore[no-any-return]
        if routing.table_ids is not None and hidden_states.shape[:2] != routing.table_ids.shape:
            logits: Tensor = super().forward(hidden_states)
            return logits + self._of_last(hidden_states, routing.table_ids)
        plan, num_groups = routing.row_plan, len(self.row_of_group)
        counts, tables = merge_runs(plan.counts[:num_groups], self.row_of_group)
        beyond = sum(plan.counts[num_groups:])  # positions without a table come last
        rows_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        runs = ([*counts, beyond], [*tables, None])
        logits_NV = keyed_linear(rows_ND, self.weight, self.bias, self.delta, *runs, plan.order)
        return logits_NV.view(*hidden_states.shape[:-1], -1)

    def _of_last(self, hidden_BtD: Tensor, table_ids_BT: Tensor) -> Tensor:
        """Return what the tables add to the last t positions, one sequence after the other (generation)."""
        ids_Bt = table_ids_BT[:, -hidden_BtD.shape[1] :]
        if ids_Bt.shape != hidden_BtD.shape[:2]:
            raise InputError("keyed rows need logits of all positions or of the last ones; leave logits_to_keep out")
        nothing_V = hidden_BtD.new_zeros(self.delta.shape[1])
        added = [
            torch.stack(
                [
                    F.linear(h_D, self.delta[table]) if table >= 0 else nothing_V
                    for h_D, table in zip(h_tD, tables, strict=True)
                ]
            )
            for h_tD, tables in zip(hidden_BtD, ids_Bt.tolist(), strict=True)
        ]
        return torch.stack(added)


@lru_cache
def _keyed_class(mixin: type, dense: type) -> type:
    return type(f"Keyed{dense.__name__}", (mixin, dense), {"__module__": __name__, "__doc__": mixin.__doc__})


def add_rows(model: Any, config: Any) -> None:
    """Give the embedding and the output layer of a causal model their tables, in place.

    Raises InputError for a model whose output layer is no plain product with rows as wide as its embedding's.
    """
    num_tables = max(config.row_of_group) + 1
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise InputError(f"keyed rows need a plain embedding and output layer, which {config.model_type} models lack")
    tied = getattr(config, "tie_word_embeddings", False)
    if tied and embedding.weight.shape != head.weight.shape:
        raise InputError(f"the embedding and the output rows of this {config.model_type} model differ in shape")
    names = {id(module): name for name, module in model.named_modules()}
    pairs: list[tuple[Any, type]] = [(embedding, KeyedEmbedding), (head, KeyedHead)]
    for module, mixin in pairs:
        module.__class__ = _keyed_class(mixin, module.__class__)
        module.register_parameter("delta", nn.Parameter(torch.zeros(num_tables, *module.weight.shape)))
        module.row_of_group = list(config.row_of_group)
    if tied:
        head.delta = embedding.delta
        tie = {f"{names[id(head)]}.delta": f"{names[id(embedding)]}.delta"}
        model._tied_weights_keys = {**(model._tied_weights_keys or {}), **tie}


def keyed_rows(model: Any) -> list[nn.Parameter]:
    """Return the tables of a model, each once; none where it has no keyed rows."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(m.delta): m.delta for m in modules if isinstance(m, KeyedEmbedding | KeyedHead)}
    return list(found.values())
