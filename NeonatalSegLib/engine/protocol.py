"""What client and worker say to each other: one JSON object a line, in UTF-8.

To the worker: ``{"id": 7, "op": "segment", ...}``. Three operations are seen by the worker's reader thread even while
another one computes: ``{"id": 7, "op": "cancel"}`` (the id is that of the request to end without a result),
``{"id": 7, "op": "stop"}`` (end early, with the result so far, where the operation has such a thing) and
``{"op": "shutdown"}``.

From the worker: ``{"id": 7, "event": NAME, ...}`` with NAME one of

- ``ready``: said once, with id 0, before anything heavy is imported: ``pid``, ``protocol``;
- ``progress``: ``stage`` (text), ``fraction`` (0-1), ``seconds_left`` (null until it can be told), and what the
  operation adds;
- ``result``: the operation's own fields; ``cancelled``; or
- ``error``: ``kind`` ("user": a person can mend it; "internal": not expected), ``message`` (for the person),
  ``detail`` (a traceback or "") and, where a Python package is not installed, ``missing`` (its name).

Each request gets exactly one of the last three. Arrays never go through the pipe, only paths of files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

PROTOCOL_VERSION = 1
PROGRESS, RESULT, ERROR, CANCELLED, READY = "progress", "result", "error", "cancelled", "ready"
FINAL = frozenset({RESULT, ERROR, CANCELLED})


@dataclass(frozen=True)
class Event:
    """One message of the worker (or, where the worker died, of the client on its behalf).

    Attributes:
        id: the request it belongs to.
        name: "progress", "result", "error" or "cancelled".
        fields: everything else, as listed in this module's text.
    """

    id: int
    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """True where nothing more follows for this request."""
        return self.name in FINAL

    @property
    def message(self) -> str:
        """The sentence for the person, of an error; "" of any other event."""
        return str(self.fields.get("message", ""))

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The field ``key``, or ``default``."""
        return self.fields.get(key, default)


def encode(message: dict[str, Any]) -> bytes:
    """One line, newline included. ASCII only, so that no code page can spoil a path."""
    return json.dumps(message, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The object on ``line``; ValueError where it is not a JSON object."""
    message = json.loads(line.decode("utf-8"))
    if not isinstance(message, dict):
        raise ValueError(f"expected a JSON object, got {type(message).__name__}")
    return message


def decode_event(line: bytes) -> Event:
    """The worker's event on ``line``; ValueError where the line is anything else (a stray print, a cut line)."""
    message = decode(line)
    number, name = message.pop("id", None), message.pop("event", None)
    if not isinstance(number, int) or not isinstance(name, str):
        raise ValueError("the object has no id and event")
    return Event(number, name, message)
