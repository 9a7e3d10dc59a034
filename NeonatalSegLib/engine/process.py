"""One run of the worker: started, listened to, and ended with all its children. The client above decides when."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from NeonatalSegLib.engine import protocol
from NeonatalSegLib.engine.interpreter import LIBRARY_PARENT
from NeonatalSegLib.engine.protocol import Event

KEPT_LINES = 200
LONGEST_LINE = 1 << 20
EXIT_GRACE_S = 2.0


class WorkerProcess:
    """A started worker.

    Args:
        python: the interpreter. OSError where it cannot be started.
        folder: the private folder, which the worker removes when this process is gone.
        environment: all of the worker's environment variables.
        start_timeout_s: how long it may take to say "ready"; longer, and it is killed.
        on_event: called with (self, event) for each event but "ready", on a reader thread.
        on_end: called with (self,) once, when the process is gone and all it said was delivered.
    """

    def __init__(
        self,
        python: Path,
        folder: Path,
        environment: Mapping[str, str],
        start_timeout_s: float,
        on_event: Callable[[WorkerProcess, Event], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        self.python = python
        self.pid: int | None = None
        self.garbage: deque[str] = deque(maxlen=KEPT_LINES)
        self.garbage_lines = 0
        self.stderr_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.ended = threading.Event()
        self._on_event, self._on_end = on_event, on_end
        self._start_timeout_s = start_timeout_s
        self._ready = threading.Event()
        self._timed_out = False
        self._worker: Any = None
        self._write_lock = threading.Lock()
        command = [str(python), "-m", "NeonatalSegLib.engine.worker"]
        command += ["--folder", str(folder), "--parent", str(os.getpid())]
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=LIBRARY_PARENT,  # "-m" looks for modules there first: nothing of the user's can stand in for ours
            start_new_session=True,  # no effect on Windows; elsewhere Ctrl-C reaches the parent alone
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # there on Windows only
        )
        self._listeners = [
            threading.Thread(target=self._read_stdout, name="engine stdout", daemon=True),
            threading.Thread(target=self._read_stderr, name="engine stderr", daemon=True),
        ]
        for thread in self._listeners:
            thread.start()
        threading.Thread(target=self._wait, name="engine end", daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Write one request. A worker that is gone is not an error here: ``on_end`` tells of it."""
        assert self._popen.stdin is not None
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            self._popen.stdin.write(protocol.encode(message))
            self._popen.stdin.flush()

    def shut_down(self, wait_s: float = 1.0) -> None:
        """Ask it to end and close the pipe; kill what is left after ``wait_s``. Returns when it is gone."""
        self.send({"op": "shutdown"})
        assert self._popen.stdin is not None
        with self._write_lock, contextlib.suppress(OSError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(wait_s)
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(wait_s)

    def kill(self) -> None:
        """End the process and all its children at once (PythonSlicer is a launcher: the real Python is its child)."""
        try:
            import psutil
        except ImportError:
            self._kill_without_psutil()
            return
        victims: list[Any] = [] if self._worker is None else [self._worker]
        if self._popen.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                victims.append(psutil.Process(self._popen.pid))
        for root in list(victims):
            with contextlib.suppress(psutil.Error):
                victims += root.children(recursive=True)
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()

    def _kill_without_psutil(self) -> None:
        if self._popen.poll() is not None:
            return
        if self.pid is not None and self.pid != self._popen.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        self._popen.kill()

    def reason(self) -> str:
        """Why it ended, as a sentence for a person. To be asked after the end."""
        code = self._popen.poll()
        if self._timed_out:
            said = f" It printed {self.garbage_lines} lines that are not messages." if self.garbage_lines else ""
            return (
                f"The compute process, started with {self.python}, gave no answer within "
                f"{self._start_timeout_s:g} s.{said} "
                "Check that this is the Python in which NeonatalSeg is installed."
            )
        how = _describe_exit(code)
        last = next((line for line in reversed(self.stderr_lines) if line.strip()), "")
        said = f" Its last words: {last.strip()}" if last else ""
        if not self._ready.is_set():
            return f"The compute process could not start with {self.python}: it {how}.{said}"
        return f"The compute process stopped unexpectedly: it {how}. It is started anew for the next request.{said}"

    def log(self) -> str:
        """The last lines it wrote to stderr, and those of stdout that were no messages."""
        return "\n".join([*self.stderr_lines, *(f"[stdout] {line}" for line in self.garbage)])

    def _read_stdout(self) -> None:
        assert self._popen.stdout is not None
        for line in _lines(self._popen.stdout):
            try:
                event = protocol.decode_event(line)
            except ValueError:
                self.garbage_lines += 1
                self.garbage.append(line[:1000].decode("utf-8", errors="replace").rstrip())
                continue
            if event.name == protocol.READY:
                self._meet(event.get("pid"))
            else:
                self._on_event(self, event)
        # A worker that closed its output can say nothing more: it has to end too.
        try:
            self._popen.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def _meet(self, pid: int | None) -> None:
        self.pid = pid
        with contextlib.suppress(ImportError):
            import psutil

            with contextlib.suppress(psutil.Error):
                # The object knows when the process began, so that a later process of the same id is never killed.
                self._worker = psutil.Process(pid)
        self._ready.set()

    def _read_stderr(self) -> None:
        assert self._popen.stderr is not None
        for line in _lines(self._popen.stderr):
            self.stderr_lines.append(line[:1000].decode("utf-8", errors="replace").rstrip())

    def _wait(self) -> None:
        watchdog = threading.Timer(self._start_timeout_s, self._give_up_starting)
        watchdog.daemon = True
        watchdog.start()
        self._popen.wait()
        watchdog.cancel()
        self.kill()  # where only the launcher died, the real worker is still there
        for thread in self._listeners:  # what was said before the end counts; a grandchild may hold the pipe for ever
            thread.join(1.0)
        assert self._popen.stdin is not None
        with self._write_lock, contextlib.suppress(OSError):
            self._popen.stdin.close()
        self.ended.set()
        self._on_end(self)

    def _give_up_starting(self) -> None:
        if not self._ready.is_set():
            self._timed_out = True
            self.kill()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a pipe, closed at its end; one without an end is cut, so that garbage cannot fill the memory."""
    with stream:
        yield from iter(lambda: stream.readline(LONGEST_LINE), b"")


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "closed its output"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        hint = ", as happens when memory runs out" if name == "SIGKILL" else ""
        return f"was ended by signal {-code} ({name}{hint})"
    if code >= 0xC0000000:
        return f"crashed (Windows status 0x{code:08X})"
    return f"ended with exit code {code}"
