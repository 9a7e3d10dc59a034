"""Folders of label maps against folders of truth: pairing, grids, refusals, tables and files."""

from __future__ import annotations

import csv
import errno
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.evaluation.folders import evaluate_folders
from NeonatalSegLib.evaluation.metrics import mean_dice
from NeonatalSegLib.evaluation.tables import COLUMNS, Evaluation, TissueResult
from NeonatalSegLib.tissues import TISSUES

NAN = float("nan")
SPACING_XYZ = (0.8, 1.5, 2.0)


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
    with pytest.raises(NeonatalSegError, match="truncated") as caught:
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


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_full_disk_keeps_the_old_tsv(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "results.tsv"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(NeonatalSegError, match=os.strerror(errno.EFBIG)):
            _evaluation().write_tsv(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
