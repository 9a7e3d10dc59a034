"""A file that one process holds at a time. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from NeonatalSegLib.files.atomic import now, sync
from NeonatalSegLib.files.leftovers import is_running, mark
from NeonatalSegLib.files.regular import open_regular
from NeonatalSegLib.files.settings import parse_object

LOCKED_BYTE = 1 << 30  # Windows locks bytes against reading as well: one far behind the text
MOST_TEXT_BYTES = 4096


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
        self.path = path
        self._stream = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            taken, holder = _take(self._stream), _holder(path)
            if taken is None:
                taken = not _alive(holder)
            elsewhere = holder.get("host", platform.node()) != platform.node()
            if not taken or elsewhere:
                raise BlockingIOError(_holder_text(holder, path if taken else None))
            holder = {"process": os.getpid(), "host": platform.node(), "since": now(), "mark": mark()}
            self._text = json.dumps(holder).encode()
            self._write(self._text)
        except BaseException:
            self._stream.close()
            raise

    def check(self) -> None:
        """Make sure that the lock is still this one's own: nobody deleted its file, nor wrote another name into it.

        Raises:
            OSError: it was lost; the message says what to do.
        """
        lost = False
        if os.name != "nt":  # there, nobody can delete a file that is open
            try:
                lost = not os.path.samestat(self.path.lstat(), os.fstat(self._stream.fileno()))
            except FileNotFoundError:
                lost = True
        if not lost:
            self._stream.seek(0)
            lost = self._stream.read() != self._text
        if lost:
            raise OSError(errno.EBUSY, "another program took this study over: close it here, and open it again")

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if not self._stream.closed:
            with contextlib.suppress(OSError):
                self.check()  # a lock that another holds now keeps its text
                self._write(b"")
            self._stream.close()

    def _write(self, text: bytes) -> None:
        self._stream.seek(0)
        self._stream.truncate()
        rest = memoryview(text)
        while rest:  # a raw write may stop short where the disk is full; the next one then says so
            rest = rest[self._stream.write(rest) :]
        sync(self._stream)  # after a power cut it must not say that somebody else is here


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
    """Whether the process on this computer that wrote itself into a lock file still runs."""
    number = holder.get("process")
    return isinstance(number, int) and is_running(number)


def _holder(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as stream:
            return parse_object(stream.read(MOST_TEXT_BYTES) or b"{}")
    except (OSError, ValueError):
        return {}


def _holder_text(holder: Mapping[str, Any], remove: Path | None) -> str:
    if not holder:
        return "another process"
    text = f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"
    return f"{text} (if it has ended, delete {remove})" if remove else text
