"""How long somebody worked on a slice, pauses left out."""

from __future__ import annotations

import time
from collections.abc import Callable

IDLE_AFTER_S = 60.0


class WorkClock:
    """Seconds worked on a slice: the module is open, the application active, and the last action under a minute ago.

    Args:
        now: tells the time in seconds; injected by tests.
        idle_after_s: so long after the last action the clock stops; the next action starts it again.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, idle_after_s: float = IDLE_AFTER_S) -> None:
        self._now, self._idle_after_s = now, idle_after_s
        self._entered = self._active = self._running = False
        self._total = 0.0
        self._counted_to = self._touched = now()

    @property
    def seconds(self) -> float:
        """Worked since ``start``."""
        self._count()
        return self._total

    def start(self, seconds: float = 0.0) -> None:
        """A slice begins, on which ``seconds`` were worked already."""
        self._count()
        self._total, self._running = seconds, True
        self._touched = self._now()

    def stop(self) -> None:
        """No slice is being worked on."""
        self._count()
        self._running = False

    def touch(self) -> None:
        """The user did something."""
        self._count()
        self._touched = self._now()

    def set_entered(self, entered: bool) -> None:
        """The module is opened or left."""
        if entered != self._entered:
            self.touch()
            self._entered = entered

    def set_active(self, active: bool) -> None:
        """The application has the keyboard, or another one has."""
        if active != self._active:
            self.touch()
            self._active = active

    def _count(self) -> None:
        """Add the time since the last call, up to a minute after the last action."""
        now = self._now()
        if self._running and self._entered and self._active:
            self._total += max(0.0, min(now, self._touched + self._idle_after_s) - self._counted_to)
        self._counted_to = now
