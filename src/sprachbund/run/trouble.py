"""What the machine refuses, disk or memory, in one sentence that says what to do about it. No torch here."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from sprachbund.corpora.packing import cache_folder
from sprachbund.errors import InputError, SprachbundError, brief, out_of_memory

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM)
_TRAINING = "lower train.micro_batch_tokens or set train.gradient_checkpointing: true"
_TORCH_WRITES = ("inline_container", "PytorchStreamWriter", "iostream error")
# By stage: what is on the device at once, in the words of the recipe or of the command line.
_LOWER = {
    "base": _TRAINING,
    "dense": _TRAINING,
    "train": _TRAINING,
    "probe": "lower train.micro_batch_tokens, probe.layers or probe.sketch_size",
    "evaluate": "lower evaluate.batch_tokens",
}
_LOWER_ADAPTING = {"train": "lower --tokens-per-step, or give a smaller --path"}


def trouble(error: BaseException, folder: Path | None, stage: str | None = None) -> SprachbundError | None:
    """Return the sentence for what disk or memory refused in the work on a folder; None for any other error."""
    if isinstance(error, SprachbundError):
        return None
    if out_of_memory(error):
        return memory_error(error, folder, stage)
    if (refused := from_disk(error)) is not None:
        return disk_error(refused, folder)
    return None


def memory_error(error: BaseException, folder: Path | None, stage: str | None) -> SprachbundError:
    """Return the sentence for memory that is too small: which stage, and what to lower."""
    if folder is None or stage is None:
        advice = "give it a smaller model or batch, or a machine with more memory"
    elif (folder / "recipe.yaml").is_file():
        lower = _LOWER.get(stage, "give it less text at once, or a machine with more memory")
        advice = f"{lower}, and run the command again" + (" with --update" if stage in _LOWER else "")
    else:
        lower = _LOWER_ADAPTING.get(stage, "give --protect and --language shorter texts")
        advice = f"{lower}, and run the command again with --update"
    said = brief(error)[:160].rstrip(". ")
    where = f" in the stage {stage}" if stage is not None else ""
    return SprachbundError(f"out of memory{where}{f' ({said})' if said else ''}; {advice}")


def from_disk(error: BaseException) -> OSError | None:
    """Return what the disk refused, None where the error is of another kind.

    The writers of safetensors, tokenizers and torch raise errors of their own, with the cause in their text only;
    torch's file writer names its source file, and a write that came up short is all that it ever reports.
    """
    if isinstance(error, OSError):
        return error
    if said := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(said[1])
        return OSError(number, os.strerror(number))
    if any(sign in str(error) for sign in _TORCH_WRITES):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def disk_error(error: OSError, folder: Path | None) -> SprachbundError:
    """Return one sentence for what the disk refused in the work on a folder, or in the cache."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    cached = place is not None and place.absolute().is_relative_to(cache_folder().absolute())
    if error.errno in _FULL:
        full = cache_folder() if cached else folder or place or Path.cwd()
        other = ", or set SPRACHBUND_CACHE to a folder on another disk," if cached else ""
        return SprachbundError(f"no space left on the disk of {full}; free some{other} and run the same command again")
    if error.errno in _FORBIDDEN:
        advice = "set SPRACHBUND_CACHE to a folder that can be" if cached else "give another --out"
        return InputError(f"{place or folder or 'a file'} cannot be written ({error.strerror}); {advice}")
    named = place or folder
    said = error.strerror or str(error)
    return SprachbundError(f"{named}: {said}" if named else said)
