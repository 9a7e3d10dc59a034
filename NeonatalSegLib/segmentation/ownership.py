"""Whose file is it? Only what this program wrote itself, and nobody has changed since, may be replaced.

The proof is in the side-car: the SHA-256 of every file that was written with it. A label map that was corrected by hand
no longer has its hash, a file from elsewhere never had one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.atomic import sha256
from NeonatalSegLib.files.names import shown
from NeonatalSegLib.files.settings import read_object


def seal(facts: Mapping[str, Any]) -> str:
    """SHA-256 of what a side-car says, its own seal left out."""
    rest = {key: value for key, value in facts.items() if key != "Seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_replaceable(folder: Path, side_car: str, names: Iterable[str], *, overwrite: bool = False) -> None:
    """Refuse to replace what is not ours, before the work and again before files are moved.

    Args:
        side_car: the name in ``folder`` of the JSON file with "Files" (the hash or hashes of each file by name) and
            "Seal".
        names: of all files that are to be written.
        overwrite: the user wants them replaced, whosever they are.

    Raises:
        NeonatalSegError: they are named, with what to do.
    """
    there = [name for name in names if os.path.lexists(folder / name)]
    if overwrite or not there:
        return
    ours = _sealed_files(folder, side_car)
    foreign = [n for n in there if not (bool(ours) if n == side_car else _is_as_sealed(folder, n, ours))]
    if foreign:
        raise NeonatalSegError(
            f"{shown(folder)} holds {', '.join(foreign)}, which was not written by this program, or was changed since "
            "(corrected by hand?): nothing was replaced. Move it away, choose another folder with --out, or give "
            "--overwrite."
        )


def check_same_scan(folder: Path, side_car: str, contents: Mapping[str, str], *, overwrite: bool = False) -> None:
    """Refuse to replace a result of ours that was made of other images alone: T2.nii.gz is many newborns' name.

    Args:
        contents: hash of each image by "t1" and "t2"; empty where nobody knows.

    Raises:
        NeonatalSegError: no image of the result that lies there is among them.
    """
    try:
        before = read_object(folder / side_car, "side-car", nan=True).get("InputsSHA256")
    except NeonatalSegError:
        return  # none, or none of ours
    if overwrite or not contents or not before or not isinstance(before, dict):
        return
    if not set(before.values()) & set(contents.values()):
        raise NeonatalSegError(
            f"{shown(folder / side_car)} is the result of other images: nothing was replaced. Give this scan a name of "
            "its own with --name, choose another folder with --out, or give --overwrite."
        )


def check_new(path: Path, *, overwrite: bool = False) -> None:
    """Refuse to replace a single file, which has no side-car to tell whose it is.

    Raises:
        NeonatalSegError: it is there, and ``overwrite`` was not given.
    """
    if os.path.lexists(path) and not overwrite:
        raise NeonatalSegError(
            f"{shown(path)} is there already (of another run, or corrected by hand?): nothing was replaced. Move it "
            "away, choose another file with --out, or give --overwrite."
        )


def ours_among(folder: Path, side_car: str, names: Iterable[str]) -> list[Path]:
    """Those of ``names`` in ``folder`` that were written with its side-car and not changed since."""
    ours = _sealed_files(folder, side_car)
    return [folder / name for name in names if _is_as_sealed(folder, name, ours)]


def _sealed_files(folder: Path, side_car: str) -> Mapping[str, Any]:
    """The hash or hashes of each file by its name, from a side-car that we wrote; empty from another."""
    try:
        facts = read_object(folder / side_car, "side-car", nan=True)
    except NeonatalSegError:
        return {}
    files = facts.get("Files")
    return files if isinstance(files, dict) and facts.get("Seal") == seal(facts) else {}


def _is_as_sealed(folder: Path, name: str, ours: Mapping[str, Any]) -> bool:
    known = ours.get(name, [])
    try:
        return sha256(folder / name) in ([known] if isinstance(known, str) else known)
    except OSError:
        return False
