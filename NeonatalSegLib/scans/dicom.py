"""One DICOM series from a folder to a volume: headers by pydicom, voxels by SimpleITK's decoder.

Slices are put in order by where they lie, never by name or number, and only where all of them are there once: an image
library that stacks what it finds gives a wrong spacing for a missing slice and one volume out of two echoes.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_path
from NeonatalSegLib.scans.grid import Grid

MAX_FILES = 20_000
MIN_SLICES = 2
SAME_DIRECTION = 1e-3  # difference of direction cosines
STEP_TOLERANCE = 0.1  # of the distance between slices: above it one is missing or moved
SHEAR_DEGREES = 0.2  # of the slices' row against their normal: above it a tilt is told
MAX_SHEAR_DEGREES = 30.0
# What all slices of one volume share, and how to say it where they do not.
SHARED: dict[str, str] = {
    "size": "images of several sizes",
    "direction": "images of several orientations (a localiser among the slices?)",
    "pixel": "images of several pixel spacings",
    "echo": "several echo times",
    "kind": "several kinds of image (ImageType, such as magnitude and phase)",
    "frame_of_reference": "images of several frames of reference",
    "patient": "images of several patients",
}


@dataclass(frozen=True)
class Slice:
    """One image of a series: where it lies, and where its voxels are (``number`` counts the frames of a file)."""

    file: Path
    number: int
    uid: str
    series: str
    title: str
    position: tuple[float, float, float]
    size: tuple[int, int]
    direction: tuple[float, ...]
    pixel: tuple[float, float]
    echo: str
    kind: str
    frame_of_reference: str
    patient: str
    modality: str


@dataclass(frozen=True)
class Series:
    """The images of one volume, headers alone.

    Attributes:
        slices: in the order in which they lie: slice ``k`` of the volume is ``slices[k]``.
        step_mm: (3,) from one slice to the next, LPS.
        warnings: in words.
    """

    slices: tuple[Slice, ...]
    step_mm: np.ndarray
    warnings: tuple[str, ...] = ()

    def grid(self) -> Grid:
        """Where the volume lies."""
        first = self.slices[0]
        row, column = np.array(first.direction[:3]), np.array(first.direction[3:])
        length = float(np.linalg.norm(self.step_mm))
        # Columns of the matrix: along a row, along a column, from slice to slice.
        direction = np.stack([row, column, self.step_mm / length], axis=1)
        spacing = (first.pixel[1], first.pixel[0], length)
        return Grid((*first.size, len(self.slices)), spacing, first.position, tuple(direction.ravel().tolist()))


def read_series(path: Path) -> tuple[sitk.Image, tuple[str, ...]]:
    """The one DICOM series at ``path``, a folder (its subfolders included) or a file of many frames.

    Returns:
        The volume, in the scanner's units, and warnings.

    Raises:
        NeonatalSegError: no series or several, slices that are missing or do not belong together, or unreadable ones.
    """
    series = find_series(path)
    return series.grid().image(np.stack(_planes(series.slices))), series.warnings


def find_series(path: Path) -> Series:
    """The images of the one DICOM series at ``path``, as :func:`read_series` stacks them; raises what it raises."""
    slices = _find_slices(path)
    if not slices:
        raise NeonatalSegError(f"{path} holds no DICOM series of images: expected one T1 or T2. Check the folder.")
    _only_one_series(slices, path)
    slices, told = _without_copies(slices, path)
    for field, text in SHARED.items():
        _all_alike(slices, field, text, path)
    if len(slices) < MIN_SLICES:
        raise NeonatalSegError(f"{path} holds a single DICOM image: expected a series of slices. Give its folder.")
    order, step, found = _in_order(slices, path)
    told += found
    if (modality := slices[0].modality) not in ("MR", ""):
        told.append(f"{path.name}: the modality is {modality}, not MR: this is no T1 or T2.")
    return Series(tuple(order), step, tuple(told))


def _find_slices(path: Path) -> list[Slice]:
    """Every image of every DICOM file at or below ``path``; other files are passed over."""
    import pydicom

    files = (
        sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    )
    if len(files) > MAX_FILES:
        raise NeonatalSegError(f"{path} holds {len(files)} files: expected the folder of one DICOM series.")
    found: list[Slice] = []
    for file in files:
        check_path(file)
        try:
            with file.open("rb") as stream:
                stream.seek(128)
                if stream.read(4) != b"DICM":
                    continue
            with pydicom.config.disable_value_validation(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about tags that are not used here
                data = pydicom.dcmread(file, stop_before_pixels=True)
                if "Rows" in data and "DICOMDIR" not in file.name.upper():
                    found += _slices_of(data, file)
        except NeonatalSegError:
            raise
        except OSError as error:
            raise NeonatalSegError(f"{file} could not be read: {error.strerror or error}.") from error
        except Exception as error:  # what damaged tags make a reader raise is anything
            raise NeonatalSegError(f"{file} has damaged DICOM tags ({error}): export the series again.") from error
    return found


def _slices_of(data: Any, file: Path) -> list[Slice]:
    """The images in one file: one, or the frames of an enhanced one."""
    if int(data.get("SamplesPerPixel", 1)) != 1:
        raise NeonatalSegError(f"{file} is a colour image: expected a grey scan. Leave such files out.")
    if "MOSAIC" in _text(data.get("ImageType")):
        raise NeonatalSegError(f"{file} is a mosaic of many slices (diffusion or functional): expected a T1 or T2.")
    frames = data.get("PerFrameFunctionalGroupsSequence") or [None]
    shared = (data.get("SharedFunctionalGroupsSequence") or [None])[0]
    return [_slice(data, [g for g in (frame, shared) if g is not None], file, n) for n, frame in enumerate(frames)]


def _slice(data: Any, groups: Sequence[Any], file: Path, number: int) -> Slice:
    def look(sequence: str, name: str) -> Any:
        """A tag of this frame, of what all frames share, or of the file."""
        for group in groups:
            for item in group.get(sequence) or []:
                if item.get(name) is not None:
                    return item.get(name)
        return data.get(name)

    def numbers(sequence: str, name: str, count: int) -> tuple[float, ...]:
        value = look(sequence, name)
        values = tuple(float(v) for v in value) if value is not None else ()
        if len(values) != count or not np.isfinite(values).all() or max(map(abs, values)) > 1e6:
            raise NeonatalSegError(
                f"{file} does not say its {name}, without which no slice has a place. Export it again."
            )
        return values

    direction = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    row, column = np.array(direction[:3]), np.array(direction[3:])
    unit = abs(np.linalg.norm(row) - 1) < 0.01 and abs(np.linalg.norm(column) - 1) < 0.01
    if not unit or abs(row @ column) > 0.01:
        raise NeonatalSegError(f"{file} has an ImageOrientationPatient that is no orientation. Export it again.")
    pixel = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    if min(pixel) <= 0:
        raise NeonatalSegError(f"{file} has a PixelSpacing of {pixel[0]:g} x {pixel[1]:g} mm. Export it again.")
    echo = look("MREchoSequence", "EffectiveEchoTime") or look("MRTimingAndRelatedParametersSequence", "EchoTime")
    title = _text(data.get("SeriesDescription"))
    kind = look("MRImageFrameTypeSequence", "FrameType") or data.get("ImageType")
    return Slice(
        file,
        number,
        f"{_text(data.get('SOPInstanceUID'))}/{number}",
        _text(data.get("SeriesInstanceUID")),
        title,
        numbers("PlanePositionSequence", "ImagePositionPatient", 3),  # type: ignore[arg-type]
        (int(data.Columns), int(data.Rows)),
        direction,
        pixel,  # type: ignore[arg-type]
        _text(echo),
        _text(kind),
        _text(data.get("FrameOfReferenceUID")),
        _text(data.get("PatientID")),
        _text(data.get("Modality")),
    )


def _only_one_series(slices: Sequence[Slice], path: Path) -> None:
    series = Counter(s.series for s in slices)
    if len(series) == 1:
        return
    titles = {s.series: s.title or "without a description" for s in slices}
    folders = {s.series: s.file.parent for s in slices}
    lines = [f"{titles[uid]} ({n} images in {folders[uid]})" for uid, n in series.most_common(6)]
    raise NeonatalSegError(
        f"The folder {path} holds {len(series)} DICOM series: expected one. Give the folder of one, or put each "
        f"in its own. They are: {'; '.join(lines)}."
    )


def _without_copies(slices: list[Slice], path: Path) -> tuple[list[Slice], list[str]]:
    """Each image once; a copy under another name goes where its voxels are the same."""
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.uid].append(one)
    kept, copies = [], 0
    for same in by_uid.values():
        first, *rest = same
        for other in rest:
            if other.position != first.position or not _same_voxels(first, other):
                raise NeonatalSegError(
                    f"{first.file} and {other.file} are different images with one SOPInstanceUID: one of them does not "
                    "belong here. Export the series again."
                )
        copies += len(rest)
        kept.append(first)
    return kept, [f"{path.name}: {copies} DICOM files were copies of others and were left out."] if copies else []


def _same_voxels(one: Slice, other: Slice) -> bool:
    first, second = _planes([one, other])
    return np.array_equal(first, second)


def _all_alike(slices: Sequence[Slice], field: str, text: str, path: Path) -> None:
    groups: list[tuple[Any, list[Slice]]] = []
    for one in slices:
        value = getattr(one, field)
        for known, members in groups:
            if known == value or (field in ("direction", "pixel") and np.allclose(known, value, atol=SAME_DIRECTION)):
                members.append(one)
                break
        else:
            groups.append((value, [one]))
    if len(groups) < 2:
        return
    groups.sort(key=lambda group: -len(group[1]))
    said = [f"{_shown(value)}: {len(members)} ({members[0].file.name} ...)" for value, members in groups[:4]]
    raise NeonatalSegError(
        f"The DICOM series in {path} holds {text}: expected one volume. Put each in a folder of its own. They are: "
        f"{'; '.join(said)}."
    )


def _in_order(slices: Sequence[Slice], path: Path) -> tuple[list[Slice], np.ndarray, list[str]]:
    """The slices by position along their normal, the step from one to the next in mm (LPS), and warnings."""
    direction = np.array(slices[0].direction)
    normal = np.cross(direction[:3], direction[3:])
    order = sorted(slices, key=lambda s: float(np.dot(normal, s.position)))
    places = np.array([s.position for s in order])
    along = places @ normal
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    twice = np.flatnonzero(gaps < STEP_TOLERANCE * max(usual, 1e-3))
    if twice.size:
        one, other = order[twice[0]], order[twice[0] + 1]
        raise NeonatalSegError(
            f"The DICOM series in {path} has {twice.size + 1} or more images at one place ({one.file.name} and "
            f"{other.file.name}): several volumes, such as echoes, repeats or time points. Put each in its own folder."
        )
    wrong = np.flatnonzero(np.abs(gaps - usual) > STEP_TOLERANCE * usual)
    if wrong.size:
        at = int(wrong[0])
        missing = round(float(gaps[wrong].sum() / usual)) - wrong.size
        raise NeonatalSegError(
            f"The DICOM series in {path} is not evenly spaced: {gaps[at]:.2f} mm between {order[at].file.name} and "
            f"{order[at + 1].file.name}, {usual:.2f} mm elsewhere ({max(missing, 1)} or so slices are missing). "
            "Export the whole series again."
        )
    step = (places[-1] - places[0]) / (len(order) - 1)
    line = places[0] + np.arange(len(order))[:, None] * step
    if np.abs(places - line).max() > STEP_TOLERANCE * usual:
        raise NeonatalSegError(
            f"The slices of the DICOM series in {path} do not lie on a straight line: export it again."
        )
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step))))))
    if tilt > MAX_SHEAR_DEGREES:
        raise NeonatalSegError(f"The slices of the DICOM series in {path} are stacked askew by {tilt:.0f} degrees.")
    text = f"{path.name}: the slices are stacked askew by {tilt:.1f} degrees (gantry tilt); the volume is read so."
    return order, step, [text] if tilt > SHEAR_DEGREES else []


def _planes(slices: Sequence[Slice]) -> list[np.ndarray]:
    """Voxels (rows, columns) of each slice in the scanner's units; a file of many frames is read once."""
    whole: dict[Path, np.ndarray] = {}
    planes = []
    for one in slices:
        if one.file not in whole:
            if len(whole) > 1:
                whole.clear()  # most files hold one slice
            try:
                whole[one.file] = sitk.GetArrayFromImage(sitk.ReadImage(str(one.file), imageIO="GDCMImageIO"))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise NeonatalSegError(
                    f"The voxels of {one.file} could not be read ({reason}). Copy it again."
                ) from error
        array = whole[one.file]
        array = array.reshape(-1, *array.shape[-2:])
        if one.number >= len(array) or array.shape[-2:] != one.size[::-1]:
            raise NeonatalSegError(f"{one.file} holds another image than its tags say. Export the series again.")
        planes.append(array[one.number])
    return planes


def _text(value: Any) -> str:
    """A tag's value as text; several values with a slash between."""
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    try:
        return "/".join(str(v) for v in value)
    except TypeError:
        return str(value)


def _shown(value: Any) -> str:
    return " x ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value) or "none"
