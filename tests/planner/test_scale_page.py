"""docs/scale.md: its plans are what the calculator computes."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_worked_plans_are_computed() -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8")
    assert page == runpy.run_path(str(DOCS / "generate_scale.py"))["page"](page)
    assert page.count("How the mixture's column comes about:") == 3
    assert "does not fit: " not in page
