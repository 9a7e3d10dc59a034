"""Metrics against figures worked out by hand, and evaluation of folders of real NIfTI files."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.evaluation import COLUMNS, Evaluation, TissueResult, evaluate_folders
from NeonatalSegLib.metrics import (
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


# ---------------------------------------------------------------- folders


def _labels(seed: int = 0) -> np.ndarray:
    """Ten classes in blocks, without any symmetry, z 8, y 10, x 12."""
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[1:7, 1:9, 1:11] = (
        np.random.default_rng(seed).integers(0, 10, (3, 4, 5)).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    )
    labels[0, 0, :10] = np.arange(10)
    return labels


def _image(array: np.ndarray, origin: tuple[float, float, float] = (-3.0, 5.0, 7.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING_XYZ)
    image.SetOrigin(origin)
    return image


def _write(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Empty folders for predictions and truth."""
    (tmp_path / "pred").mkdir()
    (tmp_path / "truth").mkdir()
    return tmp_path / "pred", tmp_path / "truth"


def test_pairs_by_bids_entities_and_measures(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    array = _labels()
    wrong = array.copy()
    wrong[array == 9] = 7
    _write(_image(wrong), pred / "sub-01_ses-2_T2w_dseg.nii.gz")
    _write(_image(array), truth / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_desc-drawem9_dseg.nii.gz")
    seen: list[tuple[str, float]] = []
    evaluation = evaluate_folders(pred, truth, progress=lambda stage, part: seen.append((stage, part)))
    assert evaluation.subjects == ["sub-01_ses-2"] and evaluation.warnings == []
    assert seen == [("evaluating sub-01_ses-2", 0.0), ("evaluated", 1.0)]
    rows = {row.tissue: row for row in evaluation.rows}
    n7, n9 = (int((array == k).sum()) for k in (7, 9))
    assert rows["deep_gm"].dsc == pytest.approx(2 * n7 / (2 * n7 + n9))
    assert rows["deep_gm"].volume_pred_ml == pytest.approx((n7 + n9) * 2.4e-3)
    assert rows["deep_gm"].volume_truth_ml == pytest.approx(n7 * 2.4e-3)
    assert rows["hippocampus"].dsc == 0.0 and np.isnan(rows["hippocampus"].hd95_mm)
    assert rows["wm"].dsc == 1.0 and rows["wm"].hd95_mm == rows["wm"].assd_mm == 0.0
    assert "HD95 (mm) of Hippoc. (1 of 1)" in evaluation.table2()


def test_spacing_goes_with_its_axis(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    plates = [np.zeros((8, 10, 12), np.uint8) for _ in range(2)]
    plates[0][5], plates[1][2] = 3, 3  # three voxels of 2 mm apart along z
    _write(_image(plates[0]), pred / "a.nii.gz")
    _write(_image(plates[1]), truth / "a.nii.gz")
    row = next(row for row in evaluate_folders(pred, truth).rows if row.tissue == "wm")
    assert (row.hd95_mm, row.assd_mm) == pytest.approx((6.0, 6.0))


@pytest.mark.parametrize("orientation", ["LAS", "RSP", "PIR"])
def test_reoriented_prediction_is_the_same_prediction(folders: tuple[Path, Path], orientation: str) -> None:
    pred, truth = folders
    oblique = _image(_labels())
    turn = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3)
    oblique.SetDirection(turn.GetMatrix())
    turned = sitk.DICOMOrient(oblique, orientation)
    assert turned.GetDirection() != oblique.GetDirection()
    _write(turned, pred / "sub-01_dseg.nii.gz")
    _write(oblique, truth / "sub-01_dseg.nii.gz")
    evaluation = evaluate_folders(pred, truth)
    assert evaluation.warnings == []
    assert [row.dsc for row in evaluation.rows] == [1.0] * 10


def test_shifted_grid_of_one_size_is_resampled_with_a_warning(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    array = _labels()
    array[:, :, 0] = 0  # so that the roll below brings nothing round
    x, y, z = -3.0, 5.0, 7.0
    # Contents one voxel lower in x and an origin one voxel higher: the same place in space, on another grid.
    _write(_image(np.roll(array, -1, axis=2), (x + SPACING_XYZ[0], y, z)), pred / "sub-01_dseg.nii.gz")
    _write(_image(array, (x, y, z)), truth / "sub-01_dseg.nii.gz")
    evaluation = evaluate_folders(pred, truth)
    assert [row.dsc for row in evaluation.rows] == [1.0] * 10
    (warning,) = evaluation.warnings
    assert "sub-01" in warning and "resampled by nearest neighbour" in warning


def test_rounding_of_headers_is_no_other_grid(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels(), (-3.00001, 5.00001, 7.0)), pred / "sub-01_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    evaluation = evaluate_folders(pred, truth, surface=False)
    assert evaluation.warnings == [] and mean_dice(evaluation.values("dsc")[0]) == 1.0


def test_grids_of_different_size_are_refused(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    one = _write(_image(_labels()[:-1]), pred / "sub-01_dseg.nii.gz")
    other = _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    with pytest.raises(NeonatalSegError, match="differ in size") as caught:
        evaluate_folders(pred, truth)
    assert str(one) in str(caught.value) and str(other) in str(caught.value)
    assert "12x10x7" in str(caught.value) and "12x10x8" in str(caught.value)


def test_grids_that_do_not_meet_are_refused(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels(), (500.0, 0.0, 0.0)), pred / "sub-01_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    with pytest.raises(NeonatalSegError, match="do not meet"):
        evaluate_folders(pred, truth)


def test_subjects_without_a_partner_are_named_and_left_out(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    for folder, names in ((pred, ("sub-01", "sub-02")), (truth, ("sub-02", "sub-03"))):
        for name in names:
            _write(_image(_labels()), folder / f"{name}_dseg.nii.gz")
    evaluation = evaluate_folders(pred, truth, surface=False)
    assert evaluation.subjects == ["sub-02"]
    assert [warning.split(":")[0] for warning in evaluation.warnings] == ["sub-01", "sub-03"]
    assert "no true label map" in evaluation.warnings[0] and "no prediction" in evaluation.warnings[1]


def test_no_pair_is_refused(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels()), pred / "sub-01_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_ses-1_dseg.nii.gz")
    with pytest.raises(NeonatalSegError, match=r"sub-01\).*sub-01_ses-1"):
        evaluate_folders(pred, truth)


def test_two_files_of_one_subject_are_refused_by_name(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    twins = [_write(_image(_labels()), pred / sub / "sub-01_dseg.nii.gz") for sub in ("new", "old")]
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    with pytest.raises(NeonatalSegError, match="sub-01") as caught:
        evaluate_folders(pred, truth)
    assert all(str(path) in str(caught.value) for path in twins)


def test_the_ten_class_map_of_a_dhcp_folder_is_taken(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels()), pred / "sub-01_ses-1_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_ses-1_desc-drawem9_dseg.nii.gz")
    _write(_image(_labels() * 9), truth / "sub-01_ses-1_desc-drawem87_dseg.nii.gz")
    assert mean_dice(evaluate_folders(pred, truth, surface=False).values("dsc")[0]) == 1.0


@pytest.mark.parametrize("name", ["anna.nrrd", "anna.nii", "anna_dseg.nii.gz"])
def test_other_names_pair_by_stem(folders: tuple[Path, Path], name: str) -> None:
    pred, truth = folders
    _write(_image(_labels()), pred / name)
    _write(_image(_labels()), truth / "anna.nii.gz")
    (truth / "._anna.nii.gz").write_bytes(b"resource fork")
    assert evaluate_folders(pred, truth, surface=False).subjects == ["anna"]


def test_dseg_files_win_over_scans_beside_them(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels()), pred / "sub-01_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    _write(_image(_labels() * 20), truth / "sub-01_T2w.nii.gz")
    assert mean_dice(evaluate_folders(pred, truth, surface=False).values("dsc")[0]) == 1.0


def test_predictions_within_the_data_set_are_not_its_truth(folders: tuple[Path, Path]) -> None:
    _, truth = folders
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    _write(_image(_labels(1)), truth / "derivatives" / "sub-01_dseg.nii.gz")
    assert mean_dice(evaluate_folders(truth / "derivatives", truth, surface=False).values("dsc")[0]) < 0.9


@pytest.mark.parametrize(("value", "text"), [(10, "10"), (-2, "-2"), (1.5, "1.5"), (NAN, "nan")])
@pytest.mark.parametrize("side", [0, 1])
def test_unknown_label_is_refused_with_file_and_value(
    folders: tuple[Path, Path], value: float, text: str, side: int
) -> None:
    # NRRD, since ITK's NIfTI reader turns NaN into 0 before anybody can see it.
    paths = [_write(_image(_labels()), folder / "sub-01_dseg.nrrd") for folder in folders]
    bad = _labels().astype(np.float32)
    bad[3, 3, 3] = value
    _write(_image(bad), paths[side])
    with pytest.raises(NeonatalSegError, match=f"not labels: {text}\\.") as caught:
        evaluate_folders(*folders)
    assert str(paths[side]) in str(caught.value)


def test_labels_stored_as_floating_point_are_fine(folders: tuple[Path, Path]) -> None:
    pred, truth = folders
    _write(_image(_labels().astype(np.float32)), pred / "sub-01_dseg.nii.gz")
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    assert mean_dice(evaluate_folders(pred, truth, surface=False).values("dsc")[0]) == 1.0


def test_what_cannot_be_read_is_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pred, truth = folders
    _write(_image(_labels()), truth / "sub-01_dseg.nii.gz")
    with pytest.raises(NeonatalSegError, match="No label map in"):
        evaluate_folders(pred, truth)
    with pytest.raises(NeonatalSegError, match="not a folder"):
        evaluate_folders(tmp_path / "missing", truth)
    with pytest.raises(NeonatalSegError, match="same folder"):
        evaluate_folders(truth, truth)
    broken = pred / "sub-01_dseg.nii.gz"
    broken.write_bytes((truth / "sub-01_dseg.nii.gz").read_bytes()[:60])
    with pytest.raises(NeonatalSegError, match="Cannot read") as caught:
        evaluate_folders(pred, truth)
    assert str(broken) in str(caught.value)
    _write(_image(_labels())[:, :, 3], broken)
    with pytest.raises(NeonatalSegError, match="Expected a 3D image"):
        evaluate_folders(pred, truth)


def test_progress_may_stop(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        _write(_image(_labels()), folder / "sub-01_dseg.nii.gz")

    def stop(stage: str, part: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        evaluate_folders(*folders, progress=stop)


# ---------------------------------------------------------------- tables and file


def _evaluation(surface: bool = True) -> Evaluation:
    """Two subjects: DSC 0.9 for all ten and 0.8 for all but the backgrounds (0.3); HD95 2 and 4 mm, ASSD 0.5 mm."""
    rows = []
    for subject, dsc, background, hd95 in (("a", 0.9, 0.9, 2.0), ("b", 0.8, 0.3, 4.0)):
        for tissue in TISSUES:
            value = background if tissue.background else dsc
            distances = (hd95, 0.5) if surface else (NAN, NAN)
            rows.append(TissueResult(subject, tissue.key, value, *distances, 1.25, 1.0))
    return Evaluation(rows, surface)


def _cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_table1_has_the_paper_s_layout() -> None:
    # All: a 0.9, b (8 x 0.8 + 2 x 0.3) / 10 = 0.7: mean 0.8, sd 0.2 / sqrt 2 = 0.141. No BG: 0.9, 0.8: 0.85, 0.071.
    head, _, row = _cells(_evaluation().table1())
    assert head == ["", "Mean DSC", "Mean DSC (no BG)"]
    assert row == ["Mean DSC", "0.800 ± 0.141", "0.850 ± 0.071"]


def test_table1_of_one_subject_has_no_deviation() -> None:
    assert _cells(Evaluation(_evaluation().rows[:10]).table1())[2] == ["Mean DSC", "0.900", "0.900"]


def test_table2_has_the_paper_s_layout() -> None:
    table = _evaluation().table2()
    assert _cells(table)[0] == ["", "CSF", "cGM", "WM", "Ventr.", "Cereb.", "dGM", "BS", "Hippoc."]
    assert _cells(table)[2:] == [
        ["DSC", *["0.850"] * 8],
        ["HD95 (mm)", *["3.00"] * 8],
        ["ASSD (mm)", *["0.50"] * 8],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1  # lines up as plain text
    assert [row[0] for row in _cells(_evaluation(surface=False).table2())[2:]] == ["DSC"]


def test_tsv_holds_every_row_and_replaces_the_old_file(tmp_path: Path) -> None:
    evaluation = _evaluation(surface=False)
    path = tmp_path / "new" / "results.tsv"
    for _ in range(2):
        evaluation.write_tsv(path)
    assert b"\r" not in path.read_bytes()
    with path.open(encoding="utf-8", newline="") as stream:
        head, *rows = csv.reader(stream, delimiter="\t")
    assert tuple(head) == COLUMNS
    assert [row[:2] for row in rows] == [[subject, tissue.key] for subject in "ab" for tissue in TISSUES]
    assert rows[0][2:] == ["0.900000", "n/a", "n/a", "1.250000", "1.000000"]
    assert list(path.parent.iterdir()) == [path]


def test_tsv_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "results.tsv").mkdir()  # a folder is in the way of the last step, after all is written
    with pytest.raises(NeonatalSegError, match="Cannot write"):
        _evaluation().write_tsv(tmp_path / "results.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["results.tsv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_keeps_the_old_tsv(tmp_path: Path) -> None:
    path = tmp_path / "results.tsv"
    path.write_text("old")
    (tmp_path / f".results.tsv.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(NeonatalSegError, match=os.strerror(errno.ENOSPC)):
        _evaluation().write_tsv(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
