"""The compute process: ``python -m NeonatalSegLib.engine.worker``, started by the client, one for many requests.

Three threads: the main thread computes, always the same one (cuDNN keeps its plans per thread); one reads lines, so
that a cancel is seen while the main thread computes; one watches the parent. When the parent is gone, or closes the
pipe, the process removes its private folder and ends at once, in the middle of a computation if need be.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

if not __package__:  # run by its path: this file's folder on sys.path would let protocol.py shadow other packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from NeonatalSegLib.engine import folders, protocol
from NeonatalSegLib.engine.operations.job import WarmModels
from NeonatalSegLib.engine.operations.table import OPERATIONS
from NeonatalSegLib.errors import Cancelled, NeonatalSegError

PARENT_CHECK_S = 1.0
PROGRESS_INTERVAL_S = 0.1
DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class RunningJob:
    """One request: what it asks, whether it is to stop, and where its progress goes."""

    def __init__(self, message: dict[str, Any], outlet: Outlet) -> None:
        self.id: int = message["id"]
        self.op: str = message["op"]
        self.fields = message
        self.cancelled, self.stopping = threading.Event(), threading.Event()
        self._outlet = outlet
        self._stage, self._said_at = "", 0.0
        self._origin: tuple[float, float] | None = None
        self._expected_end: float | None = None

    @property
    def folder(self) -> Path:
        """Where the operation's files go."""
        if not self.fields.get("folder"):
            raise NeonatalSegError(f"The request '{self.op}' names no folder for its results: give 'folder'.")
        return Path(self.fields["folder"])

    @property
    def stop_asked(self) -> bool:
        """True once the client wants the operation to end early with what it has."""
        return self.stopping.is_set()

    def progress(self, stage: str, fraction: float, **more: Any) -> None:
        """Say how far the work is, at most ten times a second; raises Cancelled when it is to stop.

        ``more`` goes into the event; what the operation wants told in any case goes into its result as well.
        """
        if self.cancelled.is_set():
            raise Cancelled
        now = time.monotonic()
        if stage == self._stage and now - self._said_at < PROGRESS_INTERVAL_S:
            return
        self._stage, self._said_at = stage, now
        fraction = min(max(float(fraction), 0.0), 1.0)
        left = self._seconds_left(now, fraction)
        event = {"stage": stage, "fraction": round(fraction, 4), "seconds_left": left, **more}
        self._outlet.send(self.id, protocol.PROGRESS, event)

    def expect(self, seconds: float | None) -> None:
        """Tell the time left from ``seconds`` from now on, instead of from the fraction done; None changes nothing."""
        self._expected_end = None if seconds is None else time.monotonic() + seconds

    def _seconds_left(self, now: float, fraction: float) -> float | None:
        if self._expected_end is not None:
            return round(max(self._expected_end - now, 0.0), 1)
        # Loading the model happens at fraction 0 and says nothing about the rest, so the clock starts at the first
        # report above 0; two percent later the estimate is worth showing.
        if self._origin is None:
            self._origin = (now, fraction) if fraction > 0 else None
            return None
        started, first = self._origin
        if fraction - first < 0.02:
            return None
        return round((now - started) * (1.0 - fraction) / (fraction - first), 1)


class Outlet:
    """The pipe to the client: whole lines only, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.lock = threading.Lock()

    def send(self, number: int, event: str, fields: dict[str, Any]) -> None:
        """Write one event. A pipe that nobody reads any more is not an error here: the reader ends the process."""
        line = protocol.encode({"id": number, "event": event, **fields})
        with self.lock, contextlib.suppress(BrokenPipeError):
            self._stream.write(line)
            self._stream.flush()


class Worker:
    """Reads requests from ``inlet`` and serves them one after the other on the thread that calls ``run``."""

    def __init__(self, inlet: BinaryIO, outlet: Outlet, folder: Path | None) -> None:
        self._inlet, self._outlet, self._folder = inlet, outlet, folder
        self._jobs: queue.Queue[RunningJob] = queue.Queue()
        self._open: dict[int, RunningJob] = {}
        self._models = WarmModels()

    def run(self) -> NoReturn:
        """Serve until the process ends; ``leave`` is the only way out."""
        # Before the reader starts: it ends the process where the pipe is closed already.
        self._outlet.send(0, protocol.READY, {"pid": os.getpid(), "protocol": protocol.PROTOCOL_VERSION})
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            self._serve(self._jobs.get())

    def leave(self) -> NoReturn:
        """Remove the private folder and end the process now, whatever it computes."""
        self._outlet.lock.acquire(timeout=1.0)  # held to the end, so that no line is cut in the middle
        if self._folder is not None:
            folders.remove(self._folder)
        os._exit(0)

    def _read(self) -> None:
        for line in self._inlet:
            try:
                message = protocol.decode(line)
            except ValueError as error:
                print(f"ignored a line that is not a request: {error}", file=sys.stderr, flush=True)
                continue
            op, number = message.get("op"), message.get("id")
            if op == "shutdown":
                break
            if not isinstance(number, int) or not isinstance(op, str):
                print("ignored a request without a whole number 'id' and a text 'op'", file=sys.stderr, flush=True)
            elif op in ("cancel", "stop"):
                if job := self._open.get(number):
                    (job.cancelled if op == "cancel" else job.stopping).set()
            else:
                self._open[number] = job = RunningJob(message, self._outlet)
                self._jobs.put(job)
        self.leave()

    def _serve(self, job: RunningJob) -> None:
        try:
            if job.cancelled.is_set():
                raise Cancelled
            if job.op not in OPERATIONS:
                known = ", ".join([*OPERATIONS, "cancel", "stop", "shutdown"])
                raise NeonatalSegError(f"The compute process knows no operation '{job.op}': it knows {known}.")
            event, fields = protocol.RESULT, OPERATIONS[job.op](job, self._models)
            protocol.encode(fields)  # a result that JSON cannot say is an error of the operation, not of the process
        except Cancelled:
            event, fields = protocol.CANCELLED, {"forced": False}
        except Exception as error:  # the border of the process: every failure is told to the client
            event, fields = protocol.ERROR, describe(error)
        self._open.pop(job.id, None)
        self._outlet.send(job.id, event, fields)


def describe(error: Exception) -> dict[str, Any]:
    """An error event's fields: kind, one clear sentence, the traceback where it may help a programmer."""
    detail = "".join(traceback.format_exception(error))
    if isinstance(error, NeonatalSegError):
        return {"kind": "user", "message": str(error), "detail": detail if error.__cause__ else ""}
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("NeonatalSegLib"):
        package = (error.name or "?").split(".")[0]
        message = f"The Python at {sys.executable} has no package '{package}': install it there, then run this again."
        return {"kind": "user", "message": message, "detail": detail, "missing": package}
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        message = (
            f"The disk is full{f' ({error.filename})' if error.filename else ''}: free some space, or set the "
            "environment variable TMPDIR (on Windows TEMP) to a folder on another disk, and run this again."
        )
        return {"kind": "user", "message": message, "detail": detail}
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate" in str(error):
        message = "There is not enough memory for this scan: close other programs, or choose the CPU as device."
        return {"kind": "user", "message": message, "detail": detail}
    summary = (str(error).strip().splitlines() or ["no further text"])[0]
    message = f"The compute process met an unexpected error ({type(error).__name__}: {summary})."
    return {"kind": "internal", "message": message, "detail": detail}


def start_parent_watch(pid: int, leave: Callable[[], object]) -> None:
    """Call ``leave`` when process ``pid`` is gone: a grandchild of the parent may hold the pipe open beyond its end.

    psutil is imported here, on the calling thread: an import that hangs later stops all other threads' imports.
    """
    try:
        import psutil
    except ImportError:
        if os.name == "nt":  # there os.kill would end the parent; the closed pipe remains as the sign
            return

        def alive() -> bool:
            with contextlib.suppress(PermissionError):
                os.kill(pid, 0)
            return True

        gone: type[Exception] = ProcessLookupError
    else:
        gone = psutil.NoSuchProcess
        try:
            parent = psutil.Process(pid)
        except psutil.NoSuchProcess:
            leave()
            return

        def alive() -> bool:
            return parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE

    pause = threading.Event()

    def watch() -> None:
        with contextlib.suppress(gone):
            while alive():
                pause.wait(PARENT_CHECK_S)
        leave()

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def claim_streams() -> tuple[BinaryIO, BinaryIO]:
    """The two pipes for the protocol alone; whatever a library prints goes to stderr, and stdin reads nothing."""
    inlet, outlet = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return inlet, outlet


def main(arguments: list[str] | None = None) -> NoReturn:
    """Serve requests on stdin until it closes."""
    parser = argparse.ArgumentParser(prog="python -m NeonatalSegLib.engine.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, help="private folder, removed when the parent is gone")
    parser.add_argument("--parent", type=int, help="process id of the parent to watch")
    given = parser.parse_args(arguments)

    inlet, outlet = claim_streams()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent, which then tells us
    worker = Worker(inlet, Outlet(outlet), given.folder)
    if given.parent is not None:
        start_parent_watch(given.parent, worker.leave)
    worker.run()


if __name__ == "__main__":
    main()
