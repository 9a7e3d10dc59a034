"""Names that become part of a file's name: of scans, raters, newborns in BIDS folders, models.

One rule for all, so that a name taken on one system is a file's name on every other. Standard library only.

Example:
    >>> check_name("sub-01", "scan")
    'sub-01'
    >>> safe_name("T2 (copy)/1")
    'T2 _copy__1'
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError

MAX_LENGTH = 80
# Devices on Windows, with any ending.
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def check_name(name: str, what: str, *, plain: bool = False) -> str:
    """``name`` where it can be part of a file's name on every system.

    Args:
        what: of whom or what it is the name, for the error: "scan", "rater", "model".
        plain: only ASCII and no blank, for names that are typed and sent on.

    Raises:
        NeonatalSegError: empty, too long, a path, a device's name, or with other signs than the rule allows.
    """
    signs = " -_." if not plain else "-_."
    allowed = all((c.isalnum() and (c.isascii() or not plain)) or c in signs for c in name)
    ends = name[:1].isalnum() and name == name.rstrip(" .") and (not plain or name[-1:].isalnum())
    if not (allowed and ends) or len(name) > MAX_LENGTH or name.split(".")[0].lower() in RESERVED:
        kinds = "letters and digits without accents" if plain else "letters, digits, blank"
        raise NeonatalSegError(
            f"{name!r} cannot be the name of a {what}: use {kinds}, '-', '_' and '.', at most {MAX_LENGTH}, with a "
            "letter or digit first, and neither blank nor dot last."
        )
    return name


def safe_name(text: str, otherwise: str = "scan") -> str:
    """``text`` as a name that :func:`check_name` takes: other signs become underscores; ``otherwise`` if none is left.

    For names that are derived from a file's or a node's, where a refusal would help nobody.
    """
    name = "".join(c if c.isalnum() or c in " -_." else "_" for c in unicodedata.normalize("NFC", text))
    name = name.lstrip(" -_.")[:MAX_LENGTH].rstrip(" ._")
    return f"{otherwise}_{name}" if name.split(".")[0].lower() in RESERVED else name or otherwise


def same_file(name: str) -> str:
    """What two names share where some system takes them for one file: case and the spelling of accents do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def check_distinct(names: Iterable[str], what: str) -> None:
    """Refuse two names that are one file on some system.

    Raises:
        NeonatalSegError: they are named.
    """
    taken: dict[str, str] = {}
    for name in names:
        if (other := taken.get(same_file(name))) is not None:
            raise NeonatalSegError(
                f"Two {what}s have the names {other!r} and {name!r}, one file on some systems: give each its own."
            )
        taken[same_file(name)] = name


def check_path(path: str | Path) -> Path:
    """``path`` where its bytes are text in UTF-8, which the image libraries need (others end the whole process).

    Raises:
        NeonatalSegError: they are not.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise NeonatalSegError(
            f"The name of {shown(path)} is not UTF-8, which image libraries cannot open: rename that file or folder."
        ) from error
    if "\0" in str(path):
        raise NeonatalSegError(f"{str(path)!r} holds a zero byte: no file can have that name.")
    return Path(path)


def shown(path: str | Path) -> str:
    """A path for people: what cannot be written on a screen is a question mark, and no sign moves the cursor."""
    text = str(path).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)
