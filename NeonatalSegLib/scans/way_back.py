"""From the network's grid back to the scan's own: probabilities interpolated there, in numpy and SimpleITK alone.

What is interpolated are class probabilities, not labels. Where all eight voxels around a point hold the same most
probable class, so does every mixture of them: only the points near a border of two tissues, about a tenth, are
computed, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid

BORDER = 255  # of a cell of eight voxels whose labels differ
BLOCK_VOXELS = 4_000_000  # of the scan at a time
POINTS = 200_000  # interpolated at a time


def most_probable(probabilities: np.ndarray) -> np.ndarray:
    """(classes, ...) to (...) uint8: the most probable class, the lowest of several; several times argmax's speed."""
    best = probabilities[0].copy()
    labels = np.zeros(best.shape, np.uint8)
    for number, values in enumerate(probabilities[1:], 1):
        labels[values > best] = number
        np.maximum(best, values, out=best)
    return labels


def labels_on_scan(probabilities: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """The most probable class at every voxel centre of another grid.

    Args:
        probabilities: (classes, z, y, x) float32 on ``source``.

    Returns:
        (z, y, x) uint8 on ``target``; what lies outside of ``source`` is class 0, and its outermost voxels fade into
        that over one voxel.
    """
    # A frame of background: points up to one voxel outside fade into it, and no index leaves the array.
    padded = np.pad(probabilities, [(0, 0), (1, 1), (1, 1), (1, 1)])
    padded[0, [0, -1]] = padded[0, :, [0, -1]] = padded[0, :, :, [0, -1]] = 1.0
    cells = _cells(most_probable(padded))
    out = np.zeros(target.shape, np.uint8)
    for box, points in _points(source, target):
        base = [np.floor(p).astype(np.intp) for p in points]
        flat = sum(
            np.clip(b, 0, n - 1) * step
            for b, n, step in zip(base, cells.shape, (cells.shape[1] * cells.shape[2], cells.shape[2], 1), strict=True)
        )
        found = cells.ravel()[flat]
        for outside in ((b < 0) | (b >= n) for b, n in zip(base, cells.shape, strict=True)):
            found[np.broadcast_to(outside, found.shape)] = 0
        border = np.flatnonzero(found == BORDER)
        index = np.unravel_index(border, found.shape)
        where = [np.broadcast_to(p, found.shape)[index] for p in points]
        values = found.reshape(-1)
        for start in range(0, len(border), POINTS):
            part = slice(start, start + POINTS)
            values[border[part]] = most_probable(_interpolated(padded, [w[part] for w in where]))
        out[box] = values.reshape(found.shape)
    return out


def probabilities_on_scan(probabilities: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """All classes' probabilities at every voxel centre of another grid: (classes, z, y, x) float32."""
    out = np.empty((len(probabilities), *target.shape), np.float32)
    reference = sitk.Image(target.size, sitk.sitkUInt8)
    reference.SetSpacing(target.spacing_mm)
    reference.SetOrigin(target.origin_mm)
    reference.SetDirection(target.direction)
    for number, values in enumerate(probabilities):
        image = source.image(values)
        default = 1.0 if number == 0 else 0.0
        there = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, default, sitk.sitkFloat32)
        out[number] = sitk.GetArrayViewFromImage(there)
    return out


def _cells(labels: np.ndarray) -> np.ndarray:
    """For every cube of eight neighbouring voxels their common label, else ``BORDER``: one less along each axis."""
    low = high = labels
    for axis in range(3):
        first = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
        second = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        low, high = np.minimum(low[first], low[second]), np.maximum(high[first], high[second])
    return np.where(low == high, low, np.uint8(BORDER))


def _points(source: Grid, target: Grid) -> Iterator[tuple[tuple[slice, ...], list[np.ndarray]]]:
    """Blocks of the target that the source may cover, and where their voxels lie in the framed source, as (z, y, x).

    Where the axes of both grids run alike, each coordinate depends on one index alone and is left that small.
    """
    matrix = np.linalg.inv(source.matrix()) @ target.matrix()  # (x, y, z, 1) of the target to (x, y, z) of the source
    start, stop = box_within(target, source)
    if (stop <= start).any():
        return
    step = max(1, BLOCK_VOXELS // int(np.prod((stop - start)[:2])))
    for z0 in range(start[2], stop[2], step):
        z1 = min(z0 + step, stop[2])
        ranges = [np.arange(start[0], stop[0]), np.arange(start[1], stop[1])[:, None], np.arange(z0, z1)[:, None, None]]
        points = []
        for row in (2, 1, 0):
            value: np.ndarray = np.asarray(matrix[row, 3] + 1.0)  # the frame
            for column, along in enumerate(ranges):
                if abs(matrix[row, column]) * max(target.size) > 1e-4:
                    value = value + matrix[row, column] * along
            points.append(value)
        yield (slice(z0, z1), slice(start[1], stop[1]), slice(start[0], stop[0])), points


def _interpolated(padded: np.ndarray, where: list[np.ndarray]) -> np.ndarray:
    """(classes, points) float32: trilinear interpolation at coordinates (z, y, x) inside the array."""
    base = [np.floor(w).astype(np.intp) for w in where]
    share = [(w - b).astype(np.float32) for w, b in zip(where, base, strict=True)]
    _, ny, nx = padded.shape[1:]
    flat = (base[0] * ny + base[1]) * nx + base[2]
    rows = padded.reshape(len(padded), -1)
    out = np.zeros((len(padded), len(flat)), np.float32)
    for corner in range(8):
        bits = [corner >> 2 & 1, corner >> 1 & 1, corner & 1]
        weight = np.ones(len(flat), np.float32)
        for bit, s in zip(bits, share, strict=True):
            weight *= s if bit else 1 - s
        index = flat + (bits[0] * ny + bits[1]) * nx + bits[2]
        for mine, row in zip(out, rows, strict=True):
            mine += weight * row[index]
    return out


def box_within(target: Grid, source: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last index (x, y, z) of the part of ``target`` that ``source`` covers."""
    inverse = np.linalg.inv(target.matrix())
    corners = source.corners_mm() @ inverse[:3, :3].T + inverse[:3, 3]
    size = np.asarray(target.size)
    start = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, size)
    stop = np.clip(np.ceil(corners.max(0)).astype(int) + 2, 0, size)
    return start, stop
