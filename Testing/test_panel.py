"""The state machine of the panel, without a screen."""

from __future__ import annotations

import pytest

from NeonatalSegLib.panel.controls import duration
from NeonatalSegLib.panel.segment_state import Device, SegmentState, State
from NeonatalSegLib.panel.segment_view import BUSY, NO_INPUT, NO_RESULT, view_of
from NeonatalSegLib.panel.signals import Signal

ROWS = [("CSF", 100.0), ("White matter", 150.0)]
GPU = Device("cuda", "GPU: NVIDIA H200")
CPU = Device("cpu", "CPU (2 threads)")


def ready() -> SegmentState:
    panel = SegmentState()
    panel.set_inputs("T1", "T2")
    return panel


def running() -> SegmentState:
    panel = ready()
    assert panel.start()
    return panel


def done() -> SegmentState:
    panel = running()
    panel.finished(ROWS)
    return panel


def test_no_input_says_what_to_do() -> None:
    view = view_of(SegmentState())
    assert view.state is State.NO_INPUT
    assert (view.segment.enabled, view.segment.tool_tip, view.segment.text) == (False, NO_INPUT, "Segment")
    assert (view.export.enabled, view.export.tool_tip) == (False, NO_RESULT)
    assert view.message == NO_INPUT


@pytest.mark.parametrize("names", [("T1", ""), ("", "T2"), ("T1", "T2")])
def test_either_input_is_enough(names: tuple[str, str]) -> None:
    panel = SegmentState()
    panel.set_inputs(*names)
    assert panel.state is State.IDLE and view_of(panel).segment.enabled and view_of(panel).message == ""


def test_unusable_input_is_refused_with_its_reason() -> None:
    panel = SegmentState()
    panel.set_inputs("T1", "", "T1 holds no image data.")
    view = view_of(panel)
    assert not view.segment.enabled and view.segment.tool_tip == "T1 holds no image data." == view.message
    assert not panel.start() and panel.state is State.IDLE


def test_running_turns_segment_into_cancel_and_locks_the_rest() -> None:
    panel = running()
    panel.progress("network", 0.42, 12.3)
    view = view_of(panel)
    assert (view.segment.text, view.segment.enabled) == ("Cancel", True)
    assert (view.inputs.enabled, view.inputs.tool_tip) == (False, BUSY)
    assert (view.percent, view.progress.text, view.progress.visible) == (42, "Segmenting, 12 s left", True)
    assert not panel.start()


def test_progress_before_the_fraction_is_known() -> None:
    view = view_of(running())
    assert view.percent is None and view.progress.text == "Handing over the scan"


def test_cancel_then_late_progress_then_idle() -> None:
    panel = running()
    panel.cancel()
    panel.progress("network", 0.9, 1.0)
    view = view_of(panel)
    assert panel.state is State.CANCELLING
    assert not view.segment.enabled and "two seconds" in view.segment.tool_tip and view.progress.text == "Stopping ..."
    panel.cancelled()
    assert panel.state is State.IDLE and "Cancelled" in view_of(panel).message


def test_cancel_keeps_an_earlier_result() -> None:
    panel = done()
    assert panel.start()
    assert not view_of(panel).export.enabled and view_of(panel).export.tool_tip == BUSY
    panel.cancel()
    panel.cancelled()
    view = view_of(panel)
    assert panel.state is State.DONE and view.rows == tuple(ROWS) and view.export.enabled


def test_done_shows_warnings_before_the_summary() -> None:
    panel = running()
    panel.finished(ROWS, ["T1 and T2 look swapped."], "Done in 8 s.")
    view = view_of(panel)
    assert (view.state, view.kind) == (State.DONE, "warning")
    assert view.message.splitlines() == ["T1 and T2 look swapped.", "Done in 8 s."]
    assert view.results.enabled and view.export.enabled


def test_a_verdict_stands_before_its_reasons() -> None:
    panel = running()
    panel.finished(ROWS, ["The labels are scattered."], "Done in 8 s.", verdict="fail")
    view = view_of(panel)
    assert (view.state, view.kind) == (State.DONE, "error")
    assert view.message.splitlines()[0].startswith("Do not use this result")
    assert view.message.splitlines()[1:] == ["The labels are scattered.", "Done in 8 s."]
    assert view.export.enabled  # the files may still be wanted
    assert panel.start()
    panel.finished(ROWS, ["Cerebellum in two places."], "Done in 8 s.", verdict="check")
    assert view_of(panel).kind == "warning"
    assert view_of(panel).message.startswith("Look at this result before using it")


def test_a_verdict_stands_as_long_as_its_result_is_shown() -> None:
    panel = running()
    panel.finished(ROWS, ["The labels are scattered."], "Done in 8 s.", verdict="fail")
    panel.notice("Written: x")
    view = view_of(panel)
    assert view.kind == "error" and view.message.startswith("Do not use this result")
    assert view.message.splitlines()[1:] == ["The labels are scattered.", "Written: x"]
    panel.set_inputs("T1", "")
    assert view_of(panel).kind == "error" and view_of(panel).message.startswith("Do not use this result")
    assert panel.start() and "Do not use this result" in view_of(panel).message  # the old rows are still there
    panel.failed("The disk is full.")
    assert view_of(panel).message.startswith("The disk is full.\nDo not use this result")
    panel.show_result(None)
    assert "Do not use" not in view_of(panel).message
    panel.show_result(ROWS, ["Cerebellum in two places."], "check")
    assert view_of(panel).message.splitlines()[-1] == "Cerebellum in two places."
    panel.scene_closed()
    assert view_of(panel).kind == "info" and "Look at" not in view_of(panel).message


def test_error_allows_another_try() -> None:
    panel = running()
    panel.failed("The disk is full.")
    view = view_of(panel)
    assert (view.state, view.kind, view.message) == (State.ERROR, "error", "The disk is full.")
    assert view.segment.enabled and panel.start() and view_of(panel).message == ""


def test_input_changed_while_running_counts_afterwards() -> None:
    panel = running()
    panel.set_inputs("", "")
    assert panel.state is State.RUNNING
    panel.cancelled("T1 was deleted.")
    assert panel.state is State.NO_INPUT and view_of(panel).message == "T1 was deleted."


def test_same_inputs_again_keep_the_message() -> None:
    panel = done()
    panel.notice("Written.")
    panel.set_inputs("T1", "T2")
    assert view_of(panel).message == "Written."


@pytest.mark.parametrize("make", [SegmentState, ready, running, done])
def test_scene_closed_from_everywhere(make: object) -> None:
    panel: SegmentState = make()  # type: ignore[operator]
    panel.scene_closed()
    view = view_of(panel)
    assert view.state is State.NO_INPUT and view.rows == () and not view.export.enabled and view.inputs.enabled


def test_result_loaded_with_a_scene_and_deleted() -> None:
    panel = ready()
    panel.show_result(ROWS)
    assert panel.state is State.DONE and view_of(panel).rows == tuple(ROWS)
    panel.show_result(None)
    assert panel.state is State.IDLE and view_of(panel).rows == ()


def test_device_line() -> None:
    panel = SegmentState()
    assert "compute process" in view_of(panel).device
    panel.set_device_note("PyTorch is not installed yet.")
    assert view_of(panel).device == "PyTorch is not installed yet."
    panel.set_devices([GPU, CPU])
    assert view_of(panel).device == "GPU: NVIDIA H200"
    panel.choose_device("cpu")
    assert view_of(panel).device == "CPU (2 threads)"
    panel.cpu_seconds = 31.0
    assert view_of(panel).device == "CPU (2 threads): about 31 s a scan"
    panel.seconds_on["cpu"] = 18.6
    assert view_of(panel).device == "CPU (2 threads): about 19 s a scan"


def test_device_that_is_promised_but_does_not_work() -> None:
    panel = SegmentState()
    panel.set_devices([Device("cuda", "GPU: Old One", False, "no kernel image"), CPU])
    assert panel.device_name == "cpu"
    assert view_of(panel).device == "CPU (2 threads); GPU: Old One cannot be used (no kernel image)"
    panel.choose_device("cuda")
    assert panel.device_name == "cpu"


def test_chosen_device_that_this_machine_does_not_have() -> None:
    panel = SegmentState()
    panel.set_devices([GPU, CPU])
    panel.choose_device("mps")
    assert panel.device_name == "cuda"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1 s"), (8.4, "8 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min"), (3900, "1 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_every_change_is_told() -> None:
    panel, heard = SegmentState(), []
    panel.changed.connect(lambda: heard.append(panel.state))
    panel.set_inputs("T1", "")
    panel.start()
    panel.cancel()
    panel.cancelled()
    assert heard == [State.IDLE, State.RUNNING, State.CANCELLING, State.IDLE]


def test_signal() -> None:
    signal, heard = Signal(), []

    def fails(value: int) -> None:
        raise RuntimeError("first")

    signal.connect(fails)
    signal.connect(heard.append)
    signal.connect(heard.append)
    with pytest.raises(RuntimeError, match="first"):
        signal.emit(1)
    assert heard == [1]
    signal.disconnect(fails)
    signal.emit(2)
    signal.disconnect()
    signal.emit(3)
    assert heard == [1, 2]
