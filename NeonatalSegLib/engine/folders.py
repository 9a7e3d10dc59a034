"""The private folder through which arrays travel, and its removal whatever happens."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "neonatalseg-"
STALE_AFTER_S = 24 * 3600.0


def make_private_folder() -> Path:
    """A new folder that only this user can read, in the system's temporary folder, named after this process.

    Folders left by a machine that lost power, or by an application that was killed together with its worker, are
    removed on the way: those of processes that are gone and that nothing has touched for a day.
    """
    _remove_stale(Path(tempfile.gettempdir()))
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def remove(folder: Path) -> bool:
    """Remove ``folder`` with all that is in it; True when it is gone. Never raises.

    It is renamed first where that works, so that somebody still writing cannot put a new file into it meanwhile.
    """
    doomed = folder.with_name(folder.name + ".removed")
    try:
        folder.rename(doomed)
    except OSError:
        doomed = folder
    for _ in range(3):
        shutil.rmtree(doomed, ignore_errors=True)
        if not doomed.exists():
            return True
    return False


def _remove_stale(root: Path) -> None:
    try:
        import psutil
    except ImportError:
        return
    for folder in root.glob(f"{PREFIX}*-*"):
        owner = folder.name[len(PREFIX) :].split("-")[0]
        try:
            status = folder.lstat()
        except OSError:
            continue
        mine = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
        idle = time.time() - status.st_mtime > STALE_AFTER_S
        if mine and idle and owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
