"""Scans and results that are taken for one another: refused or told, in every door, and never counted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_inputs_studies import two_forms
from tiny_models import random_model

from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import Phantom, draw_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.scan import load_scan, make_scan
from NeonatalSegLib.segmentation.batch import StudyResult, run_study
from NeonatalSegLib.segmentation.outputs import segment_to_folder
from NeonatalSegLib.segmentation.overlay import upright
from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_results import read_rows
from NeonatalSegLib.segmentation.study_scans import scans_of_list


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return draw_newborn(40.0, seed=3, spacing_mm=3.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Random weights label nonsense: every result fails."""
    return Segmenter(random_model(tmp_path_factory.mktemp("model") / "tiny"), "cpu")


def saved(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def rows_of(table: Path) -> list[str]:
    return [line.split("\t")[0] for line in table.read_text(encoding="utf-8").splitlines()[1:]]


# --- images


def test_one_image_as_t1_and_as_t2_is_refused(coarse: Phantom, tmp_path: Path) -> None:
    """They agree perfectly, so that nothing else would doubt it."""
    one, copy = saved(coarse.t1, tmp_path / "one.nii.gz"), saved(coarse.t1, tmp_path / "copy.nrrd")
    with pytest.raises(NeonatalSegError, match="same image was given as T1 and as T2"):
        make_scan(coarse.t1, coarse.t1)
    with pytest.raises(NeonatalSegError, match=r"one\.nii\.gz and .*copy\.nrrd"):
        load_scan(one, copy)
    assert load_scan(one, saved(coarse.t2, tmp_path / "two.nii.gz")).t2 is not None


def test_a_t1_is_no_white_area_in_picture_and_report(newborn: Phantom) -> None:
    """Air is far darker than the darkest tissue of a T1; the grey values still reach from tissue to tissue."""
    for image in (newborn.t1, newborn.t2):
        seen = upright(image, newborn.labels)
        tissue = seen.grey[seen.labels > 0]
        assert (tissue >= 1).mean() < 0.02 and tissue.max() == 1
        assert np.ptp(np.percentile(tissue, (1, 99))) > 0.5


# --- results of other scans


def test_another_newborn_of_the_same_file_name_replaces_nothing(
    tiny: Segmenter, coarse: Phantom, tmp_path: Path
) -> None:
    """T2.nii.gz in a folder for each newborn, and one folder for all results."""
    other = draw_newborn(32.0, seed=5, spacing_mm=3.0)
    first, second = (saved(p.t2, tmp_path / name / "T2.nii.gz") for p, name in ((coarse, "a"), (other, "b")))
    out = tmp_path / "out"
    written = segment_to_folder(tiny, load_scan(t2=first), out)
    before = written["dseg"].read_bytes()
    with pytest.raises(NeonatalSegError, match=r"T2_dseg\.json is the result of other images.*--name.*--overwrite"):
        segment_to_folder(tiny, load_scan(t2=second), out)
    assert written["dseg"].read_bytes() == before
    # The same T2 and a T1 besides are the same scan.
    again = segment_to_folder(tiny, load_scan(saved(coarse.t1, tmp_path / "a" / "T1.nii.gz"), first), out)
    assert set(json.loads(again["sidecar"].read_text(encoding="utf-8"))["InputsSHA256"]) == {"t1", "t2"}
    assert segment_to_folder(tiny, load_scan(t2=second), out, overwrite=True)["dseg"].read_bytes() != before
    assert "T2b_dseg.nii.gz" in {
        path.name for path in segment_to_folder(tiny, load_scan(t2=first), out, name="T2b").values()
    }


def test_what_failed_this_time_is_in_no_table(tiny: Segmenter, coarse: Phantom, tmp_path: Path) -> None:
    """Its result of an earlier run lies in the folder still, and is not what was asked for."""
    odd, good = (saved(coarse.t2, tmp_path / f"{name}.nii.gz") for name in ("odd", "good"))
    two_forms(odd)  # a doubt, which --strict refuses
    (tmp_path / "scans.tsv").write_text(f"name\tt2\nodd\t{odd}\ngood\t{good}\n", encoding="utf-8")
    scans, out, lines = scans_of_list(tmp_path / "scans.tsv"), tmp_path / "out", list[str]()
    first = run_study(tiny, scans, out, report=lines.append)
    assert first.table is not None and rows_of(first.table) == ["good", "odd"]
    assert first.warned["odd"] >= 2 and any("odd: done, plausibility fail" in x and "warnings" in x for x in lines)
    assert f"{sum(first.warned.values())} warnings on 2 scans" in first.summary()
    strict = run_study(tiny, scans, out, SegmentOptions(strict=True), report=lines.append)
    assert list(strict.failed) == ["odd"] and strict.done == ["good"]
    assert rows_of(out / "volumes.tsv") == rows_of(out / "qc.tsv") == ["good"]
    assert (out / "odd" / "odd_dseg.nii.gz").is_file() and "odd" not in strict.doubtful


def test_of_two_results_of_one_name_the_newer_counts_and_the_other_is_told(
    tiny: Segmenter, coarse: Phantom, tmp_path: Path
) -> None:
    """As on a T2 that was taken out of the data set, and on the T1 that was left."""
    names = ("sub-A_space-T2w_desc-neonatalseg", "sub-A_space-T1w_desc-neonatalseg")
    for name, image in zip(names, (coarse.t2, coarse.t1), strict=True):
        path = saved(image, tmp_path / "scans" / f"{name}.nii.gz")
        segment_to_folder(tiny, load_scan(t2=path, name="sub-A"), tmp_path / "out", name=name, picture=False)
    (row,) = read_rows(tmp_path / "out")
    assert row.report == f"{names[1]}_report.html"
    assert row.warnings[-1] == f"{names[0]}_dseg.json is another, older result of this name: it is not counted."


# --- what was meant


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("name\tt1\tT2w\tage_weeks", "a column T2w.*Call it t2"),
        ("name\tt1\tt2\tage", "a column age.*Call it age_weeks"),
        ("name\tt1\tt2\tPMA at scan", "a column PMA at scan.*Call it age_weeks"),
        ("name\tt1\tT1\tage_weeks", "column t1 twice"),
    ],
)
def test_a_column_that_was_meant_and_is_not_read_is_refused(tmp_path: Path, columns: str, words: str) -> None:
    (tmp_path / "scans.tsv").write_text(f"{columns}\none\ta.nii\tb.nii\t40\n", encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=words):
        scans_of_list(tmp_path / "scans.tsv")


def test_columns_are_read_in_any_case_and_remarks_are_let_be(tmp_path: Path) -> None:
    (tmp_path / "scans.tsv").write_text("Name\tT1\tT2\tAge_weeks\tsex\tremark\none\ta.nii\tb.nii\t40\tF\tgood\n")
    (scan,) = scans_of_list(tmp_path / "scans.tsv")
    assert (scan.t1, scan.t2, scan.age_weeks) == (tmp_path / "a.nii", tmp_path / "b.nii", 40.0)


def test_run_beside_a_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scans.tsv").write_text("name\tt2\none\tb.nii\n", encoding="utf-8")
    assert run(["batch", "--list", str(tmp_path / "scans.tsv"), "--out", str(tmp_path / "out"), "--run", "first"]) == 2
    assert "--run chooses among the runs of a BIDS folder" in capsys.readouterr().err


def test_strict_gives_a_study_with_an_absurd_result_a_status_of_its_own(
    tiny: Segmenter, coarse: Phantom, tmp_path: Path
) -> None:
    path = saved(coarse.t2, tmp_path / "one.nii.gz")
    (tmp_path / "scans.tsv").write_text(f"name\tt2\none\t{path}\n", encoding="utf-8")
    for strict, status in (([], 0), (["--strict"], 5)):
        command = ["batch", "--list", str(tmp_path / "scans.tsv"), "--out", str(tmp_path / f"out{status}")]
        assert run([*command, "--model", str(tiny.model.folder), *strict]) == status
    assert StudyResult(done=["a"], failed={"b": "no"}, doubtful={"a": "fail"}, strict=True).exit_status == 3
