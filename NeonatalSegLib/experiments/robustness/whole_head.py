"""A held-out newborn's scan with another person's head around its brain, for the matrix's cells of whole heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.scan import Scan, make_scan

SPACING_MM = 0.86  # of the ALBERTs


def mask_of(head: Path) -> Path:
    """The brain mask beside a head's T1.

    Raises:
        NeonatalSegError: one of the two is not there.
    """
    mask = head.with_name(head.name.replace("_T1w.nii", "_desc-brain_mask.nii"))
    for file in (head, mask):
        if not file.is_file() or mask == head:
            raise NeonatalSegError(
                f"A whole head is NAME_T1w.nii.gz with NAME_desc-brain_mask.nii.gz beside it: {file} is not there."
            )
    return mask


def in_whole_head(t1: Path, t2: Path, labels: Path, head: Path | None, *, name: str, age_weeks: float | None) -> Scan:
    """T1 and T2 of a newborn whose brain lies in the skull of ``head``, where it lay before.

    Args:
        head: T1 of a whole head, its mask beside it (:func:`mask_of`); its inside of the skull is warped onto the
            newborn's, its face made small (``brain_finder/heads.py:whole_head``). None: no head, on the same voxels.
    """
    from NeonatalSegLib.brain_finder.heads import load_head, load_newborn, whole_head

    newborn = load_newborn(name, t1, t2, labels, SPACING_MM)
    images = newborn.images if head is None else whole_head(newborn, load_head(head.name, head, mask_of(head)))[0]
    origin = tuple((np.asarray(newborn.grid.origin_mm) + newborn.middle_mm).tolist())
    grid = replace(newborn.grid, origin_mm=origin)
    first, second = (grid.image(image) for image in images)
    return make_scan(first, second, name=name, age_weeks=age_weeks)
