"""Splits by age: sizes, ages, newborns kept together, seeds, files. Populations are drawn to look like the release."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from NeonatalSegLib.cli.app import USER_ERROR, run
from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.datasets.split_files import read_split, write_split
from NeonatalSegLib.datasets.splits import (
    Member,
    Split,
    by_age,
    leave_out_folds,
    paper_sizes,
    paper_split,
    representative_subset,
    transfer_split,
)
from NeonatalSegLib.errors import NeonatalSegError

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


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_split_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    split = transfer_split(release(2))
    path = write_split(split, tmp_path / "new" / "split.tsv")
    assert read_split(path) == split
    head, first = path.read_text(encoding="utf-8").splitlines()[:2]
    member = split.sides["source"][0]
    assert head.split("\t") == ["subject", "participant", "age_weeks", "side"]
    assert first.split("\t") == [member.name, member.name.split("_")[0], f"{member.age_weeks}", "source"]
    assert read_split(path).select("source", release(2))[0].name == member.name


def test_a_write_that_fails_leaves_the_old_table(tmp_path: Path) -> None:
    path = write_split(Split({"train": (Member("sub-A", 40.0),)}), tmp_path / "split.tsv")
    with pytest.raises(UnicodeEncodeError):
        write_split(Split({"train": (Member("sub-B", 40.0), Member("sub-\udc80", 40.0))}), path)
    assert read_split(path).names("train") == ("sub-A",)
    assert [p.name for p in tmp_path.iterdir()] == ["split.tsv"]
    with pytest.raises(NeonatalSegError, match="could not be written"):
        write_split(read_split(path), path / "below.tsv")


HEAD = "subject\tparticipant\tage_weeks\tside\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table of a split"),
        ("name\tage\nsub-A\t40\n", "not a table of a split"),
        (HEAD + "sub-A\tsub-A\tforty\ttrain\n", "line 2"),
        (HEAD + "sub-A\tsub-A\t40\n", "line 2"),
        (HEAD + "sub-A\tsub-A\t40\ttrain\nsub-A\tsub-A\t40\ttrain\n", "listed twice"),
        (HEAD + "sub-A_ses-1\tsub-A\t30\ttrain\nsub-A_ses-2\tsub-A\t40\ttest\n", r"two sides .*\(train and test\)"),
    ],
)
def test_tables_that_are_no_split(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "split.tsv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=message):
        read_split(path)


def test_a_split_of_other_data_is_told(tmp_path: Path) -> None:
    split = Split({"train": (Member("sub-A", 40.0),)})
    with pytest.raises(NeonatalSegError, match=r"sub-A stands on the side 'train' .* not among the 1 subjects"):
        split.select("train", [scan("sub-B", 40)])
    with pytest.raises(NeonatalSegError, match="no side 'test': it has train"):
        split.names("test")
    with pytest.raises(NeonatalSegError, match="could not be read"):
        read_split(tmp_path / "missing.tsv")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A BIDS folder of 13 newborns (empty files: a split looks at names and ages) and one without labels."""
    rows = ["participant_id\tscan_age"]
    for i, age in enumerate((*ALBERTS, 40)):
        name = f"sub-{i:02d}"
        anat = tmp_path / "bids" / name / "anat"
        anat.mkdir(parents=True)
        for kind in ("T1w", "T2w") if i == 13 else ("T1w", "T2w", "desc-drawem9_dseg"):
            (anat / f"{name}_{kind}.nii.gz").touch()
        rows.append(f"{name}\t{age}")
    (tmp_path / "bids" / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "bids"


def test_command_writes_the_papers_kind_of_split(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study.parent / "split.tsv"
    command = ["split", "--data", str(study), "--out", str(out), "--train", "6", "--validation", "2", "--test", "4"]
    assert run(command) == 0
    split = read_split(out)
    assert [len(split.names(side)) for side in ("train", "validation", "test")] == [6, 2, 4]
    told = capsys.readouterr()
    assert "sub-13: no labels" in told.err and "sub-13" not in out.read_text(encoding="utf-8")
    assert "train" in told.out and str(out) in told.out
    assert run([*command, "--seed", "1"]) == 0
    assert read_split(out) != split


@pytest.mark.parametrize(
    ("options", "files", "sides"),
    [
        (["--kind", "folds", "--test", "4", "--folds", "2"], ["s_fold-1.tsv", "s_fold-2.tsv"], (8, 1, 4)),
        (["--kind", "subset", "--share", "0.3"], ["s.tsv"], (4, 9)),
        (["--kind", "ages"], ["s.tsv"], (7, 2)),
        (["--kind", "transfer", "--source", "5", "--train", "2", "--test", "3"], ["s.tsv"], (5, 2, 3)),
        (["--share", "0.8", "--test", "3"], ["s.tsv"], (8, 2, 3)),
    ],
)
def test_command_knows_every_kind(study: Path, options: list[str], files: list[str], sides: tuple[int, ...]) -> None:
    assert run(["split", "--data", str(study), "--out", str(study.parent / "s.tsv"), *options]) == 0
    assert sorted(p.name for p in study.parent.glob("*.tsv")) == files
    for file in files:
        assert tuple(map(len, read_split(study.parent / file).sides.values())) == sides


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"(242) were asked for, but only 13 scans"),
        (["--kind", "half"], "no kind of split 'half'"),
        (["--kind", "ages", "--share", "0.2"], "--share means nothing"),
        (["--share", "0.2", "--train", "3"], "either --share or"),
    ],
)
def test_command_tells_what_cannot_be(
    study: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = study.parent / "s.tsv"
    assert run(["split", "--data", str(study), "--out", str(out), *options]) == USER_ERROR
    assert message in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("kind", "sides", "optional", "got"),
    [
        ("paper", ("train", "validation", "test"), ("more",), (6, 2, 4, 0)),
        ("transfer", ("source", "target-train", "target-test"), ("source-test",), (5, 2, 3, 0)),
    ],
)
def test_what_the_command_writes_can_be_taken(
    study: Path, kind: str, sides: tuple[str, ...], optional: tuple[str, ...], got: tuple[int, ...]
) -> None:
    """An experiment takes a written split where it has the sides that it needs; else the sides are told."""
    numbers = ("6", "2", "4") if kind == "paper" else ("5", "2", "3")
    names = ("train", "validation", "test") if kind == "paper" else ("source", "train", "test")
    options = [text for name, number in zip(names, numbers, strict=True) for text in (f"--{name}", number)]
    out = study.parent / "s.tsv"
    assert run(["split", "--data", str(study), "--out", str(out), "--kind", kind, *options]) == 0
    subjects = [scan(f"sub-{i:02d}", age) for i, age in enumerate(ALBERTS)]
    taken = read_split(out).taken(sides, optional, subjects)
    assert tuple(len(taken.names(side)) for side in (*sides, *optional)) == got
    with pytest.raises(NeonatalSegError, match=r"no scan on a side 'nowhere'.*another --kind"):
        read_split(out).taken(("nowhere",), (), subjects)
    with pytest.raises(NeonatalSegError, match="not among the 1 subjects"):
        read_split(out).taken(sides, optional, subjects[:1])
