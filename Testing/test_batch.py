"""A whole study: names, resuming, failures, exit codes; and the same through the headless script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny_models import exported_model

from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.segmentation.batch import run_study
from NeonatalSegLib.segmentation.segmenter import Segmenter, SegmentOptions
from NeonatalSegLib.segmentation.study_scans import scans_of_bids, scans_of_list


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    settings = NetworkSettings((2, 4, 4), 2.0, (32, 32, 32), heads=1)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return Segmenter(exported_model(folder, settings), "cpu")


@pytest.fixture
def study(coarse_files: dict[str, Path], tmp_path: Path) -> Path:
    """BIDS: one subject with two sessions, one with a broken T2."""
    root = tmp_path / "study"
    for subject, session in (("sub-A", "ses-1"), ("sub-A", "ses-2"), ("sub-B", "")):
        anat = root / subject / session / "anat"
        anat.mkdir(parents=True)
        stem = "_".join(p for p in (subject, session) if p)
        (anat / f"{stem}_T2w.nii.gz").write_bytes(coarse_files["t2"].read_bytes())
    (root / "sub-B" / "anat" / "sub-B_T2w.nii.gz").write_bytes(b"broken")
    (root / "participants.tsv").write_text("participant_id\tscan_age\nsub-A\t40.1\nsub-B\t41\n")
    return root


def test_a_study_goes_on_after_a_failure_and_resumes(tiny: Segmenter, study: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", []
    scans = scans_of_bids(study)
    first = run_study(tiny, scans, out, report=lines.append)
    assert (first.done, first.skipped, list(first.failed)) == (["sub-A_ses-1", "sub-A_ses-2"], [], ["sub-B"])
    assert first.exit_status == 3
    assert "sub-B_T2w.nii.gz" in first.failed["sub-B"] and "min left" in lines[0]
    result = out / "sub-A" / "ses-1" / "anat" / "sub-A_ses-1_space-T2w_desc-neonatalseg_dseg.nii.gz"
    stamp = result.stat().st_mtime_ns
    table = (out / "volumes.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [["sub-A_ses-1", "40.1"], ["sub-A_ses-2", "40.1"]]
    head = table[0].split("\t")
    # Random weights label nonsense: every door says so.
    assert {line.split("\t")[head.index("verdict")] for line in table[1:]} == {"fail"}
    assert first.doubtful == {"sub-A_ses-1": "fail", "sub-A_ses-2": "fail"}
    assert "plausibility fail: sub-A_ses-1" in first.summary() and "plausibility fail" in lines[0]
    assert json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))["DatasetType"] == "derivative"

    again = run_study(tiny, scans, out, report=lines.append)
    assert (again.done, again.skipped) == ([], ["sub-A_ses-1", "sub-A_ses-2"])
    assert again.doubtful == first.doubtful
    assert result.stat().st_mtime_ns == stamp
    other = run_study(tiny, scans[:1], out, SegmentOptions(uncertainty=True), report=lines.append)
    assert other.done == ["sub-A_ses-1"]
    assert result.stat().st_mtime_ns > stamp


def test_the_age_by_the_model_stands_in_the_table(tmp_path: Path) -> None:
    files = write_newborn(tmp_path, seed=4, spacing_mm=3.0)
    (tmp_path / "scans.tsv").write_text(f"name\tt2\tage_weeks\none\t{files['t2']}\t42\n")
    for age_head, told in ((True, "36.25"), (False, "n/a")):
        settings = NetworkSettings((2, 4, 4), 3.0, (32, 32, 32), heads=0, age_head=age_head)
        network = build_network(settings)
        if age_head:
            torch.nn.init.constant_(network.age_head.linear.bias, -3.75)  # beside term; its weights are still 0
        model = save_model(network, settings, tmp_path / f"model-{age_head}", description="random")
        result = run_study(Segmenter(model, "cpu"), scans_of_list(tmp_path / "scans.tsv"), tmp_path / told[:2])
        assert result.table is not None and result.done == ["one"]
        head, row = (line.split("\t") for line in result.table.read_text(encoding="utf-8").splitlines())
        values = dict(zip(head, row, strict=True))
        assert (values["age_weeks"], values["predicted_age_weeks"]) == ("42", told)


def test_a_list_of_scans(tiny: Segmenter, coarse_files: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "scans.tsv"
    table.write_text(f"name\tt1\tt2\tage_weeks\none\t{coarse_files['t1']}\t\t40\ntwo\tmissing.nii.gz\t\tn/a\n")
    result = run_study(tiny, scans_of_list(table), tmp_path / "out", report=lambda _: None)
    assert (result.done, list(result.failed), result.exit_status) == (["one"], ["two"], 3)
    assert (tmp_path / "out" / "one" / "one_dseg.nii.gz").is_file()
    assert "2 of" not in result.summary() and "1 segmented" in result.summary()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name\tt2\n", "lists no scans"),
        ("subject\tt2\na\tb\n", "must have"),
        ("name\tt2\na\tb\na\tc\n", "Line 3"),
        ("name\tt2\n../a\tb\n", "cannot be the name of a scan"),
        ("name\tt2\n..\tb\n", "Line 2.*cannot be the name of a scan"),
        ("name\tt2\nBaby\tb\nbaby\tc\n", "Line 3.*'Baby' and 'baby'"),
        ("name\tt2\tage_weeks\na\tb\told\n", "'old'"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "scans.tsv").write_text(text)
    with pytest.raises(NeonatalSegError, match=words):
        scans_of_list(tmp_path / "scans.tsv")


def headless(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = ROOT / "NeonatalSeg" / "segment_headless.py"
    return subprocess.run(
        [sys.executable, str(script), "--", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_headless_script_segments_one_scan(tiny: Segmenter, coarse_files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = headless("--t2", coarse_files["t2"], "--out", out, "--model", tiny.model.folder)
    assert done.returncode == 0, done.stderr
    assert (out / "sub-01_dseg.nii.gz").is_file()
    assert headless("--t2", tmp_path / "none.nii", "--out", out).returncode == 2


def test_headless_script_segments_a_study(tiny: Segmenter, study: Path, tmp_path: Path) -> None:
    arguments = ("batch", "--bids", study, "--out", tmp_path / "out", "--model", tiny.model.folder)
    assert headless(*arguments).returncode == 3
    (study / "sub-B" / "anat" / "sub-B_T2w.nii.gz").unlink()
    done = headless(*arguments)
    assert done.returncode == 0
    assert "2 were done before" in done.stdout
    (tmp_path / "empty.tsv").write_text("name\tt2\nx\tnone.nii\n")
    assert (
        headless(
            "batch", "--list", tmp_path / "empty.tsv", "--out", tmp_path / "o2", "--model", tiny.model.folder
        ).returncode
        == 4
    )
