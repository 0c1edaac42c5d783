"""A model's folder made from another one: a changed mixture, what it costs, and a card that says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sprachbund.export.card import write_card
from sprachbund.export.source import take_along
from sprachbund.files import EXTENSIONS, write_text
from sprachbund.modeling.base import load_model
from sprachbund.modeling.checkpoint import new_folder


def beside(target: str, folder: Path, suffix: str) -> Path:
    """Return the default place of a changed model: beside its model; for a Hub id here."""
    if Path(target).expanduser().is_dir():
        return folder.with_name(f"{folder.resolve().name}-{suffix}")
    return Path(f"{target.rpartition('/')[2]}-{suffix}")


def write_changed(
    folder: Path,
    out: Path,
    *,
    config: Any,
    change: Callable[[Any], Any],
    facts: Callable[[Any], Mapping[str, Any]],
    measure: Callable[[Path], Any] | None,
    file: str,
    run: Path | None,
    extensions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write what `change` makes of the mixture in a folder, whose configuration is given, to a new folder, whole.

    What `facts` says of the changed mixture, and under `dev` what `measure` finds in its folder (None without it), is
    kept there in `file` and returned with the folder's name. The tokenizers of paths with tokens of their own go along,
    or, with `extensions`, {old name: new name}, some of them. Raises InputError for a folder that exists.
    """
    with new_folder(out) as temporary:
        changed = change(load_model(folder, dtype=str(config.dtype or "float32").removeprefix("torch.")))
        changed.save_pretrained(temporary)
        take_along(folder, temporary)
        for place in sorted((folder / EXTENSIONS).glob("*")):
            name = place.name if extensions is None else extensions.get(place.name)
            if name is not None:
                shutil.copytree(place, temporary / EXTENSIONS / name)
        said = dict(facts(changed))
        del changed
        said["dev"] = measure(temporary) if measure is not None else None
        write_text(temporary / file, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
        write_card(temporary, run=run, evaluated=False, place=out)
    return {"folder": str(out), **said}
