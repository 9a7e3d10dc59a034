"""Settings in JSON files: read into an object, with tuples where JSON has lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """The names and values of a JSON file; ``what`` names it in errors, such as "training configuration".

    Raises:
        NeonatalSegError: it is missing, no JSON, or no object.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NeonatalSegError(f"The {what} {path} could not be read: {error}.") from error
    if not isinstance(found, dict):
        raise NeonatalSegError(f"The {what} {path} is no JSON object: expected names with values in braces.")
    return found


def tuples(value: Any) -> Any:
    """``value`` with every list in it, at any depth, as a tuple: settings are frozen."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
