"""Splits as tables, and the command that writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from populations import ALBERTS, release, scan

from NeonatalSegLib.cli.app import USER_ERROR, run
from NeonatalSegLib.datasets.split_files import read_split, write_split
from NeonatalSegLib.datasets.splits import Member, Split, transfer_split
from NeonatalSegLib.errors import NeonatalSegError

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
    assert run([*command, "--seed", "1", "--overwrite"]) == 0
    assert read_split(out) != split


@pytest.mark.parametrize(
    ("options", "there"), [(["--kind", "ages"], "s.tsv"), (["--kind", "folds", "--folds", "2"], "s_fold-2.tsv")]
)
def test_command_replaces_no_file_unasked(
    study: Path, options: list[str], there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a participants.tsv, or a split that was corrected by hand."""
    command = ["split", "--data", str(study), "--out", str(study.parent / "s.tsv"), *options]
    (study.parent / there).write_text("mine", encoding="utf-8")
    assert run(command) == USER_ERROR
    told = capsys.readouterr().err
    assert there in told and "nothing was replaced" in told and "--overwrite" in told
    assert [(p.name, p.read_bytes()) for p in study.parent.glob("*.tsv")] == [(there, b"mine")]
    assert run([*command, "--overwrite"]) == 0
    assert read_split(study.parent / there).sides


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
