"""Populations that look like the release, for tests of who trains and who tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.datasets.splits import Member, Split

ALBERTS = (41, 40, 39, 41, 37, 40, 40, 43, 42, 43, 40, 42, 41)


def scan(name: str, age: float | None) -> Subject:
    return Subject(name, None, None, None, age)


def release(seed: int, singles: int = 531, pairs: int = 88, triples: int = 2) -> list[Subject]:
    """As the release's sessions with T1, T2 and labels: 713 scans of 621 newborns.

    Most are scanned once, around 41 weeks; some preterm first and again at term.
    """
    random = np.random.default_rng([77, seed])
    subjects = []
    for number, sessions in enumerate([1] * singles + [2] * pairs + [3] * triples):
        term = float(np.clip(random.normal(40.8, 1.7), 37, 45.1))
        early = sorted(random.uniform(26.7, 37, sessions - 1))
        late = term if random.random() > 0.1 or sessions > 1 else random.uniform(28, 37)
        ages = [*early, late]
        subjects += [scan(f"sub-CC{number:05d}XX01_ses-{i}{number}", round(a, 2)) for i, a in enumerate(ages)]
    return [subjects[i] for i in random.permutation(len(subjects))]


def ages_of(members: Sequence[Member | Subject]) -> np.ndarray:
    return np.sort([m.age_weeks for m in members])


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    where = np.union1d(a, b)
    share = [np.searchsorted(x, where, side="right") / len(x) for x in (a, b)]
    return float(np.abs(share[0] - share[1]).max())


def significant(n: int, m: int) -> float:
    """The KS distance of two random samples that 5 % of such pairs exceed (large-sample formula)."""
    return 1.36 * float(np.sqrt((n + m) / (n * m)))


def assert_newborns_together(split: Split) -> None:
    sides = [{m.participant for m in members} for members in split.sides.values()]
    assert all(not a & b for a, b in itertools.combinations(sides, 2))
