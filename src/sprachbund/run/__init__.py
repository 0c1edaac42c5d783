"""A run: a directory of stage results, and the stages that fill it."""

from sprachbund.run.directory import Run, open_run

__all__ = ["Run", "open_run"]
