"""DICOM output read back: the tissues lie where the label map has them, and refer to the series that was segmented."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_series import enhanced, save, volume_series
from pydicom.dataset import Dataset, FileDataset

from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import Phantom
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volume_sums, volumes_ml
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.scan import Scan, load_scan
from NeonatalSegLib.segmentation import dicom_out
from NeonatalSegLib.segmentation.segmenter import Segmentation
from NeonatalSegLib.segmentation.verdict import Finding, Plausibility
from NeonatalSegLib.tissues import PHYSIOLOGICAL

pytestmark = pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is not installed")
SIZE, SPACING = (20, 18, 14), (1.7, 1.6, 2.0)
AXIAL = (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)
SAGITTAL = (0, 0, -1.0, 1.0, 0, 0, 0, -1.0, 0)
OBLIQUE = tuple(
    sitk.VersorTransform((0.1, 0.2, -0.15, float(np.sqrt(1 - 0.01 - 0.04 - 0.0225)))).GetMatrix()
)  # about 31 degrees around no axis of the patient


def volume(direction: tuple[float, ...] = AXIAL) -> sitk.Image:
    values = np.random.default_rng(3).integers(1, 900, SIZE[::-1]).astype(np.uint16)
    out = sitk.GetImageFromArray(values)
    out.SetSpacing(SPACING)
    out.SetOrigin((-17.0, 12.5, 33.0))
    out.SetDirection(direction)
    return out


def segmentation_of(scan: Scan) -> Segmentation:
    """All ten labels at random, so that no mirrored or shifted frame can be right by chance."""
    labels = np.random.default_rng(5).integers(0, 10, SIZE[::-1]).astype(np.uint8)
    labels[3] = 0  # a slice without any tissue
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(scan.reference)
    voxel_mm3 = float(np.prod(scan.reference.GetSpacing()))
    return Segmentation(
        image,
        volumes_ml(labels, voxel_mm3),
        model_name="neonatal-v2",
        model_hash="ab" * 32,
        plausibility=Plausibility((Finding("check", "size", "small"),)),
    )


def written(scan: Scan, folder: Path) -> tuple[Segmentation, Path, Path]:
    segmentation = segmentation_of(scan)
    files = folder / "x_dseg.dcm", folder / "x_volumes.dcm"
    dicom_out.write_dicom(dicom_out.source_of(scan), segmentation, *files)
    return segmentation, *files


def labels_read_back(file: Path, like: sitk.Image) -> np.ndarray:
    """The label map that the frames of a DICOM SEG make where they say that they lie; pydicom alone reads it."""
    seg = pydicom.dcmread(file)
    codes = {t.snomed_code: t.index for t in PHYSIOLOGICAL}
    label = {s.SegmentNumber: codes[s.SegmentedPropertyTypeCodeSequence[0].CodeValue] for s in seg.SegmentSequence}
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    out = np.zeros(like.GetSize()[::-1], np.uint8)
    for groups, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        first = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for r, c in ((0, 0), (seg.Rows - 1, seg.Columns - 1), (2, 5)):
            where = like.TransformPhysicalPointToContinuousIndex(first + across * c * row + down * r * column)
            assert np.allclose(where[:2], (c, r), atol=1e-4)
            assert abs(where[2] - round(where[2])) < 1e-4
        out[round(where[2])][frame > 0] = label[number]
    return out


def expected(segmentation: Segmentation) -> np.ndarray:
    labels = sitk.GetArrayFromImage(segmentation.label_map)
    return np.where(np.isin(labels, [t.index for t in PHYSIOLOGICAL]), labels, 0)


def tilted(images: list[FileDataset]) -> list[FileDataset]:
    for number, data in enumerate(images):
        data.ImagePositionPatient = [float(v) for v in np.array(data.ImagePositionPatient) + (0, 0.3 * number, 0)]
    return images


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(lambda: volume_series(volume()), id="axial"),
        pytest.param(lambda: volume_series(volume(SAGITTAL))[::-1], id="sagittal, files the other way round"),
        pytest.param(lambda: volume_series(volume(OBLIQUE)), id="oblique"),
        pytest.param(lambda: tilted(volume_series(volume())), id="gantry tilt"),
        pytest.param(lambda: [enhanced(volume_series(volume(OBLIQUE)), [*range(6, 14), *range(6)])], id="enhanced"),
    ],
)
def test_every_tissue_lies_where_the_label_map_has_it(images: object, tmp_path: Path) -> None:
    scan = load_scan(t2=save(tmp_path / "t2", *images()))  # type: ignore[operator]
    dicom_out.check_possible(scan)
    segmentation, file, _ = written(scan, tmp_path)
    assert np.array_equal(labels_read_back(file, scan.reference), expected(segmentation))


def test_it_belongs_to_the_patient_and_names_each_slice_that_it_was_drawn_on(tmp_path: Path) -> None:
    images = volume_series(volume(OBLIQUE))
    scan = load_scan(t2=save(tmp_path / "t2", *images))
    _, file, _ = written(scan, tmp_path)
    seg = pydicom.dcmread(file)
    for name in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
        "PatientBirthDate",
        "StudyDate",
    ):
        assert seg[name].value == images[0][name].value, name
    assert seg.SeriesInstanceUID != images[0].SeriesInstanceUID
    place = {data.SOPInstanceUID: [float(v) for v in data.ImagePositionPatient] for data in images}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert place[source.ReferencedSOPInstanceUID] == [
            float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient
        ]
    assert [s.SegmentLabel for s in seg.SegmentSequence] == [t.name for t in PHYSIOLOGICAL]
    assert "check" in seg.ContentDescription


def test_frames_of_an_enhanced_file_are_named_by_their_number(tmp_path: Path) -> None:
    images = volume_series(volume())
    order = [*range(6, 14), *range(6)]
    scan = load_scan(t1=save(tmp_path / "t1", enhanced(images, order)) / "im000.dcm")
    _, file, _ = written(scan, tmp_path)
    for groups in pydicom.dcmread(file).PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        position = images[order[source.ReferencedFrameNumber - 1]].ImagePositionPatient
        assert groups.PlanePositionSequence[0].ImagePositionPatient == position


def test_of_two_series_the_one_is_named_on_whose_grid_the_labels_lie(tmp_path: Path) -> None:
    t1 = save(tmp_path / "t1", *volume_series(volume(OBLIQUE) + 1, "1.2.7"))
    t2 = save(tmp_path / "t2", *volume_series(volume(SAGITTAL), "1.2.8"))
    scan = load_scan(t1=t1, t2=t2)
    _, file, report = written(scan, tmp_path)
    (named,) = pydicom.dcmread(file).ReferencedSeriesSequence
    assert named.SeriesInstanceUID == "1.2.8"
    assert len(named.ReferencedInstanceSequence) == SIZE[2]
    assert {str(c.UID) for c in content(pydicom.dcmread(report)) if "UID" in c and c.ValueType == "UIDREF"} >= {"1.2.8"}


def content(data: Dataset) -> list[Dataset]:
    """Every content item of a structured report, the tree flattened."""
    found = []
    for one in data.get("ContentSequence") or []:
        found += [one, *content(one)]
    return found


def test_the_report_has_the_volume_of_every_tissue_and_the_verdict(tmp_path: Path) -> None:
    scan = load_scan(t2=save(tmp_path / "t2", *volume_series(volume())))
    segmentation, seg_file, file = written(scan, tmp_path)
    seg, report = pydicom.dcmread(seg_file), pydicom.dcmread(file)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    found, numbers = {}, {}
    for group in content(report):
        if group.ConceptNameCodeSequence[0].CodeMeaning != "Measurement Group":
            continue
        finding = next(c for c in group.ContentSequence if c.ConceptNameCodeSequence[0].CodeMeaning == "Finding")
        name = finding.ConceptCodeSequence[0].CodeValue
        (measured,) = [c for c in group.ContentSequence if c.ValueType == "NUM"]
        assert measured.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
        assert measured.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue == "mL"
        found[name] = float(measured.MeasuredValueSequence[0].NumericValue)
        for c in group.ContentSequence:
            if c.ValueType == "IMAGE":
                assert c.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
                numbers[name] = c.ReferencedSOPSequence[0].ReferencedSegmentNumber
    volumes = segmentation.volumes_ml
    sums = volume_sums(volumes)
    assert found == pytest.approx(
        {
            **{t.snomed_code: volumes[t.key] for t in PHYSIOLOGICAL},
            "12738006": sums["brain"],
            "1101003": sums["intracranial"],
        },
        abs=1e-3,
    )
    assert numbers == {s.SegmentedPropertyTypeCodeSequence[0].CodeValue: s.SegmentNumber for s in seg.SegmentSequence}
    verdicts = {c.ConceptCodeSequence[0].CodeValue for c in content(report) if c.ValueType == "CODE"}
    assert "check" in verdicts
    assert report.PatientName == "Ünal^Baby"


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("kind", ["single", "enhanced"])
def test_dciodvfy_finds_no_error(kind: str, tmp_path: Path) -> None:
    images = volume_series(volume(OBLIQUE))
    scan = load_scan(t2=save(tmp_path / "t2", *([enhanced(images, range(14))] if kind == "enhanced" else images)))
    for file, kind_there in zip(written(scan, tmp_path)[1:], ("Segmentation", "EnhancedSR"), strict=True):
        command = ["dciodvfy", "-new", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
        recognised, *told = done.stderr.splitlines()
        assert recognised == kind_there
        assert [line for line in told if dicom_out.OUR_CODES not in line] == []  # a scheme of ours it cannot know


def test_an_odd_header_does_not_stand_in_the_way(tmp_path: Path) -> None:
    """What archives that take names out leave behind: missing tags, dates that are none, directions that differ."""
    images = volume_series(
        volume(OBLIQUE),
        PatientName=None,
        PatientSex="female",
        PatientBirthDate="unknown",
        StudyID=None,
        SliceThickness=9,
    )
    images[3].ImageOrientationPatient = [float(v) + 2e-6 for v in images[3].ImageOrientationPatient]
    scan = load_scan(t2=save(tmp_path / "t2", *images))
    dicom_out.check_possible(scan)
    segmentation, file, _ = written(scan, tmp_path)
    assert np.array_equal(labels_read_back(file, scan.reference), expected(segmentation))
    measures = pydicom.dcmread(file).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.0)


def test_a_nifti_scan_is_refused_with_the_reason(tmp_path: Path) -> None:
    t1, t2 = save(tmp_path / "t1", *volume_series(volume())), tmp_path / "x_T2w.nii.gz"
    sitk.WriteImage(volume() + 1, str(t2))
    with pytest.raises(NeonatalSegError, match=r"T2 .*x_T2w.nii.gz\) is no DICOM series.* refer to\. Give"):
        dicom_out.check_possible(load_scan(t2=t2))
    with pytest.raises(NeonatalSegError, match="results lie on the grid of the T2"):
        dicom_out.check_possible(load_scan(t1=t1, t2=t2))


def test_a_series_that_cannot_be_referred_to_is_refused(tmp_path: Path) -> None:
    scan = load_scan(t2=save(tmp_path / "t2", *volume_series(volume(), FrameOfReferenceUID=None)))
    with pytest.raises(NeonatalSegError, match="has no FrameOfReferenceUID"):
        dicom_out.check_possible(scan)


def test_a_series_that_changed_meanwhile_is_not_referred_to(tmp_path: Path) -> None:
    scan = load_scan(t2=save(tmp_path / "t2", *volume_series(volume())))
    (tmp_path / "t2" / "im013.dcm").unlink()
    with pytest.raises(NeonatalSegError, match="no longer the one that was segmented"):
        written(scan, tmp_path)
    assert not list(tmp_path.glob("*.dcm"))


def test_without_highdicom_it_is_said_before_the_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    out, scan = tmp_path / "out", save(tmp_path / "t2", *volume_series(volume()))
    assert run(["segment", "--t2", str(scan), "--out", str(out), "--dicom-seg"]) == 2
    assert "pip install 'neonatalseg[dicom]'" in capsys.readouterr().err
    assert run(["batch", "--bids", str(tmp_path), "--out", str(out), "--dicom-seg"]) == 2
    assert not out.exists()


@pytest.mark.slow
def test_a_study_gets_dicom_where_it_came_from_dicom(
    newborn: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = sitk.Shrink(sitk.RescaleIntensity(newborn.t2, 0, 4000), [2, 2, 2])
    series, nifti = save(tmp_path / "t2", *volume_series(coarse)), tmp_path / "two.nii.gz"
    sitk.WriteImage(coarse, str(nifti))
    settings = NetworkSettings((2, 4, 4), 1.5, (32, 32, 32), heads=1)
    model = save_model(build_network(settings), settings, tmp_path / "tiny", description="random").folder
    table, out = tmp_path / "scans.tsv", tmp_path / "out"
    table.write_text(f"name\tt2\none\t{series}\ntwo\t{nifti}\n", encoding="utf-8")
    assert run(["batch", "--list", str(table), "--out", str(out), "--model", str(model), "--dicom-seg"]) == 3
    assert "no DICOM series" in capsys.readouterr().out
    assert not list(out.rglob("two_*"))
    (seg,) = out.rglob("one_dseg.dcm")
    label_map = sitk.ReadImage(str(seg.with_name("one_dseg.nii.gz")))
    kept = [t.index for t in PHYSIOLOGICAL]
    labels = sitk.GetArrayFromImage(label_map)
    assert np.array_equal(labels_read_back(seg, label_map), np.where(np.isin(labels, kept), labels, 0))
    assert "one_volumes.dcm" in seg.with_name("one_dseg.json").read_text(encoding="utf-8")
