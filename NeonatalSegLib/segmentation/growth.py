"""How large a newborn's tissues are by age: wide bands, to tell a brain from an error, and indicative z-scores.

The course over age is that of published growth fits on 593 newborns of the dHCP (Multi-BOUNTI). Their labels are not
ours, so each tissue has a factor, the median over the 15 ALBERTs and 9 age templates (the brainstem and hippocampus:
ALBERTs alone), and a band that holds all of those with room to spare. z-scores take volumes as log-normal, with the
published standard deviations widened (``WIDER``) to the spread of the ALBERTs. Not a reference for clinical use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

AGES = (28.0, 32.0, 36.0, 40.0, 44.0)
YOUNGEST, OLDEST = 26.0, 45.0
INTRACRANIAL = "intracranial"
# Of the published standard deviations: other labels, ages in whole weeks and our factor spread the volumes further.
# With 1.6, 54, 78 and 92 % of the 120 volumes of the ALBERTs' true label maps lie in the central 50, 80 and 95 %.
WIDER = 1.6
# Age in weeks: a constant, and what it grows with the logarithms of the cortex in mL (hippocampus included) and of the
# deep grey matter's share of the brain.
AGE_BY_VOLUMES = (21.89, 10.73, 13.29)
TOLD_WEEKS = (24.0, 48.0)  # four weeks beyond what the fit saw


@dataclass(frozen=True)
class Growth:
    """One tissue's volume by age.

    Attributes:
        published_ml: at ``AGES``.
        factor: from the published labels to ours.
        band: an expected volume times this, and divided by it, is still plausible.
        published_sd_ml: standard deviation between newborns at ``AGES``; None where none was published.
    """

    published_ml: tuple[float, ...]
    factor: float
    band: float
    published_sd_ml: tuple[float, ...] | None = None

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

    def usual_ml(self, age_weeks: float) -> tuple[float, float] | None:
        """Volumes at z-scores of -2 and 2, at an age of 26 to 45 weeks; None at others and where no spread is known."""
        spread = self._spread(age_weeks)
        if spread is None:
            return None
        usual = self.expected_ml(age_weeks)
        return usual * math.exp(-2 * spread), usual * math.exp(2 * spread)

    def z_score(self, volume_ml: float, age_weeks: float | None) -> float | None:
        """Standard deviations of its logarithm above the usual volume; None where :meth:`usual_ml` is, or without age.

        Example:
            >>> round(GROWTH["wm"].z_score(180.0, 40.0), 1)
            0.8
        """
        spread = None if age_weeks is None else self._spread(age_weeks)
        if spread is None or age_weeks is None:
            return None
        share = volume_ml / self.expected_ml(age_weeks)
        return math.log(max(share, 1e-3)) / spread

    def _spread(self, age_weeks: float) -> float | None:
        """Standard deviation of the volume's logarithm."""
        if self.published_sd_ml is None or not YOUNGEST <= age_weeks <= OLDEST:
            return None
        shares = np.divide(self.published_sd_ml, self.published_ml)
        return WIDER * float(np.interp(age_weeks, AGES, shares))


_ALL = (149.0, 239.0, 331.0, 425.0, 521.0)
GROWTH: Mapping[str, Growth] = {
    INTRACRANIAL: Growth(_ALL, 1.03, 1.55, (18, 23, 30, 37, 44)),
    "csf": Growth((44, 59, 79, 105, 135), 0.81, 2.3, (9, 11, 12, 14, 15)),
    "cortical_gm": Growth((22, 45, 72, 106, 145), 1.23, 1.9, (4, 5, 7, 9, 12)),
    "wm": Growth((67, 101, 129, 151, 166), 1.05, 1.6, (8, 11, 13, 15, 16)),
    "ventricles": Growth((3.2, 3.4, 3.8, 4.3, 5.0), 1.73, 2.8, (1.0, 1.1, 1.2, 1.3, 1.3)),
    "cerebellum": Growth((3.2, 7.0, 11.7, 17.4, 23.9), 1.28, 2.0, (0.6, 1.0, 1.3, 1.8, 2.2)),
    "deep_gm": Growth((4.9, 7.9, 10.9, 13.7, 16.3), 2.05, 2.1, (0.6, 0.7, 0.9, 1.1, 1.1)),
    "brainstem": Growth((2.9, 4.3, 5.6, 6.8, 8.0), 0.91, 1.8, (0.3, 0.4, 0.4, 0.5, 0.5)),
    "hippocampus": Growth(_ALL, 0.0049, 1.8),  # none published: a share of the whole
}


def age_of_size(intracranial_ml: float) -> float:
    """The age in weeks, 26 to 45, at which this intracranial volume is the usual one."""
    ages = np.arange(YOUNGEST, OLDEST + 0.01, 0.25)
    usual = [GROWTH[INTRACRANIAL].expected_ml(float(age)) for age in ages]
    return float(np.interp(intracranial_ml, usual, ages))


def shown_age(volumes_ml: Mapping[str, float]) -> float | None:
    """The age in weeks of :func:`age_of_volumes`, also where no newborn is so old or young: to doubt a given age by.

    Returns:
        None where a volume is missing or 0.
    """
    brain = [volumes_ml.get(key, 0.0) for key in ("wm", "cerebellum", "brainstem")]
    deep = volumes_ml.get("deep_gm", 0.0)
    cortex = volumes_ml.get("cortical_gm", 0.0) + volumes_ml.get("hippocampus", 0.0)  # templates do not part them
    if min(*brain, deep, cortex) <= 0:
        return None
    constant, of_cortex, of_deep = AGE_BY_VOLUMES
    return constant + of_cortex * math.log(cortex) + of_deep * math.log(deep / (sum(brain) + cortex + deep))


def age_of_volumes(volumes_ml: Mapping[str, float]) -> float | None:
    """The post-menstrual age in weeks that the tissues show: the cortex grows, and deep grey matter becomes a smaller
    part of the brain.

    Fitted to 11 ALBERTs and 9 age templates (``benchmarks/age_by_volumes.py``). By the default model's volumes newborns
    kept out are 0.7 to 0.9 weeks off on average, and a fetal atlas of another scanner is 2.9 too old (docs/report.md).

    Args:
        volumes_ml: by tissue key, as of :func:`NeonatalSegLib.evaluation.metrics.volumes_ml`.

    Returns:
        None where a volume is missing or 0, and outside ``TOLD_WEEKS``: such volumes are no newborn's.

    Example:
        >>> volumes = {key: growth.expected_ml(36.0) for key, growth in GROWTH.items()}
        >>> round(age_of_volumes(volumes), 1)
        37.2
    """
    age = shown_age(volumes_ml)
    return age if age is not None and TOLD_WEEKS[0] <= age <= TOLD_WEEKS[1] else None


def signed_text(z_score: float) -> str:
    """A z-score for a table.

    Example:
        >>> signed_text(-1.26), signed_text(-0.01)
        ('-1.3', '+0.0')
    """
    return f"{round(z_score, 1) + 0.0:+.1f}"


def centile_text(z_score: float) -> str:
    """The centile of a z-score in words, for a normal distribution.

    Example:
        >>> centile_text(0.0), centile_text(-1.2), centile_text(3.0)
        ('50th centile', '12th centile', 'above the 99th centile')
    """
    percent = 100 * NormalDist().cdf(z_score)
    if not 1 <= percent <= 99:
        return "below the 1st centile" if percent < 1 else "above the 99th centile"
    whole = round(percent)
    ending = "th" if whole in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(whole % 10, "th")
    return f"{whole}{ending} centile"
