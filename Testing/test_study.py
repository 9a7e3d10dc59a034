"""From scans and a budget to a study on disk: the function, the command and the worker's operation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from NeonatalSegLib.annotation.new_study import Predicted, start_study
from NeonatalSegLib.annotation.plan import BudgetSettings, read_plan
from NeonatalSegLib.annotation.study import StudyScan, read_study
from NeonatalSegLib.cli.app import run
from NeonatalSegLib.datasets.phantom import write_newborn
from NeonatalSegLib.engine import Client
from NeonatalSegLib.errors import Cancelled, NeonatalSegError
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.models.exported import export_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.scans.preprocessing import foreground
from NeonatalSegLib.scans.scan import load_scan
from NeonatalSegLib.segmentation.segmenter import Segmenter
from NeonatalSegLib.tissues import PHYSIOLOGICAL

WORK_S = 300.0  # generous: two busy cores
BRAIN = [t.index for t in PHYSIOLOGICAL]


def bundle(folder: Path, *, only: int | None = None) -> Path:
    """A bundle with random weights; with ``only`` it sees that class everywhere."""
    import torch

    torch.manual_seed(1)
    settings = NetworkSettings((4, 8, 8), 3.0, (32, 32, 32), heads=0)
    network = build_network(settings)
    if only is not None:
        bias = [p for name, p in network.named_parameters() if name.endswith("bias") and p.shape == (10,)][-1]
        with torch.no_grad():
            bias[only] = 50.0
    return save_model(network, settings, folder, description="Random weights").folder


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = bundle(tmp_path_factory.mktemp("models") / "tiny")
    export_model(find_model(folder))  # the compute process then needs no torch
    return folder


@pytest.fixture(scope="module")
def segmenter(tiny_model: Path) -> Segmenter:
    return Segmenter(tiny_model, "cpu")


@pytest.fixture(scope="module")
def newborns(tmp_path_factory: pytest.TempPathFactory) -> list[StudyScan]:
    """Three coarse newborns in different orientations: one with both contrasts, one with T1, one with T2 alone."""
    scans = []
    for seed, (orientation, oblique) in enumerate((("LPS", 0.0), ("RAS", 20.0), ("PIR", 0.0))):
        folder = tmp_path_factory.mktemp(f"newborn{seed}")
        files = write_newborn(folder, seed=seed, spacing_mm=3.0, orientation=orientation, oblique_degrees=oblique)
        scans.append(
            StudyScan(f"sub-0{seed + 1}", files["t1"] if seed != 2 else None, files["t2"] if seed != 1 else None, 40.0)
        )
    return scans


def test_study_with_one_and_two_contrasts(newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    started = start_study(
        tmp_path / "study",
        newborns,
        BudgetSettings(3, "slices", axis="mixed", seed=2),
        segmenter=segmenter,
        progress=lambda stage, fraction: said.append((stage, fraction)),
    )
    study = read_study(started.folder)
    assert study.plan == started.plan and study.scans == tuple(newborns)
    assert study.facts["model_name"] == started.model_name == "tiny"
    assert study.facts["model_hash"] == started.model_hash == segmenter.model.hash
    assert study.facts["prefill"] == "model"
    for scan in newborns:
        expected = segmenter.segment(load_scan(scan.t1, scan.t2)).label_map
        labels = sitk.GetArrayFromImage(expected)
        assert (study.prefill(scan.name) == labels).all()
        study.check_images(scan)
        study.plan.check_scan(scan.name, Grid.of(expected), np.isin(labels, BRAIN))  # planned within predicted brain
        assert {s.axis for s in study.plan.for_scan(scan.name)} == {"sagittal", "coronal", "axial"}
    fractions = [fraction for _, fraction in said]
    assert fractions == sorted(fractions) and fractions[0] == 0.0 and fractions[-1] == 1.0
    which = [f"{scan.name} ({number} of 3)" for number, scan in enumerate(newborns, 1)]
    assert list(dict.fromkeys(stage for stage, _ in said)) == which


def test_a_result_that_is_there_is_not_computed_again(
    newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = newborns[0]
    label_map = segmenter.segment(load_scan(scan.t1, scan.t2)).label_map
    file = tmp_path / "result.nrrd"
    sitk.WriteImage(label_map, str(file))
    predicted = Predicted({scan.name: file}, "tiny", "5" * 64)
    monkeypatch.setattr(Segmenter, "segment", None)  # computing anything would fail
    started = start_study(tmp_path / "study", [scan], BudgetSettings(3, "slices"), predicted=predicted)
    study = read_study(started.folder)
    assert (study.prefill(scan.name) == sitk.GetArrayFromImage(label_map)).all()
    assert (study.facts["model_name"], study.facts["model_hash"]) == ("tiny", "5" * 64)


def test_a_result_on_another_grid_is_computed_anew(
    newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path
) -> None:
    scan = newborns[0]
    moved = segmenter.segment(load_scan(scan.t1, scan.t2)).label_map
    expected = sitk.GetArrayFromImage(moved)
    moved.SetOrigin([value + 5.0 for value in moved.GetOrigin()])
    file = tmp_path / "result.nrrd"
    sitk.WriteImage(moved * 0, str(file))
    predicted = Predicted({scan.name: file}, "tiny", segmenter.model.hash)
    started = start_study(
        tmp_path / "study", [scan], BudgetSettings(3, "slices"), segmenter=segmenter, predicted=predicted
    )
    assert (read_study(started.folder).prefill(scan.name) == expected).all()
    # By nobody's leave is a pre-fill empty and called the model's.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LookupError, match="looked for"):
        patch.setattr("NeonatalSegLib.models.registry.find_model", _looked_for)
        start_study(tmp_path / "alone", [scan], BudgetSettings(3, "slices"), predicted=predicted)


def _looked_for() -> None:
    raise LookupError("the default model is looked for")


def test_uncertainty_without_prefill(newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path) -> None:
    settings = BudgetSettings(7, "slices", "study", "axial", "uncertainty")
    started = start_study(tmp_path, newborns, settings, segmenter=segmenter, prefill="empty")
    assert len(started.plan.slices) == 7 and all("uncertainty" in s.reason for s in started.plan.slices)
    assert len([s for s in started.plan.slices if " in the " in s.reason]) >= 4
    assert started.model_name == "tiny" and not any(read_study(tmp_path).prefill("sub-01").flat)


def test_empty_study_needs_no_model(newborns: list[StudyScan], tmp_path: Path) -> None:
    started = start_study(tmp_path / "study", newborns, BudgetSettings(20, "percent"), prefill="empty")
    assert started.model_name == started.model_hash == ""
    study = read_study(tmp_path / "study")
    for scan in newborns:
        head = sitk.GetArrayFromImage(foreground(load_scan(scan.t1, scan.t2).reference))
        grid = study.plan.grids[scan.name]
        axial = [int(np.count_nonzero(head[plane(grid, "axial", i)])) * 9 for i in range(1000) if _has(grid, i)]
        assert len(study.plan.for_scan(scan.name)) == round(0.2 * sum(area >= 100 for area in axial))
        assert all(head[plane(grid, s.axis, s.index)].any() for s in study.plan.for_scan(scan.name))


def _has(grid: Grid, index: int) -> bool:
    try:
        plane(grid, "axial", index)
    except NeonatalSegError:
        return False
    return True


def test_a_model_that_finds_no_brain_is_told(newborns: list[StudyScan], tmp_path: Path) -> None:
    blind = Segmenter(bundle(tmp_path / "blind", only=0), "cpu")
    started = start_study(tmp_path / "study", newborns[:1], BudgetSettings(4, "slices"), segmenter=blind)
    assert any("sub-01: the model found no brain" in text for text in started.warnings)
    head = sitk.GetArrayFromImage(foreground(load_scan(t2=newborns[0].t2).reference))
    started.plan.check_scan("sub-01", started.plan.grids["sub-01"], head > 0)


def test_nothing_is_left_of_what_was_refused(newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path) -> None:
    text = tmp_path / "text.nii.gz"
    text.write_text("no image")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    one, folder = newborns[0], tmp_path / "deep" / "study"
    few = BudgetSettings(3, "slices")
    for target, scans, settings, prefill, words in (
        (folder, [], few, "model", "no scan"),
        (folder, [one, one], few, "model", "'sub-01' and 'sub-01'"),
        (folder, [one, StudyScan("SUB-01", one.t1, None)], few, "model", "'sub-01' and 'SUB-01'"),
        (folder, [StudyScan("a/b", one.t1, None)], few, "model", "'a/b' cannot be the name"),
        (folder, [StudyScan("a", None, None)], few, "model", "neither T1 nor T2"),
        (folder, [one, StudyScan("a", tmp_path / "gone.nii", None)], few, "model", "gone.nii"),
        (folder, [one, StudyScan("a", text, None)], few, "model", "text.nii.gz"),
        (folder, [one], BudgetSettings(500, "slices"), "model", "larger than"),
        (folder, [one], few, "neighbour", "'neighbour' is not a way to pre-fill"),
        (tmp_path / "full", [one], few, "model", "is not empty"),
        (text, [one], few, "model", "text.nii.gz"),
    ):
        with pytest.raises(NeonatalSegError, match=re.escape(words)):
            start_study(target, scans, settings, segmenter=segmenter, prefill=prefill)
        assert not folder.parent.exists() and len(list((tmp_path / "full").iterdir())) == 1
    start_study(folder, [one], few, prefill="empty")
    with pytest.raises(NeonatalSegError, match="There is a study in"):
        start_study(folder, [one], few, prefill="empty")
    assert len(read_plan(folder / "plan.json").slices) == 3  # the first one is as it was


def test_cancel_leaves_nothing(newborns: list[StudyScan], segmenter: Segmenter, tmp_path: Path) -> None:
    def stop(stage: str, fraction: float) -> None:
        if stage == "sub-02 (2 of 3)" and fraction > 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        start_study(tmp_path / "study", newborns, BudgetSettings(3, "slices"), segmenter=segmenter, progress=stop)
    assert list(tmp_path.iterdir()) == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_on_a_list(
    newborns: list[StudyScan], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{s.name}\t{s.t1 or ''}\t{s.t2 or ''}\t40" for s in newborns]
    table = tmp_path / "scans.tsv"
    table.write_text("\n".join(["name\tt1\tt2\tage_weeks", *rows]), encoding="utf-8")
    options = ["--amount", "8", "--unit", "slices", "--per", "study", "--axis", "coronal", "--seed", "5"]
    command = ["budget", "--out", tmp_path / "study", "--list", table, "--model", tiny_model, "--device", "cpu"]
    assert run([*map(str, command), *options]) == 0
    said = capsys.readouterr().out
    study = read_study(tmp_path / "study")
    assert study.plan.settings == BudgetSettings(8, "slices", "study", "coronal", seed=5)
    for scan in newborns:
        number = len(study.plan.for_scan(scan.name))
        assert re.search(rf"{scan.name} +0 +{number} +0 +{number}\n", said)
    assert "8 slices to annotate in 3 scans" in said and f"Study: {tmp_path / 'study'}" in said


def test_command_on_one_scan_and_a_bids_folder(
    newborns: list[StudyScan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t2 = str(newborns[2].t2)
    assert run(["budget", "--t2", t2, "--name", "baby", "--prefill", "empty", "--plan-only", "--amount", "25"]) == 0
    said = capsys.readouterr().out
    number = int(re.findall(r"(\d+) slices to annotate in 1 scan\n", said)[0])
    assert len(re.findall(r"baby/axial/\d+ +-?\d+\.\d mm  equidistant, ", said)) == number > 3
    assert list(tmp_path.iterdir()) == []

    folder = tmp_path / "bids" / "sub-07" / "ses-1" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-07_ses-1_T2w.nii.gz").write_bytes(Path(t2).read_bytes())
    out = tmp_path / "study"
    assert run(["budget", "--out", str(out), "--bids", str(tmp_path / "bids"), "--prefill", "empty"]) == 0
    assert list(read_study(out).plan.grids) == ["sub-07_ses-1"]


def test_command_says_what_is_wrong(
    newborns: list[StudyScan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ["--t2", str(newborns[0].t2), "--prefill", "empty"]
    out = ["--out", str(tmp_path / "study")]
    for options, words in (
        ([*one, *out, "--amount", "0"], "above 0"),
        ([*one, *out, "--axis", "slanted"], "sagittal, coronal, axial, random, mixed"),
        ([*one, *out, "--amount", "900", "--unit", "slices"], "larger than"),
        ([*one, *out, "--bids", str(tmp_path)], "one of these"),
        (out, "one of these"),
        (one, "--out"),
    ):
        assert run(["budget", *options]) == 2
        assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the worker -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def fields(scans: list[StudyScan], folder: Path, model: Path, **settings: Any) -> dict[str, Any]:
    return {
        "study": str(folder),
        "scans": [
            {"name": s.name, "t1": s.t1 and str(s.t1), "t2": s.t2 and str(s.t2), "age_weeks": s.age_weeks}
            for s in scans
        ],
        "settings": {**BudgetSettings(2, "slices").to_json(), **settings},
        "model": str(model),
        "device": "cpu",
        "prefill": "model",
    }


def test_worker_plans_and_prefills(
    client: Client, newborns: list[StudyScan], segmenter: Segmenter, tiny_model: Path, tmp_path: Path
) -> None:
    chosen = {"selection": "uncertainty", "axis": "mixed", "amount": 5}
    request = client.request("plan", **fields(newborns[:2], tmp_path / "there", tiny_model, **chosen))
    said = request.result(WORK_S)
    assert said["study"] == str(tmp_path / "there") and said["slices"] == 10
    assert said["model_name"] == "tiny" and said["model_hash"] == segmenter.model.hash
    stages = [event["stage"] for event in request.poll() if event.name == "progress"]
    assert stages[0] == "load model" and {"sub-01 (1 of 2)", "sub-02 (2 of 2)"} <= set(stages)
    study = read_study(tmp_path / "there")
    for scan in newborns[:2]:
        assert {s.axis for s in study.plan.for_scan(scan.name)} == {"sagittal", "coronal", "axial"}
        assert all("uncertainty" in s.reason for s in study.plan.for_scan(scan.name))
        here = sitk.GetArrayFromImage(segmenter.segment(load_scan(scan.t1, scan.t2)).label_map)
        # with another number of threads, a voxel between two classes may tip over
        assert (study.prefill(scan.name) == here).mean() > 0.999


def test_worker_refuses_in_words(client: Client, newborns: list[StudyScan], tiny_model: Path, tmp_path: Path) -> None:
    good = fields(newborns[:1], tmp_path / "study", tiny_model)
    for change, words in (
        ({"study": None}, "no folder"),
        ({"scans": []}, "no scan"),
        ({"scans": [{"name": "a", "t1": "gone.nii"}]}, "gone.nii"),
        ({"settings": {"amount": 0}}, "above 0"),
        ({"settings": {"amount": 900, "unit": "slices"}}, "larger than"),
        ({"prefill": "guess"}, "pre-fill"),
        ({"model": "no-such-model"}, "no-such-model"),
    ):
        final = client.request("plan", **{**good, **change}).wait(WORK_S)
        assert final is not None and final.name == "error" and final["kind"] == "user", final
        assert words in final.message
    assert list(tmp_path.iterdir()) == []


def test_worker_plans_an_empty_study_without_a_model(client: Client, newborns: list[StudyScan], tmp_path: Path) -> None:
    given = {**fields(newborns, tmp_path / "study", Path("no-such-model")), "prefill": "empty"}
    said = client.request("plan", **given).result(WORK_S)
    assert said["slices"] == 6 and said["model_name"] == ""
    assert json.loads((tmp_path / "study" / "plan.json").read_text(encoding="utf-8"))["settings"]["amount"] == 2
