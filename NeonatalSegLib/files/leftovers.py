"""Temporary files and folders that name their maker, so that the next start can sweep what a killed process left.

A mark is ``<computer>-<process>-<random>``. What a process on this computer left goes as soon as that process has
ended; what another computer left on a shared drive goes when nothing has touched it for a day, since nobody here can
ask whether its maker still runs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import time
import uuid
import zlib
from pathlib import Path

STALE_AFTER_S = 24 * 3600.0
_MARK = re.compile(r"([0-9a-f]{8})-(\d{1,10})-[0-9a-f]{8}")


def mark() -> str:
    """A new mark of this process: 17 to 28 signs, each call another."""
    return f"{_computer()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def is_left(path: Path) -> bool:
    """True where the name of ``path`` bears a mark and its maker is gone; never raises."""
    found = _MARK.search(path.name)
    if found is None:
        return False
    if found[1] == _computer():
        return not is_running(int(found[2]))
    try:
        return time.time() - path.lstat().st_mtime > STALE_AFTER_S
    except OSError:
        return False


def sweep(folder: Path, prefix: str) -> None:
    """Remove what gone processes left in ``folder`` under names that begin with ``prefix``; never raises.

    Only what this user owns goes, and of a link the link alone.
    """
    with contextlib.suppress(OSError):
        for path in [p for p in folder.iterdir() if p.name.startswith(prefix)]:
            if is_left(path):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder with all that is in it, where it is this user's own."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)  # follows no links
        else:
            path.unlink()


def is_running(process: int) -> bool:
    """Whether a process of this number runs on this computer; True also where the system will not say."""
    if os.name == "nt":
        return _is_running_on_windows(process)
    try:
        os.kill(process, 0)  # no signal: only asks
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # another user's
    return True


def _is_running_on_windows(process: int) -> bool:
    import ctypes

    access, still_active = 0x1000, 259  # PROCESS_QUERY_LIMITED_INFORMATION, STILL_ACTIVE
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(access, False, process)
    if not handle:
        return bool(kernel.GetLastError() == 5)  # ERROR_ACCESS_DENIED: it runs, for another user
    status = ctypes.c_ulong()
    kernel.GetExitCodeProcess(handle, ctypes.byref(status))
    kernel.CloseHandle(handle)
    return status.value == still_active


def _computer() -> str:
    """Eight hexadecimal digits: this computer; on Linux this container, whose process numbers are its own."""
    where = platform.node()
    with contextlib.suppress(OSError):
        where += str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(where.encode()):08x}"
