"""What speaks against a segmentation, in words for the user: an age that does not fit, a brain that is cut."""

from __future__ import annotations

import numpy as np

from NeonatalSegLib.tissues import PHYSIOLOGICAL

# Between the age given and another; that of volumes is up to 4.5 off in newborns left out (docs/report.md).
MAX_AGE_GAP_WEEKS, MAX_VOLUMES_GAP_WEEKS = 2.0, 5.0
CUT_SHARE = 0.01  # of the border faces showing brain: above it the field of view cuts the brain


def age_warning(given: float | None, by_model: float | None, by_volumes: float | None = None) -> list[str]:
    """A warning where the age given is far from that which the model tells, or else from that of the tissues' volumes.

    Args:
        given, by_model, by_volumes: post-menstrual ages in weeks; None where there is none.
    """
    told = by_model if by_model is not None else by_volumes
    if given is None or told is None:
        return []
    far = MAX_VOLUMES_GAP_WEEKS if by_model is None else MAX_AGE_GAP_WEEKS
    if round(abs(given - told), 1) <= far:  # as it is shown: 42.0 and 39.99 are not "more than 2"
        return []
    who = "the volumes of its tissues are those of about" if by_model is None else "the model estimates"
    text = (
        f"The age given is {given:.1f} weeks, but {who} {told:.1f} weeks: more than {far:g} weeks apart. Check the age "
        "and that the scan is the right one; an unusual brain may also be the reason, and then look at the "
        "segmentation with care."
    )
    return [text]


def cut_brain_warning(labels: np.ndarray) -> list[str]:
    """A warning where one of the six outer faces of the label map (z, y, x) shows tissue, i.e. the brain is cut."""
    tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL if t.brain])
    total = np.count_nonzero(tissue)
    for axis in range(3):
        for end in (0, -1):
            face = np.take(tissue, end, axis)
            widest = max(1, int(tissue.sum(tuple(a for a in range(3) if a != axis)).max()))
            if total and np.count_nonzero(face) > max(20, CUT_SHARE * face.size, 0.15 * widest):
                return ["The brain reaches the edge of the field of view: it may be cut, and volumes too small."]
    return []
