"""Metrics against figures worked out by hand, and evaluation of folders of real NIfTI files."""

from __future__ import annotations

import numpy as np
import pytest

from NeonatalSegLib.evaluation.metrics import (
    dice_per_class,
    mean_dice,
    mean_dice_no_background,
    surface_distances,
    volume_sums,
    volumes_ml,
)
from NeonatalSegLib.tissues import TISSUES

NAN = float("nan")
SPACING_XYZ = (0.8, 1.5, 2.0)


# ---------------------------------------------------------------- overlap


def test_dice_by_hand() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 2, 3]])
    pred = np.array([[0, 1, 1, 1], [2, 2, 0, 5]])
    # class 0: 2 x 1 / (2 + 2); class 1: 2 x 2 / (3 + 2); class 2: 2 x 2 / (2 + 3); 3 and 5 are in one array only
    expected = [0.5, 0.8, 0.8, 0.0, NAN, 0.0, NAN, NAN, NAN, NAN]
    per_class = dice_per_class(pred, truth)
    assert per_class.dtype == np.float64
    np.testing.assert_allclose(per_class, expected)
    np.testing.assert_allclose(dice_per_class(truth, pred), expected)
    assert mean_dice(per_class) == pytest.approx((0.5 + 0.8 + 0.8 + 0 + 0) / 5)
    assert mean_dice_no_background(per_class) == pytest.approx((0.8 + 0.8 + 0 + 0) / 4)


def test_no_background_leaves_out_exactly_0_and_4() -> None:
    per_class = np.array([100.0, 1, 2, 3, 1000.0, 5, 6, 7, 8, 9])
    assert mean_dice_no_background(per_class) == pytest.approx((1 + 2 + 3 + 5 + 6 + 7 + 8 + 9) / 8)
    assert mean_dice(per_class) == pytest.approx((100 + 1000 + 41) / 10)


def test_means_of_nothing_are_nan() -> None:
    assert np.isnan(mean_dice(np.full(10, NAN)))
    only_background = dice_per_class(np.zeros(5, int), np.zeros(5, int))
    assert mean_dice(only_background) == 1.0
    assert np.isnan(mean_dice_no_background(only_background))


def test_dice_does_not_overflow_in_small_integer_types() -> None:
    labels = np.full((20, 20, 20), 9, np.uint8)
    assert dice_per_class(labels, labels)[9] == 1.0


@pytest.mark.parametrize(
    ("pred", "truth", "what"),
    [
        (np.zeros(3, int), np.zeros(4, int), "differ in shape"),
        (np.zeros(3), np.zeros(3, int), "integer"),
        (np.array([0, 10]), np.array([0, 1]), "0-9"),
        (np.array([0, 1]), np.array([-1, 1]), "0-9"),
    ],
)
def test_dice_refuses(pred: np.ndarray, truth: np.ndarray, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        dice_per_class(pred, truth)


# ---------------------------------------------------------------- surfaces


def _cube(at: tuple[int, int, int], label: int = 2) -> np.ndarray:
    """A 3x3x3 cube with its first corner at ``at`` in a 12x12x12 array."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[at[0] : at[0] + 3, at[1] : at[1] + 3, at[2] : at[2] + 3] = label
    return labels


@pytest.mark.parametrize(("axis", "step"), [(0, 2.0), (1, 1.5), (2, 0.8)])
def test_cube_shifted_by_its_own_width(axis: int, step: float) -> None:
    shifted = [4, 4, 4]
    shifted[axis] += 3
    hd95, assd = surface_distances(_cube((4, 4, 4)), _cube((shifted[0], shifted[1], shifted[2])), (2.0, 1.5, 0.8))
    # A surface is the cube without its centre, 9 + 8 + 9 = 26 voxels in three layers along the shift, which lie 3, 2
    # and 1 steps from the other cube's nearest face. Mean (9x3 + 8x2 + 9x1) / 26 = 52/26 = 2 steps, both ways alike.
    # More than 5 % of the 26 are at 3 steps, so the 95th percentile is 3 steps.
    assert hd95[2] == pytest.approx(3 * step, rel=1e-6)
    assert assd[2] == pytest.approx(2 * step, rel=1e-6)


def test_cube_shifted_by_one_voxel() -> None:
    hd95, assd = surface_distances(_cube((5, 4, 4)), _cube((4, 4, 4)), (2.0, 9.0, 9.0))
    # Of 26 surface voxels, the 9 of the face that sticks out and the one that now lies in the other cube's centre are
    # one step of 2 mm away; the other 16 lie on the other surface.
    assert assd[2] == pytest.approx(10 * 2.0 / 26, rel=1e-6)
    assert hd95[2] == pytest.approx(2.0, rel=1e-6)


def test_hd95_passes_over_one_stray_voxel() -> None:
    truth = np.zeros((10, 10, 20), np.uint8)
    truth[:, :, 2] = 7
    pred = truth.copy()
    pred[0, 0, 12] = 7
    hd95, assd = surface_distances(pred, truth, (1.0, 1.0, 0.5))
    # One of 101 distances is 10 x 0.5 mm, the other 100 and the 100 of the way back are 0.
    assert hd95[7] == 0.0
    assert assd[7] == pytest.approx(5.0 / 201, rel=1e-6)


def test_hd95_is_the_larger_of_both_directions() -> None:
    truth = np.zeros((10, 10, 20), np.uint8)
    truth[:, :, 2] = 7
    pred = truth.copy()
    pred[:, :, 12] = 7
    for one, other in ((pred, truth), (truth, pred)):
        hd95, assd = surface_distances(one, other, (1.0, 1.0, 0.5))
        # One way half of 200 distances are 5 mm, the other way all 100 are 0: 100 x 5 / 300.
        assert hd95[7] == pytest.approx(5.0, rel=1e-6)
        assert assd[7] == pytest.approx(500 / 300, rel=1e-6)


def test_surface_distances_are_symmetric_zero_on_equals_and_scale() -> None:
    random = np.random.default_rng(3)
    pred, truth = (random.integers(0, 10, (9, 8, 7)).astype(np.uint8) for _ in range(2))
    there, back = surface_distances(pred, truth, SPACING_XYZ), surface_distances(truth, pred, SPACING_XYZ)
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert np.isfinite(there).all() and (np.array(there) > 0).all()
    np.testing.assert_array_equal(surface_distances(truth, truth, SPACING_XYZ), np.zeros((2, 10)))
    doubled = surface_distances(pred, truth, tuple(2 * s for s in SPACING_XYZ))
    np.testing.assert_allclose(doubled, 2 * np.array(there), rtol=1e-5)


def test_surface_distance_where_a_class_is_absent() -> None:
    pred, truth = _cube((4, 4, 4), label=2), _cube((4, 4, 4), label=3)
    hd95, assd = surface_distances(pred, truth, (1, 1, 1))
    assert list(np.flatnonzero(np.isfinite(hd95))) == [0]  # 2 and 3 are in one array only, the others in none
    assert list(np.flatnonzero(np.isfinite(assd))) == [0]


def test_cropping_to_the_class_changes_nothing() -> None:
    # The same labels in a larger array: only class 0, which fills the array, may differ.
    random = np.random.default_rng(4)
    pred, truth = (random.integers(0, 4, (5, 6, 7)).astype(np.uint8) for _ in range(2))
    larger = surface_distances(np.pad(pred, 4), np.pad(truth, 4), SPACING_XYZ)
    np.testing.assert_allclose(
        np.array(surface_distances(pred, truth, SPACING_XYZ))[:, 1:], np.array(larger)[:, 1:], rtol=1e-5
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, NAN, 1.0)])
def test_surface_distances_refuse_bad_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacings"):
        surface_distances(_cube((0, 0, 0)), _cube((0, 0, 0)), spacing)


# ---------------------------------------------------------------- volumes


def test_volumes_by_hand() -> None:
    # Label k on 100 k voxels of 0.8 x 1.5 x 2 = 2.4 mm3: 0.24 k mL.
    labels = np.repeat(np.arange(10), 100 * np.arange(10)).reshape(45, 100)
    volumes = volumes_ml(labels, 0.8 * 1.5 * 2.0)
    assert list(volumes) == [tissue.key for tissue in TISSUES]
    assert volumes["background"] == 0.0
    assert volumes["hippocampus"] == pytest.approx(9 * 0.24)
    sums = volume_sums(volumes)
    # Brain: cortex 2, white matter 3, cerebellum 6, deep grey 7, brainstem 8, hippocampus 9; with CSF 1, ventricles 5.
    assert sums == pytest.approx({"brain": 35 * 0.24, "intracranial": 41 * 0.24})


@pytest.mark.parametrize("volume", [0.0, -1.0, NAN])
def test_volumes_refuse_bad_voxels(volume: float) -> None:
    with pytest.raises(ValueError, match="voxel volume"):
        volumes_ml(np.zeros(3, int), volume)
