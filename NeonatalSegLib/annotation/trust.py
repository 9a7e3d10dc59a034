"""Images and earlier rounds outside a study's folder: none is touched before the user has agreed to it, once.

A study that came from elsewhere may name any path: another user's scan, a device, a share on a network that would learn
who opened it. Studies made on this computer name the images that their maker chose; those are agreed to.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import write_text
from NeonatalSegLib.files.regular import is_link

if TYPE_CHECKING:
    from NeonatalSegLib.annotation.study import StudyScan

_agreed_here: set[Path] = set()
_AGREED = ".images-agreed-to"  # a folder in the user's models' folder, with one empty file for every path


class LeavesStudyError(NeonatalSegError):
    """A study names images or studies outside its folder that nobody has agreed to; ``paths`` are these."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        super().__init__(
            f"The study {folder} reads images outside its own folder: {paths[0]}{more}. Nothing was read yet. If you "
            "know where this study comes from, open it in the panel and agree, or give --outside to the command."
        )


def outside_of(folder: Path, scans: Iterable[StudyScan], earlier: Iterable[Path] = ()) -> list[Path]:
    """Which images of ``scans`` and ``earlier`` rounds lie outside ``folder`` by path, or behind a link in it.

    None is touched.
    """
    root = _plain(folder)
    images = [path for scan in scans for path in (scan.t1, scan.t2) if path is not None]
    return [path for path in dict.fromkeys(map(_plain, (*images, *earlier))) if _leaves(root, path)]


def check_trusted(folder: Path, scans: Iterable[StudyScan], earlier: Iterable[Path] = ()) -> None:
    """Make sure that the user has agreed to every image and earlier round outside the study.

    Raises:
        LeavesStudyError: there are others.
    """
    if new := [path for path in outside_of(folder, scans, earlier) if not _is_agreed(path)]:
        raise LeavesStudyError(folder, new)


def trust(paths: Iterable[Path]) -> None:
    """Note that the user agrees to these images; where it cannot be noted, it holds until this process ends."""
    for path in map(_plain, paths):
        try:
            note = _agreement(path)
            if not note.exists():
                note.parent.mkdir(parents=True, exist_ok=True)
                write_text(note, "")
        except (OSError, NeonatalSegError):
            _agreed_here.add(path)


def _is_agreed(path: Path) -> bool:
    if path in _agreed_here:
        return True
    try:
        return _agreement(path).exists()
    except (OSError, NeonatalSegError):  # no home folder, or not this user's
        return False


def _agreement(path: Path) -> Path:
    from NeonatalSegLib.models.history import user_folder

    return user_folder() / _AGREED / hashlib.sha256(os.fsencode(path)).hexdigest()


def _plain(path: Path) -> Path:
    """Absolute, without "..": by its text alone, since to resolve a share's path is to touch the share."""
    return Path(os.path.normpath(os.path.abspath(path)))  # noqa: PTH100


def _leaves(root: Path, path: Path) -> bool:
    if not path.is_relative_to(root):
        return True
    step = root
    for part in path.relative_to(root).parts:
        step = step / part
        if is_link(step):
            return True
    return False
