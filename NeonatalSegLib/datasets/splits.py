"""Who trains, who validates, who tests: seeded splits by age that never part the sessions of one newborn.

A draw "stratified by age" sorts the newborns by age, cuts the row into as many equal strata (quantile bins) as newborns
are wanted and draws one from each: the ages of a draw follow those of the population as closely as a random draw can.
Where the cuts begin is drawn as well, so that every newborn has the same chance at every age, also where the strata
cannot all be of one size. Newborns with two sessions (mostly preterm, scanned again at term) are drawn apart from those
with one, so that a wanted number of scans is met exactly with whole newborns.

The same (subjects, numbers, seed) always gives the same split, whatever the order of the subjects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from NeonatalSegLib.errors import NeonatalSegError

PAPER_SHARE = 0.20  # of the 709 sessions of the release that have T1, T2 and labels: 142 scans
PAPER_TRAIN, PAPER_VALIDATION, PAPER_TEST = 114, 28, 100
PAPER_SOURCE, PAPER_TARGET_TRAIN, PAPER_TARGET_TEST = 100, 40, 80


class Aged(Protocol):
    """What a split needs to know of a subject: ``bids.Subject`` and ``cache.CachedSubject`` both have it."""

    @property
    def name(self) -> str: ...

    @property
    def age_weeks(self) -> float | None: ...


AnySubject = TypeVar("AnySubject", bound=Aged)


@dataclass(frozen=True)
class Member:
    """One scan in a split: ``sub-X`` or ``sub-X_ses-Y`` and its age in weeks."""

    name: str
    age_weeks: float

    @property
    def participant(self) -> str:
        """``sub-X``: the newborn, whose sessions stay together."""
        return self.name.split("_")[0]


@dataclass(frozen=True)
class Split:
    """Scans by side, for example "train", "validation", "test"; within a side sorted by name.

    Raises:
        NeonatalSegError: a newborn stands on two sides, or a scan is listed twice.

    Example:
        >>> Split({"train": (Member("sub-A", 40.0),), "test": (Member("sub-B", 41.0),)}).names("test")
        ('sub-B',)
    """

    sides: Mapping[str, tuple[Member, ...]]

    def __post_init__(self) -> None:
        of_participant: dict[str, str] = {}
        seen: set[str] = set()
        for side, members in self.sides.items():
            for member in members:
                other = of_participant.setdefault(member.participant, side)
                if other != side:
                    raise NeonatalSegError(
                        f"The newborn {member.participant} stands on two sides of the split ({other} and {side}): "
                        "the sessions of one newborn belong together."
                    )
                if member.name in seen:
                    raise NeonatalSegError(f"The scan {member.name} is listed twice in the split.")
                seen.add(member.name)

    def names(self, side: str) -> tuple[str, ...]:
        """Names of the scans of one side; NeonatalSegError where there is no such side."""
        if side not in self.sides:
            raise NeonatalSegError(f"The split has no side {side!r}: it has {', '.join(self.sides)}.")
        return tuple(member.name for member in self.sides[side])

    def select(self, side: str, subjects: Sequence[AnySubject]) -> list[AnySubject]:
        """Those of ``subjects`` that stand on ``side``, in the split's order; NeonatalSegError where one is missing."""
        by_name = {subject.name: subject for subject in subjects}
        if missing := [name for name in self.names(side) if name not in by_name]:
            raise NeonatalSegError(
                f"{missing[0]} stands on the side {side!r} of the split but is not among the {len(by_name)} subjects "
                "given: use the split with the data that it was made from."
            )
        return [by_name[name] for name in self.names(side)]

    def taken(self, sides: Sequence[str], optional: Sequence[str], subjects: Sequence[Aged]) -> Split:
        """The split with these sides alone, for use on ``subjects``; an optional side that it has not is empty.

        Raises:
            NeonatalSegError: a side is missing or empty, or one of its scans is not among the subjects.
        """
        if missing := [side for side in sides if not self.sides.get(side)]:
            raise NeonatalSegError(
                f"The split has no scan on a side {missing[0]!r}: it has {', '.join(self.sides)}, and "
                f"{', '.join(sides)} are needed. Make one with another --kind (neonatalseg split)."
            )
        for side in (*sides, *(side for side in optional if side in self.sides)):
            self.select(side, subjects)
        return Split({side: self.sides.get(side, ()) for side in (*sides, *optional)})


# --- the splits of the paper ------------------------------------------------------------------------------------------


def representative_subset(subjects: Sequence[Aged], share: float, *, seed: int = 0) -> Split:
    """Sides "subset" (``share`` of the scans, rounded; ages as in the population) and "rest".

    Raises:
        NeonatalSegError: ``share`` is not between 0 and 1, or a subject has no age.
    """
    if not 0 < share < 1:
        raise NeonatalSegError(f"A share of {share:g} was asked for: give a number between 0 and 1, for example 0.2.")
    newborns = _newborns(subjects)
    count = round(share * sum(map(len, newborns)))
    if not 0 < count < len(subjects):
        raise NeonatalSegError(f"A share of {share:g} of {len(subjects)} scans is {count}: ask for another share.")
    subset, rest = _draw(newborns, count, np.random.default_rng(seed), "the subset")
    return _split_of({"subset": subset, "rest": rest})


def paper_sizes(scans: int, share: float = PAPER_SHARE) -> tuple[int, int]:
    """(training, validation) scans that the paper would take of so many: 20 % of 709 are its 114 and 28."""
    total = round(share * scans)
    validation = round(total * PAPER_VALIDATION / (PAPER_TRAIN + PAPER_VALIDATION))
    return total - validation, validation


def paper_split(
    subjects: Sequence[Aged],
    *,
    train: int = PAPER_TRAIN,
    validation: int = PAPER_VALIDATION,
    test: int = PAPER_TEST,
    seed: int = 0,
) -> Split:
    """Sides "train", "validation", "test" of the paper (section 2, "Dataset"), numbers counted in scans.

    Training and validation are drawn together from the population, the independent test scans from the rest, and then
    training and validation are parted; each draw is stratified by age. Newborns on no side are left out.

    Raises:
        NeonatalSegError: fewer scans than asked for (both numbers are told), or a subject without an age.
    """
    newborns = _newborns(subjects)
    _enough(newborns, (train, validation, test), f"{train} training, {validation} validation and {test} test scans")
    random = np.random.default_rng(seed)
    subset, rest = _draw(newborns, train + validation, random, "training and validation")
    tested, _ = _draw(rest, test, random, "the test set")
    validating, training = _draw(subset, validation, random, "the validation set")
    return _split_of({"train": training, "validation": validating, "test": tested})


def transfer_split(
    subjects: Sequence[Aged],
    *,
    source: int = PAPER_SOURCE,
    target_train: int = PAPER_TARGET_TRAIN,
    target_test: int = PAPER_TARGET_TEST,
    source_test: int = 0,
    seed: int = 0,
) -> Split:
    """Sides "source" (oldest scans), "target-train" and "target-test" (youngest scans, parted by age and seed).

    Young scans are the rare ones and are taken first. A newborn with a young and an old session therefore stands on
    the target side with the young one, and the old one is used on neither side; the next oldest newborn takes its
    place in the source. Two young sessions of one newborn both train or both test.

    Args:
        source_test: scans of a further side "source-test": those next in age below the source, without a hole (an
            older session of a newborn whose oldest one is in the source is used nowhere).

    Raises:
        NeonatalSegError: fewer scans than asked for (both numbers are told), or a subject without an age.
    """
    newborns = _newborns(subjects)
    wanted = f"{source} source, {target_train} target training and {target_test} target test scans"
    if source_test:
        wanted = f"{source_test} source test, {wanted}"
    _enough(newborns, (source, target_train, target_test, source_test), wanted)
    scans = sorted((m for newborn in newborns for m in newborn), key=lambda m: (m.age_weeks, m.name))
    young = scans[: target_train + target_test]
    in_target = {m.participant for m in young}
    old = [m for m in scans if m.participant not in in_target]
    if len(old) < source:
        raise NeonatalSegError(
            f"{source} source scans were asked for, but only {len(old)} are of newborns without a scan among the "
            f"{len(young)} youngest: ask for fewer."
        )
    oldest = old[len(old) - source :]
    in_source = {m.participant for m in oldest}
    next_oldest = [m for m in old if m.participant not in in_source]
    if len(next_oldest) < source_test:
        raise NeonatalSegError(
            f"{source_test} source test scans were asked for, but only {len(next_oldest)} are of newborns without a "
            "scan in the source or the target: ask for fewer."
        )
    random = np.random.default_rng(seed)
    training, testing = _draw(_together(young), target_train, random, "the target's training set")
    tested = {"source-test": [next_oldest[len(next_oldest) - source_test :]]} if source_test else {}
    return _split_of({"source": [oldest], **tested, "target-train": training, "target-test": testing})


def by_age(subjects: Sequence[Aged], source_min_weeks: float = 41.0, target_max_weeks: float = 39.0) -> Split:
    """Sides "source" (at least ``source_min_weeks`` old) and "target" (at most ``target_max_weeks``), by thresholds.

    For sets too small for :func:`transfer_split`. Ages between the two stand on neither side. A newborn with a session
    on each side stands in the target only, as there.

    Raises:
        NeonatalSegError: thresholds that overlap, nobody on a side, or a subject without an age.
    """
    if target_max_weeks >= source_min_weeks:
        raise NeonatalSegError(
            f"The target goes up to {target_max_weeks:g} weeks and the source starts at {source_min_weeks:g}: "
            "the source must start above the target."
        )
    scans = [m for newborn in _newborns(subjects) for m in newborn]
    target = [m for m in scans if m.age_weeks <= target_max_weeks]
    in_target = {m.participant for m in target}
    source = [m for m in scans if m.age_weeks >= source_min_weeks and m.participant not in in_target]
    if not target or not source:
        ages = sorted(m.age_weeks for m in scans)
        raise NeonatalSegError(
            f"{len(source)} scans of at least {source_min_weeks:g} weeks and {len(target)} of at most "
            f"{target_max_weeks:g} were found among ages {ages[0]:g} to {ages[-1]:g}: both sides need one."
        )
    return _split_of({"source": [source], "target": [target]})


def leave_out_folds(
    subjects: Sequence[Aged], k_test: int, validation: int = 1, folds: int | None = None, seed: int = 0
) -> list[Split]:
    """Folds for small sets: each keeps ``k_test`` newborns out as "test" and ``validation`` as "validation".

    Numbers count newborns (with all their sessions). The newborns are sorted by age and cut into ``k_test`` runs, and
    every fold tests one of each run: a young, a middle, an old one for ``k_test`` 3. No newborn is tested twice. The
    validation newborns are drawn by age from the others, anew for every fold; the rest is "train".

    Args:
        folds: at most (newborns // ``k_test``), which is the default: 4 folds of 3 for 13 newborns test 12 of them.

    Raises:
        NeonatalSegError: fewer newborns than the folds ask for (both numbers are told), or nobody is left to train.
    """
    newborns = _newborns(subjects)
    if k_test < 1 or validation < 0 or (folds is not None and folds < 1):
        raise NeonatalSegError(f"Folds need at least one test newborn and one fold: {k_test}, {folds} were asked for.")
    folds = folds or max(1, len(newborns) // k_test)
    if folds * k_test > len(newborns) or k_test + validation >= len(newborns):
        raise NeonatalSegError(
            f"{folds} folds with {k_test} test and {validation} validation newborns each need at least "
            f"{max(folds * k_test, k_test + validation + 1)} newborns, there are {len(newborns)}: ask for fewer."
        )
    random = np.random.default_rng(seed)
    runs = [[newborns[i] for i in random.permutation(run)] for run in _runs(_by_age(newborns, random), k_test, random)]
    splits = []
    for fold in range(folds):
        tested = [run[fold] for run in runs]
        others = [newborn for newborn in newborns if newborn not in tested]
        drawn = _one_of_each(_by_age(others, random), validation, random)
        splits.append(
            _split_of(
                {
                    "train": [n for i, n in enumerate(others) if i not in drawn],
                    "validation": [others[i] for i in drawn],
                    "test": tested,
                }
            )
        )
    return splits


# --- draws of whole newborns ------------------------------------------------------------------------------------------

Newborn = tuple[Member, ...]  # all sessions of one participant


def _newborns(subjects: Sequence[Aged]) -> list[Newborn]:
    """Subjects by participant, sorted by name, so that the order of ``subjects`` does not matter."""
    if without := sorted(s.name for s in subjects if s.age_weeks is None or not math.isfinite(s.age_weeks)):
        raise NeonatalSegError(
            f"{len(without)} of {len(subjects)} subjects have no age ({', '.join(without[:5])}): a split by age needs "
            "it; add it to participants.tsv or sessions.tsv, or leave these subjects out."
        )
    if len({s.name for s in subjects}) != len(subjects):
        raise NeonatalSegError("A scan is listed twice among the subjects: keep one of each name.")
    return _together([Member(s.name, float(s.age_weeks or 0)) for s in subjects])


def _together(members: Iterable[Member]) -> list[Newborn]:
    groups: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda m: m.name):
        groups.setdefault(member.participant, []).append(member)
    return [tuple(group) for _, group in sorted(groups.items())]


def _enough(newborns: Sequence[Newborn], wanted: Sequence[int], what: str) -> None:
    """The first of the numbers must be at least 1, the others may be 0."""
    have, needed = sum(map(len, newborns)), sum(wanted)
    if min(wanted) < 0 or wanted[0] < 1:
        raise NeonatalSegError(f"{what} were asked for: give whole numbers from 1 (0 for the later ones).")
    if have < needed:
        raise NeonatalSegError(f"{what} ({needed}) were asked for, but only {have} scans are there: ask for fewer.")


def _by_age(newborns: Sequence[Newborn], random: np.random.Generator) -> np.ndarray:
    """Indices of newborns by mean age; equal ages in random order, since names follow the date of recruitment."""
    ages = [sum(m.age_weeks for m in newborn) / len(newborn) for newborn in newborns]
    return np.lexsort((random.permutation(len(newborns)), np.array(ages)))


def _runs(order: np.ndarray, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """The row cut into ``count`` runs; which of them are longer by one is drawn (always the first ones would be)."""
    sizes = np.full(count, len(order) // count)
    sizes[random.permutation(count)[: len(order) % count]] += 1
    return [np.asarray(run) for run in np.split(order, np.cumsum(sizes)[:-1])]


def _one_of_each(order: np.ndarray, count: int, random: np.random.Generator) -> list[int]:
    """One of each of ``count`` strata of the row, every place of the row with the same chance.

    The cuts are evenly spaced from a random start, and the last stratum goes on at the row's beginning: as on a circle,
    no place lies nearer to a cut than another.
    """
    cuts = np.floor((np.arange(count) + random.random()) * len(order) / max(1, count)).astype(int)
    strata = np.split(np.roll(order, -cuts[0]), (cuts - cuts[0])[1:]) if count else []
    return [int(random.choice(stratum)) for stratum in strata]


def _draw(
    newborns: Sequence[Newborn], scans: int, random: np.random.Generator, what: str
) -> tuple[list[Newborn], list[Newborn]]:
    """(drawn, rest): whole newborns with exactly ``scans`` sessions, stratified by age and number of sessions."""
    sizes: dict[int, list[Newborn]] = {}
    for newborn in newborns:
        sizes.setdefault(len(newborn), []).append(newborn)
    available = {size: len(group) for size, group in sorted(sizes.items(), reverse=True)}
    share = scans / max(1, sum(map(len, newborns)))
    # Where a share of a group is no whole number, chance rounds it up or down.
    wanted = {size: share * count + random.uniform(-0.5, 0.5) for size, count in available.items()}
    counts = _counts(available, scans, wanted)
    if counts is None:
        raise NeonatalSegError(
            f"{scans} scans for {what} cannot be met with whole newborns: {sum(map(len, newborns))} scans of "
            f"{len(newborns)} newborns are left, whose sessions stay together. Ask for one scan more or less."
        )
    drawn: list[Newborn] = []
    for size, group in sorted(sizes.items()):
        drawn += [group[i] for i in _one_of_each(_by_age(group, random), counts[size], random)]
    names = {newborn[0].name for newborn in drawn}
    return drawn, [newborn for newborn in newborns if newborn[0].name not in names]


def _counts(available: Mapping[int, int], scans: int, wanted: Mapping[int, float]) -> dict[int, int] | None:
    """How many newborns of each number of sessions add up to ``scans``, near ``wanted``; None where none do."""
    if not available:
        return {} if scans == 0 else None
    size = max(available)
    smaller = {s: n for s, n in available.items() if s != size}
    possible = range(min(available[size], scans // size) + 1)
    for count in sorted(possible, key=lambda c: (abs(c - wanted[size]), c)):
        rest = _counts(smaller, scans - count * size, wanted)
        if rest is not None:
            return {size: count, **rest}
    return None


def _split_of(sides: Mapping[str, Iterable[Iterable[Member]]]) -> Split:
    return Split(
        {
            side: tuple(sorted((m for newborn in newborns for m in newborn), key=lambda m: m.name))
            for side, newborns in sides.items()
        }
    )
