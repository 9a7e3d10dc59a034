"""Images to files, whole or with an error: NIfTI with the position of its scan, other formats by SimpleITK.

ITK does not always notice that the disk was full, so whatever is written is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.files import atomic
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.nifti import VOXEL_TYPES, is_whole
from NeonatalSegLib.scans.placement import RAS_TO_LPS, Forms, quaternion, shear_degrees

HEADER_BYTES = 352  # of NIfTI-1 in one file, with the mark that nothing follows it
VECTOR_INTENT = 1007
HEADER = np.dtype(
    {
        "names": ["sizeof_hdr", "dim", "intent", "datatype", "bitpix", "pixdim", "offset", "slope", "units", "descrip"]
        + ["qcode", "scode", "quatern", "qoffset", "srow", "magic"],
        "formats": ["<i4", "8<i2", "<i2", "<i2", "<i2", "8<f4", "<f4", "<f4", "u1", "S80"]
        + ["<i2", "<i2", "3<f4", "3<f4", "12<f4", "S4"],
        "offsets": [0, 40, 68, 70, 72, 76, 108, 112, 123, 148, 252, 254, 256, 268, 280, 344],
        "itemsize": HEADER_BYTES,
    }
)


def write_image(image: sitk.Image, path: Path, *, forms: Forms | None = None, level: int = 4, note: str = "") -> None:
    """Write ``image`` whole, in the format that the name says.

    Args:
        path: NIfTI (``.nii``, ``.nii.gz``) or what SimpleITK knows.
        forms: qform, sform and their codes, of the scan on whose grid ``image`` lies, where that was a NIfTI file;
            else both say where ``image`` lies.
        level: of compression, 0 (none, other formats than NIfTI) to 9.
        note: kept in a NIfTI file's description, at most 79 characters.

    Raises:
        OSError: it could not be written, or not all of it.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        header, voxels = nifti_bytes(image, forms, note)
        with path.open("wb") as file, _packed(file, path, level) as stream:
            stream.write(header)
            stream.write(voxels)
        if not is_whole(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return
    try:
        sitk.WriteImage(image, str(path), useCompression=level > 0, compressionLevel=level or -1)
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error).strip().splitlines()[-1]) from error
    needed = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if level == 0 and path.stat().st_size < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if level > 0:
        check_whole(path)


def replace_image(image: sitk.Image, path: Path, *, forms: Forms | None = None, level: int = 4) -> None:
    """As :func:`write_image`, over a file that may be there: a reader or a kill finds the old one or the new one.

    Raises:
        OSError: it could not be written whole; what was there stays.
    """
    atomic.write_file(path, lambda part: write_image(image, part, forms=forms, level=level))


def check_whole(path: Path) -> None:
    """Read an image that was just written to its end, since size alone tells nothing of a packed one.

    Raises:
        OSError: it ends too early.
    """
    try:
        sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def nifti_bytes(image: sitk.Image, forms: Forms | None = None, note: str = "") -> tuple[bytes, memoryview]:
    """Header and voxels of a NIfTI-1 file; several values a voxel go where ITK has them, in the fifth dimension."""
    array = sitk.GetArrayViewFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1:
        array = np.moveaxis(array, -1, 0)
    codes = {np.dtype(name): code for code, name in VOXEL_TYPES.items()}
    header = np.zeros((), HEADER)
    header["sizeof_hdr"], header["magic"], header["offset"], header["slope"] = 348, b"n+1", HEADER_BYTES, 1
    header["dim"] = [5 if components > 1 else 3, *image.GetSize(), 1, components, 1, 1]
    header["intent"] = VECTOR_INTENT if components > 1 else 0
    header["datatype"], header["bitpix"] = codes[array.dtype], 8 * array.dtype.itemsize
    header["descrip"] = note.encode()[:79]
    found = forms or forms_of_grid(Grid.of(image))
    header["pixdim"] = [*found.pixdim, 1, 1, 1, 1]
    header["units"] = {1000.0: 1, 0.001: 3}.get(found.mm, 2)
    header["qcode"], header["scode"] = found.qform_code, found.sform_code
    header["quatern"], header["qoffset"], header["srow"] = found.quatern, found.qoffset, found.srow
    return header.tobytes(), np.ascontiguousarray(array).data.cast("B")


def forms_of_grid(grid: Grid) -> Forms:
    """Both positions of a grid, in the scanner's space; a sheared grid has no qform."""
    matrix = RAS_TO_LPS @ grid.matrix()
    edges = np.asarray(grid.spacing_mm)
    straight = shear_degrees(matrix) == 0
    quatern, handed = quaternion(matrix[:3, :3] / edges) if straight else (np.zeros(3), 1.0)
    rows = tuple(float(v) for v in matrix[:3].ravel())
    offset = tuple(float(v) for v in matrix[:3, 3])
    pixdim = (handed, *(float(e) for e in edges))
    return Forms(pixdim, int(straight), 1, tuple(float(v) for v in quatern), offset, rows)


def _packed(file: BinaryIO, path: Path, level: int) -> Any:
    """``file``, compressed where ``path`` says so; without name and time, so that equal images give equal bytes."""
    if path.suffix.lower() != ".gz":
        return contextlib.nullcontext(file)
    return gzip.GzipFile("", "wb", level, file, mtime=0)
