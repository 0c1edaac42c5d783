"""A process that has loaded everything, and forks a child for each command: one that dies where it is told to.

A program of its own, which has never computed: what has used torch's threads cannot be forked. It reads one request a
line, runs `sprachbund ARGUMENTS` in a child of its own process group, and answers on one line.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}


class Killer:
    """Counts what the child does to its disk and its weights, by stage, and kills it at the one that is asked for.

    `stage` and `at`: before the at-th operation of a stage (the empty name: outside of all), or before the first one
    after it, where it has fewer. A file that is opened to be written is half written then.
    """

    def __init__(self, within: Path, stage: str | None, at: int) -> None:
        self.within, self.wanted, self.at = str(within), stage, at
        self.stage, self.begun, self.busy = "", False, False
        self.counts: Counter[str] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See an operation before it is done: a hook of Python's audit."""
        if self.busy or event not in OPERATIONS:
            return
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else None
        if event == "open" and not (path and arguments[2] & WRITES and path.startswith(self.within)):
            return
        self.count(path if event == "open" else None, append=event == "open" and bool(arguments[2] & os.O_APPEND))

    def count(self, path: str | None = None, *, append: bool = False) -> None:
        """Count an operation, or die of it; a `path` is left with half of what was to be written."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.counts[self.stage] += 1
        if self.wanted is None:
            return
        if self.counts[self.wanted] >= self.at or (self.begun and self.stage != self.wanted):
            self.busy = True
            if path is not None:
                with open(path, "ab" if append else "wb") as file:
                    file.write(b'{"half')
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Have the stages, the optimizer's steps and the writers that are not Python's told as well."""
        import torch
        from safetensors import torch as safe

        from sprachbund.run.directory import Workplace

        def told(function: Any, place: Any = None) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                self.count(None if place is None else os.fspath(args[place]))
                return function(*args, **kwargs)

            return call

        inner = Workplace.stage

        def stage(this: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            before, self.stage = self.stage, name
            self.begun |= name == self.wanted
            try:
                return inner(this, name, *args, **kwargs)
            finally:
                self.stage = before

        Workplace.stage = stage  # type: ignore[method-assign]
        torch.optim.AdamW.step = told(torch.optim.AdamW.step)  # type: ignore[method-assign]
        safe.serialize_file = told(safe.serialize_file, 1)
        sys.addaudithook(self)


def run(request: dict[str, Any]) -> None:
    """Be the child."""
    os.setsid()
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(request["environment"])
    for name, most in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (most, most))
    killer = Killer(Path(request["within"]), request["stage"], request["at"])
    killer.watch()
    status = 1
    try:
        from sprachbund.cli import main

        sys.argv = ["sprachbund", *request["arguments"]]
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        killer.busy = True
        Path(request["counts"]).write_text(json.dumps(killer.counts), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Answer requests until there are no more."""
    import datasets  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import sprachbund.cli.app
    import sprachbund.compare.engine
    import sprachbund.report
    import sprachbund.run.adapting
    import sprachbund.run.compressing
    import sprachbund.run.pipeline
    import sprachbund.run.regrouping  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        if (after := request["after"]) is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    main()
