"""Templates to pages: everything that comes from data is escaped, and only our own script may run.

Each page forbids itself every connection (Content-Security-Policy) and names the hash of the one script that it holds,
so that a name with a ``<script>`` in it would not run even where an escape was forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).resolve().parent


def render(template: str, script: str, **values: Any) -> str:
    """The text of a page.

    Args:
        template: file of this folder, such as "scan.html".
        script: the JavaScript file that goes into it.
        values: for the template.
    """
    from markupsafe import Markup

    source = (FOLDER / script).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(script=Markup(source), script_sha256=digest, style=Markup(style), **values)
    )


@cache
def _environment() -> Environment:
    """One for all pages of a process, so that templates are compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
