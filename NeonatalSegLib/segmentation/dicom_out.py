"""A result as DICOM, for archives and viewers: a segmentation (DICOM SEG), and volumes as structured report (TID 1500).

Both belong to the study of the series that was segmented and refer to it: to the T2's where there is one, since the
label map lies on its grid. Every frame has the position of the slice that it was drawn on, taken over as it is there,
so that oblique, tilted and multi-frame series keep their geometry. Written with highdicom, which is optional.

Example:
    >>> source = source_of(scan)  # doctest: +SKIP
    >>> write_dicom(source, segmentation, "sub-01_dseg.dcm", "sub-01_volumes.dcm")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib import __version__
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.evaluation.metrics import volume_sums
from NeonatalSegLib.scans.dicom import Series, find_series
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.read import is_dicom
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.segmentation.verdict import VERDICTS
from NeonatalSegLib.tissues import CATEGORY, PHYSIOLOGICAL, SUMS

if TYPE_CHECKING:
    from pydicom import Dataset

    from NeonatalSegLib.segmentation.segmenter import Segmentation

INSTALL = "pip install 'neonatalseg[dicom]'"
MAKER = "NeonatalSeg"
OUR_CODES = "99NEONATALSEG"  # the scheme of what no public one has: the verdict on plausibility
NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
COPIED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
COPIED_WHERE_THERE = ("StudyDescription", "PatientAge", "PatientWeight", "PositionReferenceIndicator")


@dataclass(frozen=True)
class Source:
    """The series that a segmentation refers to.

    Attributes:
        path: where it was read from.
        series: its slices in the order of the volume.
        headers: what is copied and referred to: one per slice, or one alone of a file of many frames.
        order: frame ``n`` of the segmentation is slice ``order[n]`` of the volume.
        number: of the series in its study, 0 where not said.
    """

    path: Path
    series: Series
    headers: tuple[Dataset, ...]
    order: tuple[int, ...]
    number: int


def check_installed() -> None:
    """Refuse before any work where highdicom is missing: NeonatalSegError that says what to install."""
    if importlib.util.find_spec("highdicom") is None:
        raise NeonatalSegError(f"DICOM output needs the package highdicom, which is not installed: {INSTALL}.")


def check_possible(scan: Scan) -> None:
    """Make sure, before the computing, that a result for ``scan`` can be written as DICOM.

    Raises:
        NeonatalSegError: highdicom is not installed; the scan is no DICOM series; its tags do not allow it.
    """
    source = source_of(scan)
    labels = np.zeros(source.series.grid().shape, np.uint8)
    labels[0, 0, 0] = PHYSIOLOGICAL[0].index
    with _reported(source):
        _segmentation_object(source, labels, "none", "0", "pass")


def source_of(scan: Scan) -> Source:
    """The DICOM series on whose grid the results for ``scan`` lie: the T2's where there is one, else the T1's.

    Raises:
        NeonatalSegError: as :func:`check_possible`.
    """
    check_installed()
    key = "t2" if scan.t2 is not None else "t1"
    path = Path(scan.sources.get(key, ""))
    if key not in scan.sources or not is_dicom(path):
        other = "t1" if key == "t2" else "t2"
        hint = (
            f" The {other.upper()} may be one, but results lie on the grid of the {key.upper()}."
            if other in scan.sources
            else ""
        )
        raise NeonatalSegError(
            f"The {key.upper()} ({scan.sources.get(key, 'from memory')}) is no DICOM series, so that a DICOM "
            f"segmentation has no study, patient and series to refer to.{hint} Give the folder of its DICOM series, or "
            "leave out --dicom-seg: the NIfTI label map holds the same."
        )
    series = find_series(path)
    return _source(path, series, _first_header(series.slices[0].file))


def write_dicom(source: Source, segmentation: Segmentation, seg_file: str | Path, sr_file: str | Path) -> None:
    """Write a segmentation as DICOM SEG (eight binary segments) and its volumes in mL as structured report.

    Raises:
        NeonatalSegError: the label map does not lie on the series' grid, or the series' tags do not allow it.
        OSError: a file cannot be written.
    """
    if not Grid.of(segmentation.label_map).is_like(source.series.grid()):
        raise NeonatalSegError(
            f"The DICOM series in {source.path} is no longer the one that was segmented: was it changed meanwhile? "
            "Segment it again."
        )
    labels = sitk.GetArrayFromImage(segmentation.label_map)
    verdict = segmentation.plausibility.verdict
    with _reported(source):
        seg = _segmentation_object(source, labels, segmentation.model_name, segmentation.model_hash, verdict)
        report = _report_object(source, seg, segmentation.volumes_ml, verdict)
    seg.save_as(seg_file)
    report.save_as(sr_file)


class _reported:  # noqa: N801  # reads as a phrase: with _reported(source)
    """What a library says of odd tags in a series becomes one sentence; its warnings to programmers stay unsaid."""

    def __init__(self, source: Source) -> None:
        self._source, self._quiet = source, warnings.catch_warnings()

    def __enter__(self) -> None:
        self._quiet.__enter__()
        warnings.simplefilter("ignore")
        logging.getLogger("highdicom").setLevel(logging.ERROR)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._quiet.__exit__(kind, error, None)
        if isinstance(error, Exception) and not isinstance(error, (NeonatalSegError, MemoryError)):
            raise NeonatalSegError(
                f"No DICOM segmentation can be made for the series in {self._source.path} ({error}): its tags do not "
                "allow it. Leave out --dicom-seg: the NIfTI label map holds the same."
            ) from error


def _first_header(file: Path) -> Dataset:
    import pydicom

    with pydicom.config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(file, stop_before_pixels=True)


def _source(path: Path, series: Series, first: Dataset) -> Source:
    """The headers that highdicom needs, with nothing in them that it could stumble on."""
    if missing := [name for name in NEEDED if not first.get(name)]:
        raise NeonatalSegError(
            f"The DICOM series in {path} has no {missing[0]}, so that nothing can refer to it. Export it again, or "
            "leave out --dicom-seg."
        )
    slices = series.slices
    many_frames = "NumberOfFrames" in first
    if many_frames and len({s.file for s in slices}) > 1:
        raise NeonatalSegError(
            f"The DICOM series in {path} consists of several files of many frames, to which no DICOM segmentation can "
            "refer here. Export it as one such file or as single slices, or leave out --dicom-seg."
        )
    number = int(first.get("SeriesNumber") or 0)
    if many_frames:
        order = np.argsort([s.number for s in slices])
        return Source(path, series, (_many_frames(series, first, order),), tuple(order.tolist()), number)
    headers = []
    for one in slices:
        header = _common(series, first)
        header.SOPInstanceUID = one.uid.rpartition("/")[0]
        header.ImagePositionPatient = list(one.position)
        _add_plane(series, header, header)
        headers.append(header)
    return Source(path, series, tuple(headers), tuple(range(len(slices))), number)


def _many_frames(series: Series, first: Dataset, order: np.ndarray) -> Dataset:
    """The header of a file of many frames: what they share, and where each lies, in the order of the file."""
    from pydicom import Dataset

    header, shared, measures, orientation = _common(series, first), Dataset(), Dataset(), Dataset()
    header.SOPInstanceUID, header.NumberOfFrames = str(first.SOPInstanceUID), len(order)
    _add_plane(series, measures, orientation)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for index in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = list(series.slices[index].position)
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    return header


def _common(series: Series, first: Dataset) -> Dataset:
    """What all slices share, of the patient, the study and the image."""
    from pydicom import Dataset

    header = Dataset()
    for name in NEEDED:
        setattr(header, name, str(first[name].value))
    for name in (*COPIED, *(n for n in COPIED_WHERE_THERE if n in first)):
        setattr(header, name, _clean(name, first.get(name)))
    header.SpecificCharacterSet = "ISO_IR 192"
    header.Modality = "MR"
    header.Columns, header.Rows = series.slices[0].size
    if first.get("LossyImageCompression") == "01":
        header.LossyImageCompression = "01"
    return header


def _add_plane(series: Series, measures: Dataset, orientation: Dataset) -> None:
    """One direction and one spacing for all: a series may say them with other last digits in every slice."""
    first = series.slices[0]
    normal = np.cross(first.direction[:3], first.direction[3:])
    measures.PixelSpacing = [_decimal(v) for v in first.pixel]
    measures.SliceThickness = measures.SpacingBetweenSlices = _decimal(float(series.step_mm @ normal))
    orientation.ImageOrientationPatient = [_decimal(v) for v in first.direction]


def _decimal(value: float) -> Any:
    from pydicom.valuerep import DSfloat

    return DSfloat(value, auto_format=True)  # 16 signs are all that DICOM has for a number


def _clean(name: str, value: Any) -> Any:
    """A tag's value, empty where it is none that DICOM allows."""
    from pydicom.valuerep import DA, TM

    text = "" if value is None else str(value)
    if name == "PatientSex":
        return text if text in ("M", "F", "O") else ""
    try:
        if name.endswith("Date"):
            DA(text)
        if name.endswith("Time"):
            TM(text)
    except ValueError:
        return ""
    return text


def _segmentation_object(source: Source, labels: np.ndarray, model: str, model_hash: str, verdict: str) -> Any:
    """DICOM SEG of labels (z, y, x) on the volume's grid."""
    import highdicom as hd

    number_of = np.zeros(256, np.uint8)  # by label; DICOM wants segments numbered without gaps
    number_of[[t.index for t in PHYSIOLOGICAL]] = range(1, len(PHYSIOLOGICAL) + 1)
    algorithm = hd.AlgorithmIdentificationSequence(
        f"{MAKER} {model}"[:64], _code("DCM", "123110", "Artificial Intelligence"), __version__
    )
    segments = [
        hd.seg.SegmentDescription(
            number,
            tissue.name,
            _code(*CATEGORY),
            _code("SCT", tissue.snomed_code, tissue.snomed_meaning),
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
            tracking_uid=hd.UID(),
            tracking_id=tissue.name,
            display_color=hd.color.CIELabColor.from_rgb(*tissue.colour),
        )
        for number, tissue in enumerate(PHYSIOLOGICAL, 1)
    ]
    return hd.seg.Segmentation(
        source.headers,
        number_of[labels[list(source.order)]],
        hd.seg.SegmentationTypeValues.BINARY,
        segments,
        hd.UID(),
        100 * source.number + 1,
        hd.UID(),
        1,
        MAKER,
        model[:64],
        __version__,
        model_hash[:16],
        content_description=f"Tissues of the newborn brain ({verdict}); research use only",
        content_label="NEONATALSEG",
        series_description=f"{MAKER} tissues",
    )


def _report_object(source: Source, seg: Any, volumes_ml: Mapping[str, float], verdict: str) -> Any:
    """TID 1500 with a TID 1411 for each segment, and one group for each sum of tissues."""
    import highdicom as hd
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(hd.UID(), MAKER, MAKER, str(seg.ManufacturerModelName), __version__)
    observer = sr.ObserverContext(_code("DCM", "121007", "Device"), device)
    series = sr.SourceSeriesForSegmentation(str(source.headers[0].SeriesInstanceUID))
    groups: list[Any] = []
    for tissue, segment in zip(PHYSIOLOGICAL, seg.SegmentSequence, strict=True):
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(segment.TrackingUID, tissue.name),
                referenced_segment=sr.ReferencedSegment(
                    seg.SOPClassUID, seg.SOPInstanceUID, segment.SegmentNumber, source_series=series
                ),
                finding_category=_code(*CATEGORY),
                finding_type=_code("SCT", tissue.snomed_code, tissue.snomed_meaning),
                measurements=[_volume(volumes_ml[tissue.key])],
            )
        )
    plausible = sr.QualitativeEvaluation(
        _code(OUR_CODES, "plausibility", "Plausibility of the result"),
        _code(OUR_CODES, verdict, VERDICTS[verdict].partition(",")[0]),
    )
    for key, value in volume_sums(volumes_ml).items():
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(hd.UID(), SUMS[key][2]),
                finding_category=_code(*CATEGORY),
                finding_type=_code(*SUMS[key]),
                measurements=[_volume(value)],
                qualitative_evaluations=[plausible],
            )
        )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=observer),
        _code("LN", "24590-2", "MR Brain"),
        groups,
        title=_code("DCM", "126000", "Imaging Measurement Report"),
    )
    return sr.EnhancedSR(
        [seg, *source.headers],
        content,
        hd.UID(),
        100 * source.number + 2,
        hd.UID(),
        1,
        MAKER,
        is_complete=True,
        series_description=f"{MAKER} volumes",
        specific_character_set="ISO_IR 192",
    )


def _volume(volume_ml: float) -> Any:
    from highdicom.sr import Measurement

    return Measurement(_code("SCT", "118565006", "Volume"), round(volume_ml, 3), _code("UCUM", "mL", "milliliter"))


def _code(scheme: str, value: str, meaning: str) -> Any:
    from pydicom.sr.coding import Code

    return Code(value, scheme, meaning)
