"""A picture of a segmentation: three planes of the scan, plain and with the tissues filled in.

Everything that is looked at is laid along the patient's axes first (:func:`upright`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.tissues import DEEP_GM, PHYSIOLOGICAL, TISSUES

SPACING_MM = 0.7
MOST_VOXELS = 8e6  # of what is looked at: where labels are scattered over a large image it becomes coarser
FILL = 0.45


@dataclass(frozen=True)
class Upright:
    """Scan and label map along the patient's axes, isotropic, cropped to what is labelled.

    Attributes:
        grey: float (z, y, x), 0-1; x runs to the patient's left, y to the back, z up.
        labels: uint8 (z, y, x), 0-9.
        grid: of both, LPS.
    """

    grey: np.ndarray
    labels: np.ndarray
    grid: Grid

    @property
    def centre(self) -> tuple[int, int, int]:
        """The voxel (z, y, x) in the middle of the deep grey matter, sagittally a little beside the midline fissure."""
        deep = np.argwhere(self.labels == DEEP_GM)
        points = deep if len(deep) else np.argwhere(self.labels > 0)
        if not len(points):
            z, y, x = (size // 2 for size in self.labels.shape)
            return z, y, x
        z, y, x = (int(v) for v in points.mean(0))
        return z, y, min(x + round(4 / self.grid.spacing_mm[0]), self.labels.shape[2] - 1)


def upright(scan: sitk.Image, label_map: sitk.Image) -> Upright:
    """What pictures are made of.

    Args:
        scan: the reference image.
        label_map: 0-9 on the same grid.
    """
    labels = sitk.GetArrayViewFromImage(label_map)
    occupied = np.argwhere(labels > 0)
    if not len(occupied):
        occupied = np.argwhere(np.ones(labels.shape, bool))
    lower, upper = occupied.min(0)[::-1], occupied.max(0)[::-1]
    box = Grid.of(scan).crop(tuple(int(v) for v in lower), tuple(int(v) for v in upper - lower + 1))  # type: ignore[arg-type]
    corners = box.corners_mm()
    first, last = corners.min(0) - 2, corners.max(0) + 2
    spacing = max(SPACING_MM, float(np.prod(last - first) / MOST_VOXELS) ** (1 / 3))
    grid = Grid.covering(first, last, spacing)
    like = grid.image(np.zeros(grid.shape, np.uint8))
    grey = sitk.GetArrayFromImage(sitk.Resample(scan, like, sitk.Transform(), sitk.sitkLinear, 0.0))
    resampled = sitk.GetArrayFromImage(sitk.Resample(label_map, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0))
    inside = grey[resampled > 0]
    low, high = np.percentile(inside if inside.size else grey, (0.5, 99.5))
    black = min(low, float(grey.min()))  # air, which in a T1 is far below the darkest tissue
    grey = np.clip((grey - black) / max(high - black, 1e-6), 0, 1)
    return Upright(grey, resampled, grid)


def draw_overlay(seen: Upright, file: str | Path, title: str = "") -> None:
    """Write a PNG: axial, coronal and sagittal planes through the brain's middle, radiological view (left is right)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    grey, labels, centre = seen.grey, seen.labels, seen.centre
    figure = Figure(figsize=(9.6, 7.0), facecolor="black")
    FigureCanvasAgg(figure)
    planes = [
        ("Axial", grey[centre[0]], labels[centre[0]], ("R", "L")),
        ("Coronal", grey[::-1, centre[1]], labels[::-1, centre[1]], ("R", "L")),
        ("Sagittal", grey[::-1, :, centre[2]], labels[::-1, :, centre[2]], ("A", "P")),
    ]
    for column, (name, plane, label, sides) in enumerate(planes):
        for row in (0, 1):
            axes = figure.add_axes((column / 3 + 0.005, 0.52 - 0.42 * row, 0.323, 0.41))
            axes.imshow(
                _coloured(plane, label) if row else plane, cmap="gray", vmin=0, vmax=1, interpolation="bilinear"
            )
            axes.set_axis_off()
            for x, ha, side in ((0.02, "left", sides[0]), (0.98, "right", sides[1])):
                axes.text(x, 0.5, side, transform=axes.transAxes, color="white", ha=ha, fontsize=9)
            if row == 0:
                axes.set_title(name, color="white", fontsize=10)
    patches = [Patch(color=np.asarray(t.colour) / 255, label=t.name) for t in PHYSIOLOGICAL]
    legend = figure.legend(
        handles=patches, loc="lower center", ncols=4, frameon=False, fontsize=8, bbox_to_anchor=(0.5, 0.02)
    )
    for text in legend.get_texts():
        text.set_color("white")
    figure.text(0.01, 0.975, title, color="white", fontsize=9, parse_math=False)  # a name may hold a $
    figure.text(0.99, 0.01, "Research use only, not for diagnosis", color="0.6", fontsize=7, ha="right")
    figure.savefig(str(file), dpi=110, facecolor="black")


def _coloured(plane: np.ndarray, labels: np.ndarray) -> np.ndarray:
    colours = np.array([t.colour for t in TISSUES]) / 255
    shown = np.isin(labels, [t.index for t in PHYSIOLOGICAL])[..., None]
    base = np.repeat(plane[..., None], 3, -1)
    return np.where(shown, (1 - FILL) * base + FILL * colours[labels], base)
