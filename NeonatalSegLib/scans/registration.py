"""Rigid alignment of a newborn's T1 onto the T2, and a figure that says how well two contrasts agree."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid

QUALITY_SPACING_MM = 1.6
LOCAL_MM = 5.0  # standard deviation of the smooth part that is taken away
RIM_MM = 4.0


def agreement(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, mask: sitk.Image) -> float:
    """How well the local contrast of two images agrees inside the fixed image's foreground, 0 (not at all) to 1.

    The absolute rank correlation of what is left after the smooth part (Gaussian, 5 mm) was taken away: gyri and sulci
    of one newborn lie where they lie, those of another elsewhere, while head shape, rim and bias field, which two
    newborns share, do not count. Absolute, since a newborn's T1 and T2 are nearly inverse to each other.

    Args:
        transform: from fixed to moving physical points (SimpleITK's convention).
        mask: foreground of the fixed image, same grid as ``fixed``, non-zero inside.
    """
    corners = Grid.of(fixed).corners_mm()
    coarse = Grid.covering(corners.min(0), corners.max(0), QUALITY_SPACING_MM)
    like = coarse.image(np.zeros(coarse.shape, np.uint8))
    head = sitk.Resample(mask, like, sitk.Transform(), sitk.sitkNearestNeighbor)
    inner = sitk.GetArrayFromImage(sitk.BinaryErode(head, [round(RIM_MM / QUALITY_SPACING_MM)] * 3)) > 0
    if inner.sum() < 1000:
        return 0.0
    weight = sitk.Cast(head, sitk.sitkFloat32)
    share = _smooth(weight) + 1e-6
    ranks = []
    for image, move in ((fixed, sitk.Transform()), (moving, transform)):
        there = sitk.Resample(image, like, move, sitk.sitkLinear, 0.0, sitk.sitkFloat32) * weight
        local = sitk.GetArrayFromImage(there) - _smooth(there) / share
        ranks.append(_ranks(local[inner]))
    return abs(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))


def _smooth(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, LOCAL_MM))


def _ranks(values: np.ndarray) -> np.ndarray:
    order = np.empty(values.size)
    order[np.argsort(values, kind="stable")] = np.arange(values.size)
    return order


def register_rigid(fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image) -> sitk.Transform:
    """Rigid transform (fixed to moving points) that maximises Mattes mutual information, from the headers' position.

    Where the headers place the two images apart, their centres are brought together first. Sampling is seeded, so
    that the same scan gives the same result.
    """
    fixed, moving = sitk.Cast(fixed, sitk.sitkFloat32), sitk.Cast(moving, sitk.sitkFloat32)
    initial = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    if _overlap(fixed, moving) > 0.3:
        centred = sitk.Euler3DTransform()
        centred.SetCenter(initial.GetFixedParameters()[:3])
        initial = centred
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([0.4, 0.2], seed=1)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 120, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    factor = max(1, round(2.0 / max(min(fixed.GetSpacing()), 0.25)))
    method.SetShrinkFactorsPerLevel([2 * factor, factor])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(initial, inPlace=False)
    return method.Execute(fixed, moving)


def _overlap(fixed: sitk.Image, moving: sitk.Image) -> float:
    """Share of the smaller box that the two images' physical boxes have in common, 0-1."""
    a, b = Grid.of(fixed).corners_mm(), Grid.of(moving).corners_mm()
    common = np.prod(np.clip(np.minimum(a.max(0), b.max(0)) - np.maximum(a.min(0), b.min(0)), 0, None))
    return float(common / min(np.prod(np.ptp(a, axis=0)), np.prod(np.ptp(b, axis=0))))
