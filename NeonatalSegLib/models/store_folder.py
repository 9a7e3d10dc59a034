"""What changes the folder of the user's models: places claimed, bundles that appear or go by one rename, one lock."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import leftovers
from NeonatalSegLib.files.atomic import sync, sync_folder
from NeonatalSegLib.files.lock import Lock
from NeonatalSegLib.models import history as log
from NeonatalSegLib.models.bundle import METADATA_FILE, WEIGHTS_FILE
from NeonatalSegLib.models.history import user_folder

NEW, _TRASH, _LOCK, _OWNER = ".new-", ".trash-", ".lock", ".owner-"
_ABANDONED_S = 24 * 3600.0  # a folder that is still being written after a day belongs to a process that was killed


@contextmanager
def store_lock(seconds: float = 20.0) -> Iterator[None]:
    """Held while a model is looked at and its place in the history decided: milliseconds, so others wait.

    Raises:
        NeonatalSegError: another program holds it for longer, or the folder cannot be written.
    """
    folder = user_folder()
    ends = time.monotonic() + seconds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock = Lock(folder / _LOCK)
                break
            except BlockingIOError as error:
                if time.monotonic() > ends:
                    raise NeonatalSegError(f"The models' folder {folder} is in use by {error}: try again.") from error
                time.sleep(0.02)
    except OSError as error:
        raise NeonatalSegError(log.why_not_written(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a model, whole or broken; a link to one is."""
    return (folder / METADATA_FILE).exists() or (folder / WEIGHTS_FILE).exists()


def claim_version(root: str) -> Path:
    """A folder to write the next version in; its last part is the name, which is this process's alone."""
    store = user_folder()
    store.mkdir(parents=True, exist_ok=True)
    sweep(store)
    names = [p.name.removeprefix(NEW) for p in store.iterdir()] + [event.name for event in log.read_events()]
    taken = (re.fullmatch(re.escape(root) + r"-ft(\d+)", name) for name in names)
    number = max((int(found[1]) for found in taken if found), default=0)
    while True:
        number += 1
        name = f"{root}-ft{number:03d}"
        staging = store / f"{NEW}{name}"
        try:
            staging.mkdir()  # by one process only
        except FileExistsError:
            continue
        (staging / f"{_OWNER}{leftovers.mark()}").touch()
        if not (store / name).exists():  # nor by one that ended meanwhile
            return staging / name
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def removed_at_end(folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def appear(folder: Path) -> bool:
    """Move a finished bundle into the store by one rename; False where a model has that name."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as stream:  # on the disk before it is listed, also where the power fails
                sync(stream)
    target = user_folder() / folder.name
    try:
        os.rename(folder, target)  # noqa: PTH104
    except OSError:
        if target.exists():
            return False
        raise
    sync_folder(target.parent)
    return True


def delete(folder: Path) -> None:
    trash = folder.with_name(f"{_TRASH}{uuid.uuid4().hex}")
    try:
        os.rename(folder, trash)  # noqa: PTH104
        if trash.is_symlink():  # someone's own folder, linked into the store: only the link goes
            trash.unlink()
        else:
            shutil.rmtree(trash, ignore_errors=True)  # what is left goes with the next sweep
    except OSError as error:
        raise NeonatalSegError(
            f"The model {folder} could not be removed ({error.strerror}): close the programs that use it and try again."
        ) from error


def sweep(store: Path) -> None:
    """Delete what killed processes left behind."""
    for folder in store.glob(".*"):
        with suppress(OSError):
            if folder.name.startswith(_TRASH) or (folder.name.startswith(NEW) and _is_abandoned(folder)):
                leftovers.remove(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether the process that writes a model there was killed; without its mark, whether it took a day."""
    marks = [folder, *folder.glob(f"{_OWNER}*")]
    return any(map(leftovers.is_left, marks)) or time.time() - folder.stat().st_mtime > _ABANDONED_S
