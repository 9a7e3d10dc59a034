"""How large a newborn's tissues are by age: wide bands, to tell a brain from an error, not small from large.

The course over age is that of published growth fits on 593 newborns of the dHCP (Multi-BOUNTI). Their labels are not
ours, so each tissue has a factor, the median over the 15 ALBERTs and 9 age templates (the brainstem and hippocampus:
ALBERTs alone), and a band that holds all of those with room to spare. Not a reference for clinical use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

AGES = (28.0, 32.0, 36.0, 40.0, 44.0)
YOUNGEST, OLDEST = 26.0, 45.0
INTRACRANIAL = "intracranial"


@dataclass(frozen=True)
class Growth:
    """One tissue's volume by age.

    Attributes:
        published_ml: at ``AGES``.
        factor: from the published labels to ours.
        band: an expected volume times this, and divided by it, is still plausible.
    """

    published_ml: tuple[float, ...]
    factor: float
    band: float

    def expected_ml(self, age_weeks: float) -> float:
        """The usual volume at an age, which is taken as 26 weeks where younger and as 45 where older."""
        age = min(max(age_weeks, YOUNGEST), OLDEST)
        k = min(max(int(np.searchsorted(AGES, age)) - 1, 0), len(AGES) - 2)
        slope = (self.published_ml[k + 1] - self.published_ml[k]) / (AGES[k + 1] - AGES[k])
        return self.factor * max(self.published_ml[k] + slope * (age - AGES[k]), 0.2 * self.published_ml[0])

    def range_ml(self, age_weeks: float) -> tuple[float, float]:
        """Lowest and highest plausible volume at an age."""
        usual = self.expected_ml(age_weeks)
        return usual / self.band, usual * self.band


_ALL = (149.0, 239.0, 331.0, 425.0, 521.0)
GROWTH: Mapping[str, Growth] = {
    INTRACRANIAL: Growth(_ALL, 1.03, 1.55),
    "csf": Growth((44, 59, 79, 105, 135), 0.81, 2.3),
    "cortical_gm": Growth((22, 45, 72, 106, 145), 1.23, 1.9),
    "wm": Growth((67, 101, 129, 151, 166), 1.05, 1.6),
    "ventricles": Growth((3.2, 3.4, 3.8, 4.3, 5.0), 1.73, 2.8),
    "cerebellum": Growth((3.2, 7.0, 11.7, 17.4, 23.9), 1.28, 2.0),
    "deep_gm": Growth((4.9, 7.9, 10.9, 13.7, 16.3), 2.05, 2.1),
    "brainstem": Growth((2.9, 4.3, 5.6, 6.8, 8.0), 0.91, 1.8),
    "hippocampus": Growth(_ALL, 0.0049, 1.8),  # none published: a share of the whole
}


def age_of_size(intracranial_ml: float) -> float:
    """The age in weeks, 26 to 45, at which this intracranial volume is the usual one."""
    ages = np.arange(YOUNGEST, OLDEST + 0.01, 0.25)
    usual = [GROWTH[INTRACRANIAL].expected_ml(float(age)) for age in ages]
    return float(np.interp(intracranial_ml, usual, ages))
