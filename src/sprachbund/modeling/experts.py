"""The experts of one mixture layer, as fused tensors, and the block that routes tokens to them.

Fused tensors keep every parameter in every training step (safe under DDP and ZeRO) and names as in transformers.
Shapes: N tokens, K chosen experts, M rows (N, or N*K), G groups, E experts (as many as groups, or fewer where groups
share one), D model width, F expert width, B sequences, T tokens of a sequence.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from sprachbund.modeling.ffn import Family
from sprachbund.modeling.ffn_weights import FfnShape, ffn_shape_of
from sprachbund.modeling.products import gather_rows, linear_of_runs, weighted_mean
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import Dispatch, current_routing, dispatch, merge_runs
from sprachbund.modeling.tables import layer_table

_log = logging.getLogger(__name__)


class GroupExperts(nn.Module):
    """The FFNs of a layer: down(act(gate(x)) * up(x)), or, without a gate, down(act(up(x))).

    Names, layout and `forward(hidden_states, top_k_index, top_k_weights)` are those of transformers' experts, whose
    implementations (`set_experts_implementation`) can therefore be used: `gate_up_proj` (E, 2F, D), the gates above,
    or `up_proj` (E, F, D), `down_proj` (E, D, F), and the same with `_bias` where the FFN has biases. Low-rank experts
    have two factors in the place of each weight: `_a` (E, R, in), applied first, and `_b` (E, out, R).
    """

    down_proj: nn.Parameter
    is_transposed = False  # weights are (out, in)
    is_concatenated = True  # gates above, not between
    has_post_expert_norm = False
    _is_expert_parallel = False

    def __init__(
        self,
        config: Any,
        num_experts: int,
        shape: FfnShape,
        act_fn: nn.Module | Callable[[Tensor], Tensor],
        *,
        fused: bool = False,
    ) -> None:
        """Take the model's configuration (None outside a model), which names the experts' implementation.

        `fused`: the family's dense FFN computes gate and up as one product. The experts then do so too, since halves of
        one product are laid out otherwise in memory, and activation functions round by the layout.
        """
        super().__init__()
        self.config = config
        self.num_experts = num_experts
        self.act_fn = act_fn
        self.has_gate = shape.gated
        self.has_bias = shape.bias
        self.fused = fused
        self.width = shape.width
        self.rank = shape.rank
        for name, dimensions in shape.tensors().items():
            self.register_parameter(name, nn.Parameter(torch.zeros(num_experts, *dimensions)))

    def forward(
        self,
        hidden_states: Tensor,
        top_k_index: Tensor | None = None,
        top_k_weights: Tensor | None = None,
        *,
        counts: Sequence[int] | None = None,
        expert_of_run: Sequence[int] | None = None,
    ) -> Tensor:
        """Return the experts' outputs, of the shape of `hidden_states`, (N, D); either by runs or by choice.

        By runs: one expert for each run of rows, the i-th of `counts[i]` rows. Expert i takes run i, unless
        `expert_of_run` says which; it may name one twice. By choice: `top_k_index`, (N, K), and their weights, (N, K),
        which sum to 1. Both in one method, since adapters (PEFT) act only while it is called.
        """
        if counts is not None:
            return self._of_runs(hidden_states, counts, expert_of_run)
        if top_k_index is None or top_k_weights is None:
            raise TypeError("experts need counts, or top_k_index and top_k_weights")
        theirs = self._implementation(hidden_states)
        if theirs is not None:
            return theirs(self, hidden_states, top_k_index, top_k_weights)
        num_chosen = top_k_index.shape[1]
        plan = dispatch(top_k_index.flatten(), self.num_experts)
        rows_MD = gather_rows(hidden_states, plan.order, plan.inverse, copies=num_chosen)
        outputs_MD = gather_rows(self._of_runs(rows_MD, plan.counts), plan.inverse, plan.order)
        return weighted_mean(outputs_MD.view(-1, num_chosen, outputs_MD.shape[-1]), top_k_weights)

    def _of_runs(self, rows_MD: Tensor, counts: Sequence[int], expert_of_run: Sequence[int] | None = None) -> Tensor:
        experts = range(self.num_experts) if expert_of_run is None else expert_of_run
        name = "gate_up_proj" if self.has_gate else "up_proj"
        parts = 2 if self.has_gate and not self.fused else 1
        # On a CPU each run is a tensor of its own between the products: smaller ones stay in the cache, and their
        # memory is used again, where that of large ones is given back and asked for at every step (5 to 10% of the
        # layer's time with 8 experts). On a GPU that would only be more kernels.
        apart = rows_MD.device.type == "cpu"
        first = self._project(name, rows_MD, counts, experts, parts=parts, apart=apart)
        inner = [self._inner(*first[start : start + parts]) for start in range(0, len(first), parts)]
        (output_MD,) = self._project("down_proj", inner, counts, experts)
        return output_MD

    def _project(
        self,
        name: str,
        rows: Tensor | Sequence[Tensor],
        counts: Sequence[int],
        experts: Sequence[int],
        *,
        parts: int = 1,
        apart: bool = False,
    ) -> tuple[Tensor, ...]:
        """Apply a projection, or its two factors, to runs of rows; see `linear_of_runs`."""
        if self.rank is not None:
            rows = linear_of_runs(rows, getattr(self, f"{name}_a"), None, counts, experts)[0]
        # Each weight is asked for once: under an adapter it is computed anew at every reading.
        weights = getattr(self, name if self.rank is None else f"{name}_b")
        return linear_of_runs(rows, weights, self._bias(name), counts, experts, parts=parts, apart=apart)

    def _inner(self, first: Tensor, up: Tensor | None = None) -> Tensor:
        """Return what the last projection is applied to, from the first projection, or from gate and up."""
        if up is not None:
            return self.act_fn(first) * up
        return self._apply_gate(first) if self.has_gate else self.act_fn(first)

    def _bias(self, projection: str) -> Tensor | None:
        return getattr(self, f"{projection}_bias") if self.has_bias else None

    def _apply_gate(self, gate_up_M2F: Tensor) -> Tensor:
        """Return act(gate) * up; transformers' implementations call it."""
        gate_MF, up_MF = gate_up_M2F.chunk(2, dim=-1)
        return self.act_fn(gate_MF) * up_MF

    def _implementation(self, hidden_ND: Tensor) -> Callable[..., Tensor] | None:
        """Return the implementation of transformers that the configuration asks for; None for our own.

        `grouped_mm`, transformers' default, is used on GPUs. On a CPU torch's grouped products are a loop over the
        same dense products as ours, to the bit, with more sorting and weighing around them (of its time in bfloat16
        ours took 0.96 with 3 experts and 1.00 with 16; D=1024, F=4096, K=2); and ours alone follows autocast, has no
        condition on widths, and gives copies of one FFN that FFN's own output whatever their weights.
        """
        name = getattr(self.config, "_experts_implementation", None)
        if name in (None, "eager") or self.rank is not None:
            return None
        if name == "grouped_mm":
            if hidden_ND.device.type != "cuda":
                return None
            reason = ungrouped(
                hidden_ND.shape[-1], self.width, hidden_ND.dtype, autocast=torch.is_autocast_enabled("cuda")
            )
            if reason is not None:
                _say_once(f"experts are computed one after the other, without grouped products: {reason}")
                return None
        return ALL_EXPERTS_FUNCTIONS.get_interface(name, None)  # type: ignore[no-any-return]


def ungrouped(hidden_size: int, width: int, dtype: torch.dtype, *, autocast: bool) -> str | None:
    """Return why torch's grouped products cannot serve experts, in one clause; None where they can.

    transformers does not ask, and fails inside (torch 2.13: strides of multiples of 16 bytes, no float64), or, under
    autocast, computes in float32 unasked.
    """
    if autocast:
        return "they do not follow autocast"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"they do not support {dtype}"
    multiple = 16 // dtype.itemsize
    if hidden_size % multiple or width % multiple:
        return f"the widths {hidden_size} and {width} are not both multiples of {multiple}, as {dtype} needs"
    return None


@lru_cache
def _say_once(message: str) -> None:
    _log.warning(message)


class GroupMoe(nn.Module):
    """The FFN of a mixture layer: in `copy` layers the experts replace the dense FFN, in `shared` ones they add to it.

    Under `group` and `prefix` routing each token goes to the expert of its group with weight 1; under `top_k` to the
    router's choice. Each group has its own expert, or, with `expert_of_group`, (G,), the one that it names. `dropout`
    is the probability with which a dense FFN of the family drops its output, in training.

    In a hierarchy, `language_experts` are a second, smaller bank with one expert for each group, here a language, while
    those of `experts` are shared by relatives; the router then chooses among groups, which decide both experts. Experts
    of kind `adapter` (`after_ffn`) read the dense FFN's output and add to it, where the others read its input.
    Sources: DMoE as released (copies, router); X-MOD (Pfeiffer et al. 2022) for adapters, in a decoder: its residual
    connection and its norms are the block's own; the other kinds are ours (docs/how-it-works.md).
    """

    def __init__(
        self,
        gate: GroupRouter,
        experts: GroupExperts,
        shared_expert: nn.Module | None,
        expert_of_group: Sequence[int] | None = None,
        *,
        language_experts: GroupExperts | None = None,
        after_ffn: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_expert = shared_expert
        self.expert_of_group = expert_of_group
        self.language_experts = language_experts
        self.after_ffn = after_ffn
        self.dropout = dropout

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the FFN's output, of the shape of `hidden_states`, (B, T, D) or (N, D).

        A family whose FFN is given the residual expects it to be added, once: the shared expert does, or else we do.
        """
        routing = current_routing()
        if routing is None:
            raise RuntimeError("a mixture layer was called outside its model: no routing is known")
        rows_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        given = (hidden_states,) if residual is None else (hidden_states, residual)
        dense = None if self.shared_expert is None else self.shared_expert(*given)
        read_ND = dense.reshape(rows_ND.shape) if self.after_ffn and dense is not None else rows_ND
        logits_NE: Tensor | None = None
        if routing.plan is not None:
            if routing.wants_logits:
                logits_NE = self.gate.logits(rows_ND)
            output_ND = self._of_groups(read_ND, routing.plan)
        else:
            logits_NE, weights_NK, index_NK = self.gate(rows_ND)
            if routing.pinned is not None:
                weights_NK, index_NK = self._pinned(routing.pinned, weights_NK, index_NK)
            output_ND = self._of_choice(read_ND, index_NK, weights_NK)
        if logits_NE is not None:
            routing.collect(logits_NE.view(*hidden_states.shape[:-1], -1))
        output = F.dropout(output_ND, self.dropout, self.training).view(hidden_states.shape)
        if dense is not None:
            return dense + output  # type: ignore[no-any-return]
        return output if residual is None else residual + output

    def _pinned(self, pinned: tuple[Tensor, Tensor], weights_NK: Tensor, index_NK: Tensor) -> tuple[Tensor, Tensor]:
        """Give rows, (n,), of known groups, (n,), the expert of their group whatever the router chose."""
        rows_n, groups_n = pinned
        if self.language_experts is None and self.expert_of_group is not None:
            groups_n = torch.tensor(self.expert_of_group, device=groups_n.device)[groups_n]
        index_NK = index_NK.index_copy(0, rows_n, groups_n.unsqueeze(1).expand(-1, index_NK.shape[1]))
        one_K = F.one_hot(groups_n.new_zeros(()), index_NK.shape[1]).to(weights_NK.dtype)
        return weights_NK.index_copy(0, rows_n, one_K.expand(len(rows_n), -1)), index_NK

    def _of_groups(self, rows_ND: Tensor, plan: Dispatch) -> Tensor:
        """Apply the experts to rows in the order of the plan, and bring the results back into their own."""
        counts, expert_of_run = plan.counts, None
        if self.expert_of_group is not None:
            counts, expert_of_run = merge_runs(plan.counts, self.expert_of_group)
        rows_ND = gather_rows(rows_ND, plan.order, plan.inverse)
        output_ND = self.experts(rows_ND, counts=counts, expert_of_run=expert_of_run)
        if self.language_experts is not None:
            output_ND = output_ND + self.language_experts(rows_ND, counts=plan.counts)
        return gather_rows(output_ND, plan.inverse, plan.order)

    def _of_choice(self, rows_ND: Tensor, index_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Apply the experts of the router's choice: of groups in a hierarchy, otherwise of experts."""
        if self.language_experts is None:
            return self.experts(rows_ND, index_NK, weights_NK)  # type: ignore[no-any-return]
        table_G = torch.tensor(self.expert_of_group, device=index_NK.device)
        output_ND = self.experts(rows_ND, table_G[index_NK], weights_NK)
        return output_ND + self.language_experts(rows_ND, index_NK, weights_NK)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Bank:
    """The experts of one bank of a mixture layer: its name in the layer, how many there are, and their shape."""

    name: str
    num_experts: int
    shape: FfnShape


def banks(config: Any, dense: FfnShape, *, layer: int) -> list[Bank]:
    """Return the banks of experts in one mixture layer of a Dmoe configuration, whose dense FFN has a shape."""
    num_experts = max(layer_table(config, layer)) + 1
    if config.expert_kind == "adapter":
        width = config.expert_width or max(dense.hidden_size // 2, 1)
        shape = FfnShape(dense.hidden_size, width, gated=False, bias=True)
    else:
        shape = replace(dense, width=config.expert_width or dense.width, rank=config.expert_rank)
    found = [Bank("experts", num_experts, shape)]
    if config.language_width is not None:
        own = replace(shape, width=config.language_width)
        found.append(Bank("language_experts", config.num_groups, own))
    return found


def num_routes(config: Any, *, layer: int) -> int:
    """Return the number of a layer's router's logits: one for each expert, in a hierarchy for each group."""
    return config.num_groups if config.language_width is not None else max(layer_table(config, layer)) + 1


def build_moe(config: Any, family: Family, dense_ffn: nn.Module, *, layer: int) -> GroupMoe:
    """Return the mixture that takes the place of a layer's `dense_ffn`, as `config` (a Dmoe config) describes it."""
    shape = ffn_shape_of(family, dense_ffn)
    table = layer_table(config, layer)
    routes = num_routes(config, layer=layer)
    router = GroupRouter(
        shape.hidden_size,
        routes,
        min(config.num_experts_per_tok, routes),
        detach=config.router_gradient == "detach",
    )
    built = {
        bank.name: GroupExperts(
            config,
            bank.num_experts,
            bank.shape,
            _activation(family, dense_ffn, kind=config.expert_kind),
            fused=family.gate_up is not None,
        )
        for bank in banks(config, shape, layer=layer)
    }
    return GroupMoe(
        router,
        built["experts"],
        None if config.expert_kind == "copy" else dense_ffn,
        None if table == list(range(config.num_groups)) and config.language_width is None else table,
        language_experts=built.get("language_experts"),
        after_ffn=config.expert_kind == "adapter",
        dropout=_dropout(family, config),
    )


def _activation(family: Family, dense_ffn: nn.Module, *, kind: str) -> Any:
    """Return the FFN's own activation function; for adapters GELU, as in X-MOD."""
    if kind == "adapter":
        return ACT2FN["gelu"]
    name = family.activation
    if family.trained_activation and kind == "shared":  # weights that are trained apart from the FFN's
        return copy.deepcopy(getattr(dense_ffn, name))
    return ACT2FN[name.removeprefix("=")] if name.startswith("=") else getattr(dense_ffn, name)


def activation_of(family: Family, ffn: nn.Module) -> Any:
    """Return the activation function for an expert that is added beside a layer's FFN, dense or a mixture."""
    if not isinstance(ffn, GroupMoe):
        return _activation(family, ffn, kind="shared")
    if ffn.shared_expert is not None:
        return _activation(family, ffn.shared_expert, kind="shared")
    return copy.deepcopy(ffn.experts.act_fn)


def _dropout(family: Family, config: Any) -> float:
    """Return the dropout of the FFN's output, from the dotted field that the family names."""
    value = config
    for field in family.dropout.split(".") if family.dropout else ():
        value = value[field] if isinstance(value, dict) else getattr(value, field)
    return float(value) if family.dropout else 0.0
