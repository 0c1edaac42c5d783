"""The command line without a new process: loading torch anew would take seconds for every call."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

import pytest


@dataclass(frozen=True)
class Said:
    """What the command line did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def skipped(self) -> list[str]:
        """The stages that were done before, in order."""
        return [line.split(":")[0] for line in self.err.splitlines() if line.endswith("unchanged, skipped")]

    @property
    def last(self) -> str:
        """The last line of standard error: where it went wrong, the one sentence."""
        return self.err.splitlines()[-1]


CommandLine = Callable[..., Said]


def command_line(*arguments: object) -> Said:
    """Run `sprachbund ARGUMENTS` in this process."""
    from sprachbund.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["sprachbund", *map(str, arguments)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main()
    return Said(int(stop.value.code or 0), out.getvalue(), err.getvalue())
