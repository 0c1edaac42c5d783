"""The directory of a run: one recipe, stage results with fingerprints, one process at a time.

No torch here: the command line reads runs without loading it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

import yaml

from sprachbund import __version__, checksums
from sprachbund.errors import InputError, SprachbundError, brief
from sprachbund.files import ADAPTATION, is_left, remove, write_text
from sprachbund.grouping.greedy import read_groups
from sprachbund.progress import say
from sprachbund.recipe import Adaptation, Part, Recipe
from sprachbund.recipe_file import build_recipe, dump_recipe
from sprachbund.run.trouble import disk_error, trouble


def fingerprint(inputs: Any) -> str:
    """Return a digest of what a stage's result was computed from (JSON values), and of the package's version."""
    text = json.dumps([__version__, inputs], sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=12).hexdigest()


def _differences(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Return the dotted paths where two nested values differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = dict.fromkeys([*ours, *theirs])
        return [d for key in keys for d in _differences(ours.get(key), theirs.get(key), f"{place}.{key}".lstrip("."))]
    return [] if ours == theirs else [place]


def open_run(recipe: Recipe, folder: Path, *, update: bool = False) -> Run:
    """Open or create the directory of a run.

    A directory belongs to one recipe: results are not overwritten by accident. With `update` it takes the new recipe,
    and what depends on the change is computed anew; so does a directory in which nothing is done yet, since a first
    attempt that stopped at a wrong path should not stand in the way of the corrected recipe. Raises InputError for a
    directory of another recipe or with other things in it, SprachbundError when another process works in it.
    """
    _check_trackers(recipe)
    recipe = recipe.model_copy(update={"compare": None})  # no stage reads it: another one changes no result
    if recipe.groups.given is not None:
        read_groups(recipe.groups.given, tags=recipe.tags())
    lock = open_folder(
        folder, "recipe.yaml", dump_recipe(recipe), lambda: _check_same(read_run(folder), recipe, folder), update=update
    )
    return Run(folder, recipe, lock, update=update)


def open_folder(folder: Path, name: str, text: str, check: Callable[[], None], *, update: bool) -> IO[str]:
    """Open or create a folder of stage results for one process, and write what it is for, `text`, to `name` in it.

    `check` raises InputError where results that are there are of something else; it is not asked with `update`. Returns
    the lock. Raises InputError for a folder with other things in it, SprachbundError when another process works in it.
    """
    file, lock = folder / name, None
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give --out a folder")
        if folder.exists() and not file.exists() and any(not _ours(path, name) for path in folder.iterdir()):
            raise InputError(f"{folder} exists and is no run (it has no {name}); give another --out")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        tidy(folder)
        if file.exists() and not update and _has_results(folder):
            check()
        write_text(file, text)
    except BaseException as error:
        if lock is not None:
            lock.close()
        if isinstance(error, OSError):
            raise disk_error(error, folder) from error
        raise
    return lock


def _check_trackers(recipe: Recipe) -> None:
    """Raise InputError for an experiment tracker that is not installed, before hours of work end at it."""
    for tracker in recipe.train.trackers:
        if find_spec(tracker) is None:
            raise InputError(f"train.trackers names {tracker}, which is not installed; pip install {tracker}")


def _ours(path: Path, name: str) -> bool:
    """Is this a file that open_folder itself leaves when it is killed before `name` is written?"""
    return path.name == "lock" or (path.name.startswith(f".{name}.") and path.suffix == ".tmp")


def _has_results(folder: Path) -> bool:
    return any(read_json(path).get("done") for path in (folder / "stages").glob("*.json"))


def _check_same(before: Part, recipe: Part, folder: Path) -> None:
    """Raise InputError, naming the dotted paths that differ, where a directory's settings are not these."""
    changed = _differences(before.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changed:
        raise InputError(
            f"{folder} holds a run of another recipe (differing: {', '.join(changed[:4])}"
            f"{', ...' if len(changed) > 4 else ''}); give another --out, or --update to recompute what changed"
        )


def read_run(folder: Path) -> Recipe:
    """Return the recipe of an existing run; raises InputError where the folder is none."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise InputError(f"{folder} is no run: it has no recipe.yaml; give a recipe file or the folder of a run")
    return build_recipe(file.read_text(encoding="utf-8"), name=str(file), folder=folder)


# A forked child has the parent's open files: a worker that outlives its parent would keep the parent's lock.
_locks: WeakSet[IO[str]] = WeakSet()


def _let_go() -> None:
    for file in list(_locks):
        file.close()


os.register_at_fork(after_in_child=_let_go)


def _lock(folder: Path) -> IO[str]:
    """Take the run for this process; the system releases it when the process ends, however it ends."""
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SprachbundError(f"another process works in {folder}; wait for it or give another --out") from None
    _locks.add(file)
    return file


def tidy(folder: Path) -> None:
    """Remove what a killed process leaves in a directory that is locked now: temporary files, half a line of events."""
    for pattern in (".*.tmp", "*/.*.tmp", "probe/*.tmp"):
        for path in folder.glob(pattern):
            if is_left(path):  # a model changed beside this one's may be on its way
                remove(path)
    file = folder / "events.jsonl"
    if file.exists():
        whole = file.read_bytes()
        if whole and not whole.endswith(b"\n"):
            write_text(file, whole[: whole.rfind(b"\n") + 1].decode("utf-8"))


class Workplace:
    """A directory of stage results: `stage` computes a result once, `log` writes events."""

    def __init__(self, folder: Path, lock: IO[str], *, update: bool = False) -> None:
        self.folder = folder
        self.update = update
        self._lock = lock
        self.fingerprints: dict[str, str] = {}

    def close(self) -> None:
        """Release the directory."""
        self._lock.close()

    def path(self, name: str) -> Path:
        """Return a path inside the run."""
        return self.folder / name

    def stage(
        self,
        name: str,
        inputs: Any,
        outputs: Sequence[str],
        work: Callable[[], Mapping[str, Any]],
        *,
        after: Sequence[str] = (),
        precious: bool = False,
        also: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Return the stage's result (JSON values): from disk when nothing it depends on changed, else from `work`.

        `inputs` and the fingerprints of the stages `after` decide; `outputs` are the files or folders that must exist.
        Checksums are kept of them, and of what is `also` written; those of files are verified here, those of models
        where they are loaded. Seconds of interrupted attempts are added up. A `precious` result, one that took
        training, is replaced only where the user said --update; raises InputError otherwise.

        Raises DamagedError for a file with other bytes than it was written with.
        """
        mark = fingerprint([inputs, [self.fingerprints[stage] for stage in after]])
        self.fingerprints[name] = mark
        file = self.path(f"stages/{name}.json")
        known = checksums.read_record(file)
        if known.get("fingerprint") == mark and known.get("done") and all(self.path(o).exists() for o in outputs):
            models = tuple(f"{output}/" for output in [*outputs, *also] if self.path(output).is_dir())
            sums = known.get(checksums.FIELD, {})
            checksums.check(self.folder, {file: sums[file] for file in sums if not file.startswith(models)})
            say(f"{name}: done before, unchanged, skipped")
            return dict(known["result"])
        if precious and known.get("done") and not self.update and outputs and self.path(outputs[0]).exists():
            raise InputError(
                f"{self.folder}: the stage {name} is done, but its inputs have changed since (recipe, corpora, base or "
                "package); give --update to compute it anew, or another --out"
            )
        earlier = known.get("seconds", 0.0) if known.get("fingerprint") == mark and not known.get("done") else 0.0
        record: dict[str, Any] = {"fingerprint": mark, "done": False}
        begun = time.monotonic()
        try:
            file.parent.mkdir(exist_ok=True)
            result = dict(work())
            sums = checksums.digests(self.folder, [*outputs, *also])
            record.update(done=True, result=result, **({checksums.FIELD: sums} if sums else {}))
            return result
        except Exception as error:
            if (said := trouble(error, self.folder, name)) is not None:
                raise said from error
            raise
        finally:
            record["seconds"] = round(earlier + time.monotonic() - begun, 3)
            with suppress(OSError):
                checksums.write_record(file, record)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every stage of this recipe that is done."""
        return {name: record["seconds"] for name, record in self.records().items()}

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the records of the stages that are done and of this recipe, in alphabetical order."""
        found = {path.stem: checksums.read_record(path) for path in sorted(self.path("stages").glob("*.json"))}
        return {
            name: record
            for name, record in found.items()
            if record.get("done") and record.get("fingerprint") == self.fingerprints.get(name)
        }

    def forget(self, stage: str) -> None:
        """Let a stage be computed again."""
        self.path(f"stages/{stage}.json").unlink(missing_ok=True)

    def log(self, stage: str, event: str, **values: Any) -> None:
        """Append one event to events.jsonl."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "stage": stage, "event": event, **values}
        with self.path("events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def forget_events(self, stage: str, *, after_step: int) -> None:
        """Drop a stage's events past a step: training resumes from there and writes them again."""
        file = self.path("events.jsonl")
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # a line torn by a kill
                event = json.loads(line)
                if event.get("stage") != stage or event.get("step", 0) <= after_step:
                    kept.append(line)
        write_text(file, "".join(f"{line}\n" for line in kept))


class Run(Workplace):
    """A run's directory."""

    def __init__(self, folder: Path, recipe: Recipe, lock: IO[str], *, update: bool = False) -> None:
        super().__init__(folder, lock, update=update)
        self.recipe = recipe


class Adapting(Workplace):
    """The directory of an adaptation: a model that was given new languages."""

    def __init__(self, folder: Path, settings: Adaptation, lock: IO[str], *, update: bool = False) -> None:
        super().__init__(folder, lock, update=update)
        self.settings = settings


def open_adaptation(settings: Adaptation, folder: Path, *, update: bool = False) -> Adapting:
    """Open or create the directory of an adaptation, as `open_run` does that of a run."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    lock = open_folder(
        folder, ADAPTATION, text, lambda: _check_same(read_adaptation(folder), settings, folder), update=update
    )
    return Adapting(folder, settings, lock, update=update)


def read_adaptation(folder: Path) -> Adaptation:
    """Return the settings of an adaptation's directory; raises InputError where they cannot be read."""
    file = folder / ADAPTATION
    try:
        return Adaptation.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read ({brief(error)}); give another --out") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of our own; empty where it is missing or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
