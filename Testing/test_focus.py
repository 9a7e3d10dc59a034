"""A second look at the brain alone: what is masked, where it lies, and what it saves when a skull is left on."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.evaluation.metrics import dice_per_class, mean_dice_no_background
from NeonatalSegLib.experiments.robustness.alterations import Alteration, altered
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.preprocessing import Prepared, labels_on, prepare
from NeonatalSegLib.scans.scan import make_scan
from NeonatalSegLib.segmentation.second_look import RIM_MM, crop_to_brain
from NeonatalSegLib.segmentation.segmenter import Segmenter

BRAIN_MM, CSF_MM = 20.0, 23.0


def ball(head_mm: float) -> tuple[Prepared, np.ndarray, np.ndarray]:
    """A brain in CSF in a head, off the middle, 1 mm voxels: prepared, its labels there, and mm to its centre."""
    grid = Grid((80, 84, 88), (1.0, 1.0, 1.0), (-30.0, -35.0, 12.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")
    radius = np.sqrt((x - 40.0) ** 2 + (y - 42.0) ** 2 + (z - 46.0) ** 2)
    labels = np.select([radius < BRAIN_MM, radius < CSF_MM], [3, 1], 0).astype(np.uint8)
    texture = 20 * np.sin(x / 3.0)
    image = np.select([radius < BRAIN_MM, radius < CSF_MM, radius < head_mm], [300 + texture, 600, 900], 0)
    prepared = prepare(make_scan(t2=grid.image(image.astype(np.float32))), 1.0)
    matrix = prepared.grid.matrix()
    centre = grid.matrix() @ (40, 42, 46, 1)
    nz, ny, nx = (np.arange(n) for n in prepared.grid.shape)
    points = np.stack(np.meshgrid(nz, ny, nx, indexing="ij")[::-1], -1) @ matrix[:3, :3].T + matrix[:3, 3]
    return prepared, labels_on(prepared.grid, grid.image(labels)), np.linalg.norm(points - centre[:3], axis=-1)


def test_an_extracted_brain_is_not_looked_at_twice() -> None:
    prepared, labels, _ = ball(head_mm=CSF_MM + 1)
    assert crop_to_brain(prepared, labels) is None


def test_a_scan_without_a_brain_is_not_looked_at_twice() -> None:
    prepared, labels, _ = ball(head_mm=36)
    assert crop_to_brain(prepared, np.zeros_like(labels)) is None


def test_a_speck_of_brain_is_nothing_to_go_by() -> None:
    prepared, labels, radius = ball(head_mm=36)
    assert crop_to_brain(prepared, np.where(radius < 10, labels, 0).astype(np.uint8)) is None


def test_what_lies_beyond_the_rim_is_masked_and_the_rest_is_scored_anew() -> None:
    prepared, labels, radius = ball(head_mm=36)
    labels = labels.copy()
    labels[(radius > 33) & (radius < 35)] = 1  # a first pass takes scalp for CSF ...
    labels[(radius > 31) & (radius < 36) & (labels == 0)] = 2  # ... and some of it for cortex
    closer = crop_to_brain(prepared, labels)
    assert closer is not None
    shift = np.rint((np.asarray(closer.grid.origin_mm) - np.asarray(prepared.grid.origin_mm)) / 1.0).astype(int)[::-1]
    box = tuple(slice(s, s + n) for s, n in zip(shift, closer.grid.shape, strict=True))
    near = radius[box]
    assert closer.inside[near < BRAIN_MM + RIM_MM - 1.5].all()
    assert not closer.inside[near > BRAIN_MM + RIM_MM + 1.5].any()
    t2 = closer.array[1]
    assert np.ptp(t2[~closer.inside]) == 0  # as the air of an extracted brain
    assert abs(float(t2[closer.inside].mean())) < 0.05 and float(t2[closer.inside].std()) == pytest.approx(1, abs=0.05)
    inner = closer.inside & (near < BRAIN_MM)
    pair = np.corrcoef(t2[inner], prepared.array[1][box][inner])[0, 1]
    assert pair > 0.999  # the same voxels, not shifted
    assert not closer.array[0].any()  # an absent T1 stays absent
    assert closer.target == prepared.target


def test_a_skull_costs_little_on_a_synthetic_newborn(newborn: Phantom) -> None:
    segmenter = Segmenter(device="cpu")
    truth = sitk.GetArrayFromImage(newborn.labels)

    def dsc(scan_of: str) -> tuple[float, bool]:
        scan = newborn.scan if scan_of == "plain" else altered(newborn.scan, Alteration(head="skull"), seed=0)
        found = segmenter.segment(scan, target=Grid.of(newborn.labels))
        return mean_dice_no_background(dice_per_class(sitk.GetArrayFromImage(found.label_map), truth)), found.focused

    plain, skull = dsc("plain"), dsc("skull")
    assert (plain[1], skull[1]) == (False, True)
    assert skull[0] > plain[0] - 0.05
