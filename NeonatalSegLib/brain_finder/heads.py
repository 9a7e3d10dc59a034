"""Whole heads for the brain finder's training: a newborn's brain laid into a head, every tissue a numbered part.

No newborn's head with its skull on was there to learn from. So heads of a child and of adults, their own brain taken
out, are warped until their skull fits a newborn's brain, with bone and scalp thinned and the face made small; others
are drawn from ellipsoids and tubes. What comes out is a map of parts, which :mod:`.painting` paints anew each time.

Everything lies on one grid (:func:`head_grid`): along the patient's axes, its origin in the middle of the brain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid

GRID_MM = 1.5
LOWER_MM, UPPER_MM = (-78.0, -96.0, -126.0), (78.0, 93.0, 75.0)  # x to the left, y to the back, z up
FAR_MM = 20.0  # distances are kept up to here
CLUSTERS = 4  # parts of each tissue of the newborn, by brightness: part = 4 * label + cluster
OUTSIDE = 64  # parts of the head from here on
GAP, BONE, SCALP, BODY, EYE, PARTS = 64, 65, 66, 70, 120, 128
BRAIN_OF_HEAD = 44  # parts 44-63: a child's or adult's own brain, by brightness


@dataclass
class Composed:
    """One head of the pool, arrays (z, y, x) on the pool's grid.

    Attributes:
        parts: uint8, 0 air, 4-39 the newborn's tissues, 64 and more the head.
        guides: (2, z, y, x) uint8: brightness in T1 and in T2 (outside the newborn the head's own in both).
        distance_mm: int8, quarter millimetres to the surface of what lies inside the skull, negative inside.
        true_scale: size of the brain's owner against that in the arrays.
    """

    parts: np.ndarray
    guides: np.ndarray
    distance_mm: np.ndarray
    true_scale: float = 1.0


@dataclass
class Newborn:
    """A newborn on ``grid``: labels uint8 (tissues.py), images (2, z, y, x) float32 in 0-1, brain mask bool.

    ``middle_mm``: where the grid's origin lies in the scan's own space.
    """

    name: str
    labels: np.ndarray
    images: np.ndarray
    brain: np.ndarray
    grid: Grid
    middle_mm: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass
class Head:
    """A whole head: image in 0-1 and the mask of the inside of its skull, in its own space."""

    name: str
    image: sitk.Image
    mask: sitk.Image


def head_grid(spacing_mm: float = GRID_MM) -> Grid:
    """The grid of a head: that of the pool, or the same extent at another spacing."""
    return Grid.covering(np.asarray(LOWER_MM), np.asarray(UPPER_MM), spacing_mm)


def inside_skull(labels: np.ndarray, rim: int = 4, close: int = 2) -> np.ndarray:
    """Brain and the fluid around it, (z, y, x) bool, from a label map: its gaps closed, what lies outside left out."""
    from scipy import ndimage

    tissue = (labels > 0) & (labels != rim)
    padded = np.pad(tissue, close + 1)
    closed = ndimage.binary_closing(padded, ndimage.generate_binary_structure(3, 1), iterations=close)
    filled = ndimage.binary_fill_holes(closed)[close + 1 : -close - 1, close + 1 : -close - 1, close + 1 : -close - 1]
    parts, _ = ndimage.label(filled)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def signed_distance(mask: np.ndarray, spacing_mm: float = GRID_MM, far_mm: float = FAR_MM) -> np.ndarray:
    """Distance to the surface of a mask (z, y, x) in mm, float32, negative inside, clipped at ``far_mm``."""
    from scipy import ndimage

    out = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    out = (out - np.sign(out) * 0.5) * spacing_mm
    return np.clip(out, -far_mm, far_mm).astype(np.float32)


def load_newborn(
    name: str, t1: Path | str, t2: Path | str, labels: Path | str, spacing_mm: float = GRID_MM
) -> Newborn:  # fmt: skip
    """Read a newborn's files and lay them on a head's grid, the brain in the middle."""
    grid = head_grid(spacing_mm)
    label_image = sitk.ReadImage(str(labels))
    brain_image = sitk.GetImageFromArray(inside_skull(sitk.GetArrayFromImage(label_image)).astype(np.uint8))
    brain_image.CopyInformation(label_image)
    middle_mm = tuple(_middle_mm(brain_image).tolist())
    move = sitk.TranslationTransform(3, middle_mm)
    blank = grid.image(np.zeros(grid.shape, np.uint8))

    def onto(image: sitk.Image, how: int) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.Resample(image, blank, move, how, 0.0))

    images = []
    for path in (t1, t2):
        image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
        array = onto(sitk.DiscreteGaussian(image, 0.25) if spacing_mm > 1 else image, sitk.sitkLinear)
        images.append(unit(array, array > 0))
    brain = onto(sitk.Cast(brain_image, sitk.sitkFloat32), sitk.sitkLinear) > 0.5
    on_grid = onto(label_image, sitk.sitkNearestNeighbor).astype(np.uint8)
    return Newborn(name, on_grid, np.stack(images), brain, grid, middle_mm)


def load_head(name: str, image: Path | str, mask: Path | str) -> Head:
    """Read a whole head and the mask of the inside of its skull."""
    picture = sitk.Cast(sitk.ReadImage(str(image)), sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(picture)
    out = sitk.GetImageFromArray(unit(array, array > array.mean() * 0.2))
    out.CopyInformation(picture)
    return Head(name, out, sitk.Cast(sitk.ReadImage(str(mask)) > 0, sitk.sitkUInt8))


def unit(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Brightness scaled so that the 0.5 and 99 centile of ``inside`` become 0.02 and 0.8, in 0-1 float32."""
    low, high = np.percentile(array[inside], (0.5, 99))
    return (np.clip(0.02 + 0.78 * (array - low) / max(high - low, 1e-6), 0, 1) * (array > array.min())).astype(
        np.float32
    )


def fit_head(head: Head, newborn: Newborn) -> sitk.Transform:
    """Where the newborn's points lie in the head's space: its skull scaled and warped onto the newborn's brain."""
    coarse = 3.0
    small = head_grid(coarse)
    blank = small.image(np.zeros(small.shape, np.float32))
    wanted = newborn.grid.image(newborn.brain.astype(np.float32))
    target = sitk.GetArrayFromImage(sitk.Resample(wanted, blank, sitk.Transform(), sitk.sitkLinear, 0.0)) > 0.5
    affine = sitk.AffineTransform(3)
    low, high = _extent_mm(small.image(target.astype(np.uint8)))
    head_low, head_high = _extent_mm(head.mask)
    affine.SetMatrix(np.diag((head_high - head_low) / (high - low)).ravel().tolist())
    affine.SetTranslation(
        ((head_low + head_high) / 2 - (head_high - head_low) / (high - low) * (low + high) / 2).tolist()
    )
    soft = sitk.DiscreteGaussian(sitk.Cast(head.mask, sitk.sitkFloat32), 1.0)
    source = sitk.GetArrayFromImage(sitk.Resample(soft, blank, affine, sitk.sitkLinear, 0.0)) > 0.5
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(80)
    demons.SetStandardDeviations(1.5)
    demons.SetSmoothDisplacementField(True)
    fields = [small.image(signed_distance(m, coarse, 15.0)) for m in (target, source)]
    warp = sitk.DisplacementFieldTransform(sitk.Cast(demons.Execute(*fields), sitk.sitkVectorFloat64))
    out = sitk.CompositeTransform(3)
    out.AddTransform(affine)
    out.AddTransform(warp)  # the last one added is applied first
    return out


def head_around(
    newborn: Newborn, head: Head, fit: sitk.Transform, rng: np.random.Generator, blobs: float = 0.4
) -> Composed:
    """The newborn's brain in a real head: bone and scalp thinned, the face small, the gap filled."""
    grid = newborn.grid
    distance = signed_distance(newborn.brain, grid.spacing_mm[0])
    points = _points(grid)
    outward = np.clip(distance, 0, None)
    smooth = _smoothed(distance, 3.0 / grid.spacing_mm[0])
    gradient = np.stack(np.gradient(smooth, grid.spacing_mm[0])[::-1], -1)
    thinner, near = rng.uniform(1.0, 2.2), np.minimum(outward, 9.0)
    points = points + ((thinner - 1) * near)[..., None] * gradient
    far = np.clip((outward - 5.0) / 15.0, 0, 1)[..., None]
    points = points * (1 + rng.uniform(0.0, 0.45) * far * np.array([1.0, 1.0, rng.uniform(0.3, 1.0)]))
    field = grid.image(points - _points(grid), vector=True)
    move = sitk.CompositeTransform(3)
    move.AddTransform(fit)
    move.AddTransform(sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))
    blank = grid.image(np.zeros(grid.shape, np.float32))
    image = sitk.GetArrayFromImage(sitk.Resample(head.image, blank, move, sitk.sitkLinear, 0.0))
    cavity = sitk.GetArrayFromImage(sitk.Resample(head.mask, blank, move, sitk.sitkNearestNeighbor, 0)) > 0
    parts = _parts_by_brightness(image, image > 0.03, grid, rng, BODY, 8)
    return _laid_in(newborn, parts, image, cavity, distance, rng, blobs)


def whole_head(newborn: Newborn, head: Head, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A newborn's scan as it would look with its head left on, for tests.

    The brain keeps its own brightness. The head, which is known in T1 alone, is turned bright to dark for the T2, save
    its bone and air.

    Returns:
        T1 and T2, (2, z, y, x) float32, and the inside of the skull, bool, all on ``newborn.grid``.
    """
    composed = head_around(newborn, head, fit_head(head, newborn), np.random.default_rng(seed), blobs=0.0)
    images = composed.guides.astype(np.float32) / 255
    outside = composed.parts >= OUTSIDE
    t2 = images[1]
    t2[outside] = np.where(t2 > 0.15, np.clip(1.05 - t2, 0.1, 1.0), 0.6 * t2)[outside]
    return images, composed.distance_mm < 0


def drawn_around(newborn: Newborn, rng: np.random.Generator) -> Composed:
    """The newborn's brain in a drawn head: shells, face, neck, shoulders, eyes, cavities."""
    grid = newborn.grid
    distance = signed_distance(newborn.brain, grid.spacing_mm[0], far_mm=60.0)
    x, y, z = np.moveaxis(_points(grid), -1, 0).astype(np.float32)
    uneven = distance * np.clip(1 + 0.3 * _noise(grid, rng, 30.0), 0.3, 2.0)
    bone, scalp = rng.uniform(0.7, 4.0), rng.uniform(1.0, 8.0)
    gap = rng.uniform(0.0, 2.5) if rng.random() < 0.5 else 0.0
    body = np.zeros(distance.shape, bool)
    half = np.array([np.abs(a[newborn.brain]).max() for a in (x, y, z)])
    low = z[newborn.brain].min()
    for _ in range(rng.integers(0, 5)):  # face and jaw
        centre = half * [rng.uniform(-0.4, 0.4), rng.uniform(-0.9, -0.2), 0] + [0, 0, low + rng.uniform(-35, 10)]
        body |= _ellipsoid(x, y, z, centre, rng.uniform(10, 38, 3))
    if rng.random() < 0.8:  # neck and shoulders
        at, radius = rng.uniform(0, 0.5) * half[1], rng.uniform(18, 34)
        tilt = rng.uniform(-0.4, 0.4)
        body |= (z < low + 15) & (x**2 + (y - at - tilt * (z - low)) ** 2 < radius**2)
        if rng.random() < 0.5:
            body |= _ellipsoid(
                x, y, z, [0, at, low - rng.uniform(55, 90)], [90, rng.uniform(30, 60), rng.uniform(15, 35)]
            )
    body |= uneven < gap + bone + scalp
    noise = _noise(grid, rng, rng.uniform(6, 25))
    parts = np.where(body, BODY + np.digitize(noise, np.sort(rng.normal(0, 1, rng.integers(1, 7)))), 0).astype(np.uint8)
    if rng.random() < 0.6:
        parts[body & (_noise(grid, rng, rng.uniform(8, 20)) > rng.uniform(1.0, 2.5))] = 0  # airways and sinuses
    scalp_mask = (uneven >= gap + bone) & (uneven < gap + bone + scalp)
    parts[scalp_mask] = SCALP + (noise[scalp_mask] > rng.normal())
    parts[uneven < gap + bone] = BONE
    parts[uneven < gap] = GAP
    if rng.random() < 0.7:
        _add_eyes(parts, x, y, z, half, low, rng)
    guide = np.clip(0.45 + 0.12 * _noise(grid, rng, 5.0), 0, 1) * (parts > 0)
    return _laid_in(newborn, parts, guide.astype(np.float32), uneven < gap, np.clip(distance, -FAR_MM, FAR_MM), rng)


def shells_around(newborn: Newborn, rng: np.random.Generator) -> Composed:
    """The newborn's scan, with all that it shows around the brain, in a drawn gap, bone and scalp and nothing more."""
    import torch
    from scipy import ndimage

    from NeonatalSegLib.augmentation.synthesis import shell_layers

    shown = (newborn.labels > 0) | (newborn.images.max(0) > 0.02)
    away = ndimage.distance_transform_edt(~shown, sampling=newborn.grid.spacing_mm[::-1]).astype(np.float32)
    layers = shell_layers(torch.from_numpy(away), torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()
    parts = np.array([0, GAP, BONE, SCALP], np.uint8)[layers]
    parts[layers == 3] += _noise(newborn.grid, rng, 20.0)[layers == 3] > rng.normal()
    guide = np.clip((rng.uniform(0, 0.3) + 0.4 * (layers != 2)) * (1 + 0.2 * _noise(newborn.grid, rng, 12.0)), 0, 1)
    image = (guide * (layers > 0)).astype(np.float32)
    distance = signed_distance(newborn.brain, newborn.grid.spacing_mm[0])
    return _laid_in(newborn, parts, image, np.zeros(shown.shape, bool), distance, rng, blobs=0.0, with_rim=True)


def as_it_is(newborn: Newborn, rng: np.random.Generator) -> Composed:
    """The newborn's scan as it is, with nothing around it that it does not show itself."""
    nothing = np.zeros(newborn.labels.shape, np.uint8)
    distance = signed_distance(newborn.brain, newborn.grid.spacing_mm[0])
    return _laid_in(newborn, nothing, nothing.astype(np.float32), nothing > 0, distance, rng, blobs=0.0)


def own_brain(head: Head, rng: np.random.Generator) -> Composed:
    """A child's or an adult's head with its own brain, shrunk to the pool's grid."""
    low, high = _extent_mm(head.mask)
    scale = float(np.mean((high - low) / np.array([100.0, 125.0, 100.0]))) * rng.uniform(0.95, 1.1)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix((np.eye(3) * scale).ravel().tolist())
    affine.SetTranslation(_middle_mm(head.mask).tolist())
    grid = head_grid()
    blank = grid.image(np.zeros(grid.shape, np.float32))
    soft = sitk.DiscreteGaussian(head.image, (scale * GRID_MM / 2.355) ** 2)
    image = sitk.GetArrayFromImage(sitk.Resample(soft, blank, affine, sitk.sitkLinear, 0.0))
    mask = sitk.GetArrayFromImage(sitk.Resample(head.mask, blank, affine, sitk.sitkNearestNeighbor, 0)) > 0
    parts = _parts_by_brightness(image, image > 0.03, grid, rng, BODY, 8)
    parts[mask] = BRAIN_OF_HEAD + np.digitize(image[mask], np.quantile(image[mask], [0.15, 0.4, 0.65, 0.9]))
    distance = np.round(4 * signed_distance(mask)).astype(np.int8)
    guide = (255 * image).astype(np.uint8)
    return Composed(parts, np.stack([guide, guide]), distance, scale)


def _laid_in(
    newborn: Newborn, parts: np.ndarray, image: np.ndarray, cavity: np.ndarray, distance: np.ndarray,
    rng: np.random.Generator, blobs: float = 0.4, with_rim: bool = False,
) -> Composed:  # fmt: skip
    """Newborn over head; what the head's own brain would leave free becomes fluid near the brain and bone beyond.

    What the scan itself shows around the brain stays by chance, always ``with_rim``.
    """
    brain, labels = newborn.brain, newborn.labels
    if rng.random() < blobs:
        _add_blobs(parts, distance, newborn.grid, rng)
    parts = parts.copy()
    free = cavity & ~brain
    fluid_mm = rng.uniform(0.5, 4.0) if rng.random() < 0.5 else 0.0
    fluid = free & (distance < fluid_mm)
    parts[free] = BONE
    parts[fluid] = 4 * 1
    inner = brain | fluid
    rim = (labels == 4) & ~brain & (newborn.images.max(0) > 0.02)
    shown_rim = rim if with_rim or not parts.any() or rng.random() < 0.3 else np.zeros_like(rim)
    clusters = _clusters(newborn, brain | shown_rim)
    parts[brain | shown_rim] = (4 * np.maximum(labels, 1) + clusters)[brain | shown_rim]
    guides = np.where(brain | shown_rim, newborn.images, image)
    for channel, picture in enumerate(newborn.images):
        csf = brain & (labels == 1)
        guides[channel][fluid] = np.median(picture[csf]) if csf.any() else 0.5
    if fluid.any():
        distance = signed_distance(inner, newborn.grid.spacing_mm[0])
    quarter = np.round(4 * np.clip(distance, -FAR_MM, FAR_MM)).astype(np.int8)
    return Composed(parts.astype(np.uint8), (255 * np.clip(guides, 0, 1)).astype(np.uint8), quarter)


def _clusters(newborn: Newborn, where: np.ndarray) -> np.ndarray:
    """0-3 by brightness within each tissue."""
    out, guide = np.zeros(where.shape, np.uint8), newborn.images[1] + 0.5 * newborn.images[0]
    for label in np.unique(newborn.labels[where]):
        at = where & (newborn.labels == label)
        out[at] = np.digitize(guide[at], np.quantile(guide[at], [0.2, 0.5, 0.8]))
    return out


def _parts_by_brightness(
    image: np.ndarray, where: np.ndarray, grid: Grid, rng: np.random.Generator, first: int, count: int
) -> np.ndarray:
    """Parts of a head by brightness, each again in up to three by place."""
    parts = np.zeros(image.shape, np.uint8)
    borders = np.sort(rng.uniform(0.08, 0.8, count - 1))
    place = np.digitize(_noise(grid, rng, 40.0), np.sort(rng.normal(0, 0.8, 2)))
    parts[where] = (first + 3 * np.digitize(image, borders) + place)[where]
    return parts


def _add_eyes(
    parts: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, half: np.ndarray, low: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    radius, apart = rng.uniform(6, 11), rng.uniform(0.3, 0.5) * half[0]
    at = np.array([0.0, -half[1] * rng.uniform(0.6, 1.0), low + rng.uniform(0, 25)])
    for side in (-1, 1):
        ball = _ellipsoid(x, y, z, at + [side * apart, 0, 0], [radius] * 3) & (parts != 0)
        parts[ball] = EYE


def _add_blobs(parts: np.ndarray, distance: np.ndarray, grid: Grid, rng: np.random.Generator) -> None:
    """Balls, tubes and sheets outside the skull that look like brain: the same parts, hence the same brightness."""
    x, y, z = np.moveaxis(_points(grid), -1, 0).astype(np.float32)
    texture = np.digitize(_noise(grid, rng, rng.uniform(5, 12)), [-0.8, 0.3])
    tissue = np.array([4 * 1 + 2, 4 * 2 + 1, 4 * 3 + 2], np.uint8)[texture]
    for _ in range(rng.integers(1, 4)):
        centre = rng.uniform(LOWER_MM, UPPER_MM)
        blob = _ellipsoid(x, y, z, centre, rng.uniform(6, 28, 3) * (1, 1, rng.choice([1, 1, 3])))
        blob &= distance > rng.uniform(2, 8)
        parts[blob] = tissue[blob]


def _noise(grid: Grid, rng: np.random.Generator, size_mm: float) -> np.ndarray:
    """A smooth random field (z, y, x), unit variance, features of about ``size_mm``."""
    from scipy import ndimage

    shape = grid.shape
    coarse = [max(3, round(n * grid.spacing_mm[0] / size_mm) + 2) for n in shape]
    field = rng.normal(size=coarse).astype(np.float32)
    out = ndimage.zoom(field, [n / c for n, c in zip(shape, coarse, strict=True)], order=1)
    return (out - out.mean()) / out.std()


def _smoothed(array: np.ndarray, sigma: float) -> np.ndarray:
    from scipy import ndimage

    return ndimage.gaussian_filter(array, sigma)


def _ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: object, radii: object) -> np.ndarray:
    c, r = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    return ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 < 1


def _points(grid: Grid) -> np.ndarray:
    """(z, y, x, 3) float64 positions x, y, z in mm of the voxels of a head's grid."""
    axes = [grid.origin_mm[a] + grid.spacing_mm[a] * np.arange(grid.size[a]) for a in range(3)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    return np.stack([x, y, z], -1)


def _extent_mm(mask: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest position (x, y, z) in mm of a mask."""
    occupied = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[:, ::-1]
    matrix = Grid.of(mask).matrix()
    points = np.stack([occupied.min(0), occupied.max(0)]) @ matrix[:3, :3].T + matrix[:3, 3]
    return points.min(0), points.max(0)


def _middle_mm(mask: sitk.Image) -> np.ndarray:
    low, high = _extent_mm(mask)
    return (low + high) / 2
