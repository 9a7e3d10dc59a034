"""What a study's raters have completed, scan by scan, verified: the input of fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from NeonatalSegLib.annotation.plan import PlannedSlice
from NeonatalSegLib.annotation.record import NOTE, Record, Saved, mask_of, read_record, with_slices_written
from NeonatalSegLib.annotation.study import Study, StudyScan, read_study
from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.scans.grid import Grid
from NeonatalSegLib.scans.labels import note_of, read_labels
from NeonatalSegLib.scans.read import content_hash, read_grid


@dataclass(frozen=True)
class AnnotatedScan:
    """One scan with completed slices.

    Attributes:
        labels: (z, y, x) uint8 on ``grid``; meaningful in ``slices`` alone, 0 elsewhere.
        slices: the completed ones, in the order of the plan.
        raters: whose slices these are.
    """

    name: str
    t1: Path | None
    t2: Path | None
    age_weeks: float | None
    grid: Grid
    labels: np.ndarray
    slices: tuple[PlannedSlice, ...]
    raters: tuple[str, ...]

    @property
    def reference(self) -> Path:
        """The image on whose grid the labels lie: T2 where there is one, else T1."""
        path = self.t2 if self.t2 is not None else self.t1
        assert path is not None  # a study's scan has one of them
        return path

    @property
    def mask(self) -> np.ndarray:
        """(z, y, x) uint8, 1 where ``labels`` are annotations."""
        return mask_of(self.grid, self.slices)


def read_annotations(folder: str | Path, raters: Sequence[str] | None = None) -> list[AnnotatedScan]:
    """The scans of a study that have completed slices; works while raters are at work and in a read-only folder.

    Where two raters completed the same slice, and where slices cross, the newest completion wins.

    Args:
        raters: whose slices count; default all.

    Raises:
        NeonatalSegError: no study, no such rater, no slice complete, an image missing or on another grid than the
            plan's, a damaged ledger, an unknown label, or a label map that another program moved or changed.
    """
    study = read_study(folder)
    study.check_trusted()
    there = study.raters()
    names = there if raters is None else list(dict.fromkeys(raters))
    if missing := [name for name in names if name not in there]:
        raise NeonatalSegError(
            f"{missing[0]} has annotated nothing in the study {study.folder}: its raters are "
            f"{', '.join(there) or 'none'}."
        )
    records = {name: read_record(study, name)[0] for name in names}
    if not any(record.done for record in records.values()):
        raise NeonatalSegError(
            f"No slice is completed in the study {study.folder}"
            + (f" by {', '.join(names)}" if raters is not None else "")
            + ": complete one at least."
        )
    found = (_annotated(study, scan, records) for scan in study.scans)
    return [scan for scan in found if scan is not None]


def read_rounds(
    folder: str | Path, earlier: Sequence[str | Path] = (), raters: Sequence[str] | None = None
) -> list[AnnotatedScan]:
    """:func:`read_annotations` of a study and of those of earlier rounds, a scan that several of them hold as one.

    Where slices of two rounds cross, those of the later round win; of ``earlier``, each is later than those before it.

    Args:
        earlier: folders, besides those that the study itself names (``neonatalseg budget --earlier``, or the panel's
            next round).
        raters: whose slices count, in every round; default all. Who completed nothing in an earlier round adds nothing.

    Raises:
        NeonatalSegError: as there, or a scan is another image in an earlier round.
    """
    found = {scan.name: scan for scan in read_annotations(folder, raters)}
    before_it = [one for one in all_rounds([*earlier, folder]) if one.resolve() != Path(folder).resolve()]
    for before in reversed(before_it):
        whose = None if raters is None else _at_work(before, raters)
        for scan in read_annotations(before, whose) if whose != [] else ():
            later = found.get(scan.name)
            found[scan.name] = scan if later is None else _joined(scan, later, before)
    return list(found.values())


def _at_work(folder: Path, raters: Sequence[str]) -> list[str]:
    """Those of ``raters`` who completed slices of a study."""
    study = read_study(folder)
    study.check_trusted()
    there = study.raters()
    return [name for name in dict.fromkeys(raters) if name in there and read_record(study, name)[0].done]


def all_rounds(folders: Sequence[str | Path]) -> list[Path]:
    """Studies, and before each of them the rounds that it goes on from by its own account; each once, oldest first.

    Raises:
        NeonatalSegError: one of them is no study, or is gone.
        LeavesStudyError: it names rounds or images outside its folder that nobody has agreed to.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        study = read_study(folder)
        study.check_trusted()
        for one in (*study.earlier, folder):
            if not (one / "study.json").is_file():
                raise NeonatalSegError(
                    f"The study {folder} goes on from the study {one}, which is not there: put it back where it was."
                )
            found.setdefault(one.resolve(), one)
    return list(found.values())


def completed_keys(folders: Sequence[str | Path], scans: Sequence[StudyScan]) -> tuple[str, ...]:
    """Keys of the slices of ``scans`` that any rater completed in these studies.

    Raises:
        NeonatalSegError: no study, one of other scans, or a scan of the same name that is another image.
    """
    done: set[str] = set()
    for folder in folders:
        study = read_study(folder)
        study.check_trusted()
        theirs = {scan.name: scan for scan in study.scans}
        shared = [scan for scan in scans if scan.name in theirs]
        if not shared:
            raise NeonatalSegError(
                f"The study {folder} has none of the scans {', '.join(s.name for s in scans[:5])}: it is about "
                f"{', '.join(list(theirs)[:5])}. A scan must have the same name in both."
            )
        for scan in shared:
            before = theirs[scan.name].reference
            if why := _why_other(study.plan.grids[scan.name], before, read_grid(scan.reference), scan.reference):
                raise NeonatalSegError(
                    f"{scan.name} in the study {folder} {why} than {scan.reference}, so that slice numbers mean other "
                    "places: leave that study out, or give the image that was annotated."
                )
        names = {scan.name for scan in shared}
        done |= {key for key, scan in every_completed_key(study).items() if scan in names}
    return tuple(sorted(done))


def every_completed_key(study: Study) -> dict[str, str]:
    """Keys of the slices that any rater has completed, each with the name of its scan."""
    records = [read_record(study, rater)[0] for rater in study.raters()]
    return {key: saved.slice.scan for record in records for key, saved in record.done.items()}


def _why_other(grid: Grid, image: Path, later_grid: Grid, later_image: Path) -> str:
    """Why a scan of two studies is not the same image, "" where it is; templates of all ages share one grid."""
    if not grid.is_like(later_grid):
        return "lies on another grid"
    return "" if content_hash(image) == content_hash(later_image) else "is another image"


def _joined(scan: AnnotatedScan, later: AnnotatedScan, folder: str | Path) -> AnnotatedScan:
    if why := _why_other(scan.grid, scan.reference, later.grid, later.reference):
        raise NeonatalSegError(
            f"{scan.name} {why} in the study {folder} than in the later one ({scan.reference}, {later.reference}): "
            "their slices cannot be learned together. Leave that study out, or give its scan another name."
        )
    labels = np.where(later.mask > 0, later.labels, scan.labels)
    known = {s.key for s in later.slices}
    slices = (*(s for s in scan.slices if s.key not in known), *later.slices)
    return replace(later, labels=labels, slices=slices, raters=tuple(sorted({*scan.raters, *later.raters})))


def _annotated(study: Study, scan: StudyScan, records: dict[str, Record]) -> AnnotatedScan | None:
    completed = [saved for record in records.values() for saved in record.of_scan(scan.name)[1]]
    if not completed:
        return None
    study.check_images(scan)
    for rater, record in records.items():
        _check_label_map(study, rater, record, scan.name)
    newest: dict[str, Saved] = {}
    for saved in sorted(completed, key=lambda saved: saved.time):  # stable: within one ledger its order
        newest.pop(saved.slice.key, None)
        newest[saved.slice.key] = saved
    grid = study.plan.grids[scan.name]
    labels = with_slices_written(np.zeros(grid.shape, np.uint8), grid, newest.values())
    slices = tuple(planned for planned in study.plan.for_scan(scan.name) if planned.key in newest)
    whose = tuple(sorted({saved.rater for saved in newest.values()}))
    return AnnotatedScan(scan.name, scan.t1, scan.t2, scan.age_weeks, grid, labels, slices, whose)


def _check_label_map(study: Study, rater: str, record: Record, scan: str) -> None:
    """Refuse a label map that another program changed: its user would think that the changes count."""
    path, grid = study.rater_folder(rater) / f"{scan}_dseg.nii.gz", study.plan.grids[scan]
    completed = record.of_scan(scan)[1]
    if not path.exists() or not completed:
        return
    note = note_of(path)
    if note.startswith(NOTE) and note != record.note(scan):
        return  # from before a kill, or just being replaced: the ledger is ahead of it
    labels = read_labels(path).on_grid(grid, str(path))
    inside = mask_of(grid, (saved.slice for saved in completed)).astype(bool)
    expected = with_slices_written(np.zeros_like(labels), grid, completed)
    if (labels != expected)[inside].any() and note_of(path) == note:
        raise NeonatalSegError(
            f"The label map {path} was changed by another program: it differs from the slices that {rater} completed. "
            "Make the changes in those slices of the study; to use what was completed, move this file away."
        )
