"""Plans as files, the same bytes again from the same seed, and everything that is refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT
from small_studies import make_study, small_scan
from test_budget import BOX, box, newborn, settings

from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice, read_plan
from NeonatalSegLib.annotation.planning import plan_slices
from NeonatalSegLib.annotation.record import plane_shape
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.cli.app import USER_ERROR, run
from NeonatalSegLib.errors import NeonatalSegError

# --- the same again ---------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path[:0] = [{testing!r}, {root!r}]
from test_budget_files import write_plans
write_plans({folder!r})
"""


def write_plans(folder: str | Path) -> None:
    noise = np.random.default_rng(1).random(BOX.shape, np.float32)
    scans = [replace(box(name, uncertain=True), uncertainty=noise) for name in ("sub-01", "sub-02")]
    for selection in ("foreground-random", "uncertainty"):
        plan = plan_slices(scans, settings(9, selection=selection, axis="mixed", seed=7))
        plan.write(Path(folder) / f"{selection}.json")


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    write_plans(tmp_path / "here")
    program = PROGRAM.format(testing=str(ROOT / "Testing"), root=str(ROOT), folder=str(tmp_path / "there"))
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=120)
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert files == ["foreground-random.json", "uncertainty.json"]
    for name in files:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


@pytest.mark.parametrize("selection", ["equidistant", "random", "foreground-random", "uncertainty"])
def test_json_there_and_back(selection: str, tmp_path: Path) -> None:
    scan = newborn("RAS", 20.0)
    plan = plan_slices([scan], settings(9, selection=selection, axis="mixed", seed=3, cap_per_scan=20))
    plan.write(tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again == plan and again.for_scan(scan.name) == plan.slices
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert all(s.reason for s in plan.slices)
    again.check_scan(scan.name, scan.grid, scan.foreground)


# --- a later round ----------------------------------------------------------------------------------------------------


def test_a_later_round_leaves_out_what_was_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = make_study(tmp_path, slices=(("axial", 5), ("axial", 11), ("axial", 14), ("coronal", 7)))
    project = AnnotationSession.open(earlier, rater="anna")
    for planned in project.plan.slices:
        if planned.key != "sub-01/axial/14":  # planned, but nobody came to it
            labels = np.zeros(plane_shape(project.plan.grids["sub-01"], planned), np.uint8)
            project.complete(planned.key, labels, 1.0)
    project.close()
    command = ["budget", "--t2", str(tmp_path / "sub-01_T2w.nii.gz"), "--prefill", "empty", "--extent", "central"]
    command += ["--unit", "slices", "--exclude", str(earlier), "--amount"]
    assert run([*command, "18", "--out", str(tmp_path / "later")]) == 0
    plan = read_plan(tmp_path / "later" / "plan.json")
    # Of 22 axial slices the centres of 1 to 20 lie in the central 90 %.
    assert [s.index for s in plan.slices] == [i for i in range(1, 21) if i not in (5, 11)]
    capsys.readouterr()
    assert run([*command, "19", "--plan-only"]) == USER_ERROR
    assert "has 18 slices to choose from without those of earlier studies" in capsys.readouterr().err


def test_a_later_round_needs_the_scan_that_was_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = make_study(tmp_path)
    moved = small_scan()
    moved.SetOrigin((3.0, -7.0, 11.5))
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    command = ["budget", "--t2", str(tmp_path / "moved.nii.gz"), "--prefill", "empty", "--plan-only"]
    command += ["--exclude", str(earlier), "--name"]
    assert run([*command, "sub-01"]) == USER_ERROR
    assert "sub-01 in the study" in (told := capsys.readouterr().err) and "lies on another grid than" in told
    assert run([*command, "sub-02"]) == USER_ERROR
    assert "has none of the scans sub-02: it is about sub-01" in capsys.readouterr().err


@pytest.mark.parametrize("selection", ["equidistant", "random", "foreground-random", "uncertainty"])
def test_excluded_slices_are_never_chosen(selection: str) -> None:
    scan = box(uncertain=True)
    half = {i for i in range(10, 50) if i % 2}
    given = settings(20, selection=selection, exclude=tuple(f"box/axial/{i}" for i in half))
    assert {s.index for s in plan_slices([scan], given).slices} == set(range(10, 50)) - half
    everything = replace(given, amount=5, axis="mixed", exclude=tuple(f"box/axial/{i}" for i in range(60)))
    assert {s.axis for s in plan_slices([scan], everything).slices} == {"sagittal", "coronal"}


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"amount": 0}, "above 0"),
        ({"amount": -3}, "above 0"),
        ({"amount": float("nan")}, "above 0"),
        ({"amount": "ten"}, "above 0"),
        ({"amount": 2.5}, "whole number"),
        ({"amount": 101, "unit": "percent"}, "at most 100"),
        ({"unit": "litres"}, "'litres' is not a possible unit .* slices, percent"),
        ({"per": "hospital"}, "scan, study"),
        ({"axis": "oblique"}, "sagittal, coronal, axial, random, mixed"),
        ({"selection": "best"}, "equidistant, random, foreground-random, uncertainty"),
        ({"extent": "head"}, "brain, central"),
        ({"seed": -1}, "seed"),
        ({"min_gap_mm": -1.0}, "gap"),
        ({"cap_per_scan": 0}, "cap"),
        ({"colour": "red"}, "Unknown budget setting 'colour'"),
    ],
)
def test_settings_refused_in_words(wrong: dict[str, object], words: str) -> None:
    good = settings(5).to_json()
    assert BudgetSettings.from_json(json.loads(json.dumps(good))) == settings(5)
    with pytest.raises(NeonatalSegError, match=words):
        BudgetSettings.from_json({**good, **wrong})


@pytest.mark.parametrize("per", ["scan", "study"])
@pytest.mark.parametrize("selection", ["equidistant", "random", "foreground-random", "uncertainty"])
def test_budget_larger_than_the_axis(selection: str, per: str) -> None:
    scan = box(uncertain=True)
    assert len(plan_slices([scan], settings(40, selection=selection, per=per)).slices) == 40
    with pytest.raises(NeonatalSegError, match=r"budget of 41 slices is larger .* has 40 slices"):
        plan_slices([scan], settings(41, selection=selection, per=per))


def test_scans_refused_in_words() -> None:
    scan = box()
    elsewhere = np.zeros(BOX.shape, bool)
    elsewhere[:2, :2, :2] = True
    for scans, more, words in (
        ([], {}, "no scan"),
        ([scan, scan], {}, "Two scans have the name 'box'"),
        ([replace(scan, foreground=elsewhere)], {}, "box: no axial slice .* shows the brain"),
        ([replace(scan, foreground=np.zeros(BOX.shape, bool))], {"extent": "central"}, "shows the brain"),
        ([replace(scan, foreground=scan.foreground[1:])], {}, "does not lie"),
        ([scan], {"selection": "uncertainty"}, "no map of uncertainty"),
        ([replace(box(uncertain=True), prediction=None)], {"selection": "uncertainty"}, "no prediction"),
        ([replace(box(uncertain=True), prediction=scan.foreground * np.uint8(10))], {}, "labels above 9"),
    ):
        with pytest.raises(NeonatalSegError, match=words):
            plan_slices(scans, settings(5, **more))


def test_brain_at_the_end_of_the_axis_lies_outside_its_centre() -> None:
    edge = np.zeros(BOX.shape, bool)
    edge[:2] = True  # axial slices 0 and 1, while the central 90 % begin at 3
    scan = replace(box(), foreground=edge)
    assert [s.index for s in plan_slices([scan], settings(2)).slices] == [0, 1]
    with pytest.raises(NeonatalSegError, match="extent 'central' shows the brain"):
        plan_slices([scan], settings(2, extent="central"))


def test_plan_of_another_scan() -> None:
    plan = plan_slices([box()], settings(5))
    plan.check_scan("box", BOX, box().foreground)
    for name, grid, words in (
        ("ball", BOX, "knows no scan 'ball'"),
        ("box", replace(BOX, size=(40, 50, 61)), "40 x 50 x 60 voxels, and this one has 40 x 50 x 61"),
        ("box", replace(BOX, origin_mm=(-40.0, -50.0, -40.0)), "5.0 mm elsewhere"),
        ("box", replace(BOX, spacing_mm=(2.0, 2.0, 1.6)), "another scan"),
        ("box", replace(BOX, direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)), "another scan"),
    ):
        with pytest.raises(NeonatalSegError, match=words):
            plan.check_scan(name, grid)


def test_slices_outside_the_brain() -> None:
    outside = PlannedSlice("box", "axial", 5, -37.5, "by hand")
    plan = plan_slices([box()], settings(5))
    with pytest.raises(NeonatalSegError, match="box/axial/5 lies outside the brain"):
        replace(plan, slices=(*plan.slices, outside)).check_scan("box", BOX, box().foreground)
    central = plan_slices([box()], settings(5, extent="central"))
    replace(central, slices=(*central.slices, outside)).check_scan("box", BOX, box().foreground)  # may show none
    with pytest.raises(NeonatalSegError, match="outside the brain"):
        replace(central, slices=(outside,)).check_scan("box", BOX, box().foreground)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"format": "one"}, "could not be read as a plan"),
        ({"settings": {"amount": 0}}, "above 0"),
        ({"slices": [{"scan": "box", "axis": "axial", "index": 60, "position_mm": 0, "reason": ""}]}, "60 such slices"),
        ({"slices": [{"scan": "box", "axis": "axial", "index": 1.5, "position_mm": 0, "reason": ""}]}, "outside"),
        ({"slices": [{"scan": "box", "axis": "slanted", "index": 1, "position_mm": 0, "reason": ""}]}, "unknown"),
        ({"slices": [{"scan": "ball", "axis": "axial", "index": 1, "position_mm": 0, "reason": ""}]}, "unknown"),
        ({"slices": [{"scan": "box", "axis": "axial", "index": 1, "position_mm": 0, "reason": ""}] * 2}, "twice"),
        ({"slices": [{"scan": "box"}]}, "could not be read as a plan"),
        ({"grids": {"box": {"size": [1, 2]}}}, "could not be read as a plan"),
        ({"grids": None}, "could not be read as a plan"),
    ],
)
def test_damaged_plans_are_refused_in_words(change: dict[str, object], words: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    plan_slices([box()], settings(5)).write(file)
    assert isinstance(read_plan(file), Plan)
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(NeonatalSegError, match=words):
        read_plan(file)


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"format": 1, "sli', encoding="utf-8")
    (tmp_path / "list.json").write_text("[1, 2]", encoding="utf-8")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("torn.json", "list.json", "bytes.json", "missing.json"):
        with pytest.raises(NeonatalSegError, match=f"plan of slices .*{name} could not be read"):
            read_plan(tmp_path / name)
    with pytest.raises(NeonatalSegError, match="could not be written"):
        plan_slices([box()], settings(5)).write(tmp_path / "no such folder" / "plan.json")
