"""The Fine-tune section's states, texts and buttons, without Qt, MRML or torch."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from NeonatalSegLib.models import store
from NeonatalSegLib.models.bundle import save_model
from NeonatalSegLib.models.registry import find_model
from NeonatalSegLib.models.scores import SOURCE_ROW, Scores, change_text
from NeonatalSegLib.models.versions import Version, list_versions
from NeonatalSegLib.networks.network import NetworkSettings, build_network
from NeonatalSegLib.panel import segment_view
from NeonatalSegLib.panel.finetune_state import FineTuneState, State, Strategy
from NeonatalSegLib.panel.finetune_view import view_of
from NeonatalSegLib.panel.segment_state import SegmentState
from NeonatalSegLib.tissues import PHYSIOLOGICAL

BEFORE = {t.key: 0.5 + 0.01 * t.index for t in PHYSIOLOGICAL}
AFTER = {key: value + 0.1 for key, value in BEFORE.items()}
RESULT: dict[str, Any] = {
    "model": "base-ft001",
    "parent": "base",
    "strategy": "deep",
    "slices": 9,
    "held_out_slices": 2,
    "before": BEFORE,
    "after": {**AFTER, "hippocampus": None},
    "before_mean": 0.55,
    "after_mean": 0.65,
    "history": [[0, 1.0, 0.5]],
    "stopped_early": False,
    "seconds": 250.0,
    "device": "CPU (2 threads)",
    "warnings": [],
}
CANDIDATE = Version("base-ft001", "candidate", "deep", "base", Scores.of(RESULT))


def tuning() -> FineTuneState:
    """One with a study of which slices are completed."""
    made = FineTuneState()
    made.set_store("base", [])
    made.set_study("study", 11, 33)
    return made


def finished(**changes: Any) -> FineTuneState:
    made = tuning()
    assert made.start()
    made.set_store("base", [CANDIDATE] if changes.get("model", "there") else [])
    made.finished({**RESULT, **changes})
    return made


def test_without_a_study_it_says_where_to_get_one() -> None:
    made = FineTuneState()
    view = view_of(made)
    assert (made.state, view.start.enabled, view.study) == (State.NO_STUDY, False, "none chosen")
    assert "Annotate section" in view.message and view.start.tool_tip == view.message
    assert not made.start()


def test_slices_of_earlier_rounds_are_told() -> None:
    made = FineTuneState()
    made.set_study("second", 3, 4, earlier=4)
    assert view_of(made).study == "second: 3 of 4 slices completed, and 4 of earlier rounds"


def test_a_study_without_completed_slices_cannot_start() -> None:
    made = FineTuneState()
    made.set_study("study", 0, 33)
    assert made.state is State.READY
    assert "No slice" in view_of(made).message and not view_of(made).start.enabled
    made.set_study("study", 1, 33)
    assert view_of(made).start.enabled and view_of(made).study == "study: 1 of 33 slices completed"


def test_a_study_that_cannot_be_read_is_told_as_a_notice() -> None:
    made = FineTuneState()
    made.set_study("study", refusal="There is no study in /x.")
    assert (view_of(made).message, view_of(made).kind) == ("There is no study in /x.", "warning")
    assert not made.start()


def test_ready_running_stopping_candidate() -> None:
    made = tuning()
    assert view_of(made).start.text == "Start"
    assert made.start() and made.state is State.RUNNING
    view = view_of(made)
    assert view.start.text == "Stop" and "keep the best" in view.start.tool_tip
    assert view.progress.visible and view.percent is None
    for control in (view.settings, view.accept, view.discard, view.roll_back, view.export, view.import_):
        assert not control.enabled and "running" in control.tool_tip
    assert not made.start()
    made.stop()
    view = view_of(made)
    assert made.state is State.STOPPING and not view.start.enabled and "keeping the best so far" in view.progress.text
    made.set_store("base", [CANDIDATE])
    made.finished({**RESULT, "stopped_early": True})
    view = view_of(made)
    assert made.state is State.CANDIDATE and not view.progress.visible
    assert view.message.startswith("Stopped early; the best so far was taken. base-ft001 is ready.")
    assert "0.550 before, 0.650 after" in view.message and "The current model is still base" in view.message
    assert "4 min on CPU (2 threads)" in view.message


def test_progress_in_words_keeps_the_last_held_out_dice() -> None:
    made = tuning()
    made.progress({"stage": "train", "step": 5})
    assert view_of(made).progress.text == ""  # nothing runs
    made.start()
    made.progress({"stage": "train", "fraction": 0.25, "step": 50, "steps": 200, "loss": 0.5, "held_out_dsc": 0.75})
    made.progress(
        {"stage": "train", "fraction": 0.5, "seconds_left": 90, "step": 100, "steps": 200, "loss": 0.25,
         "held_out_dsc": None}
    )  # fmt: skip
    assert view_of(made).percent == 50
    assert view_of(made).progress.text == "Training, step 100 of 200; loss 0.250; held-out DSC 0.750; 2 min left"
    made.progress({"stage": "choose", "fraction": 0.92, "seconds_left": None})
    assert "mix of old and new" in view_of(made).progress.text and "step" not in view_of(made).progress.text


def test_before_and_after_side_by_side_the_mean_last() -> None:
    rows = view_of(finished()).rows
    assert [row[0] for row in rows] == [t.name for t in PHYSIOLOGICAL] + ["Mean"]
    assert rows[0] == ("CSF", "0.510", "0.610", "+0.100")
    assert rows[7] == ("Hippocampus", "0.590", "–", "–")
    assert rows[8] == ("Mean", "0.550", "0.650", "+0.100")
    assert "base and base-ft001 (strategy deep)" in view_of(finished()).rows_text
    worse = Scores(BEFORE, BEFORE, 0.5, 0.25)
    assert worse.rows[8][3] == "-0.250" and worse.rows[0][3] == "0.000"


def test_nothing_kept_and_nothing_trained_are_told_and_leave_the_model() -> None:
    made = finished(model=None)
    view = view_of(made)
    assert made.state is State.READY and "Stopped before the first step" in view.message
    assert view.rows[8][1:3] == ("0.550", "0.650") and "last run on its 2 held-out slices" in view.rows_text
    assert not view.accept.enabled
    assert "Nothing was trained" in view_of(finished(model=None, strategy="none")).message


def test_without_held_out_slices_there_is_no_table_but_a_sentence() -> None:
    nothing: dict[str, Any] = {"before": {}, "after": {}, "before_mean": None, "after_mean": None, "held_out_slices": 0}
    made = tuning()
    made.start()
    made.set_store("base", [Version("base-ft001", "candidate", "deep", "base", Scores.of(nothing))])
    made.finished({**RESULT, **nothing})
    assert "could not be scored" in view_of(made).message and view_of(made).rows == ()


def test_what_it_knew_before_stands_below_the_mean() -> None:
    scores = Scores.of({**RESULT, "source_before": 0.9, "source_after": 0.88})
    assert scores.rows[8][0] == "Mean" and scores.rows[9] == (SOURCE_ROW, "0.900", "0.880", "-0.020")


def test_two_promises_the_users_choice() -> None:
    made = tuning()
    assert view_of(made).keep == "everything" and "Forgets little" in view_of(made).keep_text
    made.choose_keep("scanner")
    made.choose_keep("nothing of the kind")
    view = view_of(made)
    assert view.keep == "scanner" and "current model stays" in view.keep_text
    assert {name for _, name in view.keeps} == {"everything", "scanner"}


def test_a_model_for_scans_like_these_is_named_by_their_study_and_replaces_none() -> None:
    made = tuning()
    made.start()
    made.set_store("base", [replace(CANDIDATE, keep="scanner")])
    made.finished(RESULT)
    accept = view_of(made).accept
    assert accept.enabled and "Let the study study name base-ft001; base stays current" in accept.tool_tip
    assert "made for scans like these" in view_of(made).message
    made.set_study("")
    assert not view_of(made).accept.enabled and "choose that study first" in view_of(made).accept.tool_tip


def test_warnings_come_first() -> None:
    view = view_of(finished(warnings=["Memory ran out: smaller patches."]))
    assert view.message.startswith("Memory ran out") and view.kind == "warning"


def test_decisions_are_offered_for_what_can_be_decided() -> None:
    view = view_of(finished())
    assert view.accept.enabled and view.discard.enabled and view.export.enabled
    assert not view.roll_back.enabled and "first model" in view.roll_back.tool_tip
    made = finished()
    made.set_store("base-ft001", [Version("base-ft001", "accepted", "deep", "base")], "base")
    view = view_of(made)
    assert not view.accept.enabled and "current model already" in view.accept.tool_tip
    assert not view.discard.enabled and "roll back" in view.discard.tool_tip
    assert view.roll_back.enabled and "base" in view.roll_back.tool_tip
    assert view.versions == (("base-ft001 (accepted), current", "base-ft001"),)


def test_the_current_model_is_named_in_every_state() -> None:
    made = tuning()
    seen = [view_of(made).current]
    made.start()
    seen.append(view_of(made).current)
    made.stop()
    seen.append(view_of(made).current)
    made.failed("Too little memory.")
    seen.append(view_of(made).current)
    made.set_store("base", [CANDIDATE])
    made.finished(RESULT)
    seen.append(view_of(made).current)
    assert seen == ["base"] * 5
    made.set_store("base", [], warnings=["The accepted model x is missing: base is used instead."])
    assert "x is missing" in view_of(made).current


def test_an_error_is_told_and_the_next_start_is_possible() -> None:
    made = tuning()
    made.start()
    made.failed("A drive is gone.")  # another click's; the fine-tuning goes on
    assert made.state is State.RUNNING and view_of(made).message == "A drive is gone."
    made.ended("Too little memory.")
    assert (made.state, view_of(made).kind, view_of(made).message) == (State.ERROR, "error", "Too little memory.")
    assert view_of(made).start.text == "Start" and made.start()
    assert view_of(made).message == ""


def test_a_chosen_version_changes_nothing_but_what_is_shown() -> None:
    made = tuning()
    made.set_store("base", [Version("a", "candidate"), Version("b", "accepted", "full", "base", Scores.of(RESULT))])
    assert made.version == "b"
    made.choose_version("a")
    assert view_of(made).rows == () and made.current == "base"
    made.choose_version("b")
    assert view_of(made).rows[8][2] == "0.650"
    made.set_store("base", [Version("a", "candidate")])  # b was discarded
    assert made.version == "a"


def test_strategies_with_their_share() -> None:
    made = FineTuneState()
    assert [name for _, name in view_of(made).strategies] == ["none", "shallow", "medium", "deep", "full", "scratch"]
    assert view_of(made).strategies[1][0] == "shallow" and "Trains everything" in view_of(made).strategy_text
    made.set_strategies([Strategy("shallow", "the bottleneck", 4_096_000, 16_384_000, 25.0), Strategy("none", "as is")])
    assert view_of(made).strategies[0] == ("shallow: 25 % trained", "shallow")
    assert Strategy("x", "y", 12, 48, 25.0).what == "Trains y: 12 of 48 parameters."
    made.choose_strategy("shallow")
    assert (
        made.strategy == "shallow"
        and view_of(made).strategy_text == "Trains the bottleneck: 4.10 of 16.38 million parameters."
    )
    made.choose_strategy("of a newer version")
    assert made.strategy == "shallow"
    made.choose_strategy("none")
    assert "only scores" in view_of(made).strategy_text


def test_the_compute_process_does_one_thing_at_a_time() -> None:
    made = tuning()
    made.set_occupied("A segmentation is running.")
    assert not made.start() and view_of(made).message == "A segmentation is running."
    made.set_occupied("")
    assert made.start()
    panel = SegmentState()
    panel.set_inputs("T1", "")
    panel.set_occupied("A fine-tuning is under way.")
    assert not panel.start() and not segment_view.view_of(panel).segment.enabled
    assert "A fine-tuning is under way." in segment_view.view_of(panel).message
    assert segment_view.view_of(panel).segment.tool_tip == "A fine-tuning is under way."
    panel.set_occupied("")
    assert segment_view.view_of(panel).message == "" and panel.start()


def test_scene_closed_while_running() -> None:
    made = tuning()
    made.start()
    made.scene_closed()
    assert made.state is State.NO_STUDY and "stopped and discarded" in view_of(made).message
    made = tuning()
    made.scene_closed()
    assert "Choose or start a study" in view_of(made).message


def test_every_change_is_told_once() -> None:
    made, heard = tuning(), itertools.count()
    made.changed.connect(lambda: next(heard))
    made.set_study("study", 11, 33)
    assert next(heard) == 0  # the same again is no change
    made.set_study("study", 12, 33)
    made.start()
    made.stop()
    assert next(heard) == 4  # three changes, and the question above


def test_versions_of_the_store() -> None:
    """What the list shows comes from the real store: lineage, state, current."""
    tiny = NetworkSettings((4, 8, 8), 3.0, (16, 16, 16), heads=0)
    base = save_model(build_network(tiny), tiny, store.user_folder() / "base", description="a model")
    store.add_version(build_network(tiny), tiny, base, {**RESULT, "slices": ["a/axial/3"], "held_out_slices": []})
    names = {version.name: version for version in list_versions()}
    assert list(names) == ["base", "base-ft001"]
    assert (names["base-ft001"].state, names["base-ft001"].parent) == ("candidate", "base")
    assert names["base-ft001"].scores.rows[8] == ("Mean", "0.550", "0.650", "+0.100")
    store.accept("base-ft001")
    assert [version.state for version in list_versions()] == ["candidate", "accepted"]
    assert find_model().name == "base-ft001"


def test_stop_answers_at_once_with_what_it_waits_for() -> None:
    """Stop left a busy bar without a word for more than a minute while mixes of weights were scored."""
    made = tuning()
    made.start()
    made.progress({"stage": "train", "step": 7, "steps": 200, "held_out_slices": 2, "choosing_seconds": 21.0})
    made.stop()
    view = view_of(made)
    assert view.progress.text == "Stopping: keeping the best so far, scoring it on 2 held-out slices, about 21 s"
    made.progress({"stage": "choose", "fraction": 0.95, "mix": 2, "mixes": 3, "choosing_seconds": 14.0})
    view = view_of(made)
    assert "mix 2 of 3, about 14 s" in view.progress.text and view.percent == 95


def test_a_difference_within_noise_is_called_so() -> None:
    few = {"before_mean": 0.945, "after_mean": 0.946, "held_out_slices": 1}
    assert "0.945 before, 0.946 after. So small a difference is within noise." in view_of(finished(**few)).message
    many = {"before_mean": 0.90, "after_mean": 0.93, "held_out_slices": 4}
    assert "within noise" not in view_of(finished(**many)).message


def test_no_change_has_no_sign() -> None:
    assert change_text(0.9, 0.8999) == "0.000" and change_text(0.9, 0.9) == "0.000"
    assert change_text(0.9, 0.92) == "+0.020" and change_text(0.9, 0.88) == "-0.020"
