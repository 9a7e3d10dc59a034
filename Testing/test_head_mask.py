"""The brain found first: what of a head is masked, where it lies, and what it saves when a skull is left on."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import RIM_MM, Prepared, prepare
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.segmentation.segmenter import Segmentation, Segmenter

GRID = Grid((80, 84, 88), (1.0, 1.0, 1.0), (-30.0, -35.0, 12.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
MIDDLE, SKULL_MM = (40.0, 42.0, 46.0), 23.0  # a ball, off the volume's middle, in voxels that are millimetres


def radius_mm() -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) for n in GRID.shape), indexing="ij")
    return np.sqrt((x - MIDDLE[0]) ** 2 + (y - MIDDLE[1]) ** 2 + (z - MIDDLE[2]) ** 2)


def ball(head_mm: float, found: bool = True) -> Prepared:
    """A ball of brain within a head of ``head_mm``, prepared by who is told where the brain lies."""
    radius, texture = radius_mm(), 20 * np.sin(np.arange(GRID.size[0]) / 3.0)
    image = np.select([radius < 20, radius < SKULL_MM, radius < head_mm], [300 + texture, 600 + 0 * texture, 900], 0)
    distance = GRID.image((radius - SKULL_MM).astype(np.float32))
    scan = make_scan(t2=GRID.image(image.astype(np.float32)))
    return prepare(scan, 1.0, find_brain=lambda image, head: distance if found else None)


def radius_of(prepared: Prepared) -> np.ndarray:
    """mm to the ball's middle of every voxel of the network's grid."""
    matrix, centre = prepared.grid.matrix(), GRID.matrix() @ (*MIDDLE, 1)
    nz, ny, nx = (np.arange(n) for n in prepared.grid.shape)
    points = np.stack(np.meshgrid(nz, ny, nx, indexing="ij")[::-1], -1) @ matrix[:3, :3].T + matrix[:3, 3]
    return np.linalg.norm(points - centre[:3], axis=-1)


def test_an_extracted_brain_stays_as_it_is() -> None:
    prepared = ball(head_mm=SKULL_MM + 2)
    assert not prepared.head_masked and not prepared.warnings
    assert prepared.inside[radius_of(prepared) < SKULL_MM + 0.5].all()


def test_what_lies_beyond_the_rim_is_masked_and_the_rest_scored_alone() -> None:
    prepared = ball(head_mm=36)
    radius = radius_of(prepared)
    assert prepared.head_masked and not prepared.warnings
    assert prepared.inside[radius < SKULL_MM + RIM_MM - 1].all()
    assert not prepared.inside[radius > SKULL_MM + RIM_MM + 1].any()
    t2 = prepared.array[1]
    assert np.ptp(t2[~prepared.inside]) == 0  # as the air of an extracted brain
    assert abs(float(t2[prepared.inside].mean())) < 0.05
    assert float(t2[prepared.inside].std()) == pytest.approx(1, abs=0.05)
    assert max(prepared.grid.size) < 2 * (SKULL_MM + RIM_MM) + 8  # cropped to what is left
    assert not prepared.array[0].any()  # an absent T1 stays absent


def test_where_no_brain_is_found_all_stays_and_that_is_told() -> None:
    prepared = ball(head_mm=36, found=False)
    assert not prepared.head_masked and prepared.brain_mm is None
    assert prepared.inside[radius_of(prepared) < 35].all()
    assert any("No brain was found" in text for text in prepared.warnings)


def test_a_skull_costs_little_on_a_synthetic_newborn(newborn: Phantom) -> None:
    segmenter = Segmenter(device="cpu")
    truth = sitk.GetArrayFromImage(newborn.labels)

    def segmented(head: str) -> tuple[float, Segmentation]:
        scan = newborn.scan if head == "as-is" else altered(newborn.scan, Alteration(head=head), seed=0)
        found = segmenter.segment(scan, target=Grid.of(newborn.labels))
        return mean_dice_no_background(dice_per_class(sitk.GetArrayFromImage(found.label_map), truth)), found

    (plain, extracted), (skull, whole) = segmented("as-is"), segmented("skull")
    assert (extracted.head_masked, whole.head_masked) == (False, True)
    assert extracted.inside_skull_ml == pytest.approx(whole.inside_skull_ml, rel=0.25)
    assert skull > plain - 0.05
