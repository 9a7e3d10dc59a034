"""The Annotate section's state machine on real studies on disk, and the clock with a hand of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_studies import cut, make_study, prefill

from NeonatalSegLib.annotation.session import AnnotationSession
from NeonatalSegLib.annotation.smoothing import smoothed
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.panel.annotate_state import NO_STUDY, AnnotateState
from NeonatalSegLib.panel.annotate_view import KEYS, view_of
from NeonatalSegLib.panel.work_clock import WorkClock

FIRST, SECOND, THIRD, FOURTH = "sub-01/axial/5", "sub-01/axial/11", "sub-01/coronal/7", "sub-01/sagittal/9"


class Hand:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def state(hand: Hand) -> AnnotateState:
    """In a module that is open, in an application that is active."""
    made = AnnotateState(clock=WorkClock(hand))
    made.clock.set_entered(True)
    made.clock.set_active(True)
    return made


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def begin(state: AnnotateState, study: Path) -> np.ndarray:
    state.open(study, "Anna")
    return state.go(state.next_key())


# The clock


def test_time_counts_only_while_working(hand: Hand) -> None:
    clock = WorkClock(hand)
    clock.start()
    hand.time += 10  # the module is not open
    clock.set_entered(True)
    hand.time += 10  # another application has the keyboard
    clock.set_active(True)
    hand.time += 10
    assert clock.seconds == 10
    clock.set_active(False)
    hand.time += 100
    clock.set_active(True)
    hand.time += 5
    clock.set_entered(False)
    hand.time += 100
    assert clock.seconds == 15


def test_a_minute_after_the_last_action_the_clock_stops_until_the_next(hand: Hand) -> None:
    clock = WorkClock(hand)
    clock.set_entered(True)
    clock.set_active(True)
    clock.start()
    hand.time += 59
    clock.touch()
    hand.time += 300
    assert clock.seconds == 59 + 60
    clock.touch()
    hand.time += 7
    assert clock.seconds == 59 + 60 + 7


def test_reading_the_clock_often_changes_nothing(hand: Hand) -> None:
    clock = WorkClock(hand)
    clock.set_entered(True)
    clock.set_active(True)
    clock.start(30.0)
    for _ in range(200):
        hand.time += 1
        clock.seconds  # noqa: B018
    assert clock.seconds == 30 + 60
    clock.stop()
    clock.touch()
    hand.time += 50
    assert clock.seconds == 90


# Studies


def test_without_a_study(state: AnnotateState) -> None:
    view = view_of(state)
    assert (view.study, view.rows, view.progress) == (NO_STUDY, (), "")
    assert not any(control.enabled for control in view.buttons.values())
    assert not view.edit.visible and view.setup.visible
    with pytest.raises(NeonatalSegError, match="Open a study"):
        state.go(FIRST)


def test_a_name_is_needed(state: AnnotateState, study: Path) -> None:
    with pytest.raises(NeonatalSegError, match="name"):
        state.open(study, "  ")
    assert state.project is None


def test_a_study_open_elsewhere_under_this_name_is_refused(state: AnnotateState, study: Path) -> None:
    with AnnotationSession.open(study, "Anna"), pytest.raises(NeonatalSegError, match="Anna has this study open"):
        state.open(study, "Anna")
    assert view_of(state).study == NO_STUDY
    state.open(study, "Anna")  # closed there: now it works
    state.close()


def test_the_list_of_slices(state: AnnotateState, study: Path) -> None:
    begin(state, study)
    view = view_of(state)
    assert [row.key for row in view.rows] == [FIRST, SECOND, THIRD, FOURTH]
    assert [row.state for row in view.rows] == ["in progress", "to do", "to do", "to do"]
    assert [row.axis for row in view.rows] == ["axial", "axial", "coronal", "sagittal"]
    assert view.rows[1].tool_tip == "sub-01: reason 11"
    assert view.rows[0].position == "S 18.5 mm"  # 11 mm, and five slices of 1.5 mm upwards
    assert (view.current, view.progress, view.percent) == (FIRST, "0 of 4 slices completed", 0)


# Slices


def test_a_slice_starts_from_the_prefill_and_done_leads_to_the_next(
    state: AnnotateState, study: Path, hand: Hand
) -> None:
    labels = begin(state, study)
    assert state.project is not None
    planned, grid = state.project.item(FIRST).slice, state.project.plan.grids["sub-01"]
    np.testing.assert_array_equal(labels, cut(prefill(), grid, planned))
    corrected = labels.copy()
    corrected[3, 4:9] = 5
    hand.time += 42
    assert state.complete(corrected) == SECOND
    np.testing.assert_array_equal(state.project.label_plane(FIRST), corrected)
    item = state.project.item(FIRST)
    assert (item.state, item.seconds, item.changed_voxels) == ("done", 42.0, np.count_nonzero(corrected != labels))
    state.go(SECOND)
    assert view_of(state).progress == "1 of 4 slices completed, about 2 min left"
    assert state.clock.seconds == 0


def test_buttons_say_why_not(state: AnnotateState, study: Path) -> None:
    begin(state, study)
    buttons = view_of(state).buttons
    assert buttons["done"].enabled and f"Key: {KEYS['done']}" in buttons["done"].tool_tip
    assert not buttons["reopen"].enabled and not buttons["previous"].enabled
    state.skip()
    view = view_of(state)  # the slice is still shown, and closed
    assert not view.buttons["done"].enabled and "skipped" in view.buttons["done"].tool_tip
    assert view.buttons["reopen"].enabled and not view.edit.enabled


def test_skip_flag_reopen(state: AnnotateState, study: Path) -> None:
    labels = begin(state, study)
    assert state.skip() == SECOND
    state.go(SECOND)
    assert state.flag("motion") == THIRD
    state.go(THIRD)
    assert state.previous_key() == SECOND
    rows = {row.key: row for row in view_of(state).rows}
    assert (rows[FIRST].state, rows[SECOND].state) == ("skipped", "flagged")
    assert rows[SECOND].tool_tip.endswith("Note: motion")
    state.go(FIRST)
    assert not state.editable
    np.testing.assert_array_equal(state.reopen(), labels)
    assert state.editable


def test_the_end_of_a_study(state: AnnotateState, study: Path) -> None:
    labels = begin(state, study)
    for _ in range(3):
        labels = state.go(state.complete(labels))
    assert state.complete(labels) == ""
    view = view_of(state)
    assert "All slices" in view.message and view.progress == "4 of 4 slices completed" and view.percent == 100


def test_prefills(state: AnnotateState, study: Path) -> None:
    labels = begin(state, study)
    done = np.full_like(labels, 6)
    state.prefill = "neighbour"
    np.testing.assert_array_equal(state.go(state.complete(done)), done)
    state.prefill = "empty"
    assert not state.fill_again().any()
    state.prefill = "model"
    assert state.fill_again().any()


def test_a_slice_left_unfinished_comes_back_with_its_time(state: AnnotateState, study: Path, hand: Hand) -> None:
    labels = begin(state, study)
    assert not state.keep_draft(labels)  # nothing was changed
    changed = labels.copy()
    changed[:2] = 8
    hand.time += 20
    assert state.keep_draft(changed)
    assert not state.keep_draft(changed)
    state.go(SECOND)
    np.testing.assert_array_equal(state.go(FIRST), changed)
    hand.time += 5
    state.complete(changed)
    assert state.project is not None and state.project.item(FIRST).seconds == 25
    state.close()
    state.open(study, "Anna")
    assert state.next_key() != FIRST


def test_a_draft_outlives_the_session_and_is_not_annotated(study: Path, hand: Hand) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.start(FIRST)
        draft = np.full_like(project.prefill(FIRST, "model"), 3)
        project.save_draft(FIRST, draft, 12.0)
        assert not project.annotated_mask("sub-01").any()
    with AnnotationSession.open(study, "Anna") as project:
        item = project.item(FIRST)
        assert (item.state, item.saved, item.draft_seconds, item.seconds) == ("in progress", True, 12.0, 0.0)
        np.testing.assert_array_equal(project.label_plane(FIRST), draft)
        assert project.next_key() == FIRST
        project.complete(FIRST, draft, 15.0)
        assert project.item(FIRST).draft_seconds == 0
        with pytest.raises(NeonatalSegError, match="is done, not in progress"):
            project.save_draft(FIRST, draft, 1.0)


def test_a_draft_with_unknown_labels_is_refused(study: Path) -> None:
    with AnnotationSession.open(study, "Anna") as project:
        project.start(FIRST)
        with pytest.raises(NeonatalSegError):
            project.save_draft(FIRST, np.full_like(project.prefill(FIRST, "empty"), 11), 1.0)
        assert not project.item(FIRST).saved


# Making a study


def test_making_a_study(state: AnnotateState) -> None:
    state.set_scan("Choose a T1.")
    assert not view_of(state).make.enabled and view_of(state).make.tool_tip == "Choose a T1."
    state.set_scan("")
    assert view_of(state).make.enabled
    state.make()
    state.progress("network", 0.5, 90.0)
    view = view_of(state)
    assert (view.make.text, view.making.text, view.making_percent) == ("Cancel", "Segmenting, 2 min left", 50)
    assert not view.open.enabled and not view.setup.enabled
    state.made("It failed.", "error")
    view = view_of(state)
    assert (view.making.visible, view.message, view.kind) == (False, "It failed.", "error")


def test_resume_is_offered_for_the_study_that_was_open(state: AnnotateState, study: Path) -> None:
    assert not view_of(state).resume.visible
    state.open(study, "Anna")
    assert not view_of(state).resume.visible
    state.close()
    view = view_of(state)
    assert view.resume.visible and view.recent[0][0] == "study"


def test_smoothing_takes_single_voxels_and_leaves_straight_borders() -> None:
    labels = np.full((8, 9), 3, np.uint8)
    labels[:, 5:] = 2
    clean = labels.copy()
    labels[3, 2] = 9
    everywhere = np.ones(labels.shape, bool)
    np.testing.assert_array_equal(smoothed(labels, everywhere), clean)
    np.testing.assert_array_equal(smoothed(clean, everywhere), clean)
    locked = everywhere.copy()
    locked[3, 2] = False
    np.testing.assert_array_equal(smoothed(labels, locked), labels)
    assert smoothed(labels, everywhere).dtype == np.uint8
