"""The folder of an annotation study: its scans, its plan, the pre-fill of every scan, and one folder a rater.

``study.json`` (scans, ages, which model pre-filled), ``plan.json``, ``scans/`` (copies of images, where wanted),
``prefill/<scan>_dseg.nii.gz`` and ``raters/<rater>/`` (see :mod:`NeonatalSegLib.annotation.session`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib import __version__
from NeonatalSegLib.annotation.plan import Plan, read_plan
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.files.names import check_name, same_file
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.scans.labels import check_labels, read_labels, stage_labels
from NeonatalSegLib.scans.read import read_grid

FORMAT = 1  # of study.json and the ledgers; raised when an older reader would misread them
CREATING = ".creating"  # there while a study is made: what lies beside it is unfinished and may be removed
MAY_BE_THERE = {"scans", ".DS_Store", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class StudyScan:
    """One scan of a study: files (or DICOM folders) of T1, T2 or both, and the post-menstrual age where known.

    Example:
        >>> StudyScan("sub-01", None, Path("sub-01_T2w.nii.gz"), 40.0).reference.name
        'sub-01_T2w.nii.gz'
    """

    name: str
    t1: Path | None
    t2: Path | None
    age_weeks: float | None = None

    @property
    def reference(self) -> Path:
        """The image on whose grid annotations lie: T2 where there is one, else T1."""
        path = self.t2 if self.t2 is not None else self.t1
        assert path is not None  # create_study and read_study refuse a scan without images
        return path


@dataclass(frozen=True)
class Study:
    """What lies in a study's folder apart from the raters' work.

    Attributes:
        facts: what its maker noted, for instance model_name and model_hash of the pre-fill.
    """

    folder: Path
    plan: Plan
    scans: tuple[StudyScan, ...]
    facts: Mapping[str, Any]

    def prefill(self, scan: str) -> np.ndarray:
        """The labels (z, y, x) uint8 from which annotation of a scan starts; zeros where there are none."""
        grid, path = self.plan.grids[scan], self.folder / "prefill" / f"{scan}_dseg.nii.gz"
        return read_labels(path).on_grid(grid, str(path)) if path.exists() else np.zeros(grid.shape, np.uint8)

    def has_prefill(self, scan: str) -> bool:
        return (self.folder / "prefill" / f"{scan}_dseg.nii.gz").exists()

    def rater_folder(self, rater: str) -> Path:
        return self.folder / "raters" / rater

    def raters(self) -> list[str]:
        """Who has begun, sorted by name."""
        return sorted(path.parent.name for path in self.folder.glob("raters/*/ledger.jsonl"))

    def check_images(self, scan: StudyScan) -> None:
        """Make sure that a scan's images are where the study says, on the grid for which the plan was made.

        Raises:
            NeonatalSegError: missing, unreadable, or of another size or position.
        """
        for path in (scan.t1, scan.t2):
            if path is not None and not path.exists():
                raise NeonatalSegError(
                    f"The scan {scan.name} of this study is missing: there is no {path}. Put it back, or correct its "
                    f"path in {self.folder / 'study.json'}."
                )
        self.plan.check_scan(scan.name, read_grid(scan.reference))


def create_study(
    folder: str | Path,
    plan: Plan,
    scans: Sequence[StudyScan],
    prefills: Mapping[str, np.ndarray] = {},
    facts: Mapping[str, Any] = {},
) -> None:
    """Make a study in ``folder``, which is missing or empty (a folder ``scans`` with copies of images may be there).

    Args:
        prefills: labels (z, y, x), 0-9, on the scan's grid, by scan; scans without start empty.
        facts: kept in study.json; anything that JSON can hold.

    Raises:
        NeonatalSegError: another study or other files are there, the folder cannot be written, the plan knows other
            scans, a name that cannot be a file's, a scan without images, or a pre-fill of the wrong shape or labels.
            Nothing is left behind.
    """
    folder = Path(folder)
    _check_study(plan, scans, prefills)
    text = _study_json(folder, scans, facts)
    new = not folder.exists()
    try:
        try:
            _clear(folder)
            _write_study(folder, plan, prefills, text)
        except BaseException:
            if new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
    except OSError as error:
        raise NeonatalSegError(
            f"No study could be made in {folder} ({error.strerror or error}): choose a folder that can be written, "
            "with free space."
        ) from error


def read_study(folder: str | Path) -> Study:
    """Read the fixed part of a study; works in a folder that cannot be written.

    Raises:
        NeonatalSegError: no study, a damaged one, or one made by a newer version.
    """
    folder = Path(folder)
    path = folder / "study.json"
    if not path.exists():
        raise NeonatalSegError(f"{folder} holds no study: there is no study.json in it.")
    try:
        text = read_object(path, "study")
    except NeonatalSegError as error:
        raise NeonatalSegError(f"{error} Restore it from a backup.") from error
    try:
        if int(text["format"]) > FORMAT:
            raise NeonatalSegError(f"The study in {folder} has the format {text['format']}: update NeonatalSeg.")
        scans = tuple(
            StudyScan(entry["name"], _path_in(folder, entry["t1"]), _path_in(folder, entry["t2"]), entry["age_weeks"])
            for entry in text["scans"]
        )
        facts = dict(text["facts"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NeonatalSegError(f"{path} could not be read as a study ({error}). Restore it from a backup.") from error
    plan = read_plan(folder / "plan.json")
    _check_study(plan, scans, {})
    return Study(folder, plan, scans, facts)


def _check_study(plan: Plan, scans: Sequence[StudyScan], prefills: Mapping[str, np.ndarray]) -> None:
    names = [scan.name for scan in scans]
    for scan in scans:
        check_name(scan.name, "scan")
        if scan.t1 is None and scan.t2 is None:
            raise NeonatalSegError(f"The scan {scan.name} has neither T1 nor T2.")
    if sorted(names) != sorted(plan.grids) or len({same_file(name) for name in names}) < len(names):
        raise NeonatalSegError(
            f"The plan is for the scans {', '.join(plan.grids)}, and the study has {', '.join(names)}: expected the "
            "same, each once."
        )
    for name, labels in prefills.items():
        if name not in plan.grids or labels.shape != plan.grids[name].shape:
            raise NeonatalSegError(f"The pre-fill of {name} does not lie on that scan's grid.")
        check_labels(labels, f"The pre-fill of {name}")


def _study_json(folder: Path, scans: Sequence[StudyScan], facts: Mapping[str, Any]) -> str:
    root = folder.resolve()

    def stored(path: Path | None) -> str | None:
        if path is None:
            return None
        path = Path(path).resolve()
        # What lies in the study moves with it.
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    entries = [{"name": s.name, "t1": stored(s.t1), "t2": stored(s.t2), "age_weeks": s.age_weeks} for s in scans]
    study = {
        "format": FORMAT,
        "made_with": f"NeonatalSeg {__version__}",
        "made": atomic.now(),
        "facts": dict(facts),
        "scans": entries,
    }
    return json.dumps(study, indent=1) + "\n"


def _path_in(folder: Path, stored: str | None) -> Path | None:
    return None if stored is None else folder / stored  # an absolute path stays what it is


def _clear(folder: Path) -> None:
    """Make ``folder`` ready: made, empty but for copies of scans, freed of an unfinished study."""
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    if CREATING in there and "study.json" not in there:
        _remove_unfinished(folder)
        there = {path.name for path in folder.iterdir()}
    if "study.json" in there:
        raise NeonatalSegError(
            f"There is a study in {folder} already: open it, or choose another folder for a new one."
        )
    if strange := sorted(there - MAY_BE_THERE):
        raise NeonatalSegError(f"{folder} is not empty ({strange[0]} lies there): choose an empty folder for a study.")


def _write_study(folder: Path, plan: Plan, prefills: Mapping[str, np.ndarray], study: str) -> None:
    creating = folder / CREATING
    names = ("prefill", "plan.json", "study.json")  # the last decides: without it there is no study
    moved = []
    try:
        (creating / "prefill").mkdir(parents=True)
        for name, labels in prefills.items():
            path = creating / "prefill" / f"{name}_dseg.nii.gz"
            atomic.put(stage_labels(path, labels.astype(np.uint8), plan.grids[name]), path)
        atomic.sync_folder(creating / "prefill")
        plan.write(creating / "plan.json")
        atomic.write_text(creating / "study.json", study)
        for name in names:
            atomic.put(creating / name, folder / name)
            moved.append(name)
            atomic.sync_folder(folder)
    except BaseException:
        if "study.json" in moved:
            (folder / "study.json").unlink()
        _remove_unfinished(folder)
        raise
    with contextlib.suppress(OSError):  # the study is there, whatever keeps the empty folder
        creating.rmdir()


def _remove_unfinished(folder: Path) -> None:
    shutil.rmtree(folder / "prefill", ignore_errors=True)
    (folder / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(folder / CREATING, ignore_errors=True)
