"""Text that nothing is said about, read by the old model and by the languages' paths at once: path_gate = "mixture".

What the mixture is, and what old text can lose by it, is said in path_posterior.py. Here the sides are run: each has
its own key-value cache, kept on that of the call, with the weights so far; a side that has been dropped in every
sequence is run no more.

Shapes: B sequences, T tokens of a call, t of a part of it, P paths, S = 1 + P sides (the old model is 0), V vocabulary.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from sprachbund.modeling.cache import cache_of_call, has_sides, keeper, last_note, note
from sprachbund.modeling.language_path import path_specs
from sprachbund.modeling.path_posterior import evidence, log_prior, mixed_logits, posterior
from sprachbund.modeling.routing import RoutingContext

Plain = Callable[[dict[str, Any], RoutingContext], Any]  # a forward pass under one routing, with its arguments

OLD = 0  # the side that is the model without its paths; the i-th path is side 1 + i
FIRST = 16  # tokens after which most paths have been dropped; each further part doubles what was read
WHOLE = 32  # tokens of a call that is not read in parts

_WEIGHTS = "log weights of the sides"
_LOGITS = "last logits of side {}"
_MASKS = ("attention_mask", "token_mask")  # of all tokens, also the cached
_OF_TOKENS = ("input_ids", "position_ids", "cache_position")  # of the tokens of the call
_EXTRAS = ("output_hidden_states", "output_attentions")


@dataclass(frozen=True)
class Mixed:
    """A forward pass of the mixture: the dense family's `outputs`, of the first side that counted, with the mixture's
    logits and loss; the `context`, with its group and path ids; and each path's weight, `path_weights`, (B, T, P).
    """

    outputs: Any
    context: RoutingContext
    path_weights: Tensor


def is_mixed(config: Any, asked: RoutingContext, arguments: Mapping[str, Any]) -> bool:
    """Is a forward pass one of the mixture?

    Raises ValueError where it is not, but goes on with a cache of the mixture.
    """
    label_free = asked.given is None and (asked.routing or config.routing) in ("prefix", "top_k")
    if label_free and (asked.path_gate or config.path_gate) == "mixture":
        return any(not spec.extension for spec in path_specs(config))
    if has_sides(arguments.get("past_key_values")):
        raise ValueError("this cache was begun under path_gate = 'mixture'; use one routing and gate for a whole text")
    return False


def mixture(model: Any, plain: Plain, asked: RoutingContext, arguments: dict[str, Any]) -> Mixed:
    """Run a forward pass of the mixture; `plain` runs one side with the arguments of the dense family's forward.

    The first side that counts, the old model as a rule, reads the whole call at once, as it does without paths. The
    others read in parts, and no further than they count: old text costs little more than the old model. Where little
    is wanted of a long prompt's logits, it is read in halves, so that those of the other half are never made.

    Raises ValueError without input_ids, or for a cache that does not know what the mixture made of its tokens.
    """
    call = _Call(model.config, plain, asked, arguments)
    if len(call.alive) == 1:
        call.forget_logits()
        outputs, context = call.read(call.alive[0], 0, call.length)
        log_weights_BTS = call.start_BS.unsqueeze(1).expand(-1, call.length, -1)
        return call.result(outputs, context, log_weights_BTS)
    if call.is_long():
        return _in_halves(model, plain, asked, call)
    labels, keep = arguments.pop("labels", None), arguments.pop("logits_to_keep", 0)
    outputs, context, log_weights_BTS, sides = call.read_sides(keep)
    call.keep_logits(log_weights_BTS, sides, keep if isinstance(keep, int) and keep else min(call.length, WHOLE))
    start = max(call.length - keep, 0) if isinstance(keep, int) and keep else 0
    wanted = {side: logits_BTV[:, start:] for side, logits_BTV in sides.items()}
    logits_BTV = mixed_logits(log_weights_BTS[:, start:], wanted)
    outputs["logits"] = logits_BTV if isinstance(keep, int) else logits_BTV[:, keep]
    if labels is not None:
        more = {name: arguments[name] for name in ("num_items_in_batch", "shift_labels") if name in arguments}
        outputs["loss"] = model.loss_function(
            logits=outputs.logits, labels=labels, vocab_size=model.config.vocab_size, **more
        )
    return call.result(outputs, context, log_weights_BTS)


def _in_halves(model: Any, plain: Plain, asked: RoutingContext, call: "_Call") -> Mixed:
    half = call.length // 2
    head = mixture(model, plain, asked, {**_part(call.arguments, 0, half), "logits_to_keep": 1})
    tail = mixture(model, plain, asked, _part(call.arguments, half, call.length))
    for name in ("group_ids", "path_ids"):
        parts = [getattr(found.context, name) for found in (head, tail)]
        setattr(tail.context, name, None if parts[0] is None else torch.cat(parts, dim=1))
    return Mixed(tail.outputs, tail.context, torch.cat([head.path_weights, tail.path_weights], dim=1))


def _part(arguments: Mapping[str, Any], start: int, end: int) -> dict[str, Any]:
    """Return a call's arguments for some of its tokens."""
    part = dict(arguments)
    after = part["input_ids"].shape[1] - end
    for name in _MASKS:
        if part.get(name) is not None and after:
            part[name] = part[name][:, :-after]
    for name in _OF_TOKENS:
        if part.get(name) is not None:
            part[name] = part[name][..., start:end].contiguous()
    return part


def _alive(log_weights_BXS: Tensor) -> list[int]:
    """Return the sides that have a weight in any sequence (and at any of the places, where there are some)."""
    found_S = (log_weights_BXS > -math.inf).flatten(0, -2).any(0)
    return found_S.nonzero().flatten().tolist()


class _Call:
    """One forward pass of the mixture: which sides read its tokens, and with which cache."""

    def __init__(self, config: Any, plain: Plain, asked: RoutingContext, arguments: dict[str, Any]) -> None:
        tokens = arguments.get("input_ids")
        if tokens is None:
            raise ValueError("path_gate = 'mixture' reads tokens: give input_ids, or group_ids, or path_gate = 'off'")
        self.config, self.plain, self.asked, self.arguments = config, plain, asked, arguments
        self.tokens: Tensor = tokens
        self.length = int(tokens.shape[1])
        self.cache = cache_of_call(arguments, config)
        self.start_BS = self._start()
        self.alive = _alive(self.start_BS)
        self.sides: dict[int, Any] = {}
        if self.cache is not None:
            sides = keeper(self.cache).sides
            if not sides:
                sides.update({side: copy.deepcopy(self.cache) for side in self.alive if side != OLD})
            self.sides = {OLD: self.cache, **sides}

    def _start(self) -> Tensor:
        """Return the log weights before this call, (B, S)."""
        past_BS = last_note(self.cache, _WEIGHTS)
        if past_BS is not None:
            return past_BS
        if self.cache is not None and int(self.cache.get_seq_length()) > 0:
            raise ValueError(
                "path_gate = 'mixture' was given a cache whose tokens it has not read; use one gate for a whole text"
            )
        device = self.tokens.device
        precise = torch.float32 if device.type == "mps" else torch.float64
        return torch.tensor(log_prior(self.config), dtype=precise, device=device).expand(len(self.tokens), -1)

    def read(self, side: int, start: int, end: int, **more: Any) -> tuple[Any, RoutingContext]:
        """Run one side on some of the tokens; return the dense family's outputs, and the routing."""
        part = {**_part(self.arguments, start, end), **more}
        mask, wants = part.pop("token_mask", None), self.asked.wants_logits
        if side == OLD:
            context = RoutingContext(self.asked.routing, None, mask, wants, path_gate="off")
        else:
            number = self.config.num_groups + side - 1
            ids_B = torch.full((len(self.tokens),), number, device=self.tokens.device)
            context = RoutingContext("group", ids_B, mask, wants)
        if side in self.sides:
            part["past_key_values"] = self.sides[side]
        return self.plain(part, context), context

    def posterior(self, log_weights_BS: Tensor, evidence_BtS: Tensor) -> Tensor:
        """Return the log weights after each token, (B, t, S), as the configuration says."""
        commit, keep_old = float(self.config.path_commit), bool(self.config.path_keep_old)
        return posterior(log_weights_BS, evidence_BtS, commit=commit, keep_old=keep_old)

    def read_sides(self, keep: Any) -> tuple[Any, RoutingContext, Tensor, dict[int, Tensor]]:
        """Run all sides as far as they count; return the outputs and the routing of the first one, the log weights,
        (B, T, S), and the logits of each, (B, t, V).
        """
        parts = [(0, self.length)]
        if self.length > WHOLE and self._can_be_cut() and not (isinstance(keep, int) and keep > 1):
            ends = [FIRST << number for number in range(self.length.bit_length()) if FIRST << number < self.length]
            parts = list(zip([0, *ends], [*ends, self.length], strict=True))
            if self.cache is None:  # what is read in parts needs a cache, for the time of the call
                self.sides = {side: DynamicCache(config=self.config) for side in self.alive[1:]}
        first = self.alive[0]
        outputs, context = self.read(first, 0, self.length)
        before = {side: self._logits_before(side) for side in self.alive}
        read: dict[int, list[Tensor]] = {side: [] for side in self.alive[1:]}
        counts_BT = self._counts()
        log_weights = [self.start_BS.unsqueeze(1)]
        for start, end in parts:
            columns = [self.start_BS.new_zeros(len(self.tokens), end - start)] * self.start_BS.shape[1]
            alive = _alive(log_weights[-1][:, -1])
            for side in alive:
                if side == first:
                    logits_BtV = outputs.logits[:, start:end]
                else:
                    logits_BtV = self.read(side, start, end, use_cache=side in self.sides)[0].logits
                    read[side].append(logits_BtV)
                if len(alive) > 1:
                    columns[side] = evidence(before[side], logits_BtV, self.tokens[:, start:end]).to(columns[0].dtype)
                before[side] = logits_BtV[:, -1]
            evidence_BtS = torch.where(counts_BT[:, start:end, None], torch.stack(columns, dim=-1), 0.0)
            log_weights.append(self.posterior(log_weights[-1][:, -1], evidence_BtS))
        logits = {side: chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=1) for side, chunks in read.items()}
        return outputs, context, torch.cat(log_weights[1:], dim=1), {first: outputs.logits, **logits}

    def _can_be_cut(self) -> bool:
        """Can a call be read in parts, by arguments that are of its tokens?"""
        masks = [self.arguments.get(name) for name in _MASKS]
        known = (*_MASKS, *_OF_TOKENS, "logits_to_keep")
        others = [value for name, value in self.arguments.items() if name not in known]
        plain = all(mask is None or (isinstance(mask, Tensor) and mask.dim() == 2) for mask in masks)
        return plain and not torch.is_grad_enabled() and not any(isinstance(value, Tensor) for value in others)

    def is_long(self) -> bool:
        """Are few logits wanted of many tokens, and nothing else?"""
        keep = self.arguments.get("logits_to_keep")
        extras = [self.arguments.get(name) or getattr(self.config, name, False) for name in _EXTRAS]
        few = isinstance(keep, int) and 0 < keep <= self.length // 2 and self.arguments.get("labels") is None
        cached = self.cache is not None and self.length > WHOLE
        return few and cached and not self.asked.wants_logits and not any(extras) and self._can_be_cut()

    def _counts(self) -> Tensor:
        """Return whether each token is evidence, (B, T): neither it nor the one before it is padding."""
        mask = self.arguments.get("token_mask")
        mask = self.arguments.get("attention_mask") if mask is None else mask
        if not isinstance(mask, Tensor) or mask.dim() != 2:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        real = F.pad(mask.bool(), (1, 0), value=True)
        return real[:, -self.length :] & real[:, -self.length - 1 : -1]

    def _logits_before(self, side: int) -> Tensor | None:
        """Return a side's logits at the last cached token, (B, V); None at the start of a text."""
        found = last_note(self.cache, _LOGITS.format(side))
        if found is None and last_note(self.cache, _WEIGHTS) is not None:
            raise ValueError(
                "this cache was cropped by more tokens than its last call gave logits for, and path_gate = 'mixture' "
                "needs them; begin the text again"
            )
        return found

    def keep_logits(self, log_weights_BTS: Tensor, sides: Mapping[int, Tensor], how_many: int) -> None:
        """Keep the last logits of the sides, which tell how likely the next call's first token is.

        Of several tokens, should some be taken back. One that was not read to the end is needed no more.
        """
        self.forget_logits()
        if self.cache is not None and len(_alive(log_weights_BTS[:, -how_many:])) > 1:
            for side, logits_BtV in sides.items():
                if logits_BtV.shape[1] == self.length:
                    note(self.cache, _LOGITS.format(side), logits_BtV[:, -how_many:].clone())

    def forget_logits(self) -> None:
        """Forget the logits of the call before."""
        if self.cache is not None:
            for side in range(self.start_BS.shape[1]):
                self.cache.notes.pop(_LOGITS.format(side), None)

    def result(self, outputs: Any, context: RoutingContext, log_weights_BTS: Tensor) -> Mixed:
        """Note the weights, and say which side each position belongs to: the path that has more than half of it."""
        if self.cache is not None:
            note(self.cache, _WEIGHTS, log_weights_BTS)
            outputs["past_key_values"] = self.cache
        weights_BTP = log_weights_BTS[..., 1:].exp().float()
        most_BT, number_BT = weights_BTP.max(-1)
        path_ids_BT = torch.where(most_BT > 0.5, number_BT, -1)
        ids_BT = context.group_ids
        if (self.asked.routing or self.config.routing) == "top_k":
            context.group_ids = None
        elif ids_BT is not None:
            context.group_ids = torch.where(path_ids_BT < 0, ids_BT, path_ids_BT + self.config.num_groups)
        context.path_ids = path_ids_BT
        return Mixed(outputs, context, weights_BTP)
