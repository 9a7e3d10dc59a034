"""From a Scan to the network's grid; the exact way back is ``way_back.py``.

The way in: the brain found and the head around it masked, T1 onto T2, one interpolation onto an isotropic grid along
the patient's axes, crop to the foreground, z-score over the foreground (paper, section 2, "Pipeline Design": "cropped
... to non-zero value regions").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.registration import agreement, register_rigid
from NeonatalSegLib.scans.scan import Scan

MODALITIES = ("t1", "t2")  # the network's channels, in this order
MARGIN_VOXELS = 2
MAX_GRID_VOXELS = 40_000_000
# Agreement of T1 and T2 (see registration.agreement): pairs of one newborn and pairs of two are told apart here;
# benchmarks/registration_quality.py prints the figures behind the number.
MIN_AGREEMENT = 0.40
MIN_COVERAGE = 0.8  # of the head in T2 that T1 shows: below it the rest is left out of the comparison, and told
HEAD_ML = (60.0, 6000.0)  # brain alone of the smallest newborn; beyond any head with neck
# A head is around the brain where more than this share of what stands out lies further than FAR_MM from the inside of
# the skull: 0.001 at most in ALBERTs, age templates and fetal atlases, of which little besides the brain is left and
# which then stay as they are; 0.04 and more with a head on.
FAR_MM, MAX_FAR = 6.0, 0.01
RIM_MM = 3.0  # left around the inside of the skull where a head is masked

FindBrain = Callable[[sitk.Image, sitk.Image], sitk.Image | None]  # image, mask of the head: brain_finder.find


@dataclass(frozen=True)
class Prepared:
    """A scan on the network's grid.

    Attributes:
        array: (2, z, y, x) float32, channels T1 and T2, z-scored over the foreground; an absent channel is all 0.
        inside: (z, y, x) bool, the foreground: what is left of the head.
        grid: where ``array`` lies.
        target: the grid on which results are wanted (the scan's reference image).
        present: which of T1 and T2 were there.
        agreement: registration quality 0-1, None with one modality.
        warnings: in words.
        brain_mm: mm to the surface of what lies inside the skull, negative inside, on a grid of its own; None where
            nobody looked, or no brain was found.
        head_masked: much of a head was there, and what lay beyond ``RIM_MM`` was masked.
    """

    array: np.ndarray
    inside: np.ndarray
    grid: Grid
    target: Grid
    present: tuple[bool, bool]
    agreement: float | None
    warnings: tuple[str, ...]
    brain_mm: sitk.Image | None = None
    head_masked: bool = False


def prepare(
    scan: Scan,
    spacing_mm: float = 0.8,
    *,
    trust_headers: bool = False,
    n4: bool = False,
    find_brain: FindBrain | None = None,
) -> Prepared:
    """Bring a scan onto the network's grid.

    Args:
        spacing_mm: isotropic edge of the network's voxels.
        trust_headers: never register T1 to T2; take the positions in the headers as true.
        n4: correct the bias field first (slow; off by default since training augments bias fields).
        find_brain: says where the brain lies, so that a head around it is masked; None for scans without one.

    Raises:
        NeonatalSegError: the foreground is empty or absurdly large.
    """
    images = {key: image for key in MODALITIES if (image := getattr(scan, key)) is not None}
    shown = standing_out(scan.reference)
    mask = foreground(scan.reference, shown)
    warnings = [*scan.warnings, *head_size_warning(mask)]
    brain_mm, head_masked = None, False
    if find_brain is not None:
        brain_mm = find_brain(scan.reference, mask)
        if brain_mm is None:
            warnings.append("No brain was found before the segmentation: the scan was segmented with all it shows.")
        else:
            mask, head_masked = without_head(mask, shown, brain_mm)
    transforms = dict.fromkeys(images, sitk.Transform())
    quality = None
    if len(images) == 2:
        transforms["t1"], quality, found = align(scan, mask, trust_headers)
        warnings += found
    if n4:
        images = {key: bias_corrected(image) for key, image in images.items()}
    grid = _network_grid(mask, spacing_mm)
    inside = _onto(mask, grid, sitk.Transform(), sitk.sitkNearestNeighbor) > 0
    array = np.zeros((len(MODALITIES), *grid.shape), np.float32)
    for channel, key in enumerate(MODALITIES):
        if key in images:
            image = _onto(_antialiased(images[key], spacing_mm), grid, transforms[key], sitk.sitkLinear)
            array[channel] = zscore(np.where(inside, image, image.min()) if head_masked else image, inside)
    present = ("t1" in images, "t2" in images)
    target = Grid.of(scan.reference)
    return Prepared(array, inside, grid, target, present, quality, tuple(warnings), brain_mm, head_masked)


def without_head(mask: sitk.Image, shown: sitk.Image, brain_mm: sitk.Image) -> tuple[sitk.Image, bool]:
    """The foreground without the head around the brain.

    Args:
        mask, shown: uint8, the foreground, and all that stands out, whether it touches that or not.
        brain_mm: mm to the inside of the skull (:class:`Prepared`).

    Returns:
        What stands out within ``RIM_MM`` of the inside of the skull, where there is much beyond ``FAR_MM``; else the
        mask. And whether a head was there.
    """
    beyond_mm = float(sitk.GetArrayViewFromImage(brain_mm).max()) + FAR_MM
    away_mm = sitk.Resample(brain_mm, mask, sitk.Transform(), sitk.sitkLinear, beyond_mm, sitk.sitkFloat32)
    far = sitk.GetArrayViewFromImage(away_mm)[sitk.GetArrayViewFromImage(shown) > 0] > FAR_MM
    near = shown * sitk.Cast(away_mm <= RIM_MM, sitk.sitkUInt8)
    if float(far.mean()) <= MAX_FAR or not np.any(sitk.GetArrayViewFromImage(near)):
        return mask, False
    return near, True


def align(scan: Scan, mask: sitk.Image, trust_headers: bool) -> tuple[sitk.Transform, float, list[str]]:
    """Transform from T2 points to T1 points, the agreement under it, and warnings.

    Registers where the two grids differ, or where they are the same but the contrasts do not agree.
    """
    t1, t2 = scan.t1, scan.t2
    assert t1 is not None and t2 is not None
    transform = sitk.Transform()
    mask, warnings = _where_both_show(t1, mask)
    quality = agreement(t2, t1, transform, mask)
    same_grid = Grid.of(t1).is_like(Grid.of(t2))
    if not trust_headers and (not same_grid or quality < MIN_AGREEMENT):
        try:
            found = register_rigid(t2, t1, mask)
            if (better := agreement(t2, t1, found, mask)) > quality:
                transform, quality = found, better
        except RuntimeError:  # ITK: too few samples overlap
            warnings.append("T1 could not be registered to T2; the positions in the headers were used.")
    if quality < MIN_AGREEMENT:
        warnings.append(
            f"T1 and T2 agree poorly (agreement {quality:.2f}, expected at least {MIN_AGREEMENT:.2f}): they may be of "
            "different newborns or badly aligned. Check them, or segment with one of them alone."
        )
    return transform, quality, warnings


def _where_both_show(t1: sitk.Image, mask: sitk.Image) -> tuple[sitk.Image, list[str]]:
    """The head's mask on the T2's grid, without what T1 does not show where that is much, and a warning then.

    A T1 that covers half of the head would else look like another newborn's.
    """
    low = float(sitk.GetArrayViewFromImage(t1).min())
    shown = sitk.Resample(sitk.Cast(t1 > low, sitk.sitkUInt8), mask, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    both = mask * shown
    head = np.count_nonzero(sitk.GetArrayViewFromImage(mask))
    share = np.count_nonzero(sitk.GetArrayViewFromImage(both)) / head
    if share >= MIN_COVERAGE:
        return mask, []
    text = (
        f"T1 shows only {100 * share:.0f} % of the head that T2 shows: its field of view is smaller or elsewhere, "
        "or it is masked or partly empty. The rest was segmented with what T2 tells."
    )
    return (both if share > 0.1 else mask), [text]


def head_size_warning(mask: sitk.Image) -> list[str]:
    """A warning where what was taken for the head is smaller than a brain or larger than any head."""
    volume_ml = np.count_nonzero(sitk.GetArrayViewFromImage(mask)) * Grid.of(mask).voxel_volume_mm3 / 1000
    if HEAD_ML[0] <= volume_ml <= HEAD_ML[1]:
        return []
    size = "smaller than a newborn's brain" if volume_ml < HEAD_ML[0] else "larger than any head"
    text = (
        f"What stands out of the background measures {volume_ml:.0f} mL, {size}: noise, or a wrong voxel spacing. Look "
        "at the segmentation before using it."
    )
    return [text]


def standing_out(image: sitk.Image) -> sitk.Image:
    """uint8 mask of what is no air: non-zero voxels of an extracted scan, else what stands out of the noise (Otsu)."""
    array = sitk.GetArrayViewFromImage(image)
    low = float(array.min())
    if np.count_nonzero(array == low) > 0.05 * array.size:
        mask = image > low
    else:
        mask = image > _above_noise(image, array)
    return sitk.Cast(mask, sitk.sitkUInt8)


def foreground(image: sitk.Image, shown: sitk.Image | None = None) -> sitk.Image:
    """uint8 mask of the head: the largest part of what is no air (``shown``, default :func:`standing_out`).

    Raises:
        NeonatalSegError: nothing stands out.
    """
    shown = standing_out(image) if shown is None else shown
    mask = sitk.RelabelComponent(sitk.ConnectedComponent(shown), 1) == 1
    if not np.any(sitk.GetArrayViewFromImage(mask)):
        raise NeonatalSegError("No head could be found in the scan: it is empty or nearly constant.")
    return mask


def _above_noise(image: sitk.Image, array: np.ndarray) -> float:
    """A threshold between air and the darkest tissue: Otsu's alone would take dark tissue for air."""
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(image)
    air = float(np.median(array[array <= otsu.GetThreshold()]))
    return air + 0.3 * (otsu.GetThreshold() - air)


def bias_corrected(image: sitk.Image) -> sitk.Image:
    """N4 bias field correction, the field fitted on a 4-fold coarser image and applied to the full one."""
    mask = foreground(image)
    factor = [max(1, round(3.0 / s)) for s in image.GetSpacing()]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([30, 30, 20])
    n4.Execute(sitk.Shrink(image, factor), sitk.Shrink(mask, factor))
    return image / sitk.Exp(n4.GetLogBiasFieldAsImage(image))


def zscore(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(x - mean) / sd with both taken over ``inside``, outliers beyond the 0.1 and 99.9 centile clipped first."""
    values = array[inside]
    low, high = np.percentile(values, (0.1, 99.9))
    values = np.clip(values, low, high)
    sd = float(values.std()) or 1.0
    return (np.clip(array, min(low, float(array.min())), high) - float(values.mean())) / sd


def labels_on(grid: Grid, labels: sitk.Image) -> np.ndarray:
    """A label map (uint8) brought onto the network's grid: the class with the largest linear weight at each voxel."""
    return _onto(labels, grid, sitk.Transform(), sitk.sitkLabelLinear).astype(np.uint8)


def _network_grid(mask: sitk.Image, spacing_mm: float) -> Grid:
    """Isotropic grid along the patient's axes around the mask, with a small margin."""
    occupied = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0)[:, ::-1]  # x, y, z
    full = Grid.of(mask)
    lower, upper = occupied.min(0), occupied.max(0)
    box = full.crop(tuple(int(v) for v in lower), tuple(int(v) for v in upper - lower + 1))  # type: ignore[arg-type]
    if np.count_nonzero(np.abs(np.asarray(full.direction)) > 1e-3) > 3:  # oblique: the tilted box would be too roomy
        points = occupied @ full.matrix()[:3, :3].T + full.matrix()[:3, 3]
    else:
        points = box.corners_mm()
    margin = MARGIN_VOXELS * spacing_mm
    grid = Grid.covering(points.min(0) - margin, points.max(0) + margin, spacing_mm)
    if np.prod(grid.size) > MAX_GRID_VOXELS:
        extent = " x ".join(f"{n * spacing_mm:.0f}" for n in grid.size)
        raise NeonatalSegError(f"The scan covers {extent} mm, far more than a newborn's head: crop it first.")
    return grid


def _onto(image: sitk.Image, grid: Grid, transform: sitk.Transform, interpolator: int) -> np.ndarray:
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.size)
    resampler.SetOutputSpacing(grid.spacing_mm)
    resampler.SetOutputOrigin(grid.origin_mm)
    resampler.SetOutputDirection(grid.direction)
    resampler.SetTransform(transform)
    resampler.SetInterpolator(interpolator)
    low = 0.0 if interpolator != sitk.sitkLinear else float(sitk.GetArrayViewFromImage(image).min())
    resampler.SetDefaultPixelValue(low)
    return sitk.GetArrayFromImage(resampler.Execute(image))


def _antialiased(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """Blur axes that are finer than the network's grid, so that skipped voxels are averaged and not lost."""
    sigma = [np.sqrt(max(spacing_mm**2 - s**2, 0.0)) / 2.355 for s in image.GetSpacing()]
    if max(sigma) < 0.2 * spacing_mm:
        return image
    return sitk.DiscreteGaussian(image, [max(s, 1e-3) ** 2 for s in sigma], 8, 0.01, True)
