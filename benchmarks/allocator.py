"""What keeping freed memory is worth: one training step of a small mixture on one thread of a CPU, without and with it.

python benchmarks/allocator.py prints the milliseconds of a step and their ratio; each way in processes of its own, in
turns.
"""

import subprocess
import sys
import time
from statistics import median

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sprachbund.memory import keep_freed_memory
from sprachbund.modeling import expand

STEPS, ROUNDS = 12, 5


def step_milliseconds(*, keep: bool) -> float:
    """Return the median time of a step: 18 languages, 36 sequences of 128 tokens, width 64, 4 layers."""
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
    times = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        model(input_ids=input_ids, labels=input_ids, use_cache=False, group_ids=groups).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1000 * (time.perf_counter() - begun))
    return median(times[2:])


def main() -> None:
    """Measure in turns and print."""
    if len(sys.argv) > 1:
        print(step_milliseconds(keep=sys.argv[1] == "keep"))
        return
    found: dict[str, list[float]] = {"plain": [], "keep": []}
    for _ in range(ROUNDS):
        for way, times in found.items():
            said = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True).stdout
            times.append(float(said.splitlines()[-1]))
    plain, keep = median(found["plain"]), median(found["keep"])
    print(f"plain {plain:.0f} ms, freed memory kept {keep:.0f} ms a step: {keep / plain:.2f}")


if __name__ == "__main__":
    main()
