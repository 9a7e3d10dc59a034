"""Splits by age: sizes, ages, newborns kept together, seeds. Populations are drawn to look like the release."""

from __future__ import annotations

import numpy as np
import pytest
from populations import ALBERTS, ages_of, assert_newborns_together, distance, release, scan, significant

from NeonatalSegLib.datasets.splits import (
    by_age,
    leave_out_folds,
    paper_sizes,
    paper_split,
    representative_subset,
    transfer_split,
)
from NeonatalSegLib.errors import NeonatalSegError

# --- the representative subset and the paper's split ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_subset_has_the_share_and_the_ages_of_the_population(seed: int) -> None:
    subjects = release(seed)
    split = representative_subset(subjects, 0.2, seed=seed)
    subset, rest = ages_of(split.sides["subset"]), ages_of(split.sides["rest"])
    assert len(subset) == round(0.2 * len(subjects)) and len(subset) + len(rest) == len(subjects)
    assert_newborns_together(split)
    population = ages_of(subjects)
    assert distance(subset, population) < significant(len(subset), len(population)) / 2
    quantiles = [0.25, 0.5, 0.75, 0.95]
    assert np.allclose(np.quantile(subset, quantiles), np.quantile(population, quantiles), atol=0.5)


def test_stratified_draws_follow_the_ages_closer_than_plain_draws() -> None:
    subjects = release(0)
    population = ages_of(subjects)
    stratified = [
        distance(ages_of(representative_subset(subjects, 0.2, seed=s).sides["subset"]), population) for s in range(20)
    ]
    random = np.random.default_rng(5)
    plain = [distance(np.sort(random.choice(population, 143, replace=False)), population) for _ in range(20)]
    assert np.mean(stratified) < 0.6 * np.mean(plain)


def test_a_share_of_the_whole_is_asked_for_sensibly() -> None:
    subjects = release(0, 10, 0, 0)
    for share in (0.0, 1.0, -0.2, 20.0):
        with pytest.raises(NeonatalSegError, match="between 0 and 1"):
            representative_subset(subjects, share)
    with pytest.raises(NeonatalSegError, match="of 10 scans is 0"):
        representative_subset(subjects, 0.01)


def test_sizes_of_the_paper_are_a_fifth_of_the_complete_sessions() -> None:
    assert paper_sizes(709) == (114, 28)


def test_every_age_has_its_share_on_every_side() -> None:
    """Over 200 seeds each decile of age, and the 31 oldest, stand as often in training, validation and test as others.

    More than half of the population is drawn, as for the sparse conditions of the budget.
    """
    subjects = release(0, singles=527)
    order = np.argsort([s.age_weeks for s in subjects])
    groups = {f"decile {d}": order[71 * d : 71 * (d + 1)] for d in range(10)} | {"oldest": order[-31:]}
    wanted = {"train": 342, "validation": 28, "test": 100}
    seeds, place = 200, {s.name: i for i, s in enumerate(subjects)}
    times = {side: np.zeros(len(subjects)) for side in wanted}
    for seed in range(seeds):
        split = paper_split(subjects, **wanted, seed=seed)
        for side, count in times.items():
            count[[place[name] for name in split.names(side)]] += 1
    for side, count in times.items():
        chance = wanted[side] / len(subjects)
        for name, group in groups.items():
            share = count[group].mean() / seeds
            error = np.sqrt(chance * (1 - chance) / (seeds * len(group)))  # of plain draws; stratified ones vary less
            assert abs(share - chance) < 3 * error, (side, name, share, chance)


def test_folds_test_every_age_alike() -> None:
    """13 newborns in 4 folds of 3 leave one out, and not always one of the youngest."""
    subjects = [scan(f"sub-{i:02d}", 37 + i / 2) for i in range(13)]
    left = [
        {s.name for s in subjects}
        - {name for fold in leave_out_folds(subjects, 3, seed=seed) for name in fold.names("test")}
        for seed in range(200)
    ]
    thirds = [
        sum(name in one for one in left for name in names)
        for names in np.split(np.array([s.name for s in subjects][:12]), 3)
    ]
    assert min(thirds) > 200 * 4 / 13 / 2


@pytest.mark.parametrize("seed", range(6))
def test_papers_split(seed: int) -> None:
    subjects = release(seed)
    split = paper_split(subjects, seed=seed)
    assert {side: len(members) for side, members in split.sides.items()} == {
        "train": 114,
        "validation": 28,
        "test": 100,
    }
    assert_newborns_together(split)
    sessions: dict[str, set[str]] = {}
    for subject in subjects:
        sessions.setdefault(subject.participant, set()).add(subject.name)
    for members in split.sides.values():  # a newborn comes with all its sessions
        assert {m.name for m in members} == set().union(*(sessions[m.participant] for m in members))
        population = ages_of(subjects)
        assert distance(ages_of(members), population) < 0.7 * significant(len(members), len(population))


def test_the_seed_decides_and_the_order_does_not() -> None:
    subjects = release(1)
    for make in (paper_split, transfer_split):
        first, again, other = make(subjects, seed=4), make(subjects[::-1], seed=4), make(subjects, seed=5)
        assert first == again
        assert first != other
    assert leave_out_folds(subjects, 9, 3, 5, 4) == leave_out_folds(subjects[::-1], 9, 3, 5, 4)
    assert leave_out_folds(subjects, 9, 3, 5, 4) != leave_out_folds(subjects, 9, 3, 5, 5)


def test_equal_ages_are_not_drawn_by_name() -> None:
    """Names follow the date of recruitment; in the order of names, one of each neighbouring pair would be drawn."""
    subjects = [scan(f"sub-{n:02d}", 40) for n in range(20)]
    subsets = [set(representative_subset(subjects, 0.5, seed=seed).names("subset")) for seed in range(5)]
    assert any({f"sub-{n:02d}", f"sub-{n + 1:02d}"} <= subset for subset in subsets for n in range(0, 20, 2))


def test_too_few_scans_are_told_with_both_numbers() -> None:
    subjects = release(0, 100, 20, 1)
    with pytest.raises(NeonatalSegError, match=r"\(242\) were asked for, but only 143 scans"):
        paper_split(subjects)
    with pytest.raises(NeonatalSegError, match=r"\(220\) were asked for, but only 143 scans"):
        transfer_split(subjects)
    with pytest.raises(NeonatalSegError, match="whole numbers from 1"):
        paper_split(subjects, train=0)


def test_pairs_only_make_even_numbers() -> None:
    twice = [scan(f"sub-{n:02d}_ses-{s}", 30 + n / 2 + 8 * s) for n in range(10) for s in (0, 1)]
    split = paper_split(twice, train=8, validation=4, test=8)
    assert [len(members) for members in split.sides.values()] == [8, 4, 8]
    with pytest.raises(NeonatalSegError, match="cannot be met with whole newborns"):
        paper_split(twice, train=7, validation=4, test=8)


def test_subjects_without_age_are_named() -> None:
    with pytest.raises(NeonatalSegError, match=r"2 of 4 subjects have no age \(sub-B, sub-D\)"):
        leave_out_folds([scan("sub-A", 40), scan("sub-B", None), scan("sub-C", 41), scan("sub-D", float("nan"))], 1)
    with pytest.raises(NeonatalSegError, match="listed twice"):
        leave_out_folds([scan("sub-A", 40), scan("sub-A", 41), scan("sub-C", 41)], 1)


# --- transfer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_transfer_takes_the_youngest_and_the_oldest(seed: int) -> None:
    subjects = release(seed)
    split = transfer_split(subjects, seed=seed)
    assert {side: len(m) for side, m in split.sides.items()} == {"source": 100, "target-train": 40, "target-test": 80}
    assert_newborns_together(split)
    target = (*split.sides["target-train"], *split.sides["target-test"])
    assert np.array_equal(ages_of(target), ages_of(subjects)[:120])
    in_target = {m.participant for m in target}
    others = ages_of([s for s in subjects if s.participant not in in_target])
    assert np.array_equal(ages_of(split.sides["source"]), others[-100:])
    train, test = (ages_of(split.sides[side]) for side in ("target-train", "target-test"))
    assert distance(train, test) < significant(40, 80) / 2


def test_a_newborn_with_a_young_and_an_old_session_stands_in_the_target() -> None:
    subjects = [
        scan("sub-A_ses-1", 28),
        scan("sub-A_ses-2", 45),  # the oldest of all, but A is needed young
        scan("sub-B_ses-1", 29),
        scan("sub-C_ses-1", 40),
        scan("sub-D_ses-1", 43),
        scan("sub-E_ses-1", 44),
    ]
    split = transfer_split(subjects, source=2, target_train=1, target_test=1)
    assert split.names("source") == ("sub-D_ses-1", "sub-E_ses-1")
    assert sorted(split.names("target-train") + split.names("target-test")) == ["sub-A_ses-1", "sub-B_ses-1"]
    ages = by_age(subjects, source_min_weeks=42, target_max_weeks=30)
    assert ages.names("source") == ("sub-D_ses-1", "sub-E_ses-1")
    assert ages.names("target") == ("sub-A_ses-1", "sub-B_ses-1")
    with pytest.raises(NeonatalSegError, match="4 source scans were asked for, but only 3"):
        transfer_split(subjects, source=4, target_train=1, target_test=1)


@pytest.mark.parametrize("seed", range(6))
def test_source_test_scans_are_next_in_age_without_a_hole(seed: int) -> None:
    subjects = release(seed)
    split = transfer_split(subjects, source_test=25, seed=seed)
    plain = transfer_split(subjects, seed=seed)
    assert split.names("source") == plain.names("source")  # exactly the 100 oldest, whoever is tested beside them
    assert_newborns_together(split)
    used = {m.participant for side in ("source", "target-train", "target-test") for m in split.sides[side]}
    left = ages_of([s for s in subjects if s.participant not in used])
    assert np.array_equal(ages_of(split.sides["source-test"]), left[-25:])
    assert ages_of(split.sides["source-test"])[-1] <= ages_of(split.sides["source"])[0]
    with pytest.raises(NeonatalSegError, match="590 source test scans were asked for, but only"):
        transfer_split(subjects, source=100, target_train=10, target_test=10, source_test=590)


def test_two_young_sessions_train_or_test_together() -> None:
    subjects = [scan(f"sub-{n}_ses-{s}", 27 + n + s / 2) for n in range(6) for s in (1, 2)]
    subjects += [scan(f"sub-old{n}", 42.0) for n in range(3)]
    for seed in range(5):
        split = transfer_split(subjects, source=3, target_train=4, target_test=8, seed=seed)
        assert_newborns_together(split)
        assert len(split.sides["target-train"]) == 4


def test_thresholds_of_age() -> None:
    subjects = [scan(f"sub-ALBERT{i:02d}", age) for i, age in enumerate(ALBERTS)]
    split = by_age(subjects, source_min_weeks=41, target_max_weeks=39)
    assert (ages_of(split.sides["source"]) == [41, 41, 41, 42, 42, 43, 43]).all()
    assert (ages_of(split.sides["target"]) == [37, 39]).all()
    with pytest.raises(NeonatalSegError, match="above the target"):
        by_age(subjects, 40, 40)
    with pytest.raises(NeonatalSegError, match="0 of at most 36 were found among ages 37 to 43"):
        by_age(subjects, 41, 36)


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_leave_three_out_folds_of_thirteen(seed: int) -> None:
    subjects = [scan(f"sub-ALBERT{i:02d}", age) for i, age in enumerate(ALBERTS)]
    folds = leave_out_folds(subjects, 3, seed=seed)
    tested = [name for fold in folds for name in fold.names("test")]
    assert len(folds) == 4 and len(tested) == len(set(tested)) == 12
    for fold in folds:
        sizes = {side: len(members) for side, members in fold.sides.items()}
        assert sizes == {"train": 9, "validation": 1, "test": 3}
        assert len({name for side in fold.sides for name in fold.names(side)}) == 13
        young, middle, old = ages_of(fold.sides["test"])
        assert young <= 40 and 40 <= middle <= 41 and old >= 41  # the runs of the sorted ages: 5, 4, 4


def test_folds_count_newborns_and_keep_their_sessions() -> None:
    subjects = release(3, 20, 10, 0)
    folds = leave_out_folds(subjects, 5, validation=4, folds=6)
    for fold in folds:
        assert_newborns_together(fold)
        assert len({m.participant for m in fold.sides["test"]}) == 5
        assert len({m.participant for m in fold.sides["validation"]}) == 4
        assert sum(map(len, fold.sides.values())) == len(subjects)
    tested = [name for fold in folds for name in fold.names("test")]
    assert sorted(tested) == sorted(s.name for s in subjects)  # 6 folds of 5: everybody once
    assert len(leave_out_folds(subjects, 5, validation=0)[0].names("validation")) == 0


def test_folds_that_do_not_fit_are_told_with_both_numbers() -> None:
    subjects = [scan(f"sub-ALBERT{i:02d}", age) for i, age in enumerate(ALBERTS)]
    with pytest.raises(NeonatalSegError, match="at least 15 newborns, there are 13"):
        leave_out_folds(subjects, 3, folds=5)
    with pytest.raises(NeonatalSegError, match="at least 14 newborns, there are 13"):
        leave_out_folds(subjects, 12, validation=1)
    with pytest.raises(NeonatalSegError, match="at least one"):
        leave_out_folds(subjects, 0)
