"""The Annotate section, as plain Python: the study, the slice that is worked on, the time, and what can happen.

The controller calls ``AnnotateState``'s methods when something happens and draws ``annotate_view.view_of(state)`` when
``changed`` is emitted. Nothing here knows Qt or MRML: labels come and go as 2D arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from NeonatalSegLib.annotation.agreement import Agreement, agreement
from NeonatalSegLib.annotation.corrections import by_likely_error, corrected_shares
from NeonatalSegLib.annotation.session import LEFT, AnnotationSession, SliceItem
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.panel.signals import Signal
from NeonatalSegLib.panel.work_clock import WorkClock
from NeonatalSegLib.tissues import PHYSIOLOGICAL, by_index

RECENT = 5
NO_STUDY = "Open a study, or make one for the scan above."


@dataclass
class AnnotateState:
    """The state machine. Methods are what can happen; ``annotate_view`` reads the attributes.

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
    recent: tuple[str, ...] = ()
    other_rater: str = ""
    agreement: Agreement | None = None
    _shares: dict[int, float] | None = None
    _begun_with: np.ndarray | None = None
    making: bool = False
    stage: str = ""
    fraction: float | None = None
    seconds_left: float | None = None
    refusal: str = ""
    occupied: str = ""
    message: str = ""
    kind: str = "info"

    # The study

    def remember(self, folder: str) -> None:
        """The study that was open last, offered to be resumed."""
        if folder != self.remembered:
            self.remembered = folder
            self.changed.emit()

    def set_recent(self, folders: Sequence[str]) -> None:
        """The last studies, the latest first: those that are still there are offered."""
        self.recent = tuple(folder for folder in folders if folder and Path(folder, "study.json").is_file())
        if not self.remembered and self.recent:
            self.remembered = self.recent[0]
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
        self.other_rater, self.agreement = "", None
        self.recent = (str(folder), *(kept for kept in self.recent if kept != str(folder)))[:RECENT]
        self._shares = None
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
        """Show a slice; its labels (2D uint8) to be shown are returned. Work on it begins if it is left to do.

        Raises:
            NeonatalSegError: a file is missing, or the study cannot be written; the slice before stays the one shown.
        """
        project = self._open_project()
        item = project.item(key)
        if item.state in LEFT and not item.saved:
            labels = project.prefill(key, self.prefill)
        else:
            labels = project.label_plane(key)
        if item.state in LEFT:
            project.start(key)
        self.key = key
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
        """The slice is completed with these labels; they are on disk when this returns. Returns the slice to go to."""
        self._open_project().complete(self.key, labels, self.clock.seconds)
        self._shares = None
        doubt = ""
        try:
            self._compare(self.other_rater)
        except NeonatalSegError as error:  # the slice is on disk all the same
            self.other_rater, self.agreement = "", None
            doubt = f"The slice is completed, but it is compared no longer: {error}"
        following = self._after()
        if doubt:
            self.report("\n".join(text for text in (self.message, doubt) if text), "warning")
        return following

    def next_tissue(self, labels: np.ndarray, current: str) -> str:
        """The key of the tissue to look at after ``current``: those that had to be corrected most so far come first."""
        if self._shares is None:
            self._shares = corrected_shares(self._open_project())
        order = [by_index(index).key for index in by_likely_error(labels, self._shares)]
        if not order:
            return ""
        return order[(order.index(current) + 1) % len(order)] if current in order else order[0]

    def compare_with(self, rater: str) -> None:
        """Compare with another rater of the study, or, with "", no more.

        Raises:
            NeonatalSegError: a damaged ledger; nothing is compared then.
        """
        self.other_rater, self.agreement = "", None
        try:
            self._compare(rater)
            self.other_rater = rater
        finally:
            self.changed.emit()

    def _compare(self, other: str) -> None:
        project = self.project
        self.agreement = agreement(project.study, project.rater, other) if project is not None and other else None

    def differing(self) -> np.ndarray | None:
        """Where the two raters differ in the slice that is shown (2D bool); None where not both have completed it."""
        return self.agreement.differing.get(self.key) if self.agreement is not None else None

    def skip(self) -> str:
        """Leave the slice out. Returns the slice to go to."""
        self._open_project().skip(self.key)
        return self._after()

    def flag(self, note: str) -> str:
        """Put the slice aside, with a note for whoever looks at it later. Returns the slice to go to."""
        self._open_project().flag(self.key, note)
        return self._after()

    def reopen(self) -> np.ndarray:
        """Take a slice back that is completed, skipped or flagged; its labels are returned."""
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
        self.report("" if following else "All slices of this study are completed, skipped or flagged.")
        return following

    def _open_project(self) -> AnnotationSession:
        if self.project is None:
            raise NeonatalSegError(NO_STUDY)
        return self.project

    # A study being made

    def set_scan(self, refusal: str) -> None:
        """``refusal``: why no study can be made for the scan above, "" where one can."""
        if refusal != self.refusal:
            self.refusal = refusal
            self.changed.emit()

    def set_occupied(self, why: str) -> None:
        """The compute process is busy with something else, or, with "", no more."""
        if why != self.occupied:
            self.occupied = why
            self.changed.emit()

    def make(self) -> None:
        """A study is being made from now on."""
        self.making, self.stage, self.fraction, self.seconds_left = True, "inputs", None, None
        self.report("")

    def progress(self, stage: str, fraction: float | None, seconds_left: float | None = None) -> None:
        """How far the making is (0-1, None where it cannot be told)."""
        self.stage, self.fraction, self.seconds_left = stage, fraction, seconds_left
        self.changed.emit()

    def made(self, message: str = "", kind: str = "info") -> None:
        """It has ended, well or not."""
        self.making = False
        self.report(message, kind)

    def report(self, message: str, kind: str = "info") -> None:
        """Put a message into the section's message line."""
        self.message, self.kind = message, kind if message else "info"
        self.changed.emit()

    def failed(self, message: str) -> None:
        """Something went wrong, with one sentence for the user."""
        self.report(message, "error")
