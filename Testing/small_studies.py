"""A study on disk that is small enough for tests of annotation: one scan, or two, of a few thousand voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.session import StudyScan, create_study
from NeonatalSegLib.scans.grid import Grid, plane, position_mm

SIZE = (24, 26, 22)  # x, y, z: all different, so that an exchanged axis is seen
TURN = np.array(sitk.VersorTransform((0.3, 0.5, 0.1), 0.35).GetMatrix()).reshape(3, 3)
DIRECTIONS = {"LAS": np.diag([1.0, -1.0, 1.0]), "oblique": TURN, "LPS": np.eye(3)}
SLICES = (("axial", 5), ("axial", 11), ("coronal", 7), ("sagittal", 9))


def small_scan(direction: str = "LPS", seed: int = 1) -> sitk.Image:
    """Noise on a grid whose voxels are of three lengths; "LAS" is left-handed, "oblique" turned by 20 degrees."""
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 10, SIZE[::-1]).astype(np.float32))
    image.SetSpacing((1.0, 1.25, 1.5))
    image.SetOrigin((3.0, -7.0, 11.0))
    image.SetDirection(DIRECTIONS[direction].ravel().tolist())
    return image


def prefill(seed: int = 2) -> np.ndarray:
    """All ten classes in no order that would hide a flip, (z, y, x)."""
    return np.random.default_rng(seed).integers(0, 10, SIZE[::-1]).astype(np.uint8)


def make_study(
    folder: Path, direction: str = "LPS", names: Sequence[str] = ("sub-01",), slices: Sequence[tuple[str, int]] = SLICES
) -> Path:
    """A study with ``slices`` of each scan, pre-filled; its images lie beside it. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    scans, planned, grids = [], [], {}
    for seed, name in enumerate(names):
        path = folder / f"{name}_T2w.nii.gz"
        sitk.WriteImage(small_scan(direction, seed), str(path))
        grids[name] = grid = Grid.of(sitk.ReadImage(str(path)))  # as the file has it
        scans.append(StudyScan(name, None, path, 40.0))
        planned += [
            PlannedSlice(name, axis, index, position_mm(grid, axis, index), f"reason {index}") for axis, index in slices
        ]
    plan = Plan(tuple(planned), grids, BudgetSettings(len(slices), "slices", axis="mixed"))
    create_study(folder / "study", plan, scans, {name: prefill() for name in names})
    return folder / "study"


def cut(array: np.ndarray, grid: Grid, planned: PlannedSlice) -> np.ndarray:
    """The plane of a planned slice."""
    return array[plane(grid, planned.axis, planned.index)]
