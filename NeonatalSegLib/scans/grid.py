"""Grids in physical space: where the voxels of an image lie, in LPS millimetres (the convention of SimpleITK)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError

AXES = ("sagittal", "coronal", "axial")  # left-right, back-front, up-down: the axis on which such slices stand upright
ROUNDING = 1e-3  # of a voxel: what 32 bits in a header leave over is no reason for one more row of voxels


@dataclass(frozen=True)
class Grid:
    """A voxel grid, without voxels.

    Attributes:
        size: voxels along x, y, z (array axes are the reverse: z, y, x).
        spacing_mm: voxel edge along x, y, z.
        origin_mm: centre of voxel (0, 0, 0), LPS.
        direction: 3x3, columns are the unit vectors of the x, y and z index axes, LPS.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Grid:
        """The grid on which a 3D image lies."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Array shape (z, y, x)."""
        return self.size[::-1]

    @property
    def voxel_volume_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    def matrix(self) -> np.ndarray:
        """4x4 float64 from voxel index (x, y, z, 1) to LPS mm."""
        m = np.eye(4)
        m[:3, :3] = np.asarray(self.direction).reshape(3, 3) * np.asarray(self.spacing_mm)
        m[:3, 3] = self.origin_mm
        return m

    def corners_mm(self) -> np.ndarray:
        """(8, 3) LPS positions of the outer voxel centres."""
        last = np.asarray(self.size) - 1
        index = np.array([[(i >> a) & 1 for a in range(3)] for i in range(8)]) * last
        return index @ self.matrix()[:3, :3].T + self.matrix()[:3, 3]

    def is_like(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """True where both have the same size and no corner is further than ``tolerance_mm`` from its partner."""
        return self.size == other.size and bool(
            np.allclose(self.corners_mm(), other.corners_mm(), atol=tolerance_mm, rtol=0)
        )

    def image(self, array: np.ndarray, vector: bool = False) -> sitk.Image:
        """``array`` (z, y, x), or (z, y, x, components) where ``vector``, as an image on this grid."""
        out = sitk.GetImageFromArray(array, isVector=vector)
        out.SetSpacing(self.spacing_mm)
        out.SetOrigin(self.origin_mm)
        out.SetDirection(self.direction)
        return out

    @staticmethod
    def covering(lower_mm: np.ndarray, upper_mm: np.ndarray, spacing_mm: float) -> Grid:
        """The smallest isotropic grid along the patient's axes (LPS) that covers the box between two LPS corners."""
        size = np.ceil((upper_mm - lower_mm) / spacing_mm - ROUNDING).astype(int) + 1
        return Grid(
            (int(size[0]), int(size[1]), int(size[2])),
            (spacing_mm,) * 3,
            (float(lower_mm[0]), float(lower_mm[1]), float(lower_mm[2])),
            (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        )

    def crop(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> Grid:
        """The part of this grid that begins at voxel ``start`` (x, y, z) and has ``size`` voxels."""
        origin = self.matrix() @ np.array([*start, 1.0])
        return Grid(size, self.spacing_mm, (float(origin[0]), float(origin[1]), float(origin[2])), self.direction)


def voxel_axis(grid: Grid, axis: str) -> int:
    """The index axis (0, 1, 2 for x, y, z) along which the slices of an anatomical axis follow each other.

    The three are assigned one to one so that the sum of |cosine| is largest: also an oblique grid has each once.
    """
    if axis not in AXES:
        raise NeonatalSegError(f"{axis!r} is not an anatomical axis: expected {', '.join(AXES)}.")
    cosines = np.abs(np.asarray(grid.direction).reshape(3, 3))  # rows: left-right, back-front, up-down
    best = max(itertools.permutations(range(3)), key=lambda order: sum(cosines[row, c] for row, c in enumerate(order)))
    return best[AXES.index(axis)]


def plane(grid: Grid, axis: str, index: int) -> tuple[slice | int, ...]:
    """The numpy index that takes one slice out of an array (z, y, x) on ``grid``.

    Raises:
        NeonatalSegError: no such axis or no such slice.

    Example:
        >>> grid = Grid.of(newborn.labels)
        >>> bool(sitk.GetArrayFromImage(newborn.labels)[plane(grid, "axial", grid.size[2] // 2)].any())
        True
    """
    along = voxel_axis(grid, axis)
    if not 0 <= index < grid.size[along]:
        raise NeonatalSegError(f"There is no {axis} slice {index}: the scan has {grid.size[along]} of them.")
    return tuple(index if 2 - array_axis == along else slice(None) for array_axis in range(3))


def position_mm(grid: Grid, axis: str, index: int) -> float:
    """Patient coordinate of a slice's centre along its axis, positive to the right, to the front, upwards (RAS)."""
    voxel = (np.asarray(grid.size) - 1) / 2
    voxel[voxel_axis(grid, axis)] = index
    lps = grid.matrix() @ np.array([*voxel, 1.0])
    ras = lps[:3] * (-1, -1, 1)
    return round(float(ras[AXES.index(axis)]), 4)
