"""The brain finder's network in NumPy alone: small enough that neither PyTorch nor OpenVINO is needed to run it.

Arrays are (z, y, x, channels) float32. A convolution gathers, for a few thousand voxels at a time, the 27 neighbours
of each, and is one matrix product. :mod:`.network` is the same network for training; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from NeonatalSegLib.brain_finder.grid import FAR_MM

Weights = Mapping[str, np.ndarray]
ROWS = 4096  # voxels of one matrix product: what it gathers stays in the cache
NORM_EPSILON, LEAK = 1e-5, 0.01  # PyTorch's


def distance_mm(image: np.ndarray, weights: Weights, tick: Callable[[float], None] | None = None) -> np.ndarray:
    """What ``FinderNetwork`` gives for an image (z, y, x) float32 whose sizes are multiples of ``grid.STRIDE``.

    Args:
        weights: by the names of the trained network; float16 or float32.
        tick: told the share of the work done, 0-1, some ten times; what it raises goes through.

    Returns:
        (z, y, x) float32, mm to the surface of what lies inside the skull, negative inside.
    """
    levels = sum(name.startswith("down.") and name.endswith(".0.weight") for name in weights)
    x = _blocks_to_channels(image)
    done = iter(range(1, 4 * levels - 1))  # two convolutions in each block of both ways

    def report() -> None:
        if tick:
            tick(next(done) / (4 * levels - 2))

    skips = []
    for level in range(levels):
        x = _block(x if level == 0 else _pooled(x), weights, f"down.{level}", report)
        skips.append(x)
    for level in reversed(range(levels - 1)):
        for axis in range(3):
            x = np.repeat(x, 2, axis)
        x = _block(np.concatenate([skips[level], x], -1), weights, f"up.{level}", report)
    kernel = weights["out.weight"].astype(np.float32)[:, :, 0, 0, 0]
    return FAR_MM * _channels_to_blocks(x @ kernel.T + weights["out.bias"].astype(np.float32))


def _block(x: np.ndarray, weights: Weights, name: str, report: Callable[[], None]) -> np.ndarray:
    """Two times convolution, instance norm and leaky rectification, as ``network._Block``."""
    for layer in (0, 3):
        x = _convolved(x, weights[f"{name}.{layer}.weight"])
        mean = x.mean((0, 1, 2))
        scale = weights[f"{name}.{layer + 1}.weight"] / np.sqrt(x.var((0, 1, 2)) + NORM_EPSILON)
        x *= scale.astype(np.float32)
        x += (weights[f"{name}.{layer + 1}.bias"] - mean * scale).astype(np.float32)
        np.maximum(x, LEAK * x, out=x)
        report()
    return x


def _convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A 3x3x3 convolution, zeros around: (z, y, x, in) and (out, in, 3, 3, 3) to (z, y, x, out)."""
    size, channels = x.shape[:3], x.shape[3]
    matrix = np.ascontiguousarray(kernel.transpose(2, 3, 4, 1, 0).reshape(27 * channels, -1), np.float32)
    padded = np.pad(x, ((1, 1), (1, 1), (1, 1), (0, 0)))
    row, plane = padded.shape[2], padded.shape[1] * padded.shape[2]
    flat = padded.reshape(-1, channels)
    # In the padded volume read as one long list of voxels, each neighbour lies at a fixed distance behind the first.
    offsets = [k * plane + j * row for k in range(3) for j in range(3)]
    length = size[0] * plane - 2 * row - 2
    triples = np.lib.stride_tricks.as_strided(  # three neighbours along x lie one behind the other in memory already
        flat, (len(flat) - 2, 3 * channels), (flat.strides[0], flat.strides[1]), writeable=False
    )
    out = np.empty((size[0] * plane, matrix.shape[1]), np.float32)
    gathered = np.empty((ROWS, 9, 3 * channels), np.float32)
    for start in range(0, length, ROWS):
        rows = min(ROWS, length - start)
        for number, offset in enumerate(offsets):
            gathered[:rows, number] = triples[start + offset : start + offset + rows]
        np.matmul(gathered[:rows].reshape(rows, -1), matrix, out=out[start : start + rows])
    return np.ascontiguousarray(out.reshape(size[0], padded.shape[1], row, -1)[:, : size[1], : size[2]])


def _pooled(x: np.ndarray) -> np.ndarray:
    """The largest of each 2x2x2 voxels."""
    for axis in range(3):
        shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = x.reshape(shape).max(axis + 1)
    return x


def _blocks_to_channels(image: np.ndarray) -> np.ndarray:
    """(2a, 2b, 2c) to (a, b, c, 8)."""
    a, b, c = (n // 2 for n in image.shape)
    return np.ascontiguousarray(image.reshape(a, 2, b, 2, c, 2).transpose(0, 2, 4, 1, 3, 5).reshape(a, b, c, 8))


def _channels_to_blocks(x: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_blocks_to_channels`."""
    a, b, c, _ = x.shape
    return np.ascontiguousarray(x.reshape(a, b, c, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(2 * a, 2 * b, 2 * c))
