"""Where in a scan the brain lies: the first thing that is done with a scan, before anything else looks at it.

Example:
    >>> found = find_brain(load_scan(t2="sub-01_T2w.nii.gz").reference)  # doctest: +SKIP
    >>> round(found.volume_ml)  # doctest: +SKIP
    412
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.brain_finder import forward
from NeonatalSegLib.brain_finder.grid import FAR_MM, SPACING_MM, finder_input
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.resources import resources_folder
from NeonatalSegLib.scans.grid import Grid

LEAST_ML = 30.0  # a newborn of 26 weeks has about 110: less is not a brain
AWAY_MM = 4.0  # how far the rim of the brain may be out before it counts as another thing


@dataclass(frozen=True)
class FoundBrain:
    """What lies inside the skull.

    Attributes:
        distance_mm: float32 image of 2 mm voxels along the patient's axes: mm to the surface of what lies inside the
            skull, negative inside, in the scan's own space.
        volume_ml: of what lies inside.
    """

    distance_mm: sitk.Image
    volume_ml: float

    def on(self, grid: Grid) -> np.ndarray:
        """The distance in mm, (z, y, x) float32, at the voxels of another grid; ``FAR_MM`` beyond its own."""
        blank = sitk.Image([int(n) for n in grid.size], sitk.sitkUInt8)
        blank.SetSpacing(grid.spacing_mm)
        blank.SetOrigin(grid.origin_mm)
        blank.SetDirection(grid.direction)
        return sitk.GetArrayFromImage(
            sitk.Resample(self.distance_mm, blank, sitk.Transform(), sitk.sitkLinear, FAR_MM, sitk.sitkFloat32)
        )


def find_brain(
    image: sitk.Image, head: sitk.Image | None = None, tick: Callable[[float], None] | None = None
) -> FoundBrain | None:
    """The brain in a T1 or T2 of a head, whole, cut or extracted, of any orientation, spacing and field of view.

    Args:
        head: a mask on the image's grid of what is not air, to look there only.
        tick: told the share of the work done, 0-1.

    Returns:
        None where there is none, or too little of one.

    Raises:
        NeonatalSegError: the finder's weights are missing or damaged, or the scan's field of view is absurdly large.
    """
    array, grid = finder_input(image, head)
    if not array.any():
        return None
    distance = _main_part(forward.distance_mm(array, weights(), tick))
    volume = float(np.count_nonzero(distance < 0)) * SPACING_MM**3 / 1000
    return FoundBrain(grid.image(distance), volume) if volume >= LEAST_ML else None


def brain_distance(
    image: sitk.Image, head: sitk.Image, tick: Callable[[float], None] | None = None
) -> sitk.Image | None:
    """:func:`find_brain` as ``scans.preprocessing.prepare`` takes it: the distance image alone."""
    found = find_brain(image, head, tick)
    return None if found is None else found.distance_mm


def brain_volume_ml(distance_mm: sitk.Image | None) -> float | None:
    """The volume in mL of what a distance image says to lie inside the skull."""
    if distance_mm is None:
        return None
    inside = np.count_nonzero(sitk.GetArrayViewFromImage(distance_mm) < 0)
    return inside * Grid.of(distance_mm).voxel_volume_mm3 / 1000


def weights_file() -> Path:
    """The weights that came with NeonatalSeg."""
    return resources_folder() / "BrainFinder" / "finder.npz"


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """The trained weights by name, float32, read once.

    Raises:
        NeonatalSegError: the file is missing or damaged.
    """
    file = weights_file()
    try:
        with np.load(file, allow_pickle=False) as data:
            return {name: data[name].astype(np.float32) for name in data.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise NeonatalSegError(f"The brain finder's weights {file} cannot be read ({error}): install again.") from error


def _main_part(distance: np.ndarray) -> np.ndarray:
    """The distance map of the largest part alone, its holes filled."""
    from scipy import ndimage

    inside = distance < 0
    parts, count = ndimage.label(inside)
    if count == 0:
        return distance
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    main = parts == sizes.argmax()
    holes = ndimage.binary_fill_holes(main) & ~main
    out = np.where(holes, -0.5 * SPACING_MM, distance)
    if count > 1:
        away = SPACING_MM * ndimage.distance_transform_edt(~(main | holes))
        out = np.maximum(out, np.minimum(away - AWAY_MM, FAR_MM))
    return out.astype(np.float32)
