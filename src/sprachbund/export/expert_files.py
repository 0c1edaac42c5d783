"""What a mixture layer's experts compute, read from a mixture's files as plain FFNs.

In a hierarchy a group of the configuration has two experts, that of its relatives and its own: side by side they are
one. Low-rank experts have two factors for each weight, which are multiplied out.
Shapes: D model width, F expert width, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sprachbund.export.source import Source
from sprachbund.modeling.tables import layer_table

_BIASES = ("gate_up_proj_bias", "up_proj_bias", "down_proj_bias")


class ExpertFiles:
    """The experts of one mixture layer, by the router's answer: an expert's number, in a hierarchy a group's."""

    def __init__(self, source: Source, layer: int) -> None:
        """Take a layer; nothing is read. Raises InputError where the files lack its experts."""
        self.source, self.config = source, source.config
        self.prefix = source.ffn(layer)
        self.table = layer_table(self.config, layer)
        self.hierarchy = self.config.language_width is not None
        self.banks = ("experts", "language_experts") if self.hierarchy else ("experts",)
        self.low_rank = self.config.expert_rank is not None
        factor = "_a" if self.low_rank else ""
        self.widths = [source.shape(f"{self.prefix}{bank}.down_proj{factor}")[2] for bank in self.banks]
        self.stored_dtype = source.dtype(f"{self.prefix}experts.down_proj{factor}")
        # the product of two numbers of half precision is none
        self.dtype = torch.float32 if self.low_rank else self.stored_dtype

    @property
    def width(self) -> int:
        """The units of all that one answer stands for."""
        return sum(self.widths)

    def route_of(self, group: int) -> int:
        """Return the router's answer that stands for what a group has."""
        return group if self.hierarchy else self.table[group]

    def part(self, route: int, part: str) -> Tensor:
        """Return one projection of a gated FFN, `gate` or `up`, (F, D), or `down`, (D, F)."""
        pieces = [self._part(bank, route, part, width) for bank, width in zip(self.banks, self.widths, strict=True)]
        return torch.cat(pieces, dim=1 if part == "down" else 0)

    def expert(self, route: int) -> dict[str, Tensor]:
        """Return the tensors of one FFN, in the layout of an expert without factors."""
        found = self._expert("experts", route)
        return joined(found, self._expert("language_experts", route)) if self.hierarchy else found

    def _number(self, bank: str, route: int) -> int:
        return self.table[route] if self.hierarchy and bank == "experts" else route

    def _part(self, bank: str, route: int, part: str, width: int) -> Tensor:
        number = self._number(bank, route)
        if part == "down":
            return self._weight(bank, number, "down_proj")
        half = slice(0, width) if part == "gate" else slice(width, 2 * width)
        return self._weight(bank, number, "gate_up_proj", half)

    def _expert(self, bank: str, route: int) -> dict[str, Tensor]:
        number, prefix = self._number(bank, route), f"{self.prefix}{bank}."
        factor = "_a" if self.low_rank else ""
        up = "gate_up_proj" if f"{prefix}gate_up_proj{factor}" in self.source else "up_proj"
        found = {name: self._weight(bank, number, name) for name in (up, "down_proj")}
        biases = [name for name in _BIASES if f"{prefix}{name}" in self.source]
        return found | {name: self.source.read(f"{prefix}{name}", number) for name in biases}

    def _weight(self, bank: str, number: int, name: str, *rows: slice) -> Tensor:
        """Return a weight of one expert, or some of its rows; of factors their product, in float32."""
        full = f"{self.prefix}{bank}.{name}"
        if not self.low_rank:
            return self.source.read(full, number, *rows)
        return self.source.read(f"{full}_b", number, *rows).float() @ self.source.read(f"{full}_a", number).float()


def joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the FFN that is the sum of two, given and returned as experts: their units side by side.

    The biases of the last projections add up; in float32, since the sum of two numbers of half precision is none.
    """
    both: dict[str, Tensor] = {}
    for name, tensor in first.items():
        other = second.get(name)
        if name == "down_proj_bias":
            both[name] = tensor if other is None else tensor.float() + other.float()
        elif other is None:
            raise KeyError(name)
        elif name == "down_proj":
            both[name] = torch.cat([tensor, other], dim=1)
        elif name.startswith("gate_up_proj"):
            halves = zip(tensor.chunk(2), other.chunk(2), strict=True)
            both[name] = torch.cat([part for half in halves for part in half])
        else:
            both[name] = torch.cat([tensor, other])
    return both
