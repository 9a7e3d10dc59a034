"""How slices are chosen within what a budget allows: equidistant, at random, by foreground, or by uncertainty.

Works on numbers per slice alone (:class:`Candidates`); what an axis means and how many slices there are to choose is
settled in ``annotation/plan.py``. Every pick comes with its reason in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid, voxel_axis
from NeonatalSegLib.tissues import (
    BRAINSTEM,
    CEREBELLUM,
    CORTICAL_GM,
    CSF,
    DEEP_GM,
    HIPPOCAMPUS,
    NUMBER_OF_CLASSES,
    VENTRICLES,
    WM,
    by_index,
)  # fmt: skip

MIN_AREA_MM2 = 100.0  # of foreground: a slice with less shows a rim or a stray voxel
# Small structures first: a slice through them shows the large tissues as well, and not the other way round.
TISSUE_ORDER = (HIPPOCAMPUS, VENTRICLES, BRAINSTEM, DEEP_GM, CEREBELLUM, CORTICAL_GM, WM, CSF)
MIN_SHARE = 0.25  # of the largest area (of a tissue, of the foreground) along the axis: less is uncertain for its rim
NOISE = 0.5  # of the standard deviation of the scores, at the first pick; falls to 0 at the last


@dataclass(frozen=True)
class ScanToPlan:
    """What the choice of slices needs to know of a scan; all arrays are (z, y, x) on ``grid``.

    Attributes:
        foreground: bool, what is worth annotating: the brain where it is known, else the head.
        prediction: uint8 labels of the current model, or None.
        uncertainty: float 0-1, its entropy, or None; "uncertainty" needs both.
    """

    name: str
    grid: Grid
    foreground: np.ndarray
    prediction: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


@dataclass(frozen=True)
class Candidates:
    """The slices of one axis of one scan that may be chosen, and how many of them are to be.

    Attributes:
        scan, axis: for names.
        extent: slices in the extent, of which a budget in percent is a part; some may not be candidates.
        indices: (n,) voxel indices, ascending.
        thickness_mm: from one slice to the next.
        areas_mm2: (n,) foreground in each slice.
        uncertainty: (n,) mean over the slice's foreground, or None.
        tissue_uncertainty, tissue_areas_mm2: (n, classes) mean over the predicted tissue and its area, or None.
        number: how many to choose, at most n.
    """

    scan: str
    axis: str
    extent: int
    indices: np.ndarray
    thickness_mm: float
    areas_mm2: np.ndarray
    uncertainty: np.ndarray | None = None
    tissue_uncertainty: np.ndarray | None = None
    tissue_areas_mm2: np.ndarray | None = None
    number: int = 0


Pick = tuple[int, str]  # voxel index, reason


def candidates(scan: ScanToPlan, axis: str, extent: str, selection: str) -> Candidates:
    """Measure one axis of a scan.

    Args:
        extent, selection: as in BudgetSettings.

    Raises:
        NeonatalSegError: no slice of the extent shows foreground.
    """
    along = voxel_axis(scan.grid, axis)
    thickness = scan.grid.spacing_mm[along]
    pixel_mm2 = scan.grid.voxel_volume_mm3 / thickness
    areas = np.count_nonzero(scan.foreground, axis=tuple(a for a in range(3) if a != 2 - along)) * pixel_mm2
    number = np.arange(len(areas))
    shows = areas >= MIN_AREA_MM2
    # Slices whose centre lies in the central 90 %, in whole numbers: no rounding.
    central = ((2 * number + 1) * 10 >= len(areas)) & ((2 * number + 1) * 10 <= 19 * len(areas))
    inside = shows if extent == "brain" else central
    if not (inside & shows).any():
        raise NeonatalSegError(
            f"{scan.name}: no {axis} slice of the extent '{extent}' shows the brain (at least "
            f"{MIN_AREA_MM2 / 100:g} cm2 of foreground): check the scan and its segmentation."
        )
    rows = number[inside & shows] if selection in ("foreground-random", "uncertainty") else number[inside]
    found = Candidates(scan.name, axis, int(inside.sum()), rows, thickness, areas[rows])
    if selection != "uncertainty":
        return found
    assert scan.prediction is not None and scan.uncertainty is not None
    where = np.nonzero(scan.foreground)
    count, mean = tissue_means(where[2 - along], scan.prediction[where], scan.uncertainty[where], len(areas))
    overall = (count * mean).sum(1) / np.maximum(count.sum(1), 1)
    return replace(
        found,
        uncertainty=overall[rows],
        tissue_uncertainty=mean[rows],
        tissue_areas_mm2=count[rows] * pixel_mm2,
    )


def equidistant(slices: Candidates, random: np.random.Generator) -> list[Pick]:
    """Every k-th slice; the first lies a quarter to three quarters of the distance inside, as the seed has it."""
    distance = len(slices.indices) / max(slices.number, 1)
    first = random.uniform(0.25, 0.75) * distance
    rows = (first + distance * np.arange(slices.number)).astype(int)
    total = slices.number
    return [(int(slices.indices[row]), f"equidistant, {_ordinal(k)} of {total}") for k, row in enumerate(rows, 1)]


def at_random(slices: Candidates, random: np.random.Generator) -> list[Pick]:
    """Any slice, all with the same chance."""
    chosen = np.sort(random.choice(slices.indices, slices.number, replace=False))
    return [(int(index), f"drawn at random from {len(slices.indices)} slices") for index in chosen]


def foreground_at_random(slices: Candidates, random: np.random.Generator) -> list[Pick]:
    """The slices of foreground voxels drawn at random, that is, slices weighted by their foreground area.

    By area and not alike: every voxel of the brain then has the same chance to bring its slice in, and the budget is
    not spent on caps of the brain, which show little but cost a slice each.
    """
    weights = slices.areas_mm2 / slices.areas_mm2.sum()
    rows = np.sort(random.choice(len(slices.indices), slices.number, replace=False, p=weights))
    return [
        (int(slices.indices[row]), f"drawn at random by foreground area ({slices.areas_mm2[row] / 100:.0f} cm2)")
        for row in rows
    ]


def most_uncertain(
    groups: Sequence[Candidates], min_gap_mm: float, random: np.random.Generator
) -> tuple[list[list[Pick]], list[str]]:
    """The slices about which the model is least certain, over all scans together, each within its own number.

    The score of a slice is the mean entropy over its foreground plus noise that falls to nothing over the picks. Two
    picks of three go through the tissues (``TISSUE_ORDER``) and take the slice with most uncertainty in that predicted
    tissue. A slice that shows less than ``MIN_SHARE`` of what the largest one does is not chosen for that (nor, as long
    as there are others, for its mean): there the rim alone makes the entropy. Neighbours along one axis keep
    ``min_gap_mm``; where a number is too large for that, the slices furthest from those chosen come next and a note
    says which gap was kept. After ClaSP PE (class-stratified predictive entropy with decaying noise).

    Returns:
        The picks of each group, and notes in words.
    """
    table = _Table(groups, min_gap_mm)
    total = sum(group.number for group in groups)
    picks: list[list[Pick]] = [[] for _ in groups]
    turn = 0  # of the tissues
    for number in range(total):
        noise = NOISE * (1 - number / total) * table.spread * random.standard_normal(len(table.score))
        allowed = table.allowed()
        row, reason = -1, ""
        for step in range(len(TISSUE_ORDER) if number % 3 < 2 else 0):
            tissue = TISSUE_ORDER[(turn + step) % len(TISSUE_ORDER)]
            possible = allowed & table.shows[:, tissue]
            if possible.any():
                turn += step + 1
                scores = table.by_tissue[:, tissue]
                row = _best(scores + noise, possible)
                reason = _reason(f" in the {_spoken(tissue)}", scores, row, possible)
                break
        if row < 0:
            possible = allowed & table.large if (allowed & table.large).any() else allowed
            row = _best(table.score + noise, possible)
            reason = _reason("", table.score, row, possible)
        picks[table.group[row]].append((int(table.index[row]), reason))
        table.take(row)
    return [sorted(found) for found in picks], table.notes(groups, min_gap_mm)


class _Table:
    """All candidates of all groups, a row each, with what was taken so far."""

    def __init__(self, groups: Sequence[Candidates], min_gap_mm: float) -> None:
        self.group = np.repeat(np.arange(len(groups)), [len(g.indices) for g in groups])
        self.index = np.concatenate([g.indices for g in groups])
        self.score = np.concatenate([g.uncertainty for g in groups if g.uncertainty is not None])
        self.by_tissue = np.concatenate([g.tissue_uncertainty for g in groups if g.tissue_uncertainty is not None])
        self.shows = np.concatenate([_ample(g.tissue_areas_mm2) for g in groups if g.tissue_areas_mm2 is not None])
        self.large = np.concatenate([_ample(g.areas_mm2) for g in groups])
        self.spread = float(self.score.std())
        self._position_mm = self.index * np.array([g.thickness_mm for g in groups])[self.group]
        self._nearest_mm = np.full(len(self.index), np.inf)  # to a chosen slice of the same group; 0 where chosen
        self._left = np.array([g.number for g in groups])
        self._gap_mm = np.full(len(groups), min_gap_mm)

    def allowed(self) -> np.ndarray:
        """Rows that may be taken now; the gap of a group is lowered only where nothing else is left anywhere."""
        open_rows = (self._left[self.group] > 0) & (self._nearest_mm > 0)
        allowed = open_rows & (self._nearest_mm >= self._gap_mm[self.group] - 1e-6)
        if not allowed.any():
            for group in np.unique(self.group[open_rows]):
                self._gap_mm[group] = self._nearest_mm[open_rows & (self.group == group)].max()
            allowed = open_rows & (self._nearest_mm >= self._gap_mm[self.group] - 1e-6)
        return allowed

    def take(self, row: int) -> None:
        same = self.group == self.group[row]
        away = np.abs(self._position_mm[same] - self._position_mm[row])
        self._nearest_mm[same] = np.minimum(self._nearest_mm[same], away)
        self._left[self.group[row]] -= 1

    def notes(self, groups: Sequence[Candidates], min_gap_mm: float) -> list[str]:
        tight = [group for group, gap in zip(groups, self._gap_mm, strict=True) if gap < min_gap_mm]
        if not tight:
            return []
        others = f" and {len(tight) - 1} more" if len(tight) > 1 else ""
        text = (
            f"The budget leaves no room for gaps of {min_gap_mm:g} mm between the {tight[0].axis} slices of "
            f"{tight[0].scan}{others}: the smallest is {self._gap_mm.min():.1f} mm."
        )
        return [text]


def _ample(areas: np.ndarray) -> np.ndarray:
    """Where an area (slices first) is no mere rim of what the largest slice shows."""
    return (areas > 0) & (areas >= MIN_SHARE * areas.max(0, initial=0.0))


def tissue_means(
    positions: np.ndarray, labels: np.ndarray, values: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and mean of ``values`` per slice and predicted tissue.

    Args:
        positions, labels, values: (voxels,) index along the axis, label 0-9 and value of each voxel.
        length: slices of the axis.

    Returns:
        (length, classes) number of voxels and mean value, 0 where there are none.
    """
    code = positions * NUMBER_OF_CLASSES + labels
    shape = (length, NUMBER_OF_CLASSES)
    count = np.bincount(code, minlength=length * NUMBER_OF_CLASSES).reshape(shape)
    total = np.bincount(code, weights=values, minlength=length * NUMBER_OF_CLASSES).reshape(shape)
    return count, total / np.maximum(count, 1)


def _best(scores: np.ndarray, possible: np.ndarray) -> int:
    return int(np.where(possible, scores, -np.inf).argmax())


def _reason(where: str, scores: np.ndarray, row: int, possible: np.ndarray) -> str:
    word = "highest" if scores[row] >= scores[possible].max() else "high"  # the noise may prefer another than the first
    return f"{word} uncertainty{where} ({scores[row]:.2f})"


def _spoken(tissue: int) -> str:
    name = by_index(tissue).name
    return name if name.isupper() else name.lower()


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
