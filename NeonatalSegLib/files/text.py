"""Text from elsewhere, made safe for where it goes: a terminal, a table, a spreadsheet. Standard library only.

Example:
    >>> shown("tiny\\x1b[2J")
    'tiny\\\\x1b[2J'
    >>> cell("=SUM(A1)\\n")
    "'=SUM(A1) "
"""

from __future__ import annotations

import unicodedata

TURNS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # change the direction of writing


def shown(text: str) -> str:
    """``text`` for a terminal or a message: signs that move the cursor or turn the direction are spelled out.

    Line feeds stay: messages have them. Where a name must not make a line of its own, use :func:`cell`.
    """
    return "".join(c if c == "\n" or c == "\t" or not _is_control(c) else _spelled(c) for c in text)


def cell(text: str) -> str:
    """``text`` for one cell of a table: on one line, and no formula for a spreadsheet that opens it."""
    line = "".join(" " if c in "\n\r\t\x0b\x0c\u2028\u2029" else _spelled(c) if _is_control(c) else c for c in text)
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def _is_control(sign: str) -> bool:
    return (
        unicodedata.category(sign) in ("Cc", "Cs")
        or sign in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    )


def _spelled(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
