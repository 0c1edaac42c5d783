"""The command line: one small module per group of verbs, no logic of its own, and no torch before it is needed."""

from sprachbund.cli.app import main

__all__ = ["main"]
