"""A study's folder: made, shared by raters, met by kills and other programs, read for fine-tuning."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from annotation_cases import (
    AXIAL,
    CORONAL,
    FAR,
    GRID,
    OTHER,
    ROOT,
    array_in,
    cut,
    labels_for,
    largest_file,
    ledger,
    make_study,
    on_disk,
    planned,
    posix,
    prefill_of,
    snapshot,
)

from NeonatalSegLib.annotation import record
from NeonatalSegLib.annotation.plan import BudgetSettings, Plan, PlannedSlice
from NeonatalSegLib.annotation.session import AnnotationSession, StudyScan, create_study, read_annotations
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.scans.grid import Grid


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "made")


@pytest.fixture
def project(study: Path) -> Iterator[AnnotationSession]:
    with AnnotationSession.open(study, "Anna") as opened:
        yield opened


# ---------------------------------------------------------------- making a study


def test_study_keeps_what_it_was_given(study: Path, project: AnnotationSession) -> None:
    assert project.study.facts == {"model_name": "base"} and [scan.name for scan in project.scans] == [
        "sub-01",
        "sub-02",
    ]
    assert project.scans[0].age_weeks == 38.5 and project.scans[0].t1 is None
    assert project.scans[0].t2 is not None and project.scans[0].t2.exists()
    assert np.array_equal(array_in(study / "prefill", "sub-02_dseg.nii.gz"), prefill_of("sub-02"))
    assert project.plan.slices == tuple(planned(key) for key in (AXIAL, CORONAL, FAR, OTHER))


def test_images_in_the_study_move_with_it(tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / "scans").mkdir(parents=True)
    image = study / "scans" / "a.nii.gz"
    sitk.WriteImage(GRID.image(np.ones(GRID.shape, np.float32)), str(image))
    plan = Plan((PlannedSlice("a", "axial", 7, 0.0, ""),), {"a": GRID}, BudgetSettings(1, "slices"))
    create_study(study, plan, [StudyScan("a", image, None, None)])
    moved = tmp_path / "elsewhere"
    study.rename(moved)
    with AnnotationSession.open(moved, "Anna") as project:
        assert not project.prefill("a/axial/7", "model").any()
        project.complete("a/axial/7", labels_for(AXIAL, 6), 1.0)
    (scan,) = read_annotations(moved)
    assert scan.t1 == moved / "scans" / "a.nii.gz" and scan.age_weeks is None
    assert (scan.labels[cut(AXIAL)] == 6).all()


def test_study_is_made_whole_or_not_at_all(study: Path, tmp_path: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        plan, scans = project.plan, project.scans
    with pytest.raises(NeonatalSegError, match="There is a study"):
        create_study(study, plan, scans)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("x")
    with pytest.raises(NeonatalSegError, match=r"not empty \(thesis.txt"):
        create_study(full, plan, scans)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    new = tmp_path / "new"
    bad: list[tuple[Callable[[], None], str]] = [
        (lambda: create_study(new, plan, scans[:1]), "the same"),
        (lambda: create_study(new, plan, scans, {"sub-01": np.zeros((2, 2, 2), np.uint8)}), "grid"),
        (lambda: create_study(new, plan, scans, {"sub-01": np.full(GRID.shape, 11)}), "not labels: 11"),
        (lambda: create_study(new, plan, [scans[0], StudyScan("sub-02", None, None, None)]), "neither T1 nor T2"),
        (
            lambda: create_study(new, Plan((), {"a/b": GRID}, plan.settings), [StudyScan("a/b", new, None)]),
            "name of a scan",
        ),
    ]
    for make, words in bad:
        with pytest.raises(NeonatalSegError, match=words):
            make()
        assert not new.exists()
    with pytest.raises(TypeError):
        create_study(new, plan, scans, {}, {"what": object()})
    assert not new.exists()


@posix
def test_full_disk_leaves_no_study(study: Path, tmp_path: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        plan, scans = project.plan, project.scans
    for new in (tmp_path / "new", tmp_path / "made" / "empty"):
        if new.name == "empty":
            new.mkdir()
        for size in (100, 1000):  # too small for a label map, and for the plan
            with (
                largest_file(size),
                pytest.raises(NeonatalSegError, match=r"No study could be made|could not be written"),
            ):
                create_study(new, plan, scans, {} if size == 1000 else {"sub-01": prefill_of("sub-01")})
            assert new.exists() == (new.name == "empty") and not list(new.glob("*"))


def test_unfinished_study_is_made_again(study: Path, tmp_path: Path) -> None:
    """What a kill leaves in the middle of the making: everything but study.json."""
    with AnnotationSession.open(study, "Anna") as project:
        plan, scans = project.plan, project.scans
    new = tmp_path / "new"
    (new / ".creating").mkdir(parents=True)
    (new / "prefill").mkdir()
    (new / "plan.json").write_text("{")
    with pytest.raises(NeonatalSegError, match="holds no study"):
        AnnotationSession.open(new, "Anna")
    create_study(new, plan, scans)
    with AnnotationSession.open(new, "Anna") as project:
        assert len(project.items) == 4
    assert sorted(path.name for path in new.iterdir()) == ["plan.json", "prefill", "raters", "study.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}'])
def test_damaged_study_is_told(study: Path, text: str) -> None:
    (study / "study.json").write_text(text)
    with pytest.raises(NeonatalSegError, match=r"could not be read.*Restore it|update NeonatalSeg"):
        AnnotationSession.open(study, "Anna")


# ---------------------------------------------------------------- raters


def test_two_raters_do_not_meet(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as anna, AnnotationSession.open(study, "Bo") as bo:
        anna.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
        bo.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        bo.complete(OTHER, labels_for(OTHER, 3), 1.0)
        anna.complete(FAR, labels_for(FAR, 4), 1.0)
        assert anna.item(OTHER).state == "to do"
        assert (on_disk(study, "Anna")[0][cut(AXIAL)] == 1).all() and (on_disk(study, "Bo")[0][cut(AXIAL)] == 2).all()
        first, second = read_annotations(study)
        assert (first.name, first.raters, [s.key for s in first.slices]) == ("sub-01", ("Anna", "Bo"), [AXIAL, FAR])
        assert (first.labels[cut(AXIAL)] == 2).all() and (first.labels[cut(FAR)] == 4).all()
        assert (second.name, second.raters) == ("sub-02", ("Bo",)) and (second.labels[cut(OTHER)] == 3).all()
        (only,) = read_annotations(study, ["Anna"])
        assert only.raters == ("Anna",) and (only.labels[cut(AXIAL)] == 1).all()
        assert not only.labels[only.mask == 0].any()
        assert only.mask.sum() == 2 * labels_for(AXIAL, 0).size
        bo.reopen(AXIAL)
        assert (read_annotations(study)[0].labels[cut(AXIAL)] == 1).all(), "Anna's counts again"


HOLD = """
    import sys
    from NeonatalSegLib.annotation.session import AnnotationSession
    project = AnnotationSession.open(sys.argv[1], "Anna")
    print("open", flush=True)
    sys.stdin.read()
"""


def test_same_rater_twice_is_refused(study: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(study)]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        with pytest.raises(NeonatalSegError, match=rf"in process {child.pid} on .* since 20\d\d-.*Close it there"):
            AnnotationSession.open(study, "Anna")
        with AnnotationSession.open(study, "Bo") as bo:
            bo.skip(AXIAL)
        child.kill()
    text = json.loads((study / "raters" / "Anna" / "lock").read_text(encoding="utf-8"))
    assert text["process"] == child.pid, "the dead process left its lock"
    with AnnotationSession.open(study, "Anna") as project:
        with pytest.raises(NeonatalSegError, match=f"in process {os.getpid()} on"):
            AnnotationSession.open(study, "Anna")
        project.skip(AXIAL)
    AnnotationSession.open(study, "Anna").close()


def test_lock_of_another_computer_counts(study: Path) -> None:
    lock = study / "raters" / "Anna" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text('{"process": 77, "host": "ward-3", "since": "2026-01-02T03:04:05.000Z"}')
    with pytest.raises(NeonatalSegError, match=r"process 77 on ward-3 since 2026-01-02T03:04:05.000Z .*delete .*lock"):
        AnnotationSession.open(study, "Anna")
    lock.unlink()
    AnnotationSession.open(study, "Anna").close()


# ---------------------------------------------------------------- after kills and other programs


def test_torn_last_line_is_cut(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        whole = ledger(study).read_bytes()
        project.complete(CORONAL, labels_for(CORONAL, 3), 1.0)
    second = ledger(study).read_bytes()[len(whole) :]
    for length in (1, 9, len(second) // 2, len(second) - 1):
        ledger(study).write_bytes(whole + second[:length])
        (scan,) = read_annotations(study)
        assert [s.key for s in scan.slices] == [AXIAL]
        with AnnotationSession.open(study, "Anna") as project:
            assert [item.state for item in project.items[:2]] == ["done", "to do"]
            assert on_disk(study)[1].sum() == labels_for(AXIAL, 0).size, "the mask follows the ledger"
            project.skip(FAR)
        lines = ledger(study).read_bytes()
        assert lines.startswith(whole) and lines.count(b"\n") == whole.count(b"\n") + 1
        assert json.loads(lines.splitlines()[-1])["event"] == "skipped"
    ledger(study).write_bytes(whole + b"\0" * 4096)  # what some file systems leave after a power cut
    with AnnotationSession.open(study, "Anna") as project:
        assert project.item(AXIAL).state == "done"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'{"format', b"xx"),
        (b'"labels":"', b'"labels":"eJ'),
        (b'"crc32":', b'"crc32":1'),
        (b'"shape":[', b'"shape":[1'),
        (b'"event":"done"', b'"event":"sung"'),
        (b"axial/7", b"axial/8"),
    ],
)
def test_damaged_ledger_is_told_with_its_line(study: Path, old: bytes, new: bytes) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        project.skip(FAR)
    data = ledger(study).read_bytes()
    assert old in data
    ledger(study).write_bytes(data.replace(old, new, 1))
    for use in (lambda: AnnotationSession.open(study, "Anna"), lambda: read_annotations(study)):
        with pytest.raises(NeonatalSegError, match=r"ledger\.jsonl.* line 1"):
            use()
    ledger(study).write_bytes(data)
    with AnnotationSession.open(study, "Anna") as project:
        assert project.item(AXIAL).state == "done", "a failed opening lets go of the lock"


def test_unknown_label_in_a_ledger(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.skip(FAR)
    saved = record.Saved.of(planned(AXIAL), "Anna", atomic.now(), labels_for(AXIAL, 12))
    line = {"format": 1, "slice": AXIAL, "rater": "Anna", "event": "done", "time": saved.time, "seconds": 1.0}
    with ledger(study).open("a") as stream:
        stream.write(json.dumps({**line, "changed": 1, **saved.to_line()}) + "\n")
    with pytest.raises(NeonatalSegError, match=r"ledger.jsonl, line 2 \(slice sub-01/axial/7\).*not labels: 12"):
        read_annotations(study)


def test_ledger_that_another_program_shortened(study: Path, project: AnnotationSession) -> None:
    project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
    ledger(study).write_bytes(b"")
    with pytest.raises(NeonatalSegError, match="shortened by another program"):
        project.skip(FAR)
    assert ledger(study).read_bytes() == b""


def test_label_maps_are_made_again(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        place = study / "raters" / "Anna"
        old = snapshot(place)
        project.complete(CORONAL, labels_for(CORONAL, 3), 1.0)
        expected = project.label_map("sub-01"), project.annotated_mask("sub-01")
    names = ("sub-01_dseg.nii.gz", "sub-01_desc-annotated_mask.nii.gz")
    for broken in (names, names[:1], names[1:]):
        for name in broken:
            (place / name).write_bytes(old[name])
        (place / f".part-{names[0]}").write_bytes(b"half a file")
        (scan,) = read_annotations(study)
        assert np.array_equal(scan.mask, expected[1]), "reading goes by the ledger"
        with AnnotationSession.open(study, "Anna") as project:
            assert not project.warnings
            assert all(np.array_equal(found, right) for found, right in zip(on_disk(study), expected, strict=True))
        assert not list(place.glob(".part-*"))
    for name in names:
        (place / name).unlink()
    AnnotationSession.open(study, "Anna").close()
    assert all(np.array_equal(found, right) for found, right in zip(on_disk(study), expected, strict=True))


def test_work_of_another_program_is_kept_aside(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
    path = study / "raters" / "Anna" / "sub-01_dseg.nii.gz"
    edited = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    sitk.WriteImage(GRID.image(edited), str(path))
    assert (read_annotations(study)[0].labels[cut(AXIAL)] == 2).all(), "written again, but not changed"
    edited[cut(AXIAL)][0, 0] = 5
    sitk.WriteImage(GRID.image(edited), str(path))
    with pytest.raises(NeonatalSegError, match=r"sub-01_dseg.nii.gz was changed by another program"):
        read_annotations(study)
    with AnnotationSession.open(study, "Anna") as project:
        assert len(project.warnings) == 1 and "sub-01_dseg-changed1.nii.gz" in project.warnings[0]
    assert np.array_equal(array_in(path.parent, "sub-01_dseg-changed1.nii.gz"), edited)
    assert (on_disk(study)[0][cut(AXIAL)] == 2).all()
    assert (read_annotations(study)[0].labels[cut(AXIAL)] == 2).all()


def test_lost_ledger_does_not_cost_the_label_map(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
    kept = on_disk(study)[0]
    ledger(study).unlink()
    with AnnotationSession.open(study, "Anna") as project:
        assert len(project.warnings) == 2 and project.item(AXIAL).state == "to do"
    assert np.array_equal(array_in(study / "raters" / "Anna", "sub-01_dseg-changed1.nii.gz"), kept)


# ---------------------------------------------------------------- reading


def test_no_slice_complete(study: Path) -> None:
    with pytest.raises(NeonatalSegError, match="No slice is completed"):
        read_annotations(study)
    with pytest.raises(NeonatalSegError, match=r"Bo has annotated nothing.*raters are none"):
        read_annotations(study, ["Bo"])
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        project.reopen(AXIAL)
    assert not on_disk(study)[1].any()
    with pytest.raises(NeonatalSegError, match=r"No slice is completed in the study .* by Anna"):
        read_annotations(study, ["Anna"])


def test_label_map_of_an_unknown_label_or_another_grid(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
    path = study / "raters" / "Anna" / "sub-01_dseg.nii.gz"
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    labels[cut(AXIAL)][0, 0] = 87
    sitk.WriteImage(GRID.image(labels), str(path))
    with pytest.raises(NeonatalSegError, match=r"sub-01_dseg.nii.gz holds values that are not labels: 87"):
        read_annotations(study)
    labels[cut(AXIAL)][0, 0] = 2
    moved = Grid(GRID.size, GRID.spacing_mm, (0.0, 0.0, 0.0), GRID.direction)
    sitk.WriteImage(moved.image(labels), str(path))
    with pytest.raises(NeonatalSegError, match=r"sub-01_dseg.nii.gz does not lie on the grid"):
        read_annotations(study)


@pytest.mark.parametrize("change", ["size", "affine", "missing", "no image"])
def test_scan_that_is_not_the_planned_one(study: Path, change: str) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(OTHER, labels_for(OTHER, 2), 1.0)
        path = project.scans[1].t2
    assert path is not None
    if change == "size":
        sitk.WriteImage(GRID.image(np.zeros(GRID.shape, np.float32))[:-1], str(path))
        words = "another scan than sub-02"
    elif change == "affine":
        shifted = Grid(GRID.size, GRID.spacing_mm, (4.0, -8.0, 3.5), GRID.direction)
        sitk.WriteImage(shifted.image(np.zeros(GRID.shape, np.float32)), str(path))
        words = r"another scan than sub-02.* 1\.0 mm"
    elif change == "missing":
        path.unlink()
        words = r"sub-02 of this study is missing: there is no .*sub-02_T2w.nii.gz.*study.json"
    else:
        path.write_bytes(gzip.compress(b"no image"))
        words = "sub-02_T2w.nii.gz could not be read as an image"
    with pytest.raises(NeonatalSegError, match=words):
        read_annotations(study)
    with AnnotationSession.open(study, "Anna") as project:
        project.reopen(OTHER)
        project.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
    assert [scan.name for scan in read_annotations(study)] == ["sub-01"], "a scan without slices need not be there"


def test_newest_wins_where_slices_of_two_raters_cross(study: Path) -> None:
    with AnnotationSession.open(study, "Zoë") as first, AnnotationSession.open(study, "Bo") as second:
        first.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
        second.complete(CORONAL, labels_for(CORONAL, 2), 1.0)
        (scan,) = read_annotations(study)
        assert (scan.labels[cut(CORONAL)] == 2).all()
        first.complete(AXIAL, labels_for(AXIAL, 3), 1.0)
        (scan,) = read_annotations(study)
        assert (scan.labels[cut(AXIAL)] == 3).all() and scan.raters == ("Bo", "Zoë")


# ---------------------------------------------------------------- the order on which a power cut relies


def test_every_file_is_synced_before_it_takes_its_place(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches the system's own calls: data first, then the ledger's line, then the names."""
    calls: list[tuple[str, int]] = []
    sync, move = os.fsync, os.replace

    def watched_sync(handle: int) -> None:
        calls.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def watched_move(source: Path, target: Path) -> None:
        calls.append(("move", source.stat().st_ino))
        move(source, target)

    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        monkeypatch.setattr(os, "fsync", watched_sync)
        monkeypatch.setattr(os, "replace", watched_move)
        project.complete(CORONAL, labels_for(CORONAL, 2), 1.0)
        monkeypatch.undo()
    place = study / "raters" / "Anna"
    number = {path.name: path.stat().st_ino for path in (*place.iterdir(), place)}
    labels, mask = number["sub-01_dseg.nii.gz"], number["sub-01_desc-annotated_mask.nii.gz"]
    line = ("sync", number["ledger.jsonl"])
    expected = [("sync", labels), ("sync", mask), line, ("move", labels), ("move", mask)]
    if os.name == "posix":
        expected.append(("sync", number["Anna"]))
    assert calls == expected


def test_nothing_heavy_is_imported() -> None:
    code = """
        import sys, NeonatalSegLib.annotation.session
        print([name for name in ("torch", "monai", "scipy", "matplotlib", "qt", "slicer") if name in sys.modules])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"
