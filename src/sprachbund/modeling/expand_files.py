"""Dense to mixture on disk: tensor by tensor, so that a model larger than memory can be expanded.

The result is what `expand` gives in memory, saved: the same names, bytes and random weights.
Shapes: V vocabulary, L languages, D model width, F FFN width, E experts of a layer.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from sprachbund.errors import InputError
from sprachbund.modeling.base import load_config
from sprachbund.modeling.checkpoint import (
    Checkpoint,
    LazyTensor,
    copy_tokenizer,
    fetch,
    new_folder,
    refuse_existing,
    write_checkpoint,
)
from sprachbund.modeling.config import causal_lm_name
from sprachbund.modeling.expand import (
    By,
    Kind,
    RouterInit,
    Rows,
    dense_name_in_twin,
    expert_name,
    mixture_config,
    router_name,
)
from sprachbund.modeling.experts import Bank, banks, num_routes
from sprachbund.modeling.ffn import Family, family_of
from sprachbund.modeling.ffn_weights import ffn_shape, to_expert
from sprachbund.modeling.parameters import ParameterCounts, count_parameters
from sprachbund.modeling.remote import write_remote_code
from sprachbund.modeling.skeleton import skeleton
from sprachbund.modeling.start import fresh_tensor, scales_of, starting_router

# Buffers that older versions of transformers saved and newer ones compute; dropped where the model has none.
_OLD_BUFFERS = re.compile(
    r"rotary_emb\.inv_freq$|(^|\.)position_ids$|\.masked_bias$|\.causal_mask$|\.attn(\.attention)?\.bias$"
)
_ROWS = 1 << 16  # of the gate's table, written at a time


@dataclass(frozen=True)
class Expanded:
    """What was written: the mixture's configuration and its parameters."""

    config: Any
    parameters: ParameterCounts


def expand_files(
    base: str | Path,
    out: Path,
    *,
    moe_layers: Sequence[int] | Literal["all"] | None = None,
    groups: Mapping[str, int] | None = None,
    num_groups: int | None = None,
    expert_of_group: Mapping[int, Sequence[int]] | None = None,
    kind: Kind = "shared",
    by: By = "group",
    width: int | None = None,
    language_width: int | None = None,
    rank: int | None = None,
    rows: Rows | None = None,
    num_experts_per_tok: int = 2,
    router_gradient: Literal["detach", "through"] = "detach",
    router_init: RouterInit = "zero",
    routing: Literal["group", "prefix", "top_k"] = "top_k",
    seed: int = 0,
    revision: str = "main",
    max_shard_bytes: int = 5_000_000_000,
    finish: Callable[[Path], None] | None = None,
) -> Expanded:
    """Write the mixture twin of a dense model to the new folder `out`; arguments as those of `expand`.

    `base` is a folder of safetensors or a Hub id, which is fetched first. Memory stays below the largest tensor and one
    layer's experts: nothing else is read at once. The language gate's table is uniform. `finish` is called with the
    written folder before it is moved to `out`.

    Raises InputError, before anything is written, where `out` exists, the base cannot be had, is quantised, truncated,
    of an unsupported family or not the model that its configuration describes, and as `expand` does.
    """
    refuse_existing(out)
    folder = fetch(str(base), revision=revision)
    dense_config = load_config(folder)
    family = family_of(dense_config.model_type, dense_config)
    config = mixture_config(
        dense_config,
        moe_layers=range(dense_config.num_hidden_layers) if moe_layers == "all" else moe_layers,
        groups=groups,
        num_groups=num_groups,
        expert_of_group=expert_of_group,
        kind=kind,
        by=by,
        width=width,
        language_width=language_width,
        rank=rank,
        rows=rows,
        num_experts_per_tok=num_experts_per_tok,
        router_gradient=router_gradient,
        routing=routing,
    )
    dense = open_dense(folder, skeleton(dense_config))
    tensors = list(_tensors(dense, family, config, router_init=router_init, seed=seed))
    config.architectures = [causal_lm_name(dense_config.model_type)]
    if config.dtype is None:  # else the gate's table, in float32, could decide the type that the model is loaded in
        config.dtype = dense.dtype
    counts = count_parameters(skeleton(config))
    with new_folder(out) as unfinished:
        write_checkpoint(unfinished, tensors, max_shard_bytes=max_shard_bytes)
        write_remote_code(unfinished, config)
        config.save_pretrained(unfinished)
        _write_generation_config(folder, unfinished, dense.model)
        copy_tokenizer(folder, unfinished)
        if finish is not None:
            finish(unfinished)
    return Expanded(config, counts)


@dataclass(frozen=True)
class DenseFiles:
    """A dense checkpoint that holds what its model needs: `stored` is {the model's name: the name on disk}."""

    checkpoint: Checkpoint
    model: Any
    stored: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor by the model's name."""
        return self.checkpoint.shape(self.stored[name])

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the data type of a tensor by the model's name."""
        return self.checkpoint.dtype(self.stored[name])

    def read(self, name: str) -> Tensor:
        """Return a tensor by the model's name; raises KeyError where there is none."""
        return self.checkpoint.read(self.stored[name])

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the largest tensor."""
        return self.dtype_of(max(self.stored, key=lambda name: math.prod(self.shape(name))))


def open_dense(folder: Path, model: Any) -> DenseFiles:
    """Open a checkpoint as that of `model`, a dense causal model on the meta device.

    Names are those that transformers would load: older ones are renamed by its own rules, and a checkpoint of the inner
    model gets its prefix. Buffers that older versions saved are dropped. Raises InputError, naming the tensor, for one
    that is missing, unexpected, of another shape or quantised.
    """
    checkpoint = Checkpoint(folder)
    state = model.state_dict()
    rename = _renaming(model, state)
    stored: dict[str, str] = {}
    for name in checkpoint.names:
        known = rename(name)
        if known not in state:
            _refuse_unexpected(name, model, folder)
            continue
        if known in stored:
            raise InputError(f"{folder} has {known} twice, as {stored[known]} and as {name}; keep one of them")
        stored[known] = name
        _check_tensor(checkpoint, name, state[known], model, folder)
    _refuse_missing(stored, model, folder)
    return DenseFiles(checkpoint, model, stored)


def _renaming(model: Any, state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Return the function from a name on disk to the model's, as in transformers' own loading."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = model.base_model_prefix

    def rename(name: str) -> str:
        known, converter = rename_source_key(name, renamings, converters, prefix, state)
        if known not in state or converter is not None:
            known, _ = rename_source_key(name, [], [], prefix, state)
        return str(known)

    return rename


def _refuse_unexpected(name: str, model: Any, folder: Path) -> None:
    """Raise InputError for a tensor that the model has no place for, unless it is one that is computed anew."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    if _OLD_BUFFERS.search(name) or any(re.search(pattern, name) for pattern in patterns):
        return
    raise InputError(
        f"{folder} has the tensor {name}, which a {model.config.model_type} model of its configuration has not; "
        "give a checkpoint that is that of its config.json"
    )


def _refuse_missing(stored: Mapping[str, str], model: Any, folder: Path) -> None:
    """Raise InputError for a tensor that is not there, unless it is tied to one that is."""
    tied: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        tied.setdefault(source, {source}).add(target)
    present = {name for same in tied.values() if same & set(stored) for name in same}
    patterns = model._keys_to_ignore_on_load_missing or ()
    for name in model.state_dict():
        if name in stored or name in present or any(re.search(pattern, name) for pattern in patterns):
            continue
        raise InputError(f"{folder} lacks the tensor {name}, which its model needs; give a complete checkpoint")


def _check_tensor(checkpoint: Checkpoint, name: str, expected: Tensor, model: Any, folder: Path) -> None:
    shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
    if shape != tuple(expected.shape):
        raise InputError(
            f"the tensor {name} of {folder} has the shape {shape}, and a {model.config.model_type} model of its "
            f"configuration {tuple(expected.shape)}; give a checkpoint that is that of its config.json"
        )
    if expected.is_floating_point() and (not dtype.is_floating_point or dtype.itemsize < 2):
        raise InputError(
            f"the tensor {name} of {folder} is {str(dtype).removeprefix('torch.')}: the base is quantised, which "
            "cannot be expanded; give the unquantised checkpoint"
        )


def _tensors(
    dense: DenseFiles, family: Family, config: Any, *, router_init: RouterInit, seed: int
) -> Iterator[LazyTensor]:
    """Return every tensor of the mixture: those that the dense model keeps, experts, routers and the gate's table."""
    for name in dense.stored:
        kept = dense_name_in_twin(name, family, config)
        if kept is not None:
            yield LazyTensor(kept, dense.shape(name), dense.dtype_of(name), partial(_whole, dense, name))
    base = dense.model.base_model_prefix
    for layer in config.moe_layers:
        prefix = f"{base}.{family.layers}.{layer}.{family.ffn}."
        yield from _layer_tensors(dense, family, config, layer=layer, prefix=prefix, router_init=router_init, seed=seed)
    yield from _row_tensors(dense, config)
    table = (config.vocab_size, len(config.languages))
    yield LazyTensor(f"{base}.language_gate.log_prob", table, torch.float32, partial(_zeros, *table))


def _row_tensors(dense: DenseFiles, config: Any) -> Iterator[LazyTensor]:
    """Return the tables of keyed rows, (R, V, D), all zeros."""
    for name, tensor in skeleton(config).state_dict().items() if config.row_of_group else ():
        tied = name.endswith(".delta") and name.startswith("lm_head.") and config.tie_word_embeddings
        if name.endswith(".delta") and not tied:
            num_tables, num_rows, width = tensor.shape
            make = partial(_zeros, num_tables * num_rows, width)
            yield LazyTensor(name, tuple(tensor.shape), dense.dtype, make)


def _whole(dense: DenseFiles, name: str) -> Iterable[Tensor]:
    return [dense.read(name)]


def _zeros(num_rows: int, num_columns: int) -> Iterator[Tensor]:
    zeros = torch.zeros(min(num_rows, _ROWS), num_columns)
    for start in range(0, num_rows, _ROWS):
        yield zeros[: num_rows - start]


def _layer_tensors(
    dense: DenseFiles,
    family: Family,
    config: Any,
    *,
    layer: int,
    prefix: str,
    router_init: RouterInit,
    seed: int,
) -> Iterator[LazyTensor]:
    """Return the experts, (E, ...), and the router, (E, D), of one mixture layer, whose FFN's names begin by `prefix`.

    Raises InputError for an FFN that experts cannot be made of.
    """
    own = {name.removeprefix(prefix): name for name in dense.stored if name.startswith(prefix)}
    shape = ffn_shape(family, {below: dense.shape(name) for below, name in own.items()})
    dtype = dense.dtype_of(own[f"{family.down}.weight"])

    def dense_ffn() -> dict[str, Tensor]:
        return to_expert(family, lambda below: dense.read(own[below]))

    def experts(bank: Bank, key: str) -> Iterator[Tensor]:
        if config.expert_kind == "copy":
            tensor = dense_ffn()[key]
            yield from (tensor for _ in range(bank.num_experts))
            return
        scales = scales_of(dense_ffn())
        for number in range(bank.num_experts):
            # not kept in a variable: the last expert would stay in memory while the next is made
            name = expert_name(layer, number, bank.name)
            yield fresh_tensor(key, bank.shape, scales, name=name, seed=seed).to(dtype)

    for bank in banks(config, shape, layer=layer):
        for key, one in bank.shape.tensors().items():
            whole = (bank.num_experts, *one)
            yield LazyTensor(f"{prefix}{bank.name}.{key}", whole, dtype, partial(experts, bank, key))
        if config.expert_kind == "shared":  # copies have taken over the FFN's own, adapters have another
            for below, name in own.items():
                if (weight := family.of_activation(below)) is not None:
                    kept = f"{prefix}{bank.name}.act_fn.{weight}"
                    yield LazyTensor(kept, dense.shape(name), dense.dtype_of(name), partial(_whole, dense, name))
    router = (num_routes(config, layer=layer), shape.hidden_size)
    draw = partial(starting_router, router_name(layer), router, init=router_init, seed=seed, dtype=dtype)
    yield LazyTensor(f"{prefix}gate.weight", router, dtype, lambda: [draw()])


def _write_generation_config(source: Path, target: Path, model: Any) -> None:
    file = source / "generation_config.json"
    if file.is_file():
        (target / file.name).write_bytes(file.read_bytes())
    else:
        model.generation_config.save_pretrained(target)
