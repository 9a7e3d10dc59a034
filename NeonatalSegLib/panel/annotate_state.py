"""What the Annotate section shows and does, as plain Python: the study, the list of slices, what is enabled, the time.

The widget calls ``AnnotateState``'s methods when something happens and draws ``AnnotateState.view()`` when ``changed``
is emitted. Nothing here knows Qt or MRML: labels come and go as 2D arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from NeonatalSegLib.annotation.session import LEFT, AnnotationSession, SliceItem
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.panel.segment_state import STAGE_NAMES, Control, Signal, duration
from NeonatalSegLib.panel.work_clock import WorkClock
from NeonatalSegLib.tissues import PHYSIOLOGICAL

KEYS = {
    "done": "D",
    "next": "N",
    "previous": "P",
    "skip": "Shift+S",
    "flag": "Shift+F",
    "reopen": "Shift+R",
    "fill": "O",
    "outline": "L",
    "opacity": "Shift+O",
}
DIRECTIONS = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}  # of a slice's position below and above 0
NO_STUDY = "Open a study, or make one for the scan above."
MAKING = "A study is being made. Cancel it, or wait until it is done."
NO_SLICE = "Choose a slice in the list first."
PREFILL_TEXTS = {"model": "the model's segmentation", "neighbour": "the nearest slice done", "empty": "nothing"}


@dataclass(frozen=True)
class Row:
    """One slice in the list."""

    key: str
    state: str
    scan: str
    axis: str
    position: str
    tool_tip: str


@dataclass(frozen=True)
class AnnotateView:
    """Everything the widget draws. ``kind`` colours the message: "info", "warning" or "error"."""

    study: str
    setup: Control
    make: Control
    open: Control
    close: Control
    resume: Control
    making: Control
    making_percent: int | None
    rows: tuple[Row, ...]
    current: str
    percent: int
    progress: str
    buttons: dict[str, Control]
    edit: Control
    message: str
    kind: str


@dataclass
class AnnotateState:
    """The state machine. Attributes are read by ``view``; methods are what can happen.

    Attributes:
        changed: emitted, without arguments, after every change.
        project: the study as this rater has it, None where none is open.
        key: the slice that is shown, "" where none is.
        clock: counts the work on it.
        prefill: what a slice that was not begun yet starts from: "model", "neighbour" or "empty".
    """

    changed: Signal = field(default_factory=Signal)
    clock: WorkClock = field(default_factory=WorkClock)
    project: AnnotationSession | None = None
    key: str = ""
    prefill: str = "model"
    remembered: str = ""
    _begun_with: np.ndarray | None = None
    _making: bool = False
    _stage: str = ""
    _fraction: float | None = None
    _seconds_left: float | None = None
    _refusal: str = ""
    _message: str = ""
    _kind: str = "info"

    # The study

    def remember(self, folder: str) -> None:
        """The study that was open last, offered to be resumed."""
        if folder != self.remembered:
            self.remembered = folder
            self.changed.emit()

    def open(self, folder: str | Path, rater: str) -> None:
        """Open a study under a rater's name; one that is open is closed first.

        Raises:
            NeonatalSegError: as ``AnnotationSession.open``, or where there is no name.
        """
        if not rater.strip():
            raise NeonatalSegError("Give your name first: every rater's slices are kept apart.")
        self.close()
        self.project = AnnotationSession.open(folder, rater.strip())
        self.remembered = str(folder)
        self.report("\n".join(self.project.warnings), "warning")

    def close(self) -> None:
        """Close the study, so that others can work under this name. What was completed is on disk."""
        project, self.project = self.project, None
        self.leave()
        if project is not None:
            project.close()
        self.report("")

    # Slices

    @property
    def item(self) -> SliceItem | None:
        """The slice that is shown, None where none is."""
        return self.project.item(self.key) if self.project is not None and self.key else None

    @property
    def editable(self) -> bool:
        """True where the slice that is shown can be edited."""
        item = self.item
        return item is not None and item.state in LEFT

    def next_key(self) -> str:
        """The slice to go to: the next one left behind this one, or the first one left; "" where nothing is left."""
        if self.project is None:
            return ""
        found = self.project.next_key(after=self.key or None) or ""
        return "" if found == self.key else found

    def previous_key(self) -> str:
        """The slice before this one, whatever its state; "" where there is none."""
        return (self.project.previous_key(self.key) or "") if self.project is not None and self.key else ""

    def go(self, key: str) -> np.ndarray:
        """Show a slice; its labels (2D uint8) to be shown are returned. Work on it begins if it is left to do."""
        project = self._open_project()
        item = project.item(key)
        if item.state in LEFT:
            project.start(key)
        self.key = key
        if item.state in LEFT and not item.saved:
            labels = project.prefill(key, self.prefill)
        else:
            labels = project.label_plane(key)
        self._begin(labels)
        planned = item.slice
        tissue = np.isin(labels, [t.index for t in PHYSIOLOGICAL])
        if self.prefill == "model" and not item.saved and not tissue.any() and project.study.has_prefill(planned.scan):
            self.report("The pre-fill shows no brain in this slice. Skip it if there is none.", "warning")
        else:
            self.report("")
        return labels

    def fill_again(self) -> np.ndarray:
        """Start the slice anew from the chosen pre-fill; the labels are returned."""
        labels = self._open_project().prefill(self.key, self.prefill)
        self.clock.touch()
        return labels

    def complete(self, labels: np.ndarray) -> str:
        """The slice is done with these labels; they are on disk when this returns. Returns the slice to go to."""
        self._open_project().complete(self.key, labels, self.clock.seconds)
        return self._after()

    def skip(self) -> str:
        """Leave the slice out. Returns the slice to go to."""
        self._open_project().skip(self.key)
        return self._after()

    def flag(self, note: str) -> str:
        """Put the slice aside, with a note for whoever looks at it later. Returns the slice to go to."""
        self._open_project().flag(self.key, note)
        return self._after()

    def reopen(self) -> np.ndarray:
        """Take a slice back that is done, skipped or flagged; its labels are returned."""
        self._open_project().reopen(self.key)
        return self.go(self.key)

    def keep_draft(self, labels: np.ndarray) -> bool:
        """The slice is left unfinished: what was changed is kept on disk. True where there was something to keep."""
        if not self.editable or self._begun_with is None or np.array_equal(labels, self._begun_with):
            return False
        self._open_project().save_draft(self.key, labels, self.clock.seconds)
        self._begun_with = np.array(labels)
        return True

    def leave(self) -> None:
        """No slice is shown any more."""
        self.clock.stop()
        self.key, self._begun_with = "", None
        self.changed.emit()

    def _begin(self, labels: np.ndarray) -> None:
        self._begun_with = np.array(labels)
        item = self.item
        if self.editable and item is not None:
            self.clock.start(item.draft_seconds)
        else:
            self.clock.stop()

    def _after(self) -> str:
        self.clock.stop()
        self._begun_with = None
        following = self.next_key()
        self.report("" if following else "All slices of this study are done, skipped or flagged.")
        return following

    def _open_project(self) -> AnnotationSession:
        if self.project is None:
            raise NeonatalSegError(NO_STUDY)
        return self.project

    # A study being made

    def set_scan(self, refusal: str) -> None:
        """``refusal``: why no study can be made for the scan above, "" where one can."""
        if refusal != self._refusal:
            self._refusal = refusal
            self.changed.emit()

    @property
    def making(self) -> bool:
        """True while a study is being made."""
        return self._making

    def make(self) -> None:
        """A study is being made from now on."""
        self._making, self._stage, self._fraction, self._seconds_left = True, "inputs", None, None
        self.report("")

    def progress(self, stage: str, fraction: float | None, seconds_left: float | None = None) -> None:
        """How far the making is (0-1, None where it cannot be told)."""
        self._stage, self._fraction, self._seconds_left = stage, fraction, seconds_left
        self.changed.emit()

    def made(self, message: str = "", kind: str = "info") -> None:
        """It has ended, well or not."""
        self._making = False
        self.report(message, kind)

    def report(self, message: str, kind: str = "info") -> None:
        """Put a message into the section's message line."""
        self._message, self._kind = message, kind if message else "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """Something went wrong, with one sentence for the user."""
        self.report(message, "error")

    # What is drawn

    def view(self) -> AnnotateView:
        """What is to be drawn now."""
        project = self.project
        progress = project.progress() if project is not None else None
        return AnnotateView(
            study=f"{project.study.folder.name}, rater {project.rater}" if project is not None else NO_STUDY,
            setup=Control(not self._making, MAKING if self._making else "", visible=project is None),
            make=self._make_button(),
            open=Control(not self._making, MAKING if self._making else "Open a study folder.", visible=project is None),
            close=Control(tool_tip="Close the study; what is done is on disk.", visible=project is not None),
            resume=self._resume_button(),
            making=Control(visible=self._making, text=self._making_text()),
            making_percent=None if self._fraction is None else round(100 * self._fraction),
            rows=tuple(_row(item) for item in project.items) if project is not None else (),
            current=self.key,
            percent=round(100 * progress.done / progress.total) if progress is not None and progress.total else 0,
            progress=progress.text if progress is not None else "",
            buttons=self._buttons(),
            edit=Control(self.editable, "" if self.editable else self._locked(), visible=project is not None),
            message=self._message,
            kind=self._kind,
        )

    def _make_button(self) -> Control:
        if self._making:
            return Control(True, "Stop; nothing is left behind.", text="Cancel")
        refusal = self._refusal
        return Control(
            not refusal, refusal or "Choose an empty folder; the slices are planned there.", text="Make study ..."
        )

    def _resume_button(self) -> Control:
        name = Path(self.remembered).name if self.remembered else ""
        visible = self.project is None and bool(name)
        return Control(not self._making, f"Go on in {self.remembered}.", visible, f"Resume {name}")

    def _making_text(self) -> str:
        # The work on a scan is told by the scan's name.
        name = STAGE_NAMES.get(self._stage, self._stage)
        return name if self._seconds_left is None else f"{name}, {duration(self._seconds_left)} left"

    def _locked(self) -> str:
        item = self.item
        if item is None:
            return NO_SLICE
        return f"This slice is {item.state}. Reopen it to change it ({KEYS['reopen']})."

    def _buttons(self) -> dict[str, Control]:
        item, editable = self.item, self.editable
        closed = item is not None and not editable
        why = self._locked()
        return {
            "previous": _button(
                "previous", bool(self.previous_key()), "The slice before this one.", "No slice before."
            ),
            "next": _button(
                "next", bool(self.next_key()), "The next slice that is left to do.", "Nothing else is left."
            ),
            "done": _button("done", editable, "Save this slice and go to the next one that is left to do.", why),
            "skip": _button("skip", editable, "Leave this slice out and go on.", why),
            "flag": _button("flag", editable, "Put this slice aside, with the note below, and go on.", why),
            "reopen": _button("reopen", closed, "Take this slice back to change it.", "This slice is open."),
        }


def _button(name: str, enabled: bool, what: str, why_not: str) -> Control:
    return Control(enabled, f"{what} Key: {KEYS[name]}" if enabled else why_not)


def _row(item: SliceItem) -> Row:
    planned = item.slice
    facts = [f"{planned.scan}: {planned.reason}"]
    if item.state == "done":
        facts.append(f"{duration(item.seconds)}, {item.changed_voxels} voxels changed")
    if item.note:
        facts.append(f"Note: {item.note}")
    side = DIRECTIONS[planned.axis][int(planned.position_mm >= 0)]
    position = f"{side} {abs(planned.position_mm):.1f} mm"
    return Row(planned.key, item.state, planned.scan, planned.axis, position, "\n".join(facts))


def smoothed(labels: np.ndarray, editable: np.ndarray) -> np.ndarray:
    """Labels of a slice (2D uint8) with single voxels and ragged borders evened out: the majority of 3 x 3 voxels.

    A voxel changes where ``editable`` (2D bool), and only where another class has more of its neighbourhood.
    """
    padded = np.pad(labels, 1, mode="edge")
    rows, columns = labels.shape
    around = [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)]
    classes = np.unique(labels)
    votes = np.array([np.sum([part == value for part in around], axis=0) for value in classes], float)
    votes += 0.5 * (labels == classes[:, None, None])  # a draw leaves it as it is
    return np.where(editable, classes[votes.argmax(0)], labels).astype(labels.dtype)
