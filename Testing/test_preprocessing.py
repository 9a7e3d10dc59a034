"""The way to the network's grid and back: geometry is physical, for every orientation and spacing."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import image_of

from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import MIN_AGREEMENT, Prepared, foreground, labels_on, prepare
from NeonatalSegLib.scans.registration import agreement, register_rigid
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.scans.way_back import labels_on_scan, probabilities_on_scan


def resampled(image: sitk.Image, spacing: tuple[float, float, float], degrees: float, nearest: bool) -> sitk.Image:
    """The same anatomy on a grid that is turned about an oblique axis, with another spacing."""
    turn = sitk.VersorTransform((0.3, 0.2, 0.93), np.deg2rad(degrees))
    direction = np.asarray(turn.GetMatrix())
    centre = Grid.of(image).corners_mm().mean(0)
    half = np.abs(Grid.of(image).corners_mm() - centre).max(0)
    size = [int(2 * h / s) for h, s in zip(half, spacing, strict=True)]
    origin = centre - direction.reshape(3, 3) @ ((np.asarray(size) - 1) / 2 * spacing)
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, size, sitk.Transform(), how, origin.tolist(), spacing, direction.tolist(), 0.0)


def one_hot(labels: np.ndarray) -> np.ndarray:
    return (np.arange(10)[:, None, None, None] == labels).astype(np.float32)


def round_trip(t2: sitk.Image, labels: sitk.Image) -> tuple[np.ndarray, Prepared]:
    """Labels to the network's grid and back to the scan's."""
    prepared = prepare(make_scan(t2=t2))
    values = one_hot(labels_on(prepared.grid, labels))
    return labels_on_scan(values, prepared.grid, prepared.target), prepared


@pytest.mark.parametrize("code", ["LPS", "RAS", "LAS", "PIR", "SLA"])
def test_every_orientation_comes_back_to_its_own_grid(newborn: Phantom, code: str) -> None:
    t2, labels = sitk.DICOMOrient(newborn.t2, code), sitk.DICOMOrient(newborn.labels, code)
    back, prepared = round_trip(t2, labels)
    assert prepared.target.is_like(Grid.of(labels))
    assert mean_dice(dice_per_class(back, sitk.GetArrayFromImage(labels))) > 0.95


def test_the_network_sees_the_same_whatever_the_orientation(newborn: Phantom) -> None:
    plain = prepare(newborn.scan)
    turned = prepare(make_scan(sitk.DICOMOrient(newborn.t1, "SLA"), sitk.DICOMOrient(newborn.t2, "SLA")))
    assert plain.grid.is_like(turned.grid)
    assert np.allclose(plain.array, turned.array, atol=1e-3)


@pytest.mark.parametrize(
    ("spacing", "degrees", "floor"),
    [((1.0, 1.0, 1.0), 20, 0.93), ((0.7, 0.7, 3.0), 0, 0.85), ((0.6, 0.9, 1.2), 33, 0.9)],
)
def test_oblique_and_anisotropic_grids(
    newborn: Phantom, spacing: tuple[float, float, float], degrees: float, floor: float
) -> None:
    """The floor is low for 3 mm slices, where one voxel of shift is most of a cortex."""
    t2 = resampled(newborn.t2, spacing, degrees, nearest=False)
    labels = resampled(newborn.labels, spacing, degrees, nearest=True)
    back, _ = round_trip(t2, labels)
    assert back.shape == sitk.GetArrayFromImage(labels).shape
    assert mean_dice(dice_per_class(back, sitk.GetArrayFromImage(labels))) > floor


def test_a_cropped_volume_keeps_its_place(newborn: Phantom) -> None:
    """As Slicer's Crop Volume leaves it: other origin, other size."""
    lower, upper = [12, 15, 10], [9, 11, 13]
    t2, labels = sitk.Crop(newborn.t2, lower, upper), sitk.Crop(newborn.labels, lower, upper)
    back, _ = round_trip(t2, labels)
    assert mean_dice(dice_per_class(back, sitk.GetArrayFromImage(labels))) > 0.93


def test_outside_the_head_is_background(newborn: Phantom) -> None:
    t2 = sitk.ConstantPad(newborn.t2, [20, 25, 30], [10, 15, 5], 0.0)
    labels = sitk.ConstantPad(newborn.labels, [20, 25, 30], [10, 15, 5], 0)
    back, prepared = round_trip(t2, labels)
    assert np.prod(prepared.grid.size) < 0.8 * np.prod(Grid.of(t2).size) / 0.8**3  # the crop took the padding away
    assert not back[:5].any()
    assert not back[..., -8:].any()


def test_probabilities_sum_to_one_everywhere(newborn: Phantom) -> None:
    prepared = prepare(newborn.scan)
    values = np.random.default_rng(0).random((10, *prepared.grid.shape), np.float32)
    full = probabilities_on_scan(values / values.sum(0), prepared.grid, prepared.target)
    assert full.shape == (10, *prepared.target.shape)
    assert np.allclose(full.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("degrees", [0, 25])
def test_labels_on_the_scan_are_those_of_the_interpolated_probabilities(newborn: Phantom, degrees: float) -> None:
    """Also where whole cells are taken as they are, on a grid that runs along and on one that is turned."""
    prepared = prepare(make_scan(t2=newborn.t2))
    values = one_hot(labels_on(prepared.grid, newborn.labels))
    values = np.stack(
        [sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(v), 1.5)) for v in values]
    )
    target = Grid.of(resampled(newborn.t2, (0.6, 0.9, 1.2), degrees, nearest=False))
    found = labels_on_scan(values, prepared.grid, target)
    expected = probabilities_on_scan(values, prepared.grid, target).argmax(0)
    assert (found > 0).mean() > 0.05 and len(np.unique(found)) > 8
    assert (found != expected).mean() < 1e-4  # ties, decided by the last bit


def test_foreground_is_zero_mean_and_unit_variance(newborn: Phantom) -> None:
    prepared = prepare(newborn.scan)
    inside = sitk.GetArrayFromImage(
        sitk.Resample(
            foreground(newborn.t2),
            prepared.grid.image(np.zeros(prepared.grid.shape, np.uint8)),
            sitk.Transform(),
            sitk.sitkNearestNeighbor,
        )
    )
    for channel in prepared.array:
        assert abs(channel[inside > 0].mean()) < 0.05
        assert abs(channel[inside > 0].std() - 1) < 0.05


def test_an_absent_modality_is_zero(newborn: Phantom) -> None:
    prepared = prepare(make_scan(t1=newborn.t1))
    assert prepared.present == (True, False)
    assert not prepared.array[1].any()
    assert prepared.agreement is None


def test_foreground_of_a_noisy_scan_leaves_the_air_out(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.t2).astype(np.float32)
    inside = array > 0
    noisy = array + np.abs(np.random.default_rng(0).normal(0, 0.02 * array.max(), array.shape)).astype(np.float32)
    image = image_of(noisy)
    image.CopyInformation(newborn.t2)
    found = sitk.GetArrayFromImage(foreground(image)) > 0
    assert (found & inside).sum() / inside.sum() > 0.85
    assert (found & ~inside).sum() / inside.sum() < 0.1


def moved(image: sitk.Image, degrees: float, shift_mm: tuple[float, float, float]) -> tuple[sitk.Image, sitk.Transform]:
    """The image of a head that moved between two acquisitions, on a grid of another spacing."""
    centre = Grid.of(image).corners_mm().mean(0).tolist()
    motion = sitk.Euler3DTransform(centre, 0.0, 0.0, np.deg2rad(degrees), shift_mm)
    size = [int(n / 1.25) for n in image.GetSize()]
    out = sitk.Resample(
        image, size, motion, sitk.sitkLinear, image.GetOrigin(), (1.25, 1.25, 1.25), image.GetDirection(), 0.0
    )
    return out, motion


def test_a_moved_t1_is_registered_within_a_millimetre(newborn: Phantom) -> None:
    t1, motion = moved(newborn.t1, 6.0, (4.0, -3.0, 2.0))
    found = register_rigid(newborn.t2, t1, foreground(newborn.t2))
    points = Grid.of(newborn.t2).corners_mm() * 0.7
    error = [np.linalg.norm(np.subtract(motion.TransformPoint(found.TransformPoint(p)), p)) for p in points.tolist()]
    assert max(error) < 1.0


def test_trusting_the_headers_leaves_t1_where_it_is(newborn: Phantom) -> None:
    t1, _ = moved(newborn.t1, 6.0, (4.0, -3.0, 2.0))
    registered = prepare(make_scan(t1, newborn.t2))
    trusted = prepare(make_scan(t1, newborn.t2), trust_headers=True)
    assert registered.agreement is not None and trusted.agreement is not None
    assert registered.agreement > trusted.agreement + 0.1


def test_agreement_is_high_for_one_newborn_and_low_for_noise(newborn: Phantom) -> None:
    mask = foreground(newborn.t2)
    assert agreement(newborn.t2, newborn.t1, sitk.Transform(), mask) > MIN_AGREEMENT
    noise = image_of(np.random.default_rng(1).normal(size=newborn.t2.GetSize()[::-1]).astype(np.float32))
    noise.CopyInformation(newborn.t2)
    assert agreement(newborn.t2, noise, sitk.Transform(), mask) < MIN_AGREEMENT / 2


def test_n4_flattens_a_bias_field(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.t2).astype(np.float32)
    field = np.exp(np.linspace(-0.5, 0.5, array.shape[2], dtype=np.float32))
    wm = sitk.GetArrayFromImage(newborn.labels) == 3
    image = image_of(array * field)
    image.CopyInformation(newborn.t2)
    plain, corrected = prepare(make_scan(t2=image)), prepare(make_scan(t2=image), n4=True)
    mask = newborn.labels == 3
    inside = labels_on(plain.grid, sitk.Cast(mask, sitk.sitkUInt8)) > 0
    assert wm.any()
    assert corrected.array[1][inside].std() < 0.8 * plain.array[1][inside].std()


def test_a_field_of_view_far_larger_than_a_head_is_refused() -> None:
    array = np.zeros((60, 60, 60), np.float32)
    array[1:-1, 1:-1, 1:-1] = 1 + np.random.default_rng(0).random((58, 58, 58))
    with pytest.raises(NeonatalSegError, match="crop it first"):
        prepare(make_scan(t2=image_of(array, (8.0, 8.0, 8.0))))
