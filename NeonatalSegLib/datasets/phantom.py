"""A synthetic newborn head, drawn from formulas: for tests and the demo, never a stand-in for real accuracy.

The anatomy is a set of smooth signed fields over physical space (millimetres, LPS: x to the left, y to the back,
z up; the origin lies between the thalami). A grid only decides where those fields are looked at, so one seed shows
the same head on any spacing, orientation or obliquity. Age sets the size and the folding; the seed varies the shape.

    phantom = draw_newborn(36.0, seed=3, orientation="RAS")
    phantom.t2, phantom.labels, phantom.scan
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from NeonatalSegLib.datasets.phantom_anatomy import AGES, CENTRE, HALF_EXTENT, MARGIN_MM, Head
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.write import replace_image

if TYPE_CHECKING:
    from NeonatalSegLib.scans.scan import Scan

WM_COUNTS = 500.0  # stored value of white matter
OBLIQUE_AXIS = np.array([0.78, 0.33, 0.53])


@dataclass(frozen=True)
class Phantom:
    """A drawn newborn.

    Attributes:
        t1: T1-weighted image, int16, white matter near 500.
        t2: T2-weighted image on the same grid.
        labels: uint8 image on the same grid, values as in ``NeonatalSegLib.tissues``.
        age_weeks: post-menstrual age that was drawn.
        name: short identifier made of age and seed.
    """

    t1: sitk.Image
    t2: sitk.Image
    labels: sitk.Image
    age_weeks: float
    name: str

    @property
    def scan(self) -> Scan:
        """The two images as a ``Scan``, checked like any other."""
        from NeonatalSegLib.scans.scan import make_scan

        return make_scan(t1=self.t1, t2=self.t2, name=self.name, age_weeks=self.age_weeks)


def draw_newborn(
    age_weeks: float = 40.0,
    seed: int = 0,
    *,
    spacing_mm: Sequence[float] | float = 0.8,
    orientation: str = "LPS",
    oblique_degrees: float = 0.0,
    skull: bool = False,
    noise: float = 0.03,
    bias: float = 0.15,
) -> Phantom:
    """Draw one newborn head.

    Args:
        age_weeks: post-menstrual age, 26-44.
        seed: varies shape, folds, noise and bias field; the same seed gives the same phantom.
        spacing_mm: voxel size along the three axes of the returned images, or one number for all.
        orientation: where those axes point, as SimpleITK's ``DICOMOrient`` spells it ("LPS", "RAS", "PIR", ...).
        oblique_degrees: turn of the grid about a fixed slanted axis; the head itself stays.
        skull: True draws bone and scalp outside the rim (label 0); False leaves exact zeros there.
        noise: standard deviation of the (Rician) noise as a share of the white-matter signal.
        bias: half the peak-to-peak variation of the smooth bias field.

    Returns:
        T1, T2 and labels on one grid.

    Raises:
        NeonatalSegError: an argument is outside what can be drawn.

    Example:
        >>> phantom = draw_newborn(36.0, seed=3, spacing_mm=5.0)
        >>> phantom.t2.GetSize() == phantom.labels.GetSize()
        True
    """
    spacing = _checked_spacing(spacing_mm)
    if not AGES[0] <= age_weeks <= AGES[-1]:
        raise NeonatalSegError(f"a newborn of {age_weeks} weeks cannot be drawn: choose {AGES[0]:g}-{AGES[-1]:g} weeks")
    if noise < 0 or bias < 0:
        raise NeonatalSegError(f"noise and bias must not be negative, got {noise} and {bias}")
    head = Head(age_weeks, seed)
    grid = _make_grid(head.size, spacing, orientation, oblique_degrees)
    shape = grid.GetSize()[::-1]
    labels = np.zeros(shape, np.uint8)
    signals = np.zeros((2, *shape), np.float32)
    for k in range(shape[0]):  # slice by slice: little memory, and temporaries that fit the cache
        labels[k], signals[:, k] = head.sample(_slice_points(grid, k), skull=skull, bias=bias)
    random = np.random.default_rng([seed, 2])
    images = [_acquire(signal, labels, noise, random, keep_outside=skull) for signal in signals]
    t1, t2, label_image = (_as_image(array, grid) for array in (*images, labels))
    return Phantom(t1, t2, label_image, float(age_weeks), f"phantom-{age_weeks:g}w-{seed}")


def write_newborn(folder: Path, **kwargs: object) -> dict[str, Path]:
    """Draw a newborn and write it as BIDS-like NIfTI files.

    Args:
        folder: created if missing.
        **kwargs: arguments of ``draw_newborn``.

    Returns:
        Paths under the keys ``"t1"``, ``"t2"`` and ``"labels"``.
    """
    phantom = draw_newborn(**kwargs)  # type: ignore[arg-type]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for key, image, suffix in (
        ("t1", phantom.t1, "T1w"),
        ("t2", phantom.t2, "T2w"),
        ("labels", phantom.labels, "dseg"),
    ):
        paths[key] = folder / f"sub-phantom_{suffix}.nii.gz"
        replace_image(image, paths[key])
    return paths


# --- the grid ---------------------------------------------------------------------------------------------------------


def _checked_spacing(spacing_mm: Sequence[float] | float) -> np.ndarray:
    spacing = np.broadcast_to(np.asarray(spacing_mm, float), 3) if np.size(spacing_mm) in (1, 3) else np.zeros(3)
    if not np.all((spacing >= 0.3) & (spacing <= 10.0)):
        raise NeonatalSegError(f"spacing {spacing_mm} cannot be drawn: give one or three numbers from 0.3 to 10 mm")
    return spacing


def _make_grid(size: float, spacing: np.ndarray, orientation: str, oblique_degrees: float) -> sitk.Image:
    """An empty image whose geometry covers the head."""
    axes = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    code = orientation.upper()
    if len(code) != 3 or any(c not in axes for c in code) or len({axes[c][0] for c in code}) != 3:
        raise NeonatalSegError(f"orientation {orientation!r} is unknown: use three letters such as LPS, RAS or PIR")
    direction = np.zeros((3, 3))
    for column, letter in enumerate(code):
        row, sign = axes[letter]
        direction[row, column] = sign
    direction = _rotation(OBLIQUE_AXIS, oblique_degrees) @ direction
    extent = 2 * np.abs(direction.T) @ (HALF_EXTENT * size + MARGIN_MM)
    counts = np.ceil(extent / spacing).astype(int)
    origin = CENTRE * size - direction @ (spacing * (counts - 1) / 2)
    grid = sitk.Image(counts.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetDirection(direction.ravel().tolist())
    grid.SetOrigin(origin.tolist())
    return grid


def _rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """Rotation matrix about an axis (Rodrigues)."""
    a, angle = axis / np.linalg.norm(axis), np.deg2rad(degrees)
    cross = np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _slice_points(grid: sitk.Image, k: int) -> np.ndarray:
    """Physical coordinates, (3, rows, columns), of slice ``k``."""
    columns, rows, _ = grid.GetSize()
    j, i = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    scaled = np.array(grid.GetDirection()).reshape(3, 3) * np.array(grid.GetSpacing())
    index = np.stack([i, j, np.full_like(i, k)]).astype(float)
    return (np.tensordot(scaled, index, 1) + np.array(grid.GetOrigin())[:, None, None]).astype(np.float32)


def _acquire(
    signal: np.ndarray, labels: np.ndarray, noise: float, random: np.random.Generator, *, keep_outside: bool
) -> np.ndarray:
    """What the scanner adds: a little blur and Rician noise; int16."""
    blurred = ndimage.gaussian_filter(signal, 0.4)
    real, imaginary = random.normal(0.0, noise, (2, *signal.shape)).astype(np.float32) if noise else (0.0, 0.0)
    magnitude = np.hypot(blurred + real, imaginary) * WM_COUNTS
    if not keep_outside:
        # at least 1 inside, so that zero means "removed" and nothing else
        magnitude = np.where(labels > 0, np.maximum(magnitude, 1.0), 0.0)
    return np.rint(magnitude).astype(np.int16)


def _as_image(array: np.ndarray, grid: sitk.Image) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(grid)
    return image
