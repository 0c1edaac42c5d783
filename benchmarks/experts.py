"""One mixture layer, forward and backward: ours against a dense FFN, transformers' eager experts and a loop with masks.

python benchmarks/experts.py [--quick] [--groups 3 8 16] [--dtypes float32 bfloat16] [--device cpu]; writes
benchmarks/results/experts-DEVICE.json, except with --quick. About twenty minutes on 2 idle cores. The sides take turns
in every repetition, so that a machine that slows down slows them all; the numbers are medians.

The layer has D = 1024, F = 4096, 4096 tokens, G experts. Ours is the whole block, with router and all; the plan of
`group` routing is made once for all layers of a model and is not in the time. What it is compared with:
- dense F: a gated FFN of width F, what a token passes through under `group` routing. All of its ratios are "times as
  long as", the smaller the better. `top_k` with K = 2 is compared with it too (bar on a GPU: 2.3 times).
- dense 2F: a gated FFN of width 2F, of the same active size as `top_k` with K = 2.
- eager: transformers' own experts (Qwen2-MoE's) with `experts_implementation="eager"`; grouped: with "grouped_mm".
- masks: an expert after the other, its tokens picked by a boolean mask and their results added by another: the idea of
  the authors' code, written anew, with a module for each expert.
The last three get the choice of the same router; how many times faster we are than they is the larger the better.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from runs import RESULTS, machine
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

from sprachbund.modeling.experts import GroupExperts, GroupMoe
from sprachbund.modeling.ffn_weights import FfnShape
from sprachbund.modeling.router import GroupRouter
from sprachbund.modeling.routing import RoutingContext, dispatch, routed

HIDDEN_SIZE, WIDTH, TOKENS, CHOSEN, REPEATS = 1024, 4096, 4096, 2, 7
QUICK_TOKENS, QUICK_REPEATS = 1024, 5
# The bars of the issue: at most so many times a dense FFN's time; at least so many times faster than the others.
MOST_ONE, MOST_MIXED, MOST_TOP_K = {"cpu": 1.10, "cuda": 1.05}, {"cpu": 1.25, "cuda": 1.05}, {"cuda": 2.3}
LEAST_FASTER = {"cpu": 1.3}
DENSE, DOUBLE, EAGER, GROUPED, MASKS = "dense F", "dense 2F", "eager", "grouped", "masks"
ONE, TOP_K = "group, one group", "top_k, K = 2"


def mixed(num_groups: int) -> str:
    return f"group, {num_groups} groups mixed"


class Ffn(nn.Module):
    """A dense gated FFN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN_SIZE, width, bias=False)
        self.up_proj = nn.Linear(HIDDEN_SIZE, width, bias=False)
        self.down_proj = nn.Linear(width, HIDDEN_SIZE, bias=False)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """Return (N, D)."""
        return self.down_proj(F.silu(self.gate_proj(hidden_ND)) * self.up_proj(hidden_ND))


class Masks(nn.Module):
    """Experts as modules of their own; each picks its tokens by a mask over all of them."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(Ffn(WIDTH) for _ in range(num_experts))

    def forward(self, hidden_ND: Tensor, index_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Return (N, D) from the experts' numbers and weights, (N, K)."""
        output_ND = torch.zeros_like(hidden_ND)
        for number, expert in enumerate(self.experts):
            chosen_NK = index_NK == number
            mask_N = chosen_NK.any(-1)
            if mask_N.any():
                weight_n = (weights_NK * chosen_NK)[mask_N].sum(-1, keepdim=True)
                output_ND[mask_N] += expert(hidden_ND[mask_N]) * weight_n
        return output_ND


def theirs(num_experts: int, implementation: str) -> nn.Module:
    """Return transformers' experts of Qwen2-MoE."""
    config = Qwen2MoeConfig(hidden_size=HIDDEN_SIZE, moe_intermediate_size=WIDTH, num_experts=num_experts)
    config._experts_implementation = implementation
    return Qwen2MoeExperts(config)


def fill(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)


def sides(num_groups: int, dtype: torch.dtype, device: str, num_tokens: int) -> dict[str, tuple[nn.Module, Callable]]:
    """Return each side's name, module and forward pass; ours share one module."""
    shape = FfnShape(HIDDEN_SIZE, WIDTH, gated=True, bias=False)
    router = GroupRouter(HIDDEN_SIZE, num_groups, CHOSEN, detach=True)
    config = Qwen2MoeConfig()
    config._experts_implementation = "grouped_mm"  # transformers' default, as a model of ours has it
    ours = GroupMoe(router, GroupExperts(config, num_groups, shape, F.silu), None)
    dense, double, masks = Ffn(WIDTH), Ffn(2 * WIDTH), Masks(num_groups)
    eager, grouped = theirs(num_groups, "eager"), theirs(num_groups, "grouped_mm")
    for module in (ours, dense, double, masks, eager, grouped):
        fill(module)
        module.to(device, dtype)

    def ours_by_groups(present: int) -> Callable:
        ids_N = torch.arange(num_tokens, device=device) * present // num_tokens  # in rising order, as in training
        plan = dispatch(ids_N, num_groups)
        return lambda hidden_ND: _within(RoutingContext(plan=plan), ours, hidden_ND)

    def chosen(experts: nn.Module) -> Callable:
        def forward(hidden_ND: Tensor) -> Tensor:
            _, weights_NK, index_NK = router(hidden_ND)
            return experts(hidden_ND, index_NK, weights_NK)

        return forward

    found: dict[str, tuple[nn.Module, Callable]] = {DENSE: (dense, dense), ONE: (ours, ours_by_groups(1))}
    for present in sorted({num_groups, min(num_groups, 8)}):
        found[mixed(present)] = (ours, ours_by_groups(present))
    found[TOP_K] = (ours, lambda hidden_ND: _within(RoutingContext(), ours, hidden_ND))
    found[DOUBLE] = (double, double)
    others = {EAGER: eager, GROUPED: grouped, MASKS: masks}
    return found | {name: (experts, chosen(experts)) for name, experts in others.items()}


def _within(context: RoutingContext, moe: GroupMoe, hidden_ND: Tensor) -> Tensor:
    with routed(context):
        return moe(hidden_ND)


def seconds_of(module: nn.Module, forward: Callable, hidden_ND: Tensor, grad_ND: Tensor) -> float:
    """Return the time of one forward and backward pass; the gradients before are freed outside of it."""
    module.zero_grad(set_to_none=True)
    hidden_ND = hidden_ND.detach().requires_grad_()
    wait = torch.cuda.synchronize if hidden_ND.is_cuda else nullcontext
    wait()
    begun = time.perf_counter()
    forward(hidden_ND).backward(grad_ND)
    wait()
    elapsed = time.perf_counter() - begun
    module.zero_grad(set_to_none=True)
    return elapsed


def measure(num_groups: int, dtype: torch.dtype, device: str, num_tokens: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each side in every repetition; the sides take turns."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(num_tokens, HIDDEN_SIZE).to(device, dtype)
    grad_ND = torch.randn(num_tokens, HIDDEN_SIZE).to(device, dtype)
    all_sides = sides(num_groups, dtype, device, num_tokens)
    found: dict[str, list[float]] = {name: [] for name in all_sides}
    for repeat in range(repeats + 1):
        for name, (module, forward) in all_sides.items():
            seconds = seconds_of(module, forward, hidden_ND, grad_ND)
            if repeat:  # the first is for warming up
                found[name].append(seconds)
    return found


def ratios_of(seconds: dict[str, list[float]], device: str, dtype: str) -> list[dict[str, Any]]:
    """Return the comparisons: a ratio of medians, and its bar where there is one."""
    medians = {name: median(values) for name, values in seconds.items()}
    by_group = [name for name in medians if name.startswith("group,")]
    bars: dict[str, float | None] = {name: MOST_MIXED[device] for name in by_group if name != ONE}
    bars[ONE] = MOST_ONE[device]
    found = [
        {"ours": name, "than": DENSE, "ratio": medians[name] / medians[DENSE], "at_most": bars[name]}
        for name in by_group
    ]
    found.append(
        {"ours": TOP_K, "than": DENSE, "ratio": medians[TOP_K] / medians[DENSE], "at_most": MOST_TOP_K.get(device)}
    )
    found.append({"ours": TOP_K, "than": DOUBLE, "ratio": medians[TOP_K] / medians[DOUBLE], "at_most": None})
    for other in (EAGER, GROUPED, MASKS):
        least = LEAST_FASTER.get(device) if dtype == "bfloat16" and other != GROUPED else None
        found.append({"ours": TOP_K, "than": other, "times_faster": medians[other] / medians[TOP_K], "at_least": least})
    return found


def verdict(one: dict[str, Any]) -> str:
    """Return a comparison's ratio with its bar, in words."""
    if "ratio" in one:
        text, bar, limit = f"{one['ratio']:.2f} times", one["at_most"], "at most"
        holds = bar is None or one["ratio"] <= bar
    else:
        text, bar, limit = f"{one['times_faster']:.2f} times faster", one["at_least"], "at least"
        holds = bar is None or one["times_faster"] >= bar
    return text if bar is None else f"{text:20} {'holds' if holds else 'FAILS'} ({limit} {bar:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer tokens, one number of groups; writes nothing")
    parser.add_argument("--groups", type=int, nargs="+", default=None)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    groups = options.groups or ([3] if options.quick else [3, 8, 16])
    num_tokens, repeats = (QUICK_TOKENS, QUICK_REPEATS) if options.quick else (TOKENS, REPEATS)
    results = []
    for dtype in options.dtypes:
        for num_groups in groups:
            seconds = measure(num_groups, getattr(torch, dtype), options.device, num_tokens, repeats)
            compared = ratios_of(seconds, options.device, dtype)
            results.append({"dtype": dtype, "groups": num_groups, "seconds": seconds, "compared": compared})
            print(f"\n{dtype}, {num_groups} groups, {num_tokens} tokens, on {options.device}: median milliseconds")
            print("  ".join(f"{name}: {1000 * median(values):.1f}" for name, values in seconds.items()))
            for one in compared:
                print(f"  {one['ours']:26} than {one['than']:10} {verdict(one)}", flush=True)
    if options.quick:
        return
    found = machine() | {"threads": torch.get_num_threads()}
    if options.device == "cuda":
        found["hardware"] = torch.cuda.get_device_name()
    sizes = {"hidden_size": HIDDEN_SIZE, "width": WIDTH, "tokens": num_tokens, "chosen": CHOSEN, "repeats": repeats}
    path = RESULTS / f"experts-{options.device}.json"
    path.write_text(json.dumps({**found, **sizes, "results": rounded(results)}, indent=1) + "\n")
    print(f"\nwritten: {path}")


def rounded(value: Any) -> Any:
    """Return a value with its numbers to four significant digits."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
