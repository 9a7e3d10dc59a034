"""The front door: one newborn's T1 and T2 as images in physical space, checked when they come in.

Example:
    >>> scan = load_scan(t1="sub-01_T1w.nii.gz", t2="sub-01_T2w.nii.gz", age_weeks=40.3)  # doctest: +SKIP
    >>> scan.reference.GetSpacing()  # doctest: +SKIP
    (0.8, 0.8, 0.8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_name, safe_name
from NeonatalSegLib.scans.nifti import broken_voxels

FORMATS = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder with one DICOM series"
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
SPACING_RANGE_MM = (0.1, 12.0)
MIN_EXTENT_MM = 20.0
MAX_BROKEN_SHARE = 0.01  # of voxels that are NaN or infinite: fewer are cleaned, more are refused


@dataclass(frozen=True)
class Scan:
    """One newborn at one session.

    Attributes:
        t1, t2: 3D float32 images, finite everywhere; at least one is present.
        name: used for file names.
        age_weeks: post-menstrual age at scan, or None where unknown.
        warnings: what was mended or looked odd when the scan came in.
        sources: modality ("t1", "t2") to the path or node that it came from.
    """

    t1: sitk.Image | None
    t2: sitk.Image | None
    name: str
    age_weeks: float | None = None
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> sitk.Image:
        """The image on whose grid results lie: T2 where there is one, else T1."""
        image = self.t2 if self.t2 is not None else self.t1
        assert image is not None  # make_scan refuses a scan without images
        return image


def load_scan(
    t1: str | Path | None = None,
    t2: str | Path | None = None,
    *,
    name: str | None = None,
    age_weeks: float | None = None,
) -> Scan:
    """Read a newborn's T1, T2 or both from files or DICOM folders.

    Raises:
        NeonatalSegError: neither is given, a file is missing or unreadable, an image is not a usable 3D scan, or the
            name cannot be a file's.
    """
    paths = {key: Path(p) for key, p in (("t1", t1), ("t2", t2)) if p is not None}
    if name is None:
        name = scan_name(next(iter(reversed(paths.values())))) if paths else "scan"
    check_name(name, "scan")
    images = {key: read_image(path) for key, path in paths.items()}
    sources = {key: str(path) for key, path in paths.items()}
    return make_scan(images.get("t1"), images.get("t2"), name=name, age_weeks=age_weeks, sources=sources)


def make_scan(
    t1: sitk.Image | None = None,
    t2: sitk.Image | None = None,
    *,
    name: str = "scan",
    age_weeks: float | None = None,
    sources: Mapping[str, str] | None = None,
) -> Scan:
    """Build a Scan from images in memory; every image is checked (see :func:`check_image`).

    Raises:
        NeonatalSegError: no image, an unusable image, or an age outside 20-60 weeks.
    """
    if t1 is None and t2 is None:
        raise NeonatalSegError("No scan was given: expected a T1, a T2 or both.")
    if age_weeks is not None and not 20 <= age_weeks <= 60:
        raise NeonatalSegError(
            f"The age of {age_weeks} weeks cannot be a newborn's post-menstrual age: expected weeks between 20 and 60."
        )
    sources = dict(sources or {})
    warnings: list[str] = []
    checked: dict[str, sitk.Image | None] = {}
    for key, image in (("t1", t1), ("t2", t2)):
        if image is None:
            checked[key] = None
            continue
        checked[key], found = check_image(image, f"{key.upper()} ({sources[key]})" if key in sources else key.upper())
        warnings += found
    return Scan(checked["t1"], checked["t2"], name, age_weeks, tuple(warnings), sources)


def scan_name(path: Path) -> str:
    """A scan's name from its file's: without image suffix and modality, ``sub-01_T2w.nii.gz`` gives ``sub-01``.

    Signs that a file's name should not have become underscores.
    """
    name = path.name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    for modality in ("_T1w", "_T2w", "_T1", "_T2", "-T1", "-T2"):
        if name.lower().endswith(modality.lower()) and len(name) > len(modality):
            name = name[: -len(modality)]
            break
    return safe_name(name)


def read_image(path: str | Path) -> sitk.Image:
    """Read one image as it is stored, or one DICOM series from a folder.

    Raises:
        NeonatalSegError: the path is missing, not an image, truncated, or holds no or several DICOM series.
    """
    path = Path(path)
    if not path.exists():
        raise NeonatalSegError(f"There is no file or folder at {path}: check the path.")
    if path.is_dir():
        return _read_dicom(path)
    if path.stat().st_size == 0:
        raise NeonatalSegError(f"{path} is empty: expected {FORMATS}. Copy the file again.")
    broken = broken_voxels(path) if path.name.lower().endswith((".nii", ".nii.gz")) else None
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise NeonatalSegError(f"{path} could not be read as an image: expected {FORMATS}.") from error
    if broken is not None:
        array = sitk.GetArrayFromImage(image)
        array.reshape(-1)[broken] = np.nan
        marked = sitk.GetImageFromArray(array)
        marked.CopyInformation(image)
        return marked
    return image


def check_image(image: sitk.Image, what: str) -> tuple[sitk.Image, list[str]]:
    """Return ``image`` as a finite 3D float32 image, and what had to be mended.

    Raises:
        NeonatalSegError: not 3D or not scalar; spacing or extent absurd; constant; more than 1 % NaN or infinite.
    """
    size = [s for s in image.GetSize()]
    if image.GetDimension() == 4 and size[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or min(image.GetSize()) < 2:
        shape = " x ".join(str(s) for s in size)
        raise NeonatalSegError(f"{what} has the size {shape}: expected one 3D volume with several slices.")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise NeonatalSegError(f"{what} has several values per voxel (a colour or vector image): expected a grey scan.")
    _check_spacing(image, what)
    array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    finite = np.isfinite(array)
    warnings: list[str] = []
    broken = array.size - int(np.count_nonzero(finite))
    if broken > MAX_BROKEN_SHARE * array.size:
        share = 100 * broken / array.size
        raise NeonatalSegError(
            f"{what}: {share:.1f} % of the voxels are NaN or infinite; at most 1 % can be cleaned. Export it again."
        )
    if broken:
        array = np.where(finite, array, 0.0).astype(np.float32)
        warnings.append(f"{what}: {broken} voxels were NaN or infinite and were set to 0.")
    if array.min() == array.max():
        raise NeonatalSegError(f"{what} holds one value only ({array.min():g}) in every voxel: there is no scan in it.")
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out, warnings


def _check_spacing(image: sitk.Image, what: str) -> None:
    spacing = image.GetSpacing()
    text = " x ".join(f"{s:g}" for s in spacing)
    if not all(SPACING_RANGE_MM[0] <= s <= SPACING_RANGE_MM[1] for s in spacing):
        raise NeonatalSegError(
            f"{what} has a voxel spacing of {text} mm: expected {SPACING_RANGE_MM[0]} to {SPACING_RANGE_MM[1]} mm. "
            "Correct the header (units other than mm are a common cause)."
        )
    extent = [n * s for n, s in zip(image.GetSize(), spacing, strict=True)]
    if min(extent) < MIN_EXTENT_MM:
        raise NeonatalSegError(
            f"{what} covers {' x '.join(f'{e:.0f}' for e in extent)} mm: too thin to hold a newborn's brain "
            f"(expected at least {MIN_EXTENT_MM:.0f} mm along every axis). Check spacing and field of view."
        )


def _read_dicom(folder: Path) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not series:
        raise NeonatalSegError(f"The folder {folder} holds no DICOM series: expected {FORMATS}.")
    if len(series) > 1:
        raise NeonatalSegError(
            f"The folder {folder} holds {len(series)} DICOM series: expected one. Put each series in its own folder."
        )
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    try:
        return sitk.ReadImage(files)
    except RuntimeError as error:
        raise NeonatalSegError(f"The DICOM series in {folder} could not be read: {error}") from error
