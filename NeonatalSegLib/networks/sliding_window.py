"""A network over a whole volume in few large windows with Gaussian blending, in numpy: the same for every engine.

The padding and the weights are those of MONAI's sliding-window inference. The windows are evenly spaced and as few as
the overlap asks for, where MONAI moves the last one back onto its neighbour. The network itself runs behind
:class:`Engine`.

>>> window_starts(166, 96, 0.25)
[0, 70]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

# With half of a window an ALBERT took 12 windows for 8 and its mean DSC was no better (docs/speed.md).
OVERLAP = 0.25
SIGMA_SHARE = 0.2  # of a window's edge: the standard deviation of the weights
LEAST_WEIGHT = 1e-3

Tick = Callable[[float], None]  # fraction done, 0-1; may raise to stop


class Engine(Protocol):
    """What runs a network on one window.

    Attributes:
        name: "torch" or "openvino".
        precision: of the numbers it computes with: "fp32", "fp16", "bf16" or "int8".
        device_text: where it runs, in words.
    """

    name: str
    precision: str

    @property
    def device_text(self) -> str: ...

    @property
    def free_bytes(self) -> int | None:
        """Memory on a GPU that a window may take; None where not told, and on a CPU."""

    def run(self, window: np.ndarray, tick: Tick) -> tuple[np.ndarray, float | None]:
        """Class probabilities of one window, and the age in weeks where the network tells one.

        Args:
            window: (2, z, y, x) float32, contiguous, each axis a multiple of the network's stride.
            tick: called several times a second with the fraction of this window that is done; what it raises goes
                through, after the computation has stopped.

        Returns:
            (classes, z, y, x) float32, valid until the next call, and the weeks or None.
        """

    def free_memory(self) -> None:
        """Give back what is kept for the next window, after memory ran out."""


def predict_windows(
    engine: Engine,
    image: np.ndarray,
    window: Sequence[int],
    stride: int,
    *,
    flips: bool = False,
    overlap: float = OVERLAP,
    progress: Tick | None = None,
) -> tuple[np.ndarray, float | None]:
    """Class probabilities of a prepared image, and the newborn's age.

    Args:
        image: (2, z, y, x) float32.
        window: voxels (z, y, x) of a window. Axes on which the image is not larger are covered by one window.
        stride: windows are multiples of it.
        flips: average with the left-right mirror image (twice the time).
        overlap: of neighbouring windows, 0-1, at least. Less is faster and a little worse.

    Returns:
        (classes, z, y, x) float32 probabilities; the age in weeks, None where the network tells none. The age is the
        mean over windows, each weighted by how much head it holds: by the sum of its probabilities of not being
        outside background. A corner window with little but air in it knows little of the age. The network itself
        says what is head, since air has no value of its own in a prepared image.
    """
    shape = image.shape[1:]
    window = tuple(-(-min(w, s) // stride) * stride for w, s in zip(window, shape, strict=True))
    room = [max(w - s, 0) for w, s in zip(window, shape, strict=True)]
    if any(room):
        image = np.pad(image, [(0, 0)] + [(n // 2, n - n // 2) for n in room], mode="edge")
    starts = [window_starts(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True)]
    boxes = [tuple(slice(a, a + w) for a, w in zip(place, window, strict=True)) for place in itertools.product(*starts)]
    runs = _Runs(engine, len(boxes) * (1 + flips), progress)
    blend = _Blend(image.shape[1:], window)
    for box in boxes:
        part = image[(slice(None),) + box]
        found = runs.run(part)
        if flips:
            found = found.copy()  # the engine may use its buffer again
            found = (found + runs.run(part[..., ::-1])[..., ::-1]) / 2
        if len(boxes) == 1:
            blend.total = found.copy()
        else:
            blend.add(box, found)
    inner = tuple(slice(n // 2, n // 2 + s) for n, s in zip(room, shape, strict=True))
    return blend.finished()[(slice(None),) + inner], runs.age


class _Runs:
    """The engine over one window after the other: progress of the whole, and the age from all of them."""

    def __init__(self, engine: Engine, number: int, progress: Tick | None) -> None:
        self._engine, self._number, self._progress = engine, number, progress
        self._done = 0
        self._ages: list[tuple[float, float]] = []  # weeks, how much head

    def run(self, part: np.ndarray) -> np.ndarray:
        """Probabilities of one window, valid until the next call."""
        probabilities, weeks = self._engine.run(np.ascontiguousarray(part), self._tick)
        self._done += 1
        if weeks is not None:
            head = part[0].size - float(probabilities[0].sum(dtype=np.float64))
            self._ages.append((weeks, 1e-6 + head))  # never a sum of zero
        return probabilities

    @property
    def age(self) -> float | None:
        """The mean over windows, weighted by their heads; None where the network tells no age."""
        total = sum(head for _, head in self._ages)
        return sum(weeks * head for weeks, head in self._ages) / total if self._ages else None

    def _tick(self, share: float) -> None:
        if self._progress is not None:
            self._progress((self._done + share) / self._number)


class _Blend:
    """The weighted mean of overlapping windows."""

    def __init__(self, shape: Sequence[int], window: Sequence[int]) -> None:
        self.total: np.ndarray | None = None
        self._shape = tuple(shape)
        self._weights = blending_weights(window)
        self._summed = np.zeros(self._shape, np.float32)

    def add(self, box: tuple[slice, ...], found: np.ndarray) -> None:
        if self.total is None:
            self.total = np.zeros((len(found),) + self._shape, np.float32)
        self._summed[box] += self._weights
        for mine, new in zip(self.total, found, strict=True):  # class by class: what is multiplied stays in the cache
            mine[box] += new * self._weights

    def finished(self) -> np.ndarray:
        assert self.total is not None
        if self._summed.any():
            self.total /= self._summed
        return self.total


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: as few as overlap by that share at least, evenly spaced."""
    steps = math.ceil(max(size - window, 0) / max(1.0, window * (1 - overlap)))
    return [round(k * (size - window) / steps) for k in range(steps + 1)] if steps else [0]


def blending_weights(window: Sequence[int]) -> np.ndarray:
    """(z, y, x) float32: a Gaussian around the centre of a window, never less than ``LEAST_WEIGHT``."""
    weights = np.ones((), np.float32)
    for n in window:
        x = np.arange(n, dtype=np.float32) - (n - 1) / 2
        weights = weights[..., None] * np.exp(x**2 / (-2 * (SIGMA_SHARE * n) ** 2)).astype(np.float32)
    return np.maximum(weights, max(float(weights.min()), LEAST_WEIGHT))
