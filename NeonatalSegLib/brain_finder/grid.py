"""What training and use of the brain finder share: its voxels, and how a scan is brought onto them."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid

SPACING_MM = 2.0
STRIDE = 16  # the network's input sizes are multiples of it
FAR_MM = 12.0  # distances are learned up to here
MARGIN_MM = 8.0
MAX_VOXELS = 6_000_000  # about 360 mm on each side


def finder_input(image: sitk.Image, head: sitk.Image | None = None) -> tuple[np.ndarray, Grid]:
    """A scan on the finder's grid: along the patient's axes, padded to ``STRIDE``.

    Args:
        head: a mask on the image's grid; the finder sees the box around it and ``MARGIN_MM``, not all of the air.

    Returns:
        (z, y, x) float32, normalised (:func:`normalised`), and its grid.

    Raises:
        NeonatalSegError: the box is absurdly large.
    """
    spacing_mm, box = SPACING_MM, Grid.of(image)
    if head is not None:
        occupied = np.argwhere(sitk.GetArrayViewFromImage(head))[:, ::-1]
        first, last = occupied.min(0), occupied.max(0)
        box = box.crop(tuple(int(n) for n in first), tuple(int(n) for n in last - first + 1))  # type: ignore[arg-type]
    corners = box.corners_mm()
    grid = Grid.covering(corners.min(0) - MARGIN_MM, corners.max(0) + MARGIN_MM, spacing_mm)
    if np.prod(grid.size) > MAX_VOXELS:
        extent = " x ".join(f"{n * spacing_mm:.0f}" for n in grid.size)
        raise NeonatalSegError(f"The scan covers {extent} mm, far more than a newborn's head: crop it first.")
    size = tuple(-(-n // STRIDE) * STRIDE for n in grid.size)
    start = tuple(-((n - g) // 2) for n, g in zip(size, grid.size, strict=True))
    grid = grid.crop(start, size)  # type: ignore[arg-type]
    sigma = [np.sqrt(max(spacing_mm**2 - s**2, 0.0)) / 2.355 for s in image.GetSpacing()]
    smooth = sitk.Cast(image, sitk.sitkFloat32)
    if max(sigma) > 0.2:
        smooth = sitk.DiscreteGaussian(smooth, [max(s, 1e-3) ** 2 for s in sigma], 8, 0.01, True)
    blank = grid.image(np.zeros(grid.shape, np.uint8))
    low = float(sitk.GetArrayViewFromImage(image).min())
    array = sitk.GetArrayFromImage(
        sitk.Resample(smooth, blank, sitk.Transform(), sitk.sitkLinear, low, sitk.sitkFloat32)
    )
    return normalised(array), grid


def normalised(image: np.ndarray) -> np.ndarray:
    """Brightness (z, y, x) from the darkest voxel to the 99.5 centile of what is brighter, scaled to 0-1, up to 1.5."""
    image = image - image.min()
    bright = image[image > 0.02 * image.max()]
    if not bright.size:
        return np.zeros_like(image)
    return np.clip(image / np.percentile(bright, 99.5), 0, 1.5).astype(np.float32)
