"""What all report pages have in common: one HTML file that opens offline and prints.

Whatever a file holds is escaped (Jinja's autoescape); only the package's own style sheet, script and figures are put in
as they are, and a content security policy in the page forbids every other script and every connection.
"""

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from sprachbund.report.formats import FILTERS


def render(template: str, **values: Any) -> str:
    """Return a whole page as HTML, from a template of this package that extends `frame.html.j2`."""
    environment = Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    script = _asset("sort.js")
    return environment.get_template(template).render(
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )


def _asset(name: str) -> str:
    """Read a file of this package that goes into the page."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
