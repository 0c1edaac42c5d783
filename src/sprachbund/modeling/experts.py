"""The experts of one mixture layer, as fused tensors, and the block that routes tokens to them.

Fused tensors keep every parameter in every training step (safe under DDP and ZeRO) and names as in transformers.
Shapes: N tokens, K chosen experts, G groups, E experts (as many as groups, or fewer where groups share one), D model
width, F expert width, B sequences, T tokens of a sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import Dispatch, RoutingContext, dispatch, merge_runs
from sprachbund.modeling.tables import layer_table


class GroupExperts(nn.Module):
    """The gated FFNs of a layer: down(act(gate(x)) * up(x)), gate above up in `gate_up_proj` (E, 2F, D)."""

    def __init__(self, num_experts: int, hidden_size: int, width: int, activation: str) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.act_fn: Callable[[Tensor], Tensor] = ACT2FN[activation]
        self.gate_up_proj = nn.Parameter(torch.zeros(num_experts, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, hidden_size, width))

    def forward(self, rows_MD: Tensor, counts: list[int], expert_of_run: Sequence[int] | None = None) -> Tensor:
        """Apply one expert to each run of rows, the i-th of `counts[i]` rows; returns (M, D).

        Expert i takes run i, unless `expert_of_run` says which; it may name one twice.
        """
        if expert_of_run is None and len(set(counts)) == 1:  # equal runs are one batched product
            rows_EnD = rows_MD.view(self.num_experts, counts[0], -1)
            gate, up = torch.bmm(rows_EnD, self.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
            return torch.bmm(self.act_fn(gate) * up, self.down_proj.transpose(1, 2)).reshape(rows_MD.shape)
        # unbind, not indexing: indexing would allocate a gradient of all experts for each of them
        weights = list(zip(self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True))
        experts = range(self.num_experts) if expert_of_run is None else expert_of_run
        outputs = []
        for run_nD, expert in zip(torch.split(rows_MD, counts), experts, strict=True):
            gate_up_2FD, down_DF = weights[expert]
            gate, up = F.linear(run_nD, gate_up_2FD).chunk(2, dim=-1)
            outputs.append(F.linear(self.act_fn(gate) * up, down_DF))
        return torch.cat(outputs)


class GroupMoe(nn.Module):
    """The FFN of a mixture layer: in `copy` layers the experts replace the dense FFN, in `shared` ones they add to it.

    Under `group` and `prefix` routing each token goes to the expert of its group with weight 1; under `top_k` to the
    router's choice. Each group has its own expert, or, with `expert_of_group`, (G,), the one that it names.
    Sources: DMoE as released (copies, router); the shared kind is ours (docs/how-it-works.md).
    """

    def __init__(
        self,
        gate: GroupRouter,
        experts: GroupExperts,
        shared_expert: nn.Module | None,
        expert_of_group: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_expert = shared_expert
        self.expert_of_group = expert_of_group
        self._routing: RoutingContext | None = None

    @contextmanager
    def using(self, routing: RoutingContext | None) -> Iterator[None]:
        """Route by `routing` inside the block; the decoder layer passes it in, so recomputation sees it too."""
        self._routing = routing
        try:
            yield
        finally:
            self._routing = None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the FFN's output, (B, T, D)."""
        routing = self._routing
        if routing is None:
            raise RuntimeError("a mixture layer was called outside its model: no routing is known")
        rows_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        logits_NE: Tensor | None = None
        if routing.plan is not None:
            if routing.wants_logits:
                logits_NE = self.gate.logits(rows_ND)
            output_ND = self._run(rows_ND, routing.plan, self.expert_of_group)
        else:
            logits_NE, weights_NK, index_NK = self.gate(rows_ND)
            output_ND = self._top_k(rows_ND, weights_NK, index_NK)
        if logits_NE is not None:
            routing.collect(logits_NE.view(*hidden_BTD.shape[:-1], -1))
        if self.shared_expert is not None:
            output_ND = self.shared_expert(rows_ND) + output_ND
        return output_ND.view(hidden_BTD.shape)

    def _run(self, rows_MD: Tensor, plan: Dispatch, expert_of_run: Sequence[int] | None = None) -> Tensor:
        """Apply the experts to rows in the order of the plan, and bring the results back into their own."""
        runs = (plan.counts, None) if expert_of_run is None else merge_runs(plan.counts, expert_of_run)
        if plan.order is None or plan.inverse is None:
            return self.experts(rows_MD, *runs)  # type: ignore[no-any-return]
        return self.experts(rows_MD[plan.order], *runs)[plan.inverse]  # type: ignore[no-any-return]

    def _top_k(self, rows_ND: Tensor, weights_NK: Tensor, index_NK: Tensor) -> Tensor:
        """Weigh the chosen experts' outputs; the sum over K in place order is the same on every run."""
        num_chosen = index_NK.shape[1]
        plan = dispatch(index_NK.flatten(), self.experts.num_experts)
        output_MD = self._run(rows_ND.repeat_interleave(num_chosen, dim=0), plan)
        return (output_MD.view(-1, num_chosen, rows_ND.shape[-1]) * weights_NK.unsqueeze(-1)).sum(1)


def build_moe(config: Any, dense_ffn: nn.Module, *, layer: int) -> GroupMoe:
    """Return the mixture that takes the place of a layer's `dense_ffn`, as `config` (a Dmoe config) describes it."""
    table = layer_table(config, layer)
    num_experts = max(table) + 1
    router = GroupRouter(
        config.hidden_size,
        num_experts,
        min(config.num_experts_per_tok, num_experts),
        detach=config.router_gradient == "detach",
    )
    experts = GroupExperts(num_experts, config.hidden_size, config.expert_width, config.hidden_act)
    own = table == list(range(config.num_groups))
    return GroupMoe(router, experts, dense_ffn if config.expert_kind == "shared" else None, None if own else table)
