"""How far two raters of a study agree: DSC per tissue on the slices that both have completed, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from NeonatalSegLib.annotation.record import read_record
from NeonatalSegLib.annotation.study import Study
from NeonatalSegLib.tissues import PHYSIOLOGICAL


@dataclass(frozen=True)
class Agreement:
    """Two raters on the slices that both have completed.

    Attributes:
        raters: the two names.
        slices: how many slices both have completed.
        dsc: DSC (0-1) by tissue key over all voxels of these slices together; None where neither has the tissue.
        differing: 2D bool by slice key, True where the two labels differ.
    """

    raters: tuple[str, str]
    slices: int
    dsc: Mapping[str, float | None]
    differing: Mapping[str, np.ndarray]

    @property
    def mean(self) -> float | None:
        """Mean DSC over the tissues that at least one of them has."""
        values = [value for value in self.dsc.values() if value is not None]
        return float(np.mean(values)) if values else None

    @property
    def text(self) -> str:
        """For people: "Bea, on 4 slices that both have completed: mean DSC 0.912. CSF 0.88, ...", the worst first."""
        if not self.slices:
            return f"{self.raters[1]}: no slice that both have completed."
        plural = "s" if self.slices > 1 else ""
        found = sorted((value, t.name) for t in PHYSIOLOGICAL if (value := self.dsc[t.key]) is not None)
        mean = f"mean DSC {self.mean:.3f}" if self.mean is not None else "no tissue"
        per_tissue = ", ".join(f"{name} {value:.3f}" for value, name in found)
        return (
            f"{self.raters[1]}, on {self.slices} slice{plural} that both have completed: {mean}. {per_tissue}".strip()
        )


def agreement(study: Study, rater: str, other: str) -> Agreement:
    """Compare two raters; works while both are at work.

    Raises:
        NeonatalSegError: a damaged ledger.

    Example:
        >>> agreement(read_study("study"), "Anna", "Bea").mean  # doctest: +SKIP
        0.912
    """
    first, second = (
        {s.slice.key: s.labels for scan in study.scans for s in read_record(study, name)[0].of_scan(scan.name)[1]}
        for name in (rater, other)
    )
    both = [key for key in first if key in second]
    total = {t.key: 0 for t in PHYSIOLOGICAL}
    same = dict(total)
    for key in both:
        for t in PHYSIOLOGICAL:
            one, two = first[key] == t.index, second[key] == t.index
            total[t.key] += int(one.sum() + two.sum())
            same[t.key] += 2 * int((one & two).sum())
    dsc = {key: same[key] / total[key] if total[key] else None for key in total}
    return Agreement((rater, other), len(both), dsc, {key: first[key] != second[key] for key in both})
