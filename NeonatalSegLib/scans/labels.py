"""Label maps (whole numbers 0-9, see ``tissues.py``): one reader and one writer for all rooms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.scans import nifti
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.read import read_image
from NeonatalSegLib.scans.write import write_image
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES


@dataclass(frozen=True)
class LabelMap:
    """A label map as its file has it.

    Attributes:
        image: uint8, 3D.
        warnings: in words.
        other_grids: where the file says a second position that disagrees.
    """

    image: sitk.Image
    warnings: tuple[str, ...] = ()
    other_grids: tuple[Grid, ...] = ()

    def lies_on(self, grid: Grid, tolerance_mm: float = 1e-2) -> bool:
        """True where one of the file's positions is ``grid``."""
        return any(own.is_like(grid, tolerance_mm) for own in (Grid.of(self.image), *self.other_grids))

    def on_grid(self, grid: Grid, what: str, tolerance_mm: float = 1e-2) -> np.ndarray:
        """The labels (z, y, x) uint8 of a map that lies on ``grid``; NeonatalSegError, naming ``what``, otherwise."""
        if not self.lies_on(grid, tolerance_mm):
            size = " x ".join(map(str, grid.size))
            raise NeonatalSegError(
                f"The label map {what} does not lie on the grid of its scan: expected {size} voxels at the same place. "
                "Put back the original file, or resample it (nearest neighbour)."
            )
        return sitk.GetArrayFromImage(self.image)


def read_labels(path: str | Path) -> LabelMap:
    """A label map of any format that scans have.

    Raises:
        NeonatalSegError: as ``read.read_image``, not 3D, or with values that are not labels; they are named.
    """
    found = read_image(path)
    image = found.image
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or min(image.GetSize()) < 2 or image.GetNumberOfComponentsPerPixel() != 1:
        size = " x ".join(str(n) for n in image.GetSize())
        raise NeonatalSegError(
            f"The label map {path} has the size {size} with {image.GetNumberOfComponentsPerPixel()} values a voxel. "
            "Expected a 3D image with one label a voxel."
        )
    check_labels(sitk.GetArrayViewFromImage(image), f"The label map {path}")
    return LabelMap(sitk.Cast(image, sitk.sitkUInt8), found.warnings, found.other_grids)


def check_labels(array: np.ndarray, what: str) -> None:
    """Refuse values that are not labels; the error names them and ``what`` holds them."""
    if array.dtype.kind in "ub" and array.max(initial=0) < NUMBER_OF_CLASSES:  # quick: most are uint8 and good
        return
    wrong = np.unique(array[~np.isin(array, np.arange(NUMBER_OF_CLASSES))])
    if wrong.size:
        values = ", ".join(f"{value:g}" for value in wrong[:10]) + (", ..." if wrong.size > 10 else "")
        raise NeonatalSegError(
            f"{what} holds values that are not labels: {values}. Expected whole numbers 0-9 (0 background, 1 CSF, ... "
            "9 hippocampus); convert the labels first."
        )


def stage_labels(path: Path, array: np.ndarray, grid: Grid, note: str = "") -> Path:
    """Write uint8 ``array`` (z, y, x) on ``grid`` as gzipped NIfTI beside ``path``, check and sync it.

    Args:
        note: kept in the header, at most 79 characters; :func:`note_of` gives it back.

    Returns:
        The temporary file, to be moved by ``atomic.put``.

    Raises:
        OSError: it could not be written whole.
    """

    def write(part: Path) -> None:
        write_image(grid.image(array), part, level=1, note=note)

    return atomic.stage(path, write)


def note_of(path: Path) -> str:
    """The note in a label map's header; empty where there is none or the file cannot be read."""
    try:
        return nifti.read_header(path).note
    except NeonatalSegError:
        return ""
