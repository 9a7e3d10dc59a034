"""Age templates: the average newborn by age, ``age-28/age-28_{T1w,T2w,dseg}.nii.gz``.

Their labels do not tell all tissues apart, which the loss and every score have to know (``Subject.merged``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from NeonatalSegLib.datasets.kinds import TEMPLATE, TEMPLATE_PREFIX
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import BRAINSTEM, CEREBELLUM, DEEP_GM, HIPPOCAMPUS

if TYPE_CHECKING:  # it leads to SimpleITK, which a machine that only trains may not have
    from NeonatalSegLib.datasets.bids import Subject

MERGED = ((CEREBELLUM, BRAINSTEM), (DEEP_GM, HIPPOCAMPUS))  # of each group the first stands for both


def find_templates(folder: str | Path, ages_weeks: Sequence[int]) -> list[Subject]:
    """The templates of these ages as subjects named ``age-28``.

    Raises:
        NeonatalSegError: no age is given, or a file of one is missing.
    """
    from NeonatalSegLib.datasets.bids import Subject

    if not ages_weeks:
        raise NeonatalSegError("No age of a template is given: name some, such as 28,36,44.")
    folder, found = Path(folder), []
    for age in ages_weeks:
        name = f"{TEMPLATE_PREFIX}{age}"
        t1, t2, labels = files = [folder / name / f"{name}_{ending}.nii.gz" for ending in ("T1w", "T2w", "dseg")]
        if missing := [file for file in files if not file.is_file()]:
            there = sorted(p.name.removeprefix(TEMPLATE_PREFIX) for p in folder.glob(f"{TEMPLATE_PREFIX}*"))
            raise NeonatalSegError(
                f"There is no template of {age} weeks: {missing[0]} is missing. Ages in {folder}: "
                f"{', '.join(there) or 'none'}."
            )
        found.append(Subject(name, t1, t2, labels, float(age), MERGED, TEMPLATE))
    return found
