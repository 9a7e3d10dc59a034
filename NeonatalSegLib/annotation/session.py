"""Annotating planned slices: every completed slice is on disk at once, and a study resumes where it stopped.

A rater's folder holds ``ledger.jsonl``, one line for every slice begun, done, skipped, flagged or reopened (see
:mod:`NeonatalSegLib.annotation.record`). The line of a completed slice carries its labels; it is on the medium before
:meth:`AnnotationSession.complete` returns, and it alone decides what is completed. ``<scan>_dseg.nii.gz`` (the
pre-fill with the completed slices in it) and ``<scan>_desc-annotated_mask.nii.gz`` (1 in completed slices) are made
from it for other programs: staged before the line, moved to their places after it, made again on opening where a kill
came between.

Two completed slices that cross: each keeps all its labels in the ledger, and where both lie the label map shows those
completed last. A slice that loses voxels to another stays completed, and has them back when the other is reopened.

Example:
    >>> with AnnotationSession.open("study", "Anna") as project:  # doctest: +SKIP
    ...     while (key := project.next_key()) is not None:
    ...         project.start(key)
    ...         labels = edit(project.prefill(key, "model"))
    ...         project.complete(key, labels, seconds=60.0)
    >>> scans = read_annotations("study")  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from NeonatalSegLib.annotation.completed import AnnotatedScan, read_annotations
from NeonatalSegLib.annotation.creation import create_study
from NeonatalSegLib.annotation.plan import Plan
from NeonatalSegLib.annotation.rater_files import RaterFiles
from NeonatalSegLib.annotation.record import (
    Saved,
    SliceItem,
    check_plane,
    mask_of,
    plane_shape,
    read_record,
    with_slices_written,
)
from NeonatalSegLib.annotation.study import (
    FORMAT,
    Study,
    StudyScan,
    read_study,
)
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files import atomic
from NeonatalSegLib.files.ledger import Ledger
from NeonatalSegLib.files.lock import Lock
from NeonatalSegLib.files.names import check_name, same_file
from NeonatalSegLib.scans.grid import Grid, plane

__all__ = [
    "AnnotatedScan", "AnnotationSession", "SliceItem", "StudyProgress", "StudyScan", "create_study", "read_annotations",
]  # fmt: skip
PREFILLS = ("model", "empty", "neighbour")
LEFT = ("to do", "in progress")


@dataclass(frozen=True)
class StudyProgress:
    """How far a rater is: slices completed, of how many planned, and the time left if known.

    Skipped and flagged slices are no work any more, but they stay in the count.
    """

    done: int
    planned: int
    seconds_left: float | None
    skipped: int = 0
    flagged: int = 0

    @property
    def settled(self) -> int:
        """Slices on which nothing is left to do."""
        return self.done + self.skipped + self.flagged

    @property
    def text(self) -> str:
        """For instance "7 of 33 slices completed, 2 skipped, about 24 min left"."""
        parts = [f"{self.done} of {self.planned} slices completed"]
        parts += [
            f"{number} {what}" for number, what in ((self.skipped, "skipped"), (self.flagged, "flagged")) if number
        ]
        text = ", ".join(parts)
        if self.settled >= self.planned or self.seconds_left is None:
            return text
        minutes = max(1, round(self.seconds_left / 60))
        hours = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
        return f"{text}, about {hours} left"


class AnnotationSession:
    """A study as one rater works on it; made by :meth:`open`.

    Planes are 2D uint8 arrays with labels 0-9, cut from an array (z, y, x) by :func:`NeonatalSegLib.scans.grid.plane`.

    Attributes:
        warnings: in words, what was put right on opening or could not be brought up to date.
    """

    @classmethod
    def open(cls, folder: str | Path, rater: str) -> AnnotationSession:
        """Begin or go on with a study.

        Raises:
            NeonatalSegError: no study, a name that cannot be a folder's, this rater has it open already, the folder
                cannot be written, or the ledger is damaged.
        """
        study = read_study(folder)
        study.check_trusted()
        check_name(rater, "rater")
        place = study.rater_folder(rater)
        if other := [name for name in study.raters() if name != rater and same_file(name) == same_file(rater)]:
            raise NeonatalSegError(f"There is a rater {other[0]!r} already: choose that name or one that differs more.")
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = Lock(place / "lock")
            atomic.sync_folder(place.parent)
            atomic.sync_folder(study.folder)
        except BlockingIOError as error:
            raise NeonatalSegError(
                f"{rater} has this study open already, in {error}. Close it there, or open it under another name."
            ) from error
        except OSError as error:
            raise NeonatalSegError(
                f"The study {study.folder} cannot be written ({error.strerror or error}): what was annotated in it can "
                "be read, but not continued. Copy the study to a folder that can be written."
            ) from error
        try:
            return cls(study, rater, lock)
        except BaseException:
            lock.release()
            raise

    def __init__(self, study: Study, rater: str, lock: Lock) -> None:
        self.study = study
        self.rater = rater
        self._files = RaterFiles(study, rater)
        self.warnings = self._files.warnings
        self._lock: Lock | None = lock
        self._record, length = read_record(study, rater)
        self._ledger = Ledger(self._files.place / "ledger.jsonl", length)
        self._given: dict[str, np.ndarray] = {}  # the pre-fill that a slice was begun with
        self._starts: dict[str, str] = {}
        self._files.put_right(self._record)
        self._look_at_scans()

    def _look_at_scans(self) -> None:
        """Warn at once, and not at the fine-tuning, of an image that is gone or is not the one that was planned for."""
        for scan in self.scans:
            if scan.reference.is_dir():  # a DICOM series has to be read whole: that waits until it is shown
                continue
            try:
                self.study.check_images(scan)
            except NeonatalSegError as error:
                self.warnings.append(str(error))

    def __enter__(self) -> AnnotationSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open the study under this name; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---------------------------------------------------------------- what there is

    @property
    def plan(self) -> Plan:
        return self.study.plan

    @property
    def scans(self) -> tuple[StudyScan, ...]:
        return self.study.scans

    @property
    def items(self) -> list[SliceItem]:
        """All planned slices, in the order of the plan."""
        return list(self._record.items.values())

    def item(self, key: str) -> SliceItem:
        """One slice; NeonatalSegError where the plan does not hold it."""
        if key not in self._record.items:
            raise NeonatalSegError(f"The study's plan holds no slice {key!r}.")
        return self._record.items[key]

    def next_key(self, after: str | None = None) -> str | None:
        """The next slice that is to do or in progress, None where nothing is left.

        It is looked for behind ``after``, then from the beginning; without ``after`` what is in progress comes first.
        """
        items = self.items
        if after is not None:
            place = 1 + [item.slice.key for item in items].index(self.item(after).slice.key)
            items = items[place:] + items[:place]
        left = [item for item in items if item.state in LEFT]
        if after is None:
            left.sort(key=lambda item: item.state != "in progress")
        return left[0].slice.key if left else None

    def previous_key(self, before: str) -> str | None:
        """The slice before this one in the plan, whatever its state; None at the beginning."""
        keys = list(self._record.items)
        place = keys.index(self.item(before).slice.key)
        return keys[place - 1] if place else None

    def progress(self) -> StudyProgress:
        """Slices completed and the time left: the median of this rater's times for every slice left."""
        states = [item.state for item in self.items]
        done, left = states.count("done"), sum(state in LEFT for state in states)
        times = self._record.times
        seconds = median(times) * left if times else None
        return StudyProgress(done, len(states), seconds, states.count("skipped"), states.count("flagged"))

    # ---------------------------------------------------------------- labels

    def prefill(self, key: str, mode: str) -> np.ndarray:
        """Labels to start a slice from; voxels that a completed slice crosses have that slice's labels.

        Args:
            mode: "model" (the prediction that the study was made with), "empty", or "neighbour" (the nearest completed
                slice of this scan and axis; the prediction where there is none).
        """
        planned, grid = self.item(key).slice, self._grid(key)
        cut = plane(grid, planned.axis, planned.index)
        if mode not in PREFILLS:
            raise NeonatalSegError(f"There is no pre-fill {mode!r}: choose {', '.join(PREFILLS)}.")
        done = [saved for saved in self._record.of_scan(planned.scan)[1] if saved.slice.key != key]
        parallel = [saved for saved in done if saved.slice.axis == planned.axis]
        if mode == "empty":
            start = np.zeros(plane_shape(grid, planned), np.uint8)
        elif mode == "neighbour" and parallel:
            start = min(parallel, key=lambda saved: abs(saved.slice.index - planned.index)).labels.copy()
        else:
            start = self._files.prefill(planned.scan)[cut].copy()
        crossed = mask_of(grid, (saved.slice for saved in done))[cut].astype(bool)
        start[crossed] = with_slices_written(self._files.prefill(planned.scan), grid, done)[cut][crossed]
        self._given[key] = start
        return start.copy()

    def label_plane(self, key: str) -> np.ndarray:
        """A slice of the label map as it is saved."""
        planned = self.item(key).slice
        return self.label_map(planned.scan)[plane(self._grid(key), planned.axis, planned.index)].copy()

    def label_map(self, scan: str) -> np.ndarray:
        """(z, y, x): the pre-fill, with the labels of reopened slices and over them those of completed ones."""
        return self._files.label_map(self._record, scan)

    def annotated_mask(self, scan: str) -> np.ndarray:
        """(z, y, x) uint8: 1 in the completed slices of a scan."""
        return self._files.mask(self._record, scan)

    # ---------------------------------------------------------------- work

    def start(self, key: str) -> None:
        """Work on a slice begins; NeonatalSegError where it is completed (reopen it first)."""
        state = self.item(key).state
        if state == "done":
            raise NeonatalSegError(f"The slice {key} is completed: reopen it to change it.")
        self._starts[key] = atomic.now()
        if state != "in progress":
            self._commit(key, "started")

    def complete(self, key: str, labels: np.ndarray, seconds: float) -> None:
        """Keep a slice's labels; they are on the medium when this returns. A completed slice is replaced.

        Args:
            labels: (rows, columns) of the plane, whole numbers 0-9.
            seconds: worked on it since it was started or reopened.

        Raises:
            NeonatalSegError: labels of the wrong shape or unknown, no such slice, or the disk is full; nothing changed.
        """
        labels = check_plane(labels, seconds, self.item(key).slice, self._grid(key))
        given = self._given.get(key)
        changed = np.count_nonzero(labels != (self.prefill(key, "model") if given is None else given))
        time = atomic.now()
        saved = Saved.of(self.item(key).slice, self.rater, time, labels)
        facts = {"start": self._starts.get(key, time), "seconds": round(float(seconds), 3), "changed": int(changed)}
        self._commit(key, "done", {"time": time, **facts, **saved.to_line()}, saved)
        self._given.pop(key, None)
        self._starts.pop(key, None)

    def save_draft(self, key: str, labels: np.ndarray, seconds: float) -> None:
        """Keep what was changed in a slice that is left unfinished: it stays in progress, outside the annotated mask.

        Going on, the slice starts from :meth:`label_plane`, and its time from ``SliceItem.draft_seconds``.

        Args:
            labels, seconds: as :meth:`complete`; the seconds of earlier drafts are in them.

        Raises:
            NeonatalSegError: as :meth:`complete`, or where the slice is not in progress; nothing changed.
        """
        if (state := self.item(key).state) != "in progress":
            raise NeonatalSegError(f"The slice {key} is {state}, not in progress: there is no draft of it to keep.")
        labels = check_plane(labels, seconds, self.item(key).slice, self._grid(key))
        saved = Saved.of(self.item(key).slice, self.rater, atomic.now(), labels)
        facts = {"seconds": round(float(seconds), 3), **saved.to_line()}
        self._commit(key, "drafted", {"time": saved.time, **facts}, saved)

    def skip(self, key: str) -> None:
        """Leave a slice out; one that was completed leaves the annotated mask."""
        self._commit(key, "skipped")

    def flag(self, key: str, note: str) -> None:
        """Put a slice aside with a note; one that was completed leaves the annotated mask."""
        self._commit(key, "flagged", {"note": note})

    def reopen(self, key: str) -> None:
        """Take a slice back: it leaves the annotated mask except where a completed slice crosses it.

        Its labels stay, as :meth:`label_plane` shows them, to go on from.
        """
        self._commit(key, "reopened")

    # ---------------------------------------------------------------- disk

    def _commit(self, key: str, event: str, facts: Mapping[str, Any] = {}, saved: Saved | None = None) -> None:
        scan = self.item(key).slice.scan
        if self._lock is None:
            raise NeonatalSegError(f"The study {self.study.folder} was closed: open it again to work on it.")
        line = {"format": FORMAT, "slice": key, "rater": self.rater, "event": event, "time": atomic.now(), **facts}
        after = self._record.copy()
        after.apply(line, saved)
        staged: list[tuple[Path, Path]] = []
        try:
            if after.note(scan) != self._record.note(scan):
                self._files.stage(staged, after, scan, mask_first=saved is None)
            self._lock.check()
            self._ledger.append(line)
        except OSError as error:
            for part, _ in staged:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
            advice = "" if error.errno == errno.EBUSY else ": free space or bring the folder back, then try again"
            raise NeonatalSegError(
                f"The slice {key} could not be saved in {self._files.place} ({error.strerror or error}). Nothing that "
                f"was saved before is lost{advice}."
            ) from error
        self._record = after
        self._files.put(staged)

    def _grid(self, key: str) -> Grid:
        return self.plan.grids[self.item(key).slice.scan]
