"""NIfTI files (NIfTI-1, NIfTI-2, pairs of .hdr and .img, gzip or not) read from their own bytes, and written.

The image libraries hide what decides whether a result is right: they open a file of a similar name beside the one that
was asked for, say 1 mm where no spacing is given, 0 for voxels that are missing, and choose silently between two
positions that disagree. So the header is read here, after the standards (https://nifti.nimh.nih.gov), and no more
voxels than it promises. What the header says about position is judged in ``scans/placement.py``.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError

# code -> numpy type of the voxels
VOXEL_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
VOXEL_TYPES |= {1024: "i8", 1280: "u8", 1792: "c16"}
COLOURS = (128, 2304)
MAX_BYTES = 1 << 31  # of the voxels of one image: a newborn's scan of 0.3 mm takes less
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metres, micrometres; anything else is mm
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"


def _layout(order: str, size: int) -> np.dtype:
    """The fields that matter of a header of 348 (NIfTI-1) or 540 bytes (NIfTI-2)."""
    names = ["datatype", "dim", "pixdim", "offset", "slope", "inter", "descrip", "qcode", "scode", "quatern", "qoffset"]
    names += ["srow", "units"]
    if size == 348:
        formats = ["i2", "8i2", "8f4", "f4", "f4", "f4", "S80", "i2", "i2", "3f4", "3f4", "(3,4)f4", "u1"]
        offsets = [70, 40, 76, 108, 112, 116, 148, 252, 254, 256, 268, 280, 123]
    else:
        formats = ["i2", "8i8", "8f8", "i8", "f8", "f8", "S80", "i4", "i4", "3f8", "3f8", "(3,4)f8", "i4"]
        offsets = [12, 16, 104, 168, 176, 184, 240, 344, 348, 352, 376, 400, 500]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size}).newbyteorder(order)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Header:
    """What a header says, numbers in the computer's own byte order.

    Attributes:
        size: voxels along every axis, as many as the header has.
        pixdim: the eight numbers; 1 to 3 are the spacing, 0 the handedness of the qform.
        qform_code, sform_code: 0 where that form says nothing.
        quatern, qoffset: of the qform. srow: (3, 4), of the sform.
        mm: millimetres per unit of length.
        note: the description.
    """

    dtype: np.dtype
    size: tuple[int, ...]
    pixdim: np.ndarray
    offset: int
    slope: float
    inter: float
    qform_code: int
    sform_code: int
    quatern: np.ndarray
    qoffset: np.ndarray
    srow: np.ndarray
    mm: float
    note: str

    @property
    def voxel_bytes(self) -> int:
        return int(np.prod(self.size, dtype=object)) * self.dtype.itemsize


def is_nifti(start: bytes) -> bool:
    """True where a file that begins so is a NIfTI or an Analyze header."""
    return _size_and_order(start)[0] > 0


def _size_and_order(start: bytes) -> tuple[int, str]:
    """Bytes of the header (0 where it is none) and numpy's sign for their order."""
    for size in (348, 540):
        if int.from_bytes(start[:4], "little") == size:
            return size, "<"
        if int.from_bytes(start[:4], "big") == size:
            return size, ">"
    return 0, "<"


def read_header(path: Path) -> Header:
    """The header of a NIfTI file, or of a pair by the name of either.

    Raises:
        NeonatalSegError: unreadable, or not the header of a grey image; the reason is the true one.
    """
    return parse_header(start_of(_pair(path)[0]), path)


def start_of(path: Path, length: int = 540) -> bytes:
    """The first bytes of a file, unpacked where it is gzip; NeonatalSegError where it cannot be read."""
    start = b""
    with _told(path):
        for piece in _pieces(path):
            start += piece
            if len(start) >= length:
                break
    return start[:length]


def parse_header(start: bytes, path: Path) -> Header:
    """The header that a file begins with; NeonatalSegError where it is not that of a grey image."""
    size, order = _size_and_order(start)
    if size == 0 or len(start) < size:
        raise NeonatalSegError(f"{path} could not be read: it is not a NIfTI file, or is truncated. Copy it again.")
    raw = np.frombuffer(start, _layout(order, size), 1)[0]
    dimensions, code = int(raw["dim"][0]), int(raw["datatype"])
    shape = tuple(int(n) for n in raw["dim"][1 : dimensions + 1]) if 1 <= dimensions <= 7 else ()
    if not shape or min(shape) < 1:
        raise NeonatalSegError(f"{path} has a damaged header (dim is {raw['dim'].tolist()}): copy or convert it again.")
    if code in COLOURS:
        raise NeonatalSegError(f"{path} has several values per voxel (a colour image): expected a grey scan.")
    if code not in VOXEL_TYPES:
        raise NeonatalSegError(f"{path} has voxels of the type {code}, which is not read: convert it to float32.")
    offset = float(raw["offset"])
    if not (np.isfinite(offset) and 0 <= offset <= MAX_BYTES):
        raise NeonatalSegError(f"{path} has a damaged header (vox_offset is {offset:g}): copy or convert it again.")
    magic = start[344:348] if size == 348 else start[4:8]
    coded = (int(raw["qcode"]), int(raw["scode"])) if magic[:1] == b"n" else (0, 0)  # Analyze: other things lie there
    with np.errstate(invalid="ignore", over="ignore"):
        pixdim, quatern, qoffset, srow = (raw[n].astype(np.float64) for n in ("pixdim", "quatern", "qoffset", "srow"))
    return Header(
        np.dtype(order + VOXEL_TYPES[code]),
        shape,
        pixdim,
        int(offset),
        float(raw["slope"]) if magic[:1] == b"n" else 1.0,
        float(raw["inter"]) if magic[:1] == b"n" else 0.0,
        *coded,
        quatern,
        qoffset,
        srow,
        MM_PER_UNIT.get(int(raw["units"]) & 7, 1.0),
        bytes(raw["descrip"]).split(b"\0")[0].decode("utf-8", "replace"),
    )


@dataclass(frozen=True)
class Voxels:
    """What a file holds: grey values (..., z, y, x), its header, and warnings in words."""

    array: np.ndarray
    header: Header
    warnings: tuple[str, ...]


def read_voxels(path: Path) -> Voxels:
    """The voxels as stored, or scaled as the header says; complex ones give their magnitude.

    Raises:
        NeonatalSegError: as :func:`read_header`, truncated, or larger than any newborn's scan.
    """
    header_file, voxel_file = _pair(path)
    header = read_header(path)
    if header.voxel_bytes > MAX_BYTES:
        size = " x ".join(str(n) for n in header.size)
        raise NeonatalSegError(f"{path} says that it has the size {size}, far more than a newborn's scan has.")
    # The voxels of a single file come after its header, wherever a damaged offset points.
    offset = header.offset if voxel_file != header_file else max(header.offset, 348)
    data = bytearray()
    with _told(voxel_file):
        for piece in _pieces(voxel_file):  # to the end, also when there is enough: the checksum comes last
            data += piece[: max(0, offset + header.voxel_bytes - len(data))]
    if len(data) < offset + header.voxel_bytes:
        raise NeonatalSegError(f"{voxel_file} is truncated: it holds fewer voxels than its header says. Copy it again.")
    stored = np.frombuffer(data, header.dtype, header.voxel_bytes // header.dtype.itemsize, offset)
    return _scaled(stored.astype(header.dtype.newbyteorder("="), copy=False).reshape(header.size[::-1]), header, path)


def _scaled(array: np.ndarray, header: Header, path: Path) -> Voxels:
    warnings = []
    if array.dtype.kind == "c":
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.abs(array)
        warnings.append(f"{path.name} holds complex voxels; their magnitude was used.")
    slope, inter = header.slope, header.inter
    if not (np.isfinite(slope) and np.isfinite(inter)):
        warnings.append(
            f"{path.name} does not say how its values are scaled (scl_slope is {slope:g}); taken as stored."
        )
    elif slope != 0 and (slope, inter) != (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):
            array = array * np.float64(slope) + np.float64(inter)
    return Voxels(array, header, tuple(warnings))


def is_whole(path: Path) -> bool:
    """True where a NIfTI file that was just written holds as many voxels as its header says."""
    try:
        header = read_header(path)
        with _told(path):
            length = sum(len(piece) for piece in _pieces(path))
    except NeonatalSegError:
        return False
    return length >= header.offset + header.voxel_bytes


def _pair(path: Path) -> tuple[Path, Path]:
    """The files with header and voxels: the same one, or the two of a pair, in whatever case their endings are."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path
    stem, upper = path.with_suffix(""), path.suffix.isupper()
    pair = tuple(stem.with_name(stem.name + (end.upper() if upper else end)) for end in (".hdr", ".img"))
    for one in pair:
        if not one.is_file():
            raise NeonatalSegError(f"{path} is half of a pair, and there is no {one.name} beside it: copy both files.")
    return pair  # type: ignore[return-value]


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes in pieces, unpacked where it is gzip whatever its name.

    Packed parts may follow each other; what else follows the last one does not belong to the content.
    """
    with path.open("rb") as stream:
        data = stream.read(CHUNK)
        if not data.startswith(GZIP):
            while data:
                yield data
                data = stream.read(CHUNK)
            return
        unpack = zlib.decompressobj(31)
        while True:
            data = data or stream.read(CHUNK)
            if unpack.eof:
                if not data.startswith(GZIP):
                    return
                unpack = zlib.decompressobj(31)
            piece = unpack.decompress(data, CHUNK)
            if not (piece or data or unpack.eof):
                raise EOFError("it ends within its packed data")
            data = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
            yield piece


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read, in words."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise NeonatalSegError(f"{path} is truncated or damaged ({error}): copy it again.") from error
    except MemoryError as error:
        raise NeonatalSegError(f"{path} does not fit into this computer's memory.") from error
    except OSError as error:
        raise NeonatalSegError(f"{path} could not be read: {error.strerror or error}.") from error
