"""What the section that segments shows: texts, what is enabled and why not, from the state alone."""

from __future__ import annotations

from dataclasses import dataclass

from NeonatalSegLib.panel.controls import STAGE_NAMES, Control, duration
from NeonatalSegLib.panel.segment_state import SegmentState, State

NO_INPUT = "Choose a T1, a T2 or both: there is nothing to segment yet."
BUSY = "A segmentation is running. Cancel it, or wait until it is done."
GRAVITY = ("info", "warning", "error")
NO_RESULT = "There is no segmentation yet. Click Segment first."


@dataclass(frozen=True)
class View:
    """Everything the widget draws. ``kind`` colours the message: "info", "warning" or "error"."""

    state: State
    segment: Control
    inputs: Control
    progress: Control
    percent: int | None
    message: str
    kind: str
    results: Control
    export: Control
    rows: tuple[tuple[str, float], ...]
    device: str
    model_description: str


def view_of(state: SegmentState) -> View:
    """What is to be drawn now."""
    message, kind = state.message, state.kind
    if state.refusal and not state.busy and state.state is not State.ERROR and not message:
        message, kind = state.refusal, "warning"
    if not message and state.state is State.NO_INPUT:
        message = NO_INPUT
    standing, grave = state.standing
    # An error of this moment is read first, all else after what the result cannot be used for.
    parts = (message, standing) if kind == "error" else (standing, message)
    message = "\n".join(text for text in (*parts, state.occupied) if text)
    return View(
        state=state.state,
        segment=_segment_button(state),
        inputs=Control(not state.busy, BUSY if state.busy else ""),
        progress=Control(visible=state.busy, text=_progress_text(state)),
        percent=None if state.fraction is None else round(100 * state.fraction),
        message=message,
        kind=max(kind, grave, key=GRAVITY.index),
        results=Control(state.has_result, "" if state.has_result else NO_RESULT),
        export=_export_button(state),
        rows=state.rows,
        device=_device_line(state),
        model_description=state.model_description,
    )


def _segment_button(state: SegmentState) -> Control:
    if state.state is State.RUNNING:
        return Control(True, "Stop this segmentation; the scene stays as it is.", text="Cancel")
    if state.state is State.CANCELLING:
        return Control(False, "Waiting for the compute process to stop: two seconds at most.", text="Cancelling ...")
    if not (state.t1 or state.t2):
        return Control(False, NO_INPUT, text="Segment")
    if state.refusal:
        return Control(False, state.refusal, text="Segment")
    if state.occupied:
        return Control(False, state.occupied, text="Segment")
    return Control(True, f"Segment {' and '.join(n for n in (state.t1, state.t2) if n)}.", text="Segment")


def _export_button(state: SegmentState) -> Control:
    if not state.has_result:
        return Control(False, NO_RESULT)
    return Control(not state.busy, BUSY if state.busy else "Write the segmentation, as it is now, into a folder.")


def _progress_text(state: SegmentState) -> str:
    if state.state is State.CANCELLING:
        return "Stopping ..."
    name = STAGE_NAMES.get(state.stage, state.stage.capitalize())
    return name if state.seconds_left is None else f"{name}, {duration(state.seconds_left)} left"


def _device_line(state: SegmentState) -> str:
    if not state.devices:
        return state.device_note or "Known when the compute process has started."
    chosen = next((device for device in state.devices if device.name == state.device_name), None)
    if chosen is None:
        return "No device works: " + "; ".join(f"{device.text}: {device.reason}" for device in state.devices)
    line = chosen.text
    seconds = state.seconds_on.get(chosen.name)
    if chosen.name == "cpu":
        seconds = seconds if seconds is not None else state.cpu_seconds
        broken = [f"{device.text} cannot be used ({device.reason})" for device in state.devices if not device.works]
        line += f": about {duration(seconds)} a scan" if seconds is not None else ""
        return "; ".join([line, *broken])
    return line + (f": {duration(seconds)} for the last scan" if seconds is not None else "")
