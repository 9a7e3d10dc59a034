"""BIDS folders as laboratories have them: every newborn is found, or named with the reason; ages are never invented."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from NeonatalSegLib.datasets.ages import read_ages, read_table
from NeonatalSegLib.datasets.bids import find_subjects, read_bids
from NeonatalSegLib.datasets.dhcp import find_labelled, find_scans
from NeonatalSegLib.errors import NeonatalSegError


def touch(root: Path, *names: str) -> Path:
    """Empty files below ``root``; finding opens none of them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(root: Path, **choice: str) -> list[str]:
    return [subject.name for subject in read_bids(root, labels=False, **choice).subjects]


def test_a_release_like_derivative_of_one_newborn_hides_nobody(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "derivatives/pipeline/sub-A/ses-1/anat/sub-A_ses-1_desc-restore_T2w.nii.gz",
        "derivatives/pipeline/sub-A/ses-1/anat/sub-A_ses-1_desc-drawem9_dseg.nii.gz",
        "sub-A/ses-1/anat/sub-A_ses-1_T2w.nii.gz",
        "sub-B/anat/sub-B_acq-tse_T2w.nii.gz",
        "sub-C/anat/sub-C_t2w.nii.gz",
        "sub-D/anat/notes.txt",
    )
    found = find_scans(root)
    assert [s.name for s in found.subjects] == ["sub-A_ses-1", "sub-B", "sub-C"]
    assert found.subjects[0].t2 == root / "sub-A/ses-1/anat/sub-A_ses-1_T2w.nii.gz"  # as that of the others
    assert {one.name: one.reasons for one in found.incomplete} == {"sub-D": ("no T1w or T2w image in its folder",)}
    assert [s.name for s in find_labelled(root).subjects] == ["sub-A_ses-1"]


def test_a_release_and_newborns_beside_it(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "derivatives/dhcp_anat_pipeline/sub-A/ses-1/anat/sub-A_ses-1_desc-restore_T2w.nii.gz",
        "rawdata/sub-A/ses-1/anat/sub-A_ses-1_run-01_T2w.nii.gz",
        "sub-B/anat/sub-B_T2w.nii.gz",
    )
    found = find_scans(root)
    assert [s.name for s in found.subjects] == ["sub-A_ses-1", "sub-B"]
    assert found.subjects[0].t2 is not None and "desc-restore" in found.subjects[0].t2.name


@pytest.mark.parametrize(("poor", "rich"), [("one", "two"), ("two", "one")])
def test_the_same_session_twice_in_a_release_does_not_end_the_study(tmp_path: Path, poor: str, rich: str) -> None:
    root = touch(
        tmp_path,
        f"{poor}/sub-A/ses-1/anat/sub-A_ses-1_desc-restore_T2w.nii.gz",
        f"{rich}/sub-A/ses-1/anat/sub-A_ses-1_desc-restore_T2w.nii.gz",
        f"{rich}/sub-A/ses-1/anat/sub-A_ses-1_T1w.nii.gz",
        "one/sub-B/ses-1/anat/sub-B_ses-1_T2w.nii.gz",
    )
    found = {s.name: s for s in find_scans(root).subjects}
    assert list(found) == ["sub-A_ses-1", "sub-B_ses-1"]
    assert found["sub-A_ses-1"].t1 is not None  # of the two the one that has more


@pytest.mark.parametrize(("run", "taken"), [("last", "10"), ("first", "1"), ("02", "2"), ("2", "2")])
def test_of_several_runs_one_is_taken_and_told(tmp_path: Path, run: str, taken: str) -> None:
    root = touch(tmp_path, *(f"sub-A/anat/sub-A_run-{n}_T2w.nii.gz" for n in (1, 2, 10)), "sub-B/anat/sub-B_T2w.nii")
    found = read_bids(root, labels=False, run=run)
    assert [s.t2.name for s in found.subjects if s.t2] == [f"sub-A_run-{taken}_T2w.nii.gz", "sub-B_T2w.nii"]
    assert len(found.notes) == 1 and f"run-{taken} was taken" in found.notes[0]


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"sub-A/anat/sub-A_run-{n}_T2w.nii.gz" for n in (1, 2)), "sub-B/anat/sub-B_T2w.nii")
    assert "no run-7" in read_bids(root, labels=False, run="7").left_out["sub-A"]
    with pytest.raises(NeonatalSegError, match="'newest' is not a choice of a run"):
        read_bids(root, run="newest")


def test_what_is_no_data_of_the_set_is_passed_over(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-A/anat/sub-A_T2w.nii.gz",
        "sub-A/anat/sub-A_part-phase_T2w.nii.gz",
        "sourcedata/sub-A/anat/sub-A_T2w.nii.gz",
        "code/examples/sub-Z/anat/sub-Z_T2w.nii.gz",
        "derivatives/other/sub-A/anat/sub-A_T2w.nii.gz",
        ".git/annex/sub-A_T2w.nii.gz",
        "sub-B/anat/sub-B_T1w.hdr",
        "sub-B/anat/sub-B_T1w.img",
    )
    assert names(root) == ["sub-A", "sub-B"]
    assert read_bids(root, labels=False).left_out == {}


def test_one_odd_newborn_does_not_end_the_study(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-A/anat/sub-A_acq-cor_T2w.nii.gz",
        "sub-A/anat/sub-A_acq-axi_T2w.nii.gz",
        "sub-B/anat/sub-B_T2w.nii.gz",
        "sub-B/anat/sub-B_T2w.nii",
        "sub-C/anat/sub-!_.._.._T2w.nii.gz",
        "sub-D/anat/sub-D_T2w.nii.gz",
        "sub-d/anat/sub-d_T2w.nii.gz",
    )
    (root / "participants.tsv").write_text("participant_id\nsub-D\nsub-E\n")
    found = read_bids(root, labels=False)
    assert [s.name for s in found.subjects] == ["sub-D"]
    assert set(found.left_out) == {"sub-A", "sub-B", "sub-!", "sub-C", "sub-d", "sub-E"}
    assert "sub-A_acq-axi" in found.left_out["sub-A"] and "--list" in found.left_out["sub-A"]
    assert "one name on some systems" in found.left_out["sub-d"] and "no image" in found.left_out["sub-E"]
    assert all(f"  {name}: " in find_scans(root).summary() for name in found.left_out)


def test_labels_that_are_results_are_no_truth(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        "sub-A/anat/sub-A_T2w.nii.gz",
        "derivatives/truth/sub-A/anat/sub-A_desc-drawem9_dseg.nii.gz",
        "derivatives/truth/sub-A/anat/sub-A_desc-drawem87_dseg.nii.gz",
        "derivatives/neonatalseg/sub-A/anat/sub-A_space-T2w_desc-neonatalseg_dseg.nii.gz",
        "sub-B/anat/sub-B_T2w.nii.gz",
        "derivatives/neonatalseg/sub-B/anat/sub-B_space-T2w_desc-neonatalseg_dseg.nii.gz",
    )
    a, b = find_subjects(root)
    assert a.labels is not None and "drawem9_" in a.labels.name and b.labels is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    touch(tmp_path, "sub-A/anat/sub-A_T2w.nii.gz")
    odd = os.fsdecode(bytes(tmp_path) + b"/sub-A/anat/sub-caf\xe9_T2w.nii.gz")
    Path(odd).touch()
    found = read_bids(tmp_path, labels=False)
    assert [s.name for s in found.subjects] == ["sub-A"] and list(found.left_out) == ["sub-caf?"]
    print(find_scans(tmp_path).summary())  # can be shown


# --- ages ----------------------------------------------------------------------------------------------------------


def ages(root: Path, table: str | bytes, side_car: str = "") -> tuple[dict[str, float], list[str]]:
    (root / "participants.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    (root / "participants.json").write_text(side_car)
    found = read_ages(root)
    return found.weeks, found.warnings


@pytest.mark.parametrize("cell", ["nan", "n/a", "NaN", "", " ", "None"])
def test_an_age_that_is_not_given(tmp_path: Path, cell: str) -> None:
    assert ages(tmp_path, f"participant_id\tscan_age\nsub-A\t{cell}\nsub-B\t40\n") == ({"sub-B": 40.0}, [])


@pytest.mark.parametrize(
    ("head", "cell", "side_car"),
    [
        ("scan_age", "40,5", ""),
        ("pma", " 40.5 ", ""),
        ("scan_age_days", "283.5", ""),
        ("scan_age", "283.5", '{"scan_age": {"Units": "days"}}'),
        ("age_weeks", "40.5", '{"age_weeks": {"Units": "weeks"}}'),
    ],
)
def test_ages_as_people_write_them(tmp_path: Path, head: str, cell: str, side_car: str) -> None:
    assert ages(tmp_path, f"participant_id\t{head}\nA\t{cell}\n", side_car) == ({"sub-A": 40.5}, [])


@pytest.mark.parametrize(
    ("head", "cell", "side_car", "words"),
    [
        ("scan_age", "283", "", "not between 20 and 60 weeks"),
        ("scan_age", "term", "", "'term' is not a number"),
        ("scan_age", "inf", "", "not between"),
        ("scan_age", "0.8", '{"scan_age": {"Units": "years"}}', "in 'years'"),
    ],
)
def test_ages_that_are_left_out_are_told(tmp_path: Path, head: str, cell: str, side_car: str, words: str) -> None:
    weeks, warnings = ages(tmp_path, f"participant_id\t{head}\nsub-A\t{cell}\n", side_car)
    assert weeks == {} and len(warnings) == 1 and words in warnings[0] and "sub-A" in warnings[0]


def test_the_long_form_and_contradictions(tmp_path: Path) -> None:
    table = "participant_id\tsession_id\tscan_age\nsub-A\tses-1\t31\nsub-A\tses-2\t40\nsub-B\t\t40\nsub-B\t\t36\n"
    weeks, warnings = ages(tmp_path, table)
    assert weeks == {"sub-A_ses-1": 31.0, "sub-A_ses-2": 40.0}
    assert len(warnings) == 1 and "sub-B has several ages" in warnings[0] and "40 and 36 weeks" in warnings[0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "cp1252"])
def test_encodings_of_spreadsheets(tmp_path: Path, encoding: str) -> None:
    text = "participant_id\tscan_age\tsite\r\nsub-A\t40,5\tZ\u00fcrich\r\n"
    assert ages(tmp_path, text.encode(encoding)) == ({"sub-A": 40.5}, [])
    assert read_table(tmp_path / "participants.tsv")[0]["site"] == "Z\u00fcrich"


def test_a_table_that_is_none_is_told_and_ends_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "sub-A/anat/sub-A_T2w.nii.gz")
    weeks, warnings = ages(tmp_path, b"\x00\x01\x02PK")
    assert weeks == {} and "participants.tsv could not be read" in warnings[0]
    found = find_scans(tmp_path)
    assert [s.age_weeks for s in found.subjects] == [None] and "could not be read" in found.summary()
