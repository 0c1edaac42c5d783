"""One self-contained HTML page that says what a run did, what it gained and what it cost, and its pictures as files."""

from sprachbund.report.adapt_section import write_adapt_report
from sprachbund.report.page import write_report
from sprachbund.report.pictures import write_layers_svg, write_similarity_svg
from sprachbund.report.reading import Layer, read_layers

__all__ = ["Layer", "read_layers", "write_adapt_report", "write_layers_svg", "write_report", "write_similarity_svg"]
