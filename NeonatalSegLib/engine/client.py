"""The application's side of the compute process: plain Python, no Qt, nothing heavy.

A user interface calls ``request.poll()`` from a timer, which never waits; a script calls ``request.result()``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from NeonatalSegLib.engine import folders, protocol
from NeonatalSegLib.engine.interpreter import find_python, worker_environment
from NeonatalSegLib.engine.process import WorkerProcess
from NeonatalSegLib.engine.protocol import Event
from NeonatalSegLib.errors import Cancelled, NeonatalSegError


class EngineError(NeonatalSegError):
    """A request that failed: the message is for the person, ``detail`` for the log, ``kind`` "user" or "internal"."""

    def __init__(self, message: str, kind: str = "internal", detail: str = "") -> None:
        super().__init__(message)
        self.kind, self.detail = kind, detail


class Request:
    """One operation asked of the worker. Made by ``Client.request``; every method may be called from any thread.

    Attributes:
        id: unique within its client.
        op: the operation's name.
        folder: where its files are; removed by ``release``, and at once when it fails or is cancelled.
    """

    def __init__(self, client: Client, number: int, op: str, folder: Path) -> None:
        self.id, self.op, self.folder = number, op, folder
        self._client = client
        self._news: deque[Event] = deque()
        self._final: Event | None = None
        self._done = threading.Event()
        self._cancel_asked = False
        self._process: WorkerProcess | None = None

    @property
    def done(self) -> bool:
        """True when the final event is there."""
        return self._done.is_set()

    @property
    def final(self) -> Event | None:
        """The result, error or cancelled event; None while it runs."""
        return self._final if self.done else None

    def poll(self) -> list[Event]:
        """The events since the last call, oldest first. Never waits: for a timer of a user interface."""
        news = []
        while True:
            try:
                news.append(self._news.popleft())
            except IndexError:
                return news

    def wait(self, timeout: float | None = None) -> Event | None:
        """Wait for the final event; None where it did not come within ``timeout`` seconds."""
        self._done.wait(timeout)
        return self.final

    def result(self, timeout: float | None = None) -> Event:
        """Wait for the result event.

        Raises:
            EngineError: the operation failed, or the worker died (the request after it starts a new one).
            Cancelled: it was cancelled.
            TimeoutError: nothing came within ``timeout`` seconds; the request goes on.
        """
        final = self.wait(timeout)
        if final is None:
            raise TimeoutError(f"'{self.op}' was not done within {timeout:g} s")
        if final.name == protocol.CANCELLED:
            raise Cancelled
        if final.name == protocol.ERROR:
            raise EngineError(final.message, final.get("kind", "internal"), final.get("detail", ""))
        return final

    def cancel(self, grace_s: float = 1.5) -> None:
        """See ``Client.cancel``."""
        self._client.cancel(self, grace_s)

    def stop(self) -> None:
        """Ask a running operation to end early with what it has; its result still comes. See ``Client.stop``."""
        self._client.stop(self)

    def release(self) -> None:
        """Remove its files: to be called when the result was taken."""
        folders.remove(self.folder)


class Client:
    """Starts the worker when first needed, restarts it after a crash, and leaves neither process nor file behind.

    Args:
        python: the interpreter for the worker; None for this one, or inside Slicer its PythonSlicer.
        environment: the worker's environment variables; None for this process's.
        on_event: called with (request, event) for each event, on a background thread; for scripts. It must not wait.
        start_timeout_s: how long a worker may take to say its first word (nothing heavy is imported before it).
    """

    def __init__(
        self,
        python: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        on_event: Callable[[Request, Event], None] | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        self._python = Path(python) if python else None
        self._environment = environment
        self._on_event = on_event
        self._start_timeout_s = start_timeout_s
        self._lock = threading.RLock()
        self._process: WorkerProcess | None = None
        self._open: dict[int, Request] = {}
        self._next_id = 1
        self._folder: Path | None = None
        self._closed = False
        self._owner = os.getpid()
        self.last_log = ""
        atexit.register(self.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """True while a worker process is there."""
        process = self._process
        return process is not None and not process.ended.is_set()

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id; None before it said its first word."""
        process = self._process
        return process.pid if process is not None else None

    def new_folder(self) -> Path:
        """A new private folder for one request's files, to be given as ``folder``: put inputs there before asking.

        Raises:
            EngineError: the client is closed, or the temporary folder cannot be written.
        """
        with self._lock:
            if self._closed:
                raise EngineError("The compute process was closed with its client: make a new Client.")
            try:
                if self._folder is None:
                    self._folder = folders.make_private_folder()
                elif not self._folder.is_dir():  # cleaned away; the worker that runs knows it by this name
                    self._folder.mkdir(mode=0o700)
                folder = self._folder / f"request-{self._next_id}"
                self._next_id += 1
                folder.mkdir(mode=0o700)
            except OSError as error:
                raise EngineError(
                    f"No file can be put into the temporary folder ({error}). Most often the disk is full: free some "
                    "space and try again. If it persists, restart the application.",
                    "user",
                ) from error
            return folder

    def request(self, op: str, *, folder: Path | None = None, **fields: Any) -> Request:
        """Ask for an operation; returns at once, whatever happens.

        The worker is started if none runs. Requests are served one after the other. What goes wrong, a Python that
        cannot be started too, arrives as the request's error event. ``fields`` must be what JSON can say; ``folder``
        comes from ``new_folder`` (None: one is made).

        Raises:
            EngineError: as ``new_folder``.
            TypeError: a field is nothing that JSON can say.
        """
        folder = folder or self.new_folder()
        with self._lock:
            request = Request(self, self._next_id, op, folder)
            self._next_id += 1
            message = {"id": request.id, "op": op, **fields, "folder": str(folder)}
            protocol.encode(message)  # raises before anything is open
            self._open[request.id] = request
            try:
                request._process = process = self._running_process()
            except OSError as error:
                failure = self._cannot_start(error)
            else:
                process.send(message)
                return request
        self._finish(request, _error(request, failure))
        return request

    def segment(
        self,
        t1: str | Path | None = None,
        t2: str | Path | None = None,
        *,
        model: str | None = None,
        device: str = "auto",
        engine: str = "auto",
        options: Any = None,
        name: str | None = None,
        age_weeks: float | None = None,
        folder: Path | None = None,
    ) -> Request:
        """Segment one newborn from the files ``t1`` and ``t2`` (one at least).

        ``options`` is a SegmentOptions or a dictionary of its fields. The result's fields are those told in
        operations.segment; its files live in ``request.folder`` until ``request.release()``.
        """
        if dataclasses.is_dataclass(options) and not isinstance(options, type):
            options = dataclasses.asdict(options)
        return self.request(
            "segment",
            folder=folder,
            t1=_absolute(t1),
            t2=_absolute(t2),
            model=model,
            device=device,
            engine=engine,
            options=dict(options or {}),
            name=name,
            age_weeks=age_weeks,
        )

    def cancel(self, request: Request, grace_s: float = 1.5) -> None:
        """Ask to stop; returns at once. The request's "cancelled" event comes within ``grace_s`` and a moment.

        A worker that does not stop by itself in time is killed with its children; the event then says ``forced``, and
        the next request starts a new worker. A result that was ready before stays a result. A request whose turn has
        not come is cancelled at once, and what the worker is busy with goes on.
        """
        with self._lock:
            if request.id not in self._open or request._cancel_asked:
                return
            request._cancel_asked = True
            assert request._process is not None
            request._process.send({"id": request.id, "op": "cancel"})
            waits = any(o.id < request.id and o._process is request._process for o in self._open.values())
            if not waits:
                timer = threading.Timer(grace_s, self._force, (request,))
                timer.daemon = True
                timer.start()
        if waits:
            self._finish(request, Event(request.id, protocol.CANCELLED, {"forced": False}))

    def stop(self, request: Request) -> None:
        """Ask a running operation to end early with what it has; nothing is forced. No effect once it has ended."""
        with self._lock:
            if request.id in self._open and request._process is not None:
                request._process.send({"id": request.id, "op": "stop"})

    def close(self) -> None:
        """End the worker and remove all files. Open requests become "cancelled". May be called more than once."""
        if os.getpid() != self._owner:  # a fork of the application: the worker is not ours
            return
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
            open_requests = list(self._open.values())
            for request in open_requests:
                request._cancel_asked = True
        if process is not None:
            process.shut_down()
            process.ended.wait(2.0)
        for request in open_requests:
            self._finish(request, Event(request.id, protocol.CANCELLED, {"forced": True}))
            request.wait(1.0)  # where the listening thread was faster and is about to tell it
        if self._folder is not None:
            folders.remove(self._folder)
        atexit.unregister(self.close)

    def _running_process(self) -> WorkerProcess:
        if self._closed:
            raise EngineError("The compute process was closed with its client: make a new Client.")
        if self._process is None or self._process.ended.is_set():
            python = self._python or find_python()
            if python is None:
                raise FileNotFoundError("neither this program's Python nor a PythonSlicer beside it was found")
            assert self._folder is not None
            self._process = WorkerProcess(
                python,
                self._folder,
                worker_environment(self._environment),
                self._start_timeout_s,
                on_event=lambda _, event: self._deliver(event),
                on_end=self._ended,
            )
        return self._process

    def _cannot_start(self, error: OSError) -> dict[str, Any]:
        where = self._python or find_python() or "an unknown Python"
        message = (
            f"The compute process could not be started with {where} ({error.strerror or error}): choose the Python in "
            "which NeonatalSeg is installed (in Slicer: PythonSlicer, beside the application)."
        )
        return {"kind": "user", "message": message, "detail": repr(error)}

    def _deliver(self, event: Event) -> None:
        with self._lock:
            request = self._open.get(event.id)
        if request is None:  # cancelled or released meanwhile
            return
        if event.final:
            self._finish(request, event)
        else:
            self._tell(request, event)

    def _finish(self, request: Request, event: Event) -> None:
        with self._lock:
            if self._open.pop(request.id, None) is None:
                return
        if event.name == protocol.RESULT:
            with contextlib.suppress(OSError):
                request.folder.rmdir()  # succeeds only where the operation wrote nothing
        else:
            request.release()
        request._final = event
        self._tell(request, event)
        request._done.set()

    def _tell(self, request: Request, event: Event) -> None:
        request._news.append(event)
        if self._on_event is not None:
            self._on_event(request, event)

    def _force(self, request: Request) -> None:
        with self._lock:
            if request.id not in self._open:
                return
            process = request._process
            if process is self._process:
                self._process = None  # a request made from now on gets a new worker
        if process is not None:
            process.kill()

    def _ended(self, process: WorkerProcess) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
            orphans = [request for request in self._open.values() if request._process is process]
            forced = any(request._cancel_asked for request in orphans)
        self.last_log = process.log()
        for request in orphans:
            if request._cancel_asked:
                self._finish(request, Event(request.id, protocol.CANCELLED, {"forced": True}))
                continue
            message = process.reason()
            if forced:
                message = "The compute process was ended because a request before this one was cancelled: run it again."
            self._finish(request, _error(request, {"kind": "internal", "message": message, "detail": self.last_log}))


def _error(request: Request, fields: dict[str, Any]) -> Event:
    return Event(request.id, protocol.ERROR, fields)


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
