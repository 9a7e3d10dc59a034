"""Where the voxels of a NIfTI file lie: its qform and its sform, judged together; and both written back.

A file says its position up to twice. Readers choose differently where the two disagree, so that a label map written
with one of them lies beside its scan in half of all viewers. Here the scan's own two forms go into what is written on
its grid, whichever of them was used for computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.nifti import Header

SHEAR = 1e-3  # cosine between two axes above which they are not perpendicular
MAX_SHEAR_DEGREES = 30.0
DISAGREEMENT_VOXELS = 0.5  # of the farthest corner under the two forms, in the smallest voxel edge
TEMPLATE_CODES = (3, 4, 5)  # the space of an atlas: distances there need not be the newborn's own
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TO_RAS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Forms:
    """Both positions of a NIfTI file as its header has them, for what is written on the same grid.

    Attributes:
        pixdim: numbers 0 to 3. units: the header's mm per unit of length.
    """

    pixdim: tuple[float, ...]
    qform_code: int
    sform_code: int
    quatern: tuple[float, ...]
    qoffset: tuple[float, ...]
    srow: tuple[float, ...]
    mm: float = 1.0

    @classmethod
    def of(cls, header: Header) -> Forms:
        numbers = (header.pixdim[:4], header.quatern, header.qoffset, header.srow)
        pixdim, quatern, qoffset, srow = (tuple(float(v) for v in n.ravel()) for n in numbers)
        return cls(pixdim, header.qform_code, header.sform_code, quatern, qoffset, srow, header.mm)


@dataclass(frozen=True)
class Placement:
    """Where an image lies.

    Attributes:
        grid: the position that is used.
        others: the file's other position, where it disagrees.
        warnings: in words.
    """

    grid: Grid
    others: tuple[Grid, ...] = ()
    warnings: tuple[str, ...] = ()


def place(header: Header, what: str, orientation: str | None = None) -> Placement:
    """Decide where the voxels lie: a straight form before a sheared one, the scanner's space before an atlas's, then
    the sform before the qform.

    Args:
        what: the file, for errors and warnings.
        orientation: such as "RAS", for a file that does not say; see :func:`check_orientation`.

    Raises:
        NeonatalSegError: no spacing, no orientation, or one that cannot be.
    """
    spacing = header.pixdim[1:4] * header.mm
    size = (*header.size, 1, 1)[:3]
    for axis in range(min(3, len(header.size))):
        if not (np.isfinite(spacing[axis]) and spacing[axis] > 0):
            raise NeonatalSegError(
                f"{what} does not say its voxel spacing (pixdim[{axis + 1}] is {header.pixdim[axis + 1]:g}): expected "
                "mm. Convert it again from the original, or correct the header."
            )
    spacing = np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)  # of axes that a picture does not have
    coded = {"sform": header.sform_code, "qform": header.qform_code}
    found = {"sform": sform_matrix(header), "qform": qform_matrix(header)}
    usable = {name: m for name in found if coded[name] > 0 and (m := found[name]) is not None}
    broken = [name for name in found if coded[name] > 0 and name not in usable]
    warnings = [f"{what} has an unusable {name}, which was left out." for name in broken]
    if not usable:
        if orientation is None:
            raise NeonatalSegError(_no_orientation(what, bool(broken)))
        warnings.append(f"{what} does not say how it is oriented: {orientation} was given and used.")
        return Placement(assumed_grid(size, spacing.tolist(), orientation), (), tuple(warnings))

    def rank(name: str) -> tuple[bool, bool]:
        return shear_degrees(usable[name]) > 0, coded[name] in TEMPLATE_CODES

    used, *rest = sorted(usable, key=rank)  # stable: the sform comes first
    grids = {name: grid_of_matrix(size, matrix) for name, matrix in usable.items()}
    if (degrees := shear_degrees(usable[used])) > 0:
        if degrees > MAX_SHEAR_DEGREES:
            raise NeonatalSegError(
                f"{what} has voxel axes that are {degrees:.0f} degrees from perpendicular: its {used} is damaged, or "
                "no position of a scan. Correct the header or convert the scan again."
            )
        warnings.append(f"{what}: the voxel axes are not perpendicular (by {degrees:.1f} degrees, {used}).")
    others = tuple(grids[name] for name in rest if _apart_mm(grids[used], grids[name]) > 0)
    for name in rest:
        if (apart := _apart_mm(grids[used], grids[name])) > 0:
            warnings.append(
                f"{what}: qform and sform disagree by up to {apart:.0f} mm. The {used} was used for distances; the "
                "label map carries both, so that it lies on the scan in every viewer. Check left and right."
            )
    edges = np.asarray(grids[used].spacing_mm)
    if not others and (np.abs(edges / spacing - 1) > 0.02)[: len(header.size)].any():
        texts = [" x ".join(f"{v:.3g}" for v in values) for values in (spacing, edges)]
        warnings.append(f"{what}: pixdim gives voxels of {texts[0]} mm, its {used} {texts[1]} mm, which was used.")
    return Placement(grids[used], others, tuple(warnings))


def check_orientation(text: str) -> str:
    """Three letters, to where the first, second and third voxel axis run: "RAS" is right, front (anterior), up.

    Raises:
        NeonatalSegError: not one of R/L, A/P and S/I each.
    """
    letters = text.strip().upper()
    if len(letters) != 3 or sorted(TO_RAS.get(c, (9, 0))[0] for c in letters) != [0, 1, 2]:
        raise NeonatalSegError(
            f"{text!r} is not an orientation: expected three letters, one each of R or L, A or P, S or I, such as RAS "
            "(voxels run to the right, to the front and upwards)."
        )
    return letters


def assumed_grid(size: tuple[int, ...], spacing_mm: Sequence[float], orientation: str) -> Grid:
    """A grid around the origin whose axes run as the letters say (:func:`check_orientation`)."""
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for column, letter in enumerate(check_orientation(orientation)):
        row, sign = TO_RAS[letter]
        matrix[row, column] = sign * spacing_mm[column]
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.asarray(size[:3]) - 1) / 2)
    return grid_of_matrix(size, matrix)


def sform_matrix(header: Header) -> np.ndarray | None:
    """Voxel index to RAS mm, 4 x 4, or None where it is no position."""
    return _sound(np.vstack([header.srow * header.mm, [0, 0, 0, 1]]))


def qform_matrix(header: Header) -> np.ndarray | None:
    """The same of the qform: a rotation from a quaternion."""
    b, c, d = header.quatern
    squares = float(b * b + c * c + d * d)
    if not np.isfinite(squares) or squares > 1.01:
        return None
    if squares > 1:
        b, c, d = np.array([b, c, d]) / np.sqrt(squares)
    a = np.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    edges = header.pixdim[1:4] * header.mm * (1, 1, -1 if header.pixdim[0] < 0 else 1)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation * edges, header.qoffset * header.mm
    return _sound(matrix)


def shear_degrees(matrix: np.ndarray) -> float:
    """How far two voxel axes are from perpendicular at most; 0 where it is rounding."""
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    return float(np.degrees(np.arcsin(min(1.0, cosine)))) if cosine > SHEAR else 0.0


def grid_of_matrix(size: tuple[int, ...], matrix: np.ndarray) -> Grid:
    """The grid of ``size`` voxels whose index goes to RAS mm by ``matrix`` (4 x 4)."""
    lps = RAS_TO_LPS @ matrix
    edges = np.linalg.norm(lps[:3, :3], axis=0)
    direction = tuple(float(v) for v in (lps[:3, :3] / edges).ravel())
    x, y, z = (int(n) for n in size[:3])
    spacing, origin = (tuple(float(v) for v in values) for values in (edges, lps[:3, 3]))
    return Grid((x, y, z), spacing, origin, direction)  # type: ignore[arg-type]


def _sound(matrix: np.ndarray) -> np.ndarray | None:
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    good = np.isfinite(matrix).all() and np.abs(matrix).max() < 1e6 and edges.min() > 1e-3
    return matrix if good and abs(np.linalg.det(matrix[:3, :3] / edges)) > 1e-3 else None


def _apart_mm(one: Grid, other: Grid) -> float:
    """Distance of the corner that lies farthest from its partner; 0 where that is rounding."""
    apart = float(np.linalg.norm(one.corners_mm() - other.corners_mm(), axis=1).max())
    return apart if apart > DISAGREEMENT_VOXELS * min(one.spacing_mm) else 0.0


def _no_orientation(what: str, damaged: bool) -> str:
    reason = "its qform and sform are unusable" if damaged else "qform_code and sform_code are 0"
    return (
        f"{what} does not say how it is oriented ({reason}), so that left and right are unknown. Convert it again from "
        "the original (DICOM), or, where you know it, give --assume-orientation with three letters, such as RAS."
    )


def quaternion(direction: np.ndarray) -> tuple[np.ndarray, float]:
    """(b, c, d) and the handedness (1 or -1) of a 3 x 3 matrix with perpendicular unit columns (RAS).

    The eigenvector of Bar-Itzhack (Journal of Guidance, Control, and Dynamics, 2000): stable for every rotation.
    """
    handed = 1.0 if np.linalg.det(direction) > 0 else -1.0
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = direction * (1, 1, handed)
    k = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [xy + yx, yy - xx - zz, 0, 0],
            [xz + zx, yz + zy, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    b, c, d, a = np.linalg.eigh(k)[1][:, -1]  # eigh reads the lower triangle
    return np.array([b, c, d]) * (1 if a >= 0 else -1), handed
