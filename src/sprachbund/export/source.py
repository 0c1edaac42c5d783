"""A mixture on disk, as exports read it: its configuration, and its tensors one at a time."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.checksums import check_model
from sprachbund.errors import InputError
from sprachbund.modeling.base import load_config
from sprachbund.modeling.checkpoint import Checkpoint, LazyTensor, copy_tokenizer
from sprachbund.modeling.ffn import Family, family_of

ROWS_AT_ONCE = 1 << 14


def read_mixture_config(folder: Path, *, purpose: str = "export") -> Any:
    """Return the configuration of a mixture in a folder, for a purpose, which is a verb.

    Raises InputError where there is no configuration, or another model's.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is no model: it has no config.json; give a run, or the folder of a mixture")
    config = load_config(folder)
    if not hasattr(config, "dense_model_type"):
        raise InputError(
            f"{folder} is a {config.model_type!r} model and no mixture of this package, so there is nothing to "
            f"{purpose}; give a run, or the folder of a mixture"
        )
    return config


class Source:
    """A mixture in a folder. Raises InputError, as `Checkpoint`, for weights that are damaged or lack a tensor, and
    DamagedError for a run's that are not those that it wrote.

    Where the mixture has keyed rows, `as_it_is` and `changed` add those of one table to the rows that they belong to.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        """Open the folder's weights; no tensor is read."""
        self.folder = folder
        self.config = config
        self.family: Family = family_of(config.dense_model_type)
        check_model(folder)
        self.checkpoint = Checkpoint(folder)
        self.base_prefix = str(self.family.dense_causal_lm_class.base_model_prefix)
        layers = re.escape(f"{self.base_prefix}.{self.family.layers}.")
        self._ffn = re.compile(rf"{layers}(\d+)\.{re.escape(self.family.ffn)}\.")
        self._table = 0  # the only one where all groups share it

    def of_group(self, group: int) -> Source:
        """Return the same files with the keyed rows of one group."""
        found = copy.copy(self)
        found._table = self.config.row_of_group[group] if self.config.row_of_group else 0
        return found

    def ffn(self, layer: int) -> str:
        """Return the prefix of the names of a layer's FFN, with a dot at its end."""
        return f"{self.base_prefix}.{self.family.layers}.{layer}.{self.family.ffn}."

    def layer_of_ffn(self, name: str) -> int | None:
        """Return the layer whose FFN a tensor belongs to, None for every other tensor."""
        found = self._ffn.match(name)
        return int(found[1]) if found else None

    @property
    def names(self) -> list[str]:
        """The tensors that an export keeps, in the order of the files: without the gate's tables, the keyed rows and
        the paths of languages that came later.
        """
        others = (f"{self.base_prefix}.language_gate.", f"{self.base_prefix}.language_paths.")
        return [name for name in self.checkpoint.names if not name.startswith(others) and not self._is_delta(name)]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        self._require(name)
        return self.checkpoint.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's data type."""
        self._require(name)
        return self.checkpoint.dtype(name)

    def read(self, name: str, *index: int | slice) -> Tensor:
        """Return a tensor, or its part at whole numbers and at most one slice along the leading dimensions."""
        self._require(name)
        return self.checkpoint.read_part(name, *index)

    def as_it_is(self, name: str, *, under: str | None = None) -> LazyTensor:
        """Return a tensor to be written unchanged, with another name where one is given."""
        if self._delta(name) is not None:  # in float32, since the sum of two numbers of half precision is none
            return self.changed(name, lambda tensor: tensor, under=under, dtype=torch.float32)
        return LazyTensor(under or name, self.shape(name), self.dtype(name), lambda: [self.read(name)])

    def changed(
        self,
        name: str,
        change: Callable[[Tensor], Tensor],
        *,
        under: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LazyTensor:
        """Return a tensor to be written after an elementwise change, a few rows at a time."""
        rows, delta = self.shape(name)[0], self._delta(name)

        def pieces() -> Iterable[Tensor]:
            for start in range(0, rows, ROWS_AT_ONCE):
                part = slice(start, min(start + ROWS_AT_ONCE, rows))
                tensor = self.read(name, part)
                yield change(tensor if delta is None else tensor.float() + self.read(delta, self._table, part).float())

        return LazyTensor(under or name, self.shape(name), dtype or self.dtype(name), pieces)

    def _is_delta(self, name: str) -> bool:
        return bool(self.config.row_of_group) and name.endswith(".delta")

    def _delta(self, name: str) -> str | None:
        """Return the name of the keyed rows that are added to a tensor's rows; None where there are none."""
        delta = f"{name.removesuffix('weight')}delta"
        return delta if name.endswith(".weight") and self._is_delta(delta) and delta in self else None

    def _require(self, name: str) -> None:
        if name not in self.checkpoint:
            raise InputError(f"{self.folder} lacks the tensor {name}, which its configuration promises; give it whole")


def zeros(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    """Return a tensor of zeros to be written."""
    return LazyTensor(name, shape, dtype, lambda: [torch.zeros(shape, dtype=dtype)])


def take_along(source: Path, target: Path) -> None:
    """Copy the generation settings and the tokenizer of a model's folder into another."""
    copy_tokenizer(source, target)
    if (file := source / "generation_config.json").is_file():
        shutil.copyfile(file, target / file.name)
