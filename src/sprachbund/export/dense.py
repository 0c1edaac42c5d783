"""One group of a mixture as a plain dense model of the base architecture.

Kind `copy`: the group's expert is the FFN. Kind `shared`: the FFN for all tokens and the group's expert are one wider
FFN, in a hierarchy with the language's own expert beside them; dense layers get units of zeros, since all layers of an
architecture have one width. The group's keyed rows are added to the embedding and the output rows.
Shapes: E experts, D model width, F FFN width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import InputError
from sprachbund.export.expert_files import ExpertFiles, joined
from sprachbund.export.foldable import path_languages, stored_otherwise, why_not_dense
from sprachbund.export.source import Source
from sprachbund.export.targets import Verdict
from sprachbund.modeling.checkpoint import LazyTensor
from sprachbund.modeling.config import dense_config
from sprachbund.modeling.ffn_weights import from_expert, to_expert
from sprachbund.modeling.skeleton import skeleton


def dense_verdict(config: Any) -> Verdict:
    """Return the verdict on dense models of single groups, as the table gives it for native architectures."""
    if (reason := why_not_dense(config)) is not None:
        return Verdict("dense", exact=False, reasons=(reason,))
    what = "group" if config.language_width is None else "language"
    said = f"one {what} as a plain {config.dense_model_type} model"
    later = path_languages(config)
    without = [f"not for {', '.join(later)}, which a path beside the FFN serves"] if later else []
    return Verdict("dense", exact=True, caveats=(said, *without, *stored_otherwise(config)))


def specialist_config(source: Source) -> Any:
    """Return the dense configuration, its FFN widened by an expert where experts are of kind `shared`.

    Raises InputError where one FFN cannot hold both.
    """
    if reason := why_not_dense(source.config):
        raise InputError(reason)
    config = dense_config(source.config)
    config.architectures = [source.family.dense_causal_lm_class.__name__]
    if source.config.expert_kind == "shared":
        assert source.family.width is not None
        first = source.ffn(source.config.moe_layers[0])
        down = source.shape(f"{first}shared_expert.{source.family.down}.weight")
        width = down[0] if source.family.transposed else down[1]
        setattr(config, source.family.width, width + ExpertFiles(source, source.config.moe_layers[0]).width)
    return config


def specialist_tensors(source: Source, config: Any, *, group: int) -> list[LazyTensor]:
    """Return the tensors of the dense checkpoint of one group; `config` is its configuration.

    Raises InputError where the mixture's folder has tensors that do not fit that configuration, or lacks some.
    """
    model = skeleton(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    del model
    source = source.of_group(group)
    folded = _Folded(source, group)
    found: list[LazyTensor] = []
    done: set[int] = set()
    for name in source.names:
        layer = source.layer_of_ffn(name)
        if layer is None or not folded.changes(layer):
            found.append(source.as_it_is(name))
        elif layer not in done:
            done.add(layer)
            prefix = source.ffn(layer)
            found += [folded.tensor(layer, key, expected[key]) for key in expected if key.startswith(prefix)]
    for tensor in found:
        if expected.get(tensor.name) != tensor.shape:
            raise InputError(
                f"{source.folder}: the tensor {tensor.name} is {tensor.shape}, where the dense model has "
                f"{expected.get(tensor.name, 'none')}; give a mixture as this package saved it"
            )
    return found


class _Folded:
    """The FFNs of one group."""

    def __init__(self, source: Source, group: int) -> None:
        self.source, self.config, self.group = source, source.config, group
        self.shared = self.config.expert_kind == "shared"
        self.ffn = lru_cache(maxsize=1)(self._ffn)  # a layer's tensors are written one after the other

    def changes(self, layer: int) -> bool:
        """Is this layer's FFN another one than in the mixture's files?"""
        return self.shared or layer in self.config.moe_layers

    def tensor(self, layer: int, name: str, shape: tuple[int, ...]) -> LazyTensor:
        """Return one tensor of a layer's FFN, to be written."""
        prefix = self.source.ffn(layer)
        key = name.removeprefix(prefix)
        if (weight := self.source.family.of_activation(key)) is not None and layer in self.config.moe_layers:
            return self.source.as_it_is(f"{prefix}experts.act_fn.{weight}", under=name)
        bias = key == f"{self.source.family.down}.bias"
        summed = self.shared and layer in self.config.moe_layers and bias
        dtype = torch.float32 if summed else self._dtype(layer, weight=key.endswith(".weight"))
        return LazyTensor(name, shape, dtype, lambda: [self.ffn(layer)[key]])

    def _dtype(self, layer: int, *, weight: bool) -> torch.dtype:
        if layer not in self.config.moe_layers:
            return self.source.dtype(f"{self.source.ffn(layer)}{self.source.family.down}.weight")
        experts = ExpertFiles(self.source, layer)
        return experts.dtype if weight else experts.stored_dtype

    def _ffn(self, layer: int) -> dict[str, Tensor]:
        """Return the FFN of one layer, under the family's names."""
        family, prefix = self.source.family, self.source.ffn(layer)
        if layer not in self.config.moe_layers:
            dense = self._dense(prefix)
            return from_expert(family, joined(dense, self._zeros(dense)))
        experts = ExpertFiles(self.source, layer)
        expert = experts.expert(experts.route_of(self.group))
        if self.shared:
            expert = joined(self._dense(f"{prefix}shared_expert."), expert)
        return from_expert(family, expert)

    def _dense(self, prefix: str) -> dict[str, Tensor]:
        """Return a dense FFN's tensors as those of one expert."""

        def get(name: str) -> Tensor:
            if name.endswith(".bias") and f"{prefix}{name}" not in self.source:
                raise KeyError(name)
            return self.source.read(f"{prefix}{name}")

        return to_expert(self.source.family, get)

    def _zeros(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an expert of zeros for a dense layer, of the width of the others' experts."""
        down = like["down_proj"]
        width = ExpertFiles(self.source, self.config.moe_layers[0]).width
        up, rows = ("gate_up_proj", 2 * width) if "gate_up_proj" in like else ("up_proj", width)
        zeros = {up: down.new_zeros(rows, down.shape[0]), "down_proj": down.new_zeros(down.shape[0], width)}
        if f"{up}_bias" in like:
            zeros |= {f"{up}_bias": down.new_zeros(rows)}
        return zeros
