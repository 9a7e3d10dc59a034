"""The seam to the compute process: what the logic needs of it, and the real one. Tests put another one here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from NeonatalSegLib.panel.signals import Signal


class Turn:
    """Which section has the compute process: it does one thing after the other, and cancelling one may end it for all.

    A section says what it is doing with ``follow`` and starts nothing while ``why_not`` has a reason. ``changed`` is
    emitted without arguments.
    """

    def __init__(self) -> None:
        self.changed = Signal()
        self._doing = ""

    def follow(self, doing: str, busy: bool) -> None:
        """``doing`` ("A segmentation") is under way, or, with ``busy`` False, no more."""
        now = (self._doing or doing) if busy else (self._doing if self._doing != doing else "")
        if now != self._doing:
            self._doing = now
            self.changed.emit()

    def why_not(self, doing: str) -> str:
        """Why ``doing`` cannot be started now, "" where it can."""
        if self._doing in ("", doing):
            return ""
        return (
            f"{self._doing} is under way, and there is one compute process for everything: stop it there, or wait "
            "until it is done."
        )


class EngineRequest(Protocol):
    """A request to the compute process, as ``engine.client.Request`` is one."""

    @property
    def folder(self) -> Path:
        """Where its files are, until ``release``."""

    def poll(self) -> list[Any]:
        """The events since the last call; never waits."""

    def cancel(self) -> None:
        """Ask to stop; a "cancelled" event follows."""

    def stop(self) -> None:
        """Ask to end early with what there is; the result still comes."""

    def release(self) -> None:
        """Remove its files."""


class Engine(Protocol):
    """The compute process, as ``engine.client.Client`` is one."""

    def new_folder(self) -> Path:
        """A private folder for one request's files."""

    def request(self, op: str, *, folder: Path | None = None, **fields: Any) -> Any:
        """Ask for an operation; returns at once."""

    def segment(
        self,
        t1: Any = None,
        t2: Any = None,
        *,
        model: str | None = None,
        device: str = "auto",
        options: Any = None,
        name: str | None = None,
        folder: Path | None = None,
    ) -> Any:
        """Ask for a segmentation; returns at once."""

    def close(self) -> None:
        """End the process and remove its files."""


def start_engine() -> Engine:
    """The real compute process; it starts with its first request."""
    from NeonatalSegLib.engine.client import Client

    return Client()
