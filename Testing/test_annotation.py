"""Annotation studies on disk: what is saved, what is refused, and how a study goes on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from annotation_cases import (
    AXIAL,
    CORONAL,
    FAR,
    GRID,
    OTHER,
    cut,
    labels_for,
    largest_file,
    ledger,
    make_study,
    on_disk,
    ordinary_user,
    posix,
    prefill_of,
    snapshot,
)

from NeonatalSegLib.annotation.session import AnnotationSession, StudyProgress, create_study, read_annotations
from NeonatalSegLib.errors import NeonatalSegError


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "made")


@pytest.fixture
def project(study: Path) -> Iterator[AnnotationSession]:
    with AnnotationSession.open(study, "Anna") as opened:
        yield opened


# ---------------------------------------------------------------- a slice's way


def test_completed_slice_is_on_disk(study: Path, project: AnnotationSession) -> None:
    before = prefill_of("sub-01")
    project.start(AXIAL)
    labels = project.prefill(AXIAL, "model")
    assert np.array_equal(labels, before[cut(AXIAL)])
    labels[:2, :3] = (labels[:2, :3] + 1) % 10
    project.complete(AXIAL, labels, seconds=41.5)
    shown, mask = on_disk(study)
    before[cut(AXIAL)] = labels
    expected = np.zeros(GRID.shape, np.uint8)
    expected[cut(AXIAL)] = 1
    assert np.array_equal(shown, before) and np.array_equal(mask, expected)
    assert np.array_equal(project.label_map("sub-01"), before)
    assert np.array_equal(project.annotated_mask("sub-01"), expected)
    item = project.item(AXIAL)
    assert (item.state, item.seconds, item.changed_voxels) == ("done", 41.5, 6)
    started, done = (json.loads(line) for line in ledger(study).read_text(encoding="utf-8").splitlines())
    assert started["event"] == "started" and done["event"] == "done"
    assert done["rater"] == "Anna" and done["slice"] == AXIAL and done["seconds"] == 41.5 and done["changed"] == 6
    assert started["time"] == done["start"] <= done["time"] and done["time"].endswith("Z")


def test_closing_and_opening_goes_on(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.start(AXIAL)
        project.complete(AXIAL, labels_for(AXIAL, 3), 10.0)
        project.skip(CORONAL)
        project.flag(FAR, "motion: cortex not seen — ask Zoë")
        project.start(OTHER)
        assert project.next_key() == OTHER
        before = project.items
    with AnnotationSession.open(study, "Anna") as project:
        assert project.items == before and not project.warnings
        assert [item.state for item in before] == ["done", "skipped", "flagged", "in progress"]
        assert before[2].note == "motion: cortex not seen — ask Zoë"
        assert project.next_key() == OTHER
        assert np.array_equal(project.label_plane(AXIAL), labels_for(AXIAL, 3))


def test_closed_project_takes_nothing(study: Path) -> None:
    project = AnnotationSession.open(study, "Anna")
    project.close()
    project.close()
    with pytest.raises(NeonatalSegError, match="closed"):
        project.complete(AXIAL, labels_for(AXIAL, 1), 1.0)


def test_order_of_work(project: AnnotationSession) -> None:
    assert [item.slice.key for item in project.items] == [AXIAL, CORONAL, FAR, OTHER]
    assert project.next_key() == AXIAL and project.next_key(AXIAL) == CORONAL and project.next_key(OTHER) == AXIAL
    assert project.previous_key(CORONAL) == AXIAL and project.previous_key(AXIAL) is None
    project.start(FAR)
    assert project.next_key() == FAR, "what was begun comes first"
    for key in (AXIAL, FAR, OTHER):
        project.complete(key, labels_for(key, 1), 1.0)
    assert project.next_key() == CORONAL == project.next_key(CORONAL) == project.next_key(FAR)
    project.skip(CORONAL)
    assert project.next_key() is None is project.next_key(AXIAL)


def test_progress_in_words(project: AnnotationSession) -> None:
    assert project.progress() == StudyProgress(0, 4, None) and project.progress().text == "0 of 4 slices completed"
    for key, seconds in ((AXIAL, 60.0), (CORONAL, 600.0), (FAR, 90.0)):
        project.complete(key, labels_for(key, 1), seconds)
    assert project.progress() == StudyProgress(3, 4, 90.0)
    project.reopen(AXIAL)
    assert project.progress().text == "2 of 4 slices completed, about 3 min left"
    project.flag(AXIAL, "blurred")
    project.complete(OTHER, labels_for(OTHER, 1), 1.0)
    assert project.progress().text == "3 of 4 slices completed, 1 flagged"
    assert StudyProgress(7, 33, 26 * 55.0).text == "7 of 33 slices completed, about 24 min left"
    assert StudyProgress(7, 33, 26 * 300.0).text == "7 of 33 slices completed, about 2 h 10 min left"


def test_prefills(project: AnnotationSession) -> None:
    model = prefill_of("sub-01")[cut(FAR)]
    assert np.array_equal(project.prefill(FAR, "model"), model)
    assert np.array_equal(project.prefill(FAR, "neighbour"), model), "no neighbour is completed"
    assert not project.prefill(FAR, "empty").any()
    project.complete(AXIAL, labels_for(AXIAL, 4), 1.0)
    assert np.array_equal(project.prefill(FAR, "neighbour"), labels_for(FAR, 4))
    project.complete(CORONAL, labels_for(CORONAL, 8), 1.0)
    crossing = np.zeros(GRID.shape, bool)
    crossing[cut(CORONAL)] = True
    crossing = crossing[cut(FAR)]
    for mode, elsewhere in (("model", model), ("neighbour", labels_for(FAR, 4)), ("empty", labels_for(FAR, 0))):
        assert np.array_equal(project.prefill(FAR, mode), np.where(crossing, 8, elsewhere)), mode
    with pytest.raises(NeonatalSegError, match="pre-fill 'copy'"):
        project.prefill(FAR, "copy")


def test_changed_voxels_count_from_the_prefill_given(project: AnnotationSession) -> None:
    project.prefill(AXIAL, "empty")
    project.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
    assert project.item(AXIAL).changed_voxels == labels_for(AXIAL, 1).size


# ---------------------------------------------------------------- crossing and reopening


def test_crossing_slices_later_wins_and_both_stay(study: Path, project: AnnotationSession) -> None:
    project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
    project.complete(CORONAL, labels_for(CORONAL, 7), 1.0)
    shown, mask = on_disk(study)
    assert (shown[cut(CORONAL)] == 7).all() and (mask[cut(CORONAL)] == 1).all() and (mask[cut(AXIAL)] == 1).all()
    line = np.zeros(GRID.shape, bool)
    line[cut(CORONAL)] = True
    assert np.array_equal(shown[cut(AXIAL)], np.where(line[cut(AXIAL)], 7, 2))
    assert np.array_equal(project.label_plane(AXIAL), shown[cut(AXIAL)])
    project.reopen(CORONAL)
    shown, mask = on_disk(study)
    assert (shown[cut(AXIAL)] == 2).all(), "the first has its labels back"
    assert mask.sum() == mask[cut(AXIAL)].size == mask[cut(AXIAL)].sum()
    assert np.array_equal(project.label_plane(CORONAL), np.where(mask[cut(CORONAL)] == 1, 2, 7)), "to go on from"
    assert (project.item(CORONAL).state, project.item(CORONAL).saved) == ("in progress", True)
    project.complete(AXIAL, labels_for(AXIAL, 5), 1.0)
    assert (on_disk(study)[0][cut(AXIAL)] == 5).all()


@pytest.mark.parametrize("leave", ["reopen", "skip", "flag"])
def test_slice_that_leaves_the_mask(study: Path, project: AnnotationSession, leave: str) -> None:
    project.complete(AXIAL, labels_for(AXIAL, 2), 4.0)
    {"reopen": project.reopen, "skip": project.skip, "flag": lambda key: project.flag(key, "why")}[leave](AXIAL)
    assert not on_disk(study)[1].any() and not project.annotated_mask("sub-01").any()
    assert (project.label_plane(AXIAL) == 2).all()
    project.complete(AXIAL, labels_for(AXIAL, 3), 5.0)
    assert (project.item(AXIAL).state, project.item(AXIAL).seconds) == ("done", 9.0)
    assert (on_disk(study)[0][cut(AXIAL)] == 3).all() and (on_disk(study)[1][cut(AXIAL)] == 1).all()


def test_unfinished_slice_is_kept_outside_the_mask(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        with pytest.raises(NeonatalSegError, match="is to do, not in progress"):
            project.save_draft(AXIAL, labels_for(AXIAL, 6), 1.0)
        project.start(AXIAL)
        project.save_draft(AXIAL, labels_for(AXIAL, 5), 8.0)
        project.save_draft(AXIAL, labels_for(AXIAL, 6), 12.5)
        with pytest.raises(NeonatalSegError, match="No slice is completed"):
            read_annotations(study)
    with AnnotationSession.open(study, "Anna") as project:
        item = project.item(AXIAL)
        assert (item.state, item.saved, item.draft_seconds, item.seconds) == ("in progress", True, 12.5, 0.0)
        assert (project.label_plane(AXIAL) == 6).all() and (on_disk(study)[0][cut(AXIAL)] == 6).all()
        assert not on_disk(study)[1].any() and project.progress().done == 0
        project.complete(AXIAL, labels_for(AXIAL, 7), 20.0)
        assert (project.item(AXIAL).seconds, project.item(AXIAL).draft_seconds) == (20.0, 0.0)
    assert (read_annotations(study)[0].labels[cut(AXIAL)] == 7).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((3, 4), np.uint8), r"expected whole numbers of \(22, 21\)|expected whole numbers"),
        (labels_for(AXIAL, 1).astype(float), "float64"),
        (np.where(np.eye(*labels_for(AXIAL, 0).shape, dtype=bool), 10, 1), "not labels: 10"),
        (labels_for(AXIAL, 0).astype(np.int16) - 1, "not labels: -1"),
    ],
)
def test_bad_labels_change_nothing(study: Path, project: AnnotationSession, labels: np.ndarray, words: str) -> None:
    project.complete(CORONAL, labels_for(CORONAL, 1), 1.0)
    before = snapshot(study)
    with pytest.raises(NeonatalSegError, match=words):
        project.complete(AXIAL, labels, 1.0)
    assert snapshot(study) == before and project.item(AXIAL).state == "to do"


def test_bad_keys_and_times(project: AnnotationSession) -> None:
    for call in (
        lambda: project.complete("sub-01/axial/8", labels_for(AXIAL, 1), 1.0),
        lambda: project.start("sub-09/axial/7"),
        lambda: project.next_key("axial"),
        lambda: project.reopen(""),
    ):
        with pytest.raises(NeonatalSegError, match="plan holds no slice"):
            call()
    with pytest.raises(NeonatalSegError, match="cannot have taken nan s"):
        project.complete(AXIAL, labels_for(AXIAL, 1), float("nan"))
    project.complete(AXIAL, labels_for(AXIAL, 1), 1.0)
    with pytest.raises(NeonatalSegError, match="reopen it"):
        project.start(AXIAL)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "CON", "nul.txt", " Anna", "Anna.", "x" * 81, "a\nb", "a:b"])
def test_rater_names_that_no_folder_can_have(study: Path, name: str) -> None:
    before = snapshot(study)
    with pytest.raises(NeonatalSegError, match="cannot be the name of a rater"):
        AnnotationSession.open(study, name)
    assert snapshot(study) == before


def test_rater_names_that_windows_takes_for_one(study: Path) -> None:
    with AnnotationSession.open(study, "Zoë de Vries-2") as project:
        project.skip(AXIAL)
    with pytest.raises(NeonatalSegError, match="'Zoë de Vries-2' already"):
        AnnotationSession.open(study, "zoë de vries-2")


@posix
def test_read_only_study_is_told_and_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        monkeypatch.setenv("NEONATALSEG_MODELS", str(Path(place) / "models"))  # where the other user can look as well
        study = make_study(Path(place) / "made")
        with AnnotationSession.open(study, "Anna") as project:
            project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        folders = [study, *(path for path in study.rglob("*") if path.is_dir())]
        for path in (*study.rglob("*"), study):
            path.chmod(0o555 if path in folders else 0o444)
        before = snapshot(study)
        try:
            with ordinary_user():
                for rater in ("Anna", "Bo"):
                    with pytest.raises(NeonatalSegError, match=r"cannot be written .*can be read"):
                        AnnotationSession.open(study, rater)
                assert (read_annotations(study)[0].labels[cut(AXIAL)] == 2).all()
                with pytest.raises(NeonatalSegError, match="No study could be made"):
                    create_study(study / "new", project.plan, project.scans)
        finally:
            for path in folders:
                path.chmod(0o755)
        assert snapshot(study) == before


@posix
@pytest.mark.parametrize("full_at", ["label map", "ledger"])
def test_full_disk_leaves_the_old_state(study: Path, full_at: str) -> None:
    noise = np.random.default_rng(3).integers(0, 10, labels_for(CORONAL, 0).shape, np.uint8)
    with AnnotationSession.open(study, "Anna") as project:
        project.complete(AXIAL, labels_for(AXIAL, 2), 1.0)
        project.flag(FAR, "x" * 20_000)  # so that the ledger is longer than any label map
        place = study / "raters" / "Anna"
        largest = max(path.stat().st_size for path in place.glob("*.nii.gz"))
        limit = 100 if full_at == "label map" else ledger(study).stat().st_size + 50
        assert full_at == "label map" or limit > largest + 1000
        before, items = snapshot(study), project.items
        with (
            largest_file(limit),
            pytest.raises(NeonatalSegError, match=r"sub-01/coronal/12 could not be saved.*Nothing that was saved"),
        ):
            project.complete(CORONAL, noise, 1.0)
        assert snapshot(study) == before and project.items == items
        project.complete(CORONAL, noise, 1.0)
        assert np.array_equal(on_disk(study)[0][cut(CORONAL)], noise)
    with AnnotationSession.open(study, "Anna") as project:
        assert project.item(CORONAL).state == "done"
