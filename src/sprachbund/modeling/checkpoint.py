"""Checkpoints on disk, read and written one tensor at a time: models larger than memory pass through.

The safetensors format (https://huggingface.co/docs/safetensors) is read and written here with plain file operations
rather than through a memory map, so that nothing but the tensor asked for becomes resident.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprachbund.errors import InputError, brief, broken_download
from sprachbund.files import remove_left, temporary_for

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # the format's own limit
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack")
_CONVERT = "convert it with from_pretrained(...).save_pretrained(...), which writes safetensors"
_AGAIN = "fetch the file anew"
_FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
_NOT_FETCHED = ("*/*", "consolidated*", "adapter_*")
_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "sentencepiece")


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: its file, the first byte, and how to read it."""

    file: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """A folder of safetensors, read lazily.

    Everything that can be wrong is said when it is opened: raises InputError for a folder without config.json, weights,
    index or shards, weights in another format, a truncated or malformed file, and a tensor that is there twice.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers of the folder's weights; no tensor is read."""
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} is no model: it has no config.json; give the folder of a saved model")
        self.folder = folder
        files, promised = _files(folder)
        self._entries: dict[str, _Entry] = {}
        for file in files:
            for name, entry in _header(file).items():
                if name in self._entries:
                    raise InputError(
                        f"the tensor {name} is twice in {folder}, in {self._entries[name].file.name} and in "
                        f"{file.name}; keep one of them"
                    )
                self._entries[name] = entry
        for name, shard in promised.items():
            if name not in self._entries:
                raise InputError(f"{folder / shard} lacks the tensor {name}, which the index promises; fetch it anew")
        self.names = list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises KeyError where there is none of this name, as the other methods."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's data type."""
        return self._entries[name].dtype

    def read(self, name: str) -> Tensor:
        """Return a tensor in memory of its own."""
        return self.read_part(name)

    def read_part(self, name: str, *index: int | slice) -> Tensor:
        """Return `tensor[index]`, reading no other bytes of it: whole numbers, then at most one slice of step 1."""
        entry = self._entries[name]
        start, shape = entry.start, entry.shape
        for position, place in enumerate(index):
            stride = math.prod(shape[1:]) * entry.dtype.itemsize
            if isinstance(place, slice):
                if position != len(index) - 1 or place.step not in (None, 1):
                    raise ValueError(f"{index} is not one run of bytes; give whole numbers, then one slice of step 1")
                first, last, _ = place.indices(shape[0])
                start, shape = start + first * stride, (max(last - first, 0), *shape[1:])
            else:
                if not 0 <= place < shape[0]:
                    raise IndexError(f"{name} has no {place} along a dimension of {shape[0]}")
                start, shape = start + place * stride, shape[1:]
        return _read(_Entry(entry.file, start, shape, entry.dtype))


def _read(entry: _Entry) -> Tensor:
    buffer = torch.empty(math.prod(entry.shape) * entry.dtype.itemsize, dtype=torch.uint8)
    left = memoryview(buffer.numpy())  # type: ignore[arg-type]
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        while len(left):  # the system reads 2 GB at most at a time
            count = file.readinto(left)
            if not count:
                raise InputError(f"{entry.file} has become shorter while it was read; fetch it anew")
            left = left[count:]
    return buffer.view(entry.dtype).reshape(entry.shape)


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the weight files of a folder, and what its index promises: {tensor: file name}."""
    if (single := folder / "model.safetensors").is_file():
        return [single], {}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if next(folder.glob("model-*-of-*.safetensors"), None):
            raise InputError(f"{folder} has shards but no {index.name}, which says what is in them; fetch it as well")
        others = sorted(path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern))
        if others:
            raise InputError(f"the weights of {folder} are not safetensors (found {others[0]}); {_CONVERT}")
        raise InputError(
            f"{folder} has no weights: neither model.safetensors nor {index.name}; "
            f"fetch them, or, where they are of another format, {_CONVERT}"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        promised = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index} is no index of shards (a JSON object with a weight_map); fetch it anew") from None
    shards = sorted(set(promised.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"the shard {shard} is missing in {folder}, and the index names it; fetch it as well")
    return [folder / shard for shard in shards], promised


def _header(file: Path) -> dict[str, _Entry]:
    """Return the tensors of one safetensors file in the order of its bytes; raises InputError where it is damaged."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > _LARGEST_HEADER or length > size - 8:
            raise InputError(f"{file} is truncated or not safetensors: {size} bytes do not hold its header; {_AGAIN}")
        text = stream.read(length)
    try:
        tensors = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, file))
        tensors.pop("__metadata__", None)
        found = {name: _entry(file, name, value, 8 + length) for name, value in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not safetensors: its header cannot be read; {_AGAIN}") from None
    ordered = dict(sorted(found.items(), key=lambda item: item[1].start))
    end = 8 + length
    for name, entry in ordered.items():
        num_bytes = math.prod(entry.shape) * entry.dtype.itemsize
        if entry.start != end and num_bytes:
            raise InputError(f"{file} is not safetensors: {name} does not begin where the tensor before ends; {_AGAIN}")
        end += num_bytes
    if end != size:
        what = f"truncated: it has {size:,} of its {end:,} bytes" if size < end else "not safetensors: it has a tail"
        raise InputError(f"{file} is {what}; {_AGAIN}")
    return ordered


def _once(pairs: list[tuple[str, Any]], file: Path) -> dict[str, Any]:
    """Return a JSON object; Python's own reader would keep the last of two tensors of a name."""
    collected = dict(pairs)
    if len(collected) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in collected if names.count(name) > 1)
        raise InputError(f"the tensor {twice} is twice in {file}; {_AGAIN}")
    return collected


def _entry(file: Path, name: str, value: Mapping[str, Any], base: int) -> _Entry:
    dtype = DTYPES.get(value["dtype"])
    if dtype is None:
        raise InputError(
            f"{file}: {name} is of the data type {value['dtype']}, which is not supported; "
            "give a checkpoint in float32, bfloat16 or float16"
        )
    shape, (start, stop) = tuple(value["shape"]), value["data_offsets"]
    sizes = (*shape, start, stop)
    if not all(isinstance(number, int) and number >= 0 for number in sizes):
        raise ValueError(name)
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(name)
    return _Entry(file, base + start, shape, dtype)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: `make` gives its pieces in row-major order, which are written one after the other.

    Pieces may have any shape and no piece may be changed later; together they must have the tensor's elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        """The tensor's size on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(folder: Path, tensors: Sequence[LazyTensor], *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write tensors to a folder as transformers does: model.safetensors, or shards with their index.

    Only one piece of one tensor is in memory at a time. A tensor larger than `max_shard_bytes` has a shard for itself.
    Raises ValueError for a repeated name, and for pieces that do not add up to their tensor.
    """
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError("a tensor's name is repeated")
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    metadata = {
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "total_size": sum(tensor.num_bytes for tensor in tensors),
    }
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Sequence[LazyTensor], max_shard_bytes: int) -> list[list[LazyTensor]]:
    shards: list[list[LazyTensor]] = [[]]
    room = max_shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return shards


def _write_file(path: Path, tensors: Sequence[LazyTensor]) -> None:
    # Readers expect each tensor at a multiple of its element's size: the larger elements first.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end + tensor.num_bytes]
        header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        end += tensor.num_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            written = 0
            for piece in tensor.make():
                if piece.dtype != tensor.dtype:
                    raise ValueError(f"a piece of {tensor.name} is {piece.dtype}, the tensor {tensor.dtype}")
                data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                written += file.write(data.data)
                del piece, data  # else it would stay in memory while the next one is made
            if written != tensor.num_bytes:
                raise ValueError(f"the pieces of {tensor.name} have {written} bytes, the tensor {tensor.num_bytes}")


def refuse_existing(folder: Path) -> None:
    """Raise InputError where there is anything in the place of a folder to be made."""
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; give another --out, or remove it first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that is there whole or not at all.

    Yields a temporary sibling, which becomes `folder` at the end and is removed where anything goes wrong; one that a
    killed process has left goes first. Raises InputError for a folder that exists, and for one that cannot be made.
    """
    refuse_existing(folder)
    remove_left(folder)
    temporary = temporary_for(folder)
    made = [parent for parent in folder.parents if not parent.exists()]  # the innermost first
    try:
        try:
            temporary.mkdir(parents=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{folder} cannot be made, since a file is in its place; give another --out") from None
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not os.path.lexists(folder):
                raise
            raise InputError(f"{folder} has come to exist meanwhile; give another --out") from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def fetch(base: str, *, revision: str = "main") -> Path:
    """Return a local folder with a model: `base` itself, or the Hub's model of that id, fetched into the cache.

    Only safetensors, JSON and tokenizer files are fetched: no code and no pickled weights. Raises InputError where the
    model cannot be had.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise InputError(f"{base} is no folder; give the folder of a model, or its id on the Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client that the hub has

    try:
        return Path(
            snapshot_download(base, revision=revision, allow_patterns=[*_FETCHED], ignore_patterns=[*_NOT_FETCHED])
        )
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
            raise
        if (broken := broken_download(base, error)) is not None:
            raise broken from error
        raise InputError(
            f"the model {base!r} (revision {revision}) is no folder and cannot be fetched ({brief(error)}); "
            "give a folder, or a Hub id that you have access to"
        ) from error


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, chat templates included, from one model's folder into another."""
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name.startswith(_TOKENIZER) or path.suffix in (".model", ".tiktoken")):
            shutil.copyfile(path, target / path.name)
