"""Which tissues a rater has had to correct: where the pre-fill errs, look there first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.scans.grid import plane
from NeonatalSegLib.tissues import TISSUES


def corrected_shares(session: AnnotationSession) -> dict[int, float]:
    """By label value, how much of a tissue was changed in the completed slices: 0 nothing, 1 everything.

    The share of voxels with this label before or after that have another one on the other side. Tissues that no
    completed slice shows are left out.

    Example:
        >>> corrected_shares(AnnotationSession.open("study", "Anna"))  # doctest: +SKIP
        {1: 0.08, 2: 0.11, 9: 0.31}
    """
    changed, total = np.zeros(len(TISSUES)), np.zeros(len(TISSUES))
    for item in session.items:
        if item.state != "done":
            continue
        planned = item.slice
        cut = plane(session.plan.grids[planned.scan], planned.axis, planned.index)
        before, after = session.study.prefill(planned.scan)[cut], session.label_plane(planned.key)
        for tissue in TISSUES[1:]:
            either = (before == tissue.index) | (after == tissue.index)
            total[tissue.index] += np.count_nonzero(either)
            changed[tissue.index] += np.count_nonzero(either & (before != after))
    return {t.index: float(changed[t.index] / total[t.index]) for t in TISSUES[1:] if total[t.index]}


def by_likely_error(labels: np.ndarray, shares: dict[int, float]) -> list[int]:
    """The tissues of a slice (2D uint8), the one that most likely needs a correction first.

    Those that were corrected most so far (``corrected_shares``) come first; of the others the smallest, in which a few
    wrong voxels weigh most.
    """
    sizes = np.bincount(labels.ravel(), minlength=len(TISSUES))
    there: Sequence[int] = [t.index for t in TISSUES[1:] if sizes[t.index]]
    return sorted(there, key=lambda index: (-shares.get(index, 0.0), sizes[index]))
