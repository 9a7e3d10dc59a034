"""The reader of the dHCP release, on a tree with the release's layout made of a synthetic newborn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.annotation.study import read_study
from NeonatalSegLib.cli.app import USER_ERROR, run
from NeonatalSegLib.datasets.cache import build_cache
from NeonatalSegLib.datasets.dhcp import find_complete, find_scans, is_release, read_release
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.datasets.split_files import read_split
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.tissues import TISSUES

# MIRTK/DrawEM, label_names/ALBERT/tissue_labels.csv
DRAWEM = {
    1: "CSF",
    2: "Cortical gray matter",
    3: "White matter",
    4: "Background",
    5: "Ventricles",
    6: "Cerebellum",
    7: "Deep Gray Matter",
    8: "Brainstem",
    9: "Hippocampi and Amygdala",
}
# What else the release's structural pipeline leaves in anat/ (release notes, "Structural pipeline").
OTHER_FILES = (
    "desc-brain_mask.nii.gz",
    "desc-drawem87_dseg.nii.gz",
    "desc-ribbon_dseg.nii.gz",
    "desc-biasfield_T1w.nii.gz",
    "desc-biasfield_T2w.nii.gz",
    "hemi-left_wm.surf.gii",
    "hemi-right_pial.surf.gii",
    "curv.dscalar.nii",
    "desc-drawem_dseg.dlabel.nii",
    "hemi-left_desc-drawem_dseg.label.gii",
)
# participant, session, age: one newborn scanned twice, twins, one scanned once
SESSIONS = (
    ("CC00050XX01", "7201", 43.29),
    ("CC00063AN06", "15102", 35.71),
    ("CC00063BN06", "15104", 35.71),
    ("CC00098AN17", "30500", 37.43),
    ("CC00098AN17", "33702", 40.29),
)


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return draw_newborn(40.0, seed=3, spacing_mm=3.0)


@pytest.fixture(scope="module")
def drawn(coarse: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, drawn once; tests change copies of it."""
    root = tmp_path_factory.mktemp("release")
    births = {"CC00050XX01": 43.0, "CC00063AN06": 35.14, "CC00063BN06": 35.14, "CC00098AN17": 36.57}
    (root / "participants.tsv").write_text(
        "participant_id\tsex\tbirth_age\tbirth_weight\tsingleton\n"
        + "".join(f"{p}\tfemale\t{age}\t2.8\tS\n" for p, age in births.items()),
        encoding="utf-8",
    )
    for participant in births:
        folder = root / f"sub-{participant}"
        folder.mkdir()
        rows = [f"{s}\t{age}\t35.0\t1\t1\tFalse\n" for p, s, age in SESSIONS if p == participant]
        (folder / f"sub-{participant}_sessions.tsv").write_text(
            "session_id\tscan_age\tscan_head_circumference\tradiology_score\tscan_number\tsedation\n" + "".join(rows),
            encoding="utf-8",
        )
    for participant, session, _ in SESSIONS:
        anat = root / f"sub-{participant}" / f"ses-{session}" / "anat"
        anat.mkdir(parents=True)
        stem = f"sub-{participant}_ses-{session}"
        for name, image in (
            ("desc-restore_T1w", coarse.t1),
            ("T1w", coarse.t1),
            ("desc-restore_T2w", coarse.t2),
            ("T2w", coarse.t2),
            ("desc-drawem9_dseg", coarse.labels),
        ):
            sitk.WriteImage(image, str(anat / f"{stem}_{name}.nii.gz"))
        for name in OTHER_FILES:
            (anat / f"{stem}_{name}").touch()
        xfm = anat.parent / "xfm"
        xfm.mkdir()
        (xfm / f"{stem}_from-T2w_to-serag40wk_mode-image.nii.gz").touch()
    return root


@pytest.fixture
def release(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "release"))


def anat(root: Path, participant: str, session: str) -> Path:
    return root / f"sub-{participant}" / f"ses-{session}" / "anat"


def test_tissue_order_is_draw_ems() -> None:
    drawem = {index: name.lower().replace("gray", "grey") for index, name in DRAWEM.items()}
    ours = {t.index: t.name.lower() for t in TISSUES if t.index > 0}
    assert drawem.pop(4) == "background" and ours.pop(4) == "intracranial background"
    assert drawem.pop(9).startswith("hippocampi") and ours.pop(9) == "hippocampus"
    assert ours == drawem


def test_sessions_with_their_files_and_ages(release: Path) -> None:
    found = read_release(release)
    assert [(s.name, s.age_weeks) for s in found.subjects] == [(f"sub-{p}_ses-{s}", age) for p, s, age in SESSIONS]
    assert found.incomplete == ()
    one, *_, first, second = found.subjects
    assert first.participant == second.participant == "sub-CC00098AN17"
    names = [path.name for path in (one.t1, one.t2, one.labels) if path]
    assert names == [
        "sub-CC00050XX01_ses-7201_desc-restore_T1w.nii.gz",
        "sub-CC00050XX01_ses-7201_desc-restore_T2w.nii.gz",
        "sub-CC00050XX01_ses-7201_desc-drawem9_dseg.nii.gz",
    ]
    assert "5 usable scans of 4 newborns" in found.summary()


def test_uncorrected_images_are_the_fallback(release: Path) -> None:
    folder = anat(release, "CC00050XX01", "7201")
    for name in ("T1w", "T2w"):
        (folder / f"sub-CC00050XX01_ses-7201_desc-restore_{name}.nii.gz").unlink()
    one = read_release(release).subjects[0]
    assert one.t1 == folder / "sub-CC00050XX01_ses-7201_T1w.nii.gz"
    assert one.t2 == folder / "sub-CC00050XX01_ses-7201_T2w.nii.gz"


def test_names_of_the_second_release(release: Path) -> None:
    folder = anat(release, "CC00050XX01", "7201")
    stem = folder / "sub-CC00050XX01_ses-7201"
    for old, new in (
        ("desc-restore_T1w", "desc-restore_space-T2w_T1w"),
        ("desc-drawem9_dseg", "desc-drawem9_space-T2w_dseg"),
    ):
        Path(f"{stem}_{old}.nii.gz").rename(f"{stem}_{new}.nii.gz")
    one = read_release(release).subjects[0]
    assert one.t1 is not None and one.t1.name.endswith("_desc-restore_space-T2w_T1w.nii.gz")  # not the native T1
    assert one.labels is not None and one.labels.name.endswith("_desc-drawem9_space-T2w_dseg.nii.gz")


def test_incomplete_sessions_are_listed_with_their_reasons(release: Path) -> None:
    for path in anat(release, "CC00063AN06", "15102").glob("*_T1w.nii.gz"):
        path.unlink()
    folder = anat(release, "CC00063BN06", "15104")
    for path in (*folder.glob("*T2w.nii.gz"), folder / "sub-CC00063BN06_ses-15104_desc-drawem9_dseg.nii.gz"):
        path.unlink()  # the 87 regions are still there, but they are no tissues
    table = release / "sub-CC00098AN17" / "sub-CC00098AN17_sessions.tsv"
    table.write_text("session_id\tscan_age\n30500\tn/a\n33702\t282\n99\t41.0\n", encoding="utf-8")
    with (release / "participants.tsv").open("a", encoding="utf-8") as stream:
        stream.write("CC00100XX01\tmale\t40.0\t3.0\tS\n")
    found = read_release(release)
    assert [s.name for s in found.subjects] == ["sub-CC00050XX01_ses-7201"]
    assert {one.name: one.reasons for one in found.incomplete} == {
        "sub-CC00063AN06_ses-15102": ("no T1",),
        "sub-CC00063BN06_ses-15104": ("no T2", "no labels (drawem9)"),
        "sub-CC00098AN17_ses-30500": ("no age (scan_age 'n/a' in sub-CC00098AN17_sessions.tsv)",),
        "sub-CC00098AN17_ses-33702": (
            "no age (scan_age 282 in sub-CC00098AN17_sessions.tsv: expected 20 to 60 weeks)",
        ),
        "sub-CC00098AN17_ses-99": ("no T1", "no T2", "no labels (drawem9)"),
        "sub-CC00100XX01": ("no session",),
    }
    assert "6 incomplete (no T1: 2, no T2: 2, no labels: 2, no age: 2, no session: 1)" in found.summary()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("session_id\tscan_age\n", "in no table"),
        ("session_id\tscan_number\n7201\t1\n", "no scan_age in sub-CC00050XX01_sessions.tsv"),
        ("session_id\tscan_age\n7201\t\n", "no scan_age in sub-CC00050XX01_sessions.tsv"),
    ],
)
def test_an_age_that_is_not_there_is_explained(release: Path, text: str, reason: str) -> None:
    (release / "sub-CC00050XX01" / "sub-CC00050XX01_sessions.tsv").write_text(text, encoding="utf-8")
    (one,) = read_release(release).incomplete
    assert one.reasons == (f"no age ({reason})",)


def test_a_file_of_another_session_does_not_count(release: Path) -> None:
    folder = anat(release, "CC00050XX01", "7201")
    for path in folder.glob("*T2w.nii.gz"):
        path.rename(folder / path.name.replace("ses-7201", "ses-7202"))
    assert read_release(release).incomplete[0].reasons == ("no T2",)


def test_the_same_session_in_two_folders_is_refused(release: Path) -> None:
    shutil.copytree(release / "sub-CC00050XX01" / "ses-7201", release / "part2" / "sub-CC00050XX01" / "ses-7201")
    with pytest.raises(NeonatalSegError, match=r"sub-CC00050XX01_ses-7201 is there twice: .*part2.* and .*release"):
        read_release(release)


def test_the_same_session_in_two_rows_is_refused(release: Path) -> None:
    table = release / "sub-CC00050XX01" / "sub-CC00050XX01_sessions.tsv"
    table.write_text("session_id\tscan_age\n7201\t43.29\nses-7201\t43.29\n", encoding="utf-8")
    with pytest.raises(NeonatalSegError, match="sub-CC00050XX01_ses-7201 has two rows"):
        read_release(release)


def test_missing_tables_and_folders_are_told(release: Path, tmp_path: Path) -> None:
    with pytest.raises(NeonatalSegError, match="no folder"):
        read_release(tmp_path / "nowhere")
    tables = list(release.glob("sub-*/*_sessions.tsv"))
    for table in tables:
        table.unlink()
    with pytest.raises(NeonatalSegError, match=r"No sub-\*/sub-\*_sessions\.tsv"):
        read_release(release)
    (release / "participants.tsv").write_text("name\nCC00050XX01\n", encoding="utf-8")
    with pytest.raises(NeonatalSegError, match="column participant_id"):
        read_release(release)
    (release / "participants.tsv").unlink()
    with pytest.raises(NeonatalSegError, match=r"no participants\.tsv"):
        read_release(release)


def test_nothing_usable_is_told_with_the_reasons(release: Path) -> None:
    for path in release.rglob("*_T1w.nii.gz"):
        path.unlink()
    with pytest.raises(NeonatalSegError, match=r"0 usable scans .* 5 incomplete \(no T1: 5\)"):
        read_release(release)
    with pytest.raises(NeonatalSegError, match="No session with T1, T2, labels and age"):
        find_complete(release)


def test_a_table_that_is_no_text_is_told(release: Path) -> None:
    table = release / "sub-CC00050XX01" / "sub-CC00050XX01_sessions.tsv"
    table.write_bytes(b"PK\x03\x04\x00\x00 a spreadsheet, not a table")
    with pytest.raises(NeonatalSegError, match=r"sub-CC00050XX01_sessions\.tsv could not be read"):
        read_release(release)


@pytest.mark.parametrize("place", ["derivatives/dhcp_anat_pipeline", "rel3_dhcp_anat_pipeline"])
def test_the_release_is_found_from_above(drawn: Path, tmp_path: Path, place: str) -> None:
    """Raw data and the functional pipeline repeat sessions and tables beside it."""
    shutil.copytree(drawn, tmp_path / place)
    for other in ("rawdata", "rel3_dhcp_fmri_pipeline", "derivatives/dhcp_dmri_eddy_pipeline"):
        folder = tmp_path / other / "sub-CC00050XX01"
        (folder / "ses-7201" / "anat").mkdir(parents=True)
        (folder / "ses-7201" / "anat" / "sub-CC00050XX01_ses-7201_rec-SVR_T2w.nii").touch()
        (folder / "sub-CC00050XX01_sessions.tsv").write_text("session_id\tscan_age\n7201\t1\n", encoding="utf-8")
    found = find_complete(tmp_path)
    assert [(s.name, s.age_weeks) for s in found.subjects] == [(f"sub-{p}_ses-{s}", age) for p, s, age in SESSIONS]
    assert all(s.t2 is not None and place in s.t2.as_posix() for s in found.subjects)


def test_another_bids_folder_goes_to_the_generic_reader(coarse: Phantom, tmp_path: Path) -> None:
    for name, kinds in (("sub-A", ("T1w", "T2w", "dseg")), ("sub-B", ("T2w",))):
        folder = tmp_path / name / "anat"
        folder.mkdir(parents=True)
        for kind in kinds:
            (folder / f"{name}_{kind}.nii.gz").touch()
    (tmp_path / "participants.tsv").write_text("participant_id\tscan_age\nsub-A\t40\n", encoding="utf-8")
    assert not is_release(tmp_path)
    found = find_complete(tmp_path)
    assert [s.name for s in found.subjects] == ["sub-A"]
    assert found.incomplete[0].reasons == ("no T1", "no labels (drawem9)", "no age (in no table)")


def test_one_image_is_enough_to_segment_or_annotate(release: Path) -> None:
    for path in (release / "participants.tsv", *release.glob("sub-*/*_sessions.tsv"), *release.rglob("*_dseg.nii.gz")):
        path.unlink()
    for path in anat(release, "CC00063AN06", "15102").glob("*_T1w.nii.gz"):
        path.unlink()
    for path in anat(release, "CC00063BN06", "15104").glob("*_T?w.nii.gz"):
        path.unlink()
    found = find_scans(release)
    assert [s.name for s in found.subjects] == [f"sub-{p}_ses-{s}" for p, s, _ in SESSIONS if s != "15104"]
    alone = found.subjects[1]
    assert alone.t1 is None and alone.t2 is not None and alone.age_weeks is None
    with pytest.raises(NeonatalSegError, match=r"no participants\.tsv"):
        find_complete(release)


def test_label_maps_in_a_folder_of_their_own_make_no_release(tmp_path: Path) -> None:
    for place, name in ((".", "T2w"), ("derivatives/drawem", "desc-drawem9_dseg")):
        folder = tmp_path / place / "sub-A" / "ses-1" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-A_ses-1_{name}.nii.gz").touch()
    assert not is_release(tmp_path)
    (one,) = find_scans(tmp_path).subjects
    assert one.name == "sub-A_ses-1" and one.t2 == tmp_path / "sub-A" / "ses-1" / "anat" / "sub-A_ses-1_T2w.nii.gz"


def test_batch_segments_a_release_session_by_session(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = NetworkSettings((2, 4, 4), 3.0, (32, 32, 32), heads=1)
    model = save_model(build_network(settings), settings, tmp_path / "tiny", description="random")
    for path in anat(release, "CC00063BN06", "15104").glob("*_T?w.nii.gz"):
        path.unlink()
    out = release / "derivatives" / "neonatalseg"  # among the data: its results are no sessions of their own
    command = ["batch", "--bids", str(release), "--out", str(out), "--model", str(model.folder), "--device", "cpu"]
    assert run(command) == 0
    told = [line for stream in capsys.readouterr() for line in stream.splitlines() if "ses-15104" in line]
    assert told and all("left out" in line and "no T1, no T2" in line for line in told)
    rows = [line.split("\t")[:2] for line in (out / "volumes.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert rows == [[f"sub-{p}_ses-{s}", f"{age:g}"] for p, s, age in SESSIONS if s != "15104"]
    for session in ("30500", "33702"):  # of one newborn
        folder = out / "sub-CC00098AN17" / f"ses-{session}" / "anat"
        assert (folder / f"sub-CC00098AN17_ses-{session}_space-T2w_desc-neonatalseg_dseg.nii.gz").is_file()
    assert run(command) == 0
    assert "4 were done before" in capsys.readouterr().out


def test_budget_plans_slices_of_every_session(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in anat(release, "CC00063BN06", "15104").glob("*_T?w.nii.gz"):
        path.unlink()
    command = ["budget", "--bids", str(release), "--prefill", "empty", "--amount", "2", "--unit", "slices"]
    assert run([*command, "--out", str(tmp_path / "study")]) == 0
    assert "sub-CC00063BN06_ses-15104: left out: no T1, no T2" in capsys.readouterr().err
    study = read_study(tmp_path / "study")
    expected = {f"sub-{p}_ses-{s}": age for p, s, age in SESSIONS if s != "15104"}
    assert {scan.name: scan.age_weeks for scan in study.scans} == expected
    assert all(len(study.plan.for_scan(name)) == 2 for name in expected)


def test_prepared_arrays_come_from_the_release(release: Path, coarse: Phantom) -> None:
    subjects = build_cache(read_release(release).subjects[:2], release / "cache", 3.0)
    assert [s.name for s in subjects] == ["sub-CC00050XX01_ses-7201", "sub-CC00063AN06_ses-15102"]
    assert [s.age_weeks for s in subjects] == [43.29, 35.71]
    labels = subjects[0].labels()
    truth = sitk.GetArrayViewFromImage(coarse.labels)
    assert np.array_equal(np.bincount(labels.ravel())[1:], np.bincount(truth.ravel())[1:])  # same spacing: same voxels
    assert all(channel.astype(np.float32).std() > 0.1 for channel in subjects[0].image())


def test_labels_on_another_grid_are_told_when_arrays_are_prepared(release: Path, coarse: Phantom) -> None:
    file = anat(release, "CC00063BN06", "15104") / "sub-CC00063BN06_ses-15104_desc-drawem9_dseg.nii.gz"
    sitk.WriteImage(sitk.Crop(coarse.labels, [0, 1, 0], [0, 0, 0]), str(file))
    with pytest.raises(NeonatalSegError, match=r"sub-CC00063BN06_ses-15104.* does not lie on the grid"):
        build_cache(read_release(release).subjects, release / "cache", 3.0)


def test_commands_read_the_release(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["split", "--data", str(release), "--out", str(tmp_path / "transfer.tsv"), "--kind", "transfer"]
    assert run([*command, "--source", "1", "--train", "1", "--test", "1"]) == 0
    split = read_split(tmp_path / "transfer.tsv")
    assert split.names("source") == ("sub-CC00050XX01_ses-7201",)
    twins = {"sub-CC00063AN06_ses-15102", "sub-CC00063BN06_ses-15104"}  # two newborns of one age
    assert set(split.names("target-train") + split.names("target-test")) == twins
    assert run(command) == USER_ERROR
    assert "(220) were asked for, but only 5 scans" in capsys.readouterr().err


def test_an_age_that_cannot_be_used_is_told_wherever_the_release_lies(release: Path, tmp_path: Path) -> None:
    """285 days, where weeks are expected: the scan is segmented without an age, and that is said."""
    root = tmp_path / "dhcp"
    pipeline = root / "derivatives" / "dhcp_anat_pipeline"
    shutil.copytree(release, pipeline)
    table = pipeline / "sub-CC00050XX01" / "sub-CC00050XX01_sessions.tsv"
    table.write_text("session_id\tscan_age\n7201\t285\n", encoding="utf-8")
    for place in (root, pipeline):
        found = find_scans(place)
        assert {s.name: s.age_weeks for s in found.subjects}["sub-CC00050XX01_ses-7201"] is None
        assert len([note for note in found.notes if "285" in note and "the age was left out" in note]) == 1, place
