"""A small study to annotate, and the file system's bad days, for the tests of the annotation project."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.session import StudyScan, create_study
from NeonatalSegLib.scans.grid import Grid, plane, position_mm

ROOT = Path(__file__).resolve().parents[1]
# y and z swapped in space, so that no axis name agrees with an array axis by chance
GRID = Grid((21, 20, 22), (1.0, 1.5, 1.25), (4.0, -8.0, 2.5), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.0, 0.0))
AXIAL, CORONAL, FAR = "sub-01/axial/7", "sub-01/coronal/12", "sub-01/axial/11"
OTHER = "sub-02/sagittal/3"

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and file size limits are POSIX's")


def planned(key: str) -> PlannedSlice:
    scan, axis, index = key.split("/")
    return PlannedSlice(scan, axis, int(index), position_mm(GRID, axis, int(index)), "test")


def prefill_of(name: str) -> np.ndarray:
    return np.random.default_rng(len(name) + int(name[-1])).integers(0, 10, GRID.shape, np.uint8)


def make_study(folder: Path) -> Path:
    """Two scans, four slices; returns the study's folder."""
    folder.mkdir(exist_ok=True)
    scans = []
    for name in ("sub-01", "sub-02"):
        image = folder / f"{name}_T2w.nii.gz"
        sitk.WriteImage(GRID.image(np.random.default_rng(1).random(GRID.shape, np.float32)), str(image))
        scans.append(StudyScan(name, None, image, 38.5))
    slices = tuple(planned(key) for key in (AXIAL, CORONAL, FAR, OTHER))
    plan = Plan(slices, {scan.name: GRID for scan in scans}, BudgetSettings(2, "slices"))
    prefills = {scan.name: prefill_of(scan.name) for scan in scans}
    create_study(folder / "study", plan, scans, prefills, {"model_name": "base"})
    return folder / "study"


def cut(key: str) -> tuple[slice | int, ...]:
    return plane(GRID, planned(key).axis, planned(key).index)


def labels_for(key: str, label: int) -> np.ndarray:
    return np.full(np.empty(GRID.shape)[cut(key)].shape, label, np.uint8)


def array_in(folder: Path, name: str) -> np.ndarray:
    image = sitk.ReadImage(str(folder / name))
    assert image.GetPixelID() == sitk.sitkUInt8 and Grid.of(image).is_like(GRID)
    return sitk.GetArrayFromImage(image)


def on_disk(study: Path, rater: str = "Anna", scan: str = "sub-01") -> tuple[np.ndarray, np.ndarray]:
    place = study / "raters" / rater
    return array_in(place, f"{scan}_dseg.nii.gz"), array_in(place, f"{scan}_desc-annotated_mask.nii.gz")


def ledger(study: Path, rater: str = "Anna") -> Path:
    return study / "raters" / rater / "ledger.jsonl"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the administrator's right to write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: a write stops in the middle, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
