"""A request to the compute process, followed from a timer to its end: the one place where its events are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from NeonatalSegLib.mrml.shared.compute import EngineRequest

NO_REASON = "The compute process failed without a reason."
Fields = Mapping[str, Any]


def _nothing(*_: Any) -> None:
    return None


class EngineTask:
    """One request under way. ``poll`` is called from a timer and never waits.

    Exactly one of ``on_result``, ``on_error`` and ``on_cancelled`` is called, from inside ``poll``; the request's files
    are there until it returns. Where it raises, the files go all the same, and the task has ended.

    Args:
        request: as ``engine.client.Request``.
        on_progress: gets the fields of the progress events since the last poll, at least one.
        on_result: gets the fields of the result.
        on_error: gets a sentence for the user, and all fields ("missing": a package that is not installed).
        on_cancelled: called where the request was cancelled.

    Attributes:
        ended: nothing more will come; the files are gone.
    """

    def __init__(
        self,
        request: EngineRequest,
        *,
        on_progress: Callable[[Sequence[Fields]], None] = _nothing,
        on_result: Callable[[dict[str, Any]], None] = _nothing,
        on_error: Callable[[str, Fields], None] = _nothing,
        on_cancelled: Callable[[], None] = _nothing,
    ) -> None:
        self.request, self.ended = request, False
        self._on_progress, self._on_result = on_progress, on_result
        self._on_error, self._on_cancelled = on_error, on_cancelled

    def poll(self) -> bool:
        """Read what has come and call who is to know; True once it has ended."""
        if self.ended:
            return True
        steps: list[Fields] = []
        for event in self.request.poll():
            if event.name == "progress":
                steps.append(event.fields)
            elif event.name in ("result", "error", "cancelled"):
                self._tell(steps)
                self._end(event)
                return True
        self._tell(steps)
        return False

    def cancel(self) -> None:
        """Ask to stop; the end still comes from ``poll``."""
        self.request.cancel()

    def stop(self) -> None:
        """Ask to end early with what there is; the result still comes."""
        self.request.stop()

    def abandon(self, on_result: Callable[[dict[str, Any]], None] = _nothing) -> None:
        """Cancel, and tell nobody of the end; it has to be polled until ``ended``, so that its files go.

        ``on_result`` is called with a result that was ready before the cancelling arrived: what it has made (a model in
        the store) has to be taken away.
        """
        self._on_progress, self._on_error, self._on_cancelled = _nothing, _nothing, _nothing
        self._on_result = on_result
        self.request.cancel()

    def _tell(self, steps: Sequence[Fields]) -> None:
        if steps:
            self._on_progress(steps)

    def _end(self, event: Any) -> None:
        self.ended = True
        try:
            if event.name == "result":
                self._on_result(dict(event.fields))
            elif event.name == "cancelled":
                self._on_cancelled()
            else:
                self._on_error(str(event.get("message", "")) or NO_REASON, event.fields)
        finally:
            self.request.release()
