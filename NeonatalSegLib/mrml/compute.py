"""The seam to the compute process: what the logic needs of it, and the real one. Tests put another one here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class EngineRequest(Protocol):
    """A request to the compute process, as ``engine.client.Request`` is one."""

    @property
    def folder(self) -> Path:
        """Where its files are, until ``release``."""

    def poll(self) -> list[Any]:
        """The events since the last call; never waits."""

    def cancel(self) -> None:
        """Ask to stop; a "cancelled" event follows."""

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
    from ..engine.client import Client

    return Client()
