"""Slices chosen for a budget: anatomy in any orientation, how many, which, why, and the same again tomorrow."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.annotation.slice_selection import ScanToPlan
from NeonatalSegLib.datasets.phantom import draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import AXES, Grid, plane, voxel_axis
from NeonatalSegLib.tissues import PHYSIOLOGICAL

BRAIN = [t.index for t in PHYSIOLOGICAL]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
BOX = Grid((40, 50, 60), (2.0, 2.0, 1.5), (-40.0, -50.0, -45.0), IDENTITY)


def settings(amount: float = 10, unit: str = "slices", **more: object) -> BudgetSettings:
    return BudgetSettings(amount, unit, **more)  # type: ignore[arg-type]


def box(name: str = "box", *, uncertain: bool = False) -> ScanToPlan:
    """Foreground of 20 x 30 x 40 voxels (x, y, z) in the middle of 40 x 50 x 60; tissue 3 in it."""
    foreground = np.zeros(BOX.shape, bool)
    foreground[10:50, 10:40, 10:30] = True
    if not uncertain:
        return ScanToPlan(name, BOX, foreground)
    return ScanToPlan(name, BOX, foreground, foreground * np.uint8(3), np.full(BOX.shape, 0.1, np.float32))


@functools.cache
def newborn(orientation: str = "LPS", oblique: float = 0.0, spacing: float = 3.0, seed: int = 1) -> ScanToPlan:
    """A drawn newborn whose prediction is the truth and whose uncertainty is faint noise."""
    image = draw_newborn(40.0, seed, spacing_mm=spacing, orientation=orientation, oblique_degrees=oblique).labels
    labels = sitk.GetArrayFromImage(image)
    noise = np.random.default_rng(seed).uniform(0, 0.1, labels.shape).astype(np.float32)
    return ScanToPlan(f"{orientation}{oblique:g}", Grid.of(image), np.isin(labels, BRAIN), labels, noise)


def world(grid: Grid, axis: str, index: int) -> np.ndarray:
    """(8, 3) RAS positions of the corner voxels of one slice, by SimpleITK and not by the code under test."""
    painted = np.zeros(grid.shape, np.uint8)
    painted[plane(grid, axis, index)] = 1
    image = grid.image(painted)
    voxels = np.argwhere(painted)[:, ::-1]
    corners = itertools.product(*zip(voxels.min(0).tolist(), voxels.max(0).tolist(), strict=True))
    return np.array([image.TransformIndexToPhysicalPoint(corner) for corner in corners]) * (-1, -1, 1)


# --- anatomy ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["LPS", "LAS", "RAS", "PIR", "SLA", "ASL"])
def test_planes_stand_on_the_anatomical_axis(orientation: str) -> None:
    scan = newborn(orientation)
    for column, axis in enumerate(AXES):
        planned = plan_slices([scan], settings(5, axis=axis)).slices
        assert len(planned) == 5
        for s in planned:
            positions = world(scan.grid, axis, s.index)
            # all voxels of the plane share the coordinate along the axis and spread along the other two
            assert np.ptp(positions[:, column]) < 1e-6
            assert (np.delete(np.ptp(positions, axis=0), column) > 60).all()
            assert s.position_mm == pytest.approx(positions[0, column], abs=1e-3)


@pytest.mark.parametrize(("orientation", "degrees"), [("LPS", 20), ("RAS", 40), ("PIR", 30), ("ASL", 40)])
def test_oblique_planes_part_what_lies_on_both_sides(orientation: str, degrees: float) -> None:
    scan = newborn(orientation, degrees)
    assert scan.prediction is not None
    image = scan.grid.image(scan.prediction)
    voxels = np.argwhere(np.isin(scan.prediction, BRAIN))[:, ::-1]
    ras = np.array([image.TransformIndexToPhysicalPoint(v.tolist()) for v in voxels]) * (-1, -1, 1)
    assert sorted(voxel_axis(scan.grid, axis) for axis in AXES) == [0, 1, 2]
    for column, axis in enumerate(AXES):
        middle = np.median(ras[:, column])
        s = min(plan_slices([scan], settings(9, axis=axis)).slices, key=lambda s: abs(s.position_mm - middle))
        beyond = voxels[:, voxel_axis(scan.grid, axis)] > s.index
        # right and left, front and back, top and bottom of the brain: on different sides of the plane
        far = np.abs(ras[:, column] - middle) > 0.6 * np.abs(ras[:, column] - middle).max()
        up = ras[:, column] > middle
        assert abs(np.mean(beyond[far & up]) - np.mean(beyond[far & ~up])) > 0.9
        centre = world(scan.grid, axis, s.index).mean(0)
        assert s.position_mm == pytest.approx(centre[column], abs=1e-3)


def test_axes_are_assigned_one_to_one_by_the_largest_sum_of_cosines() -> None:
    directions = Rotation.random(200, random_state=5).as_matrix()
    collisions = 0
    for number, direction in enumerate(directions):
        direction = direction * (1, 1, -1) if number % 2 else direction  # left-handed grids as well
        grid = Grid((10, 10, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(direction.ravel().tolist()))
        _, expected = linear_sum_assignment(-np.abs(direction))
        assert [voxel_axis(grid, axis) for axis in AXES] == expected.tolist()
        collisions += len(set(np.abs(direction).argmax(1))) < 3
    assert collisions > 0  # so that the nearest axis alone would not have done


def test_plane_refuses_what_the_scan_does_not_have() -> None:
    assert np.zeros(BOX.shape)[plane(BOX, "sagittal", 39)].shape == (60, 50)
    assert np.zeros(BOX.shape)[plane(BOX, "axial", 59)].shape == (50, 40)
    for axis, index, words in (("sagittal", 40, "40"), ("axial", -1, "no axial slice -1"), ("oblique", 3, "sagittal")):
        with pytest.raises(NeonatalSegError, match=words):
            plane(BOX, axis, index)


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "unit", "axis", "extent", "expected"),
    [
        (7, "slices", "axial", "brain", 7),
        (10, "percent", "axial", "brain", 4),  # of 40
        (100, "percent", "sagittal", "brain", 20),
        (1, "percent", "coronal", "brain", 1),  # 0.3 of a slice: one at least
        (10, "percent", "axial", "central", 5),  # of 54
        (50, "percent", "sagittal", "central", 18),  # of 36
        (10, "percent", "mixed", "brain", 3),  # of the mean of 20, 30 and 40
    ],
)
def test_amount(amount: float, unit: str, axis: str, extent: str, expected: int) -> None:
    plan = plan_slices([box()], settings(amount, unit, axis=axis, extent=extent))
    assert len(plan.slices) == expected == len({s.key for s in plan.slices})


def test_extents() -> None:
    everything = {
        (extent, axis): [
            s.index for s in plan_slices([box()], settings(100, "percent", axis=axis, extent=extent)).slices
        ]
        for extent in ("brain", "central")
        for axis in AXES
    }
    assert everything["brain", "sagittal"] == list(range(10, 30))
    assert everything["brain", "coronal"] == list(range(10, 40))
    assert everything["brain", "axial"] == list(range(10, 50))
    assert everything["central", "sagittal"] == list(range(2, 38))  # 5 % of 40 left out at each end
    assert everything["central", "axial"] == list(range(3, 57))


def test_rims_of_less_than_a_square_centimetre_are_no_brain() -> None:
    scan = box()
    foreground = scan.foreground.copy()
    foreground[50, 20:25, 20:24] = True  # 20 voxels of 4 mm2
    foreground[51, 20:25, 20:25] = True  # 25: 1 cm2
    plan = plan_slices([replace(scan, foreground=foreground)], settings(100, "percent"))
    assert [s.index for s in plan.slices] == [*range(10, 50), 51]


def test_a_study_spends_evenly_over_its_scans() -> None:
    scans = [box(name) for name in "abcd"]
    plan = plan_slices(scans, settings(10, per="study"))
    assert sorted(Counter(s.scan for s in plan.slices).values()) == [2, 2, 3, 3]
    assert len(plan_slices(scans, settings(5, "percent", per="study")).slices) == 8  # of 4 x 40
    two = plan_slices(scans, settings(2, per="study"))
    assert len({s.scan for s in two.slices}) == 2 and sorted(two.grids) == list("abcd")
    small = box("small")
    small = replace(small, foreground=small.foreground & (np.arange(60) < 13)[:, None, None])
    plan = plan_slices([small, *scans], settings(33, per="study"))  # 3 slices of brain in one, the rest elsewhere
    counts = Counter(s.scan for s in plan.slices)
    assert counts["small"] == 3 and sorted(counts[n] for n in "abcd") == [7, 7, 8, 8]


def test_cap_per_scan() -> None:
    plan = plan_slices([box("a"), box("b")], settings(50, "percent", cap_per_scan=6))
    assert Counter(s.scan for s in plan.slices) == {"a": 6, "b": 6}
    with pytest.raises(NeonatalSegError, match=r"has 12 slices .* at most 6 of a scan"):
        plan_slices([box("a"), box("b")], settings(13, per="study", cap_per_scan=6))


def test_mixed_and_random_axes() -> None:
    mixed = plan_slices([box("a"), box("b")], settings(8, axis="mixed"))
    for name in "ab":
        assert sorted(Counter(s.axis for s in mixed.for_scan(name)).values()) == [2, 3, 3]
    scans = [box(f"s{n}") for n in range(30)]
    drawn = plan_slices(scans, settings(2, axis="random", seed=4))
    axes = {scan.name: {s.axis for s in drawn.for_scan(scan.name)} for scan in scans}
    assert all(len(found) == 1 for found in axes.values()) and set.union(*axes.values()) == set(AXES)
    # a scan more changes nothing for the others
    assert plan_slices(scans[:7], settings(2, axis="random", seed=4)).slices == drawn.slices[:14]


# --- which ------------------------------------------------------------------------------------------------------------


def test_equidistant_keeps_its_distance_and_moves_with_the_seed() -> None:
    firsts = set()
    for seed in range(20):
        planned = plan_slices([box()], settings(6, seed=seed)).slices
        indices = [s.index for s in planned]
        assert set(np.diff(indices)) <= {6, 7}  # 40 slices by 6
        assert indices[0] >= 10 and indices[-1] < 50
        firsts.add(indices[0])
    assert len(firsts) > 2
    assert [s.reason for s in planned][:4] == [f"equidistant, {k} of 6" for k in ("1st", "2nd", "3rd", "4th")]


def test_random_takes_any_slice_and_foreground_random_those_with_much_brain() -> None:
    scan = box()
    foreground = scan.foreground.copy()
    foreground[10:30, :, :] &= (np.arange(50) < 13)[:, None] & (np.arange(40) < 30)  # lower half: a tenth of the area
    scan = replace(scan, foreground=foreground)
    seen: dict[str, Counter[str]] = {"random": Counter(), "foreground-random": Counter()}
    for selection, counts in seen.items():
        for seed in range(200):
            for s in plan_slices([scan], settings(2, selection=selection, extent="central", seed=seed)).slices:
                counts["empty" if not 10 <= s.index < 50 else "small" if s.index < 30 else "large"] += 1
    # random: 14 empty, 20 small, 20 large of 54; by area: small ones about 1 of 11 draws
    assert seen["random"]["empty"] == pytest.approx(400 * 14 / 54, abs=35)
    assert seen["random"]["small"] == pytest.approx(400 * 20 / 54, abs=40)
    assert seen["foreground-random"]["empty"] == 0
    assert seen["foreground-random"]["small"] == pytest.approx(400 / 11, abs=25)


def test_uncertainty_finds_small_tissues_and_says_so() -> None:
    for orientation, oblique in (("LPS", 0.0), ("PIR", 25.0)):
        scan = newborn(orientation, oblique)
        assert scan.prediction is not None
        plan = plan_slices([scan], settings(9, selection="uncertainty", axis="mixed"))
        for key, name in ((9, "hippocampus"), (5, "ventricles"), (8, "brainstem")):
            chosen = [s for s in plan.slices if f"uncertainty in the {name} (0.0" in s.reason]
            assert len(chosen) == 1, [s.reason for s in plan.slices]
            assert (scan.prediction[plane(scan.grid, chosen[0].axis, chosen[0].index)] == key).any()
        stratified = [s for s in plan.slices if " in the " in s.reason]
        assert len(stratified) == 6  # two thirds


def test_uncertainty_goes_where_the_model_is_least_certain() -> None:
    scan = newborn()
    assert scan.prediction is not None and scan.uncertainty is not None
    hippocampus = scan.prediction == 9
    index = int(np.argmax(hippocampus.sum((1, 2))))  # the axial slice that shows most of it (LPS)
    uncertainty = scan.uncertainty.copy()
    uncertainty[index][hippocampus[index]] = 0.9
    plan = plan_slices([replace(scan, uncertainty=uncertainty)], settings(3, selection="uncertainty"))
    assert f"{scan.name}/axial/{index}" in {s.key for s in plan.slices}
    (found,) = [s for s in plan.slices if s.index == index]
    assert found.reason == "highest uncertainty in the hippocampus (0.90)"

    whole = scan.uncertainty.copy()
    whole[30] = 0.8
    plan = plan_slices([replace(scan, uncertainty=whole)], settings(9, selection="uncertainty", min_gap_mm=0))
    assert 30 in {s.index for s in plan.slices}


def test_rims_are_not_chosen_for_their_uncertainty() -> None:
    scan = box(uncertain=True)
    assert scan.prediction is not None and scan.uncertainty is not None
    foreground, prediction, uncertainty = scan.foreground.copy(), scan.prediction.copy(), scan.uncertainty.copy()
    foreground[45:50, 16:] = False  # a fifth of the largest area: the pole of the brain
    uncertainty[45:50] = 0.7
    prediction[20:25, 15:30, 12:28] = 9
    prediction[25, 15:18, 12:28] = 9  # a fifth: the end of the hippocampus
    uncertainty[25][prediction[25] == 9] = 0.9
    scan = replace(scan, foreground=foreground, prediction=prediction * foreground, uncertainty=uncertainty)
    for seed in range(10):
        few = plan_slices([scan], settings(4, selection="uncertainty", seed=seed, min_gap_mm=0))
        assert max(s.index for s in few.slices) < 45
        chosen = [s.index for s in few.slices if "hippocampus" in s.reason]
        assert chosen and set(chosen) <= set(range(20, 25))
    assert len(plan_slices([scan], settings(40, selection="uncertainty")).slices) == 40  # when all else is taken


@pytest.mark.parametrize("oblique", [False, True])
def test_gaps_hold_in_millimetres(oblique: bool) -> None:
    scan = newborn("ASL", 20.0) if oblique else box(uncertain=True)
    for gap in (4.0, 7.5):
        for seed in range(5):
            plan = plan_slices([scan], settings(12, selection="uncertainty", axis="mixed", min_gap_mm=gap, seed=seed))
            assert not plan.notes
            for axis in AXES:
                positions = [world(scan.grid, s.axis, s.index).mean(0) for s in plan.slices if s.axis == axis]
                for one, two in itertools.pairwise(positions):
                    assert np.linalg.norm(one - two) >= gap - 1e-3


def test_a_budget_without_room_for_the_gap_is_met_and_told() -> None:
    scan = box(uncertain=True)
    plan = plan_slices([scan], settings(20, selection="uncertainty"))  # 40 slices of 1.5 mm: 15 fit at 4 mm
    assert len(plan.slices) == 20
    (note,) = plan.notes
    assert "no room for gaps of 4 mm between the axial slices of box: the smallest is 1.5 mm" in note
    everything = plan_slices([scan], settings(100, "percent", selection="uncertainty"))
    assert [s.index for s in everything.slices] == list(range(10, 50))


def test_uncertainty_noise_falls_over_the_picks() -> None:
    scan = box(uncertain=True)
    ramp = np.linspace(0.1, 0.5, 60, dtype=np.float32)[:, None, None] * np.ones(BOX.shape, np.float32)
    scan = replace(scan, uncertainty=ramp)
    plans = [plan_slices([scan], settings(8, selection="uncertainty", min_gap_mm=0, seed=n)) for n in range(12)]
    assert len({plan.slices for plan in plans}) > 3  # seeds differ
    assert np.mean([s.index for plan in plans for s in plan.slices]) > 38  # and all prefer the uncertain end


def test_undivided_slices_go_to_the_least_certain_scan() -> None:
    scans = [box(name, uncertain=True) for name in "abc"]
    assert scans[1].uncertainty is not None
    scans[1] = replace(scans[1], uncertainty=scans[1].uncertainty * 2)
    plan = plan_slices(scans, settings(7, per="study", selection="uncertainty"))
    assert Counter(s.scan for s in plan.slices) == {"a": 2, "b": 3, "c": 2}
