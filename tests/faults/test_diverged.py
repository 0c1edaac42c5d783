"""A loss or a gradient that is no number: the run stops before the update, and goes on from what was good."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine
from killing import content
from safetensors.torch import load_file
from torch import Tensor

from sprachbund.training.trainer import GroupTrainer


def nan_loss(loss: Tensor, _: Tensor) -> Tensor:
    return loss * float("nan")


def nan_gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    """Add nothing, whose gradient is 0 times infinity."""
    return loss + (0 * parameter.flatten()[0]).sqrt()


SPOILED = {"loss": nan_loss, "norm of the gradient": nan_gradient}


def spoil(patched: pytest.MonkeyPatch, how: Callable[[Tensor, Tensor], Tensor], *, step: int) -> None:
    """Spoil the mixture's loss in one step; `compute_loss` looks at the model's loss as it comes."""
    inner = GroupTrainer.compute_loss

    def compute(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if "train-" not in self.args.output_dir or self.state.global_step + 1 != step:
            return inner(self, model, *args, **kwargs)
        forward, parameter = model.forward, next(p for p in model.parameters() if p.requires_grad)

        def spoiled(*inputs: Any, **named: Any) -> Any:
            outputs = forward(*inputs, **named)
            outputs.loss = how(outputs.loss, parameter)
            return outputs

        model.forward = spoiled
        try:
            return inner(self, model, *args, **kwargs)
        finally:
            model.forward = forward

    patched.setattr(GroupTrainer, "compute_loss", compute)


@pytest.mark.parametrize("what", list(SPOILED))
def test_a_run_that_diverges_stops_before_the_update_and_keeps_its_last_checkpoint(
    what: str, tiny: Path, finished: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny.parent / "run"
    with monkeypatch.context() as patched:
        spoil(patched, SPOILED[what], step=6)
        updates: list[int] = []
        step = torch.optim.AdamW.step
        patched.setattr(torch.optim.AdamW, "step", lambda *args: (updates.append(1), step(*args))[1])
        said = cli("run", tiny, "--out", run)
    assert (said.status, said.last) == (
        1,
        f"sprachbund: the {what} became nan at step 6; the model was not updated with it. Lower train.learning_rate "
        "(now 0.01) and run the command again with --update",
    )
    assert not (run / "model").exists()
    (last,) = [path for path in (run / "checkpoints").glob("train-*/checkpoint-4") if (path / "complete").exists()]
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last / "model.safetensors").values())

    again = cli("run", tiny, "--out", run)  # it was no fault of the run's: the same command ends as it should
    assert again.status == 0, again.err
    assert content(run) == content(finished)


def test_the_advice_helps(tiny: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.parent / "run"
    with monkeypatch.context() as patched:
        spoil(patched, nan_gradient, step=2)
        assert cli("train", tiny, "--out", run).status == 1
    said = cli("train", tiny, "--out", run, "--update", "--set", "train.learning_rate=5e-3")
    assert said.status == 0, said.err
    assert {"base", "probe", "groups", "layers"} <= set(said.skipped)
