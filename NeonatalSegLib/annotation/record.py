"""What a rater's ledger says: the state of every planned slice, and the labels of those that were completed.

One JSON object a line: ``format``, ``slice`` (key), ``rater``, ``event`` ("started", "done", "skipped", "flagged",
"reopened", "drafted") and ``time`` (ISO, UTC); "flagged" adds ``note``; "done" adds ``start``, ``seconds``, ``changed``
(voxels that differ from the pre-fill), ``shape`` and ``labels`` (the plane's bytes, zlib and base64), ``crc32`` of the
plane; "drafted" (left unfinished) adds ``seconds`` and the labels.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from NeonatalSegLib.annotation.plan import Plan, PlannedSlice
from NeonatalSegLib.annotation.study import FORMAT, Study
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.files.ledger import read_ledger
from NeonatalSegLib.scans.grid import Grid, plane
from NeonatalSegLib.scans.labels import check_labels

STATES = {
    "started": "in progress", "reopened": "in progress", "drafted": "in progress",
    "done": "done", "skipped": "skipped", "flagged": "flagged",
}  # fmt: skip
NOTE = "NeonatalSeg "  # begins the note in the header of every label map that was made from a ledger


@dataclass(frozen=True)
class SliceItem:
    """One planned slice as one rater has it.

    Attributes:
        state: "to do", "in progress" (begun, or reopened), "done", "flagged" or "skipped".
        seconds: worked on it, over all completions.
        changed_voxels: in the last completion, against the pre-fill.
        note: why it was flagged.
        saved: True where labels of it were saved: a reopened slice, or one left unfinished, goes on from
            :meth:`AnnotationSession.label_plane`.
        draft_seconds: worked on a slice left unfinished, since it was begun; they count into the next completion.
    """

    slice: PlannedSlice
    state: str = "to do"
    seconds: float = 0.0
    changed_voxels: int = 0
    note: str = ""
    saved: bool = False
    draft_seconds: float = 0.0


@dataclass(frozen=True)
class Saved:
    """The labels of one completed slice, packed as in the ledger (a study may hold thousands)."""

    slice: PlannedSlice
    rater: str
    time: str
    shape: tuple[int, int]
    packed: bytes
    crc32: int

    @property
    def labels(self) -> np.ndarray:
        """The plane, uint8."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)

    def to_line(self) -> dict[str, Any]:
        text = base64.b64encode(self.packed).decode("ascii")
        return {"shape": list(self.shape), "crc32": self.crc32, "labels": text}

    @classmethod
    def of(cls, planned: PlannedSlice, rater: str, time: str, labels: np.ndarray) -> Saved:
        data = np.ascontiguousarray(labels, np.uint8).tobytes()
        return cls(planned, rater, time, (labels.shape[0], labels.shape[1]), zlib.compress(data), zlib.crc32(data))


@dataclass
class Record:
    """The state after some lines of a ledger.

    Attributes:
        items: every planned slice by key, in the order of the plan.
        done: completed slices by key, in the order of completion.
        drafts: labels of slices that were completed once, or left unfinished, and are not completed now.
        times: seconds of every completion.
    """

    items: dict[str, SliceItem]
    done: dict[str, Saved] = field(default_factory=dict)
    drafts: dict[str, Saved] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, plan: Plan) -> Record:
        return cls({s.key: SliceItem(s) for s in plan.slices})

    def copy(self) -> Record:
        return Record(dict(self.items), dict(self.done), dict(self.drafts), list(self.times))

    def apply(self, line: Mapping[str, Any], saved: Saved | None = None) -> None:
        """Count one line more; ``saved`` holds the labels of a line "done" or "drafted"."""
        key = line["slice"]
        item = replace(self.items[key], state=STATES[line["event"]], note=str(line.get("note", "")))
        before = self.done.pop(key, None)
        if saved is not None:
            self.drafts.pop(key, None)  # what comes goes to the end, above older ones
        if saved is not None and line["event"] == "drafted":
            item = replace(item, draft_seconds=float(line["seconds"]), saved=True)
            self.drafts[key] = saved
        elif saved is not None:
            item = replace(item, changed_voxels=int(line["changed"]), saved=True, draft_seconds=0.0)
            item = replace(item, seconds=item.seconds + line["seconds"])
            self.done[key] = saved
            self.times.append(float(line["seconds"]))
        elif before is not None:
            self.drafts[key] = before
        self.items[key] = item

    def of_scan(self, scan: str) -> tuple[list[Saved], list[Saved]]:
        """Drafts and completed slices of one scan, in their order."""
        drafts = [s for s in self.drafts.values() if s.slice.scan == scan]
        return drafts, [s for s in self.done.values() if s.slice.scan == scan]

    def note(self, scan: str) -> str:
        """For the header of a scan's label map and mask: another one wherever these differ."""
        marks = ("|".join(f"{s.slice.key}:{s.crc32}" for s in saved) for saved in self.of_scan(scan))
        return f"{NOTE}{zlib.crc32('#'.join(marks).encode()):08x}"


def read_record(study: Study, rater: str) -> tuple[Record, int]:
    """Replay a rater's ledger; every plane in it is verified.

    Returns:
        The record, and how many bytes of the ledger count (for :class:`files.ledger.Ledger`).

    Raises:
        NeonatalSegError: a damaged ledger, of a newer format, about slices that are not planned, or with unknown
            labels.
    """
    path = study.rater_folder(rater) / "ledger.jsonl"
    lines, length = read_ledger(path)
    record = Record.empty(study.plan)
    time = ""
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            if line["format"] > FORMAT:
                raise NeonatalSegError(f"{where} has the format {line['format']}: update NeonatalSeg to read it.")
            if line["slice"] not in record.items:
                raise NeonatalSegError(
                    f"{where} is about the slice {line['slice']}, which the study's plan does not hold."
                )
            time = max(time, line["time"])  # a clock set back does not change the order
            saved = None
            if line["event"] in ("done", "drafted"):
                planned = record.items[line["slice"]].slice
                saved = _unpack(line, planned, study.plan.grids[planned.scan], rater, time, where)
            record.apply(line, saved)
        except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
            raise NeonatalSegError(
                f"{where} is damaged ({type(error).__name__}: {error}). Restore the file from a backup, or remove that "
                "line (its slice is then to do again)."
            ) from error
    return record, length


def _unpack(line: Mapping[str, Any], planned: PlannedSlice, grid: Grid, rater: str, time: str, where: str) -> Saved:
    packed = base64.b64decode(line["labels"], validate=True)
    shape = plane_shape(grid, planned)
    data = zlib.decompressobj().decompress(packed, shape[0] * shape[1] + 1)  # no more than the slice can hold
    if list(line["shape"]) != list(shape) or len(data) != shape[0] * shape[1]:
        raise ValueError(f"a plane of {line['shape']} voxels does not fit the slice {planned.key}")
    if zlib.crc32(data) != line["crc32"]:
        raise ValueError("the labels do not have their checksum")
    check_labels(np.frombuffer(data, np.uint8), f"{where} (slice {planned.key})")
    return Saved(planned, rater, time, shape, packed, int(line["crc32"]))


def plane_shape(grid: Grid, planned: PlannedSlice) -> tuple[int, int]:
    """Array shape of a planned slice."""
    cut = plane(grid, planned.axis, planned.index)
    rows, columns = (n for n, part in zip(grid.shape, cut, strict=True) if isinstance(part, slice))
    return rows, columns


def check_plane(labels: np.ndarray, seconds: float, planned: PlannedSlice, grid: Grid) -> np.ndarray:
    """Labels of a slice as they may be kept.

    Raises:
        NeonatalSegError: wrong shape, no whole numbers, unknown labels, or a time that cannot be.
    """
    labels, shape = np.asarray(labels), plane_shape(grid, planned)
    if labels.shape != shape or labels.dtype.kind not in "uib":
        raise NeonatalSegError(
            f"The labels of the slice {planned.key} are {labels.dtype} of {labels.shape}: expected whole numbers of "
            f"{shape}."
        )
    check_labels(labels, f"The slice {planned.key}")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise NeonatalSegError(f"The slice {planned.key} cannot have taken {seconds} s.")
    return labels


def with_slices_written(base: np.ndarray, grid: Grid, saved: Iterable[Saved]) -> np.ndarray:
    """A copy of ``base`` (z, y, x) with slices laid into it one after the other: the last wins where they cross."""
    out = base.copy()
    for s in saved:
        out[plane(grid, s.slice.axis, s.slice.index)] = s.labels
    return out


def mask_of(grid: Grid, slices: Iterable[PlannedSlice]) -> np.ndarray:
    """(z, y, x) uint8, 1 in these slices."""
    mask = np.zeros(grid.shape, np.uint8)
    for s in slices:
        mask[plane(grid, s.axis, s.index)] = 1
    return mask
