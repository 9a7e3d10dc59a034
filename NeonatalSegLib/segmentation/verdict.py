"""Whether a result can be a newborn's brain: a verdict, and what speaks against it in words.

Every number here was set on the label maps of the 15 ALBERTs and on what the shipped model makes of ALBERTs, age
templates, and heads that are no newborn's; ``docs/plausibility.md`` has the table of both kinds of error.

Example:
    >>> result = assess(segmentation.label_map, age_weeks=40.0)  # doctest: +SKIP
    >>> result.verdict, [f.text for f in result.findings]  # doctest: +SKIP
    ('pass', [])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.scan import Scan
from NeonatalSegLib.segmentation.growth import GROWTH, INTRACRANIAL, OLDEST, YOUNGEST, age_of_size
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES, PHYSIOLOGICAL, TISSUES

if TYPE_CHECKING:
    import torch

PASS, CHECK, FAIL = "pass", "check", "fail"
VERDICTS = {
    PASS: "pass: nothing speaks against this result",
    CHECK: "check: look at the result before using it, for the reasons below",
    FAIL: "fail: do not use this result, for the reasons below",
}
GRID_MM = 1.5  # the shape of a brain is looked at on voxels of this size
# Intracranial volume that no newborn up to 45 weeks has: the largest ALBERT has 618 mL at 44 weeks, the mean of 593
# newborns extrapolated to 45 weeks is 545 mL with a standard deviation of 46.
LARGE_ML, TOO_LARGE_ML = 640.0, 700.0
LARGE_BRAIN_ML, TOO_LARGE_BRAIN_ML = 550.0, 600.0  # tissue without fluid: 537 mL in that ALBERT, 400 usual at 44 weeks
SMALL_ML, TOO_SMALL_ML = 85.0, 60.0
MISSING_SHARE = 0.4  # of the usual volume: a structure below it is cut or was not found
SECOND_PIECE = 0.12  # of a tissue's volume, in a piece that is not connected to the rest
MAX_OUTSIDE, TOO_MUCH_OUTSIDE = 0.01, 0.10  # share of tissue outside the brain that the finder saw
MAX_UNLABELLED = 0.25  # share of the found brain without a label
MAX_ASYMMETRY = 0.15  # (left - right) / all of the cerebrum; 0.03 at most in ALBERTs and templates
TOO_MANY = 3  # kinds of findings at once; what is missing and what is out of its band count as one
LEAST_COHERENCE = 0.45  # of voxel neighbours within the head that have the same label; 0.68 and more in newborns
UNSURE, VERY_UNSURE = 0.24, 0.32  # mean entropy over the tissues: 0.14 in newborns, 0.29 and more in adults and noise
COARSE_MM = 4.0


@dataclass(frozen=True)
class Finding:
    """Something that a newborn's segmentation should not show: ``level`` is "check" or "fail", ``kind`` a short key."""

    level: str
    kind: str
    text: str


@dataclass(frozen=True)
class Plausibility:
    """The verdict on one result; the worst finding decides."""

    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """ "pass", "check" (look at it before using it) or "fail" (this is not a newborn's brain segmented)."""
        levels = {finding.level for finding in self.findings}
        return FAIL if FAIL in levels else CHECK if CHECK in levels else PASS

    def with_doubts(self, texts: Sequence[str]) -> Plausibility:
        """The same and more to check, in words."""
        return Plausibility((*self.findings, *(Finding(CHECK, "scan", text) for text in texts)))

    def to_json(self) -> dict[str, object]:
        """For the side-car."""
        findings = [{"Level": f.level, "Kind": f.kind, "Text": f.text} for f in self.findings]
        return {"Verdict": self.verdict, "Findings": findings}


@dataclass(frozen=True)
class Evidence:
    """What besides the label map is known; everything may be left out.

    Attributes:
        age_weeks: post-menstrual age as given.
        model_age_weeks: as the model tells it.
        brain_mm: distance image of the brain finder (mm to what lies inside the skull, negative inside).
        entropy: mean entropy over the tissues, 0-1.
        doubts: what was already odd about the scan, in words: each is a finding to check.
    """

    age_weeks: float | None = None
    model_age_weeks: float | None = None
    brain_mm: sitk.Image | None = None
    entropy: float | None = None
    doubts: tuple[str, ...] = ()


def assess(label_map: sitk.Image, evidence: Evidence = Evidence()) -> Plausibility:
    """Judge one label map (uint8, values of tissues.py).

    Returns:
        Findings in the order in which a person would want to read them.
    """
    labels, grid = _on_standard_grid(label_map)
    full = np.bincount(sitk.GetArrayViewFromImage(label_map).ravel(), minlength=NUMBER_OF_CLASSES)
    volumes = {t.key: float(full[t.index]) * Grid.of(label_map).voxel_volume_mm3 / 1000 for t in PHYSIOLOGICAL}
    findings = _size(volumes, evidence)
    if sum(volumes[t.key] for t in PHYSIOLOGICAL if t.brain) < 10:  # what is odd about the scan may tell why
        findings.insert(0, Finding(FAIL, "nothing", "Next to no brain tissue was found in this scan."))
    else:
        findings += _order(labels)
        findings += _places(labels, grid)
        findings += _missing(volumes)
        findings += _pieces(labels, grid)
        findings += _symmetry(labels, grid)
        findings += _against_finder(labels, grid, evidence.brain_mm)
        findings += _signal(evidence)
        findings += _proportions(volumes, evidence)
        findings += _together(findings)
    findings += [Finding(CHECK, "scan", text) for text in evidence.doubts]
    return Plausibility(tuple(sorted(findings, key=lambda f: f.level != FAIL)))


def _together(findings: Sequence[Finding]) -> list[Finding]:
    """Several unusual things at once are no longer one unusual newborn."""
    kinds = {"volumes" if finding.kind == "missing" else finding.kind for finding in findings}
    if len(kinds) < TOO_MANY:
        return []
    return [
        Finding(FAIL, "together", "So much at once is unusual that this is hardly a newborn's brain, or not all of it.")
    ]


def _size(volumes: Mapping[str, float], evidence: Evidence) -> list[Finding]:
    """The whole against that of newborns, and of this age where it is given."""
    total, tissue = sum(volumes.values()), sum(volumes[t.key] for t in PHYSIOLOGICAL if t.brain)
    if evidence.brain_mm is not None:  # the larger of two measurements: a network may not see all of an adult's brain
        array = sitk.GetArrayViewFromImage(evidence.brain_mm)
        total = max(total, np.count_nonzero(array < 0) * Grid.of(evidence.brain_mm).voxel_volume_mm3 / 1000)
    measured = f"What lies inside the skull measures {total:.0f} mL, {tissue:.0f} mL of it brain tissue"
    usual = f"in newborns of {YOUNGEST:g} to {OLDEST:g} weeks it is about 110 to 640 mL, at most 550 mL of it tissue"
    if total > LARGE_ML or tissue > LARGE_BRAIN_ML:
        level = FAIL if total > TOO_LARGE_ML or tissue > TOO_LARGE_BRAIN_ML else CHECK
        text = f"{measured}; {usual}: this is an older child or an adult, or the scan's voxel size is wrong."
        return [Finding(level, "not a newborn", text)]
    if total < SMALL_ML:
        level = FAIL if total < TOO_SMALL_ML else CHECK
        text = f"{measured}; {usual}: most of the brain was not found, or the scan's voxel size is wrong."
        return [Finding(level, "too small", text)]
    if evidence.age_weeks is not None:
        low, high = GROWTH[INTRACRANIAL].range_ml(evidence.age_weeks)
        if not low <= total <= high:
            text = (
                f"{measured}; at {evidence.age_weeks:g} weeks {low:.0f} to {high:.0f} mL are plausible. Check the age "
                "and that the scan is the right one."
            )
            return [Finding(CHECK, "size for age", text)]
    return []


def _in_band(tissue: str, volume_ml: float, age_weeks: float) -> bool:
    low, high = GROWTH[tissue].range_ml(age_weeks)
    return low <= volume_ml <= high


def _proportions(volumes: Mapping[str, float], evidence: Evidence) -> list[Finding]:
    """Each tissue against its growth band at the age given, else told by the model, else that fits the size."""
    total = sum(volumes.values())
    age, whence = evidence.age_weeks, "of this age"
    if age is None and evidence.model_age_weeks is not None:
        age, whence = evidence.model_age_weeks, "of the age that the model tells"
    if age is None or not _in_band(INTRACRANIAL, total, age):  # a wrong age is one finding, not one a tissue
        age, whence = age_of_size(total), "with a brain of this size"
    odd = []
    for tissue in PHYSIOLOGICAL:
        low, high = GROWTH[tissue.key].range_ml(age)
        if not low <= volumes[tissue.key] <= high:
            odd.append(f"{tissue.name} {volumes[tissue.key]:.1f} mL ({low:.1f} to {high:.1f} mL)")
    if not odd:
        return []
    text = f"Volumes that are unusual for a newborn {whence} ({age:.0f} weeks; in brackets what is plausible): "
    return [Finding(FAIL if len(odd) >= 5 else CHECK, "volumes", text + "; ".join(odd) + ".")]


def _order(labels: np.ndarray) -> list[Finding]:
    """Tissues hang together, and white matter lies deeper than the cortex."""
    from scipy import ndimage

    same = []
    for axis in range(3):
        first = np.take(labels, range(labels.shape[axis] - 1), axis)
        shown = first > 0
        same.append(float((np.diff(labels.astype(np.int16), axis=axis) == 0)[shown].mean()) if shown.any() else 0.0)
    if np.mean(same) < LEAST_COHERENCE:
        return [Finding(FAIL, "scattered", "The labels are scattered like noise: no tissue hangs together.")]
    inside = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad((labels > 0) & (labels != 4), 3), iterations=2))
    depth = ndimage.distance_transform_edt(inside)[3:-3, 3:-3, 3:-3] * GRID_MM
    cortex, white = labels == 2, labels == 3
    if cortex.any() and white.any():
        deeper = float(depth[white].mean() - depth[cortex].mean())
        if deeper < 1.0:
            level = FAIL if deeper < 0.0 else CHECK
            return [Finding(level, "inside out", "White matter does not lie deeper than the cortex as it does in every "
                            f"brain ({deeper:+.1f} mm, at least 2 mm in newborns): the contrast is not a newborn's, T1 "
                            "and T2 may be exchanged, or this is not a brain.")]  # fmt: skip
    return []


# Tissue, where its middle may lie below (-) or above the cerebrum's middle, in front (-) or behind, and how far to a
# side, all in standard deviations of the cerebrum's extent along that axis. ALBERTs and templates: cerebellum -2.0 to
# -1.8 and 0.7 to 1.1, brainstem -1.7 to -1.6 and 0.1 to 0.3, hippocampus -1.4 to -1.3 and -0.2 to -0.1, the rest
# within 0.5 of the middle; sides 0.3 at most. A head tilted by 40 degrees stays within.
_PLACES = (
    (6, (-3.2, -0.4), (-0.7, 2.3), 0.8),
    (8, (-3.0, -0.4), (-1.2, 1.7), 0.7),
    (9, (-2.4, -0.1), (-1.6, 1.4), 0.7),
    (5, (-1.3, 1.3), (-1.3, 1.3), 0.8),
    (7, (-1.3, 1.0), (-1.3, 1.0), 0.6),
)


def _places(labels: np.ndarray, grid: Grid) -> list[Finding]:
    """Structures that lie where they cannot: above the brain's middle, in front of it, to one side."""
    cerebrum = _positions(np.isin(labels, (2, 3, 7, 9)), grid)
    if len(cerebrum) < 1000:
        return []
    middle, spread = cerebrum.mean(0), cerebrum.std(0)
    above, elsewhere = [], []
    for index, heights, depths, farthest in _PLACES:
        points = _positions(labels == index, grid)
        if len(points) < 50:
            continue
        aside, behind, up = (points.mean(0) - middle) / spread
        name = TISSUES[index].name.lower()
        if up > heights[1] and index in (6, 8):
            above.append((name, up))
        elif not (heights[0] <= up <= heights[1] and depths[0] <= behind <= depths[1] and abs(aside) <= farthest):
            elsewhere.append(name)
    findings = []
    if above:
        names = " and ".join(name for name, _ in above)
        text = (
            f"At the height of the brain's middle or above it: {names}. The orientation in the scan's header may be "
            "wrong (upside down), or this is not a brain."
        )
        findings.append(Finding(FAIL if max(up for _, up in above) > 0.2 else CHECK, "place", text))
    if elsewhere:
        text = f"Not where it lies in any brain: {', '.join(elsewhere)}. Check the scan's orientation and the labels."
        findings.append(Finding(FAIL if len(elsewhere) > 2 else CHECK, "place", text))
    return findings


def _missing(volumes: Mapping[str, float]) -> list[Finding]:
    """Structures that are not there, or too small for a brain of this size: cut off, or not found."""
    rest = sum(v for k, v in volumes.items() if k not in ("cerebellum", "brainstem"))
    age = age_of_size(1.07 * rest)
    gone = []
    for key in ("cerebellum", "brainstem", "deep_gm", "hippocampus", "cortical_gm", "wm"):
        usual = GROWTH[key].expected_ml(age)
        if volumes[key] < MISSING_SHARE * usual:
            name = next(t.name for t in PHYSIOLOGICAL if t.key == key)
            gone.append(f"{name.lower()} ({volumes[key]:.1f} mL, usually {usual:.1f})")
    if not gone:
        return []
    return [Finding(CHECK, "missing", f"Missing or cut in a brain of this size: {'; '.join(gone)}. The extraction or "
                    "the field of view may have removed it; its volume and the totals mean nothing.")]  # fmt: skip


def _pieces(labels: np.ndarray, grid: Grid) -> list[Finding]:
    """One brain, and each of its single structures, in one piece."""
    from scipy import ndimage

    findings = []
    whole, _ = ndimage.label(np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain]))
    sizes = np.sort(np.bincount(whole.ravel())[1:])[::-1]
    if len(sizes) > 1 and sizes[0] < 0.97 * sizes.sum():
        share = 100 * (1 - sizes[0] / sizes.sum())
        level = FAIL if share > 15 else CHECK
        findings.append(Finding(level, "pieces", f"{share:.0f} % of the brain tissue is not connected to the brain: "
                                "something outside the brain was labelled."))  # fmt: skip
    for index in (6, 7, 8):
        parts, count = ndimage.label(ndimage.binary_dilation(labels == index) & (labels > 0))
        if count < 2:
            continue
        sizes = np.sort(np.bincount(parts[labels == index].ravel(), minlength=count + 1)[1:])[::-1]
        second = sizes[1] * grid.voxel_volume_mm3 / 1000
        pair = index == 7 and sizes[1] > 0.6 * sizes[0]  # the two sides of the deep grey matter
        if sizes[1] > SECOND_PIECE * sizes.sum() and second > 0.4 and not pair:
            name = TISSUES[index].name
            findings.append(Finding(CHECK, "pieces", f"{name} in two places: a second piece of {second:.1f} mL."))
    return findings


def _symmetry(labels: np.ndarray, grid: Grid) -> list[Finding]:
    cerebrum = _positions(np.isin(labels, (2, 3)), grid)
    deep = _positions(np.isin(labels, (5, 7, 8)), grid)
    if len(cerebrum) < 1000 or len(deep) < 50:
        return []
    middle = float(deep[:, 0].mean())
    asymmetry = 2 * float((cerebrum[:, 0] > middle).mean()) - 1
    if abs(asymmetry) <= MAX_ASYMMETRY:
        return []
    side = "left" if asymmetry > 0 else "right"
    return [Finding(CHECK, "asymmetry", f"The {side} hemisphere is {100 * abs(asymmetry):.0f} % of both larger than "
                    "the other: part of one may be cut, not found or lost.")]  # fmt: skip


def _against_finder(labels: np.ndarray, grid: Grid, brain_mm: sitk.Image | None) -> list[Finding]:
    """Tissue outside the brain that the finder saw, and brain without tissue."""
    if brain_mm is None:
        return []
    blank = grid.image(np.zeros(grid.shape, np.uint8))
    far = float(sitk.GetArrayViewFromImage(brain_mm).max())
    distance = sitk.GetArrayFromImage(
        sitk.Resample(brain_mm, blank, sitk.Transform(), sitk.sitkLinear, max(far, 10.0), sitk.sitkFloat32)
    )
    tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain])
    findings = []
    outside = float((distance[tissue] > 3.0).mean()) if tissue.any() else 0.0
    if outside > MAX_OUTSIDE:
        level = FAIL if outside > TOO_MUCH_OUTSIDE else CHECK
        findings.append(Finding(level, "outside the brain", f"{100 * outside:.0f} % of the brain tissue was labelled "
                                "outside the skull's inside as the brain finder sees it."))  # fmt: skip
    inner = distance < -2.0
    empty = float(np.isin(labels[inner], (0, 4)).mean()) if inner.any() else 1.0
    if empty > MAX_UNLABELLED:
        findings.append(Finding(CHECK, "unlabelled", f"{100 * empty:.0f} % of the brain that the finder sees was left "
                                "without a tissue."))  # fmt: skip
    return findings


def _signal(evidence: Evidence) -> list[Finding]:
    """How sure the network was."""
    findings = []
    if evidence.entropy is not None and evidence.entropy > UNSURE:
        text = (
            f"The network was unsure about many voxels: mean entropy {evidence.entropy:.2f}, in newborns like those it "
            "knows about 0.15."
        )
        findings.append(Finding(FAIL if evidence.entropy > VERY_UNSURE else CHECK, "unsure", text))
    return findings


def evidence_of(
    probabilities: torch.Tensor | np.ndarray, scan: Scan, model_age_weeks: float | None,
    brain_mm: sitk.Image | None, doubts: Sequence[str],
) -> Evidence:  # fmt: skip
    """What a segmentation leaves to judge it by.

    Args:
        probabilities: (10, z, y, x) on the network's grid, on any device; every second voxel is looked at.
        brain_mm: what the brain finder saw.
        doubts: what was odd about the scan, in words.
    """
    some_voxels = probabilities[:, ::2, ::2, ::2]
    shares = np.asarray(some_voxels.cpu() if hasattr(some_voxels, "cpu") else some_voxels, np.float32)
    tissue = np.isin(shares.argmax(0), [t.index for t in PHYSIOLOGICAL])
    entropy = None
    if tissue.any():
        some = np.clip(shares[:, tissue], 1e-7, 1)
        entropy = float(-(some * np.log(some)).sum(0).mean() / np.log(NUMBER_OF_CLASSES))
    return Evidence(scan.age_weeks, model_age_weeks, brain_mm, entropy, tuple(doubts))


def coarse_warning(scan: Scan) -> list[str]:
    """A warning where the slices or voxels are larger than any that a model here has learned from."""
    spacing = scan.reference.GetSpacing()
    if max(spacing) <= COARSE_MM:
        return []
    size = " x ".join(f"{s:.1f}" for s in spacing)
    text = (
        f"The voxels measure {size} mm; the models have learned from up to {COARSE_MM:g} mm: thin tissues may be lost."
    )
    return [text]


def _on_standard_grid(label_map: sitk.Image) -> tuple[np.ndarray, Grid]:
    """Labels (z, y, x) around the head at ``GRID_MM`` along the patient's axes, and their grid."""
    full, own = sitk.GetArrayViewFromImage(label_map), Grid.of(label_map)
    occupied = [np.flatnonzero(full.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    if not len(occupied[0]):
        return np.zeros((1, 1, 1), np.uint8), own
    first, last = ([int(o[end]) for o in occupied[::-1]] for end in (0, -1))
    box = own.crop(tuple(first), tuple(b - a + 1 for a, b in zip(first, last, strict=True)))  # type: ignore[arg-type]
    corners = box.corners_mm()
    grid = Grid.covering(corners.min(0), corners.max(0), GRID_MM)
    blank = grid.image(np.zeros(grid.shape, np.uint8))
    return sitk.GetArrayFromImage(sitk.Resample(label_map, blank, sitk.Transform(), sitk.sitkNearestNeighbor, 0)), grid


def _positions(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(n, 3) positions in mm to the left, to the back and up (LPS) of a mask's voxels."""
    return np.argwhere(mask)[:, ::-1] * np.asarray(grid.spacing_mm) + np.asarray(grid.origin_mm)
