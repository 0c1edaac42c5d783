"""The experts of one mixture layer, as fused tensors, and the block that routes tokens to them.

Fused tensors keep every parameter in every training step (safe under DDP and ZeRO) and names as in transformers.
Shapes: N tokens, K chosen experts, G groups, D model width, F expert width, B sequences, T tokens of a sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import Dispatch, RoutingContext, dispatch


class GroupExperts(nn.Module):
    """One gated FFN per group: down(act(gate(x)) * up(x)), gate above up in `gate_up_proj` (G, 2F, D)."""

    def __init__(self, num_groups: int, hidden_size: int, width: int, activation: str) -> None:
        super().__init__()
        self.num_experts = num_groups
        self.act_fn: Callable[[Tensor], Tensor] = ACT2FN[activation]
        self.gate_up_proj = nn.Parameter(torch.zeros(num_groups, 2 * width, hidden_size))
        self.down_proj = nn.Parameter(torch.zeros(num_groups, hidden_size, width))

    def forward(self, rows_MD: Tensor, counts: list[int]) -> Tensor:
        """Apply expert g to the g-th run of `counts[g]` rows; returns (M, D)."""
        if len(set(counts)) == 1:  # equal runs are one batched product
            rows_GnD = rows_MD.view(self.num_experts, counts[0], -1)
            gate, up = torch.bmm(rows_GnD, self.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
            return torch.bmm(self.act_fn(gate) * up, self.down_proj.transpose(1, 2)).reshape(rows_MD.shape)
        # unbind, not indexing: indexing would allocate a gradient of all experts for each of them
        weights = zip(self.gate_up_proj.unbind(0), self.down_proj.unbind(0), strict=True)
        outputs = []
        for run_nD, (gate_up_2FD, down_DF) in zip(torch.split(rows_MD, counts), weights, strict=True):
            gate, up = F.linear(run_nD, gate_up_2FD).chunk(2, dim=-1)
            outputs.append(F.linear(self.act_fn(gate) * up, down_DF))
        return torch.cat(outputs)


class GroupMoe(nn.Module):
    """The FFN of a mixture layer: in `copy` layers the experts replace the dense FFN, in `shared` ones they add to it.

    Under `group` and `prefix` routing each token goes to the expert of its group with weight 1; under `top_k` to the
    router's choice. Sources: DMoE as released (copies, router); the shared kind is ours (docs/how-it-works.md).
    """

    def __init__(self, gate: GroupRouter, experts: GroupExperts, shared_expert: nn.Module | None) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.shared_expert = shared_expert
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
        logits_NG: Tensor | None = None
        if routing.plan is not None:
            if routing.wants_logits:
                logits_NG = self.gate.logits(rows_ND)
            output_ND = self._run(rows_ND, routing.plan)
        else:
            logits_NG, weights_NK, index_NK = self.gate(rows_ND)
            output_ND = self._top_k(rows_ND, weights_NK, index_NK)
        if logits_NG is not None:
            routing.collect(logits_NG.view(*hidden_BTD.shape[:-1], -1))
        if self.shared_expert is not None:
            output_ND = self.shared_expert(rows_ND) + output_ND
        return output_ND.view(hidden_BTD.shape)

    def _run(self, rows_MD: Tensor, plan: Dispatch) -> Tensor:
        if plan.order is None or plan.inverse is None:
            return self.experts(rows_MD, plan.counts)  # type: ignore[no-any-return]
        return self.experts(rows_MD[plan.order], plan.counts)[plan.inverse]  # type: ignore[no-any-return]

    def _top_k(self, rows_ND: Tensor, weights_NK: Tensor, index_NK: Tensor) -> Tensor:
        """Weigh the chosen experts' outputs; the sum over K in place order is the same on every run."""
        num_chosen = index_NK.shape[1]
        plan = dispatch(index_NK.flatten(), self.experts.num_experts)
        output_MD = self._run(rows_ND.repeat_interleave(num_chosen, dim=0), plan)
        return (output_MD.view(-1, num_chosen, rows_ND.shape[-1]) * weights_NK.unsqueeze(-1)).sum(1)


def build_moe(config: Any, dense_ffn: nn.Module) -> GroupMoe:
    """Return the mixture that takes the place of `dense_ffn`, as `config` (a Dmoe config) describes it."""
    router = GroupRouter(
        config.hidden_size,
        config.num_groups,
        config.num_experts_per_tok,
        detach=config.router_gradient == "detach",
    )
    experts = GroupExperts(config.num_groups, config.hidden_size, config.expert_width, config.hidden_act)
    return GroupMoe(router, experts, dense_ffn if config.expert_kind == "shared" else None)
