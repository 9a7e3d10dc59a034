"""The verdict on a result: newborns pass, what is no newborn's brain fails, what is cut or odd is told."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.segmentation.growth import GROWTH, age_of_size
from NeonatalSegLib.segmentation.verdict import CHECK, FAIL, PASS, Evidence, Plausibility, assess, evidence_of
from NeonatalSegLib.tissues import PHYSIOLOGICAL

CEREBELLUM, BRAINSTEM = 6, 8


def altered(labels: sitk.Image, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.CopyInformation(labels)
    return image


def scaled(labels: sitk.Image, factor: float) -> sitk.Image:
    image = sitk.Image(labels)
    image.SetSpacing([factor * s for s in labels.GetSpacing()])
    return image


def kinds(result: Plausibility) -> set[str]:
    return {finding.kind for finding in result.findings}


def test_a_newborn_passes_at_its_age_and_without_one(newborn: Phantom) -> None:
    for age in (None, 40.0):
        result = assess(newborn.labels, Evidence(age_weeks=age))
        assert result.verdict == PASS, result.findings


def test_orientation_and_tilt_do_not_matter(newborn: Phantom) -> None:
    for order in ("RAS", "ASL", "SPR"):
        assert assess(sitk.DICOMOrient(newborn.labels, order)).verdict == PASS
    turn = sitk.Euler3DTransform()
    turn.SetRotation(np.radians(30), np.radians(10), np.radians(25))
    turn.SetCenter([0.0, 6.0, 1.5])
    tilted = sitk.Resample(newborn.labels, newborn.labels, turn, sitk.sitkNearestNeighbor, 0)
    assert assess(tilted).verdict == PASS


def test_upside_down_fails(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    result = assess(altered(newborn.labels, array[::-1]))
    assert result.verdict == FAIL
    assert "place" in kinds(result)
    assert "upside down" in result.findings[0].text


def test_back_to_front_is_told(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    assert assess(altered(newborn.labels, array[:, ::-1])).verdict != PASS


def test_shuffled_voxels_and_shuffled_labels_fail(newborn: Phantom) -> None:
    rng = np.random.default_rng(0)
    array = sitk.GetArrayFromImage(newborn.labels)
    inside = array > 0
    mixed = array.copy()
    mixed[inside] = rng.permutation(array[inside])
    result = assess(altered(newborn.labels, mixed))
    assert result.verdict == FAIL
    assert "scattered" in kinds(result)
    for _ in range(3):
        exchanged = np.r_[0, 1 + rng.permutation(9)]
        assert assess(altered(newborn.labels, exchanged[array])).verdict == FAIL


@pytest.mark.parametrize("factor", [1.3, 1.6])
def test_a_child_or_an_adult_is_no_newborn(newborn: Phantom, factor: float) -> None:
    result = assess(scaled(newborn.labels, factor))
    assert result.verdict == FAIL
    assert "older child or an adult" in result.findings[0].text


def test_the_size_is_held_against_the_age_that_is_given(newborn: Phantom) -> None:
    small = scaled(newborn.labels, 0.72)  # about 29 weeks
    assert "size for age" not in kinds(assess(small, Evidence(age_weeks=29.0)))
    late = assess(small, Evidence(age_weeks=42.0))
    assert late.verdict == CHECK
    assert "size for age" in kinds(late)
    assert assess(scaled(newborn.labels, 0.45)).verdict == FAIL  # smaller than any newborn


def test_what_an_extraction_cut_off_is_named(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    array[np.isin(array, (CEREBELLUM, BRAINSTEM))] = 0
    result = assess(altered(newborn.labels, array))
    assert result.verdict == CHECK
    text = next(f.text for f in result.findings if f.kind == "missing")
    assert "cerebellum (0.0 mL" in text
    assert "brainstem (0.0 mL" in text


def test_a_second_cerebellum_is_told(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    where = np.argwhere(array == CEREBELLUM)
    low, high = where.min(0), where.max(0)
    piece = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] == CEREBELLUM
    wide = np.zeros((array.shape[0] + 60, *array.shape[1:]), np.uint8)
    wide[60:] = array
    wide[2 : 2 + piece.shape[0], : piece.shape[1], : piece.shape[2]][piece] = CEREBELLUM
    grid = Grid.of(newborn.labels)
    result = assess(replace(grid, size=(*grid.size[:2], grid.size[2] + 60)).image(wide))
    assert result.verdict != PASS
    assert "Cerebellum in two places" in " ".join(f.text for f in result.findings)


def test_a_lost_side_is_told(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    columns = np.flatnonzero(array.any((0, 1)))
    array[:, :, : columns[0] + len(columns) // 4] = 0
    assert "asymmetry" in kinds(assess(altered(newborn.labels, array)))


def test_tissue_outside_the_brain_that_was_found_fails(newborn: Phantom) -> None:
    inside = sitk.GetArrayFromImage(newborn.labels) > 0
    distance = sitk.SignedMaurerDistanceMap(
        altered(newborn.labels, inside), insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    assert assess(newborn.labels, Evidence(brain_mm=distance)).verdict == PASS
    shifted = sitk.Image(distance)
    shifted.SetOrigin(np.asarray(distance.GetOrigin()) + (0, 0, 40))
    result = assess(newborn.labels, Evidence(brain_mm=shifted))
    assert result.verdict == FAIL
    assert "outside the brain" in kinds(result)


def test_an_unsure_network_and_doubts_about_the_scan(newborn: Phantom) -> None:
    assert assess(newborn.labels, Evidence(entropy=0.15)).verdict == PASS
    assert assess(newborn.labels, Evidence(entropy=0.27)).verdict == CHECK
    assert assess(newborn.labels, Evidence(entropy=0.36)).verdict == FAIL
    result = assess(newborn.labels, Evidence(doubts=("T1 and T2 agree poorly.",)))
    assert [(f.level, f.text) for f in result.findings] == [(CHECK, "T1 and T2 agree poorly.")]


def test_entropy_of_sure_and_of_undecided_probabilities(newborn: Phantom) -> None:
    sure = np.zeros((10, 4, 4, 4), np.float32)
    sure[3] = 1.0
    assert evidence_of(sure, newborn.scan, None, None, ()).entropy == pytest.approx(0.0, abs=1e-4)
    undecided = np.full((10, 4, 4, 4), 0.1, np.float32)
    undecided[3] += 1e-4
    assert evidence_of(undecided, newborn.scan, None, None, ()).entropy == pytest.approx(1.0, abs=1e-3)


def test_several_odd_things_at_once_fail(newborn: Phantom) -> None:
    array = sitk.GetArrayFromImage(newborn.labels)
    array[np.isin(array, (CEREBELLUM, BRAINSTEM))] = 0  # missing
    columns = np.flatnonzero(array.any((0, 1)))
    array[:, :, : columns[0] + len(columns) // 4] = 0  # one side cut
    odd = altered(newborn.labels, array)
    assert assess(odd).verdict == CHECK
    result = assess(odd, Evidence(entropy=0.28))
    assert result.verdict == FAIL
    assert "together" in kinds(result)


def test_an_empty_label_map_fails(newborn: Phantom) -> None:
    nothing = sitk.Image(newborn.labels.GetSize(), sitk.sitkUInt8)
    assert assess(nothing).verdict == FAIL


def test_where_nothing_is_found_the_reasons_are_told_all_the_same(newborn: Phantom) -> None:
    nothing = Grid.of(newborn.labels).image(np.zeros(Grid.of(newborn.labels).shape, np.uint8))
    everywhere = sitk.Cast(nothing, sitk.sitkFloat32) - 1.0  # the finder: all of the field of view lies in the skull
    result = assess(nothing, Evidence(brain_mm=everywhere, doubts=("T1 and T2 may be exchanged.", "No unit.")))
    assert result.findings[0].kind == "nothing" and "not a newborn" in kinds(result)
    scan = [(f.level, f.text) for f in result.findings if f.kind == "scan"]
    assert scan == [(CHECK, "T1 and T2 may be exchanged."), (CHECK, "No unit.")]
    assert "too small" in kinds(assess(nothing))


def test_every_tissue_has_a_band_that_grows() -> None:
    assert {t.key for t in PHYSIOLOGICAL} <= set(GROWTH)
    for growth in GROWTH.values():
        usual = [growth.expected_ml(age) for age in range(26, 46)]
        assert min(usual) > 0
        assert usual == sorted(usual)
    assert age_of_size(GROWTH["intracranial"].expected_ml(34.0)) == pytest.approx(34.0, abs=0.1)


def test_real_newborns_pass(data_folder: Path) -> None:
    with (data_folder / "alberts" / "participants.tsv").open(newline="") as stream:
        ages = {row["participant_id"]: float(row["scan_age"]) for row in csv.DictReader(stream, delimiter="\t")}
    maps = sorted((data_folder / "alberts" / "derivatives" / "drawem").glob("sub-*/anat/*_dseg.nii.gz"))
    assert len(maps) == len(ages)
    for path in maps:
        result = assess(sitk.ReadImage(str(path)), Evidence(age_weeks=ages[path.name.split("_")[0]]))
        assert result.verdict == PASS, (path.name, result.findings)
