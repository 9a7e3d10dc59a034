"""Rounds of annotation: a later study knows the earlier ones, leaves their slices out and has them learned as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from small_studies import make_study, small_scan
from store_models import add, save_parent

from NeonatalSegLib.annotation.completed import all_rounds, completed_keys, read_rounds
from NeonatalSegLib.annotation.new_study import start_study
from NeonatalSegLib.annotation.plan import BudgetSettings
from NeonatalSegLib.annotation.record import plane_shape
from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.annotation.study import StudyScan, read_study
from NeonatalSegLib.annotation.trust import LeavesStudyError, outside_of, trust
from NeonatalSegLib.cli.app import run
from NeonatalSegLib.engine.client import Client
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.models.for_study import name_for_study
from NeonatalSegLib.scans.grid import plane

FIRST = (("axial", 5), ("axial", 11), ("axial", 14))


def complete(study: Path, keys: list[str], label: int, rater: str = "anna") -> None:
    """These slices as one label from edge to edge."""
    with AnnotationSession.open(study, rater=rater) as project:
        for planned in project.plan.slices:
            if planned.key in keys:
                shape = plane_shape(project.plan.grids[planned.scan], planned)
                project.complete(planned.key, np.full(shape, label, np.uint8), 1.0)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Three axial slices planned, two completed as CSF."""
    study = make_study(tmp_path, slices=FIRST)
    complete(study, ["sub-01/axial/5", "sub-01/axial/11"], 1)
    return study


def budget(folder: Path, out: str, *more: str) -> list[str]:
    """The command that plans one coronal slice of the scan beside the studies."""
    scan = ["--t2", str(folder / "sub-01_T2w.nii.gz"), "--prefill", "empty", "--extent", "central"]
    return [
        "budget",
        *scan,
        "--unit",
        "slices",
        "--amount",
        "1",
        "--axis",
        "coronal",
        "--out",
        str(folder / out),
        *more,
    ]


def test_three_rounds_are_learned_together(first: Path, tmp_path: Path) -> None:
    assert run(budget(tmp_path, "second", "--earlier", str(first))) == 0
    (planned,) = read_study(tmp_path / "second").plan.slices
    complete(tmp_path / "second", [planned.key], 2)
    assert run(budget(tmp_path, "third", "--earlier", str(tmp_path / "second"))) == 0
    third = read_study(tmp_path / "third")
    assert all_rounds([third.folder]) == [*third.earlier, third.folder] and len(third.earlier) == 2
    (later,) = third.plan.slices
    assert later.key != planned.key
    complete(third.folder, [later.key], 3)
    (scan,) = read_rounds(third.folder)
    assert {s.key for s in scan.slices} == {"sub-01/axial/5", "sub-01/axial/11", planned.key, later.key}
    labels = scan.labels
    assert (labels[plane(scan.grid, later.axis, later.index)] == 3).all(), "where slices cross the last round wins"
    crossed = labels[plane(scan.grid, "axial", 5)]
    assert sorted(np.unique(crossed)) == [1, 2, 3] and np.mean(crossed == 1) > 0.8


def test_a_raters_slices_are_hers_in_every_round(first: Path, tmp_path: Path) -> None:
    complete(first, ["sub-01/axial/11", "sub-01/axial/14"], 4, "bea")
    AnnotationSession.open(first, rater="cleo").close()  # looked, and completed nothing
    assert run(budget(tmp_path, "second", "--earlier", str(first))) == 0
    (planned,) = read_study(tmp_path / "second").plan.slices
    for label, rater in ((2, "anna"), (5, "bea"), (6, "cleo"), (7, "dora")):
        complete(tmp_path / "second", [planned.key], label, rater)

    def learned(*raters: str) -> tuple[set[int], set[str], tuple[str, ...]]:
        (scan,) = read_rounds(tmp_path / "second", raters=raters)
        return set(np.unique(scan.labels[scan.mask > 0])), {s.key for s in scan.slices}, scan.raters

    assert learned("anna") == ({1, 2}, {"sub-01/axial/5", "sub-01/axial/11", planned.key}, ("anna",))
    assert learned("bea") == ({4, 5}, {"sub-01/axial/11", "sub-01/axial/14", planned.key}, ("bea",))
    assert learned("cleo") == ({6}, {planned.key}, ("cleo",))
    assert learned("dora") == ({7}, {planned.key}, ("dora",))
    assert learned("anna", "dora")[2] == ("anna", "dora")


def test_what_was_completed_in_any_round_is_left_out(first: Path, tmp_path: Path) -> None:
    scan = StudyScan("sub-01", None, tmp_path / "sub-01_T2w.nii.gz")
    few = BudgetSettings(18, "slices", axis="axial", extent="central")
    second = start_study(tmp_path / "second", [scan], few, prefill="empty", earlier=[first])
    # Of 22 axial slices the centres of 1 to 20 lie in the central 90 %.
    assert [s.index for s in second.plan.slices] == [i for i in range(1, 21) if i not in (5, 11)]
    complete(second.folder, ["sub-01/axial/14"], 2)
    assert completed_keys(all_rounds([second.folder]), [scan]) == (
        "sub-01/axial/11",
        "sub-01/axial/14",
        "sub-01/axial/5",
    )


def test_the_compute_process_plans_a_round_by_the_model_that_the_study_names(first: Path, tmp_path: Path) -> None:
    made = add(save_parent(tmp_path))
    name_for_study(first, made)
    scan = {"name": "sub-01", "t1": None, "t2": str(tmp_path / "sub-01_T2w.nii.gz"), "age_weeks": 40.0}
    # All that are left of the 20 in the central part: of a few, the annotated ones might not be among them anyway.
    settings = BudgetSettings(18, "slices", axis="axial", selection="uncertainty", extent="central", min_gap_mm=0)
    with Client() as client:
        told = client.request(
            "plan",
            study=str(tmp_path / "second"),
            scans=[scan],
            settings=settings.to_json(),
            model=str(first),
            device="cpu",
            prefill="model",
            earlier=[str(first)],
        ).result(120)
    assert (told["slices"], told["model_name"], told["model_hash"]) == (18, made.name, made.hash)
    second = read_study(tmp_path / "second")
    assert not {"sub-01/axial/5", "sub-01/axial/11"} & {s.key for s in second.plan.slices}
    assert [path.resolve() for path in second.earlier] == [first.resolve()]


def test_rounds_that_lie_side_by_side_move_together(tmp_path: Path) -> None:
    image = tmp_path / "pair" / "one" / "scans" / "sub-01_T2w.nii.gz"
    image.parent.mkdir(parents=True)
    sitk.WriteImage(small_scan(), str(image))
    settings = BudgetSettings(2, "slices", axis="coronal", extent="central")
    one = start_study(tmp_path / "pair" / "one", [StudyScan("sub-01", None, image)], settings, prefill="empty")
    complete(one.folder, [s.key for s in one.plan.slices], 1)
    before = read_study(one.folder)
    two = start_study(tmp_path / "pair" / "two", before.scans, settings, prefill="empty", earlier=[one.folder])
    complete(two.folder, [s.key for s in two.plan.slices], 2)
    moved = (tmp_path / "pair").rename(tmp_path / "moved") / "two"
    study = read_study(moved)
    trust(outside_of(moved, study.scans, study.earlier))
    (scan,) = read_rounds(moved)
    assert len(scan.slices) == 4 and scan.reference.samefile(tmp_path / "moved" / "one" / "scans" / image.name)


def test_an_earlier_round_that_is_gone_is_named(first: Path, tmp_path: Path) -> None:
    assert run(budget(tmp_path, "second", "--earlier", str(first))) == 0
    (planned,) = read_study(tmp_path / "second").plan.slices
    complete(tmp_path / "second", [planned.key], 2)
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(
        NeonatalSegError, match=r"second goes on from the study .*study, which is not there: put it back"
    ):
        read_rounds(tmp_path / "second")


def test_another_image_of_the_same_size_is_refused_before_anybody_annotates(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    sitk.WriteImage(small_scan(seed=9), str(tmp_path / "other" / "sub-01_T2w.nii.gz"))
    command = budget(tmp_path / "other", "second", "--earlier", str(first))
    assert run(command) != 0
    assert "sub-01 in the study" in (told := capsys.readouterr().err) and "is another image" in told
    assert not (tmp_path / "other" / "second").exists()


def test_a_strangers_study_cannot_have_other_studies_read(first: Path, tmp_path: Path) -> None:
    made = make_study(tmp_path / "from elsewhere", slices=FIRST)
    complete(made, ["sub-01/axial/5"], 1)
    text = json.loads((made / "study.json").read_text(encoding="utf-8"))
    (made / "study.json").write_text(json.dumps({**text, "earlier": [str(first)]}), encoding="utf-8")
    with pytest.raises(LeavesStudyError, match="reads images outside its own folder") as refused:
        read_rounds(made)
    assert refused.value.paths == (first,)
    with pytest.raises(LeavesStudyError):
        AnnotationSession.open(made, rater="anna")
