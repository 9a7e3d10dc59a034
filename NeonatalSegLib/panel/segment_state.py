"""The section that segments, as plain Python: its states and what can happen.

The controller calls ``SegmentState``'s methods when something happens, and draws ``segment_view.view_of(state)`` when
``SegmentState.changed`` is emitted. Nothing here knows Qt or MRML, so every state is tested without a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from NeonatalSegLib.panel.signals import Signal

VERDICT_LINES = {
    "check": "Look at this result before using it:",
    "fail": "Do not use this result, it cannot be a newborn's brain:",
}


class State(Enum):
    """Where the panel is."""

    NO_INPUT = "no input"
    IDLE = "idle"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    ERROR = "error"


@dataclass
class Device:
    """A device as the compute process tells of it: ``works`` only after a real kernel ran there."""

    name: str
    text: str
    works: bool = True
    reason: str = ""


@dataclass
class SegmentState:
    """The state machine. Methods are what can happen; ``segment_view`` reads the attributes.

    Attributes:
        changed: emitted, without arguments, after every change.
        state: the state, ``State.NO_INPUT`` at the start.
        devices: what the compute process found, the fastest first; empty until it has answered.
        seconds_on: seconds of the last whole segmentation, by device name.
        cpu_seconds: what a segmentation takes on this CPU before one was timed; None where unknown.
        message, kind: what is told in passing: the next event takes its place.
        verdict, warnings: what is to be known of the result, told as long as it is shown.
    """

    changed: Signal = field(default_factory=Signal)
    state: State = State.NO_INPUT
    devices: Sequence[Device] = ()
    seconds_on: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float | None = None
    t1: str = ""
    t2: str = ""
    refusal: str = ""
    stage: str = ""
    fraction: float | None = None
    seconds_left: float | None = None
    message: str = ""
    kind: str = "info"
    rows: tuple[tuple[str, float], ...] = ()
    has_result: bool = False
    verdict: str = "pass"
    warnings: tuple[str, ...] = ()
    chosen_device: str = "auto"
    device_note: str = ""
    model_description: str = ""
    occupied: str = ""

    def set_inputs(self, t1: str, t2: str, refusal: str = "") -> None:
        """The inputs are now the volumes of these names ("" for none); ``refusal`` says why they cannot be used."""
        same = (t1, t2, refusal) == (self.t1, self.t2, self.refusal)
        self.t1, self.t2, self.refusal = t1, t2, refusal
        if self.busy or same:
            return
        self._rest()
        self.changed.emit()

    def set_devices(self, devices: Sequence[Device]) -> None:
        """The compute process has answered which devices there are."""
        self.devices, self.device_note = tuple(devices), ""
        self.changed.emit()

    def set_device_note(self, note: str) -> None:
        """What the device line says while no device is known: that torch is missing, that the process starts."""
        self.devices, self.device_note = (), note
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """The user's choice: "auto" or the name of a device."""
        self.chosen_device = name
        self.changed.emit()

    def set_model(self, description: str) -> None:
        """The one-line description of the chosen model."""
        self.model_description = description
        self.changed.emit()

    def set_occupied(self, why: str) -> None:
        """The compute process is busy with something else, which ``why`` tells, or, with "", no more."""
        if why != self.occupied:
            self.occupied = why
            self.changed.emit()

    def start(self) -> bool:
        """A segmentation starts; False, and nothing changes, where it cannot."""
        if not self.can_start:
            return False
        self.state, self.message, self.kind = State.RUNNING, "", "info"
        self.stage, self.fraction, self.seconds_left = "inputs", None, None
        self.changed.emit()
        return True

    def progress(self, stage: str, fraction: float | None, seconds_left: float | None = None) -> None:
        """The running segmentation says how far it is (fraction 0-1 of the whole, None where it cannot be told)."""
        if self.state is not State.RUNNING:
            return
        self.stage, self.fraction, self.seconds_left = stage, fraction, seconds_left
        self.changed.emit()

    def cancel(self) -> None:
        """The user asks to stop."""
        if self.state is State.RUNNING:
            self.state = State.CANCELLING
            self.changed.emit()

    def cancelled(self, why: str = "Cancelled. The scene is as it was before.") -> None:
        """It has stopped; ``why`` is told."""
        self._rest()
        self.message, self.kind = why, "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """It failed, with one sentence for the user."""
        self.state, self.message, self.kind = State.ERROR, message, "error"
        self.changed.emit()

    def finished(
        self,
        rows: Sequence[tuple[str, float]],
        warnings: Sequence[str] = (),
        summary: str = "",
        verdict: str = "pass",
    ) -> None:
        """It is done: (name, mL) rows, what the user should know about the result, and whether it is plausible."""
        self.state = State.DONE
        self.rows, self.has_result = tuple(rows), True
        self.verdict, self.warnings = verdict, tuple(warnings)
        self.message, self.kind = summary, "info"
        self.changed.emit()

    def recounted(self, rows: Sequence[tuple[str, float]]) -> None:
        """The segmentation was edited: its volumes are these now."""
        self.rows = tuple(rows)
        self.changed.emit()

    def notice(self, message: str, kind: str = "info") -> None:
        """Tell something that changes no state (a file was written, a notice before a run)."""
        self.message, self.kind = message, kind
        self.changed.emit()

    def show_result(
        self, rows: Sequence[tuple[str, float]] | None, warnings: Sequence[str] = (), verdict: str = "pass"
    ) -> None:
        """A result is in the scene (loaded with it, chosen again), or, with None, is no more."""
        self.rows, self.has_result = tuple(rows or ()), rows is not None
        self.verdict, self.warnings = verdict, tuple(warnings)
        if not self.busy and self.state is not State.ERROR:
            self._rest()
        self.changed.emit()

    def scene_closed(self) -> None:
        """The scene is gone, and with it inputs and results."""
        self.t1 = self.t2 = self.refusal = ""
        self.rows, self.has_result, self.message, self.kind = (), False, "", "info"
        self.verdict, self.warnings = "pass", ()
        self.state = State.NO_INPUT
        self.changed.emit()

    @property
    def standing(self) -> tuple[str, str]:
        """What is to be known of the result that is shown, and how grave it is ("info", "warning", "error")."""
        if not self.has_result:
            return "", "info"
        line = VERDICT_LINES.get(self.verdict, "")
        grave = "error" if self.verdict == "fail" else "warning" if self.warnings or line else "info"
        return "\n".join(text for text in (line, *self.warnings) if text), grave

    @property
    def device_name(self) -> str:
        """The name of the device that is used: the chosen one, or the first that works; "" where none is known."""
        working = [device for device in self.devices if device.works]
        chosen = next(
            (device for device in working if device.name == self.chosen_device), working[0] if working else None
        )
        return chosen.name if chosen is not None else ""

    @property
    def busy(self) -> bool:
        """True while something runs or is being stopped."""
        return self.state in (State.RUNNING, State.CANCELLING)

    @property
    def can_start(self) -> bool:
        """True where Segment would start."""
        return bool((self.t1 or self.t2) and not (self.refusal or self.occupied or self.busy))

    def _rest(self) -> None:
        """Back to the state in which nothing runs."""
        self.message, self.kind = "", "info"
        if not (self.t1 or self.t2):
            self.state = State.NO_INPUT
        else:
            self.state = State.DONE if self.has_result else State.IDLE
