"""Which of two images is the T1 and which the T2: decided from their contrast alone.

In a newborn's T2 the fluid around and inside the brain is much brighter than everything else, so the histogram of the
inside of the head has a long tail on its bright side; in T1 the same fluid is the darkest thing and the tail lies on
the dark side. The skewness of the intensities measures just that. Only voxels some millimetres inside the head count,
so that scalp fat (bright in both) and the rim of the mask do not.
"""

from __future__ import annotations

import contextlib

import numpy as np
import SimpleITK as sitk

WORKING_SPACING_MM = 2.0
DEPTH_MM = 5.0
MINIMUM_DIFFERENCE = 0.5
SINGLE_IMAGE_LIMITS = (-0.4, 1.0)


def fluid_skewness(image: sitk.Image) -> float | None:
    """Skewness of the intensities inside the head: above about 1 for T2, about 0 or below for T1.

    Returns None where no head can be told from the background (an empty image, a field of view without air and
    without contrast).
    """
    small = _shrunk(image)
    values = sitk.GetArrayFromImage(small)
    bright = values[sitk.GetArrayViewFromImage(sitk.OtsuThreshold(small, 0, 1)) > 0]
    if bright.size == 0:
        return None
    threshold = float(np.min(values) + 0.25 * (np.median(bright) - np.min(values)))
    # A slab of background on every side: the depth is then measured from the edge of the field of view as well.
    mask = sitk.ConstantPad(small > threshold, [1, 1, 1], [1, 1, 1], 0)
    mask = sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(mask, [2, 2, 2]))
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(mask))
    depth = sitk.SignedMaurerDistanceMap(parts == 1, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
    inside = sitk.GetArrayViewFromImage(depth)[1:-1, 1:-1, 1:-1] > DEPTH_MM
    sample = values[inside]
    spread = float(sample.std()) if sample.size else 0.0
    if sample.size < 100 or spread == 0.0:
        return None
    return float((((sample - sample.mean()) / spread) ** 3).mean())


def swapped_inputs(t1: sitk.Image | None, t2: sitk.Image | None) -> bool:
    """True where the image given as T1 looks like a T2 and the other way round.

    With both images the one with the larger skewness is the T2; a difference below ``MINIMUM_DIFFERENCE`` says
    nothing and gives False. With one image only a clear value counts. Nothing is assumed about the scanner's
    intensity scale, and the two images may lie on different grids.
    """
    first = fluid_skewness(t1) if t1 is not None else None
    second = fluid_skewness(t2) if t2 is not None else None
    if first is not None and second is not None:
        return first - second > MINIMUM_DIFFERENCE
    lowest, highest = SINGLE_IMAGE_LIMITS
    if first is not None and t2 is None:
        return first > highest
    if second is not None and t1 is None:
        return second < lowest
    return False


def contrast_warnings(t1: sitk.Image | None, t2: sitk.Image | None) -> list[str]:
    """A warning where T1 and T2 look exchanged, or the only image like the other modality (:func:`swapped_inputs`)."""
    swapped = False
    with contextlib.suppress(RuntimeError):  # no head to be seen, which others say
        swapped = swapped_inputs(t1, t2)
    if not swapped:
        return []
    if t1 is not None and t2 is not None:
        text = "T1 and T2 look exchanged: in a newborn's T2 the fluid is the brightest. Exchange the two and run again"
    else:
        given, other = ("T1", "T2") if t1 is not None else ("T2", "T1")
        brightest = "brightest" if given == "T1" else "darkest"
        text = f"The {given} looks like a {other}: its fluid is the {brightest}. Give it as {other}"
    return [f"{text} if that is so."]


def _shrunk(image: sitk.Image) -> sitk.Image:
    """The image at about 2 mm, averaged, so that noise and voxel size have no say and the test takes a moment only."""
    factors = [max(1, int(WORKING_SPACING_MM / spacing)) for spacing in image.GetSpacing()]
    factors = [min(factor, max(1, size // 16)) for factor, size in zip(factors, image.GetSize(), strict=True)]
    return sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
