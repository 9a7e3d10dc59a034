"""The gate: every image file that comes in is opened here, whatever the door, and what is doubtful is said.

What is accepted, warned of and refused stands in docs/inputs.md.

Example:
    >>> found = read_image("sub-01_T2w.nii.gz")  # doctest: +SKIP
    >>> found.image.GetSpacing(), found.warnings  # doctest: +SKIP
    ((0.8, 0.8, 0.8), ())
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.names import check_path, shown
from NeonatalSegLib.scans import dicom, nifti
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.placement import Forms, assumed_grid, place

FORMATS = (
    "NIfTI (.nii, .nii.gz, .hdr with .img), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder with one DICOM "
    "series"
)
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img")
TEXT_BYTES = 65536  # of the header of a NRRD or MetaImage file
# NRRD's names of the directions in which positions are given; the others do not say where left is.
NRRD_SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")


@dataclass(frozen=True)
class ImageFile:
    """One image as its file has it.

    Attributes:
        image: voxels as stored or scaled, of whatever type, NaN where the file has it; 3D, or 4D where the file is.
        warnings: in words.
        forms: both positions of a NIfTI file, for what is written on the same grid; else None.
        other_grids: the file's other position, where two disagree.
    """

    image: sitk.Image
    warnings: tuple[str, ...] = ()
    forms: Forms | None = None
    other_grids: tuple[Grid, ...] = ()


def read_image(path: str | Path, orientation: str | None = None) -> ImageFile:
    """Open one image file, or the DICOM series in a folder; the content decides what it is, not the name.

    Args:
        orientation: such as "RAS", used where a file does not say; see ``placement.check_orientation``.

    Raises:
        NeonatalSegError: missing, no image, truncated, of unknown orientation, or no single DICOM series.
    """
    path, kind = _kind(path)
    if kind == "dicom":
        image, warnings = dicom.read_series(path)
        return ImageFile(image, warnings)
    if kind == "nifti":
        found = nifti.read_voxels(path)
        where = place(found.header, path.name, orientation)
        said = found.header.qform_code > 0 or found.header.sform_code > 0
        forms = Forms.of(found.header) if said else None
        return ImageFile(_image(found.array, where.grid), (*found.warnings, *where.warnings), forms, where.others)
    reader = _itk_reader(path, kind)
    unknown = _why_no_orientation(path, kind)
    if unknown and orientation is None:
        raise NeonatalSegError(
            f"{path} does not say how it is oriented ({unknown}), so that left and right are unknown. Export it again "
            "with its position, or, where you know it, give --assume-orientation with three letters, such as RAS."
        )
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise NeonatalSegError(
            f"{path} could not be read ({_last_line(error)}): it is truncated or damaged. Copy it again."
        ) from error
    if not unknown:
        return ImageFile(image)
    grid = assumed_grid(image.GetSize(), image.GetSpacing(), orientation or "")
    text = f"{path.name} does not say how it is oriented: {orientation} was given and used."
    return ImageFile(_image(sitk.GetArrayFromImage(image), grid), (text,))


def is_dicom(path: str | Path) -> bool:
    """True for a DICOM file and for a folder, which is read as one DICOM series; raises as :func:`read_image`."""
    return _kind(path)[1] == "dicom"


def read_grid(path: str | Path) -> Grid:
    """The grid of an image, from its header alone where the format allows; a file of one volume in 4D counts as 3D.

    Raises:
        NeonatalSegError: as :func:`read_image`.
    """
    return read_positions(path)[0][0]


def read_positions(path: str | Path) -> tuple[tuple[Grid, ...], Forms | None]:
    """As :func:`read_grid`, and after it the file's other position, where two disagree; both forms of a NIfTI file.

    Raises:
        NeonatalSegError: as :func:`read_image`.
    """
    path, kind = _kind(path)
    if kind == "nifti":
        header = nifti.read_header(path)
        where = place(header, path.name)
        return (where.grid, *where.others), Forms.of(header)
    if kind == "dicom":
        return (dicom.find_series(path).grid(),), None
    reader = _itk_reader(path, kind)
    n = reader.GetDimension()
    direction = np.asarray(reader.GetDirection()).reshape(n, n)[:3, :3]
    x, y, z = (int(s) for s in (*reader.GetSize(), 1)[:3])
    return (Grid((x, y, z), reader.GetSpacing()[:3], reader.GetOrigin()[:3], tuple(direction.ravel().tolist())),), None


def content_hash(path: str | Path) -> str:
    """SHA-256 of what an image holds: of its file, of both files of a pair, of all files of a DICOM folder.

    Raises:
        NeonatalSegError: it cannot be read.
    """
    path = check_path(path)
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        elif path.suffix.lower() in (".hdr", ".img", ".nhdr", ".mhd"):  # the voxels lie in a file beside it
            stem = path.name.split(".")[0]
            files = sorted(p for p in path.parent.iterdir() if p.is_file() and p.name.split(".")[0] == stem)
        else:
            files = [path]
        for file in files:
            digest.update(f"{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(nifti.CHUNK):
                    digest.update(block)
    except OSError as error:
        raise NeonatalSegError(f"{shown(path)} could not be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def header_warnings(path: str | Path) -> tuple[str, ...]:
    """What :func:`read_image` would say as far as the header shows it: for volumes that others have read."""
    try:
        path, kind = _kind(path)
        if kind == "nifti":
            return place(nifti.read_header(path), path.name).warnings
        if kind in ("nrrd", "meta") and (unknown := _why_no_orientation(path, kind)):
            return (f"{path.name} does not say how it is oriented ({unknown}): left and right are a guess.",)
    except NeonatalSegError as error:
        return (str(error),)
    return ()


def _kind(path: str | Path) -> tuple[Path, str]:
    """What a path is by its content: "nifti", "nrrd", "meta" or "dicom"."""
    path = check_path(path)
    try:
        if not path.exists():
            raise NeonatalSegError(f"There is no file or folder at {path}: check the path.")
        if path.is_dir():
            return path, "dicom"
        if not path.is_file():
            raise NeonatalSegError(f"{path} is neither a file nor a folder: expected {FORMATS}.")
        if path.stat().st_size == 0:
            raise NeonatalSegError(f"{path} is empty: expected {FORMATS}. Copy the file again.")
    except OSError as error:
        raise NeonatalSegError(f"{path} could not be read: {error.strerror or error}.") from error
    if path.suffix.lower() in (".hdr", ".img"):
        return path, "nifti"
    start = nifti.start_of(path, 4096)
    if nifti.is_nifti(start):
        return path, "nifti"
    if start.startswith(b"NRRD"):
        return path, "nrrd"
    if b"=" in start.split(b"\n")[0] and b"DimSize" in start:
        return path, "meta"
    if start[128:132] == b"DICM":
        return path, "dicom"
    raise NeonatalSegError(f"{path} could not be read as an image: expected {FORMATS}.")


def _image(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Voxels (..., z, y, x) as an image; axes after the third of length 1 are dropped."""
    while array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim <= 3:
        return grid.image(array.reshape((1,) * (3 - array.ndim) + array.shape))
    if array.ndim == 4:
        return sitk.JoinSeries([grid.image(volume) for volume in array])
    size = " x ".join(str(n) for n in array.shape[::-1])
    raise NeonatalSegError(f"The image has the size {size}: expected one 3D volume with several slices.")


def _itk_reader(path: Path, kind: str) -> sitk.ImageFileReader:
    """A reader that knows the header; told by name which format it is, so that it looks at no other file."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO({"nrrd": "NrrdImageIO", "meta": "MetaImageIO"}[kind])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise NeonatalSegError(
            f"{path} could not be read as an image ({_last_line(error)}): expected {FORMATS}."
        ) from error
    if int(np.prod(reader.GetSize(), dtype=object)) * 8 > 4 * nifti.MAX_BYTES:
        size = " x ".join(str(n) for n in reader.GetSize())
        raise NeonatalSegError(f"{path} says that it has the size {size}, far more than a newborn's scan has.")
    return reader


def _why_no_orientation(path: Path, kind: str) -> str:
    """What a NRRD or MetaImage header lacks to say where left is; empty where it lacks nothing."""
    with path.open("rb") as stream:
        text = stream.read(TEXT_BYTES)
    if kind == "nrrd":
        fields = dict(
            _field(line, b":") for line in text.replace(b"\r", b"").split(b"\n\n")[0].splitlines() if b": " in line
        )
        if not fields.get("space", "").lower().startswith(NRRD_SPACES):
            return f"its space is {fields['space']}" if "space" in fields else "it has no field 'space'"
        return "" if "space directions" in fields else "it has no field 'space directions'"
    fields = dict(_field(line, b"=") for line in text.split(b"ElementDataFile")[0].splitlines() if b"=" in line)
    known = {"transformmatrix", "rotation", "orientation"} & fields.keys()
    if not known:
        return "it has no TransformMatrix"
    if not {"elementspacing", "elementsize"} & fields.keys():
        raise NeonatalSegError(f"{path} does not say its voxel spacing (ElementSpacing): expected mm. Export it again.")
    return ""


def _field(line: bytes, sign: bytes) -> tuple[str, str]:
    name, value = line.split(sign, 1)
    return name.decode("latin-1").strip().lower(), value.decode("latin-1").strip()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
