"""A training's checkpoints: complete only with the checksums of their files, and resumed from the newest sound one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sprachbund.checksums import FIELD, damaged, sha256_of
from sprachbund.files import write_text
from sprachbund.progress import say

COMPLETE = "complete"  # written last into a checkpoint, with the checksums: a torn one has none


def seal(folder: Path) -> None:
    """Mark a checkpoint as whole: nothing is written into it afterwards."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sums = {str(path.relative_to(folder)): sha256_of(path) for path in files}
    write_text(folder / COMPLETE, json.dumps({FIELD: sums}, indent=1) + "\n")


def step_of(checkpoint: Path) -> int:
    """Return after how many steps a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint below a folder that is whole; torn and damaged ones are removed.

    Of a damaged one it is said which file has other bytes than were written: the training goes on from the checkpoint
    before it, to the same end.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
        elif (file := _damage(path)) is not None:
            say(f"{file} has other bytes than were written to it (its SHA-256 differs): its checkpoint is not used")
            shutil.rmtree(path)
        else:
            return path
    return None


def _damage(checkpoint: Path) -> Path | None:
    """Return the first file of a checkpoint that is not as it was written or is gone; None where all are."""
    try:
        known = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8") or "{}").get(FIELD, {})
    except (ValueError, AttributeError):
        return checkpoint / COMPLETE
    gone = [checkpoint / name for name in known if not (checkpoint / name).is_file()]
    return next(iter([*gone, *damaged(checkpoint, known)]), None)
