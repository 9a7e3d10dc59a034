"""What comes in: formats that are read, and bad input that is refused in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import image_of

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.nifti import is_whole
from NeonatalSegLib.scans.read import read_image
from NeonatalSegLib.scans.scan import load_scan, make_scan, scan_name


def block(value: float = 100.0) -> np.ndarray:
    array = np.zeros((30, 32, 34), np.float32)
    array[5:25, 5:25, 5:25] = value + np.arange(20)
    return array


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_formats_keep_physical_space(tmp_path: Path, suffix: str) -> None:
    image = image_of(block(), (0.8, 0.9, 1.1))
    image.SetOrigin((-12.0, 5.0, 40.0))
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    scan = load_scan(t2=tmp_path / f"a{suffix}")
    assert scan.t1 is None
    for index in ((0, 0, 0), (33, 31, 29), (5, 6, 7)):
        here, there = scan.reference.TransformIndexToPhysicalPoint(index), image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(here, there, atol=1e-4)
        assert scan.reference[index] == image[index]


def write_dicom(folder: Path, series: str, slices: int = 24) -> None:
    """A minimal MR series as a scanner would export it."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(slices):
        plane = sitk.GetImageFromArray(np.full((1, 30, 32), 10 * z + 1, np.int16))
        plane.SetSpacing((1.0, 1.0, 1.5))
        tags = {
            "0008|0060": "MR",
            "0020|000e": series,
            "0020|000d": "1.2.3",
            "0008|0018": f"{series}.{z}",
            "0020|0032": f"0\\0\\{1.5 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z),
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}-{z:03d}.dcm"))
        writer.Execute(plane)


def test_a_dicom_folder_is_one_volume(tmp_path: Path) -> None:
    write_dicom(tmp_path / "t2", "1.2.3.4")
    scan = load_scan(t2=tmp_path / "t2")
    assert scan.reference.GetSize() == (32, 30, 24)
    assert np.allclose(scan.reference.GetSpacing(), (1, 1, 1.5))
    assert scan.reference[0, 0, 23] == 231


def test_two_dicom_series_are_refused(tmp_path: Path) -> None:
    write_dicom(tmp_path / "t2", "1.2.3.4")
    write_dicom(tmp_path / "t2", "1.2.3.5")
    with pytest.raises(NeonatalSegError, match="2 DICOM series"):
        load_scan(t2=tmp_path / "t2")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="no DICOM series"):
        load_scan(t2=tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match=r"nowhere\.nii\.gz"):
        load_scan(t1=tmp_path / "nowhere.nii.gz")


@pytest.mark.parametrize("content", [b"", b"this is a letter, not an image"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
def test_what_is_no_image_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NeonatalSegError, match=name):
        read_image(tmp_path / name)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    image = image_of(np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(NeonatalSegError, match="is truncated"):
        read_image(tmp_path / "a.nii.gz")


def test_a_nifti_cut_short_before_compression_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(image_of(block()), str(tmp_path / "a.nii"))
    whole = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[: len(whole) // 2]))
    with pytest.raises(NeonatalSegError, match=r"a\.nii\.gz"):
        read_image(tmp_path / "a.nii.gz")


def test_a_picture_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((40, 40), np.float32)), str(tmp_path / "flat.nii.gz"))
    with pytest.raises(NeonatalSegError, match=r"40 x 40.*one 3D volume"):
        load_scan(t2=tmp_path / "flat.nii.gz")


def test_a_time_series_is_refused() -> None:
    series = sitk.JoinSeries([image_of(block()), image_of(block(3))])
    with pytest.raises(NeonatalSegError, match="34 x 32 x 30 x 2"):
        make_scan(t2=series)


def test_a_single_time_point_is_taken() -> None:
    assert make_scan(t2=sitk.JoinSeries([image_of(block())])).reference.GetSize() == (34, 32, 30)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_is_refused(value: float) -> None:
    with pytest.raises(NeonatalSegError, match="one value only"):
        make_scan(t1=image_of(np.full((30, 30, 30), value, np.float32)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_few_broken_voxels_are_cleaned_with_a_warning(tmp_path: Path, suffix: str) -> None:
    array = block()
    array[10, 10, 10:14] = (np.nan, np.inf, -np.inf, np.nan)
    sitk.WriteImage(image_of(array), str(tmp_path / f"a{suffix}"))
    scan = load_scan(t2=tmp_path / f"a{suffix}")
    assert np.isfinite(sitk.GetArrayFromImage(scan.reference)).all()
    assert len(scan.warnings) == 1
    assert "4 voxels" in scan.warnings[0]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_many_broken_voxels_are_refused(tmp_path: Path, suffix: str) -> None:
    array = block()
    array[10:12, 8:22, 8:22] = np.nan
    sitk.WriteImage(image_of(array), str(tmp_path / f"a{suffix}"))
    with pytest.raises(NeonatalSegError, match=r"1\.2 %"):
        load_scan(t2=tmp_path / f"a{suffix}")


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 50.0), (0.001, 0.001, 0.001), (1000.0, 1000.0, 1000.0)])
def test_absurd_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(NeonatalSegError, match="spacing"):
        make_scan(t2=image_of(block(), spacing))


def test_missing_spacing_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(image_of(block()), str(tmp_path / "a.nii"))
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[80:92] = bytes(12)  # pixdim[1..3] of the NIfTI-1 header
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(NeonatalSegError, match="spacing"):
        load_scan(t2=tmp_path / "a.nii")


def test_a_slab_is_refused() -> None:
    with pytest.raises(NeonatalSegError, match="too thin"):
        make_scan(t2=image_of(block()[:10], (1.0, 1.0, 1.0)))


def test_no_image_and_absurd_age_are_refused() -> None:
    with pytest.raises(NeonatalSegError, match="expected a T1, a T2 or both"):
        load_scan()
    with pytest.raises(NeonatalSegError, match="400"):
        make_scan(t2=image_of(block()), age_weeks=400)


def test_names_come_from_files() -> None:
    assert scan_name(Path("sub-01_ses-2_T2w.nii.gz")) == "sub-01_ses-2"
    assert scan_name(Path("baby.mha")) == "baby"
    assert scan_name(Path("T2w.nii")) == "T2w"


def test_a_file_that_was_cut_while_it_was_written_is_noticed(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        path = tmp_path / name
        sitk.WriteImage(image_of(np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32)), str(path))
        assert is_whole(path)
        path.write_bytes(path.read_bytes()[:-3000])
        assert not is_whole(path)
