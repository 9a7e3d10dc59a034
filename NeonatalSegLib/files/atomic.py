"""Files replaced whole: a reader, a kill or a power cut finds the old file or the new one, never half of one.

Every file that NeonatalSeg writes goes through :func:`write_file` (or its two halves, :func:`stage` and :func:`put`).
Standard library only.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from NeonatalSegLib.files import leftovers

REPLACE_TRIES = 8  # over about a second: on Windows a virus scanner may hold a new file for a moment
PART = ".part-"  # begins the name of every file that is being written


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

    The temporary name is this process's alone, so that two that write one file do not meet in it; what a killed process
    left there goes on the way.

    Raises:
        OSError: the file could not be written; nothing is left behind.
    """
    for part in path.parent.glob(f"{PART}*-{glob.escape(path.name)}"):
        if leftovers.is_left(part):
            leftovers.remove(part)
    part = path.with_name(f"{PART}{leftovers.mark()}-{path.name}")  # the suffix stays: libraries go by it
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # ours, and no link that lay in wait
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


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file; OSError where it cannot be read."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``write`` leaves at the temporary path that it is given; OSError where that fails."""
    part = stage(path, write)
    try:
        put(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, the same bytes on every system; OSError where that fails."""
    write_file(path, lambda part: part.write_bytes(text.encode()))
