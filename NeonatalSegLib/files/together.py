"""Several files of one result, moved to their places all or none.

They are made in a hidden folder beside their places. Before the first is moved, a list of all of them is on the medium:
a process that is killed in between leaves the list, and the next start in that folder moves the rest. A failure that is
no kill puts back what was there. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from NeonatalSegLib.files import atomic, leftovers
from NeonatalSegLib.files.regular import is_link
from NeonatalSegLib.files.settings import parse_object

PREFIX = ".neonatalseg-"  # begins the name of the hidden folder
_MOVING = ".moving.json"  # in it, from the moment when all files are whole: their names
_BEFORE = ".before"  # in it: what is being replaced


def make_staging(folder: Path) -> Path:
    """A new hidden folder in ``folder``, after what killed processes left there was finished or removed.

    Raises:
        OSError: it cannot be made.
    """
    finish_left(folder)
    staging = folder / f"{PREFIX}{leftovers.mark()}"
    staging.mkdir(mode=0o700)
    return staging


def move_together(staging: Path, names: Sequence[str]) -> None:
    """Move files from ``staging`` to the folder around it, over those of the same name, the last one last.

    Args:
        names: of files in ``staging``, which may lie in folders there ("models/model.pt").

    Raises:
        OSError: they could not all be moved; everything is as it was.
    """
    folder = staging.parent
    for name in names:
        with (staging / name).open("r+b") as stream:
            atomic.sync(stream)
    for folder_of in {Path(name).parent for name in names}:
        (folder / folder_of).mkdir(parents=True, exist_ok=True)
        (staging / _BEFORE / folder_of).mkdir(parents=True, exist_ok=True)
    atomic.write_text(staging / _MOVING, json.dumps({"names": list(names)}))
    with _alone(folder):
        moved: list[str] = []
        try:
            for name in names:
                _keep(folder / name, staging / _BEFORE / name)
                moved.append(name)
                atomic.put(staging / name, folder / name)
        except BaseException:
            (staging / _MOVING).unlink(missing_ok=True)
            for name in reversed(moved):
                _put_back(staging / _BEFORE / name, folder / name, staging / name)
            raise
    for name in names:
        atomic.sync_folder((folder / name).parent)


def finish_left(folder: Path) -> None:
    """Finish or remove what killed processes left in ``folder``; never raises."""
    with contextlib.suppress(OSError):
        for staging in [p for p in folder.iterdir() if p.name.startswith(PREFIX)]:
            if leftovers.is_left(staging) and stat.S_ISDIR(staging.lstat().st_mode):
                with _alone(folder):
                    _finish(staging)
                    leftovers.remove(staging)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process moves files in ``folder``, so that two results do not mix.

    The folder itself is locked, and nothing is left in it. Windows and some network drives know no such lock: there the
    last file moved of two processes that write one result at the same moment may be of the other.
    """
    handle = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _finish(staging: Path) -> None:
    """Move the rest of a list; a file that somebody has written since then stays."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        moving = staging / _MOVING
        since = moving.lstat().st_mtime_ns
        for name in parse_object(moving.read_bytes())["names"]:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
                raise ValueError(name)
            source, target = staging / name, staging.parent / name
            if not (source.exists() and stat.S_ISREG(source.lstat().st_mode)):
                continue
            if not target.exists() or target.lstat().st_mtime_ns <= since:
                atomic.put(source, target)


def _keep(path: Path, kept: Path) -> None:
    """A second name for ``path`` where the file system has them, so that no moment is without the file; else a move."""
    if not os.path.lexists(path):
        return
    if path.is_dir() and not is_link(path):
        raise IsADirectoryError(errno.EISDIR, "there is a folder of that name", str(path))
    try:
        os.link(path, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):
        atomic.put(path, kept)


def _put_back(kept: Path, path: Path, source: Path) -> None:
    with contextlib.suppress(OSError):
        if os.path.lexists(kept):
            atomic.put(kept, path)
        elif not source.exists():  # it was moved, and nothing was there before
            path.unlink(missing_ok=True)
