"""What the panel shows, as plain Python: states, texts, what is enabled and why not.

The widget calls ``Panel``'s methods when something happens, and draws ``Panel.view()`` when ``Panel.changed`` is
emitted. Nothing here knows Qt or MRML, so every state is tested without a screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

RESEARCH_ONLY = "Research use only, not for diagnosis."
NO_INPUT = "Choose a T1, a T2 or both: there is nothing to segment yet."
BUSY = "A segmentation is running. Cancel it, or wait until it is done."
NO_RESULT = "There is no segmentation yet. Click Segment first."
STAGE_NAMES = {
    "inputs": "Handing over the scan",
    "start": "Starting the compute process",
    "import": "Starting the compute process",
    "devices": "Looking for devices",
    "load model": "Loading the model",
    "read": "Reading the scan",
    "register": "Aligning T1 and T2",
    "n4": "Correcting the intensities",
    "prepare": "Preparing the scan",
    "network": "Segmenting",
    "brain alone": "Segmenting the brain alone",
    "once more": "Segmenting the brain alone",
    "back": "Bringing the result onto the scan",
    "write": "Handing over the result",
}


class Signal:
    """A list of callables to be called. Made for both Qt bindings, in neither of which own signals are safe.

    A receiver that fails does not keep the others from being called; the first failure is raised at the end.
    """

    def __init__(self) -> None:
        self._receivers: list[Callable[..., Any]] = []

    def connect(self, receiver: Callable[..., Any]) -> None:
        """Call ``receiver`` from now on; a second time for the same one does nothing."""
        if receiver not in self._receivers:
            self._receivers.append(receiver)

    def disconnect(self, receiver: Callable[..., Any] | None = None) -> None:
        """Stop calling ``receiver``, or everyone."""
        self._receivers = [kept for kept in self._receivers if receiver is not None and kept != receiver]

    def emit(self, *arguments: Any) -> None:
        """Call every receiver with ``arguments``."""
        failure: Exception | None = None
        for receiver in list(self._receivers):
            try:
                receiver(*arguments)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure


class State(Enum):
    """Where the panel is."""

    NO_INPUT = "no input"
    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    ERROR = "error"


@dataclass(frozen=True)
class Control:
    """How one control is drawn. ``tool_tip`` says what it does, or why it cannot be used now."""

    enabled: bool = True
    tool_tip: str = ""
    visible: bool = True
    text: str = ""


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


@dataclass
class Device:
    """A device as the compute process tells of it: ``works`` only after a real kernel ran there."""

    name: str
    text: str
    works: bool = True
    reason: str = ""


@dataclass
class SegmentState:
    """The state machine. Attributes are read by ``view``; methods are what can happen.

    Attributes:
        changed: emitted, without arguments, after every change.
        state: the state, ``State.NO_INPUT`` at the start.
        devices: what the compute process found, the fastest first; empty until it has answered.
        seconds_on: seconds of the last whole segmentation, by device name.
        cpu_seconds: what a segmentation takes on this CPU before one was timed; None where unknown.
    """

    changed: Signal = field(default_factory=Signal)
    state: State = State.NO_INPUT
    devices: Sequence[Device] = ()
    seconds_on: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float | None = None
    _t1: str = ""
    _t2: str = ""
    _refusal: str = ""
    _stage: str = ""
    _fraction: float | None = None
    _seconds_left: float | None = None
    _message: str = ""
    _kind: str = "info"
    _rows: tuple[tuple[str, float], ...] = ()
    _has_result: bool = False
    _device: str = "auto"
    _device_note: str = ""
    _model_description: str = ""
    _occupied: str = ""

    def set_inputs(self, t1: str, t2: str, refusal: str = "") -> None:
        """The inputs are now the volumes of these names ("" for none); ``refusal`` says why they cannot be used."""
        same = (t1, t2, refusal) == (self._t1, self._t2, self._refusal)
        self._t1, self._t2, self._refusal = t1, t2, refusal
        if self.busy or same:
            return
        self._rest()
        self.changed.emit()

    def set_devices(self, devices: Sequence[Device]) -> None:
        """The compute process has answered which devices there are."""
        self.devices, self._device_note = tuple(devices), ""
        self.changed.emit()

    def set_device_note(self, note: str) -> None:
        """What the device line says while no device is known: that torch is missing, that the process starts."""
        self.devices, self._device_note = (), note
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """The user's choice: "auto" or the name of a device."""
        self._device = name
        self.changed.emit()

    def set_model(self, description: str) -> None:
        """The one-line description of the chosen model."""
        self._model_description = description
        self.changed.emit()

    def set_occupied(self, why: str) -> None:
        """The compute process is busy with something else, which ``why`` tells, or, with "", no more."""
        if why != self._occupied:
            self._occupied = why
            self.changed.emit()

    def start(self) -> bool:
        """A segmentation starts; False, and nothing changes, where it cannot."""
        if not self.can_start:
            return False
        self.state, self._message, self._kind = State.RUNNING, "", "info"
        self._stage, self._fraction, self._seconds_left = "inputs", None, None
        self.changed.emit()
        return True

    def progress(self, stage: str, fraction: float | None, seconds_left: float | None = None) -> None:
        """The running segmentation says how far it is (fraction 0-1 of the whole, None where it cannot be told)."""
        if self.state is not State.RUNNING:
            return
        self._stage, self._fraction, self._seconds_left = stage, fraction, seconds_left
        self.changed.emit()

    def cancel(self) -> None:
        """The user asks to stop."""
        if self.state is State.RUNNING:
            self.state = State.CANCELLING
            self.changed.emit()

    def cancelled(self, why: str = "Cancelled. The scene is as it was before.") -> None:
        """It has stopped; ``why`` is told."""
        self._rest()
        self._message, self._kind = why, "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """It failed, with one sentence for the user."""
        self.state, self._message, self._kind = State.ERROR, message, "error"
        self.changed.emit()

    def finished(self, rows: Sequence[tuple[str, float]], warnings: Sequence[str] = (), summary: str = "") -> None:
        """It is done: (name, mL) rows, and what the user should know about the result."""
        self.state = State.DONE
        self._rows, self._has_result = tuple(rows), True
        self._message = "\n".join([*warnings, *([summary] if summary else [])])
        self._kind = "warning" if warnings else "info"
        self.changed.emit()

    def notice(self, message: str, kind: str = "info") -> None:
        """Tell something that changes no state (a file was written, a notice before a run)."""
        self._message, self._kind = message, kind
        self.changed.emit()

    def show_result(self, rows: Sequence[tuple[str, float]] | None) -> None:
        """A result is in the scene (loaded with it, chosen again), or, with None, is no more."""
        self._rows, self._has_result = tuple(rows or ()), rows is not None
        if not self.busy and self.state is not State.ERROR:
            self._rest()
        self.changed.emit()

    def scene_closed(self) -> None:
        """The scene is gone, and with it inputs and results."""
        self._t1 = self._t2 = self._refusal = ""
        self._rows, self._has_result, self._message, self._kind = (), False, "", "info"
        self.state = State.NO_INPUT
        self.changed.emit()

    @property
    def has_result(self) -> bool:
        """True where a result can be shown and exported."""
        return self._has_result

    @property
    def device_name(self) -> str:
        """The name of the device that is used: the chosen one, or the first that works; "" where none is known."""
        working = [device for device in self.devices if device.works]
        chosen = next((device for device in working if device.name == self._device), working[0] if working else None)
        return chosen.name if chosen is not None else ""

    @property
    def busy(self) -> bool:
        """True while something runs or is being stopped."""
        return self.state in (State.RUNNING, State.CANCELLING)

    @property
    def can_start(self) -> bool:
        """True where Segment would start."""
        return bool((self._t1 or self._t2) and not (self._refusal or self._occupied or self.busy))

    def view(self) -> View:
        """What is to be drawn now."""
        message, kind = self._message, self._kind
        if self._refusal and not self.busy and self.state is not State.ERROR and not message:
            message, kind = self._refusal, "warning"
        if not message and self.state is State.NO_INPUT:
            message = NO_INPUT
        if self._occupied:
            message = "\n".join(text for text in (message, self._occupied) if text)
        return View(
            state=self.state,
            segment=self._segment_button(),
            inputs=Control(not self.busy, BUSY if self.busy else ""),
            progress=Control(visible=self.busy, text=self._progress_text()),
            percent=None if self._fraction is None else round(100 * self._fraction),
            message=message,
            kind=kind,
            results=Control(self._has_result, "" if self._has_result else NO_RESULT),
            export=self._export_button(),
            rows=self._rows,
            device=self._device_line(),
            model_description=self._model_description,
        )

    def _rest(self) -> None:
        """Back to the state in which nothing runs."""
        self._message, self._kind = "", "info"
        if not (self._t1 or self._t2):
            self.state = State.NO_INPUT
        else:
            self.state = State.DONE if self._has_result else State.IDLE

    def _segment_button(self) -> Control:
        if self.state is State.RUNNING:
            return Control(True, "Stop this segmentation; the scene stays as it is.", text="Cancel")
        if self.state is State.CANCELLING:
            return Control(
                False, "Waiting for the compute process to stop: two seconds at most.", text="Cancelling ..."
            )
        if not (self._t1 or self._t2):
            return Control(False, NO_INPUT, text="Segment")
        if self._refusal:
            return Control(False, self._refusal, text="Segment")
        if self._occupied:
            return Control(False, self._occupied, text="Segment")
        return Control(True, f"Segment {' and '.join(n for n in (self._t1, self._t2) if n)}.", text="Segment")

    def _export_button(self) -> Control:
        if not self._has_result:
            return Control(False, NO_RESULT)
        return Control(not self.busy, BUSY if self.busy else "Write the segmentation, as it is now, into a folder.")

    def _progress_text(self) -> str:
        if self.state is State.CANCELLING:
            return "Stopping ..."
        name = STAGE_NAMES.get(self._stage, self._stage.capitalize())
        return name if self._seconds_left is None else f"{name}, {duration(self._seconds_left)} left"

    def _device_line(self) -> str:
        if not self.devices:
            return self._device_note or "Known when the compute process has started."
        chosen = next((device for device in self.devices if device.name == self.device_name), None)
        if chosen is None:
            return "No device works: " + "; ".join(f"{device.text}: {device.reason}" for device in self.devices)
        line = chosen.text
        seconds = self.seconds_on.get(chosen.name)
        if chosen.name == "cpu":
            seconds = seconds if seconds is not None else self.cpu_seconds
            broken = [f"{device.text} cannot be used ({device.reason})" for device in self.devices if not device.works]
            line += f": about {duration(seconds)} a scan" if seconds is not None else ""
            return "; ".join([line, *broken])
        return line + (f": {duration(seconds)} for the last scan" if seconds is not None else "")


def duration(seconds: float) -> str:
    """A time for people: "8 s", "2 min", "1 h 5 min"; never "0 s"."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
