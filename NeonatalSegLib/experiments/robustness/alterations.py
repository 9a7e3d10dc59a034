"""What the robustness matrix does to a scan: size, skull, grid, noise, bias field and motion.

A test must not be drawn by the code that trained: nothing here is shared with the training augmentation
(``augmentation/transforms.py``), except that the synthetic skull is
``augmentation.synthesis.add_head``.
Truth is never resampled; the scale alone changes it, and only in its header.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid, voxel_axis
from NeonatalSegLib.scans.preprocessing import foreground
from NeonatalSegLib.scans.scan import Scan, make_scan

FORMAT = 1  # raised when an alteration changes, so that old and new figures are not mixed in one folder
# Levels of every factor; the first leaves the scan as it is.
FACTORS: Mapping[str, tuple[str, ...]] = {
    "spacing": ("native", "0.5mm", "1mm", "3mm-slices"),
    "head": (
        "as-is",
        "skull",
        "whole",
    ),  # "whole": in another person's head (whole_head.py), alone and where one is given
    "orientation": ("stored", "RAS", "oblique"),
    "corruption": ("none", "noise", "bias", "motion"),
    "scale": ("1", "0.85", "0.7"),
}
SLICE_MM = 3.0
TILT_DEGREES, TILT_AXIS = 20.0, (1.0, 2.0, 3.0)  # of the oblique field of view; slanted against all three axes
HEAD_PAD_MM = 15.0  # room for a skull outside what is there
FIELD_MARGIN_MM = 5.0  # of an oblique field of view around the head
NOISE = 0.05  # sd of the noise in each channel, of the 99th percentile of the head
BIAS = 0.4  # the field runs from 1 / (1 + BIAS) to 1 + BIAS over the head
BIAS_DEGREE = 3
MOTION_MM, MOTION_DEGREES = 3.0, 4.0  # largest shift along, and turn about, each axis
POSES = 3  # of a moving head, beside the one in which the centre of k-space was measured
STILL_SHARE = 0.15  # of the k-space lines, around its centre


@dataclass(frozen=True)
class Alteration:
    """One level of each factor of ``FACTORS``."""

    spacing: str = "native"
    head: str = "as-is"
    orientation: str = "stored"
    corruption: str = "none"
    scale: str = "1"

    @property
    def key(self) -> str:
        """The levels that are not native, as a name for files: ``3mm-slices_noise``; ``native`` where all are."""
        changed = [value for value, levels in zip(astuple(self), FACTORS.values(), strict=True) if value != levels[0]]
        return "_".join(f"scale-{v}" if v in FACTORS["scale"] else v for v in changed) or "native"


def one_at_a_time(whole_head: bool = True) -> list[Alteration]:
    """The native cell, then every other level of every factor alone; ``whole_head``: with that of another's head."""
    names = [f.name for f in fields(Alteration)]
    cells = [Alteration(), *(Alteration(**{name: level}) for name in names for level in FACTORS[name][1:])]
    return [cell for cell in cells if whole_head or cell.head != "whole"]


def altered(scan: Scan, alteration: Alteration, seed: int) -> Scan:
    """``scan`` under ``alteration`` ("whole" apart); the same arguments give the same scan, voxel by voxel.

    In the order of things: the newborn's size, the skull, the field of view and its voxels, what the scanner adds,
    how the file is stored. T1 and T2 share the geometry; noise, bias field and motion are drawn for each.
    """
    images = {key: image for key in ("t1", "t2") if (image := getattr(scan, key)) is not None}
    images = {key: scaled(image, float(alteration.scale)) for key, image in images.items()}
    label = f"{scan.name}/{alteration.key}"
    if alteration.head == "skull":
        images = with_skull(images, {key: _random(seed, label, f"skull-{key}") for key in images}, _number(seed, label))
    if alteration.orientation == "oblique" or alteration.spacing != "native":
        head = (
            foreground_points(images["t2" if "t2" in images else "t1"]) if alteration.orientation == "oblique" else None
        )
        images = {key: acquired(image, alteration.spacing, head) for key, image in images.items()}
    if alteration.corruption != "none":
        corrupt = {"noise": noisy, "bias": biased, "motion": moved}[alteration.corruption]
        images = {key: corrupt(image, _random(seed, label, key)) for key, image in images.items()}
    if alteration.orientation == "RAS":
        images = {key: sitk.DICOMOrient(image, "RAS") for key, image in images.items()}
    return make_scan(**images, name=scan.name, age_weeks=scan.age_weeks)


def scaled(image: sitk.Image, factor: float) -> sitk.Image:
    """The image with its geometry multiplied about the scanner's centre, its voxels untouched (a header's change)."""
    if factor == 1:
        return image
    out = sitk.Image(image)
    out.SetSpacing([factor * s for s in image.GetSpacing()])
    out.SetOrigin([factor * o for o in image.GetOrigin()])
    return out


def with_skull(
    images: Mapping[str, sitk.Image], random: Mapping[str, np.random.Generator], shape_seed: int
) -> dict[str, sitk.Image]:
    """A synthetic skull and scalp around extracted brains; the images grow by ``HEAD_PAD_MM`` on every side.

    The brain is where any of the images shows something, holes filled. The shape is one for all of them, the
    brightness is drawn for each.
    """
    from NeonatalSegLib.augmentation.synthesis import add_head

    masks = [foreground(image) for image in images.values()]
    out = {}
    for key, image in images.items():
        pad = [math.ceil(HEAD_PAD_MM / s) for s in image.GetSpacing()]
        padded = sitk.ConstantPad(image, pad, pad, 0.0)
        shown = np.maximum.reduce([_mask_on(mask, padded) for mask in masks])
        inside = sitk.GetArrayFromImage(sitk.BinaryFillhole(Grid.of(padded).image(shown))) > 0
        array = np.maximum(sitk.GetArrayFromImage(padded), 0).astype(np.float32)
        drawn = add_head(array, inside, padded.GetSpacing()[::-1], random[key], shape_seed)
        out[key] = Grid.of(padded).image(np.where(inside, array, drawn).astype(np.float32))
    return out


def acquired(image: sitk.Image, spacing: str, head_mm: np.ndarray | None = None) -> sitk.Image:
    """The image as measured on another grid: each new voxel is the mean of the signal over its own box.

    The patient stays where it is. Finer voxels are interpolated linearly.

    Args:
        spacing: a level of ``FACTORS["spacing"]``; "3mm-slices" changes the voxels along the patient's long axis alone.
        head_mm: (n, 3) LPS positions; given, the field of view is tilted and made to cover them with a margin.
    """
    old = Grid.of(image)
    step = np.asarray(old.spacing_mm)
    if spacing in ("0.5mm", "1mm"):
        step = np.full(3, float(spacing.removesuffix("mm")))
    elif spacing == "3mm-slices":
        step = step.copy()
        step[voxel_axis(old, "axial")] = SLICE_MM
    axes = np.asarray(old.direction).reshape(3, 3)
    if head_mm is None:
        points, margin = old.corners_mm(), 0.0
    else:
        tilt = sitk.VersorTransform(TILT_AXIS, math.radians(TILT_DEGREES)).GetMatrix()
        axes, points, margin = np.asarray(tilt).reshape(3, 3) @ axes, head_mm, FIELD_MARGIN_MM
    new = _covering(points, axes, step, margin)
    parts = [max(1, math.ceil(n / o - 1e-3)) for n, o in zip(step, old.spacing_mm, strict=True)]
    return new.image(_box_means(image, new, parts))


def foreground_points(image: sitk.Image) -> np.ndarray:
    """(n, 3) LPS positions of the voxels of the head."""
    index = np.argwhere(sitk.GetArrayFromImage(foreground(image)) > 0)[:, ::-1]
    matrix = Grid.of(image).matrix()
    return index @ matrix[:3, :3].T + matrix[:3, 3]


def noisy(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    """Rician noise in every voxel, air included."""
    array = sitk.GetArrayFromImage(image)
    sd = NOISE * np.percentile(array[sitk.GetArrayFromImage(foreground(image)) > 0], 99)
    real, imaginary = random.normal(0.0, sd, (2, *array.shape)).astype(np.float32)
    return Grid.of(image).image(np.hypot(array + real, imaginary))


def biased(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    """A smooth multiplicative field: exp of a random polynomial, at most 1 + BIAS and at least 1 / (1 + BIAS)."""
    array = sitk.GetArrayFromImage(image)
    weights = random.normal(size=(BIAS_DEGREE + 1,) * 3)
    weights[np.indices(weights.shape).sum(0) > BIAS_DEGREE] = 0.0
    z, y, x = (np.linspace(-1, 1, n) for n in array.shape)
    log_field = np.polynomial.legendre.leggrid3d(z, y, x, weights)
    inside = log_field[sitk.GetArrayFromImage(foreground(image)) > 0]
    unit = np.clip(2 * (log_field - inside.min()) / max(np.ptp(inside), 1e-6) - 1, -1, 1)
    return Grid.of(image).image((array * np.exp(math.log(1 + BIAS) * unit)).astype(np.float32))


def moved(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    """A head that moved while the scan ran: blocks of k-space lines are those of the head in other poses.

    Lines follow each other along the patient's back-front axis. The centre of k-space, which says where the head lies,
    is measured in the pose of the truth.
    """
    axis = 2 - voxel_axis(Grid.of(image), "coronal")
    count = image.GetSize()[2 - axis]
    order = np.abs(np.arange(count) - count // 2)
    ends = np.sort(random.choice(np.arange(1, count), POSES, replace=False))
    blocks = np.searchsorted(ends, np.arange(count), side="right")
    still = blocks == blocks[count // 2]
    still |= order <= STILL_SHARE * count / 2
    lines = _lines(image, axis)
    others = [b for b in range(POSES + 1) if b != blocks[count // 2]]
    for block in others:
        pose = _lines(_turned(image, random), axis)
        take = (blocks == block) & ~still
        lines[..., take] = pose[..., take]
    back = np.abs(np.fft.ifft(np.fft.ifftshift(lines, axes=-1), axis=-1)).astype(np.float32)
    return Grid.of(image).image(np.ascontiguousarray(np.moveaxis(back, -1, axis)))


def _lines(image: sitk.Image, axis: int) -> np.ndarray:
    """Spectrum along one array axis, moved to the end, frequency 0 in the middle; complex64."""
    array = np.moveaxis(sitk.GetArrayFromImage(image), axis, -1)
    return np.fft.fftshift(np.fft.fft(array, axis=-1), axes=-1).astype(np.complex64)


def _turned(image: sitk.Image, random: np.random.Generator) -> sitk.Image:
    grid = Grid.of(image)
    pose = sitk.Euler3DTransform()
    pose.SetCenter(grid.corners_mm().mean(0).tolist())
    pose.SetRotation(*np.radians(random.uniform(-MOTION_DEGREES, MOTION_DEGREES, 3)).tolist())
    pose.SetTranslation(random.uniform(-MOTION_MM, MOTION_MM, 3).tolist())
    return sitk.Resample(image, image, pose, sitk.sitkLinear, 0.0)


def _covering(points_mm: np.ndarray, axes: np.ndarray, step_mm: np.ndarray, margin_mm: float) -> Grid:
    """The smallest grid along ``axes`` (columns) with voxels of ``step_mm`` whose centres reach around all points."""
    local = points_mm @ axes
    lower, upper = local.min(0) - margin_mm, local.max(0) + margin_mm
    size = np.ceil((upper - lower) / step_mm - 1e-3).astype(int) + 1
    origin = axes @ ((lower + upper) / 2 - (size - 1) * step_mm / 2)
    return Grid(tuple(size.tolist()), tuple(step_mm.tolist()), tuple(origin.tolist()), tuple(axes.ravel().tolist()))


def _box_means(image: sitk.Image, grid: Grid, parts: Sequence[int]) -> np.ndarray:
    """Mean of linear interpolation at ``parts`` places along x, y and z of each voxel of ``grid``; float32."""
    step = np.asarray(grid.spacing_mm) / parts
    axes = np.asarray(grid.direction).reshape(3, 3)
    origin = np.asarray(grid.origin_mm) - axes @ (step * (np.asarray(parts) - 1) / 2)
    size = [n * p for n, p in zip(grid.size, parts, strict=True)]
    low = float(sitk.GetArrayViewFromImage(image).min())
    resampled = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, origin.tolist(), step.tolist(), grid.direction, low
    )
    split = [n for pair in zip(grid.shape, reversed(parts), strict=True) for n in pair]
    return sitk.GetArrayFromImage(resampled).reshape(split).mean((1, 3, 5), dtype=np.float32)


def _mask_on(mask: sitk.Image, image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0))


def _random(seed: int, label: str, what: str) -> np.random.Generator:
    """A generator of one subject, cell and use; adding cells changes none of the others."""
    return np.random.default_rng([seed, zlib.crc32(f"{label}/{what}".encode())])


def _number(seed: int, label: str) -> int:
    return int(_random(seed, label, "shape").integers(2**31))
