"""One self-contained HTML page that says what a run did, what it gained and what it cost."""

from sprachbund.report.page import write_report

__all__ = ["write_report"]
