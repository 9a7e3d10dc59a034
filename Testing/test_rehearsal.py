"""The rehearsal of the paper's evening from one end to the other, and what is told before its first hour."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from populations import release
from small_experiments import SETTINGS

from NeonatalSegLib.cli.app import USER_ERROR, run
from NeonatalSegLib.datasets.bids import Subject
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.experiments.paper import preflight
from NeonatalSegLib.experiments.paper.designs import JOBS
from NeonatalSegLib.experiments.paper.rehearsal import DAMAGED, draw_release
from NeonatalSegLib.experiments.paper.settings import ExperimentSettings, read_experiment

GIB = 2**30


def test_the_rehearsal_is_built_like_the_paper() -> None:
    """Its settings differ in sizes alone: the same optimiser, loss, augmentation, kinds of split and transfer."""
    small = read_experiment(ROOT / "Resources" / "Experiments" / "rehearsal.json")
    paper = ExperimentSettings.paper()
    network = dataclasses.replace(
        small.training.network,
        **{key: getattr(paper.training.network, key) for key in ("filters", "spacing_mm", "patch")},
    )
    training = dataclasses.replace(
        small.training, network=network, epochs=paper.training.epochs, validate_every=paper.training.validate_every
    )
    assert training == paper.training and len(small.training.network.filters) == len(paper.training.network.filters)
    assert small.split.train and small.split.more and small.transfer.source and small.transfer.source_test
    assert (small.budget.selection, small.budget.equidistant) == (paper.budget.selection, paper.budget.equidistant)
    assert small.loader_workers > 0


@pytest.mark.slow
def test_the_whole_evening_in_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn newborns as a release, one of them damaged and one without labels; all experiments; a second call."""
    assert run(["experiment", "rehearsal", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for words in (
        "14 usable scans", "no labels", "of 14 scans are needed", "Disk for prepared arrays", "One step of 2 patches",
        "min left", f"{DAMAGED}: left out", "runs are done already", "Rehearsed",
    ):  # fmt: skip
        assert words in told, words
    for name in JOBS:
        page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert "Steps of one run" in page and (tmp_path / f"{name}.png").stat().st_size > 5000
    assert f"Scans left out (1): {DAMAGED}" in (tmp_path / "transfer.md").read_text(encoding="utf-8")
    steps = [row.split("\t") for row in (tmp_path / "budget-steps.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    assert {row[0]: row[4] for row in steps}["budget-axial"] == {row[0]: row[4] for row in steps}[
        "budget-full-iterations"
    ]


def test_a_release_is_drawn_once(tmp_path: Path) -> None:
    told: list[str] = []
    folder = draw_release(tmp_path, 1, told.append)
    assert len(told) == 2 and (folder / "participants.tsv").is_file()
    draw_release(tmp_path, 1, told.append)
    assert len(told) == 2


def study_files(folder: Path) -> list[Subject]:
    """A scan of the dHCP's size of which only the header is there."""
    import SimpleITK as sitk

    image = sitk.Image([217, 290, 290], sitk.sitkUInt8)
    image.SetSpacing([0.5, 0.5, 0.5])
    sitk.WriteImage(image, str(folder / "T2w.nii.gz"), True)
    return [Subject(f"sub-{n}", None, folder / "T2w.nii.gz", None, 40.0) for n in range(470)]


def test_too_little_disk_is_told_before_anything_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, told, training = study_files(tmp_path), [], ExperimentSettings.paper().training
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=80 * GIB))
    preflight.check_disk(files, tmp_path / "cache", tmp_path, training, 4, told.append)
    assert "at most 50" in told[0] and "80 GiB free" in told[0]  # 470 x 221 x 294 x 294 voxels x 6 bytes
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=30 * GIB))
    with pytest.raises(NeonatalSegError, match=r"need up to 50.* has 30\.0 GiB free: make room"):
        preflight.check_disk(files, tmp_path / "cache", tmp_path, training, 4, told.append)


def test_what_is_not_installed_is_told_before_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name, *rest: None if name == "distributed" else found(name, *rest)
    )
    preflight.check_extras(with_dask=False)
    with pytest.raises(NeonatalSegError, match=r"distributed is not installed .* 'neonatalseg\[experiments\]'"):
        preflight.check_extras(with_dask=True)


def test_a_gpu_that_this_pytorch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(preflight.shutil, "which", lambda _: None)
    assert preflight.device_line() == "No GPU: the CPU computes."
    monkeypatch.setattr(preflight.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "build without CUDA" in preflight.device_line()


def test_a_step_is_timed_and_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < preflight.timed_step(SETTINGS.training) < 60

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", full)
    with pytest.raises(NeonatalSegError, match=r"A step of 2 patches .* does not fit into the .* memory"):
        preflight.timed_step(SETTINGS.training)


def test_a_check_writes_the_lists_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    rows = ["participant_id\tscan_age"]
    (data / "files").mkdir(parents=True)
    image = study_files(data / "files")[0].t2
    assert image is not None
    for subject in release(0, 16, 0, 0):
        name = subject.name.split("_")[0]
        rows.append(f"{name}\t{subject.age_weeks}")
        (data / name / "anat").mkdir(parents=True)
        for kind in ("T1w", "T2w", "dseg"):
            (data / name / "anat" / f"{name}_{kind}.nii.gz").hardlink_to(image)
    (data / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = tmp_path / "c.json"
    config.write_text(
        '{"training": {"network": {"filters": [4, 8, 8], "patch": [16, 16, 16], "heads": 1}}, '
        '"split": {"train": 6, "more": 0, "validation": 2, "test": 3}}'
    )
    command = ["experiment", "baseline", "--data", str(data), "--config", str(config), "--out", str(tmp_path / "out")]
    assert run([*command, "--check", "--runs", "2"]) == 0
    told = capsys.readouterr().out
    assert "11 of 16 scans are needed" in told and "All 2 runs: about" in told
    assert sorted(p.name for p in (tmp_path / "out" / "lists").iterdir()) == ["baseline-run0.tsv", "baseline-run1.tsv"]
    assert not list((tmp_path / "out").rglob("*.npy"))
    assert run([*command, "--exclude", "sub-nobody", "--check"]) == USER_ERROR
