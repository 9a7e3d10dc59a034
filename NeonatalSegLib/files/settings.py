"""JSON from elsewhere, read strictly: settings, side-cars, studies, models; with tuples where JSON has lists."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError

MOST_BYTES = 64_000_000  # the plan of a study with thousands of slices takes a few MB
MOST_DEPTH = 100  # objects and lists in one another


def parse_object(text: str | bytes, *, nan: bool = False) -> dict[str, Any]:
    """The names and values of a JSON text.

    Args:
        nan: also take NaN and infinities, which JSON does not have (Python writes them into results of experiments).

    Raises:
        ValueError: not JSON, not an object, nested deeper than ``MOST_DEPTH``, or a number that is not finite.
    """
    try:
        found = json.loads(text) if nan else json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object: expected names with values in braces")
    if _deeper(found, MOST_DEPTH):
        raise ValueError("it is nested too deeply")
    return found


def read_object(path: str | Path, what: str, *, nan: bool = False, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The names and values of a JSON file; ``what`` names it in errors, such as "training configuration".

    Raises:
        NeonatalSegError: it is missing, not a regular file, too large, not UTF-8, or as :func:`parse_object`.
    """
    try:
        return parse_object(_read(Path(path), most_bytes), nan=nan)
    except OSError as error:
        raise NeonatalSegError(f"The {what} {path} could not be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise NeonatalSegError(f"The {what} {path} could not be read: {error}.") from error


def tuples(value: Any) -> Any:
    """``value`` with every list in it, at any depth, as a tuple: settings are frozen."""
    if isinstance(value, list):
        return tuple(tuples(v) for v in value)
    return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _read(path: Path, most_bytes: int) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as stream:
        data = stream.read(min(status.st_size, most_bytes) + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes / 1e6:.0f} MB")
    return data.decode("utf-8-sig")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def _not_finite(text: str) -> float:
    raise ValueError(f"{text[:20]} is not a finite number")


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(v, levels - 1) for v in inside)
