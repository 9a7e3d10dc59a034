"""The private folder through which arrays travel, and its removal whatever happens."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from NeonatalSegLib.files import leftovers

PREFIX = "neonatalseg-"


def make_private_folder() -> Path:
    """A new folder that only this user can read, in the system's temporary folder, named after this process.

    Folders left by a machine that lost power, or by an application that was killed together with its worker, are
    removed on the way, with the scans in them.
    """
    root = Path(tempfile.gettempdir())
    leftovers.sweep(root, PREFIX)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{leftovers.mark()}-", dir=root))


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
