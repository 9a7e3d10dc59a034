"""Files that survive a kill or a power cut: replaced whole, appended line by line, written by one process at a time.

Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from NeonatalSegLib.errors import NeonatalSegError

REPLACE_TRIES = 8  # over about a second: on Windows a virus scanner may hold a new file for a moment
LOCKED_BYTE = 1 << 30  # Windows locks bytes against reading as well: one far behind the text


def now() -> str:
    """The time in UTC as ISO text with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sync(stream: BinaryIO) -> None:
    """Have the system write a file's data to the medium."""
    stream.flush()
    os.fsync(stream.fileno())
    with contextlib.suppress(ImportError, AttributeError, OSError):  # macOS: fsync stops at the drive's own cache
        import fcntl

        fcntl.fcntl(stream.fileno(), fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]


def sync_folder(folder: Path) -> None:
    """Make new names in ``folder`` last (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_folder(folder: Path) -> None:
    """Make ``folder`` and one file in it that goes again: before the work, whether its results can be kept.

    Raises:
        OSError: they cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def stage(path: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a temporary path beside ``path`` and sync what it wrote; :func:`put` is the second half.

    Raises:
        OSError: the file could not be written; nothing is left behind.
    """
    part = path.with_name(f".part-{path.name}")  # the suffix stays: libraries go by it
    try:
        write(part)
        with part.open("r+b") as stream:
            sync(stream)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def put(part: Path, path: Path) -> None:
    """Move a staged file to its place: a reader sees the old file or the new one, whatever happens.

    The new name lasts through a power cut once :func:`sync_folder` was called as well.
    """
    for attempt in range(REPLACE_TRIES):
        try:
            os.replace(part, path)
            break
        except PermissionError:
            if os.name != "nt" or attempt == REPLACE_TRIES - 1:
                raise
            time.sleep(0.01 * 2**attempt)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``write`` leaves at the temporary path that it is given; OSError where that fails."""
    put(stage(path, write), path)
    sync_folder(path.parent)


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a ledger (a file of JSON lines that only grows), and how many of its bytes they take.

    A last line without its end, or that is no JSON, was left by a kill or a power cut while it was written: it does not
    count. A missing file has no lines.

    Raises:
        NeonatalSegError: unreadable, or damaged before its last line.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise NeonatalSegError(f"{path} could not be read ({error.strerror or error}).") from error
    parsed = [(len(line), _parse(line)) for line in data.splitlines(keepends=True)]
    if parsed and parsed[-1][1] is None:
        parsed.pop()
    lines = [value for _, value in parsed if value is not None]
    if len(lines) < len(parsed):
        number = next(i for i, (_, value) in enumerate(parsed, 1) if value is None)
        raise NeonatalSegError(
            f"{path} is damaged at line {number}: expected a line of JSON. Restore the file from a backup, or remove "
            "that line (what it recorded is then to do again)."
        )
    return lines, sum(length for length, _ in parsed)


class Ledger:
    """Appends to a ledger of which ``length`` bytes count (see :func:`read_ledger`)."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self._length = length

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is on the medium when this returns.

        Raises:
            OSError: it could not be written; the ledger is as it was.
        """
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with self.path.open("ab", buffering=0) as stream:
            if stream.tell() < self._length:
                raise OSError(errno.EIO, f"{self.path.name} was shortened by another program")
            try:
                stream.truncate(self._length)  # a torn line, or the remains of an append that failed
                # A raw write may stop short where the disk is full; the next one then says so.
                rest = memoryview(text)
                while rest:
                    rest = rest[stream.write(rest) :]
                sync(stream)
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(self._length)
                raise
        if self._length == 0:
            sync_folder(self.path.parent)
        self._length += len(text)


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class Lock:
    """A file that one process holds at a time; the system lets go of it when the process ends, however it ends.

    Its text says who holds it. Some network drives do not carry locks between computers: the text of another
    computer therefore counts as held.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock at ``path``.

        Raises:
            BlockingIOError: another process holds it; the message says which and since when.
            OSError: the file cannot be written.
        """
        path.touch()
        self._stream = path.open("r+b", buffering=0)
        try:
            taken, holder = _take(self._stream), _holder(path)
            if taken is None:
                taken = not _alive(holder)
            elsewhere = holder.get("host", platform.node()) != platform.node()
            if not taken or elsewhere:
                raise BlockingIOError(_holder_text(holder, path if taken else None))
            text = {"process": os.getpid(), "host": platform.node(), "since": now()}
            self._write(json.dumps(text).encode())
        except BaseException:
            self._stream.close()
            raise

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if not self._stream.closed:
            with contextlib.suppress(OSError):
                self._write(b"")
            self._stream.close()

    def _write(self, text: bytes) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        self._stream.write(text)


def _take(stream: BinaryIO) -> bool | None:
    """Lock an open file without waiting; None where the file system knows no locks."""
    try:
        if os.name == "nt":
            import msvcrt

            stream.seek(LOCKED_BYTE)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _alive(holder: Mapping[str, Any]) -> bool:
    """Whether the process on this computer that wrote itself into a lock file still runs (not asked on Windows)."""
    number = holder.get("process")
    if os.name == "nt" or not isinstance(number, int):
        return False
    try:
        os.kill(number, 0)  # no signal: only asks
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def _holder(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _holder_text(holder: Mapping[str, Any], remove: Path | None) -> str:
    if not holder:
        return "another process"
    text = f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"
    return f"{text} (if it has ended, delete {remove})" if remove else text
