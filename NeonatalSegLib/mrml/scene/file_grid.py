"""A label map on the voxels of the file that a volume was read from, in that file's own order.

Slicer's reader makes the voxel axes right-handed and may turn the last one round, so what comes from the scene has its
slices in another order than the file on disk, and than what the command writes for it: the same places, other arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.mrml.scene.volumes import RAS_TO_LPS, world_affine
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.placement import Forms
from NeonatalSegLib.scans.read import read_positions

FILE_ATTRIBUTE = "NeonatalSeg.file"  # of volumes that were read from a file of a study: a hash, no path
REMEMBERED: dict[str, Path] = {}  # by that hash, in this process alone: scenes are sent on, and paths are private
TOLERANCE_MM = 0.01


def file_of(volume: Any) -> Path | None:
    """The file that a volume node holds, None where it has none that is still there."""
    storage = volume.GetStorageNode()
    name = storage.GetFileName() if storage is not None else None
    for path in (REMEMBERED.get(volume.GetAttribute(FILE_ATTRIBUTE) or ""), Path(name) if name else None):
        if path is not None and path.is_file():
            return path
    return None


def in_order_of_file(label_map: sitk.Image, volume: Any) -> tuple[sitk.Image, Forms | None]:
    """``label_map`` (on the voxels of the node ``volume``) in the order of the file that ``volume`` was read from.

    As it is where there is no such file, where the file lies elsewhere (the volume was moved or resampled), or where
    it cannot be read any more. With it both positions in that file's header, where it is a NIfTI file.
    """
    path = file_of(volume)
    if path is None:
        return label_map, None
    try:
        grids, forms = read_positions(path)
    except NeonatalSegError:
        return label_map, None
    # Where the file's two positions disagree, Slicer may have taken the other one: the voxels are the same.
    for grid in grids:
        if lies_on(volume, grid) and (turned := _turned(label_map, grid)) is not None:
            return turned, forms
    return label_map, None


def _turned(label_map: sitk.Image, grid: Grid) -> sitk.Image | None:
    """``label_map`` in the order of ``grid``, which has the same voxels; None where its axes are others."""
    turn = np.rint(np.linalg.inv(grid.matrix())[:3, :3] @ Grid.of(label_map).matrix()[:3, :3]).astype(int)
    if not np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]) or not np.array_equal(np.abs(turn).sum(axis=1), [1] * 3):
        return None
    voxels = sitk.GetArrayFromImage(label_map).transpose(2, 1, 0)  # x, y, z
    voxels = voxels.transpose([int(np.argmax(np.abs(row))) for row in turn])
    for axis, row in enumerate(turn):
        if row.sum() < 0:
            voxels = np.flip(voxels, axis)
    return grid.image(np.ascontiguousarray(voxels.transpose(2, 1, 0)))


def lies_on(node: Any, grid: Grid) -> bool:
    """True where the node's voxels are those of ``grid``, in whatever order."""
    data = node.GetImageData()
    if data is None or sorted(data.GetDimensions()) != sorted(grid.size):
        return False
    last = np.array(data.GetDimensions()) - 1
    index = np.array([[(corner >> axis) & 1 for axis in range(3)] for corner in range(8)]) * last
    corners = (np.c_[index, np.ones(8)] @ (RAS_TO_LPS @ world_affine(node)).T)[:, :3]
    away = np.linalg.norm(corners[:, None] - grid.corners_mm()[None], axis=-1)
    return bool(away.min(axis=1).max() < TOLERANCE_MM)
