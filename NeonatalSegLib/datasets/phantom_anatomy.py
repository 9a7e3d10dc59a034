"""The anatomy of the synthetic newborn: smooth signed fields over physical space, and the signal of each tissue.

Millimetres, LPS: x to the left, y to the back, z up; the origin lies between the thalami. Lengths are those of a large
newborn at term and scale with age (``GROWTH``). ``phantom.py`` decides where the fields are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from NeonatalSegLib.tissues import BRAINSTEM, CEREBELLUM, CSF, DEEP_GM, HIPPOCAMPUS, VENTRICLES, WM
from NeonatalSegLib.tissues import CORTICAL_GM as CORTEX
from NeonatalSegLib.tissues import INTRACRANIAL_BG as RIM

# Typical newborn signal relative to white matter, (T1, T2). Unmyelinated white matter is brighter than the cortex on
# T2 and darker on T1; the brainstem, myelinated first, is the extreme of both.
SIGNAL: dict[int, tuple[float, float]] = {
    CSF: (0.66, 2.00),
    CORTEX: (1.10, 0.68),
    WM: (1.00, 1.00),
    RIM: (0.55, 0.14),
    VENTRICLES: (0.62, 2.15),
    CEREBELLUM: (1.09, 0.72),
    DEEP_GM: (1.13, 0.69),
    BRAINSTEM: (1.18, 0.58),
    HIPPOCAMPUS: (1.12, 0.71),
}
BONE, SCALP = (0.15, 0.08), (1.80, 0.60)

# What grows with age. Lengths in mm; `size` is linear, against a large newborn at term; the last three
# are relative to `size`.
AGES = (26.0, 28.0, 32.0, 36.0, 40.0, 44.0)
GROWTH: dict[str, tuple[float, ...]] = {
    "size": (0.61, 0.672, 0.79, 0.883, 0.96, 1.025),
    "cortex": (1.2, 1.25, 1.4, 1.55, 1.7, 1.85),  # thickness
    "sulcal_depth": (0.6, 1.2, 4.2, 7.2, 10.0, 11.5),
    "sulcal_wavelength": (20.0, 19.5, 18.0, 16.0, 14.5, 13.5),
    "fluid": (2.0, 2.0, 1.8, 1.8, 2.0, 2.2),  # around the brain
    "sylvian_gap": (2.8, 2.6, 2.0, 1.4, 0.9, 0.8),
    "cerebellum": (0.70, 0.76, 0.85, 0.91, 0.95, 0.99),
    "brainstem": (1.16, 1.14, 1.11, 1.07, 1.05, 1.03),
    "ventricles": (1.85, 1.75, 1.5, 1.35, 1.25, 1.22),
}
RIM_MM, BONE_MM, SCALP_MM = 2.5, 2.5, 3.5
CENTRE = np.array([0.0, 6.0, 1.5])  # of the brain, in units of `size`
HALF_EXTENT = np.array([48.5, 60.5, 49.0])
MARGIN_MM = RIM_MM + BONE_MM + SCALP_MM + 5.0  # the same grid with and without a skull
BLUR_MM = 0.9  # width over which two tissues share a voxel


# --- the fields: signed distances in mm at 40 weeks, negative inside --------------------------------------------------


def _ellipsoid(q: np.ndarray, centre: Sequence[float] | np.ndarray, axes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Distance to an ellipsoid, right to first order near its surface."""
    a = np.asarray(axes, np.float32)[:, None]
    v = (q - np.asarray(centre, np.float32)[:, None]) / a
    k0 = np.sqrt((v * v).sum(0)) + 1e-6
    k1 = np.sqrt(((v / a) ** 2).sum(0)) + 1e-9
    return k0 * (k0 - 1) / k1


def _tube(q: np.ndarray, nodes: Sequence[Sequence[float]], widen: float = 1.0) -> np.ndarray:
    """Distance to a bent tube through nodes (x, y, z, radius)."""
    best = np.full(q.shape[1], 1e3, np.float32)
    table = np.asarray(nodes, np.float32)
    for a, b in itertools.pairwise(table):
        axis = b[:3] - a[:3]
        t = np.clip(axis @ (q - a[:3, None]) / (axis @ axis), 0, 1)
        away = q - a[:3, None] - axis[:, None] * t
        radius = (a[3] + (b[3] - a[3]) * t) * widen
        best = _union(best, np.sqrt((away * away).sum(0)) - radius, 1.0)
    return best


def _union(a: np.ndarray, b: np.ndarray, round_mm: float) -> np.ndarray:
    """Union of two fields with the crease filled over ``round_mm``."""
    h = np.maximum(round_mm - np.abs(a - b), 0) / round_mm
    return np.minimum(a, b) - h * h * round_mm / 4


class _Waves:
    """A random smooth field: plane waves of about one wavelength, unit variance."""

    def __init__(self, random: np.random.Generator, wavelength: float, count: int) -> None:
        directions = random.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self.k = 2 * np.pi / wavelength
        self.vectors = (directions * self.k * random.uniform(0.9, 1.1, (count, 1))).astype(np.float32)
        self.phases = random.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
        self.amplitude = np.sqrt(2.0 / count)

    def __call__(self, q: np.ndarray) -> np.ndarray:
        return self.amplitude * np.cos(self.vectors @ q + self.phases).sum(0)

    def with_gradient(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The field, (n,), and its gradient, (3, n)."""
        argument = self.vectors @ q + self.phases
        return self.amplitude * np.cos(argument).sum(0), -self.amplitude * (self.vectors.T @ np.sin(argument))


# --- the head ---------------------------------------------------------------------------------------------------------

# Tubes as (x, y, z, radius), on the left side; the right one mirrors them.
LATERAL_VENTRICLE = (
    ((7, -22, 8, 2.0), (7, -12, 14, 2.3), (8, 2, 17, 2.2), (12, 15, 14, 2.5), (18, 25, 6, 3.4), (17, 38, 3, 1.4)),
    ((18, 25, 6, 3.2), (23.5, 17, -6, 1.7), (25, 8, -13, 1.3), (25, 0, -16, 1.0)),
)
HIPPOCAMPUS_TUBE = ((20, -6, -18.5, 3.9), (21, 3, -18, 3.3), (20, 11, -14, 2.8), (17, 18, -7, 1.8))
MEDULLA = ((0, 10, -28, 6.2), (0, 15, -38, 5.0), (0, 17, -50, 4.4))
CALLOSUM = ((0.0, 1.0, 0.0), (25.0, 20.0))  # the ellipse, in the midplane, whose upper rim it follows


class Head:
    """One head: age and seed turned into numbers; ``sample`` reads it at any points."""

    def __init__(self, age_weeks: float, seed: int) -> None:
        self.grown = {key: float(np.interp(age_weeks, AGES, values)) for key, values in GROWTH.items()}
        self.size = self.grown["size"]
        random = np.random.default_rng([seed, 1])
        self.stretch = random.uniform(0.96, 1.04, (3, 1)).astype(np.float32)
        self.warps = [_Waves(random, 75.0, 6) for _ in range(3)]
        self.lengths = _Waves(random, 45.0, 10)  # where sulci are deep and where shallow
        self.texture = _Waves(random, 16.0, 12)
        self.ventricle_width = random.uniform(0.85, 1.2)
        self.side_shift = random.uniform(-6, 6, (3, 1)).astype(np.float32)
        self.fields = [_Waves(random, 150.0, 4) for _ in range(2)]  # bias of T1, of T2
        self.folds = _Waves(random, self.grown["sulcal_wavelength"], 28)

    def sample(self, points: np.ndarray, *, skull: bool, bias: float) -> tuple[np.ndarray, np.ndarray]:
        """Labels, (...), and noiseless signals, (2, ...), at physical points (3, ...)."""
        shape = points.shape[1:]
        q = points.reshape(3, -1) / self.size
        q = q / self.stretch
        labels = np.zeros(q.shape[1], np.uint8)
        signals = np.zeros((2, q.shape[1]), np.float32)
        near = np.flatnonzero(_ellipsoid(q, CENTRE, 1.2 * HALF_EXTENT + MARGIN_MM / self.size) < 0)
        if near.size:
            q = q[:, near]
            q = q + np.stack([wave(q) for wave in self.warps]) * 0.9
            painter = _Painter(q.shape[1], BLUR_MM / self.size)
            self._paint(painter, q, skull=skull)
            gain = [1 + bias * np.clip(field(q) / 2, -1, 1) for field in self.fields]
            labels[near], signals[:, near] = painter.labels, painter.signals * np.stack(gain)
        return labels.reshape(shape), signals.reshape(2, *shape)

    def _paint(self, painter: _Painter, q: np.ndarray, *, skull: bool) -> None:
        """From the outside to the inside: each tissue covers what lies under it."""
        mirrored = np.stack([np.abs(q[0]), q[1], q[2]])
        hull = self._cerebral_hull(mirrored)
        posterior = self._cerebellum(mirrored)
        stem = self._brainstem(q, mirrored)
        cranium = self._cranium(q, hull, posterior, stem)
        mm = 1 / self.size
        if skull:
            painter.paint(cranium - (RIM_MM + BONE_MM + SCALP_MM) * mm, 0, SCALP)
            painter.paint(cranium - (RIM_MM + BONE_MM) * mm, 0, BONE)
        painter.paint(cranium - RIM_MM * mm, RIM)
        painter.paint(cranium, CSF)
        pial, cortex = self._cortex(q, mirrored, hull)
        texture = 1 + 0.05 * self.texture(q)
        painter.paint(np.maximum(-pial, cranium), CORTEX)
        painter.paint(cortex - pial, WM, gains=(1.0, texture))
        painter.paint(self._callosum(mirrored), WM)
        folia = 1 + 0.10 * np.cos(2 * np.pi * np.hypot(q[1] - 16, q[2] + 20) / 4.5)
        painter.paint(np.maximum(posterior, cranium + 1), CEREBELLUM, gains=(1.0, folia))
        painter.paint(self._deep_grey(mirrored), DEEP_GM, gains=(1.0, texture))
        painter.paint(np.maximum(stem, cranium), BRAINSTEM)
        self._paint_fluid(painter, q, mirrored)
        painter.paint(_tube(mirrored, HIPPOCAMPUS_TUBE), HIPPOCAMPUS)

    def _paint_fluid(self, painter: _Painter, q: np.ndarray, mirrored: np.ndarray) -> None:
        """Ventricles. The third and fourth count as CSF, as they do in Draw-EM's nine tissues."""
        third = np.maximum(mirrored[0] - 1.3, _ellipsoid(q, (0, 3, -3), (30, 14, 9)))
        fourth = _ellipsoid(q, (0, 17.5 * self.grown["cerebellum"] + 1, -24), (4.5, 2.2, 5))
        for fluid in (third, fourth):
            painter.paint(fluid, CSF)
        widen = self.grown["ventricles"] * self.ventricle_width
        body, temporal_horn = (_tube(mirrored, branch, widen) for branch in LATERAL_VENTRICLE)
        lateral = _union(body, temporal_horn, 1.0)
        painter.paint(lateral, VENTRICLES)

    def _cerebral_hull(self, m: np.ndarray) -> np.ndarray:
        """Outline of both hemispheres without folds: a flattened egg on a sloping floor, and two temporal lobes."""
        taper = np.stack([m[0] * (1 - 0.0014 * (m[1] - 10)), m[1], m[2]])
        egg = _ellipsoid(taper, (0, 4, 7), (44, 55, 39))
        back = np.clip((m[1] - 8) / 20, 0, 1)  # 0 over the face, 1 over the tentorium
        floor = -11 + back * (4 - 0.008 * m[0] ** 2) - m[2]
        temporal = _ellipsoid(m, (28, 3, -13), (14, 27, 14))
        return _union(_intersection(egg, floor, 8.0), temporal, 6.0)

    def _cerebellum(self, m: np.ndarray) -> np.ndarray:
        s = self.grown["cerebellum"]
        v = (m - np.array([[0], [17], [-10]])) / s  # grows away from the brainstem and the tentorium
        lobes = _ellipsoid(v, (12.5, 11, -14.5), (14.5, 14.5, 12.5))
        return _union(lobes, _ellipsoid(v, (0, 11, -12), (7, 12, 12)), 9.0) * s

    def _brainstem(self, q: np.ndarray, m: np.ndarray) -> np.ndarray:
        s = self.grown["brainstem"]
        v, w = ((p - np.array([[0], [8], [-20]])) / s for p in (q, m))
        tube = _tube(v, [(x, y - 8, z + 20, r) for x, y, z, r in MEDULLA])
        pons = _ellipsoid(v, (0, -1, -2), (10, 8.5, 8.5))
        midbrain = _ellipsoid(w, (4, 0, 8), (7, 7, 7))
        return _union(_union(pons, midbrain, 4.0), tube, 4.0) * s

    def _cranium(self, q: np.ndarray, hull: np.ndarray, posterior: np.ndarray, stem: np.ndarray) -> np.ndarray:
        """Inside of the skull: around everything, cisterns filled, a little more room in front."""
        brain = _union(_union(hull, posterior, 9.0), np.maximum(stem, -43 - q[2]), 12.0)
        fluid = self.grown["fluid"] / self.size
        return brain - fluid * (1 + 0.5 * np.clip(-q[1] / 50, 0, 1))

    def _callosum(self, m: np.ndarray) -> np.ndarray:
        rim = np.abs(_midplane_ellipse(m)) - 1.6
        return np.maximum(np.maximum(rim, m[0] - 9), -4 - m[2])

    def _deep_grey(self, m: np.ndarray) -> np.ndarray:
        thalamus = _ellipsoid(m, (9.5, 8, -1), (8, 13, 8.5))
        caudate = _ellipsoid(m, (11, -13, 4), (4.5, 9, 7))
        lentiform = _ellipsoid(m, (18.5, -3, -2), (6.5, 14.5, 9))
        return _union(_union(thalamus, lentiform, 2.5), caudate, 2.5)

    def _cortex(self, q: np.ndarray, m: np.ndarray, hull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distance below the pia (positive inside the cortex) and thickness of the cortex."""
        mm = 1 / self.size
        midplane = _midplane_ellipse(m)
        depth = np.minimum(-hull, np.hypot(m[0], np.maximum(-midplane, 0)) - 0.9 * mm)
        pial = np.minimum(depth, self._sylvian(m))
        centre = _ellipsoid(m, (0, 3, -2), (25, 29, 22))  # no sulci around the deep grey matter
        reach = self.grown["sulcal_depth"] * mm * np.clip(0.9 + 0.35 * self.lengths(q), 0.5, 1.4)
        reach *= np.clip(centre / 6, 0, 1)
        beyond = np.maximum(depth - reach, 0)
        sheet = np.zeros_like(depth)
        cut = np.flatnonzero((depth > 0) & (beyond < 5))
        sheet[cut] = self._sulci(q[:, cut], m[:, cut])
        opening = 0.3 * mm + 0.05 * np.maximum(reach - depth, 0)  # wider at the surface
        pial = np.minimum(pial, np.hypot(sheet, beyond) - opening)
        # no cortex where the hemispheres join each other and the brainstem
        bare = np.minimum(_ellipsoid(m, (0, 3, -9), (17, 19, 13)), np.maximum(midplane - 1, m[0] - 10))
        return pial, self.grown["cortex"] * mm * np.clip(bare / 4 + 0.5, 0, 1)

    def _sulci(self, q: np.ndarray, m: np.ndarray) -> np.ndarray:
        """Distance to the sulcal sheets, the zeros of ``folds``, which stand upright on the surface they cut into."""
        squared = np.array([[34.0], [55.0], [40.0]]) ** 2
        flat = np.sqrt(m[0] ** 2 + 12.0**2)  # the field hardly changes with x beside the midplane ...
        v = np.stack([flat - 12, q[1] - 4, q[2] - 4])
        radius = np.sqrt((v * v / squared).sum(0)) + 0.05
        shrink = radius**-0.6  # ... nor along the radius elsewhere
        shift = np.where(q[0] > 0, 0, 1) * self.side_shift
        value, gradient = self.folds.with_gradient(v * shrink + shift)
        gradient -= 0.6 * (v * gradient).sum(0) * v / squared / radius**2  # chain rule back to q
        gradient[0] *= m[0] / flat
        slope = np.linalg.norm(gradient, axis=0)
        k = self.folds.k * 0.82  # what is left of the wave number along the surface
        return np.arctan2(np.abs(value), slope / k) / (k * shrink)

    def _sylvian(self, m: np.ndarray) -> np.ndarray:
        """Distance to the fissure between the temporal lobe and the rest; wide open in the youngest."""
        line = -5 + 0.33 * (m[1] + 20)
        along = np.maximum(np.abs(m[1] + 1) - 24, 0)
        sheet = np.sqrt((0.95 * (m[2] - line)) ** 2 + np.maximum(27.5 - m[0], 0) ** 2 + along**2)
        return sheet - self.grown["sylvian_gap"] / self.size * np.clip((m[0] - 20) / 16, 0.5, 1.1)


def _intersection(a: np.ndarray, b: np.ndarray, round_mm: float) -> np.ndarray:
    return -_union(-a, -b, round_mm)


def _midplane_ellipse(m: np.ndarray) -> np.ndarray:
    centre, axes = CALLOSUM
    return _ellipsoid(m[1:], centre[1:], axes)


class _Painter:
    """Labels and signals of a set of points; ``paint`` covers the inside of a field, softly at its edge."""

    def __init__(self, count: int, blur: float) -> None:
        self.labels = np.zeros(count, np.uint8)
        self.signals = np.zeros((2, count), np.float32)
        self.blur = blur

    def paint(
        self,
        field: np.ndarray,
        label: int,
        signal: tuple[float, float] | None = None,
        gains: tuple[float | np.ndarray, float | np.ndarray] = (1.0, 1.0),
    ) -> None:
        """Give ``label`` to points where ``field`` is negative and mix its signal (T1, T2) in across the edge."""
        self.labels[field < 0] = label
        share = np.clip(0.5 - field / self.blur, 0, 1)
        for channel, value in enumerate(signal or SIGNAL[label]):
            self.signals[channel] += share * (value * gains[channel] - self.signals[channel])
