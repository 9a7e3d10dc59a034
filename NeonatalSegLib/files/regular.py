"""Files inside a folder that came from somebody else: regular ones only, and no link is followed out of it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from NeonatalSegLib.errors import NeonatalSegError

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """Open a file that is no link, no device and no pipe, unbuffered; ``flags`` as for ``os.open``.

    Raises:
        OSError: it is one of these (ELOOP, EINVAL), or it cannot be opened.
    """
    if is_link(path):  # Windows cannot be told to refuse a link on opening
        raise OSError(errno.ELOOP, "it is a link, and links are not followed here", str(path))
    handle = os.open(path, flags | _NO_LINK, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        mode = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "r+b"}[flags & (os.O_WRONLY | os.O_RDWR)]
        return os.fdopen(handle, mode, buffering=0)  # type: ignore[return-value]
    except BaseException:
        os.close(handle)
        raise


def is_link(path: Path) -> bool:
    """True for a symbolic link and for a junction of Windows."""
    return path.is_symlink() or bool(getattr(os.path, "isjunction", lambda _: False)(path))


def check_no_links(root: Path, path: Path) -> None:
    """Make sure that the way from the folder ``root`` down to ``path`` passes no link, and ends in none.

    ``root`` itself may be a link: its user chose it. Parts that are not there yet are no links.

    Raises:
        NeonatalSegError: there is one; the message names it.
    """
    step = root
    for part in path.relative_to(root).parts:
        step = step / part
        if is_link(step):
            raise NeonatalSegError(
                f"{step} is a link, which may lead to files outside {root}: nothing was read or written through it. "
                "Replace it by the folder or file itself."
            )
