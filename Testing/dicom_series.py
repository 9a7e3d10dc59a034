"""DICOM series as scanners and archives write them, small, for tests: images, whole folders, files of many frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

SLICES, ROWS, COLUMNS = 12, 10, 14
SAGITTAL = ([0.0, 1.0, 0.0], [0.0, 0.0, -1.0])


def plane(number: int) -> np.ndarray:
    return (np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS) + 1000 * number).astype(np.uint16)


def image(number: int, **tags: Any) -> FileDataset:
    """Slice ``number`` of a sagittal MR series, 1.5 mm apart; ``tags`` replace its own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    row, column = np.array(SAGITTAL)
    own: dict[str, Any] = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": f"1.2.3.{number + 1}",
        "SeriesInstanceUID": "1.2.3",
        "StudyInstanceUID": "1.2",
        "FrameOfReferenceUID": "1.9",
        "SeriesDescription": "T2 sag",
        "PatientID": "baby",
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M"],
        "EchoTime": 120.0,
        "ImagePositionPatient": [float(v) for v in np.array([5.0, -7.0, 9.0]) + 1.5 * number * np.cross(row, column)],
        "ImageOrientationPatient": [*SAGITTAL[0], *SAGITTAL[1]],
        "PixelSpacing": [0.8, 0.7],
        "InstanceNumber": 99 - number,  # the wrong way round: the position decides
        "Rows": ROWS,
        "Columns": COLUMNS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "PixelData": plane(number).tobytes(),
    }
    for name, value in {**own, **tags}.items():
        if value is not None:
            setattr(data, name, value)
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def save(folder: Path, *images: FileDataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for data in images:
        data.save_as(folder / f"im{len(list(folder.iterdir())):03d}.dcm", enforce_file_format=True)
    return folder


def series(**tags: Any) -> list[FileDataset]:
    return [image(number, **tags) for number in range(SLICES)]


def volume_series(volume: sitk.Image, uid: str = "1.2.3", **tags: Any) -> list[FileDataset]:
    """A volume of whole numbers, 0 to 65535, as the images of one series, with the tags that the standard asks for."""
    voxels = sitk.GetArrayFromImage(volume).astype(np.uint16)
    direction = np.array(volume.GetDirection()).reshape(3, 3)
    x, y, z = volume.GetSpacing()
    return [
        image(
            number,
            **{
                "SOPInstanceUID": f"{uid}.{number + 1}",
                "SeriesInstanceUID": uid,
                "SeriesNumber": 4,
                "ImagePositionPatient": [round(v, 6) for v in volume.TransformIndexToPhysicalPoint((0, 0, number))],
                "ImageOrientationPatient": [round(float(v), 8) for v in (*direction[:, 0], *direction[:, 1])],
                "PixelSpacing": [y, x],
                "SliceThickness": z,
                "Rows": plane.shape[0],
                "Columns": plane.shape[1],
                "PixelData": plane.tobytes(),
                "PatientName": "Ünal^Baby",
                "PatientBirthDate": "20260901",
                "PatientSex": "F",
                "StudyID": "7",
                "StudyDate": "20261001",
                "StudyTime": "101500",
                "AccessionNumber": "A-1",
                "ReferringPhysicianName": "",
                "SpecificCharacterSet": "ISO_IR 100",
                **tags,
            },
        )
        for number, plane in enumerate(voxels)
    ]


def enhanced(images: Sequence[FileDataset], order: Sequence[int]) -> FileDataset:
    """The images as frames of one enhanced MR file, in any order."""
    first = images[0]
    one = image(0, **{e.keyword: e.value for e in first}, NumberOfFrames=len(images))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        if name in one:
            delattr(one, name)
    plane = item(ImageOrientationPatient=first.ImageOrientationPatient)
    measures = item(PixelSpacing=first.PixelSpacing)
    one.SharedFunctionalGroupsSequence = [item(PlaneOrientationSequence=[plane], PixelMeasuresSequence=[measures])]
    one.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=images[n].ImagePositionPatient)]) for n in order
    ]
    one.PixelData = b"".join(images[n].PixelData for n in order)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    return one


def item(**tags: Any) -> Dataset:
    """One item of a sequence."""
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data
