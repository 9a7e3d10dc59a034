"""The folder of an annotation study: its scans, its plan, the pre-fill of every scan, and one folder a rater.

``study.json`` (scans, ages, which model pre-filled), ``plan.json``, ``scans/`` (copies of images, where wanted),
``prefill/<scan>_dseg.nii.gz`` and ``raters/<rater>/`` (see :mod:`NeonatalSegLib.annotation.session`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from NeonatalSegLib.annotation.plan import Plan, read_plan
from NeonatalSegLib.annotation.trust import check_trusted
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_name, same_file
from NeonatalSegLib.files.regular import check_no_links
from NeonatalSegLib.files.settings import read_object
from NeonatalSegLib.scans.labels import check_labels, read_labels
from NeonatalSegLib.scans.read import read_grid

FORMAT = 1  # of study.json and the ledgers; raised when an older reader would misread them
MOST_VOXELS = 150_000_000  # of a scan's grid: a newborn's head at 0.25 mm; a study's text may claim any size


@dataclass(frozen=True)
class StudyScan:
    """One scan of a study: files (or DICOM folders) of T1, T2 or both, and the post-menstrual age where known."""

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
        prefilled: the scans whose pre-fill must be there; None in studies of older versions, which do not say it.
        earlier: folders of the rounds before this one, the oldest first; their slices are learned as well.
    """

    folder: Path
    plan: Plan
    scans: tuple[StudyScan, ...]
    facts: Mapping[str, Any]
    prefilled: tuple[str, ...] | None = None
    earlier: tuple[Path, ...] = ()

    def prefill(self, scan: str) -> np.ndarray:
        """The labels (z, y, x) uint8 from which annotation of a scan starts; zeros where there are none."""
        grid, path = self.plan.grids[scan], self._prefill_file(scan)
        if not self.has_prefill(scan):
            return np.zeros(grid.shape, np.uint8)
        return read_labels(path).on_grid(grid, str(path))

    def has_prefill(self, scan: str) -> bool:
        """Whether a scan has a pre-fill; NeonatalSegError where the study was made with one that is gone."""
        path = self._prefill_file(scan)
        there = path.exists()
        if self.prefilled is not None and scan in self.prefilled and not there:
            raise NeonatalSegError(
                f"The pre-fill of {scan} is missing: there is no {path}. Put it back from where the study was copied; "
                "without it slices would start empty, and look as if the model had found nothing."
            )
        return there

    def _prefill_file(self, scan: str) -> Path:
        path = self.folder / "prefill" / f"{scan}_dseg.nii.gz"
        check_no_links(self.folder, path)
        return path

    def rater_folder(self, rater: str) -> Path:
        """Where a rater's files lie; NeonatalSegError where that is behind a link."""
        check_no_links(self.folder, self.folder / "raters" / rater)
        return self.folder / "raters" / rater

    def raters(self) -> list[str]:
        """Who has begun, sorted by name."""
        return sorted(path.parent.name for path in self.folder.glob("raters/*/ledger.jsonl"))

    def check_trusted(self) -> None:
        """LeavesStudyError where images or rounds lie outside the study and the user has not agreed to that yet."""
        check_trusted(self.folder, self.scans, self.earlier)

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
            StudyScan(
                str(entry["name"]),
                _path_in(folder, entry["t1"]),
                _path_in(folder, entry["t2"]),
                _age(entry["age_weeks"]),
            )
            for entry in text["scans"]
        )
        facts = dict(text["facts"])
        prefilled = None if text.get("prefilled") is None else tuple(map(str, text["prefilled"]))
        rounds = (_path_in(folder.resolve(), entry) for entry in text.get("earlier") or ())
        earlier = tuple(Path(os.path.normpath(path)) for path in rounds if path is not None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NeonatalSegError(f"{path} could not be read as a study ({error}). Restore it from a backup.") from error
    plan = read_plan(folder / "plan.json")
    check_study(plan, scans, {})
    return Study(folder, plan, scans, facts, prefilled, earlier)


def check_study(plan: Plan, scans: Sequence[StudyScan], prefills: Mapping[str, np.ndarray]) -> None:
    """Make sure that plan, scans and pre-fills belong together and have names that can be files'.

    Raises:
        NeonatalSegError: they do not; the message names what does not fit.
    """
    for name, grid in plan.grids.items():
        if math.prod(grid.size) > MOST_VOXELS:
            raise NeonatalSegError(
                f"The plan says that the scan {name} has {' x '.join(map(str, grid.size))} voxels: no newborn's scan "
                "is as large. Make a new plan for it."
            )
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


def _path_in(folder: Path, stored: str | None) -> Path | None:
    if stored is not None and (not isinstance(stored, str) or "\0" in stored):
        raise ValueError(f"{stored!r} is not a path")
    return None if stored is None else folder / stored  # an absolute path stays what it is


def _age(stored: Any) -> float | None:
    return None if stored is None else float(stored)
