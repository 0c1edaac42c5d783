"""What keeping freed memory is worth: training and scoring a small mixture on one thread of a CPU, without and with it.

python benchmarks/allocator.py prints the milliseconds of a step of each and their ratio; each way in processes of its
own, in turns.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sprachbund.memory import keep_freed_memory
from sprachbund.modeling import expand
from sprachbund.modeling.likelihood import token_nats

STEPS, ROUNDS = 12, 5


def median_milliseconds(step: Callable[[], None]) -> float:
    """Return the median time of some steps; the first two do not count."""
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - begun))
    return median(times[2:])


def milliseconds(*, keep: bool) -> dict[str, float]:
    """Return the median times of a step: 18 languages, 36 sequences of 128 tokens, width 64, 4 layers."""
    if keep and not keep_freed_memory():
        raise SystemExit("skipped: this system has no switch to keep freed memory")
    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=2048,
        hidden_size=64,
        num_hidden_layers=4,
        intermediate_size=256,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
    )
    model = expand(Qwen3ForCausalLM(config), moe_layers=range(4), num_groups=18, width=85).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    input_ids, groups = torch.randint(0, 2048, (36, 128)), torch.arange(36) // 2

    def train() -> None:
        model(input_ids=input_ids, labels=input_ids, use_cache=False, group_ids=groups).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.inference_mode()
    def score() -> None:
        token_nats(model(input_ids=input_ids, use_cache=False, group_ids=groups).logits[:, :-1], input_ids[:, 1:])

    return {"training": median_milliseconds(train), "scoring": median_milliseconds(score)}


def main() -> None:
    """Measure in turns and print."""
    if len(sys.argv) > 1:
        print(json.dumps(milliseconds(keep=sys.argv[1] == "keep")))
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "keep": []}
    for _ in range(ROUNDS):
        for way, times in found.items():
            said = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
            times.append(json.loads(said.splitlines()[-1]))
    for work in ("training", "scoring"):
        plain, keep = (median(one[work] for one in found[way]) for way in ("plain", "keep"))
        print(f"{work}: plain {plain:.0f} ms, freed memory kept {keep:.0f} ms a step: {keep / plain:.2f}")


if __name__ == "__main__":
    main()
