"""Load an exported folder as its future users will, in plain transformers, and compare it with what was expected.

Run as a program, in a process of its own: `python -P fresh_process.py FOLDER EXPECTED`. This package cannot be imported
there, so nothing but what is in the folder can make it work. Prints one line of JSON.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["sprachbund"] = None  # type: ignore[assignment]  # an import of it now fails
    os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig


def generation_settings(num_tokens: int) -> GenerationConfig:
    """Return settings for greedy generation of `num_tokens` tokens, whatever a model's own settings are."""
    return GenerationConfig(max_new_tokens=num_tokens, do_sample=False, num_beams=1, pad_token_id=0, eos_token_id=None)


@torch.inference_mode()
def compare(folder: Path, expected_file: Path) -> dict[str, Any]:
    """Load a folder in float32 and compare its logits, and tokens that it generates greedily, with those of a file.

    The file holds `input_ids` (B, T), `logits` (B, T, V), the positions to compare, `sure` (B, T), `prompt` (B, P) and
    `generated` (B, P + N). Returns the class, its tensors that the folder lacks or has for nothing, the largest
    difference of a logit, and the tokens.
    """
    expected = load_file(expected_file)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **_experts(folder)
    )
    model.eval()
    logits = model(input_ids=expected["input_ids"], use_cache=False).logits
    prompt, num_tokens = expected["prompt"], expected["generated"].shape[1] - expected["prompt"].shape[1]
    generated = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=generation_settings(num_tokens)
    )
    sure = expected["sure"]
    comparable = logits.shape == expected["logits"].shape and bool(sure.any())
    return {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "difference": float((logits - expected["logits"])[sure].abs().max()) if comparable else float("nan"),
        "generated": generated.tolist(),
    }


def _experts(folder: Path) -> dict[str, str]:
    """Return what lets experts of any width run: grouped products want rows of a multiple of 16 bytes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not any(name in config for name in ("num_experts", "num_local_experts", "moe_num_experts")):
        return {}
    widths = [config[name] for name in ("hidden_size", "intermediate_size", "moe_intermediate_size") if name in config]
    return {"experts_implementation": "eager"} if any(width % 4 for width in widths) else {}


if __name__ == "__main__":
    print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]))))
