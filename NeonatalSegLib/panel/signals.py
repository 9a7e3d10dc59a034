"""A signal in plain Python: for whatever has to be told of changes without Qt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Signal:
    """A list of callables to be called. Made for both Qt bindings, in neither of which own signals are safe.

    A receiver that fails does not keep the others from being called; the first failure is raised at the end.
    """

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` from now on; a second time for the same one does nothing."""
        if receiver not in self._receivers:
            self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any] | None = None) -> None:
        """Stop calling ``receiver``, or everyone."""
        self._receivers = [kept for kept in self._receivers if receiver is not None and kept != receiver]

    def emit(self, *arguments: Any) -> None:
        """Call every receiver with ``arguments``."""
        failure: Exception | None = None
        for receiver in list(self._receivers):
            try:
                receiver(*arguments)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
