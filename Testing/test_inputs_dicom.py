"""DICOM folders as archives give them: one whole series in its true order, or a reason in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import COLUMNS, ROWS, SAGITTAL, SLICES, enhanced, image, plane, save, series
from pydicom.dataset import FileDataset

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.read import read_image


def check_whole(found: sitk.Image) -> None:
    """Every voxel at its place in the patient."""
    row, column = np.array(SAGITTAL)
    normal = np.cross(row, column)
    for c, r, s in ((0, 0, 0), (13, 9, 11), (3, 4, 5)):
        where = np.array([5.0, -7.0, 9.0]) + 0.7 * c * row + 0.8 * r * column + 1.5 * s * normal
        assert found[found.TransformPhysicalPointToIndex([float(v) for v in where])] == plane(s)[r, c]
    assert found.GetSize() == (COLUMNS, ROWS, SLICES)
    assert np.allclose(found.GetSpacing(), (0.7, 0.8, 1.5))


def test_slices_go_by_where_they_lie(tmp_path: Path) -> None:
    found = read_image(save(tmp_path, *reversed(series()[5:]), *series()[:5]))
    check_whole(found.image)
    assert found.warnings == ()


def test_one_folder_deeper_among_other_files(tmp_path: Path) -> None:
    save(tmp_path / "A0001" / "S10", *series())
    (tmp_path / "readme.txt").write_text("from the archive")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    check_whole(read_image(tmp_path).image)


def test_copies_are_left_out_with_a_warning(tmp_path: Path) -> None:
    save(tmp_path, *series())
    save(tmp_path / "copy", *series()[:4])
    found = read_image(tmp_path)
    check_whole(found.image)
    assert "4 DICOM files were copies" in found.warnings[0]


def other_pixels(number: int) -> FileDataset:
    return image(number, PixelData=plane(number + 1).tobytes())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (lambda: [*series()[:4], *series()[5:]], r"3\.00 mm between .* 1\.50 mm elsewhere \(1 or so slices"),
        (lambda: [*series(), other_pixels(3)], "different images with one SOPInstanceUID"),
        (lambda: [*series(), image(3, SOPInstanceUID="1.2.3.77")], "at one place"),
        (lambda: [*series()[:6], *series(EchoTime=30.0)[6:]], "several echo times.*120.0: 6.*30.0: 6"),
        (lambda: [*series(), image(20, EchoTime=30.0)], "several echo times"),
        (lambda: [*series(), image(20, ImageType=["ORIGINAL", "PRIMARY", "P"])], "several kinds of image"),
        (lambda: [*series(), image(20, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])], "localiser"),
        (lambda: [*series(), image(20, PixelSpacing=[1.6, 1.4])], "several pixel spacings"),
        (lambda: [*series(), image(20, FrameOfReferenceUID="1.8")], "frames of reference"),
        (lambda: [*series(), image(20, PatientID="twin")], "several patients"),
        (lambda: [*series(), image(20, SeriesInstanceUID="9.9", SeriesDescription="scout")], "2 DICOM series.*scout"),
        (lambda: series(ImagePositionPatient=None), "does not say its ImagePositionPatient"),
        (lambda: series(PixelSpacing=None), "PixelSpacing"),
        (lambda: series(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no orientation"),
        (lambda: series(SamplesPerPixel=3), "colour"),
        (lambda: series(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "mosaic"),
        (lambda: [image(0)], "single DICOM image"),
        (lambda: [], "no DICOM series"),
    ],
)
def test_what_is_no_single_volume_is_refused(
    tmp_path: Path, images: Callable[[], list[FileDataset]], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NeonatalSegError, match=f"(?s){words}"):
        read_image(save(tmp_path, *images()))
    assert capfd.readouterr().err == ""  # no line of the image library that nobody understands


def test_a_tilt_is_read_as_it_is_and_told(tmp_path: Path) -> None:
    tilted = series()
    for number, data in enumerate(tilted):
        data.ImagePositionPatient = [float(v) for v in np.array(data.ImagePositionPatient) + (0, 0.2 * number, 0)]
    found = read_image(save(tmp_path, *tilted))
    assert "askew by 7.6 degrees" in found.warnings[0]
    for s in (0, 11):
        assert np.allclose(found.image.TransformIndexToPhysicalPoint((0, 0, s)), tilted[s].ImagePositionPatient)


def test_another_modality_is_told(tmp_path: Path) -> None:
    assert "modality is CT" in read_image(save(tmp_path, *series(Modality="CT"))).warnings[0]


def test_an_enhanced_file_holds_all_its_frames(tmp_path: Path) -> None:
    save(tmp_path, enhanced(series(), [*range(5, SLICES), *range(5)]))
    check_whole(read_image(tmp_path / "im000.dcm").image)


def test_a_single_volume_lies_where_simpleitk_puts_it(tmp_path: Path) -> None:
    folder = save(tmp_path, *series())
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    assert Grid.of(read_image(folder).image).is_like(Grid.of(sitk.ReadImage(names)))
