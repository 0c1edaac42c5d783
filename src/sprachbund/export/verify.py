"""An export is proven before it is reported: a fresh process loads it, and must compute what the mixture did.

Shapes: B sequences, T tokens, V vocabulary, P tokens of a prompt, N generated tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sprachbund.errors import SprachbundError, brief
from sprachbund.export import fresh_process
from sprachbund.modeling.base import load_model

TOLERANCE = 1e-4  # of the largest logit, in float32; the exports of this package measure about 1e-6
NEAR_TIE = 1e-5  # of the largest router logit: ten times what implementations differ by
NUM_SEQUENCES, NUM_TOKENS = 2, 48
NUM_PROMPT, NUM_GENERATED = 8, 16


@torch.inference_mode()
def expected_of(
    folder: Path, *, routing: str, group: int | None = None, input_ids: Tensor | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Return what the mixture in a folder computes in float32, as `fresh_process.compare` reads it.

    On `input_ids`, (B, T), or on random tokens. `routing` is `top_k`, or `group` with the group of all sequences.
    `logits` are (B, T, V), `generated` (B, P + N). Where two experts, or two tokens, are equal but for rounding either
    may be chosen, so `sure`, (B, T), is False from a sequence's first such position on, and `margins`, (B, N), say how
    far each generated token's logit was above the next best: 0 where a router was not sure.
    """
    model = load_model(folder, dtype="float32").eval()
    generator = torch.Generator().manual_seed(seed)
    if input_ids is None:
        # windows of attention shorter than this are tested as well
        length = min(NUM_TOKENS, getattr(model.config, "max_position_embeddings", None) or NUM_TOKENS)
        input_ids = torch.randint(model.config.vocab_size, (NUM_SEQUENCES, length), generator=generator)
    prompt = input_ids[:, :NUM_PROMPT].contiguous()
    room = (getattr(model.config, "max_position_embeddings", None) or 1 << 30) - prompt.shape[1]
    given: dict[str, Any] = {"routing": routing}
    if group is not None:
        given["group_ids"] = torch.full((len(input_ids),), group)
    generated = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=fresh_process.generation_settings(min(NUM_GENERATED, room)),
        return_dict_in_generate=True,
        output_logits=True,
        **given,
    )
    best_BN2 = torch.stack([logits.topk(2).values for logits in generated.logits], dim=1)
    given |= {"use_cache": False, "output_router_logits": routing == "top_k"}
    sure_BN = sure_positions(model(input_ids=generated.sequences[:, :-1], **given), model.config)[
        :, -best_BN2.shape[1] :
    ]
    outputs = model(input_ids=input_ids, **given)
    return {
        "input_ids": input_ids,
        "logits": outputs.logits.contiguous(),
        "sure": sure_positions(outputs, model.config),
        "prompt": prompt,
        "generated": generated.sequences,
        "margins": ((best_BN2[..., 0] - best_BN2[..., 1]) * sure_BN).contiguous(),
    }


def sure_positions(outputs: Any, config: Any) -> Tensor:
    """Return (B, T): no router's choice up to this position, in any layer, hung on rounding.

    It does where the last chosen expert's logit is above the first one left out by less than 1e-5 of the largest; not
    where both are the same number, as under a router of zeros, since then all implementations see the same tie.
    """
    sure_BT = torch.ones(outputs.logits.shape[:2], dtype=torch.bool)
    for logits_BTE in outputs.router_logits or ():
        ordered_BTE = logits_BTE.sort(-1, descending=True).values
        chosen = config.num_experts_per_tok
        if chosen < ordered_BTE.shape[-1]:
            lead_BT = ordered_BTE[..., chosen - 1] - ordered_BTE[..., chosen]
            sure_BT &= (lead_BT == 0) | (lead_BT > NEAR_TIE * logits_BTE.abs().max())
    return sure_BT.cummin(dim=1).values if sure_BT.numel() else sure_BT


def verify(folder: Path, expected: dict[str, Tensor], *, tolerance: float = TOLERANCE) -> float:
    """Load an exported folder in a fresh process without this package and compare it with the mixture.

    Returns the largest difference of a logit as a share of the largest logit. Raises SprachbundError where the folder
    does not load, lacks tensors or has superfluous ones, or where a logit or a generated token differs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "expected.safetensors"
        save_file(expected, file)
        program = [sys.executable, "-P", fresh_process.__file__, str(folder), str(file)]
        done = subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise SprachbundError(f"the export does not load in plain transformers, so nothing was written: {brief(said)}")
    return judge(json.loads(done.stdout.splitlines()[-1]), expected, tolerance=tolerance)


def judge(found: dict[str, Any], expected: dict[str, Tensor], *, tolerance: float = TOLERANCE) -> float:
    """Return the relative difference of what `fresh_process.compare` found; raises SprachbundError as `verify`."""
    for what in ("missing", "unexpected"):
        if names := found[what]:
            raise SprachbundError(
                f"the export has {what} tensors, {names[0]} among {len(names)}, so nothing was written"
            )
    if not found["module"].startswith("transformers."):
        raise SprachbundError(f"the export loaded as {found['class']} of {found['module']}, not of transformers")
    largest = float(expected["logits"].abs().max())
    difference = found["difference"] / largest if largest else found["difference"]
    if not difference <= tolerance:  # also where it is no number
        raise SprachbundError(
            f"the export computes something else: its logits differ by {difference:.2g} of the largest, more than "
            f"{tolerance:.0e}, so nothing was written"
        )
    if (step := _first_difference(found["generated"], expected, least=2 * tolerance * largest)) is not None:
        raise SprachbundError(
            f"the export generates another text than the mixture, from token {step} on, so nothing was written"
        )
    return float(difference)


def _first_difference(generated: list[list[int]], expected: dict[str, Tensor], *, least: float) -> int | None:
    """Return the first generated token that differs though its logit led by more than `least`, None if none does."""
    num_prompt = expected["prompt"].shape[1]
    for ours, theirs, margins in zip(expected["generated"].tolist(), generated, expected["margins"], strict=True):
        for step, margin in enumerate(margins.tolist()):
            if float(margin) <= least:
                break  # from here on the texts may differ for rounding alone
            if ours[num_prompt + step : num_prompt + step + 1] != theirs[num_prompt + step : num_prompt + step + 1]:
                return step
    return None
