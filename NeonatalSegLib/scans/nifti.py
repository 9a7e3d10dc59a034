"""What SimpleITK's NIfTI reader hides: missing spacing (it says 1 mm), missing data (zeros), NaN and infinity (zeros).

Read from the file's own bytes after the NIfTI-1 and NIfTI-2 standards (https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError

# code -> numpy type of the voxels; types that are not a grey image (RGB, complex, 128 bit) are left to SimpleITK.
VOXEL_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


@dataclass(frozen=True)
class _Header:
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    dtype: np.dtype
    offset: int


def broken_voxels(path: Path) -> np.ndarray | None:
    """Where a NIfTI file holds NaN or infinity: a flat bool array in storage order (x fastest), or None for nowhere.

    Raises:
        NeonatalSegError: truncated or no gzip, spacing missing, or fewer voxels than the header promises.
    """
    data = _bytes_of(path)
    header = _header_of(data)
    if header is None:  # not a single-file NIfTI of a grey image: SimpleITK decides what it is
        return None
    for axis, spacing in enumerate(header.spacing[:3]):
        if not (np.isfinite(spacing) and spacing > 0):
            raise NeonatalSegError(
                f"{path} does not say its voxel spacing (pixdim[{axis + 1}] is {spacing:g}): expected mm. "
                "Convert it again from the original, or correct the header."
            )
    count = int(np.prod(header.size, dtype=np.int64))
    if len(data) - header.offset < count * header.dtype.itemsize:
        raise NeonatalSegError(f"{path} is truncated: it holds fewer voxels than its header says. Copy it again.")
    if header.dtype.kind != "f":
        return None
    values = np.frombuffer(data, header.dtype, count, header.offset)
    broken = ~np.isfinite(values)
    return broken if broken.any() else None


def is_whole(path: Path) -> bool:
    """True where a NIfTI file that was just written holds as many voxels as its header says.

    ITK does not always notice that the disk was full. Read in pieces: a map of all probabilities is large.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(1024)
            header = _header_of(start)
            length = len(start)
            while piece := stream.read(1 << 22):
                length += len(piece)
    except (EOFError, zlib.error, OSError):
        return False
    if header is None:
        return False
    return length >= header.offset + int(np.prod(header.size, dtype=np.int64)) * header.dtype.itemsize


def _bytes_of(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise NeonatalSegError(f"{path} is truncated or not a gzip file ({error}): copy it again.") from error
    except OSError as error:
        raise NeonatalSegError(f"{path} could not be read: {error.strerror or error}.") from error


def _header_of(data: bytes) -> _Header | None:
    for order in "<>":
        length = np.frombuffer(data, f"{order}i4", 1)[0] if len(data) >= 4 else 0
        if length == 348 and data[344:347] == b"n+1":
            size = np.frombuffer(data, f"{order}i2", 8, 40)
            code = int(np.frombuffer(data, f"{order}i2", 1, 70)[0])
            spacing = np.frombuffer(data, f"{order}f4", 8, 76)
            offset = int(np.frombuffer(data, f"{order}f4", 1, 108)[0])
        elif length == 540 and len(data) >= 540:
            size = np.frombuffer(data, f"{order}i8", 8, 16)
            code = int(np.frombuffer(data, f"{order}i2", 1, 12)[0])
            spacing = np.frombuffer(data, f"{order}f8", 8, 104)
            offset = int(np.frombuffer(data, f"{order}i8", 1, 168)[0])
        else:
            continue
        dimensions = int(size[0])
        if code not in VOXEL_TYPES or not 1 <= dimensions <= 7:
            return None
        dtype = np.dtype(order + VOXEL_TYPES[code])
        return _Header(
            tuple(int(s) for s in size[1 : dimensions + 1]),
            tuple(float(s) for s in spacing[1 : dimensions + 1]),
            dtype,
            offset,
        )
    return None
