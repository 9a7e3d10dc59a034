"""The front door: one newborn's T1 and T2 as images in physical space, checked when they come in.

Example:
    >>> scan = load_scan(t1="sub-01_T1w.nii.gz", t2="sub-01_T2w.nii.gz", age_weeks=40.3)  # doctest: +SKIP
    >>> scan.reference.GetSpacing()  # doctest: +SKIP
    (0.8, 0.8, 0.8)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_name, safe_name
from NeonatalSegLib.scans.contrast import contrast_warnings
from NeonatalSegLib.scans.placement import Forms
from NeonatalSegLib.scans.read import IMAGE_SUFFIXES, content_hash, read_image

SPACING_RANGE_MM = (0.1, 12.0)
MIN_EXTENT_MM = 20.0
MAX_BROKEN_SHARE = 0.01  # of voxels in the head that are NaN or infinite: fewer are cleaned, more are refused
MAX_VALUE = 1e12  # beyond any scanner's: damaged numbers, of which no mean can be taken
# A spike lies beyond the outer 0.1 % of the values by more than this many times what lies between them.
SPIKE_RANGES = 2.0


@dataclass(frozen=True)
class Scan:
    """One newborn at one session.

    Attributes:
        t1, t2: 3D float32 images, finite everywhere; at least one is present.
        name: used for file names.
        age_weeks: post-menstrual age at scan, or None where unknown.
        warnings: what was mended or looked odd when the scan came in.
        sources: modality ("t1", "t2") to the path or node that it came from.
        contents: modality to the SHA-256 of what its file holds, where it came from one.
        forms: both positions in the reference image's NIfTI header, for what is written on its grid; else None.
    """

    t1: sitk.Image | None
    t2: sitk.Image | None
    name: str
    age_weeks: float | None = None
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    forms: Forms | None = None

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
    orientation: str | None = None,
) -> Scan:
    """Read a newborn's T1, T2 or both from files or DICOM folders.

    Args:
        orientation: such as "RAS", for files that do not say (``placement.check_orientation``).

    Raises:
        NeonatalSegError: neither is given, a file is missing or unreadable, an image is not a usable 3D scan, or the
            name cannot be a file's.
    """
    paths = {key: Path(p) for key, p in (("t1", t1), ("t2", t2)) if p is not None}
    if name is None:
        name = scan_name(next(iter(reversed(paths.values())))) if paths else "scan"
    check_name(name, "scan")
    files = {key: read_image(path, orientation) for key, path in paths.items()}
    images = {key: file.image for key, file in files.items()}
    scan = make_scan(
        images.get("t1"),
        images.get("t2"),
        name=name,
        age_weeks=age_weeks,
        sources={key: str(path) for key, path in paths.items()},
    )
    found = tuple(warning for file in files.values() for warning in file.warnings)
    contents = {key: content_hash(path) for key, path in paths.items()}
    forms = files["t2" if "t2" in files else "t1"].forms
    return replace(scan, warnings=found + scan.warnings, contents=contents, forms=forms)


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
        NeonatalSegError: no image, an unusable image, the same one twice, or an age outside 20-60 weeks.
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
        if key in sources:  # a warning is kept and sent on with the result: the file's name is enough
            found = [text.replace(sources[key], Path(sources[key]).name) for text in found]
        warnings += found
    _refuse_twice_the_same(checked["t1"], checked["t2"], sources)
    warnings += contrast_warnings(checked["t1"], checked["t2"])
    return Scan(checked["t1"], checked["t2"], name, age_weeks, tuple(warnings), sources)


def _refuse_twice_the_same(t1: sitk.Image | None, t2: sitk.Image | None, sources: Mapping[str, str]) -> None:
    """They would agree perfectly, and the network would take the one for the other without a doubt."""
    if t1 is None or t2 is None or t1.GetSize() != t2.GetSize():
        return
    if np.array_equal(sitk.GetArrayViewFromImage(t1), sitk.GetArrayViewFromImage(t2)):
        named = f" ({sources['t1']} and {sources['t2']})" if {"t1", "t2"} <= set(sources) else ""
        raise NeonatalSegError(
            f"The same image was given as T1 and as T2{named}: expected two scans of one newborn. Give it once, as "
            "what it is, and leave the other out."
        )


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


def check_image(image: sitk.Image, what: str) -> tuple[sitk.Image, list[str]]:
    """Return ``image`` as a finite 3D float32 image, and what had to be mended.

    Raises:
        NeonatalSegError: not 3D or not scalar; spacing or extent absurd; constant; more than 1 % of the head broken.
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
    with np.errstate(over="ignore"):
        array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    array, warnings = _without_broken(array, what)
    if array.min() == array.max():
        raise NeonatalSegError(f"{what} holds one value only ({array.min():g}) in every voxel: there is no scan in it.")
    warnings += _clip_spikes(array, what)
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    return out, warnings


def _without_broken(array: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """The array with what is NaN, infinite or absurd made as dark as the darkest voxel, and warnings.

    What hangs together with the edge of the image is taken for what lies outside a masked head.
    """
    broken = ~(np.abs(array) <= MAX_VALUE)
    count = int(np.count_nonzero(broken))
    if count == 0:
        return array, []
    if count == array.size:
        raise NeonatalSegError(
            f"{what}: all voxels are NaN, infinite or beyond {MAX_VALUE:g}: there is no scan in it. Export it again."
        )
    outside = _touching_the_edge(broken) if count > MAX_BROKEN_SHARE * array.size else np.zeros_like(broken)
    inside = count - int(np.count_nonzero(outside))
    rest = array.size - count + inside
    if inside > MAX_BROKEN_SHARE * rest:
        raise NeonatalSegError(
            f"{what}: {100 * inside / rest:.1f} % of the voxels of the head are NaN or infinite; at most 1 % can be "
            "cleaned. Export it again."
        )
    warnings = []
    if count > inside:
        share = 100 * (count - inside) / array.size
        warnings.append(f"{what}: {share:.0f} % of the voxels, around the rest, are NaN: taken for background.")
    if inside:
        warnings.append(f"{what}: {inside} voxels were NaN or infinite and were made dark.")
    return np.where(broken, array[~broken].min(), array).astype(np.float32), warnings


def _touching_the_edge(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask that reach one of the six faces of the array."""
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8))))
    faces = [np.unique(np.take(parts, end, axis)) for axis in range(3) for end in (0, -1)]
    return mask & np.isin(parts, np.unique(np.concatenate(faces)))


def _clip_spikes(array: np.ndarray, what: str) -> list[str]:
    """Clip in place the few voxels far beyond all others, which would set every histogram; a warning where any."""
    values = array.ravel()[:: max(1, array.size // 1_000_000)]
    values = values[values > array.min()]
    if values.size < 1000:
        return []
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9)))
    reach = SPIKE_RANGES * (high - low)
    least, most = min(low - reach, 0.0), high + reach
    spikes = int(np.count_nonzero((array > most) | (array < least)))
    if spikes == 0 or reach <= 0:
        return []
    np.clip(array, least, most, out=array)
    return [f"{what}: {spikes} voxels lie far outside the values of all others (spikes) and were clipped."]


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
