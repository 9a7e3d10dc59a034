"""Making the folder of an annotation study: built beside its place, shown by three renames, all of it or nothing.

One process makes a study in a folder at a time: it holds ``.creating`` there, which the system lets go of when the
process ends. ``study.json`` comes last and says which pre-fills must be there; without it there is no study.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib import __version__
from NeonatalSegLib.annotation.plan import Plan
from NeonatalSegLib.annotation.study import FORMAT, StudyScan, check_study
from NeonatalSegLib.annotation.trust import outside_of, trust
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic, leftovers
from NeonatalSegLib.files.lock import Lock
from NeonatalSegLib.scans.labels import stage_labels

CREATING = ".creating"  # held while a study is made; there without study.json: what lies beside it is unfinished
BUILDING = ".building-"  # begins the name of the folder that the study is built in
MAY_BE_THERE = {"scans", ".DS_Store", "Thumbs.db", "desktop.ini"}
PARTS = ("prefill", "plan.json", "study.json")  # in the order in which they are moved to their places


def create_study(
    folder: str | Path,
    plan: Plan,
    scans: Sequence[StudyScan],
    prefills: Mapping[str, np.ndarray] = {},
    facts: Mapping[str, Any] = {},
    earlier: Sequence[Path] = (),
) -> None:
    """Make a study in ``folder``, which is missing or empty (a folder ``scans`` with copies of images may be there).

    Args:
        prefills: labels (z, y, x), 0-9, on the scan's grid, by scan; scans without start empty.
        facts: kept in study.json; anything that JSON can hold.
        earlier: folders of the studies that this one goes on from, the oldest first: fine-tuning learns their slices as
            well.

    Raises:
        NeonatalSegError: another study or other files are there, another program makes a study there just now, the
            folder cannot be written, the plan knows other scans, a name that cannot be a file's, a scan without images,
            or a pre-fill of the wrong shape or labels. Nothing is left behind.
    """
    folder = Path(folder)
    check_study(plan, scans, prefills)
    text = _study_json(folder, scans, sorted(prefills), facts, earlier)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _create(folder, plan, prefills, text)
        except BaseException:
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
    except BlockingIOError as error:
        raise NeonatalSegError(
            f"Another program makes a study in {folder} just now, in {error}: wait for it."
        ) from error
    except OSError as error:
        raise NeonatalSegError(
            f"No study could be made in {folder} ({error.strerror or error}): choose a folder that can be written, "
            "with free space."
        ) from error
    trust(outside_of(folder, scans, earlier))  # its maker is not asked about what he named himself


def check_empty(folder: Path) -> None:
    """Make sure that a study can be made in a folder: it is missing, or holds nothing but copies of scans.

    What an earlier process left unfinished does not count. Nothing is touched.

    Raises:
        NeonatalSegError: there is a study already, or another file.
        OSError: the folder cannot be read.
    """
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if "study.json" in there:
        raise NeonatalSegError(
            f"There is a study in {folder} already: open it, or choose another folder for a new one."
        )
    ours = {CREATING, *(name for name in there if name.startswith((BUILDING, atomic.PART)))}
    if CREATING in there:
        ours |= set(PARTS)
    if strange := sorted(there - MAY_BE_THERE - ours):
        raise NeonatalSegError(f"{folder} is not empty ({strange[0]} lies there): choose an empty folder for a study.")


def _create(folder: Path, plan: Plan, prefills: Mapping[str, np.ndarray], text: str) -> None:
    check_empty(folder)
    if (folder / CREATING).is_dir():  # of a version that built the study in there
        leftovers.remove(folder / CREATING)
    lock = _lock(folder / CREATING)
    moved: list[Path] = []
    building = folder / f"{BUILDING}{leftovers.mark()}"
    try:
        check_empty(folder)  # again, now that nobody else can make one
        leftovers.sweep(folder, BUILDING)
        _remove_unfinished([folder / name for name in PARTS])
        _build(building, plan, prefills, text)
        lock.check()
        for name in PARTS:
            atomic.put(building / name, folder / name)
            moved.append(folder / name)
            atomic.sync_folder(folder)
    except BaseException:
        if moved:
            with contextlib.suppress(OSError):
                lock.check()
                _remove_unfinished(moved[::-1])
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
        with contextlib.suppress(OSError):
            lock.check()
            lock.path.unlink()  # Windows keeps an open file: there it stays, empty
        lock.release()


def _lock(path: Path) -> Lock:
    new = not path.exists()
    try:
        return Lock(path)
    except BlockingIOError:
        raise
    except OSError:
        if new:
            path.unlink(missing_ok=True)
        raise


def _build(building: Path, plan: Plan, prefills: Mapping[str, np.ndarray], text: str) -> None:
    (building / "prefill").mkdir(parents=True)
    for name, labels in prefills.items():
        path = building / "prefill" / f"{name}_dseg.nii.gz"
        atomic.put(stage_labels(path, labels.astype(np.uint8), plan.grids[name]), path)
    atomic.sync_folder(building / "prefill")
    plan.write(building / "plan.json")
    atomic.write_text(building / "study.json", text)


def _remove_unfinished(paths: Sequence[Path]) -> None:
    """What this process, or one that was killed, moved to its place without finishing; ``.creating`` is held."""
    for path in paths:
        leftovers.remove(path)


def _study_json(
    folder: Path,
    scans: Sequence[StudyScan],
    prefilled: Sequence[str],
    facts: Mapping[str, Any],
    earlier: Sequence[Path],
) -> str:
    root = folder.resolve()
    beside = [path for path in (Path(e).resolve() for e in earlier) if path.parent == root.parent]

    def stored(path: Path | None) -> str | None:
        if path is None:
            return None
        path = Path(path).resolve()
        if path.is_relative_to(root):  # what lies in the study moves with it
            return path.relative_to(root).as_posix()
        if any(path.is_relative_to(one) for one in beside):  # rounds that lie side by side move together
            return f"../{path.relative_to(root.parent).as_posix()}"
        return str(path)

    entries = [{"name": s.name, "t1": stored(s.t1), "t2": stored(s.t2), "age_weeks": s.age_weeks} for s in scans]
    study = {
        "format": FORMAT,
        "made_with": f"NeonatalSeg {__version__}",
        "made": atomic.now(),
        "facts": dict(facts),
        "scans": entries,
        "prefilled": list(prefilled),
        "earlier": [stored(path) for path in earlier],
    }
    return json.dumps(study, indent=1) + "\n"
