"""The Hugging Face Trainer with our batches, losses and stages."""

import gc
import json
import logging
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from sprachbund import parallel
from sprachbund.errors import DivergedError
from sprachbund.memory import keep_freed_memory, peak_memory_mb
from sprachbund.modeling.base import device
from sprachbund.modeling.language_path import num_group_ids
from sprachbund.modeling.model import is_dmoe
from sprachbund.modeling.tables import expert_tables, group_credit
from sprachbund.progress import Advance, silent, track
from sprachbund.training.batches import TrainingBlocks, collate
from sprachbund.training.checkpoints import last_checkpoint, seal, step_of
from sprachbund.training.objectives import balance_loss, router_cross_entropy
from sprachbund.training.ranks import RankTrainer, without_warnings
from sprachbund.training.stages import TrainingPlan, check_share

Log = Callable[..., None]
TOKENS = "tokens.json"  # tokens per language and expert up to a checkpoint


@dataclass(frozen=True)
class TrainingResult:
    """Seconds of this call (not of earlier, interrupted ones), and tokens per second over it."""

    seconds: float
    tokens_per_second: float


def _is_keyed(name: str) -> bool:
    """Is this parameter an expert's or a table's of keyed rows?"""
    return ".experts." in name or ".language_experts." in name or name.endswith(".delta")


class GroupTrainer(RankTrainer):
    """Trains a dense model or a mixture by a TrainingPlan; `group_of_language`, (L,), is used by mixtures only."""

    def __init__(self, plan: TrainingPlan, group_of_language: Tensor, log: Log, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan
        self.group_of_language = group_of_language
        self.write_event = log
        self.model_accepts_loss_kwargs = False  # micro-batches are equal: the mean of their means is the mean
        self.sums: dict[str, float] = defaultdict(float)
        self.num_sums = 0
        num_groups = num_group_ids(self.model.config) if is_dmoe(self.model) else 1
        self.tokens_LG = torch.zeros(len(group_of_language), num_groups, dtype=torch.float64)
        self.own_LG = torch.zeros_like(self.tokens_LG)  # of this rank, since they were last added up
        self.expert_of_group = expert_tables(self.model.config) if is_dmoe(self.model) else None
        self.credits_LEG = [
            torch.stack([group_credit(table_G, group=int(group)) for group in group_of_language])
            for table_G in (() if self.expert_of_group is None else self.expert_of_group)
        ]

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        """AdamW; routers have their own learning rate, vectors (norms, biases) no weight decay."""
        plan, groups = self.plan, defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                rate = plan.learning_rate
                if plan.router_learning_rate is not None and name.endswith(".gate.weight"):
                    rate = plan.router_learning_rate
                elif _is_keyed(name):
                    rate *= plan.expert_rate_factor
                groups[(rate, plan.weight_decay if parameter.dim() > 1 else 0.0)].append(parameter)
        parameters = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
        self.optimizer = torch.optim.AdamW(parameters, betas=(0.9, plan.beta2), fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The plan's rate, for every parameter group."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.plan.rate)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Language-model loss plus the stage's router losses; a loss that is not finite stops the run."""
        stage = self.plan.stage_at(self.state.global_step)
        input_ids, languages = inputs["input_ids"], inputs["language"]
        parts: dict[str, Tensor] = {}
        if stage.routing is None:
            outputs = model(input_ids=input_ids, labels=input_ids, use_cache=False)
            loss = parts["language_model_loss"] = outputs.loss
        else:
            group_ids = self.group_of_language.to(languages.device)[languages]
            routing = stage.routing
            if routing == "alternate":
                routing = "top_k" if self.state.global_step % 2 else "group"
            outputs = model(
                input_ids=input_ids,
                labels=input_ids,
                use_cache=False,
                group_ids=None if routing == "prefix" else group_ids,
                routing=routing,
                output_router_logits=routing == "top_k" or stage.router_loss > 0 or stage.balance_loss > 0,
            )
            loss = parts["language_model_loss"] = outputs.loss
            if stage.router_loss:
                parts["router_loss"] = router_cross_entropy(outputs.router_logits, group_ids, self.expert_of_group)
                loss = loss + stage.router_loss * parts["router_loss"]
            if stage.balance_loss:
                top_k = self.model.config.num_experts_per_tok
                parts["balance_loss"] = balance_loss(outputs.router_logits, top_k=top_k)
                loss = loss + stage.balance_loss * parts["balance_loss"]
            self._count_tokens(outputs, languages)
        means = self.mean_over_ranks(
            torch.stack([loss.detach().double(), *(p.detach().double() for p in parts.values())])
        )
        value, *values = means.tolist()
        self._check_finite("loss", value)
        self.sums["loss"] += value
        for name, part in zip(parts, values, strict=True):
            self.sums[name] += part
        self.num_sums += 1
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, asked for between clipping and update: where it is not finite, the run stops."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None:
            self._check_finite("norm of the gradient", float(norm))
        return norm

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"the {what} became {value} at step {self.state.global_step + 1}; the model was not updated with it. "
                f"Lower {self.plan.rate_name} (now {self.plan.learning_rate:g}) and run the command again with --update"
            )

    @torch.no_grad()
    def _count_tokens(self, outputs: Any, languages: Tensor) -> None:
        """Add up which language's tokens went to which group; under top_k the mean over layers and chosen experts.

        The experts of a layer are the groups, or count for the groups that share them (`group_credit`).
        """
        if outputs.group_ids is not None:
            self.own_LG += self._counts(languages, outputs.group_ids.unsqueeze(-1), self.tokens_LG.shape[1])
            return
        for layer, logits_BTE in enumerate(outputs.router_logits):
            num_experts = logits_BTE.shape[-1]
            top_k = min(self.model.config.num_experts_per_tok, num_experts)
            counts = self._counts(languages, logits_BTE.topk(top_k, dim=-1).indices, num_experts)
            if self.credits_LEG:
                counts = torch.einsum("le,leg->lg", counts, self.credits_LEG[layer])
            self.own_LG += counts * (1.0 / (len(outputs.router_logits) * top_k))

    def _counts(self, languages: Tensor, chosen_BTK: Tensor, how_many: int) -> Tensor:
        """Count, (L, how_many) float64, how often the tokens of each language chose each number."""
        num_languages = len(self.tokens_LG)
        cells = (languages.view(-1, 1, 1) * how_many + chosen_BTK).flatten()
        counts = torch.bincount(cells, minlength=num_languages * how_many)
        return counts.view(num_languages, how_many).double().cpu()

    def add_up_tokens(self) -> Tensor:
        """Return how many tokens of each language went to each group, (L, G), on all ranks together."""
        self.tokens_LG += parallel.add_up(self.own_LG)
        self.own_LG.zero_()
        return self.tokens_LG

    def take_means(self) -> dict[str, float]:
        """Return the mean of every loss part since the last call."""
        means = {name: value / max(self.num_sums, 1) for name, value in self.sums.items()}
        self.sums.clear()
        self.num_sums = 0
        return means

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Write each loss part to events.jsonl, and through the Trainer to its trackers."""
        if "loss" in logs:
            means = self.take_means()
            stage = self.plan.stage_at(self.state.global_step - 1)
            speed = self.callback.tokens_per_second()
            event = {
                "step": self.state.global_step,
                "num_steps": self.plan.num_steps,
                **means,
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": float(logs["grad_norm"]) if "grad_norm" in logs else None,
                "tokens_per_second": round(speed, 1),
                "memory_mb": round(peak_memory_mb(), 1),
            }
            self.write_event("step", **event, **({"routing": stage.routing} if stage.routing else {}))
            if is_dmoe(self.model):
                self._write_tokens()
            logs = {**logs, **means, "tokens_per_second": speed}
        super().log(logs, *args, **kwargs)

    def _write_tokens(self) -> None:
        tags, tokens_LG = self.train_dataset.tags, self.add_up_tokens()
        tokens = {tag: [round(n) for n in row] for tag, row in zip(tags, tokens_LG.tolist(), strict=True)}
        dead = [g for g, total in enumerate(tokens_LG.sum(0).tolist()) if not total]
        self.write_event("tokens", step=self.state.global_step, tokens=tokens, dead_experts=dead)


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Moves the progress display, measures speed, and completes checkpoints."""

    trainer: "GroupTrainer"

    def __init__(self, advance: Advance, tokens_per_step: int) -> None:
        self.advance = advance
        self.tokens_per_step = tokens_per_step
        self.begun = self.last = time.monotonic()
        self.steps = self.steps_since = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        self.steps_since += 1
        self.advance(1, f"{self.steps * self.tokens_per_step / (time.monotonic() - self.begun):,.0f} tokens/s")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tokens_LG = self.trainer.add_up_tokens()  # which waits for all ranks to have written their part
        if state.is_world_process_zero:
            (folder / TOKENS).write_text(json.dumps(tokens_LG.tolist()))
            seal(folder)

    def tokens_per_second(self) -> float:
        """Return the speed since the last call."""
        now = time.monotonic()
        speed = self.steps_since * self.tokens_per_step / max(now - self.last, 1e-9)
        self.last, self.steps_since = now, 0
        return speed


def recompute_activations(model: Any) -> None:
    """Switch gradient checkpointing on, non-reentrant: the reentrant kind loses the router's gradient."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _no_log(event: str, **values: Any) -> None:
    """Record nothing: the log of all ranks but the first."""


def _arguments(plan: TrainingPlan, folder: Path, description: str) -> TrainingArguments:
    """Return a plan in the Trainer's words."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=plan.num_steps,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.batch_size // (plan.micro_batch_size * parallel.world_size()),
        learning_rate=plan.learning_rate,
        max_grad_norm=plan.max_grad_norm,
        use_cpu=device().type == "cpu",  # bf16 is refused there unless it is asked for by name
        bf16=plan.bfloat16,  # arithmetic only: updates of float32 weights are too small for bfloat16 ones
        save_strategy="steps" if plan.checkpoints and plan.num_steps > 1 else "no",
        save_steps=max(math.ceil(plan.num_steps / (plan.checkpoints + 1)), 1),
        save_total_limit=2,  # while one is written, the other is whole
        logging_steps=plan.log_every or max(plan.num_steps // 100, 1),
        logging_nan_inf_filter=False,
        report_to=list(plan.trackers) or "none",
        run_name=plan.run_name or description,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=plan.skips_routers(),
        ddp_broadcast_buffers=False,  # they do not train
        seed=plan.seed,
    )
    # A process trains on one device; with several in sight the Trainer would spread a batch over them (DataParallel).
    _ = arguments.device
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def train(
    model: Any,
    blocks: TrainingBlocks,
    plan: TrainingPlan,
    *,
    groups: Sequence[int],
    folder: Path,
    log: Log,
    description: str,
    sharded: bool = False,
    whole: Any = None,
) -> TrainingResult:
    """Train a model in place by a plan; resumes from the last complete checkpoint in `folder`.

    `groups`, (L,), is the group of each language of `blocks`; `log(event, **values)` receives what is to be recorded.
    Where several processes have joined (`torch.distributed`), all call this alike, each with the model of rank 0, or a
    `sharded` twin of it, which rank 0 has `whole` too; only rank 0 logs and writes. Raises DivergedError when the loss
    or the gradient is not finite (before the update, on all ranks), InputError where ranks cannot share a step evenly.
    """
    check_share(plan.batch_size, parallel.world_size(), key="a training", block_size=blocks.block_size)
    leads = parallel.rank() == 0
    resume = parallel.share(last_checkpoint(folder) if leads else None)
    done = step_of(resume) if resume else 0
    if "tensorboard" in plan.trackers:  # its own default is the checkpoints' folder, which does not stay
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.parents[1] / "tensorboard" / description)
    if device().type == "cpu":
        keep_freed_memory()
    if plan.gradient_checkpointing:
        recompute_activations(model)
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    tokens_per_step = plan.batch_size * blocks.block_size
    with (
        track(description, plan.num_steps, start=done) if leads else silent() as advance,
        parallel.undisturbed(),
        without_warnings(),
    ):
        callback = _Callback(advance, tokens_per_step)
        trainer = GroupTrainer(
            plan,
            torch.tensor(list(groups)),
            log if leads else _no_log,
            sharded=sharded,
            whole=whole,
            model=model,
            args=_arguments(plan, folder, description),
            train_dataset=blocks,
            data_collator=collate,
            callbacks=[callback],
        )
        trainer.callback, callback.trainer = callback, trainer
        if resume:
            trainer.tokens_LG = torch.tensor(json.loads((resume / TOKENS).read_text()), dtype=torch.float64)
        trainer.remove_callback(PrinterCallback)
        model.train()
        begun = time.monotonic()
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        seconds = time.monotonic() - begun
    _release(trainer, plan.trackers)
    model.eval()
    return TrainingResult(seconds, callback.steps * tokens_per_step / max(seconds, 1e-9))


def _release(trainer: GroupTrainer, trackers: Sequence[str]) -> None:
    """End what a training leaves open: the next one in this process has its own memory and its own tracker run."""
    for name in trackers:
        finish = getattr(sys.modules.get(name), "finish", None)
        if finish is not None:
            finish()
    del trainer.callback.trainer, trainer.callback  # a cycle that would hold the optimizer's memory
    trainer.optimizer = trainer.lr_scheduler = None  # type: ignore[assignment]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
