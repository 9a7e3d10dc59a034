"""A file of JSON lines that only grows; a line is on the medium when its append returns. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import sync, sync_folder
from NeonatalSegLib.files.regular import open_regular
from NeonatalSegLib.files.settings import parse_object

MOST_BYTES = 200_000_000  # a completed slice takes about 10 kB


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a ledger (a file of JSON lines that only grows), and how many of its bytes they take.

    A last line without its end, or that is not JSON, was left by a kill or a power cut while it was written: it does
    not count. A missing file has no lines.

    Raises:
        NeonatalSegError: unreadable, or damaged before its last line.
    """
    try:
        with open_regular(path) as stream:
            if (size := os.fstat(stream.fileno()).st_size) > MOST_BYTES:
                raise NeonatalSegError(f"{path} is {size / 1e6:.0f} MB large: expected {MOST_BYTES / 1e6:.0f} at most.")
            data = stream.read()
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
    """Appends to a ledger of which ``length`` bytes count (see :func:`read_ledger`), and cuts nothing that counts."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self._length = length
        self._met_another = False

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line; it is on the medium when this returns.

        Raises:
            OSError: it could not be written, or another program has written into the ledger since it was read; the
                ledger is as it was.
        """
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with open_regular(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as stream:
            self._cut_torn_line(stream)
            try:
                # A raw write may stop short where the disk is full; the next one then says so.
                rest = memoryview(text)
                while rest:
                    rest = rest[stream.write(rest) :]
                sync(stream)
            except OSError:
                with contextlib.suppress(OSError):
                    if text.startswith(self._tail(stream)):  # ours alone
                        stream.truncate(self._length)
                raise
            # Another program came in between: both lines are whole and kept, and this one goes no further.
            self._met_another = stream.seek(0, os.SEEK_END) != self._length + len(text)
        if self._length == 0:
            sync_folder(self.path.parent)
        self._length += len(text)

    def _cut_torn_line(self, stream: BinaryIO) -> None:
        """Cut what a kill or a full disk left of one line; anything else is another program's work, and stays."""
        if stream.seek(0, os.SEEK_END) < self._length:
            raise OSError(errno.EIO, f"{self.path.name} was shortened by another program: close the study")
        tail = self._tail(stream)
        if self._met_another or (tail and (b"\n" in tail[:-1] or _parse(tail) is not None)):
            raise OSError(
                errno.EBUSY, f"another program wrote into {self.path.name}: close the study and open it again"
            )
        if tail:
            stream.truncate(self._length)

    def _tail(self, stream: BinaryIO) -> bytes:
        """What stands behind the bytes that count."""
        stream.seek(self._length)
        return stream.read()


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return parse_object(line)
    except ValueError:
        return None
